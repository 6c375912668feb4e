"""From the dictionary of a `TimeSeriesDataSet` to a `Batch`.

Theirs pads encoder and decoder at the end, ours pads the context on the left. Theirs carries the future target and all
unknown reals in decoder_cont; only columns that are known in the future are ever taken from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_forecasting.models.nn import MultiEmbedding
from torch import Tensor, nn

from ...batch import Batch
from ...scaling import CLIP, Scaled
from .heads import soft_floor, softplus_scale


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns of x_reals and which embeddings play which role."""

    known_reals: tuple[int, ...]
    known_hidden: tuple[int, ...]  # places in known_reals of columns that the encoder must not see
    past_reals: tuple[int, ...]
    static_reals: tuple[int, ...]
    known_categories: tuple[str, ...]
    past_categories: tuple[str, ...]
    static_categories: tuple[str, ...]

    @classmethod
    def of(cls, hparams: Any, targets: Sequence[str]) -> Columns:
        """From the hyperparameters that `BaseModelWithCovariates.from_dataset` gathers; targets are no covariates."""
        at = {name: place for place, name in enumerate(hparams.x_reals)}
        known = list(hparams.time_varying_reals_decoder)
        encoder = set(hparams.time_varying_reals_encoder)
        past = [n for n in hparams.time_varying_reals_encoder if n not in known and n not in targets]
        known_categories = tuple(hparams.time_varying_categoricals_decoder)
        return cls(
            known_reals=tuple(at[name] for name in known),
            known_hidden=tuple(k for k, name in enumerate(known) if name not in encoder),
            past_reals=tuple(at[name] for name in past),
            static_reals=tuple(at[name] for name in hparams.static_reals),
            known_categories=known_categories,
            past_categories=tuple(
                n for n in hparams.time_varying_categoricals_encoder if n not in known_categories and n not in targets
            ),
            static_categories=tuple(hparams.static_categoricals),
        )


