"""Calibration of backtest frames: fitted on all of one, or rolling through it with what each cutoff could know."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from ..metrics import as_pandas, columns_of, like, quantile_name, steps
from .conformal import METHODS, POOLS, Calibration, scores_needed, sides_of


def fit_calibration(
    frame: Any,
    *,
    method: str = "cqr",
    pool: str = "all",
    adaptive: bool | float = False,
    memory: int | None = None,
    half_life: float | None = None,
) -> Calibration:
    """Learn from a backtest by how much its bands must move, per horizon step.

    method "cqr" moves the forecaster's own quantiles, "conformal" measures residuals from the median. pool "all" learns
    from all series together, "series" for each alone. `adaptive` (True: 0.05, or the rate at which a level follows its
    misses) makes bands follow drift as labels arrive; it keeps the latest 50 windows unless `memory` says how many.
    `half_life`: after how many windows a residual counts half.

    Raises:
        ValueError: fewer windows than a level needs (says how many), no band to calibrate, or an unknown option.
    """
    table = as_pandas(frame)
    calibration = _empty(table, method, pool, adaptive, memory, half_life)
    calibration.replay(table, issue=calibration.gamma > 0)
    _check_enough(table, calibration)
    return calibration


def calibrated(
    frame: Any,
    *,
    method: str = "cqr",
    pool: str = "all",
    adaptive: bool | float = False,
    memory: int | None = None,
    half_life: float | None = None,
) -> Any:
    """The later windows of a backtest, each calibrated by the labels known at its cutoff: no leak.

    The first windows, before which too few labels are known, are left out. Options as for `fit_calibration`.

    Raises:
        ValueError: no window has enough labels before it (says how many windows are needed), or an unknown option.
    """
    table = as_pandas(frame)
    calibration = _empty(table, method, pool, adaptive, memory, half_life)
    done = calibration.replay(table).sort_index(kind="stable")
    bands = done[[quantile_name(level) for level in calibration.levels if level != 0.5]]
    ready = bands.notna().all(axis=1).to_numpy() | done["forecast"].isna().to_numpy()
    ready &= _window_ready(done, ready)
    if not ready.any():
        _check_enough(table, calibration)
        if half_life is not None:
            raise ValueError(
                f"no window has labels before its cutoff that weigh enough with half_life={half_life:g}: use a longer "
                "half_life, or windows further apart (step_size)"
            )
        raise ValueError(
            f"no window has enough labels before its cutoff: {_needed(calibration)} windows must have ended before the "
            "first one that can be calibrated; raise n_windows"
        )
    return like(done[ready].reset_index(drop=True), frame)


def _window_ready(done: pd.DataFrame, ready: np.ndarray) -> np.ndarray:
    """Whole windows only: rows whose window has all its steps calibrated."""
    columns = columns_of(done)
    flags = done[[*columns.series, "cutoff"]].assign(_ready=ready)
    return flags.groupby([*columns.series, "cutoff"], sort=False)["_ready"].transform("all").to_numpy()


def _empty(
    table: pd.DataFrame,
    method: str,
    pool: str,
    adaptive: bool | float,
    memory: int | None,
    half_life: float | None,
) -> Calibration:
    columns = columns_of(table)
    gamma = check_options(columns.levels, method, pool, adaptive, memory, half_life)
    memory = 50 if memory is None and gamma else memory
    horizon = int(steps(table, columns).max())
    return Calibration(method, pool, columns.levels, horizon, gamma=gamma, memory=memory, half_life=half_life)


def check_options(
    levels: tuple[float, ...],
    method: str,
    pool: str,
    adaptive: bool | float,
    memory: int | None,
    half_life: float | None,
) -> float:
    """Raise ValueError for options that cannot be, or levels without a band; returns the rate of adaption."""
    for name, value, known in (("method", method, METHODS), ("pool", pool, POOLS)):
        if value not in known:
            raise ValueError(f"{name}={value!r} is not known: choose from {', '.join(known)}")
    gamma = 0.05 if adaptive is True else float(adaptive)
    if not 0 <= gamma < 1:
        raise ValueError(f"adaptive={adaptive!r} must be a rate between 0 and 1, such as 0.05")
    if half_life is not None and half_life <= 0:
        raise ValueError(f"half_life={half_life!r} must be a positive number of windows")
    sides = sides_of(levels)
    if not sides:
        raise ValueError(
            f"there is no band to calibrate: the levels are {levels}; forecast levels around the median, such as "
            "(0.1, 0.5, 0.9)"
        )
    most = scores_needed(sides[-1].nominal)
    whole = isinstance(memory, (int, np.integer)) and not isinstance(memory, bool)
    if memory is not None and (not whole or memory < 1):
        raise ValueError(f"memory={memory!r} must be a number of windows, at least 1")
    if memory is not None and pool == "series" and memory < most:
        raise ValueError(f"memory={memory} windows cannot reach coverage {sides[-1].nominal:g}: keep {most} or more")
    return gamma


def _name(unit: Any) -> str:
    return ", ".join(repr(part) for part in unit) if isinstance(unit, tuple) else repr(unit)


def _needed(calibration: Calibration) -> int:
    """Windows that the widest level needs, given how many residuals of a step each window brings."""
    each = 1
    if calibration.pool == "all" and calibration.windows and len(calibration.units):
        cells = len(calibration.units) * calibration.horizon
        each = max(1, round(len(calibration.cells) / cells / calibration.windows))
    return -(-scores_needed(float(calibration.nominal[-1])) // each)


def _check_enough(table: pd.DataFrame, calibration: Calibration) -> None:
    """Raise ValueError where a cell's residuals do not reach its widest level."""
    offsets = calibration.offsets()
    if np.isfinite(offsets).all():
        return
    cell, side = (int(i) for i in np.argwhere(~np.isfinite(offsets))[0])
    nominal = float(calibration.nominal[side])
    found = int(np.isfinite(calibration.residuals[calibration.cells == cell, side]).sum())
    unit, step = divmod(cell, calibration.horizon)
    whose = "all series" if calibration.pool == "all" else f"series {_name(list(calibration.units)[unit])}"
    remedy = "" if calibration.pool == "all" else ", or pool='all' to learn from all series together"
    if calibration.half_life is not None and found >= scores_needed(nominal):
        raise ValueError(
            f"coverage {nominal:g} needs labels of each step that weigh at least {nominal / (1 - nominal):.3g} "
            f"together, but with half_life={calibration.half_life:g} those of {whose} weigh less: use a longer "
            f"half_life{remedy}"
        )
    raise ValueError(
        f"coverage {nominal:g} needs at least {scores_needed(nominal)} labels of each step, but step {step + 1} of "
        f"{whose} has {found} over {calibration.windows} windows: calibrate on at least {_needed(calibration)} windows"
        f"{remedy}"
    )


