"""Forecast heads: projection, loss and quantiles in one object, so that a head is swapped without touching a model.

Every head maps features (..., D) to parameters (..., size) of a distribution in the window's scaled units. `shift`
moves the distribution's location: models predict what is to be added to a simple base forecast.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRETCH = 3.0  # a correction stretches a base's gaps by at most exp(3)
LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def check_levels(levels: Sequence[float]) -> tuple[float, ...]:
    """The quantile levels as a tuple of floats. Raises ValueError unless they ascend strictly within (0, 1)."""
    try:
        values = tuple(float(level) for level in levels)
    except (TypeError, ValueError):
        raise ValueError(f"quantiles={levels!r}: expected a sequence of numbers such as (0.1, 0.5, 0.9)") from None
    outside = [v for v in values if not 0 < v < 1]
    if outside:
        raise ValueError(f"quantiles: {outside[0]!r} lies outside (0, 1); give levels such as 0.1, not percentages")
    for before, after in itertools.pairwise(values):
        if after == before:
            raise ValueError(f"quantiles: level {after!r} is repeated; give each level once")
        if after < before:
            raise ValueError(f"quantiles: {after!r} comes after {before!r}; give the levels in ascending order")
    for value in values:
        if abs(float(f"{value:g}") - value) > 1e-9:  # the columns' names have six digits
            raise ValueError(
                f"quantiles: {value!r} has more than six digits; round it, {round(value, 4)!r} for example"
            )
    return values


def centre_of(levels: Sequence[float]) -> int:
    """The index of the level nearest to the median; 0 where there are none."""
    return int(np.abs(np.asarray(levels) - 0.5).argmin()) if len(levels) else 0


def pinball(error: Tensor, levels: Tensor) -> Tensor:
    """Pinball loss, twice the usual one so that it equals the absolute error at the median. error = y - quantile."""
    return 2 * torch.maximum(levels * error, (levels - 1) * error)


class Head(nn.Module, ABC):
    """What a model needs of a head; `size` parameters per forecast value."""

    kind: str
    size: int
    has_quantiles = True
    levels: tuple[float, ...]
    centre: int  # index of the median among the levels of a base forecast
    projection: nn.Linear

    @torch.no_grad()
    def start_at_base(self) -> None:
        """Set the projection to zero, so that `around` starts as the base forecast."""
        self.projection.weight.zero_()
        self.projection.bias.zero_()

    @abstractmethod
    def forward(self, features: Tensor) -> Tensor:
        """Parameters (..., size) from features (..., D)."""

    @abstractmethod
    def shift(self, params: Tensor, base: Tensor) -> Tensor:
        """The same distribution moved by `base` (...)."""

    @abstractmethod
    def around(self, features: Tensor, base: Tensor, share: Tensor) -> Tensor:
        """Parameters of a base forecast, quantiles (..., Q), corrected by `share` (..., 1) of what is learned.

        A zero projection gives the base itself.
        """

    @abstractmethod
    def loss(self, params: Tensor, y: Tensor) -> Tensor:
        """Loss (...) of every value y (...), not reduced."""

    @abstractmethod
    def quantiles(self, params: Tensor, levels: Sequence[float]) -> Tensor:
        """Quantiles (..., Q) in ascending order for ascending levels."""


class QuantileHead(Head):
    """Quantiles at fixed levels that cannot cross: a centre, and positive steps outward from it.

    Between two levels, and beyond the outermost, other levels follow linearly in the normal score of the level (so
    the tails are normal ones). At initialisation the steps are those of a normal distribution with scale 1/2.
    """

    kind = "quantile"

    def __init__(self, d_in: int, levels: Sequence[float] = LEVELS):
        super().__init__()
        self.levels = check_levels(levels)
        if len(self.levels) < 2:
            raise ValueError(f"a quantile head needs at least two levels, found {self.levels}")
        self.size = len(self.levels)
        self.grid: Tensor
        self.knots: Tensor
        self.centre = centre_of(self.levels)
        scores = torch.special.ndtri(torch.tensor(self.levels, dtype=torch.float64))
        gaps = (0.5 * scores.diff()).float()
        self.projection = nn.Linear(d_in, self.size)
        self.register_buffer("knots", scores.float(), persistent=False)
        self.register_buffer("grid", torch.tensor(self.levels), persistent=False)
        start = torch.zeros(self.size)
        start[: self.centre] = torch.log(torch.expm1(gaps[: self.centre]))
        start[self.centre + 1 :] = torch.log(torch.expm1(gaps[self.centre :]))
        with torch.no_grad():
            self.projection.weight.mul_(0.1)
            self.projection.bias.copy_(start)

    def forward(self, features: Tensor) -> Tensor:
        """Ordered quantiles (..., Q) at the head's own levels."""
        raw = self.projection(features).float()
        below, centre, above = raw.tensor_split((self.centre, self.centre + 1), -1)
        down = centre - F.softplus(below).flip(-1).cumsum(-1).flip(-1)
        up = centre + F.softplus(above).cumsum(-1)
        return torch.cat((down, centre, up), -1)

    def shift(self, params: Tensor, base: Tensor) -> Tensor:
        return params + base[..., None]

    def around(self, features: Tensor, base: Tensor, share: Tensor) -> Tensor:
        """The centre moves by multiples of the base's spread; the gaps are stretched by positive factors."""
        raw = self.projection(features).float()
        below, move, above = raw.tensor_split((self.centre, self.centre + 1), -1)
        gaps = base.diff(dim=-1) * torch.exp(torch.cat((below, above), -1).clamp(-STRETCH, STRETCH))
        down, up = gaps.tensor_split((self.centre,), -1)
        spread = (base[..., -1:] - base[..., :1]) / (self.knots[-1] - self.knots[0])
        centre = base[..., self.centre, None] + spread * move
        corrected = torch.cat((centre - down.flip(-1).cumsum(-1).flip(-1), centre, centre + up.cumsum(-1)), -1)
        return base + share * (corrected - base)

    def loss(self, params: Tensor, y: Tensor) -> Tensor:
        """Mean pinball loss over the levels: CRPS up to the grid of levels."""
        return pinball(y[..., None] - params, self.grid.to(params.dtype)).mean(-1)

    def quantiles(self, params: Tensor, levels: Sequence[float]) -> Tensor:
        return interpolate_quantiles(params, self.levels, check_levels(levels))


