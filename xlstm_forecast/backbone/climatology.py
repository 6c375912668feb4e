"""Quantiles of the same phase over the seasons of the context: what holds when nothing can be foreseen."""

from __future__ import annotations

import numpy as np

from xlstm_forecast.backbone.features import carried
from xlstm_forecast.backbone.windows import Array, Index


def climatology(
    rows: Array,
    available: Index,
    drift: Array,
    season: int,
    horizon: int,
    levels: Array,
    most: int = 21,
    brief: bool = False,
) -> Array:
    """(n, H, Q) empirical quantiles of the target's phase over up to `most` seasons of complete rows (n, L).

    Seasons of 20 steps and more pool the neighbouring phases. Without a season it is the distribution of the row's
    last values, up to 60. NaN where fewer than five seasons are there, or without a season fewer than 60 values (in
    rows of 20 to 60, all of them); `brief` asks for two seasons or eight values, which is too little to forecast with,
    and enough to tell whether it would do. `drift` (n,) is taken out of the rows and goes on.
    """
    n, length = rows.shape
    levels = np.asarray(levels, float)
    rows = rows - drift[:, None] * np.arange(1.0 - length, 1.0)
    ahead = carried(drift, np.minimum(available, length), np.arange(1.0, horizon + 1))[..., None]
    out = np.full((n, horizon, len(levels)), np.nan)
    if season <= 1:
        width = min(length, 60)
        counts = np.where(available >= (8 if brief else max(width, 20)), np.minimum(available, width), 0)
        for count in np.unique(counts[counts > 0]):
            which = counts == count
            out[which] = quantiles(rows[which, None, length - count :], levels)
        return out + ahead
    counts = np.minimum(np.minimum(available, length) // season, most)
    for count in np.unique(counts[counts >= (2 if brief else 5)]):
        which = counts == count
        cycle = rows[which, length - count * season :].reshape(-1, count, season).transpose(0, 2, 1)
        phases = np.arange(min(horizon, season))
        near = (-1, 0, 1) if season >= 20 else (0,)
        table = quantiles(np.concatenate([cycle[:, (phases + k) % season] for k in near], 2), levels)
        out[which] = table[:, np.arange(horizon) % season]
    return out + ahead


def quantiles(samples: Array, levels: Array) -> Array:
    """(n, m, Q) empirical quantiles of complete samples (n, m, K), the numbers of `numpy.quantile`.

    K are few, and sorted in a fraction of its time.
    """
    ordered = np.sort(samples, -1)
    place = (samples.shape[-1] - 1) * levels
    low = place.astype(np.int64)
    share, a, b = place - low, ordered[..., low], ordered[..., np.minimum(low + 1, samples.shape[-1] - 1)]
    return np.asarray(np.where(share >= 0.5, b - (b - a) * (1 - share), a + (b - a) * share))