def reliability(frame: Any, *, n_resamples: int = 500, seed: int = 0) -> pd.DataFrame:
    """Observed coverage of every central band, with its standard error from a block bootstrap over series and windows.

    Columns: nominal, coverage, standard_error.
    """
    table = as_pandas(frame)
    columns = columns_of(table)
    if not columns.bands:
        raise ValueError(f"no pair of quantile columns around the median: found {columns.quantiles}")
    from ..metrics.paired import block_weights, overlap, window_means

    y = table[columns.label].to_numpy(np.float64, na_value=np.nan)
    rows = []
    for nominal, lo, hi in columns.bands:
        inside = (y >= table[quantile_name(lo)].to_numpy()) & (y <= table[quantile_name(hi)].to_numpy())
        hit = np.where(np.isfinite(y) & table["forecast"].notna().to_numpy(), inside, np.nan)
        cells = window_means(table, columns, hit)
        present = np.isfinite(cells)
        filled = np.where(present, cells, 0.0)
        means = [
            float(a @ filled @ b) / max(float(a @ present @ b), 1e-12)
            for a, b in block_weights(cells.shape, overlap(table, columns), n_resamples, seed)
        ]
        rows.append({"nominal": nominal, "coverage": float(np.nanmean(hit)), "standard_error": float(np.std(means))})
    return pd.DataFrame(rows)