def interpolate_quantiles(values: Tensor, knots: Sequence[float], levels: Sequence[float]) -> Tensor:
    """Quantiles at other levels from ordered ones (..., Q): linear in the normal score, normal tails beyond.

    values: (..., len(knots)); returns (..., len(levels)). A level that is among the knots comes back exactly.
    """
    knots = tuple(knots)
    if set(levels) <= set(knots):
        return values[..., [knots.index(level) for level in levels]]
    at = torch.special.ndtri(torch.tensor(knots, dtype=torch.float64))
    wanted = torch.special.ndtri(torch.tensor(tuple(levels), dtype=torch.float64))
    left = (torch.searchsorted(at, wanted, right=True) - 1).clamp(0, len(knots) - 2)
    share = ((wanted - at[left]) / (at[left + 1] - at[left])).to(values)
    left = left.to(values.device)
    low, high = values[..., left], values[..., left + 1]
    mixed = torch.lerp(low, high, share)
    exact = {level: q for q, level in enumerate(knots)}
    columns = [
        values[..., exact[level]] if level in exact else mixed[..., q] for q, level in enumerate(map(float, levels))
    ]
    return torch.stack(columns, -1).cummax(-1).values  # rounding at a knot must not cross


class StudentTHead(Head):
    """Student-t distribution: location, scale, degrees of freedom (over 2); exact quantiles, log-likelihood."""

    kind = "student_t"
    size = 3

    def __init__(self, d_in: int, levels: Sequence[float] = LEVELS):
        super().__init__()
        self.levels = check_levels(levels)
        self.centre = centre_of(self.levels)
        self.projection = nn.Linear(d_in, self.size)
        with torch.no_grad():
            self.projection.weight.mul_(0.1)
            self.projection.bias.copy_(torch.tensor([0.0, -0.4328, 3.0]))  # scale 1/2, about 5 degrees of freedom

    def forward(self, features: Tensor) -> Tensor:
        raw = self.projection(features).float()
        location, scale, df = raw.unbind(-1)
        return torch.stack((location, F.softplus(scale) + 1e-4, 2 + F.softplus(df)), -1)

    def shift(self, params: Tensor, base: Tensor) -> Tensor:
        location, scale, df = params.unbind(-1)
        return torch.stack((location + base, scale, df), -1)

    def around(self, features: Tensor, base: Tensor, share: Tensor) -> Tensor:
        """Starts as a t distribution with the base's median and spread, and about 5 degrees of freedom."""
        raw = self.projection(features).float() * share
        reach = torch.special.ndtri(torch.tensor(self.levels[-1])) - torch.special.ndtri(torch.tensor(self.levels[0]))
        spread = ((base[..., -1] - base[..., 0]) / float(reach)).clamp(min=1e-6)
        location = base[..., self.centre] + spread * raw[..., 0]
        scale = spread * torch.exp(raw[..., 1].clamp(-STRETCH, STRETCH))
        return torch.stack((location, scale, 2 + F.softplus(raw[..., 2] + 3)), -1)

    def loss(self, params: Tensor, y: Tensor) -> Tensor:
        """Negative log-likelihood."""
        location, scale, df = params.unbind(-1)
        z2 = ((y - location) / scale) ** 2
        constant = torch.lgamma((df + 1) / 2) - torch.lgamma(df / 2) - 0.5 * torch.log(df * torch.pi) - scale.log()
        return (df + 1) / 2 * torch.log1p(z2 / df) - constant

    def quantiles(self, params: Tensor, levels: Sequence[float]) -> Tensor:
        """Location + scale times the t distribution's quantile (scipy's inverse of the incomplete beta function)."""
        from scipy.special import stdtrit

        location, scale, df = (p.detach().cpu().double().numpy()[..., None] for p in params.unbind(-1))
        values = torch.from_numpy(location + scale * stdtrit(df, np.asarray(check_levels(levels))))
        return values.to(params) if params.device.type == "mps" else values.to(params.device)  # MPS has no float64


