"""Quantiles of the same phase over the seasons of the context: what holds when nothing can be foreseen."""

from __future__ import annotations

import numpy as np

from xlstm_forecast.backbone.windows import Array, Index


def climatology(rows: Array, available: Index, season: int, horizon: int, levels: Array, most: int = 21) -> Array:
    """(n, H, Q) empirical quantiles of the target's phase over up to `most` seasons of complete rows (n, L).

    Seasons of 20 steps and more pool the neighbouring phases. Without a season it is the distribution of the row's
    last values. NaN where fewer than five seasons (of at least 20 values in all) are there.
    """
    n, length = rows.shape
    levels = np.asarray(levels, float)
    if season <= 1:
        width = min(length, 60)
        table = np.quantile(rows[:, -width:], levels, axis=1).T[:, None, :]
        table = np.where((available >= width)[:, None, None] & (width >= 20), table, np.nan)
        return np.repeat(table, horizon, 1)
    out = np.full((n, horizon, len(levels)), np.nan)
    counts = np.minimum(np.minimum(available, length) // season, most)
    for count in np.unique(counts[counts >= 5]):
        which = counts == count
        cycle = rows[which, length - count * season :].reshape(-1, count, season)
        if season >= 20:
            cycle = np.concatenate([np.roll(cycle, 1, 2), cycle, np.roll(cycle, -1, 2)], 1)
        table = np.quantile(cycle, levels, axis=1).transpose(1, 2, 0)  # (n, season, Q)
        out[which] = table[:, np.arange(horizon) % season]
    return out