class Reader(nn.Module):
    """x -> Batch, with categories embedded as reals, targets normalised, and the scale of every window beside them."""

    def __init__(
        self,
        columns: Columns,
        embeddings: MultiEmbedding,
        *,
        context: int,
        horizon: int,
        centred: Sequence[bool],
        linear: Sequence[bool],
        scaling: bool,
    ):
        super().__init__()
        self.centred: Tensor
        self.columns = columns
        self.embeddings = embeddings
        self.context = context
        self.horizon = horizon
        self.linear = tuple(linear)
        self.register_buffer("centred", torch.tensor(list(centred)), persistent=False)
        self.floor = nn.Parameter(torch.full((len(centred),), softplus_scale(0.05))) if scaling else None

    def width(self, role: str) -> int:
        """Columns of a role ("known", "past", "static") after embedding, the window's own scale included."""
        sizes = self.embeddings.output_size
        names = getattr(self.columns, f"{role}_categories")
        own = 2 * len(self.centred) if role == "static" else 0
        return len(getattr(self.columns, f"{role}_reals")) + sum(sizes[name] for name in names) + own

    def forward(self, x: dict[str, Any], normalizers: Sequence[Any]) -> tuple[Batch, Scaled]:
        """Batch with the normalised targets, and the same scaled by window."""
        columns = self.columns
        source = torch.arange(self.context, device=x["encoder_cont"].device) - self.context
        source = source + x["encoder_lengths"][:, None]
        present = source >= 0
        source = source.clamp(min=0)[..., None]
        target = self._target(x, normalizers).take_along_dim(source, 1) * present[..., None]
        observed = present[..., None].expand_as(target)
        scaled = self._scale(target, observed)

        here = present[..., None]
        reals = x["encoder_cont"].take_along_dim(source, 1) * here
        codes = x["encoder_cat"].take_along_dim(source, 1)
        known = torch.cat((self._hide(reals[..., columns.known_reals]), self._embed(codes, "known") * here), -1)
        past = torch.cat((reals[..., columns.past_reals], self._embed(codes, "past") * here), -1)
        static = torch.cat((reals[:, -1, columns.static_reals], self._embed(codes, "static")[:, -1]), -1)
        static = torch.cat((static, scaled.location[:, 0], torch.log(scaled.scale[:, 0])), -1)
        known = torch.cat((known, self._future(x)), 1)
        return self._batch(target, observed, present, known, past, static), scaled

    def _batch(
        self, target: Tensor, observed: Tensor, present: Tensor, known: Tensor, past: Tensor, static: Tensor
    ) -> Batch:
        rows, device = len(target), target.device
        codes = torch.zeros(rows, self.context + self.horizon, 0, dtype=torch.long, device=device)
        return Batch(
            target=target,
            observed=observed,
            offset=torch.zeros(rows, target.shape[-1], device=device),
            present=present,
            known=known,
            past=past,
            past_observed=present[..., None].expand_as(past),
            static=static,
            static_observed=torch.ones_like(static, dtype=torch.bool),
            known_categories=codes,
            past_categories=codes[:, : self.context],
            static_categories=codes[:, 0],
            series=torch.full((rows,), -1, device=device),
            origin=torch.full((rows,), self.context, device=device),
        )

    def _target(self, x: dict[str, Any], normalizers: Sequence[Any]) -> Tensor:
        """Normalised targets (B, Te, V), from the raw ones: they need not be among the reals.

        A target in its own space (`linear`) is only centred and scaled.
        """
        raw, scales = x["encoder_target"], x["target_scale"]
        if not isinstance(raw, (list, tuple)):
            raw, scales = [raw], [scales]
        columns = []
        for values, scale, normalizer, linear in zip(raw, scales, normalizers, self.linear, strict=True):
            values = values.float() if linear else normalizer.preprocess(values.float())
            columns.append(((values - scale[:, :1]) / scale[:, 1:2].abs()).to(x["encoder_cont"].dtype))
        return torch.stack(columns, -1)

    def _scale(self, target: Tensor, observed: Tensor) -> Scaled:
        """Mean and spread of every window; about 0 where forecasts may not be shifted, with a learned floor."""
        count = observed.sum(1, keepdim=True).clamp(min=1)
        location = target.sum(1, keepdim=True) / count * self.centred
        if self.floor is None:
            location, scale = torch.zeros_like(location), torch.ones_like(location)
        else:
            spread = (((target - location) * observed) ** 2).sum(1, keepdim=True) / count
            scale = soft_floor(torch.sqrt(spread + 1e-12), self.floor)
        values = ((target - location) / scale * observed).clamp(-CLIP, CLIP)
        return Scaled(values, location, scale, torch.ones_like(scale, dtype=torch.bool))

    def _embed(self, codes: Tensor, role: str) -> Tensor:
        """Embeddings (B, T, width) of a role's categories, of those only; groups of columns are summed."""
        tables, joined = self.embeddings, [torch.zeros(*codes.shape[:-1], 0, device=codes.device)]
        for name in getattr(self.columns, f"{role}_categories"):
            group = tables.categorical_groups.get(name)
            places = [tables.x_categoricals.index(column) for column in group or [name]]
            picked = codes[..., places]
            joined.append(tables[name](picked if group else picked[..., 0]))
        return torch.cat(joined, -1)

    def _hide(self, known: Tensor) -> Tensor:
        """Zeros in the context for known columns that the caller keeps from the encoder."""
        if not self.columns.known_hidden:
            return known
        keep = torch.ones(known.shape[-1], device=known.device)
        keep[list(self.columns.known_hidden)] = 0
        return known * keep

    def _future(self, x: dict[str, Any]) -> Tensor:
        """Known columns (B, H, K) of the decoder, zero beyond each row's length and beyond the batch's longest."""
        reals = x["decoder_cont"][..., self.columns.known_reals]
        values = torch.cat((reals, self._embed(x["decoder_cat"], "known")), -1)
        valid = torch.arange(values.shape[1], device=values.device) < x["decoder_lengths"][:, None]
        return nn.functional.pad(values * valid[..., None], (0, 0, 0, self.horizon - values.shape[1]))
