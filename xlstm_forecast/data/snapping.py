"""Times that keep no strict step (weeks of 6 to 8 days, months stamped on working days) onto a grid that does."""

from __future__ import annotations

from typing import Any

import numpy as np

from .calendar import TimeAxis
from .columns import Columns, counted, open_frame, require, time_series
from .frame import read_rows
from .roles import Roles

Array = np.ndarray


def snap_times(df: Any, freq: Any, *, id_col: str | None = "unique_id", time_col: str = "ds") -> Any:
    """The frame (pandas or polars) with every time moved to the nearest one on its series' grid of step `freq`.

    The grid of a series runs through the times it has most often ("7D": its commonest weekday), or where `freq` says
    ("W-SUN", "MS"). Steps that no time falls on are left out: read the result with `on_gap="mask"`. Raises ValueError
    where two rows of a series fall on one step, naming them.

    >>> import pandas as pd
    >>> days = pd.to_datetime(["2024-01-07", "2024-01-14", "2024-01-22", "2024-01-28"])
    >>> snap_times(pd.DataFrame({"ds": days, "y": 1.0}), "7D", id_col=None)["ds"].dt.day.tolist()
    [7, 14, 21, 28]
    """
    opened, roles = open_frame(df, Roles(id=id_col, time=time_col, target=("",)))
    require(opened, [name for name in (roles.id, time_col) if name is not None])
    rows = read_rows(Columns(opened), roles, freq, None)
    ticks, axis = rows.ticks(0, len(rows.codes)), rows.axis
    by_series = np.split(np.argsort(rows.codes, kind="stable"), np.cumsum(np.bincount(rows.codes))[:-1])
    phase = np.array([_phase(axis, ticks[own]) for own in by_series])[rows.codes]
    ordinal = axis.split(ticks)[0]
    near = ordinal + np.arange(-1, 2)[:, None]  # (3, rows)
    moved = np.stack([axis.join(o, phase) for o in near])
    chosen = np.abs(moved - ticks).argmin(0)[None]
    step, moved = np.take_along_axis(near, chosen, 0)[0], np.take_along_axis(moved, chosen, 0)[0]
    order = np.lexsort((ticks, step, rows.codes))
    again = np.flatnonzero((np.diff(rows.codes[order]) == 0) & (np.diff(step[order]) == 0))
    if len(again):
        a, b = order[again[0]], order[again[0] + 1]
        count = counted(len(again), "row falls", "rows fall")
        raise ValueError(
            f"{count} on a step of freq={axis.freq.name!r} that another row has; first: {rows.where(int(b))} falls on "
            f"{axis.show(moved[b])}, as {axis.show(ticks[a])} does; aggregate them, or pass another freq="
        )
    return opened.with_columns(time_series(rows.times, axis.stamps(moved)).alias(time_col)).to_native()


def _phase(axis: TimeAxis, ticks: Array) -> int:
    """The commonest phase of a series' times among those on the frequency's own grid; its first one without any."""
    phase = axis.split(ticks)[1]
    regular = phase[axis.regular(phase)]
    if not len(regular):
        return axis.first_phase
    found, count = np.unique(regular, return_counts=True)
    return int(found[count.argmax()])
