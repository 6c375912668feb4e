"""The tidy forecast frame: which column plays which part, and the way from and to the caller's kind of frame."""

from __future__ import annotations

from collections.abc import Mapping
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


def _distance(time: pd.Series, cutoff: pd.Series, window: np.ndarray) -> np.ndarray | None:
    """Steps from the cutoffs to the times, None where they lie on no common calendar. (n,)"""
    if not len(time):
        return np.empty(0, np.int64)
    try:
        kinds = [TimeColumn.of(nw.from_native(part, series_only=True)) for part in (time, cutoff)]
        t, start = (k.ticks(nw.from_native(p, series_only=True)) for k, p in zip(kinds, (time, cutoff), strict=True))
        kind, start = kinds[0], kinds[1].convert(start, kinds[0].unit)
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


def common_rows(frames: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """The frames cut to the (series, time, cutoff) that each of them has with a forecast, sorted alike.

    Raises:
        ValueError: their key columns differ, or nothing is left.
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
    shared: pd.DataFrame | None = None
    for table in tables.values():
        kept = table.loc[table["forecast"].notna(), first]
        shared = kept if shared is None else shared.merge(kept, on=first)
    assert shared is not None
    if shared.empty:
        raise ValueError(f"the models {list(frames)} have no (series, time, cutoff) in common: backtest them alike")
    return {
        name: shared.merge(table, on=first)[table.columns].sort_values(first, ignore_index=True)
        for name, table in tables.items()
    }


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
