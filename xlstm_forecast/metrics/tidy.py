"""The tidy forecast frame: which column plays which part, and the way from and to the caller's kind of frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd

from ..data.calendar import Frequency, TimeAxis, infer_frequency
from ..data.columns import TimeColumn


@dataclass(frozen=True)
class Columns:
    """Which column of a tidy frame plays which part; `levels` are the quantile levels, ascending."""

    id: str | None
    time: str
    target: str | None
    label: str
    levels: tuple[float, ...]

    @property
    def quantiles(self) -> list[str]:
        return [quantile_name(level) for level in self.levels]

    @property
    def series(self) -> list[str]:
        """The columns that tell one scored series from another: id and target, where they exist."""
        return [name for name in (self.id, self.target) if name is not None]

    @property
    def bands(self) -> list[tuple[float, float, float]]:
        """(nominal coverage, lower level, upper level) of every central band, narrowest first."""
        upper = {round(level, 9): level for level in self.levels}
        found = [(lo, upper.get(round(1 - lo, 9))) for lo in self.levels if lo < 0.5]
        return sorted((round(hi - lo, 9), lo, hi) for lo, hi in found if hi is not None)


def quantile_name(level: float) -> str:
    """The name of a level's column: `q0.1`, `q0.025`."""
    return f"q{level:g}"


def band_name(metric: str, coverage: float) -> str:
    """The column of a metric of the central band of that nominal coverage: `coverage80`, `msis95`."""
    return f"{metric}{100 * coverage:g}"


def as_pandas(frame: Any, name: str = "frame") -> pd.DataFrame:
    """The frame as pandas, itself if it is; polars and other eager frames through narwhals, column by column.

    Dates that Arrow holds become pandas' own.
    """
    if isinstance(frame, pd.DataFrame):
        arrow = [name for name, kind in frame.dtypes.items() if isinstance(kind, pd.ArrowDtype)]
        return frame.assign(**{name: _own_dates(frame[name]) for name in arrow}) if arrow else frame
    try:
        wrapped = nw.from_native(frame, eager_only=True)
    except TypeError as error:
        raise TypeError(
            f"{name} must be a pandas or polars DataFrame, got {type(frame).__name__}: pass a frame in long format"
        ) from error
    columns = {}
    for key in wrapped.columns:
        column = wrapped[key]
        zone = getattr(column.dtype, "time_zone", None)
        plain = column.dtype.is_numeric() or isinstance(column.dtype, (nw.Datetime, nw.Date, nw.Duration, nw.Boolean))
        if isinstance(column.dtype, nw.Date):
            column = column.cast(nw.Datetime("us"))
        values = pd.Series(column.to_numpy() if plain else column.to_list())
        columns[key] = values if zone is None else values.dt.tz_localize("UTC").dt.tz_convert(zone)
    return pd.DataFrame(columns)


def history_frame(history: Any, columns: Columns) -> pd.DataFrame:
    """The history as pandas; a Series, with its times in the index, as the label of a single series."""
    if isinstance(history, pd.Series):
        return pd.DataFrame({columns.time: history.index, columns.label: history.array})
    return as_pandas(history, "history")


def _own_dates(column: pd.Series) -> pd.Series:
    """A column held by Arrow: with pandas' own type if it is one of dates."""
    kind = str(column.dtype.pyarrow_dtype)
    if kind.startswith("date"):
        return column.astype("datetime64[s]")
    if not kind.startswith("timestamp"):
        return column
    zone, unit = column.dt.tz, column.dt.unit
    return column.astype(f"datetime64[{unit}]" if zone is None else pd.DatetimeTZDtype(unit, zone))


