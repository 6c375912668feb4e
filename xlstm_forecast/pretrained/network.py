"""A small xLSTM over patches that forecasts any series unseen: it mixes simple forecasts and corrects them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from ..encoder import Encoder, EncoderConfig
from ..heads import LEVELS
from ..layers.parts import linear
from .lookups import CANDIDATES, PATCH, SCALARS, Window, look


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Sizes of the network."""

    levels: tuple[float, ...] = LEVELS
    encoder: EncoderConfig = field(default_factory=lambda: EncoderConfig(d_model=192, num_heads=6, blocks="ss"))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> NetworkConfig:
        """The inverse of `to_dict`."""
        return cls(levels=tuple(values["levels"]), encoder=EncoderConfig(**values["encoder"]))


class Network(nn.Module):
    """Context (B, T), periods (B, 2), F -> ordered quantiles of every patch in transformed units.

    A token stands for one patch to forecast: it is given the patch before it and what `lookups` says of its own. The
    tokens of the horizon are given no values. At the start the forecast is the mean of the simple ones.
    """

    def __init__(self, config: NetworkConfig, generator: Generator | None = None):
        super().__init__()
        self.config = config
        width, count = config.encoder.d_model, len(config.levels)
        self.embed = linear(PATCH * (2 + CANDIDATES) + SCALARS, width, bias=True)
        self.encoder = Encoder(config.encoder, generator)
        self.out = linear(width, PATCH * (CANDIDATES + count), bias=True)
        scores = torch.special.ndtri(torch.tensor(config.levels, dtype=torch.float64))
        start = torch.zeros(PATCH, CANDIDATES + count)
        start[:, CANDIDATES + 1 :] = torch.log(torch.expm1(scores.diff().float()))
        self.centre = count // 2
        self.levels: Tensor
        self.register_buffer("levels", torch.tensor(config.levels), persistent=False)
        with torch.no_grad():
            bound = self.embed.in_features**-0.5
            self.embed.weight.uniform_(-bound, bound, generator=generator)
            self.embed.bias.zero_()
            self.out.weight.normal_(0, 0.1 * width**-0.5, generator=generator)
            self.out.bias.copy_(start.flatten())

    def forward(self, context: Tensor, periods: Tensor, future: int, *, behind: bool = False) -> tuple[Tensor, Window]:
        """Quantiles (B, F P, Q), increasing along the last dimension, and the window they are in units of.

        behind: those of the context's patches before them, (B, (N + F) P, Q).
        """
        window = look(context, periods, future)
        batch = len(context)
        nothing = torch.zeros(batch, PATCH)
        seen = torch.cat((nothing, window.values, nothing.repeat(1, future - 1)), 1).unflatten(1, (-1, PATCH))
        there = torch.cat((nothing, window.observed.float(), nothing.repeat(1, future - 1)), 1)
        own = window.candidates.flatten(1).unflatten(1, (-1, PATCH * CANDIDATES))
        tokens = self.embed(torch.cat((seen, there.unflatten(1, (-1, PATCH)), own, window.scalars), -1))
        mask = window.observed.unflatten(1, (-1, PATCH)).any(-1)
        begun = mask.int().cummax(1).values.bool()  # tokens before the first value hold nothing
        mask = torch.cat((begun, torch.ones(batch, future, dtype=torch.bool)), 1)
        encoded, _ = self.encoder(tokens, mask=mask)
        return self._quantiles(encoded if behind else encoded[:, -future:], window), window

    def _quantiles(self, encoded: Tensor, window: Window) -> Tensor:
        """The last patches, (B, K, D) -> (B, K P, Q): a mixture of the candidates, moved and spread."""
        raw = self.out(encoded).unflatten(-1, (PATCH, -1)).flatten(1, 2)
        weight, move, gaps = raw.tensor_split((CANDIDATES, CANDIDATES + 1), -1)
        unit = window.spread[:, None]
        candidates = window.candidates[:, -raw.shape[1] :]
        middle = (weight.softmax(-1) * candidates).sum(-1, keepdim=True) + unit * move
        gaps = unit * F.softplus(gaps)
        below, above = gaps.tensor_split((self.centre,), -1)
        down = middle - below.flip(-1).cumsum(-1).flip(-1)
        return torch.cat((down, middle, middle + above.cumsum(-1)), -1)
