"""Windows of a panel: which ones there are, as arithmetic, and a batch of them as one gather per column."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..batch import Batch, Labels
from .calendar import calendar_features
from .columns import chunks, counted
from .panel import Panel
from .spans import Spans

Array = np.ndarray


def _tensor(values: Array, device: torch.device | str) -> Tensor:
    return torch.from_numpy(values).to(device)


class Windows:
    """All windows of a panel with a full horizon, at least `min_context` rows before it, and something to learn from.

    A window is numbered by (series, origin); one without an observed target in its context or in its horizon is left
    out. `step` keeps every step-th origin, counted back from each series' last one. `start` and `end` bound the horizon
    part: a time stamp, or (n,) rows of each series; its rows lie in [start, end). L = input_length, H = horizon.
    `base` gives a simpler forecast for (series, origin), (B, H, V, Q) float64 in true units, that travels along.
    """

    def __init__(
        self,
        panel: Panel,
        input_length: int,
        horizon: int,
        min_context: int = 1,
        step: int = 1,
        *,
        start: Any = None,
        end: Any = None,
        base: Callable[[Array, Array], Array] | None = None,
        device: torch.device | str = "cpu",
    ):
        for name, value in (("input_length", input_length), ("horizon", horizon), ("step", step)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if not 0 <= min_context <= input_length:
            raise ValueError(f"min_context={min_context} must lie between 0 and input_length={input_length}")
        self.panel, self.input_length, self.horizon = panel, input_length, horizon
        self.min_context, self.step, self.device = min_context, step, torch.device(device)
        self._forecast = base
        low = np.maximum(np.full(len(panel), min_context), 0 if start is None else _rows(panel, start, "start"))
        high = (panel.history if end is None else np.minimum(_rows(panel, end, "end"), panel.history)) - horizon
        self._index(low, high)
        self._columns()

    def _index(self, low: Array, high: Array) -> None:
        """Runs of consecutive origins, as flat rows, from the first and last origin of each series."""
        panel, step = self.panel, self.step
        keep = np.flatnonzero(high >= low)
        first, last = panel.offsets[keep] + low[keep], panel.offsets[keep] + high[keep]
        self.complete, unobserved = _unobserved(panel)
        begin, stop, series = _without(first, last, keep, self._barred(unobserved))
        anchor = (panel.offsets[:-1] + high)[series]
        begin = begin + (anchor - begin) % step
        good = begin <= stop
        begin, series = begin[good], series[good]
        count = (stop[good] - begin) // step + 1
        ends = np.cumsum(count)
        self.count = int(ends[-1]) if len(ends) else 0
        self.per_series = np.bincount(series, weights=count, minlength=len(panel)).astype(np.int64)
        self._ends, self._series = (_tensor(x.astype(np.int64), self.device) for x in (ends, series))
        self._base = _tensor((begin - (ends - count) * step).astype(np.int64), self.device)

    def _barred(self, runs: Array) -> Array:
        """(k, 2) flat origins [from, to] without an observed horizon or context, from runs [a, b) without a target."""
        a, b = runs[:, 0], runs[:, 1]
        begins = self.panel.offsets[np.searchsorted(self.panel.offsets, a, side="right") - 1]
        context = np.stack([np.where(a == begins, a, a + self.input_length), b], 1)
        if self.min_context == 0:
            context[:, 0] = np.where(a == begins, a + 1, context[:, 0])
        both = np.concatenate([np.stack([a, b - self.horizon], 1), context])
        return both[both[:, 1] >= both[:, 0]]

    def __len__(self) -> int:
        return self.count

    def locate(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Window numbers (B,) -> (series, origin), origin counted in rows of the series."""
        index = torch.as_tensor(index, device=self.device)
        if len(index) and (int(index.min()) < 0 or int(index.max()) >= self.count):
            raise IndexError(f"window {int(index.max())} is outside the {self.count} windows")
        run = torch.searchsorted(self._ends, index, right=True)
        series = self._series.index_select(0, run)
        at = self._base.index_select(0, run).add_(index, alpha=self.step)
        return series, at.sub_(self._offsets.index_select(0, series))

    def numbers(self, series: Tensor, nth: Tensor) -> Tensor:
        """The window number of the nth window of each series."""
        if not hasattr(self, "_before"):
            self._before = _tensor(np.cumsum(self.per_series) - self.per_series, self.device)
        return self._before[series] + nth

    def require(self) -> None:
        """Raise ValueError where there is no window at all, saying what would be needed."""
        if self.count == 0:
            longest = int(self.panel.history.max())
            raise ValueError(
                f"no window fits: min_context={self.min_context} and horizon={self.horizon} need at least "
                f"{self.min_context + self.horizon} rows with an observed target; the longest series has {longest}"
            )

    def _columns(self) -> None:
        panel, device = self.panel, self.device
        lags = panel.roles.lags
        self._offsets = _tensor(panel.offsets[:-1], device)
        self._length = _tensor(np.diff(panel.offsets), device)
        self._fitted = _tensor(panel.series, device)
        self._target = Spans(_tensor(panel.target, device))
        self._known, self._past = (Spans(_tensor(x, device)) for x in (panel.known, panel.past))
        self._known_categories = Spans(_tensor(panel.known_categories, device))
        self._past_categories = Spans(_tensor(panel.past_categories, device))
        self._weight = None if panel.weight is None else Spans(_tensor(panel.weight[:, None], device))
        self._past_complete = not _any_nan(panel.past)
        static = _tensor(panel.static, device)
        self._static_observed = ~torch.isnan(static)
        self._static = torch.nan_to_num(static)
        self._static_categories = _tensor(panel.static_categories, device).long()
        self._short = bool(self.count) and self.min_context < self.input_length
        self._known_lags = tuple(k for k in lags if k >= self.horizon)
        self._past_lags = tuple(k for k in lags if k < self.horizon)
        if panel.roles.calendar:
            table, base = _calendar(panel, self.input_length, self.horizon)
            self._calendar, self._calendar_base = Spans(_tensor(table, device)), _tensor(base, device)
        self._steps = torch.arange(self.input_length + self.horizon, device=device)

    @property
    def known_names(self) -> list[str]:
        """What the columns of `Batch.known` are, in order."""
        roles = self.panel.roles
        names = list(roles.reals("future"))
        names += [f"{feature}_{part}" for feature in roles.calendar for part in ("sin", "cos")]
        for lag in self._known_lags:
            names += [f"{t}_lag{lag}" for t in roles.target] + [f"{t}_lag{lag}_observed" for t in roles.target]
        return [*names, "relative_time"] if roles.relative_time else names

    @property
    def past_names(self) -> list[str]:
        """What the columns of `Batch.past` are, in order."""
        roles = self.panel.roles
        return [*roles.reals("past"), *(f"{t}_lag{lag}" for lag in self._past_lags for t in roles.target)]

    def gather(self, index: Tensor) -> tuple[Batch, Labels]:
        """The windows of these numbers (B,)."""
        series, origin = self.locate(index)
        batch, labels = self._gather(series, origin, True)
        assert labels is not None
        return batch, labels

    def gather_at(self, series: Any, origin: Any, labels: bool = True) -> tuple[Batch, Labels | None]:
        """The windows at any (series, origin), (B,) each; without labels the horizon may lie after the history.

        Raises ValueError where rows that are asked for do not exist.
        """
        series = torch.as_tensor(series, dtype=torch.int64, device=self.device)
        origin = torch.as_tensor(origin, dtype=torch.int64, device=self.device)
        rows = self._length[series]
        ahead = labels or bool(self._known.width or self._known_categories.width)
        over = (origin < 0) | (origin + (self.horizon if ahead else 0) > rows)
        if bool(over.any()):
            at = int(over.nonzero()[0])
            name, need = (
                self.panel.name(int(series[at])),
                "labels" if labels else "known-future columns (see with_future)",
            )
            raise ValueError(
                f"{counted(int(over.sum()), 'window needs', 'windows need')} {need} outside the rows; first: {name}, "
                f"origin {int(origin[at])} with horizon {self.horizon} in {int(rows[at])} rows"
            )
        return self._gather(series, origin, labels)

    def last(self) -> Batch:
        """One window per series, in panel order, at the end of its history: what a forecast starts from."""
        return self.gather_at(np.arange(len(self.panel)), self.panel.history, labels=False)[0]

    def _gather(self, series: Tensor, origin: Tensor, labels: bool) -> tuple[Batch, Labels | None]:
        size, context, horizon = len(series), self.input_length, self.horizon
        at = self._offsets.index_select(0, series).add_(origin)
        first = at - context
        edge = bool((origin < context).any())
        present = torch.ones(size, context, dtype=torch.bool, device=self.device)
        if edge:
            present = self._steps[:context] >= (context - origin)[:, None]
        values = self._target.cut(first, context + horizon if labels else context, edge)
        observed, offset, seen = self._levels(values[:, :context], present, edge)
        residual = torch.empty_like(values, dtype=torch.float32)
        torch.sub(values, offset[:, None], out=residual)
        past, past_observed = self._past_part(series, first, present, offset, edge)
        batch = Batch(
            target=self._mask(residual[:, :context], None if self.complete and not edge else observed),
            observed=observed,
            offset=offset,
            present=present,
            known=self._known_part(series, origin, first, present, offset, edge),
            past=past,
            past_observed=past_observed,
            static=self._static.index_select(0, series),
            static_observed=self._static_observed.index_select(0, series),
            known_categories=self._categories(self._known_categories, first, context + horizon, present, edge),
            past_categories=self._categories(self._past_categories, first, context, present, edge),
            static_categories=self._static_categories.index_select(0, series),
            series=self._fitted.index_select(0, series),
            origin=origin,
            base=None if self._forecast is None else self._forecast_part(series, origin, offset),
        )
        return batch, self._labels(values, residual, at, seen) if labels else None

    def _forecast_part(self, series: Tensor, origin: Tensor, offset: Tensor) -> Tensor:
        assert self._forecast is not None
        values = torch.from_numpy(self._forecast(series.cpu().numpy(), origin.cpu().numpy())).to(self.device)
        return (values - offset[:, None, :, None]).float()

    def _levels(self, context: Tensor, present: Tensor, edge: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """(observed, offset, seen) of the context (B, L, V): the offset is the median of its first, middle and last
        observed value, 0 where none is `seen` (B, V)."""
        if self.complete and not edge:
            first, middle, last = context[:, 0], context[:, context.shape[1] // 2], context[:, -1]
            observed = torch.ones(context.shape, dtype=torch.bool, device=self.device)
            return observed, _median(first, middle, last), None
        observed = present[:, :, None] & ~torch.isnan(context)
        flags = observed.to(torch.uint8)
        first_at = flags.argmax(1, keepdim=True)
        last_at = context.shape[1] - 1 - flags.flip(1).argmax(1, keepdim=True)
        middle_at = (first_at + last_at) // 2
        middle_at = torch.where(observed.gather(1, middle_at), middle_at, last_at)
        picked = (context.gather(1, i).squeeze(1) for i in (first_at, middle_at, last_at))
        seen = observed.any(1)
        return observed, torch.where(seen, _median(*picked), 0.0), seen

    @staticmethod
    def _mask(values: Tensor, mask: Tensor | None) -> Tensor:
        return values if mask is None else torch.where(mask, values, 0)

    def _labels(self, values: Tensor, residual: Tensor, at: Tensor, seen: Tensor | None) -> Labels:
        context = self.input_length
        target = residual[:, context:]
        if seen is None:
            observed = torch.ones(target.shape, dtype=torch.bool, device=self.device)
        else:
            observed = ~torch.isnan(values[:, context:]) & seen[:, None]
            target = torch.where(observed, target, 0)
        if self._weight is None:
            weight = torch.ones(target.shape[:2], device=self.device)
        else:
            weight = self._weight.cut(at, self.horizon, False).squeeze(-1)
        return Labels(target=target, observed=observed, weight=weight)

    def _categories(self, column: Spans, first: Tensor, steps: int, present: Tensor, edge: bool) -> Tensor:
        values = column.cut(first, steps, edge or steps > self.input_length).long()
        if edge and column.width:
            values[:, : self.input_length].masked_fill_(~present[:, :, None], 0)
        return values

    def _past_part(
        self, series: Tensor, first: Tensor, present: Tensor, offset: Tensor, edge: bool
    ) -> tuple[Tensor, Tensor]:
        values = self._past.cut(first, self.input_length, edge)
        if self._past_complete or not self._past.width:
            observed = present[:, :, None].expand(values.shape)
        else:
            observed = present[:, :, None] & ~torch.isnan(values)
        if edge or not self._past_complete:
            values = torch.where(observed, values, 0)
        for lag in self._past_lags:
            more, there = self._lagged(series, first - lag, self.input_length, offset)
            values, observed = torch.cat([values, more], -1), torch.cat([observed, there], -1)
        return values, observed

    def _known_part(
        self, series: Tensor, origin: Tensor, first: Tensor, present: Tensor, offset: Tensor, edge: bool
    ) -> Tensor:
        steps = self.input_length + self.horizon
        parts = [self._known.cut(first, steps, edge)]
        if self.panel.roles.calendar:
            start = self._calendar_base.index_select(0, series).add_(origin)
            parts.append(self._calendar.cut(start, steps, False))
        for lag in self._known_lags:
            more, there = self._lagged(series, first - lag, steps, offset)
            parts += [more, there.float()]
        if self.panel.roles.relative_time:
            relative = (self._steps - self.input_length + 1) / self.input_length
            parts.append(relative.expand(len(series), steps).unsqueeze(-1))
        known = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        if edge and known.shape[-1]:
            known[:, : self.input_length].masked_fill_(~present[:, :, None], 0)
        return known

    def _lagged(self, series: Tensor, first: Tensor, steps: int, offset: Tensor) -> tuple[Tensor, Tensor]:
        """The target some steps earlier, minus the window's offset, and whether it is there."""
        values = self._target.cut(first, steps, True)
        rows = first[:, None] + self._steps[:steps]
        inside = rows >= self._offsets.index_select(0, series)[:, None]
        there = inside[:, :, None] & ~torch.isnan(values)
        return torch.where(there, (values - offset[:, None]).float(), 0), there


def _median(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return torch.maximum(torch.minimum(a, b), torch.minimum(torch.maximum(a, b), c))


def _rows(panel: Panel, bound: Any, name: str) -> Array:
    """A bound as rows of each series: an array is taken as such, anything else is a time stamp."""
    if isinstance(bound, (np.ndarray, Tensor)) and bound.ndim == 1:
        if len(bound) != len(panel):
            raise ValueError(f"{name} has {len(bound)} rows for {len(panel)} series")
        return np.asarray(bound, np.int64)
    return panel.rows_before(bound)


def _any_nan(values: Array) -> bool:
    return any(bool(np.isnan(values[a:b]).any()) for a, b in chunks(len(values))) if values.size else False


def _unobserved(panel: Panel) -> tuple[bool, Array]:
    """Whether no target is missing, and the (k, 2) runs [a, b) of rows without any target, each within a series."""
    complete, found = True, []
    for a, b in chunks(len(panel.target)):
        missing = np.isnan(panel.target[a:b])
        if not missing.any():
            continue
        complete = False
        rows = missing.all(axis=1)
        cuts = panel.offsets[np.searchsorted(panel.offsets, a) : np.searchsorted(panel.offsets, b)] - a
        change = np.flatnonzero(rows[1:] != rows[:-1]) + 1
        edges = np.unique(np.concatenate([[0], change, cuts, [b - a]]))
        runs = np.stack([edges[:-1], edges[1:]], 1)[rows[edges[:-1]]] + a
        found.append(runs)
    if not found:
        return complete, np.empty((0, 2), np.int64)
    runs = np.concatenate(found)
    joined = (runs[1:, 0] == runs[:-1, 1]) & ~np.isin(runs[1:, 0], panel.offsets)
    begin, stop = np.r_[True, ~joined], np.r_[~joined, True]
    return complete, np.stack([runs[begin, 0], runs[stop, 1]], 1)


def _without(first: Array, last: Array, series: Array, barred: Array) -> tuple[Array, Array, Array]:
    """Ranges [first, last], one per series and ascending, minus barred ranges [from, to]: what is left of them."""
    if len(barred) == 0 or len(first) == 0:
        return first, last, series
    barred = barred[np.argsort(barred[:, 0], kind="stable")]
    inside = np.clip(np.searchsorted(first, barred[:, 1], side="right") - 1, 0, len(first) - 1)
    low, high = np.maximum(barred[:, 0], first[inside]), np.minimum(barred[:, 1], last[inside])
    low, high = low[low <= high], high[low <= high]
    reach = np.maximum.accumulate(high) if len(high) else high
    new = np.r_[True, low[1:] > reach[:-1]] if len(low) else np.zeros(0, bool)
    low, high = low[new], reach[np.r_[np.flatnonzero(new)[1:] - 1, len(reach) - 1]] if len(reach) else reach
    begin, stop = np.sort(np.r_[first, high + 1]), np.sort(np.r_[last, low - 1])
    owner = series[np.clip(np.searchsorted(first, begin, side="right") - 1, 0, len(first) - 1)]
    left = begin <= stop
    return begin[left], stop[left], owner[left]


def _calendar(panel: Panel, context: int, horizon: int) -> tuple[Array, Array]:
    """Calendar features by time, (rows, F) float32, and for each series the row of its window at origin 0.

    Series on the same grid share one stretch of time, unless their own stretches together are shorter.
    """
    begin, end = panel.start - context, panel.start + np.diff(panel.offsets) + horizon
    phases, group = np.unique(panel.phase, return_inverse=True)
    low = np.full(len(phases), np.iinfo(np.int64).max)
    high = np.full(len(phases), np.iinfo(np.int64).min)
    np.minimum.at(low, group, begin)
    np.maximum.at(high, group, end)
    if (high - low).sum() > (end - begin).sum():
        phases, group, low, high = panel.phase, np.arange(len(panel)), begin, end
    stretch = np.r_[0, np.cumsum(high - low)]
    ordinal = np.arange(stretch[-1]) + np.repeat(low - stretch[:-1], high - low)
    times = panel.axis.join(ordinal, np.repeat(phases, high - low))
    return calendar_features(panel.axis, times, panel.roles.calendar), stretch[group] + begin - low[group]


def batches(count: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover `count`."""
    for a in range(0, count, size):
        yield slice(a, min(a + size, count))
