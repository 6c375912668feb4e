"""Quantiles of the same phase over the seasons of the context: what holds when nothing can be foreseen."""

from __future__ import annotations

import numpy as np

from xlstm_forecast.backbone.windows import Array, Index


def climatology(
    rows: Array, available: Index, season: int, horizon: int, levels: Array, most: int = 21, brief: bool = False
) -> Array:
    """(n, H, Q) empirical quantiles of the target's phase over up to `most` seasons of complete rows (n, L).

    Seasons of 20 steps and more pool the neighbouring phases. Without a season it is the distribution of the row's
    last values, up to 60. NaN where fewer than five seasons are there, or without a season fewer than 60 values (in
    rows of 20 to 60, all of them); `brief` asks for two seasons or eight values, which is too little to forecast with,
    and enough to tell whether it would do.
    """
    n, length = rows.shape
    levels = np.asarray(levels, float)
    out = np.full((n, horizon, len(levels)), np.nan)
    if season <= 1:
        width = min(length, 60)
        counts = np.where(available >= (8 if brief else max(width, 20)), np.minimum(available, width), 0)
        for count in np.unique(counts[counts > 0]):
            which = counts == count
            out[which] = np.quantile(rows[which, length - count :], levels, axis=1).T[:, None, :]
        return out
    counts = np.minimum(np.minimum(available, length) // season, most)
    for count in np.unique(counts[counts >= (2 if brief else 5)]):
        which = counts == count
        cycle = rows[which, length - count * season :].reshape(-1, count, season)
        if season >= 20:
            cycle = np.concatenate([np.roll(cycle, 1, 2), cycle, np.roll(cycle, -1, 2)], 1)
        table = np.quantile(cycle, levels, axis=1).transpose(1, 2, 0)  # (n, season, Q)
        out[which] = table[:, np.arange(horizon) % season]
    return out
