"""`backtest`: forecasts of past windows by a forecaster that could see nothing after each cutoff."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import joblib
import narwhals as nw
import numpy as np
import pandas as pd
import torch
from sklearn.base import clone
from threadpoolctl import threadpool_limits

from ..data.columns import TimeColumn, open_frame, require
from ..data.frame import to_panel
from ..data.panel import Panel, forecast_frame
from ..data.roles import Roles, check_names, plain
from ..metrics import quantile_name
from .folder import Folder, content, fingerprint
from .plan import (
    Fit,
    Rows,
    Windows,
    check_fits,
    labels,
    plan_fits,
    plan_windows,
    planned_levels,
    rows_needed,
)

Array = np.ndarray
_FITTING = threading.RLock()  # torch has one generator per process: fits in threads of one process take turns


@dataclass(frozen=True)
class _Job:
    """One fit, or none, and the windows that it forecasts: all that a worker needs."""

    forecaster: Any
    fit_on: Any  # a frame; None: the forecaster is fitted
    in_place: bool  # fit the forecaster itself, not a copy
    df: Any  # the frame to forecast from
    static_df: Any
    future_df: Any
    vintages: Mapping[int, tuple[Any, Any]]  # group -> (frame up to its cutoffs, known-future columns as known there)
    keys: list[Any]  # ids, in the order of the indices in `windows`
    windows: Windows
    groups: tuple[int, ...]
    quantiles: Sequence[float] | None
    folder: Folder | None
    on_error: str
    fit_options: Mapping[str, Any]


@dataclass(frozen=True)
class _Done:
    group: int
    values: Array | None  # (n, H, V, 1 + Q), the median first
    levels: tuple[float, ...]
    error: str | None


def backtest(
    forecaster: Any,
    df: Any,
    *,
    n_windows: int = 3,
    step_size: int | None = None,
    horizon: int | None = None,
    cutoffs: Any = None,
    align: str = "series",
    refit: Any = False,
    span: int | str = "expanding",
    static_df: Any = None,
    future_df: Any = None,
    quantiles: Sequence[float] | None = None,
    n_jobs: int | None = None,
    folder: Any = None,
    on_error: str = "raise",
    fit_options: Mapping[str, Any] | None = None,
    verbose: bool = False,
) -> Any:
    """Forecast past windows, each from what was known at its cutoff, and put the labels beside the forecasts.

    Returns id, time, `cutoff` (the last time stamp that the forecast could see), label, `forecast`, `q0.1`, ...;
    several targets come long, with their names in `target` and the label in `label`. Labels after a series' end are
    missing.

    Windows: the last `n_windows`, `step_size` steps apart (None: the horizon), counted back from each series' own end
    (`align="series"`) or from the latest one ("calendar": the same cutoffs for all). Or `cutoffs`: time stamps for all
    series, or, by series, a mapping from id to time stamps or a frame with id and `cutoff`. Where series have cutoffs
    of their own, a fit sees each of them up to its own. `horizon` scores fewer steps than the forecaster's.

    Fits: `refit` False forecasts all windows by one fit, in few large batches: the forecaster's own, which is refused
    if it saw rows after the first cutoff, or where it is not fitted yet, that of a copy on the rows up to there. True
    fits a copy per window, an integer every so many windows, a time stamp at the first window and at all from then on.
    `span` is "expanding" or the number of rows before the cutoff that a fit sees. `fit_options` go to `fit`. The
    forecaster that is passed stays as it is.

    `future_df` has the known-future columns after the data's end; or, with a column `cutoff`, those of every window as
    they were known at its cutoff. `n_jobs` fits (None: the forecaster's own number) run at once through joblib: a
    `joblib.parallel_config("dask")` block spreads them over a cluster; each of several fits has one thread, so that its
    bits are the same everywhere.
    In `folder` finished windows are kept, and a killed run goes on from there. `on_error="record"` gives a window
    that fails missing forecasts and its message in a column `error`.

    Raises:
        ValueError: before anything is fitted, where windows, cutoffs or `future_df` do not fit the data.
    """
    prepared = _prepare(
        forecaster,
        df,
        n_windows=n_windows,
        step_size=step_size,
        horizon=horizon,
        cutoffs=cutoffs,
        align=align,
        refit=refit,
        span=span,
        static_df=static_df,
        future_df=future_df,
        quantiles=quantiles,
        folder=folder,
        on_error=on_error,
        fit_options=fit_options,
    )
    n_jobs = getattr(forecaster, "n_jobs", None) if n_jobs is None else n_jobs
    done = list(_progress(_run_all(prepared.jobs, n_jobs), prepared.windows.n_groups, verbose))
    return prepared.frame(done)


def fit_and_backtest(forecaster: Any, df: Any, **options: Any) -> Any:
    """`backtest` with one fit, of the forecaster itself where it is not fitted yet; options as there, but n_jobs."""
    prepared = _prepare(forecaster, df, in_place=True, **options)
    return prepared.frame(list(_run(prepared.jobs[0])))


def iterate(forecaster: Any, df: Any, **options: Any) -> Iterator[Any]:
    """`backtest` fit by fit: the frame of each fit's windows as soon as it is done; options as there, but n_jobs."""
    prepared = _prepare(forecaster, df, **options)
    for job in prepared.jobs:
        yield prepared.frame(_run_list(job), job.groups)


def check(forecaster: Any, df: Any, **options: Any) -> None:
    """Raise what `backtest` would raise before anything is fitted; options as there, but n_jobs and folder."""
    _prepare(forecaster, df, **options)


@dataclass(frozen=True)
class _Prepared:
    """A backtest that is checked and ready to run."""

    panel: Panel
    windows: Windows
    steps: int
    jobs: list[_Job]
    on_error: str

    def frame(self, done: Sequence[_Done], groups: Sequence[int] | None = None) -> Any:
        """The tidy frame of finished windows: of all groups, or of some."""
        windows = self.windows
        if groups is not None:
            windows = windows.select(np.isin(windows.group, groups))
        return _assemble(self.panel, windows, self.steps, done, self.on_error)


def _prepare(
    forecaster: Any,
    df: Any,
    *,
    n_windows: int = 3,
    step_size: int | None = None,
    horizon: int | None = None,
    cutoffs: Any = None,
    align: str = "series",
    refit: Any = False,
    span: int | str = "expanding",
    static_df: Any = None,
    future_df: Any = None,
    quantiles: Sequence[float] | None = None,
    folder: Any = None,
    on_error: str = "raise",
    fit_options: Mapping[str, Any] | None = None,
    in_place: bool = False,
) -> _Prepared:
    """Plan and check everything; nothing is fitted."""
    if on_error not in ("raise", "record"):
        raise ValueError(f"on_error={on_error!r}: 'raise', or 'record' to go on and name the error in a column")
    steps = _horizon(forecaster, horizon)
    panel = plan_panel(forecaster, df)
    refit = bool(refit) if isinstance(refit, np.bool_) else refit
    levels = planned_levels(forecaster, quantiles)
    check_names(panel.roles, [*map(quantile_name, levels), *(["error"] if on_error == "record" else [])])
    asked = {"n_windows": n_windows, "step_size": step_size, "horizon": steps, "cutoffs": cutoffs, "align": align}
    windows, fits = _plan(forecaster, panel, refit, span, asked)
    if fits[0].until is None:
        _check_not_ahead(forecaster, panel, windows)
    rows = Rows(panel, df)
    given = future_df
    futures, future_df = _futures(panel, windows, future_df)
    _check_future(forecaster, panel, windows, futures, future_df)
    knows = forecaster if fits[0].until is None else clone(forecaster)
    plan = [(windows.series, windows.origin, windows.group), [(f.until, f.since, f.groups) for f in fits]]
    kept = _open_folder(folder, knows, (df, static_df, given), (plan, levels, dict(fit_options or {})))
    shared: dict[str, Any] = {
        "forecaster": forecaster, "in_place": in_place, "static_df": static_df, "future_df": future_df,
        "keys": panel.keys, "quantiles": quantiles, "folder": kept, "on_error": on_error,
        "fit_options": dict(fit_options or {}),
    }  # fmt: skip
    whole = df if future_df is not None else None
    jobs = [
        _Job(**shared, **_share(fit, panel, windows, rows, futures, int(forecaster.horizon), whole)) for fit in fits
    ]
    return _Prepared(panel, windows, steps, jobs, on_error)


def _share(
    fit: Fit, panel: Panel, windows: Windows, rows: Rows, futures: Mapping[int, Any], ahead: int, whole: Any
) -> dict[str, Any]:
    """What one fit reads and forecasts; whole: the frame that its windows are forecast from, None: cut to them."""
    return {
        "fit_on": None if fit.until is None else rows.cut(fit.until, fit.since),
        "df": rows.cut(_reach(panel, windows, fit.groups, ahead)) if whole is None else whole,
        "vintages": {g: (rows.cut(_reach(panel, windows, (g,), 0)), futures[g]) for g in fit.groups if g in futures},
        "windows": windows.select(np.isin(windows.group, fit.groups)),
        "groups": fit.groups,
    }


def _plan(
    forecaster: Any, panel: Panel, refit: Any, span: int | str, asked: Mapping[str, Any]
) -> tuple[Windows, list[Fit]]:
    """The windows and the fits, which see enough rows."""
    fitted = hasattr(forecaster, "fitted_until_")
    need = 1 if fitted and refit is False else rows_needed(forecaster)
    windows = plan_windows(panel, need=need, **asked)
    fits = plan_fits(panel, windows, refit, span, fitted)
    check_fits(panel, windows, fits, need)
    return windows, fits


def _horizon(forecaster: Any, horizon: int | None) -> int:
    own = int(forecaster.horizon)
    if horizon is None:
        return own
    if isinstance(horizon, bool) or not isinstance(horizon, (int, np.integer)) or not 1 <= horizon <= own:
        raise ValueError(f"horizon={horizon!r}: the forecaster reaches from 1 to {own} steps ahead")
    return int(horizon)


def plan_panel(forecaster: Any, df: Any) -> Panel:
    """Times and targets of the frame: what the windows are planned on, and their labels."""
    target = forecaster.target_col
    roles = Roles(
        id=forecaster.id_col, time=forecaster.time_col, target=(target,) if isinstance(target, str) else tuple(target)
    )
    return to_panel(df, roles, freq=forecaster.freq, on_gap=getattr(forecaster, "on_gap", "error"))


def _check_not_ahead(forecaster: Any, panel: Panel, windows: Windows) -> None:
    """Refuse a forecaster that was fitted on rows after the first cutoff: of each series, where it still knows them."""
    first = panel.times(windows.series, windows.origin - 1)
    until = np.full(len(panel), int(forecaster.fitted_until_), np.int64)
    ends = dict(getattr(forecaster, "ends_", ()))
    if ends and windows.shared is None:
        least = np.iinfo(np.int64).min
        until = np.array([ends.get(key, least) for key in panel.keys], np.int64)
    ahead = until[windows.series] > first
    if ahead.any():
        at = int(np.argmin(np.where(ahead, first, np.iinfo(np.int64).max)))
        raise ValueError(
            f"the forecaster was fitted on data up to {panel.axis.show(int(until[windows.series[at]]))}, after the "
            f"cutoff {panel.axis.show(int(first[at]))}: fit it on the rows up to that cutoff, pass refit=True, or pass "
            "an unfitted one"
        )


def _futures(panel: Panel, windows: Windows, future_df: Any) -> tuple[dict[int, Any], Any]:
    """A `future_df` with a cutoff column, by group of windows; one without it as it is.

    Raises ValueError for rows that reach back to their cutoff or before it.
    """
    if future_df is None:
        return {}, None
    frame, _ = open_frame(future_df, panel.roles, "future_df")
    if "cutoff" not in frame.columns:
        return {}, future_df
    require(frame, [name for name in (panel.roles.id, panel.roles.time) if name is not None], "future_df")
    cutoff, time = (
        column.convert(column.ticks(frame[name]), panel.axis.unit)
        for name in ("cutoff", panel.roles.time)
        for column in [TimeColumn.of(frame[name])]
    )
    early = np.flatnonzero(time <= cutoff)
    if len(early):
        raise ValueError(
            f"future_df overlaps the past: {len(early)} rows lie at or before their cutoff; first: row {early[0]}, "
            f"{panel.roles.time}={panel.axis.show(int(time[early[0]]))}: give the rows after each cutoff only"
        )
    index = {key: i for i, key in enumerate(panel.keys)}
    ids = (
        [0] * len(frame)
        if panel.roles.id is None
        else [index.get(plain(v), -1) for v in frame[panel.roles.id].to_list()]
    )
    own = np.asarray(ids)
    at = panel.times(windows.series, windows.origin - 1)
    parts = {}
    bare = frame.drop("cutoff")
    for group in range(windows.n_groups):
        mine = windows.group == group
        expected = np.full(len(panel) + 1, np.iinfo(np.int64).min)
        expected[windows.series[mine]] = at[mine]
        parts[group] = bare[np.flatnonzero(cutoff == expected[own])].to_native()
    return parts, None


def _check_future(forecaster: Any, panel: Panel, windows: Windows, futures: Mapping[int, Any], future_df: Any) -> None:
    """Refuse a `future_df` that repeats rows of the data, and windows whose known-future columns nobody gave."""
    wanted = tuple(getattr(forecaster, "future", ()))
    if not wanted or futures:
        return
    if future_df is not None:
        own = Rows(panel, future_df)
        twice = np.flatnonzero((own.series >= 0) & (own.row < panel.history[own.series]))
        if len(twice):
            series, row = int(own.series[twice[0]]), int(own.row[twice[0]])
            when = panel.axis.show(int(panel.times(np.array([series]), np.array([row]))[0]))
            raise ValueError(
                f"future_df overlaps the data in {len(twice)} rows; first: {panel.name(series)}, "
                f"{panel.roles.time}={when}: give the rows after the data's end only, or add a column `cutoff`"
            )
        return
    reach = windows.origin + int(forecaster.horizon) - panel.history[windows.series]
    if (reach > 0).any():
        worst = int(np.argmax(reach))
        raise ValueError(
            f"a window of {panel.name(int(windows.series[worst]))} reaches {int(reach[worst])} steps beyond its last "
            f"row, where {list(wanted)} must be known: pass future_df, or leave the last cutoffs out"
        )


def _open_folder(folder: Any, forecaster: Any, frames: Sequence[Any], plan: tuple[Any, ...]) -> Folder | None:
    """The folder of this backtest, by the content of its frames, what the forecaster knows, and the windows."""
    if folder is None:
        return None
    return Folder(folder, fingerprint((forecaster, [content(frame) for frame in frames], plan)))


def _reach(panel: Panel, windows: Windows, groups: Sequence[int], ahead: int) -> Array:
    """(series,) the row up to which the windows of some groups reach, `ahead` steps of their horizon included."""
    reach = np.zeros(len(panel), np.int64)
    mine = np.isin(windows.group, groups)
    np.maximum.at(reach, windows.series[mine], windows.origin[mine] + ahead)
    return reach


# --- running: in this process, or in a worker


def _run_all(jobs: Sequence[_Job], n_jobs: int | None) -> Iterator[_Done]:
    if len(jobs) == 1:
        yield from _run(jobs[0])
        return
    n_jobs = None if n_jobs == 1 else n_jobs  # None leaves it to joblib.parallel_config, which says 1 by itself
    backend, _ = joblib.parallel.get_active_backend()
    returned = "generator_unordered" if backend.supports_return_generator else "list"
    pool = joblib.Parallel(n_jobs=n_jobs, return_as=returned)
    for done in pool(joblib.delayed(_run_list)(job) for job in jobs):
        yield from done


def _run_list(job: _Job) -> list[_Done]:
    with _one_thread():
        return list(_run(job))


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread for torch and BLAS: sums then have one order, and a fit the same bits in every process and machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)


