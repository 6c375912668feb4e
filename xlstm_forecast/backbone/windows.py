"""Histories as arrays: gathering, filling, cleaning, and where to fit and validate.

Series lie behind each other in one flat float64 column, NaN where missing, with `offsets` (S + 1,). A history is a row
of length L that ends directly before the first forecast step; what lies before a series' first row is NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Index = NDArray[np.int64]


def rows_of(values: Array, offsets: Index) -> list[Array]:
    """The series as views."""
    return [values[a:b] for a, b in pairwise(offsets)]


def gather(values: Array, offsets: Index, series: Index, origin: Index, length: int) -> Array:
    """(n, length) values directly before `origin` (rows since the series' start); NaN before the series starts."""
    position = np.asarray(origin)[:, None] + np.arange(-length, 0)
    start = np.asarray(offsets)[series][:, None]
    out = values[np.maximum(position, 0) + start] if len(values) else np.full(position.shape, np.nan)
    return np.where(position >= 0, out, np.nan)


def gather_labels(values: Array, offsets: Index, series: Index, origin: Index, horizon: int) -> Array:
    """(n, horizon) values from `origin` on; NaN after the series' end."""
    position = np.asarray(origin)[:, None] + np.arange(horizon)
    length = np.diff(offsets)[series][:, None]
    start = np.asarray(offsets)[series][:, None]
    return np.where(position < length, values[np.minimum(position, length - 1) + start], np.nan)


def gather_known(known: Array, offsets: Index, series: Index, origin: Index, behind: int, horizon: int) -> Array:
    """(n, behind + horizon, K) rows around `origin` of known-future inputs (N, K); NaN outside of the series."""
    position = np.asarray(origin)[:, None] + np.arange(-behind, horizon)
    length = np.diff(offsets)[series][:, None]
    inside = (position >= 0) & (position < length)
    rows = known[np.clip(position, 0, length - 1) + np.asarray(offsets)[series][:, None]]
    return np.where(inside[..., None], rows, np.nan)


def fill(history: Array, season: int) -> tuple[Array, NDArray[np.int64]]:
    """Complete rows and the number of steps since the first observed value of each.

    A gap takes the value one season before it, else the last value; the rows are extended to the left by repeating
    their first season. A row without any observation becomes 0. Only values of the row itself are read.
    """
    seen = np.isfinite(history)
    length = history.shape[1]
    first = np.where(seen.any(1), seen.argmax(1), length)
    available = length - first
    if seen.all():
        return history, available
    out = np.where(seen, history, 0.0)
    step = np.arange(length)
    gaps = ~seen & (step >= first[:, None])
    holed = np.flatnonzero(gaps.any(1))
    if len(holed):
        out[holed] = _without_gaps(out[holed], gaps[holed], first[holed, None], season)
    late = np.flatnonzero((first > 0) & (first < length))
    if len(late):
        begin, width = first[late, None], int(first[late].max())
        period = np.where(length - begin >= season, season, 1)
        ahead = begin + (step[:width] - begin) % period
        out[late, :width] = np.where(step[:width] < begin, out[late[:, None], ahead], out[late, :width])
    return out, available


def _without_gaps(rows: Array, gaps: NDArray[np.bool_], first: Index, season: int) -> Array:
    """Rows (n, L) with a value for each of the `gaps` that lie after the `first` (n, 1) observed one."""
    step = np.arange(rows.shape[1])
    latest = np.maximum.accumulate(np.where(gaps, first, step), 1)
    out = np.where(gaps, np.take_along_axis(rows, latest, 1), rows)
    if season == 1:
        return out
    again = gaps & (step - season >= first)
    for a in np.unique(np.flatnonzero(again.any(0)) // season) * season:  # a season at a time, from the one before
        part = slice(a, a + season)
        then = out[:, a - season : a][:, : rows.shape[1] - a]
        out[:, part] = np.where(again[:, part], then, out[:, part])
    return out


def clean(values: Array, offsets: Index, bounds: Array | None = None) -> tuple[Array, Array]:
    """Sensor sentinels set missing, and the (S, 2) bounds outside of which a value counts as one.

    A value outside [q1% - 5r, q99% + 5r], r = q99% - q1%, is a sentinel where fewer than one in 200 values are. In a
    series of 20 values or more, so is one (or one in 400) that is further from all others than 20 times their range.
    Bounds that were found on training data are passed back in for forecasting.
    """
    if bounds is None:
        rows = rows_of(values, offsets)
        bounds = np.array([_bounds(row[np.isfinite(row)]) for row in rows]).reshape(len(rows), 2)
    owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    keep = (values >= bounds[owner, 0]) & (values <= bounds[owner, 1])
    return np.where(keep, values, np.nan), bounds


def _bounds(seen: Array) -> tuple[float, float]:
    """Outside of what an observed value (n,) is a sentinel."""
    n = len(seen)
    few, rules = 1 + n // 400, []  # low, high, in ranges between these how far outside, of fewer than how many values
    if n >= 200:
        rules.append((*np.quantile(seen, [0.01, 0.99]), 5, 0.005 * n))
    if n >= 20:
        rules.append((*np.partition(seen, [few, n - 1 - few])[[few, n - 1 - few]], 20, few + 1))
    for low, high, ranges, many in rules:
        reach = ranges * (high - low)
        if reach > 0 and 0 < ((seen < low - reach) | (seen > high + reach)).sum() < many:
            return low - reach, high + reach
    return -np.inf, np.inf


@dataclass(frozen=True)
class Split:
    """One rolling validation: windows whose labels end before `fit_end` are fitted, later ones up to `end` validate."""

    fit_end: Index  # (S,) rows
    end: Index  # (S,) rows


def rolling_splits(lengths: Index, horizon: int, season: int) -> list[Split]:
    """Up to three consecutive validation parts at the end of the series, the last one first fitted on the most.

    A part is a fifth of a typical series under 2000 values and a tenth above, at least two horizons where that leaves
    twice as much to fit on, else one; short series get more parts, because each holds little.
    """
    typical = int(np.median(lengths))
    part = max(typical // (5 if typical < 2000 else 10), min(2 * horizon, typical // 4), horizon)
    count = 1 if typical >= 2000 else 2 if typical >= 500 else 3
    while count > 1 and typical - count * part < max(2 * part, horizon + season + 4):
        count -= 1
    splits = []
    for k in range(count, 0, -1):
        splits.append(Split(np.maximum(lengths - k * part, 0), np.maximum(lengths - (k - 1) * part, 0)))
    return splits


def origins_between(first: Index, last: Index, stride: int) -> tuple[Index, Index]:
    """(series, origin) of every `stride`-th origin from `last` down to `first` (both included) of each series."""
    count = np.maximum((last - first) // stride + 1, 0)
    count = np.where(last < first, 0, count)
    series = np.repeat(np.arange(len(count)), count)
    back = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    return series, last[series] - back * stride
