"""New levels: a series that has left everything it was, and stays there, is forecast from where it is now."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from xlstm_forecast.backbone.windows import Array, Index, fill

APART = 0.5  # ranges of what was before that lie between it and the new level
STEADY = 1.5  # of these ranges that the new level may vary by itself, at most
ALIVE = 0.05  # and at least: a run of the same value is an outage rather than a level
LEAST = 4  # values that make a level; before it are at least four times as many, and never fewer than in it


def joined(rows: Array, available: Index, season: int) -> Array:
    """Complete histories (n, L), of which the last `available` values are real, with what lies before a new level moved
    onto it.

    A new level is a season or more at the end, of at least `LEAST` values, that lies apart from all values before it by
    half the range of these, and varies by at most half more than they do, the usual course of a season apart. What was
    before is moved by the difference between the means of up to four seasons (or 16 values) after the change and before
    it. Other rows are returned as they are.
    """
    length = rows.shape[1]
    least = max(LEAST, season)
    most = length // 2
    if most < least or not len(rows):
        return rows
    some = np.flatnonzero(_last_apart(rows, available, season, most))
    found = np.zeros(len(rows), dtype=np.int64)
    found[some] = _lasting(rows[some], available[some], season, least, most)
    if not found.any():
        return rows
    out = rows.copy()
    for count in np.unique(found[found > 0]):
        which, start = np.flatnonzero(found == count), length - count
        width = min(count, 4 * least) // season * season
        moved = rows[which, start : start + width].mean(1) - rows[which, start - width : start].mean(1)
        out[which, :start] += moved[:, None]
    return out


def joined_history(history: Array, season: int) -> Array:
    """The same for histories (n, L) with NaN where nothing was observed, which stays as it is.

    A missing value of the new level counts as the last one before it, not as that of a season ago, on the old level.
    """
    rows, available = fill(history, 1)
    out = joined(rows, available, season)
    return history if out is rows else history + (out - rows)


def _last_apart(rows: Array, available: Index, season: int, most: int) -> NDArray[np.bool_]:
    """(n,) whether the mean of the last season is out of the range of those before the last `most` values: cheap to
    tell, and true of every new level."""
    count = rows.shape[1] // season
    means = rows[:, rows.shape[1] - count * season :].reshape(len(rows), count, season).mean(2)
    back = np.arange(count, 0, -1) * season  # how long ago each season began
    before = (back - season >= most) & (back <= available[:, None])
    last = means[:, -1]
    return np.asarray(
        (last > np.where(before, means, -np.inf).max(1)) | (last < np.where(before, means, np.inf).min(1))
    )


def _adjusted(rows: Array, available: Index, season: int) -> Array:
    """Rows (n, L) without the usual course of a season: the median over real seasons of each phase's distance from the
    mean of its season."""
    length = rows.shape[1]
    count = length // season
    if season == 1 or count < 3:
        return rows
    blocks = rows[:, length - count * season :].reshape(len(rows), count, season)
    back = np.arange(count, 0, -1) * season  # how long ago each season began
    real = (back <= available[:, None]) | (back == season)
    usual = _median(blocks - blocks.mean(2, keepdims=True), real)
    return np.asarray(rows - usual[:, np.arange(-length, 0) % season])


def _median(values: Array, real: NDArray[np.bool_]) -> Array:
    """(n, season) medians of values (n, K, season) over the K that are real (n, K), at least one of each row."""
    ordered = np.sort(np.where(real[..., None], values, np.inf), 1)  # nanmedian takes four to nine times as long
    count = real.sum(1)
    each = np.arange(len(values))
    return np.asarray((ordered[each, (count - 1) // 2] + ordered[each, count // 2]) / 2)


def _to_end(rows: Array) -> tuple[Array, Array]:
    """(n, L) twice: the highest and the lowest of each value and all after it."""
    back = rows[:, ::-1]
    return np.maximum.accumulate(back, 1)[:, ::-1], np.minimum.accumulate(back, 1)[:, ::-1]


def _lasting(rows: Array, available: Index, season: int, least: int, most: int) -> Index:
    """(n,) of how many values the new level at the end of each row is made; 0: there is none."""
    length = rows.shape[1]
    start = length - most
    real = np.arange(length)[None] >= length - available[:, None]
    adjusted = _adjusted(rows, available, season)
    high, low = np.where(real, adjusted, -np.inf), np.where(real, adjusted, np.inf)
    high = np.concatenate([high[:, :start].max(1, keepdims=True), high[:, start:-1]], 1)
    low = np.concatenate([low[:, :start].min(1, keepdims=True), low[:, start:-1]], 1)
    before_high, before_low = np.maximum.accumulate(high, 1), np.minimum.accumulate(low, 1)  # of all before column i
    after_high, after_low = _to_end(adjusted[:, start:])
    as_it_is = np.subtract(*_to_end(rows[:, start:]))  # range of column i and all after it, the season in it
    spread, own = before_high - before_low, after_high - after_low
    gap = np.maximum(after_low - before_high, before_low - after_high)
    new = (gap > APART * spread) & (own <= STEADY * spread) & (as_it_is >= ALIVE * spread) & (spread > 0)
    count = most - np.arange(most)
    new &= (count >= least) & (available[:, None] - count >= np.maximum(count, 4 * least))
    return np.where(new.any(1), count[new.argmax(1)], 0)