def like(frame: pd.DataFrame, example: Any) -> Any:
    """A pandas frame as the kind of frame that `example` is."""
    if isinstance(example, (pd.DataFrame, pd.Series)):
        return frame
    backend = nw.from_native(example, eager_only=True).implementation
    columns: dict[str, Any] = {}
    zones = {}
    for key in frame.columns:
        column = frame[key]
        if isinstance(column.dtype, pd.DatetimeTZDtype):
            zones[key] = str(column.dt.tz)
            column = column.dt.tz_convert("UTC").dt.tz_localize(None)
        numeric = column.dtype.kind in "iufbM"
        columns[str(key)] = column.to_numpy() if numeric else column.astype(object).to_list()
    made = nw.from_dict(columns, backend=backend)
    for key, zone in zones.items():
        made = made.with_columns(nw.col(key).dt.replace_time_zone("UTC").dt.convert_time_zone(zone))
    return made.to_native()


def columns_of(frame: pd.DataFrame, *, label: bool = True) -> Columns:
    """Read the parts of a tidy frame from its order of columns: [id,] time, cutoff, [target,] label, forecast, q....

    Raises:
        ValueError: `cutoff` or `forecast` is missing, or the order is another.
    """
    names = [str(name) for name in frame.columns]
    for needed in ("cutoff", "forecast"):
        if needed not in names:
            raise ValueError(
                f"column {needed!r} is missing: found {names}; pass a frame as `backtest` returns it "
                "([id,] time, cutoff, [target,] label, forecast, quantiles)"
            )
    before, after = names[: names.index("cutoff")], names[names.index("cutoff") + 1 : names.index("forecast")]
    target = "target" if "target" in after and len(after) > 1 else None
    labels = [name for name in after if name != target]
    if len(before) not in (1, 2) or len(labels) != 1:
        raise ValueError(
            f"columns are in another order than [id,] time, cutoff, [target,] label, forecast, quantiles: found {names}"
        )
    levels = []
    for name in names[names.index("forecast") + 1 :]:
        if name.startswith("q"):
            try:
                levels.append(float(name[1:]))
            except ValueError:
                continue
    return Columns(before[0] if len(before) == 2 else None, before[-1], target, labels[0], tuple(sorted(levels)))


def steps(frame: pd.DataFrame, columns: Columns) -> np.ndarray:
    """The horizon step of every row, 1 for the first after the cutoff: its distance on the time axis. (n,)

    The axis' step is read from the frame: integers count in the smallest distance, dates in the calendar's. Where no
    calendar fits, steps are ranks within the window.

    Raises:
        ValueError: no calendar fits, and windows have lost rows, so that ranks would be too small.
    """
    groups = frame.groupby([*columns.series, "cutoff"], sort=False)
    window = groups.ngroup().to_numpy()
    found = _distance(frame[columns.time], frame["cutoff"], window)
    if found is not None:
        return found
    ranks = groups[columns.time].rank(method="dense").to_numpy().astype(np.int64)
    last = groups[columns.time].transform("nunique").to_numpy()
    if len(last) and last.min() < last.max():
        raise ValueError(
            f"the steps of the rows are not clear: windows have from {last.min()} to {last.max()} rows, and the times "
            f"in {columns.time!r} follow no calendar; keep all rows of each window (those without a label do not count)"
        )
    return ranks


def sure_steps(frame: pd.DataFrame, columns: Columns, history: Any = None) -> np.ndarray:
    """`steps`, counted at the frequency of `history` where that is given and clear. (n,)

    Without it the frame's own distances must tell how long a step is. They do where all steps from the first on are
    there, and no row is known to be gone: the index of a pandas frame shows that, if rows were selected from it.

    Raises:
        ValueError: rows are gone, so that it is not clear whether a step is the distance of those that are left.
    """
    freq = None if history is None else _frequency(history_frame(history, columns), columns)
    if freq is not None:
        found = _distance(frame[columns.time], frame["cutoff"], np.zeros(len(frame), np.int64), freq)
        if found is not None:
            return found
    found = steps(frame, columns)
    numbers = np.unique(found)
    whole = _neighbours(frame, columns)
    if whole is None:
        whole = np.array_equal(numbers, np.arange(1, len(numbers) + 1))
    if not whole:
        raise ValueError(
            f"the steps of the rows are not clear: rows of the frame are gone, and the times in {columns.time!r} that "
            f"are left do not tell how long a step is (they would be numbered {', '.join(map(str, numbers[:5]))}"
            f"{', ...' if len(numbers) > 5 else ''}); pass history=, the frame that was forecast, or score the whole "
            "frame by step and select from its scores"
        )
    return found