class PointHead(Head):
    """One value per step, trained on the absolute error (loss="mae", the median) or the squared one ("mse")."""

    kind = "point"
    size = 1
    has_quantiles = False

    def __init__(self, d_in: int, levels: Sequence[float] = (), loss: str = "mae"):
        super().__init__()
        if loss not in ("mae", "mse"):
            raise ValueError(f"loss={loss!r} is unknown: choose 'mae' or 'mse'")
        self.levels = (0.5,)
        self.centre = centre_of(levels)  # of a base forecast's levels
        self.squared = loss == "mse"
        self.projection = nn.Linear(d_in, 1)
        with torch.no_grad():
            self.projection.weight.mul_(0.1)
            self.projection.bias.zero_()

    def forward(self, features: Tensor) -> Tensor:
        return self.projection(features).float()

    def shift(self, params: Tensor, base: Tensor) -> Tensor:
        return params + base[..., None]

    def around(self, features: Tensor, base: Tensor, share: Tensor) -> Tensor:
        spread = (base[..., -1:] - base[..., :1]).clamp(min=1e-6)
        return base[..., self.centre, None] + share * spread * self.projection(features).float()

    def loss(self, params: Tensor, y: Tensor) -> Tensor:
        error = y - params[..., 0]
        return error**2 if self.squared else error.abs()

    def quantiles(self, params: Tensor, levels: Sequence[float]) -> Tensor:
        """Only the point itself, as the level 0.5; any other level is a ValueError."""
        if tuple(levels) != (0.5,):
            raise ValueError(f"a point head has no quantiles, asked for {tuple(levels)}: fit with head='quantile'")
        return params


HEADS: dict[str, type[Head]] = {head.kind: head for head in (QuantileHead, StudentTHead, PointHead)}


def build_head(kind: str, d_in: int, levels: Sequence[float], **options: Any) -> Head:
    """A head by name. Raises ValueError naming the choices."""
    if kind not in HEADS:
        raise ValueError(f"head={kind!r} is unknown: choose one of {', '.join(map(repr, HEADS))}")
    return HEADS[kind](d_in, levels, **options)