def _run(job: _Job) -> Iterator[_Done]:
    """Fit, where the job says so, and forecast its groups of windows, those in the folder excepted."""
    todo = []
    for group in job.groups:
        stored = None if job.folder is None else job.folder.read(group)
        if stored is None:
            todo.append(group)
        else:
            yield _Done(group, stored["values"], tuple(stored["levels"].tolist()), None)
    if not todo:
        return
    try:
        forecaster = job.forecaster
        if job.fit_on is not None:
            forecaster = forecaster if job.in_place else clone(forecaster)
            with _FITTING:
                forecaster.fit(job.fit_on, static_df=job.static_df, **{"verbose": False, **job.fit_options})
        levels = tuple(forecaster._levels(job.quantiles))
        panel = None if job.vintages else _panel(forecaster, job.df, job.static_df, job.future_df)
    except Exception as error:
        if job.on_error == "raise":
            raise
        yield from (_Done(group, None, (), _say(error)) for group in todo)
        return
    if job.folder is None and job.on_error == "raise" and panel is not None:
        values = _forecast(forecaster, panel, job, job.windows, levels)
        yield from (_Done(group, values[job.windows.group == group], levels, None) for group in todo)
        return
    for group in todo:
        yield _run_group(forecaster, panel, job, group, levels)


