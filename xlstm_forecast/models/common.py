"""What all forecasting models share: scaling around the network, loss and quantiles, embeddings of covariates.

A model turns a scaled window into features and a simple base forecast (`features`); its head makes a forecast of both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..batch import Batch, Labels
from ..encoder import EncoderConfig
from ..heads import LEVELS, check_levels
from ..scaling import MODES, Scaled, scale_context, scale_labels, unscale


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes and choices that all models have; everything a checkpoint needs to build one again."""

    input_length: int  # L, context steps
    horizon: int  # H, forecast steps
    targets: int = 1  # V
    known: int = 0  # K, known-future reals
    past: int = 0  # O, past-only reals
    static: int = 0  # S, static reals
    known_sizes: tuple[int, ...] = ()  # vocabulary sizes of the categorical columns, index 0 (unknown) included
    past_sizes: tuple[int, ...] = ()
    static_sizes: tuple[int, ...] = ()
    series: int = 0  # number of series with an embedding of their own; 0: none
    season: int = 1  # steps of the season that the linear part starts from
    head: str = "quantile"
    levels: tuple[float, ...] = LEVELS
    scaling: str = "window"
    backbone: bool = False  # batches carry a base forecast, which the network corrects; there is no linear part
    dropout: float = 0.0
    encoder: EncoderConfig = field(default_factory=EncoderConfig)

    def __post_init__(self) -> None:
        for name in ("input_length", "horizon", "targets", "season"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        if self.scaling not in MODES:
            raise ValueError(f"scaling={self.scaling!r} is unknown: choose one of {', '.join(map(repr, MODES))}")
        check_levels(self.levels)

    @property
    def features(self) -> int:
        """F, what the head gets of every forecast step."""
        return max(16, self.encoder.d_model // 2)

    @property
    def forget(self) -> float:
        """The share of series and categories that training shows as unknown; none without dropout."""
        return 0.05 if self.dropout else 0.0


class Forecast(NamedTuple):
    """What a model makes of a batch: the head's parameters in the window's units, and the window's scaling."""

    params: Tensor  # (B, H, V, size)
    scaled: Scaled
    offset: Tensor  # (B, V) float64


class ForecastModel(nn.Module, ABC):
    """Batch -> Forecast. A model gives `features`; scaling, head, loss and quantiles are the same for all."""

    config: Any
    encoder: Any
    head: Any  # a Head; with another module in its place, only `features` can be used
    known_location: Tensor
    known_scale: Tensor
    past_location: Tensor
    past_scale: Tensor
    static_location: Tensor
    static_scale: Tensor
    share: Tensor  # (), how much of a correction of the backbone is kept

    @abstractmethod
    def features(self, batch: Batch, scaled: Scaled) -> tuple[Tensor, Tensor]:
        """Features (B, H, V, F) for the head and a base forecast (B, H, V) in the window's units.

        scaled: the batch's context in the window's units. Sees no label.
        """

    def forward(self, batch: Batch) -> Forecast:
        scaled = scale_context(batch.target, batch.observed, batch.offset, self.config.scaling)
        if batch.base is not None:
            return self._correct(batch, batch.base, scaled, [self.share])[0]
        features, base = self.features(batch, scaled)
        params = self.head(features)
        return Forecast(self.head.shift(params, base.to(params.dtype)), scaled, batch.offset)

    def _correct(self, batch: Batch, base: Tensor, scaled: Scaled, shares: Iterable[Tensor]) -> list[Forecast]:
        """`base`, corrected by each of these shares of what is learned; constant windows keep it as it is."""
        scaled = scaled._replace(scale=torch.where(scaled.varies, scaled.scale, torch.ones_like(scaled.scale)))
        quantiles = (base - scaled.location[..., None]) / scaled.scale[..., None]
        features, _ = self.features(batch, scaled)
        kept = [share * scaled.varies[..., None] for share in shares]
        return [Forecast(self.head.around(features, quantiles, k), scaled, batch.offset) for k in kept]

    def loss(self, batch: Batch, labels: Labels) -> Tensor:
        """The head's loss in units of each window's scale, weighted; a scalar.

        The sum is divided by the number of values, observed or not, so that equal shares of a batch on several
        devices average to the loss of the whole.
        """
        total, _ = self.loss_sum(batch, labels)
        return total / labels.target.numel()

    def loss_sum(self, batch: Batch, labels: Labels) -> tuple[Tensor, Tensor]:
        """Sum of the weighted losses and sum of the weights of all observed labels."""
        return self._sum(self(batch), labels)

    def loss_sums(self, batch: Batch, labels: Labels, shares: Tensor) -> tuple[Tensor, Tensor]:
        """`loss_sum` with each of these shares (S,) of the correction of `batch.base`: sums (S,), sum of the weights.

        The network runs once for all of them.
        """
        if batch.base is None:
            raise ValueError("the batch has no base forecast, so there is no correction to take a share of")
        scaled = scale_context(batch.target, batch.observed, batch.offset, self.config.scaling)
        sums = [self._sum(forecast, labels) for forecast in self._correct(batch, batch.base, scaled, shares)]
        return torch.stack([total for total, _ in sums]), sums[0][1]

    def _sum(self, forecast: Forecast, labels: Labels) -> tuple[Tensor, Tensor]:
        y, usable = scale_labels(labels.target, forecast.scaled)
        weight = labels.observed * usable * labels.weight[..., None]
        losses = self.head.loss(forecast.params, y) * self.importance(forecast.scaled)
        return (losses * weight).sum(), weight.sum()

    def importance(self, scaled: Scaled) -> Tensor:
        """How much an error in units of its window counts, (B, 1, V): the same for all windows."""
        return torch.ones_like(scaled.scale)

    def quantiles(self, batch: Batch, levels: Sequence[float]) -> Tensor:
        """Quantiles (B, H, V, Q) in the target's units, float64, ordered along the last dimension."""
        forecast = self(batch)
        return unscale(self.head.quantiles(forecast.params, levels), forecast.scaled, forecast.offset)

    @torch.no_grad()
    def set_covariate_scale(self, role: str, location: Tensor, scale: Tensor) -> None:
        """Location and scale (columns,) of the reals of a role ("known", "past", "static"), from training data."""
        getattr(self, f"{role}_location").copy_(location)
        getattr(self, f"{role}_scale").copy_(torch.where(scale > 0, scale, torch.ones_like(scale)))

    def _build_identity(self, config: ModelConfig) -> None:
        """Parameters of `_identity`."""
        width = config.encoder.d_model
        self.static_embedding = CategoryEmbedding(config.static_sizes, config.forget)
        static_width = 2 * config.static + self.static_embedding.width
        self.embed_static = nn.Linear(static_width, width, bias=False) if static_width else None
        self.embed_series = nn.Embedding(config.series + 1, width, padding_idx=0) if config.series else None
        self.embed_variate = nn.Embedding(config.targets, width) if config.targets > 1 else None
        with torch.no_grad():
            for embedding in (self.embed_series, self.embed_variate):
                if embedding is not None:
                    embedding.weight.mul_(0.1)

    @property
    def _identifies(self) -> bool:
        """Whether anything is known of a window beyond its values: else `_identity` is zero."""
        parts = self.embed_static, self.embed_series, self.embed_variate
        return any(part is not None for part in parts)

    def _identity(self, batch: Batch) -> Tensor:
        """What is known of a window beyond its values: static covariates, series and variate; (B, V, D)."""
        config = self.config
        total = torch.zeros(len(batch), 1, config.encoder.d_model, device=batch.target.device)
        if self.embed_static is not None:
            seen = batch.static_observed.to(batch.static.dtype)
            reals = (batch.static - self.static_location) / self.static_scale * seen
            joined = torch.cat((reals, seen, self.static_embedding(batch.static_categories)), -1)
            total = total + self.embed_static(joined)[:, None]
        if self.embed_series is not None:
            index = batch.series + 1
            if self.training and config.forget:
                index = index * (torch.rand(index.shape, device=index.device) >= config.forget)
            total = total + self.embed_series(index.clamp(0, config.series))[:, None]
        total = total.expand(-1, config.targets, -1)
        return total if self.embed_variate is None else total + self.embed_variate.weight

    def _register_covariate_scale(self, known: int, past: int, static: int) -> None:
        for name, columns in (("known", known), ("past", past), ("static", static)):
            self.register_buffer(f"{name}_location", torch.zeros(columns))
            self.register_buffer(f"{name}_scale", torch.ones(columns))
        self.register_buffer("share", torch.ones(()))


def embedding_width(size: int) -> int:
    """Width of the embedding of a categorical column with `size` entries."""
    return min(16, max(2, round(1.6 * size**0.56)))


class CategoryEmbedding(nn.Module):
    """Embeds categorical columns (..., C) and joins them: (..., width). Index 0, the unknown category, is zero.

    In training, a share `forget` of the entries is shown as unknown, so that an unseen one meets a trained model.
    """

    def __init__(self, sizes: Sequence[int], forget: float = 0.0):
        super().__init__()
        self.forget = forget
        self.tables = nn.ModuleList(nn.Embedding(s, embedding_width(s), padding_idx=0) for s in sizes)
        self.width = sum(t.embedding_dim for t in self.tables)  # type: ignore[misc]

    def forward(self, codes: Tensor) -> Tensor:
        if not self.width:
            return torch.zeros(*codes.shape[:-1], 0, device=codes.device)
        if self.training and self.forget:
            rows = (codes.shape[0], *(1,) * (codes.ndim - 2), codes.shape[-1])
            codes = codes * (torch.rand(rows, device=codes.device) >= self.forget)
        return torch.cat([table(codes[..., c]) for c, table in enumerate(self.tables)], -1)


def fill_forward(values: Tensor, observed: Tensor) -> Tensor:
    """Every step's last observed value (0, the window's mean, before the first); values, observed: (B, L, V)."""
    step = torch.arange(values.shape[1], device=values.device)[None, :, None]
    last = torch.where(observed, step, torch.full_like(step, -1)).cummax(1).values
    filled = torch.take_along_dim(values, last.clamp(min=0), 1)
    return filled * (last >= 0)


@torch.no_grad()
def start_as_naive(linear: nn.Linear, season: int) -> None:
    """Sets a map from context to horizon to the seasonal naive forecast, or the last value where no season fits."""
    horizon, length = linear.weight.shape
    season = season if season <= length else 1
    linear.weight.zero_()
    linear.bias.zero_()
    step = torch.arange(horizon)
    linear.weight[step, length - season + step % season] = 1