def _neighbours(frame: pd.DataFrame, columns: Columns) -> bool | None:
    """Whether rows are left that followed each other, a step apart, in the frame that these were selected from.

    None where the index does not show that rows were selected.
    """
    if frame.index.dtype.kind not in "iu" or not frame.index.is_unique:
        return None
    order = np.argsort(frame.index.to_numpy())
    label = frame.index.to_numpy()[order]
    if np.array_equal(label, np.arange(len(label))):
        return None
    time, cutoff = (frame[name].iloc[order].reset_index(drop=True) for name in (columns.time, "cutoff"))
    moved = (time != time.shift()) | (cutoff != cutoff.shift())
    return bool((moved.to_numpy(dtype=bool)[1:] & (np.diff(label) == 1)).any())


def _frequency(history: pd.DataFrame, columns: Columns) -> Frequency | None:
    """The frequency of the history's times, None where it is not clear."""
    keys = [name for name in (columns.id, columns.time) if name is not None]
    if any(name not in history for name in keys):
        return None
    history = history[keys].dropna()
    series = history.groupby(columns.id, observed=True).ngroup().to_numpy() if columns.id else np.zeros(len(history))
    try:
        time = nw.from_native(history[columns.time], series_only=True)
        kind = TimeColumn.of(time)
        if kind.kind == "period":
            return Frequency.of_periods(kind.period)
        t = kind.ticks(time)
        order = np.lexsort((t, series))
        return infer_frequency(partial(_axis, kind), t[order], series[order], columns.time)
    except (TypeError, ValueError):
        return None