def _run_group(forecaster: Any, panel: Panel | None, job: _Job, group: int, levels: tuple[float, ...]) -> _Done:
    windows = job.windows.select(job.windows.group == group)
    try:
        if panel is None:
            df, future_df = job.vintages[group]
            panel = _panel(forecaster, df, job.static_df, future_df)
        values = _forecast(forecaster, panel, job, windows, levels)
    except Exception as error:
        if job.on_error == "raise":
            raise
        return _Done(group, None, (), _say(error))
    if job.folder is not None:
        job.folder.keep(group, values=values, levels=np.array(levels))
    return _Done(group, values, levels, None)


def _say(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _panel(forecaster: Any, df: Any, static_df: Any, future_df: Any) -> Panel:
    panel = forecaster._to_panel(df, static_df)
    return panel if future_df is None else panel.with_future(future_df, int(forecaster.horizon))


def _forecast(forecaster: Any, panel: Panel, job: _Job, windows: Windows, levels: tuple[float, ...]) -> Array:
    """(n, H, V, 1 + Q) forecasts of windows, the median first; the panel may hold the series in another order."""
    place = {key: i for i, key in enumerate(panel.keys)}
    index = np.array([place.get(key, -1) for key in job.keys], np.int64)
    return np.asarray(forecaster._forecast(panel, index[windows.series], windows.origin, (0.5, *levels)))


def _progress(done: Iterable[_Done], total: int, verbose: bool) -> Iterable[_Done]:
    if not verbose:
        return done
    from tqdm.auto import tqdm

    return tqdm(done, total=total, desc="backtest", unit="window")


def _assemble(panel: Panel, windows: Windows, steps: int, done: Sequence[_Done], on_error: str) -> Any:
    """The tidy frame of all windows, their labels beside them."""
    levels = next((part.levels for part in done if part.values is not None), ())
    variates = panel.target.shape[1]
    values = np.full((len(windows.series), steps, variates, 1 + len(levels)), np.nan)
    errors = np.full(len(windows.series), None, object)
    for part in done:
        mine = windows.group == part.group
        if part.values is not None:
            values[mine] = part.values[:, :steps]
        errors[mine] = part.error
    label = panel.roles.target[0] if variates == 1 else "label"
    columns = {label: labels(panel, windows, steps), "forecast": values[..., 0]}
    columns |= {quantile_name(level): values[..., 1 + i] for i, level in enumerate(levels)}
    frame = forecast_frame(panel, windows.series, windows.origin, columns, cutoff=True)
    if on_error == "raise":
        return frame
    texts = np.repeat(errors, steps * variates)
    if isinstance(frame, pd.DataFrame):
        return frame.assign(error=pd.Series(texts, dtype=object))
    wrapped = nw.from_native(frame, eager_only=True)
    return wrapped.with_columns(
        nw.new_series("error", texts.tolist(), nw.String, backend=wrapped.implementation)
    ).to_native()
