"""What the past of a series says about the steps to come, before anything is learned: simple forecasts per step.

A window is cut into patches; every patch is forecast from the values before its origin: a patch of the context from
all patches before it, every patch of the horizon from the whole context.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PATCH = 16  # steps
CANDIDATES = 9
SCALARS = 9
CONSTANT = 1e-9  # relative spread under which a context counts as constant
LIMIT = 8.0  # of a transformed value; arcsinh(1490) = 8


@dataclass(frozen=True, kw_only=True)
class Window:
    """A context in its own units. N context patches and F future ones, P steps each."""

    values: Tensor  # (B, N P) arcsinh of the standardised values, 0 where missing
    observed: Tensor  # (B, N P) bool
    location: Tensor  # (B, 1) float64
    scale: Tensor  # (B, 1) float64, 1 where the context is constant
    varies: Tensor  # (B, 1) bool, whether it is not
    candidates: Tensor  # (B, (N + F) P, CANDIDATES) simple forecasts in transformed units
    scalars: Tensor  # (B, N + F, SCALARS)
    spread: Tensor  # (B, 1) typical size of the local changes, in transformed units


def transform(x: Tensor, location: Tensor, scale: Tensor) -> Tensor:
    """Standardise and bend: (B, T) float64 -> float32 within LIMIT."""
    return torch.arcsinh((x - location) / scale).clamp(-LIMIT, LIMIT).float()


def look(context: Tensor, periods: Tensor, future: int) -> Window:
    """Standardise windows and look up what their past suggests.

    context: (B, T) float64, T a multiple of PATCH, NaN where missing, the present at its end. periods: (B, 2) int64,
    candidate seasons in steps, the better first; 0 where there is none. future: F, patches of the horizon.
    """
    observed = context.isfinite()
    count = observed.sum(1, keepdim=True).clamp(min=1)
    plain = torch.where(observed, context, 0.0)
    location = plain.sum(1, keepdim=True) / count
    deviation = torch.where(observed, context - location, 0.0)
    scale = (deviation.square().sum(1, keepdim=True) / count).sqrt()
    varies = scale > CONSTANT * location.abs()
    scale = torch.where(varies, scale, torch.ones_like(scale))
    values = torch.where(observed, transform(plain, location, scale), 0.0)
    past = _Past(values, observed, periods)
    steps = torch.arange(context.shape[1] + future * PATCH)
    origin = (steps // PATCH * PATCH).clamp(max=context.shape[1])
    return Window(
        values=values,
        observed=observed,
        location=location,
        scale=scale,
        varies=varies,
        candidates=past.candidates(steps, origin).clamp(-LIMIT, LIMIT),
        scalars=past.scalars(future),
        spread=past.spread,
    )


class _Past:
    """The values of a context, missing ones carried forward, and what is needed to average over spans of it."""

    def __init__(self, values: Tensor, observed: Tensor, periods: Tensor):
        batch, self.length = values.shape
        place = torch.arange(self.length).expand(batch, -1)
        latest = torch.where(observed, place, -1).cummax(1).values
        first = observed.int().argmax(1, keepdim=True)
        self.first = torch.where(observed.any(1, keepdim=True), first, self.length - 1)
        self.filled = values.gather(1, torch.maximum(latest, self.first))
        self.known = latest >= 0
        self.sums = torch.nn.functional.pad(self.filled.double().cumsum(1), (1, 0))
        self.observed, self.periods = observed, periods
        self.changes = [self._change(torch.ones_like(periods[:, :1]))] + [
            self._change(periods[:, k : k + 1]) for k in range(2)
        ]
        best = torch.stack(self.changes).amin(0)
        self.spread = best.clamp(min=0.01)

    def _change(self, lag: Tensor) -> Tensor:
        """(B, 1) mean absolute difference at a lag (B, 1); 1 where there is no lag or the context is too short."""
        at = torch.arange(self.length).expand(len(self.filled), -1)
        before = at - lag
        usable = self.known & (lag > 0) & (before >= self.first)
        difference = (self.filled - self.filled.gather(1, before.clamp(min=0))).abs()
        total = usable.sum(1, keepdim=True)
        mean = torch.where(usable, difference, 0.0).sum(1, keepdim=True) / total.clamp(min=1)
        return torch.where(total > 0, mean, torch.full_like(mean, 1.0))

    def _at(self, index: Tensor, otherwise: Tensor) -> Tensor:
        """Values (B, S) at indices (B, S), `otherwise` where they lie before the first observed one."""
        found = self.filled.gather(1, index.clamp(0, self.length - 1))
        return torch.where(index >= self.first, found, otherwise)

    def _mean(self, end: Tensor, size: Tensor) -> Tensor:
        """Mean of the `size` (B, 1) values before `end`, as far as they are there; else the first one: (B, S)."""
        end = end.expand(len(self.filled), -1)
        end = torch.maximum(end, self.first + 1)
        begin = torch.maximum(end - size, self.first)
        total = self.sums.gather(1, end) - self.sums.gather(1, begin)
        return (total / (end - begin)).float()

    def candidates(self, steps: Tensor, origin: Tensor) -> Tensor:
        """(B, S, CANDIDATES) forecasts of `steps` (S,) from the values before their `origin` (S,)."""
        ahead = steps - origin + 1
        last = self._at((origin - 1).expand(len(self.filled), -1), self.filled.gather(1, self.first))
        recent = self._mean(origin, torch.full_like(self.first, 8))
        before = self._at((origin - 9).expand(len(self.filled), -1), last)
        slope = (last - before) / 8
        one, again, drift = self._seasonal(self.periods[:, :1], steps, origin, ahead, last)
        two, *_ = self._seasonal(self.periods[:, 1:], steps, origin, ahead, last)
        usual = self._mean(origin - self.periods[:, :1].clamp(min=1), torch.full_like(self.first, 8))
        damped = slope * (1 - 0.9**ahead) / 0.1 * 0.9
        forecasts = (one, again, two, last, recent, one + drift, one + recent - usual, last + damped)
        return torch.stack((*forecasts, torch.zeros_like(last)), -1)

    def _seasonal(
        self, period: Tensor, steps: Tensor, origin: Tensor, ahead: Tensor, last: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Value a season back, mean over four seasons, and how far a season moves on: (B, S) each."""
        season = period.clamp(min=1)
        back = (ahead + season - 1) // season  # seasons back to what was seen
        index = steps - back * season
        values = [self._at(index - k * season, last) for k in range(4)]
        there = [(index - k * season >= self.first) for k in range(4)]
        count = torch.stack(there).sum(0).clamp(min=1)
        mean = torch.stack([torch.where(t, v, 0.0) for t, v in zip(there, values, strict=True)]).sum(0) / count
        mean = torch.where(there[0], mean, last)
        step = self._mean(origin, season) - self._mean(origin - season, season)
        whole = origin - 2 * season >= self.first
        return values[0], mean, torch.where(whole, step, 0.0) * back.clamp(max=4)

    def scalars(self, future: int) -> Tensor:
        """(B, N + F, SCALARS): how rough the context is at its seasons, their lengths, how much is there, how far."""
        count = self.observed.sum(1, keepdim=True)
        rough = [(x + 0.01).log() for x in self.changes]
        seasons = [self.periods[:, k : k + 1].clamp(min=1).float().log() / 3 - 1 for k in range(2)]
        none = (self.periods[:, :1] < 2).float()
        share = count / (self.length - self.first).clamp(min=1)
        fixed = torch.cat((*rough, *seasons, none, (count.float() + 1).log() / 3 - 1, share.float()), 1)
        patches = self.length // PATCH
        ahead = (torch.arange(patches + future) - patches + 1).clamp(min=0).float()
        far = (1 + ahead).log()[None, :, None].expand(len(fixed), -1, 1)
        return torch.cat((fixed[:, None].expand(-1, patches + future, -1), far), -1)
