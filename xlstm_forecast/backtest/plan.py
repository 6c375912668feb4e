"""Which windows a backtest forecasts, and what each fit may see: arithmetic on row numbers, before anything is fitted.

Rows of a series are counted from its first; the first `origin` rows are what a window's forecast can see, and its
cutoff is the time stamp of the last of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd

from ..data.columns import TimeColumn, Vocabulary, open_frame, require
from ..data.panel import Panel
from ..data.roles import plain
from ..heads import check_levels

Array = np.ndarray
_REFITS = "False, True, every how many windows, or a time stamp to start from"


@dataclass(frozen=True)
class Windows:
    """The windows of a backtest, by series, then cutoff; windows of one group share a fit. n windows."""

    series: Array  # (n,) index in the panel
    origin: Array  # (n,) rows seen
    group: Array  # (n,) from 0, later groups have later cutoffs
    shared: Array | None  # (groups, series) rows seen where all series have the same cutoffs; None: each its own

    @property
    def n_groups(self) -> int:
        return int(self.group.max()) + 1

    def select(self, keep: Array) -> Windows:
        return replace(self, series=self.series[keep], origin=self.origin[keep], group=self.group[keep])


@dataclass(frozen=True)
class Fit:
    """One fit of a backtest and the groups of windows it forecasts; `until` None: the forecaster as it is."""

    until: Array | None  # (series,) rows that the fit sees end here
    since: Array | None  # (series,) and start here
    groups: tuple[int, ...]


def plan_windows(
    panel: Panel, *, n_windows: int, step_size: int | None, horizon: int, cutoffs: Any, align: str, need: int = 1
) -> Windows:
    """The windows asked for; a fit needs `need` rows of the longest series, which advice in errors counts in.

    Raises:
        ValueError: too few rows (says how many windows would do), cutoffs outside the data, no label in some window.
    """
    if cutoffs is None:
        windows = _last_windows(panel, n_windows, horizon if step_size is None else step_size, horizon, align, need)
    elif isinstance(cutoffs, Mapping) or hasattr(cutoffs, "columns"):
        windows = _own_cutoffs(panel, cutoffs)
    else:
        windows = _common_cutoffs(panel, _as_list(cutoffs))
    _check_labels(panel, windows, horizon)
    return windows


def _as_list(cutoffs: Any) -> list[Any]:
    if isinstance(cutoffs, (str, bytes)) or not hasattr(cutoffs, "__iter__"):
        return [cutoffs]
    return list(cutoffs)


def _last_windows(panel: Panel, n_windows: int, step: int, horizon: int, align: str, need: int) -> Windows:
    for name, value in (("n_windows", n_windows), ("step_size", step)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise ValueError(f"{name}={value!r}: it must be an integer of at least 1")
    if align not in ("series", "calendar"):
        raise ValueError(
            f"align={align!r}: 'series' counts back from each series' own end, 'calendar' from the latest one"
        )
    back = horizon + step * np.arange(n_windows - 1, -1, -1)
    if align == "calendar":
        last = panel.times(np.arange(len(panel)), panel.history - 1)
        latest = int(np.argmax(last))
        _check_rows(panel, np.array([latest]), back, horizon, step, need)
        ticks = panel.times(np.full(n_windows, latest), panel.history[latest] - back - 1)
        return _at_ticks(panel, ticks)
    series = np.arange(len(panel))
    _check_rows(panel, series, back, horizon, step, need)
    origin = panel.history[:, None] - back
    shared = origin.T if len(np.unique(panel.times(series, panel.history - 1))) == 1 else None
    return Windows(np.repeat(series, n_windows), origin.ravel(), np.tile(np.arange(n_windows), len(panel)), shared)


def _check_rows(panel: Panel, series: Array, back: Array, horizon: int, step: int, need: int) -> None:
    wanted = int(back[0]) + 1
    short = series[panel.history[series] < wanted]
    if len(short):
        worst = int(short[np.argmin(panel.history[short])])
        rows = int(panel.history[worst])
        fits = max(0, (rows - horizon - need) // step + 1)
        does = f"n_windows={fits} would do" if fits else "use a shorter horizon, or give more rows"
        more = f" ({len(short)} series are too short)" if len(short) > 1 else ""
        raise ValueError(
            f"{panel.name(worst)} has {rows} rows, but {len(back)} windows of {horizon} steps, {step} apart, need "
            f"{wanted}{more}: {does}, or leave the series out"
        )


def planned_levels(forecaster: Any, quantiles: Sequence[float] | None) -> tuple[float, ...]:
    """The levels that a backtest's frame will have, of a forecaster that is fitted or not. Raises ValueError."""
    if hasattr(forecaster, "fitted_until_"):
        return tuple(forecaster._levels(quantiles))
    inner = getattr(forecaster, "forecaster", None)  # of one that is to be calibrated, at its own levels
    if inner is not None:
        known = check_levels(inner.quantiles)
        other = [level for level in check_levels(known if quantiles is None else quantiles) if level not in known]
        if other:
            raise ValueError(f"level {other[0]:g} is not calibrated: choose from {known}, or fit with it")
        return known if quantiles is None else tuple(float(level) for level in quantiles)
    if has_quantiles(forecaster):
        return check_levels(forecaster.quantiles if quantiles is None else quantiles)
    if quantiles is not None:
        raise ValueError("head='point' has no quantiles: use head='quantile', or leave quantiles=None")
    return ()


