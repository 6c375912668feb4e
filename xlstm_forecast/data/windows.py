"""Windows of a panel: which ones there are, as arithmetic, and a batch of them as one gather per column."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..batch import Batch, Labels
from .columns import chunks, counted
from .gather import Forecast, Gather
from .panel import Panel

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
        base: Forecast | None = None,
        device: torch.device | str = "cpu",
    ):
        for name, value in (("input_length", input_length), ("horizon", horizon), ("step", step)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if not 1 <= min_context <= input_length:
            raise ValueError(f"min_context={min_context} must lie between 1 and input_length={input_length}")
        self.panel, self.input_length, self.horizon = panel, input_length, horizon
        self.min_context, self.step, self.device = min_context, step, torch.device(device)
        low = np.maximum(np.full(len(panel), min_context), 0 if start is None else _rows(panel, start, "start"))
        high = (panel.history if end is None else np.minimum(_rows(panel, end, "end"), panel.history)) - horizon
        self._index(low, high)
        self._gather = Gather(panel, input_length, horizon, self.complete, base, self.device)

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
        both = np.concatenate([np.stack([a, b - self.horizon], 1), context])
        return both[both[:, 1] >= both[:, 0]]

    def __len__(self) -> int:
        return self.count

    def locate(self, index: Tensor, check: bool = True) -> tuple[Tensor, Tensor]:
        """Window numbers (B,) -> (series, origin), origin counted in rows of the series."""
        index = torch.as_tensor(index, device=self.device)
        if check and len(index) and (int(index.min()) < 0 or int(index.max()) >= self.count):
            raise IndexError(f"window {int(index.max())} is outside the {self.count} windows")
        run = torch.searchsorted(self._ends, index, right=True)
        series = self._series.index_select(0, run)
        at = self._base.index_select(0, run).add_(index, alpha=self.step)
        return series, at.sub_(self._gather.offsets.index_select(0, series))

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

    @property
    def known_names(self) -> list[str]:
        """What the columns of `Batch.known` are, in order."""
        roles = self.panel.roles
        names = list(roles.reals("future"))
        names += [f"{feature}_{part}" for feature in roles.calendar for part in ("sin", "cos")]
        for lag in self._gather.known_lags:
            names += [f"{t}_lag{lag}" for t in roles.target] + [f"{t}_lag{lag}_observed" for t in roles.target]
        return [*names, "relative_time"] if roles.relative_time else names

    @property
    def past_names(self) -> list[str]:
        """What the columns of `Batch.past` are, in order."""
        roles = self.panel.roles
        return [*roles.reals("past"), *(f"{t}_lag{lag}" for lag in self._gather.past_lags for t in roles.target)]

    def gather(self, index: Tensor, check: bool = True) -> tuple[Batch, Labels]:
        """The windows of these numbers (B,); `check` refuses numbers outside with an IndexError."""
        batch, labels = self._gather(*self.locate(index, check), True)
        assert labels is not None
        return batch, labels

    def gather_at(self, series: Any, origin: Any, labels: bool = True) -> tuple[Batch, Labels | None]:
        """The windows at any (series, origin), (B,) each; without labels the horizon may lie after the history.

        Raises ValueError where rows that are asked for do not exist.
        """
        series = torch.as_tensor(series, dtype=torch.int64, device=self.device)
        origin = torch.as_tensor(origin, dtype=torch.int64, device=self.device)
        rows = self._gather.length[series]
        ahead = labels or self._gather.ahead
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

    @property
    def window_bytes(self) -> int:
        """About the size of one window in memory."""
        return self._gather.window_bytes

    def last(self) -> Batch:
        """One window per series, in panel order, at the end of its history: what a forecast starts from."""
        return self.gather_at(np.arange(len(self.panel)), self.panel.history, labels=False)[0]


def _rows(panel: Panel, bound: Any, name: str) -> Array:
    """A bound as rows of each series: one number for each, or, where time is a date, one for all; else a time stamp."""
    if isinstance(bound, (int, np.integer)) and not isinstance(bound, bool) and panel.axis.kind != "int":
        return np.full(len(panel), bound, np.int64)
    if isinstance(bound, (list, tuple, np.ndarray, Tensor)) and np.ndim(bound) == 1:
        rows = np.asarray(bound)
        if len(rows) != len(panel):
            raise ValueError(f"{name} has {len(rows)} rows for {len(panel)} series")
        if rows.dtype.kind not in "iu":
            raise ValueError(
                f"{name} has {rows.dtype} for each series: pass numbers of rows, or one time stamp for all"
            )
        return rows.astype(np.int64)
    return panel.rows_before(bound)


def _unobserved(panel: Panel) -> tuple[bool, Array]:
    """Whether no target is missing, and the (k, 2) runs [a, b) of rows without any target, each within a series."""
    complete = True
    found: list[Array] = []
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
    runs = np.concatenate([np.empty((0, 2), np.int64), *found])
    if len(runs) == 0:
        return complete, runs
    joined = (runs[1:, 0] == runs[:-1, 1]) & ~np.isin(runs[1:, 0], panel.offsets)
    begin, stop = np.r_[True, ~joined], np.r_[~joined, True]
    return complete, np.stack([runs[begin, 0], runs[stop, 1]], 1)


def _without(first: Array, last: Array, series: Array, barred: Array) -> tuple[Array, Array, Array]:
    """Ranges [first, last], one per series and ascending, minus barred ranges [from, to]: what is left of them."""
    if len(barred) == 0 or len(first) == 0:
        return first, last, series
    inside = np.clip(np.searchsorted(first, barred[:, 1], side="right") - 1, 0, len(first) - 1)
    low, high = np.maximum(barred[:, 0], first[inside]), np.minimum(barred[:, 1], last[inside])
    some = low <= high
    low, high = low[some], high[some]
    if len(low) == 0:
        return first, last, series
    order = np.argsort(low, kind="stable")
    low, reach = low[order], np.maximum.accumulate(high[order])
    new = np.r_[True, low[1:] > reach[:-1]]
    low, high = low[new], reach[np.r_[np.flatnonzero(new)[1:] - 1, len(reach) - 1]]
    begin, stop = np.sort(np.r_[first, high + 1]), np.sort(np.r_[last, low - 1])
    owner = series[np.clip(np.searchsorted(first, begin, side="right") - 1, 0, len(first) - 1)]
    left = begin <= stop
    return begin[left], stop[left], owner[left]
