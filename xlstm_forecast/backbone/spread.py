"""How uncertain each step is: a scale model in logs, and the quantiles of what it leaves."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xlstm_forecast.backbone.features import TRENDING, corrects
from xlstm_forecast.backbone.median import View
from xlstm_forecast.backbone.windows import Array, Index, rows_of

GRID = np.array([0.005, 0.01, 0.025, *np.arange(1, 20) / 20, 0.975, 0.99, 0.995])  # levels that are kept
_NORMAL = 0.635  # minus the mean of log|z| for a standard normal z
_FLOOR = 1e-3  # of the window's scale


def volatility(seen: View, season: int, horizon: int) -> Array:
    """(n, H, q) logs of what predicts the size of errors, relative to the window's scale.

    Recent and overall mean absolute change, seasonal change, seasonal change at the phase of the target, and how far
    the simple forecasters disagree about the step, those that go on with a trend left out: growth sets them apart
    without any doubt. NaN where a history holds no observed pair of values for it.
    """
    rows, scale = seen.rows, seen.scale[:, None]
    n, length = rows.shape
    both = seen.observed[:, 1:] & seen.observed[:, :-1]
    change = np.abs(np.diff(rows, axis=1)) * both
    recent = min(max(2 * season, 8), length - 1)
    parts = [
        _mean(change[:, -recent:].sum(1), both[:, -recent:].sum(1)),
        _mean(change.sum(1), both.sum(1)),
    ]
    out = [np.repeat(np.log(p[:, None] / scale + _FLOOR), horizon, 1) for p in parts]
    if season > 1 and length >= 2 * season:
        count = (length - season) // season
        both = seen.observed[:, -count * season :] & seen.observed[:, -(count + 1) * season : -season]
        change = np.abs(rows[:, -count * season :] - rows[:, -(count + 1) * season : -season]) * both
        size, pairs = (x.reshape(n, count, season).sum(1) for x in (change, both))
        overall = _mean(size.sum(1, keepdims=True), pairs.sum(1, keepdims=True))
        if season >= 12 and count >= 2:
            size, pairs = (np.roll(x, 1, 1) + 2 * x + np.roll(x, -1, 1) for x in (size, pairs))
        out.append(np.repeat(np.log(overall / scale + _FLOOR), horizon, 1))
        relative = (_mean(size, pairs) + 0.1 * overall + _FLOOR * scale) / (1.1 * overall + _FLOOR * scale)
        out.append(np.log(relative)[:, np.arange(horizon) % season])
    kinds = [i for i, name in enumerate(seen.simple.names) if not corrects(name) and name not in TRENDING]
    out.append(np.log(seen.simple.features[..., kinds].std(-1) / scale + _FLOOR))
    return np.clip(np.stack(out, -1), -7, 5)


def _mean(total: Array, count: NDArray[Any]) -> Array:
    """Means from sums; NaN where nothing was counted."""
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def normal_quantiles(levels: Array) -> Array:
    """Quantiles of the standard normal distribution."""
    return np.array([NormalDist().inv_cdf(float(p)) for p in levels])


@dataclass
class Spread:
    """sigma = scale * exp(level per step + slope' volatility); offsets are quantiles of (y - median) / sigma."""

    level: Array  # (H,)
    slope: Array  # (q,)
    centre: Array  # (H, q), NaN where no window of the fit told
    own: Array  # (S + 1,) added to the log for each series, 0 for one that was not fitted
    offsets: Array  # (S + 1, H, len(GRID)): one row per series, the last for a series that was not fitted
    # (2, B): numbers of observed values, and what is added to the log for a history of no more; 0 from the last of them
    brief: Array = field(default_factory=lambda: np.array([[1.0], [0.0]]))
    # (1,): exponent of the growth of errors with the age of the last value, by (step + missing rows) / step
    ageing: Array = field(default_factory=lambda: np.zeros(1))

    def scarce(self, seen: View) -> Array:
        """(n, H) what brief histories and missing last values add to the log."""
        values = np.maximum(seen.observed.sum(1), 1)
        short = np.interp(np.log(values), np.log(self.brief[0]), self.brief[1])[:, None]
        gap = np.where(seen.available > 0, seen.observed[:, ::-1].argmax(1), 0)[:, None]
        step = np.arange(1, len(self.level) + 1)
        return np.asarray(short + self.ageing * np.log((step + gap) / step))

    def sigma(self, seen: View, season: int, series: Index) -> Array:
        """(n, H) in true units; 0 for a window without any change."""
        drivers = np.nan_to_num(volatility(seen, season, len(self.level)) - self.centre)
        log_sigma = np.clip(drivers @ self.slope, -4, 4) + self.level
        log_sigma = log_sigma + self.own[np.where(series >= 0, series, len(self.own) - 1)][:, None]
        log_sigma += self.scarce(seen)
        flat = np.ptp(seen.rows, axis=1) == 0
        return np.where(flat[:, None], 0.0, np.exp(log_sigma) * seen.scale[:, None])

    def at(self, series: Index, levels: Array) -> Array:
        """(n, H, Q) offsets at any levels, monotone in the level."""
        table = self.offsets[np.where(series >= 0, series, len(self.offsets) - 1)]
        return interpolate(table, levels)


def errors_of_last_value(values: Array, offsets: Index, horizon: int) -> Array:
    """(2, H) what the last value misses by at each step ahead, the median over series of mean absolute changes.

    The second row is in parts of a series' mean, and the first zero, where no value is negative; else the first row is
    in true units, and the second zero. Up to 256 series, and a thousand rows of each, tell.
    """
    rows = rows_of(values, offsets)
    rows = [row[-1000:] for row in rows[:: -(-len(rows) // 256)]]
    relative = not (values < 0).any()
    if relative:
        rows = [row / np.nanmean(row) for row in rows if np.nansum(row) > 0]
    out, known = np.zeros((2, horizon)), []
    for h in np.unique(np.geomspace(1, horizon, 8).astype(np.int64)):
        changes = [np.abs(row[h:] - row[:-h]) for row in rows if len(row) > h]
        found = [np.nanmean(change) for change in changes if np.isfinite(change).any()]
        if found:
            known.append((h, np.median(found)))
    if known:
        out[int(relative)] = np.interp(np.arange(1, horizon + 1), *np.array(known).T)
    return out


def interpolate(table: Array, levels: Array) -> Array:
    """Quantiles at `levels` from quantiles on GRID (..., len(GRID)), linear in the logit of the level."""

    def logit(p: Array) -> Array:
        return np.log(p / (1 - p))

    at = np.clip(logit(np.asarray(levels, float)), logit(GRID[:1]), logit(GRID[-1:]))
    right = np.clip(np.searchsorted(logit(GRID), at, side="left"), 1, len(GRID) - 1)
    low, high = logit(GRID)[right - 1], logit(GRID)[right]
    share = (at - low) / (high - low)
    return np.asarray(table[..., right - 1] * (1 - share) + table[..., right] * share)


def weighted_quantiles(values: Array, weights: Array) -> Array:
    """(H, len(GRID)) of values (n, H) with weights (n, H); a column without weight gives zeros."""
    order = np.argsort(values, axis=0)
    v = np.take_along_axis(values, order, 0)
    w = np.take_along_axis(weights, order, 0)
    total = w.sum(0)
    position = (np.cumsum(w, 0) - 0.5 * w) / np.maximum(total, 1e-300)
    out = np.zeros((values.shape[1], len(GRID)))
    for h in range(values.shape[1]):
        use = w[:, h] > 0
        if use.any():
            out[h] = np.interp(GRID, position[use, h], v[use, h])
    return out


def _smooth(table: Array, reach: int) -> Array:
    """Moving average along the horizon, shortened at the ends."""
    if reach < 1:
        return table
    padded = np.cumsum(np.concatenate([np.zeros((1, table.shape[1])), table]), 0)
    h = np.arange(len(table))
    low, high = np.maximum(h - reach, 0), np.minimum(h + reach + 1, len(table))
    return np.asarray((padded[high] - padded[low]) / (high - low)[:, None])


@dataclass(frozen=True)
class Residuals:
    """What a median path leaves: (n, H) in units of each window's scale, with what may predict its size."""

    drivers: Array  # (n, H, q)
    values: Array  # (n, H)
    observed: NDArray[np.bool_]  # (n, H)
    weight: Array  # (n,)
    series: Index  # (n,)


def fit_spread(
    checked: Residuals, trained: Residuals, blocks: Array, effective: float, season: int, gain: float
) -> Spread:
    """From validation residuals, and training residuals where those are few.

    `effective` says how many independent validation windows there are, `blocks` (S,) how many windows that do not
    overlap each series has in all. Slopes are shrunk towards half a proportional response to the seasonal (or overall)
    change, the level towards the seasonal naive's times `gain` (our error over the naive's), that of a series towards
    all; quantiles per step towards those over all steps, those of a series towards those of all series, the middle one
    towards zero.
    """
    both = [checked, trained]
    drivers, values = np.concatenate([r.drivers for r in both]), np.concatenate([r.values for r in both])
    series = np.concatenate([r.series for r in both])
    share = 25 / (25 + effective)
    mix = share / max(1 - share, 0.05) * max(checked.weight.sum(), 1.0) / max(trained.weight.sum(), 1e-30)
    weight = np.concatenate([checked.weight, trained.weight * (mix if effective < 100 else 0.0)])
    w = np.concatenate([r.observed for r in both]) * weight[:, None]
    h, q = values.shape[1], drivers.shape[2]
    log_size = np.log(np.abs(values) + 3e-3)
    mass = np.maximum(w.sum(0), 1e-30)
    told = np.isfinite(drivers)
    centre = _mean((np.where(told, drivers, 0.0) * w[..., None]).sum(0), (told * w[..., None]).sum(0))
    drivers = np.nan_to_num(drivers - centre)
    level = (log_size * w).sum(0) / mass
    start = np.zeros(q)
    start[2 if q > 3 else 1] = 0.5
    slope = _slopes(drivers, log_size - level, w, start, effective)
    level = _smooth(level[:, None], h // 8)[:, 0] if h > 8 else level
    usual = centre[:, 2] if q > 3 and np.isfinite(centre[:, 2]).all() else np.nan_to_num(centre[:, 1])
    naive = usual + 0.5 * np.log(np.arange(h) // season + 1.0) - _NORMAL + np.log(gain)
    level += 4.0 / (4.0 + effective) * (naive - level)
    log_sigma = np.clip(drivers @ slope, -4, 4) + level
    own = _own_levels(log_size - log_sigma, both, series, blocks)
    sigma = np.exp(log_sigma + own[series][:, None])
    z = np.where(w > 0, values / sigma, 0.0)
    return Spread(level, slope, centre, own, _offsets(z, w * sigma**0.5, series, blocks, effective))


def _slopes(x: Array, y: Array, w: Array, start: Array, effective: float) -> Array:
    use = w > 0
    x, y, w = x[use], y[use], w[use]
    total = max(w.sum(), 1e-30)
    ridge = (0.02 + 10.0 / max(effective, 1.0)) * np.eye(len(start))
    wx = x * w[:, None]
    return np.asarray(start + np.linalg.solve(wx.T @ x / total + ridge, wx.T @ (y - x @ start) / total))


def _own_levels(rest: Array, both: list[Residuals], series: Index, blocks: Array) -> Array:
    """(S + 1,) mean log residual of each series beyond the common model, shrunk by its number of windows."""
    out = np.zeros(len(blocks) + 1)
    if len(blocks) == 1:
        return out
    w = np.concatenate([r.observed for r in both]).astype(float)
    count = np.bincount(series, w.sum(1), minlength=len(out))
    mean = np.bincount(series, (rest * w).sum(1), minlength=len(out)) / np.maximum(count, 1)
    overall = mean[:-1][count[:-1] > 0]
    if len(overall):
        mean -= np.average(mean[:-1], weights=count[:-1])
    out[:-1] = np.where(count[:-1] > 0, mean[:-1] * blocks / (blocks + 4.0), 0.0)
    return np.clip(out, -2, 2)


def _offsets(z: Array, weight: Array, series: Index, blocks: Array, effective: float) -> Array:
    h, count = z.shape[1], len(blocks)
    overall = weighted_quantiles(z.reshape(-1, 1), weight.reshape(-1, 1))
    own = effective / (effective + 15.0)
    table = own * _smooth(weighted_quantiles(z, weight), h // 8) + (1 - own) * overall
    table += 4.0 / (4.0 + effective) * (normal_quantiles(GRID) * np.exp(_NORMAL) - table)
    out = np.repeat(table[None], count + 1, 0)
    per_series = effective / max(count, 1)
    if count > 1 and per_series >= 4:
        for s in np.unique(series):
            rows = series == s
            local = weighted_quantiles(z[rows].reshape(-1, 1), weight[rows].reshape(-1, 1))
            steps = _smooth(weighted_quantiles(z[rows], weight[rows]), h // 4)
            mine = min(per_series, float(blocks[s]))
            share = mine / (mine + 30.0)
            out[s] = (1 - share) * table + share * (0.5 * local + 0.5 * steps)
    middle = len(GRID) // 2
    trust = effective / (effective + 20.0)
    out -= (1 - trust) * out[..., middle : middle + 1]
    return np.maximum.accumulate(out, axis=-1)