def has_quantiles(forecaster: Any) -> bool:
    """Whether a forecaster will have bands: all but a network with head="point"."""
    return getattr(forecaster, "head", "quantile") != "point" or getattr(forecaster, "model", None) == "linear"


def rows_needed(forecaster: Any) -> int:
    """The fewest rows of its longest series that a fit needs: of a network a window, of others two times."""
    inner = getattr(forecaster, "forecaster", forecaster)
    trains = getattr(inner, "model", "linear") != "linear"
    return int(inner.horizon) + 1 if trains else 2 if inner.freq is None else 1


def check_fits(panel: Panel, windows: Windows, fits: Sequence[Fit], need: int) -> None:
    """Refuse fits that see too few rows. Raises ValueError naming the cutoff, the rows found and those needed."""
    for fit in fits:
        if fit.until is None or fit.since is None or int((fit.until - fit.since).max()) >= need:
            continue
        mine = windows.group == fit.groups[0]
        cutoff = panel.axis.show(int(panel.times(windows.series[mine], windows.origin[mine] - 1).min()))
        found = int((fit.until - fit.since).max())
        raise ValueError(
            f"the fit at the cutoff {cutoff} sees {found} rows of the longest series, and needs {need}: use fewer "
            "windows, later cutoffs, or a longer span"
        )


def rows_until(panel: Panel, tick: int) -> Array:
    """(series,) how many rows of each series have a time stamp at or before a tick."""
    return panel.rows_before(_later(panel, tick))


def _later(panel: Panel, tick: int) -> Any:
    """The time stamp one tick later, which `rows_before` leaves out itself."""
    return panel.axis.stamps(np.array([tick + 1]))[0]


def _at_ticks(panel: Panel, ticks: Array) -> Windows:
    """A window of every series at every one of the ticks that lies within it."""
    shared = np.stack([rows_until(panel, int(tick)) for tick in ticks])  # (groups, series)
    inside = (shared > 0) & (shared < panel.history)
    group, series = np.nonzero(inside)
    order = np.lexsort((group, series))
    return Windows(series[order], shared[inside][order], group[order], shared)


def _common_cutoffs(panel: Panel, cutoffs: Sequence[Any]) -> Windows:
    if not cutoffs:
        raise ValueError("cutoffs is empty: name at least one time stamp, or leave it out and give n_windows")
    ticks = np.array(sorted({panel.axis.parse(value) for value in cutoffs}), np.int64)
    if len(ticks) < len(cutoffs):
        raise ValueError(f"cutoffs names a time stamp twice: {len(cutoffs)} given, {len(ticks)} different")
    windows = _at_ticks(panel, ticks)
    empty = np.setdiff1d(np.arange(len(ticks)), windows.group)
    if len(empty):
        raise ValueError(f"cutoff {panel.axis.show(int(ticks[empty[0]]))} lies outside the data: {_reach(panel)}")
    return windows


def _reach(panel: Panel) -> str:
    series = np.arange(len(panel))
    first, last = panel.times(series, 0 * series).min(), panel.times(series, panel.history - 1).max()
    return (
        f"rows run from {panel.axis.show(int(first))} to {panel.axis.show(int(last))}, and a cutoff needs one at or "
        "before it and one after it"
    )


def _own_cutoffs(panel: Panel, cutoffs: Any) -> Windows:
    """Cutoffs by series: a mapping from id to time stamps, or a frame with the id column and `cutoff`."""
    pairs = _pairs(panel, cutoffs)
    index = {key: i for i, key in enumerate(panel.keys)}
    found: dict[int, list[int]] = {}
    for key, value in pairs:
        if plain(key) not in index:
            raise ValueError(f"cutoffs names the series {key!r}, which is not in the data")
        series = index[plain(key)]
        origin = int(rows_until(panel, panel.axis.parse(value))[series])
        if not 0 < origin < panel.history[series]:
            where = _reach(panel.select(np.array([series])))
            raise ValueError(f"cutoff {value} of {panel.name(series)} lies outside its rows: {where}")
        found.setdefault(series, []).append(origin)
    most = max(len(origins) for origins in found.values())
    rows = []
    for series, origins in found.items():
        if len(set(origins)) < len(origins):
            raise ValueError(f"cutoffs names a time stamp of {panel.name(series)} twice")
        rows += [(series, origin, most - len(origins) + i) for i, origin in enumerate(sorted(origins))]
    table = np.array(sorted(rows), np.int64)
    return Windows(table[:, 0], table[:, 1], table[:, 2], None)


