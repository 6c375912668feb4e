"""What an error is divided by: the seasonal change of a series, over what each forecast could see of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from ..data.frame import to_panel
from ..data.roles import Roles
from .tidy import Columns, as_pandas, columns_of, history_frame


def seasonal_scale(
    frame: Any, history: Any, season_length: int = 1, *, power: int = 1, columns: Columns | None = None
) -> np.ndarray:
    """Mean of |x_t - x_(t-m)|**power over the rows of `history` up to each forecast's cutoff, one per row. (n,)

    Rows of `history` after a cutoff are never read for it; m is 1 where that past is not longer than m (as GIFT-Eval
    scores). Time steps without a row are missing values, where the frequency is clear; pairs with a missing value are
    left out; no pair at all, or a constant past, gives NaN. `history` may be a Series with its times in the index.

    Raises:
        ValueError: `history` lacks a column, repeats a (series, time), or has no row of some series at or before its
            first cutoff; or `season_length` is not a whole number of at least 1.
    """
    frame = as_pandas(frame)
    columns = columns or columns_of(frame)
    season_length = _whole(season_length)
    history = _on_grid(history_frame(history, columns), frame, columns)
    scale = np.full(len(frame), np.nan)
    cutoffs = frame["cutoff"]
    for key, rows, past in _histories(frame, history, columns):
        past = past.sort_values(columns.time)
        name = columns.label if columns.target is None else str(key[-1])
        if name not in past:
            raise ValueError(f"column {name!r} is missing from history: found {list(past.columns)}")
        values = past[name].to_numpy(dtype=np.float64, na_value=np.nan)
        seen = pd.Index(past[columns.time]).searchsorted(pd.Index(cutoffs.iloc[rows]), side="right")
        if seen.min() == 0:
            raise ValueError(
                f"history of series {key[0] if columns.id else name!r} has no row at or before the cutoff "
                f"{cutoffs.iloc[rows].min()}: pass the frame that the backtest was given"
            )
        long = seen > season_length
        scale[rows] = np.where(
            long, _mean_change(values, season_length, power)[seen], _mean_change(values, 1, power)[seen]
        )
    return np.where(scale > 0, scale, np.nan)


def _whole(season_length: Any) -> int:
    """The season's length as an int: also from numpy integers and whole floats."""
    real = isinstance(season_length, (float, np.floating)) and float(season_length).is_integer()
    if isinstance(season_length, (bool, np.bool_)) or not (real or isinstance(season_length, (int, np.integer))):
        raise ValueError(
            f"season_length={season_length!r} is not a whole number: pass the number of time steps in a season (7), or "
            "1 for no season"
        )
    if season_length < 1:
        raise ValueError(f"season_length must be at least 1, got {season_length}: pass 1 for no season")
    return int(season_length)


def _on_grid(history: pd.DataFrame, frame: pd.DataFrame, columns: Columns) -> pd.DataFrame:
    """The history with a row for every time step; as it is where its frequency is not clear, or nothing is missing.

    The grid is that of the times alone, of the series that have any value: no value changes it.
    """
    names = tuple(str(name) for name in frame["target"].unique()) if columns.target else (columns.label,)
    keys = [name for name in (columns.id, columns.time) if name is not None]
    if any(name not in history for name in (*keys, *names)):
        return history
    there = history[list(names)].notna().any(axis=1)
    observed = there.groupby(history[columns.id]).transform("any") if columns.id else there | there.any()
    observed = observed.to_numpy(dtype=bool, na_value=True)
    kept, empty = history[observed], history[~observed]
    _check_keys(kept, keys)
    numbered = kept[keys].assign(**{columns.label: np.arange(len(kept), dtype=np.float64)})
    try:  # keys are whole and unique, values are row numbers: what is refused is the times' frequency
        panel = to_panel(numbered, Roles(id=columns.id, time=columns.time, target=(columns.label,)), on_gap="mask")
    except ValueError:
        return history
    if panel.rows == len(kept):
        return history
    series = np.repeat(np.arange(len(panel)), panel.history)
    rows = np.arange(panel.rows) - panel.offsets[series]
    grid = pd.DataFrame({columns.time: panel.axis.stamps(panel.times(series, rows))})
    if columns.id is not None and panel.ids is not None:
        grid[columns.id] = pd.Series(panel.ids.to_list(), dtype=history[columns.id].dtype).to_numpy()[series]
    row = panel.target[:, 0]
    hole = np.isnan(row)
    from_row = np.where(hole, 0, row).astype(np.int64)
    for name in names:
        values = kept[name].to_numpy(dtype=np.float64, na_value=np.nan)
        grid[name] = np.where(hole, np.nan, values[from_row])
    return pd.concat([grid, empty[[*keys, *names]]], ignore_index=True) if len(empty) else grid


def _check_keys(history: pd.DataFrame, keys: list[str]) -> None:
    """Raise ValueError where the history lacks an id or a time, or repeats a (series, time)."""
    for name in keys:
        gone = history[name].isna().to_numpy()
        if gone.any():
            raise ValueError(
                f"column {name!r} of history is missing in {int(gone.sum())} rows; first: row {int(np.argmax(gone))}: "
                "fill it or drop them"
            )
    twice = history.duplicated(keys).to_numpy()
    if twice.any():
        at = int(np.argmax(twice))
        first = ", ".join(f"{name}={history[name].iloc[at]}" for name in keys)
        raise ValueError(
            f"rows of history that repeat a (series, time): {int(twice.sum())}; first: {first}: keep one row of each"
        )


def _histories(frame: pd.DataFrame, history: pd.DataFrame, columns: Columns) -> list[tuple[tuple, Any, pd.DataFrame]]:
    """(key, row numbers in frame, rows of history) of every scored series."""
    needed = [name for name in (columns.id, columns.time) if name is not None]
    missing = [name for name in needed if name not in history]
    if missing:
        raise ValueError(f"column {missing[0]!r} is missing from history: found {list(history.columns)}")
    parts = {} if columns.id is None else dict(iter(history.groupby(columns.id, sort=False, observed=True)))
    if not columns.series:
        return [((None,), np.arange(len(frame)), history)]
    found = []
    several = len(columns.series) > 1  # else a key that is a tuple is an id
    by = columns.series if several else columns.series[0]
    for key, rows in frame.groupby(by, sort=False, observed=True).indices.items():
        key = tuple(key) if several else (key,)  # type: ignore[arg-type]
        if columns.id is not None and key[0] not in parts:
            raise ValueError(f"series {key[0]!r} is not in history: pass the frame that the backtest was given")
        found.append((key, rows, history if columns.id is None else parts[key[0]]))
    return found


def _mean_change(values: np.ndarray, lag: int, power: int) -> np.ndarray:
    """Entry n: mean of |x_t - x_(t-lag)|**power within the first n values; NaN without a pair. (len + 1,)"""
    change = np.zeros(len(values))
    both = np.zeros(len(values), dtype=bool)
    difference = np.abs(values[lag:] - values[:-lag]) if len(values) > lag else np.empty(0)
    both[lag:] = np.isfinite(difference)
    change[lag:] = np.where(both[lag:], difference, 0.0) ** power
    count = np.concatenate([[0], np.cumsum(both)])
    total = np.concatenate([[0.0], np.cumsum(change)])
    return np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)