def _distance(
    time: pd.Series, cutoff: pd.Series, window: np.ndarray, freq: Frequency | None = None
) -> np.ndarray | None:
    """Steps from the cutoffs to the times, None where they lie on no common calendar. (n,)

    `freq` None: the one of the times and cutoffs themselves.
    """
    if not len(time):
        return np.empty(0, np.int64)
    try:
        kinds = [TimeColumn.of(nw.from_native(part, series_only=True)) for part in (time, cutoff)]
        t, start = (k.ticks(nw.from_native(p, series_only=True)) for k, p in zip(kinds, (time, cutoff), strict=True))
        kind, start = kinds[0], kinds[1].convert(start, kinds[0].unit)
        if freq is not None:
            return _counted(_axis(kind, freq), t, start)
        order = np.lexsort((np.r_[t, start], np.r_[window, window]))
        both, owner = np.r_[t, start][order], np.r_[window, window][order]
        gap = np.diff(both)[(np.diff(owner) == 0) & (np.diff(both) > 0)]
        if kind.kind in ("int", "period"):
            unit = int(gap.min())
            step = np.where((t - start) % unit == 0, (t - start) // unit, 0)
        else:
            make = partial(_axis, kind)
            axis = make(infer_frequency(make, both, owner, str(time.name)))
            step = axis.split(t)[0] - axis.split(start)[0]
    except (TypeError, ValueError):
        return None
    return step if step.min() >= 1 else None


def _counted(axis: TimeAxis, t: np.ndarray, start: np.ndarray) -> np.ndarray | None:
    """Steps of the axis from start to t, None where one of them is not on the other's grid, or not before it. (n,)"""
    (last, phase), (first, own) = axis.split(t), axis.split(start)
    step = last - first
    return step if step.min() >= 1 and (axis.shifting or np.array_equal(phase, own)) else None


def _axis(column: TimeColumn, freq: Frequency) -> TimeAxis:
    return TimeAxis(kind=column.kind, freq=freq, unit=column.unit, tz=column.tz, period=column.period)


def check_unique(frame: pd.DataFrame, columns: Columns) -> None:
    """Raise ValueError where a (series, time, cutoff) has several rows."""
    keys = [*columns.series, columns.time, "cutoff"]
    twice = frame.duplicated(keys).to_numpy()
    if twice.any():
        first = ", ".join(f"{name}={frame[name].iloc[int(np.argmax(twice))]}" for name in keys)
        raise ValueError(
            f"{int(twice.sum())} rows repeat a (series, time, cutoff); first: {first}: keep one row of each, and score "
            "the frames of several models one by one"
        )


def common_rows(frames: Mapping[str, Any], levels: Sequence[float] = ()) -> dict[str, pd.DataFrame]:
    """The frames cut to the (series, time, cutoff) that each of them has with a forecast, sorted alike.

    The forecast, and the quantiles of the `levels` asked for, must be finite in each. A label that some frames have and
    others lack takes its row away; rows without a label in any frame stay.

    Raises:
        ValueError: their key columns differ, a frame lacks one of the levels or repeats a row, or nothing is left.
    """
    tables = {name: as_pandas(frame, name) for name, frame in frames.items()}
    columns = {name: columns_of(table) for name, table in tables.items()}
    empty = next((name for name, table in tables.items() if table.empty), None)
    if empty is not None:
        raise ValueError(f"the frame of model {empty!r} has no rows: pass its backtest")
    keys = {name: [*c.series, c.time, "cutoff"] for name, c in columns.items()}
    first = next(iter(keys.values()))
    for name, key in keys.items():
        if key != first:
            raise ValueError(f"model {name!r} has the key columns {key}, others have {first}: name columns alike")
    needed = ["forecast", *map(quantile_name, levels)]
    shared: pd.DataFrame | None = None
    for name, table in tables.items():
        check_unique(table, columns[name])
        lacking = [column for column in needed if column not in table]
        if lacking:
            raise ValueError(f"model {name!r} has no column {lacking[0]!r}: found {columns[name].quantiles}")
        kept = table.loc[_finite(table, needed).all(axis=1), first]
        if kept.empty:
            raise ValueError(
                f"no row of model {name!r} is finite in {needed}: leave the model out, or see why it forecast nothing"
            )
        shared = kept if shared is None else shared.merge(kept, on=first)
    assert shared is not None
    if shared.empty:
        raise ValueError(
            f"the models {list(frames)} have no (series, time, cutoff) in common where each is finite in {needed}: "
            "backtest them alike"
        )
    cut = {
        name: shared.merge(table, on=first)[table.columns].sort_values(first, ignore_index=True)
        for name, table in tables.items()
    }
    labelled = np.hstack([_finite(table, [columns[name].label]) for name, table in cut.items()])
    alike = labelled.all(axis=1) | ~labelled.any(axis=1)
    return cut if alike.all() else {name: table[alike].reset_index(drop=True) for name, table in cut.items()}


def _finite(table: pd.DataFrame, names: list[str]) -> np.ndarray:
    """Whether the values of some columns are finite. (n, len(names))"""
    return np.isfinite(table[names].to_numpy(dtype=np.float64, na_value=np.nan))


def to_utilsforecast(frame: Any) -> Any:
    """The frame with the columns that `utilsforecast.evaluation.evaluate(models=["forecast"], level=[80])` reads.

    Central bands become `forecast-lo-80` and `forecast-hi-80`; levels without a partner are left out; id, time, cutoff
    and label keep their names (pass them on as id_col, time_col, target_col).

    Raises:
        ValueError: several targets (evaluate them one by one), or not a tidy frame.
    """
    table = as_pandas(frame)
    columns = columns_of(table)
    if columns.target is not None:
        raise ValueError("the frame holds several targets: select one, as frame[frame['target'] == name], and drop it")
    names: dict[str, str] = {}
    for nominal, lo, hi in columns.bands:
        names |= {
            quantile_name(lo): f"forecast-lo-{100 * nominal:g}",
            quantile_name(hi): f"forecast-hi-{100 * nominal:g}",
        }
    keep = [*columns.series, columns.time, "cutoff", columns.label, "forecast", *names]
    return like(table[keep].rename(columns=names), frame)