def _pairs(panel: Panel, cutoffs: Any) -> list[tuple[Any, Any]]:
    if isinstance(cutoffs, Mapping):
        pairs = [(key, value) for key, values in cutoffs.items() for value in _as_list(values)]
    else:
        if panel.roles.id is None:
            raise ValueError("cutoffs by series need an id column (id_col): pass a list of time stamps instead")
        frame, _ = open_frame(cutoffs, panel.roles, "cutoffs")
        require(frame, [panel.roles.id, "cutoff"], "cutoffs")
        pairs = list(zip(frame[panel.roles.id].to_list(), frame["cutoff"].to_list(), strict=True))
    if not pairs:
        raise ValueError("cutoffs is empty: name at least one time stamp of one series")
    return pairs


def _check_labels(panel: Panel, windows: Windows, horizon: int) -> None:
    label = labels(panel, windows, horizon)
    has = np.isfinite(label).any(axis=(1, 2))
    counted = np.bincount(windows.group[has], minlength=windows.n_groups)
    if (counted == 0).any():
        empty = int(np.argmax(counted == 0))
        at = int(np.argmax(windows.group == empty))
        cutoff = panel.axis.show(int(panel.times(windows.series[[at]], windows.origin[[at]] - 1)[0]))
        raise ValueError(
            f"no series has a label in the {horizon} steps after the cutoff {cutoff}: leave this cutoff out, or use "
            "fewer windows"
        )


def labels(panel: Panel, windows: Windows, horizon: int) -> Array:
    """(n, H, V) what the windows are scored against, NaN where missing or after the series' end."""
    row = windows.origin[:, None] + np.arange(horizon)
    inside = row < panel.history[windows.series][:, None]
    flat = np.where(inside, panel.offsets[windows.series][:, None] + row, 0)
    return np.where(inside[..., None], panel.target[flat], np.nan)


def plan_fits(panel: Panel, windows: Windows, refit: Any, span: Any, fitted: bool) -> list[Fit]:
    """The fits in order: refit False, True, every so many groups, or from a time stamp on.

    Raises:
        ValueError: `refit` or `span` is none of what they can be.
    """
    if span != "expanding" and (isinstance(span, bool) or not isinstance(span, (int, np.integer)) or span < 1):
        raise ValueError(f"span={span!r}: 'expanding', or the number of rows of each series that a fit sees at most")
    n = windows.n_groups
    if refit is False and fitted:
        return [Fit(None, None, tuple(range(n)))]
    starts = [0] if refit is False else _starts(panel, windows, refit)
    fits = []
    for start, end in zip(starts, [*starts[1:], n], strict=True):
        until = _until(panel, windows, start)
        since = np.zeros_like(until) if span == "expanding" else np.maximum(until - int(span), 0)
        fits.append(Fit(until, since, tuple(range(start, end))))
    return fits


def _starts(panel: Panel, windows: Windows, refit: Any) -> list[int]:
    n = windows.n_groups
    if isinstance(refit, (bool, int, np.integer)):
        if refit < 1:
            raise ValueError(f"refit={refit!r}: {_REFITS}")
        return list(range(0, n, int(refit)))
    try:
        if refit is None or isinstance(refit, (float, np.floating)) or refit is pd.NaT:
            raise TypeError("neither a whole number nor a time stamp")
        since = panel.axis.parse(refit)
    except (TypeError, ValueError) as error:
        raise ValueError(f"refit={refit!r}: {_REFITS}") from error
    cutoff = panel.times(windows.series, windows.origin - 1)
    first = [int(cutoff[windows.group == g].min()) for g in range(n)]
    return [0, *(g for g in range(1, n) if first[g] >= since)]


def _until(panel: Panel, windows: Windows, group: int) -> Array:
    """(series,) rows known at a group's cutoffs: of a series without a window there, those known at the earliest."""
    if windows.shared is not None:
        return windows.shared[group]
    mine = windows.group == group
    cutoff = panel.times(windows.series[mine], windows.origin[mine] - 1)
    until = rows_until(panel, int(cutoff.min()))
    until[windows.series[mine]] = windows.origin[mine]
    return until


class Rows:
    """Where each row of a frame stands in the panel (series -1: not in it), to cut the frame by row numbers."""

    def __init__(self, panel: Panel, df: Any) -> None:
        self.df = df
        frame, _ = open_frame(df, panel.roles)
        time = TimeColumn.of(frame[panel.roles.time])
        ticks = time.convert(time.ticks(frame[panel.roles.time]), panel.axis.unit)
        self.series = np.zeros(len(frame), np.int64)
        if panel.roles.id is not None:
            vocabulary = Vocabulary()
            codes = vocabulary.codes(frame[panel.roles.id])
            index = {key: i for i, key in enumerate(panel.keys)}
            self.series = np.array([*(index.get(key, -1) for key in vocabulary.index), -1], np.int64)[codes]
        self.row = panel.axis.split(ticks)[0] - panel.start[self.series]

    def cut(self, until: Array, since: Array | None = None) -> Any:
        """The rows from `since` (series,) up to and without `until` of each series, in the caller's kind of frame."""
        keep = self.row < until[self.series]
        if since is not None:
            keep &= self.row >= since[self.series]
        where = np.flatnonzero(keep)
        if hasattr(self.df, "iloc"):
            return self.df.iloc[where]
        return nw.from_native(self.df, eager_only=True)[where].to_native()
