"""From a long frame to a `Panel`: checks, the time grid, the filling of the columns, and what is learnt on the way."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import narwhals as nw
import numpy as np

from .calendar import Frequency, TimeAxis, infer_frequency, parse_frequency, settle
from .columns import (
    Columns,
    TimeColumn,
    Vocabulary,
    chunks,
    counted,
    floats,
    is_missing,
    numeric,
    open_frame,
    part,
    require,
    take,
)
from .grid import Grid, Learner, bad_values, check_observed, ordinals
from .panel import Panel, forecast_frame, frame_of, future_times
from .roles import Encoding, Roles, ordered, plain

__all__ = ["Encoding", "Panel", "Roles", "forecast_frame", "frame_of", "future_times", "to_panel"]

Array = np.ndarray

_SAMPLED_SERIES = 64
_SAMPLED_ROWS = 500_000


def to_panel(
    df: Any,
    roles: Roles,
    *,
    freq: Any = None,
    on_gap: str = "error",
    static_df: Any = None,
    encoding: Encoding | None = None,
) -> Panel:
    """Read a long frame (pandas or polars), or a pandas Series with its times in the index.

    `freq` None: inferred. `on_gap` "mask" turns missing time steps into missing values, "error" refuses them;
    known-future reals carry on over such a gap. `encoding` is that of an earlier panel: categories it does not know get
    index 0, series it does not know index -1. The frame is left as it is. Raises ValueError naming column, series and
    remedy.
    """
    if on_gap not in ("error", "mask"):
        raise ValueError(f"on_gap={on_gap!r} is neither 'error' nor 'mask'")
    opened, roles = open_frame(df, roles)
    inside = [c for c in roles.columns if static_df is None or c not in roles.static]
    require(opened, inside)
    frame = Columns(opened)
    _check_types(frame, roles, inside)
    rows = read_rows(frame, roles, freq, encoding)
    grid, position = _place(rows, on_gap)
    learner = Learner(encoding)
    columns = _fill_rows(rows, grid, position, learner)
    static = _fill_static(rows, static_df, learner)
    check_observed(roles.target, grid, columns["target"], rows.name)
    known = learner.encoding(rows.axis, rows.keys)
    index = {key: i for i, key in enumerate(known.ids)}
    return Panel(
        roles=roles,
        encoding=known,
        axis=rows.axis,
        ids=rows.ids,
        keys=rows.keys,
        series=np.array([index.get(key, -1) for key in rows.keys], np.int64),
        offsets=grid.offsets,
        start=grid.start,
        phase=grid.phase,
        history=np.diff(grid.offsets),
        time_template=frame[roles.time].head(0),
        **columns,
        **static,
    )


@dataclass
class _Rows:
    frame: Columns
    roles: Roles
    times: nw.Series
    time: TimeColumn
    axis: TimeAxis
    codes: Array  # (rows,) int32, series in sorted order
    first: Array  # (n,) int64, a row of each series: its first in the frame
    keys: list[Any]
    ids: nw.Series | None

    def ticks(self, a: int, b: int) -> Array:
        return self.time.ticks(part(self.times, a, b))

    def name(self, series: int) -> str:
        return "the series" if self.roles.id is None else f"{self.roles.id}={self.keys[series]!r}"

    def where(self, row: int, after: int = 0) -> str:
        """A row of the frame for a message: its number, series and time."""
        row += after
        time = self.axis.show(int(self.ticks(row, row + 1)[0]))
        return f"row {row} ({self.name(int(self.codes[row]))}, {self.roles.time}={time})"


def _check_types(frame: Columns, roles: Roles, inside: list[str]) -> None:
    for column in roles.target:
        numeric(frame[column], "target")
    if roles.weight is not None:
        numeric(frame[roles.weight], "weight")
    for role in ("static", "past", "future"):
        for column in roles.reals(role):
            if column in inside:
                numeric(frame[column], f"{role} covariate", booleans=True)
    for column in filter(None, (roles.id, roles.time)):
        rows = np.flatnonzero(is_missing(frame[column]))
        if len(rows):
            found = counted(len(rows), "row", "rows")
            raise ValueError(f"column {column!r} is missing in {found}; first: row {int(rows[0])}")


def read_rows(frame: Columns, roles: Roles, freq: Any, encoding: Encoding | None) -> _Rows:
    codes, keys = _series_codes(frame, roles)
    first = np.zeros(len(keys), np.int64)
    for a, b in reversed(list(chunks(len(codes)))):
        first[codes[a:b][::-1]] = np.arange(b - 1, a - 1, -1)
    times = frame[roles.time]
    time = TimeColumn.of(times)
    axis = _time_axis(times, roles, time, codes, freq, encoding)
    ids = None if roles.id is None else take(frame[roles.id], first)
    return _Rows(frame, roles, times, time, axis, codes, first, keys, ids)


def _series_codes(frame: Columns, roles: Roles) -> tuple[Array, list[Any]]:
    if roles.id is None:
        return np.zeros(frame.rows, np.int32), [0]
    column, vocabulary = frame[roles.id], Vocabulary()
    codes = np.empty(len(column), np.int32)
    for a, b in chunks(len(column)):
        codes[a:b] = vocabulary.codes(part(column, a, b))
    keys = ordered(vocabulary.index)
    rank = np.empty(len(keys), np.int32)
    rank[[vocabulary.index[key] for key in keys]] = np.arange(len(keys), dtype=np.int32)
    for a, b in chunks(len(column)):
        codes[a:b] = rank[codes[a:b]]
    return codes, keys


def _time_axis(
    column: nw.Series, roles: Roles, time: TimeColumn, codes: Array, freq: Any, encoding: Encoding | None
) -> TimeAxis:
    fitted = encoding is not None and freq is None
    if encoding is not None:
        _check_time(time, roles.time, encoding)
        freq = encoding.freq if freq is None else freq

    def axis(candidate: Frequency) -> TimeAxis:
        return TimeAxis(kind=time.kind, freq=candidate, unit=time.unit, tz=time.tz, period=time.period)

    if freq is None and time.kind == "period":
        return axis(Frequency.of_periods(time.period))
    if time.kind == "period" and isinstance(freq, str):
        if freq != time.period and freq[:1] != (time.period or "")[:1]:
            raise ValueError(
                f"freq={freq!r} does not fit time column {roles.time!r}, whose periods are {time.period!r}"
            )
        return axis(Frequency.of_periods(time.period))
    t, series = _sample(column, time, codes)
    if freq is None:
        return axis(infer_frequency(axis, t, series, roles.time))
    found = axis(settle(axis, parse_frequency(freq), t))
    if fitted:
        _check_step(found, t, series, roles.time)
    return found


def _check_step(axis: TimeAxis, t: Array, series: Array, column: str) -> None:
    """Refuse a frame of another frequency than the model's: all its steps are several of that one."""
    steps = np.diff(axis.split(t)[0])[series[1:] == series[:-1]]
    apart = int(np.gcd.reduce(np.abs(steps))) if len(steps) >= 3 else 1
    if apart > 1:
        raise ValueError(
            f"time column {column!r}: all rows are {apart} steps of {axis.freq.name!r} apart, or a multiple of that; "
            f"the model was fitted on freq={axis.freq.name!r}: give it rows of that frequency, or set freq= if they are"
        )


def _check_time(time: TimeColumn, column: str, encoding: Encoding) -> None:
    if time.kind != encoding.time:
        raise ValueError(f"time column {column!r} holds {time.kind} values; the model was fitted on {encoding.time}")
    if time.period != encoding.period:
        raise ValueError(
            f"time column {column!r} has periods {time.period!r}; the model was fitted on {encoding.period!r}"
        )
    if time.tz != encoding.tz:
        have, fitted = (z or "no time zone" for z in (time.tz, encoding.tz))
        remedy = "use .dt.tz_convert" if time.tz and encoding.tz else "use .dt.tz_localize"
        raise ValueError(f"time column {column!r} has {have}; the model was fitted on {fitted}; {remedy}")


def _sample(column: nw.Series, time: TimeColumn, codes: Array) -> tuple[Array, Array]:
    """Times (int64) of a few series, sorted, with their series: enough to see the step."""
    counts = np.bincount(codes)
    chosen = np.zeros(len(counts), bool)
    chosen[np.argsort(-counts, kind="stable")[:_SAMPLED_SERIES]] = True
    ticks, series = [], []
    for a, b in chunks(len(codes)):
        keep = chosen[codes[a:b]]
        if keep.any():
            ticks.append(time.ticks(part(column, a, b))[keep])
            series.append(codes[a:b][keep])
            if sum(map(len, ticks)) > _SAMPLED_ROWS:
                break
    t, s = np.concatenate(ticks), np.concatenate(series)
    order = np.lexsort((t, s))
    return t[order], s[order]


def _place(rows: _Rows, on_gap: str) -> tuple[Grid, Array | None]:
    """The grid, and where on it each row of the frame goes; None: every row is where it is to be."""
    n, total = len(rows.keys), len(rows.codes)
    phase = _phases(rows)
    start, end = np.full(n, np.iinfo(np.int64).max), np.full(n, np.iinfo(np.int64).min)
    position = np.empty(total, np.int64)
    for a, b in chunks(total):
        where = partial(rows.where, after=a)
        position[a:b] = ordinals(rows.axis, rows.ticks(a, b), phase[rows.codes[a:b]], rows.roles.time, where)
        np.minimum.at(start, rows.codes[a:b], position[a:b])
        np.maximum.at(end, rows.codes[a:b], position[a:b])
    grid = Grid.spanning(rows.axis, rows.roles.time, rows.name, start, end, phase, total)
    in_place = grid.rows == total
    for a, b in chunks(total):
        position[a:b] += (grid.offsets[:-1] - start)[rows.codes[a:b]]
        in_place = in_place and np.array_equal(position[a:b], np.arange(a, b))
    if in_place:
        return grid, None
    seen = np.zeros(grid.rows, bool)
    seen[position] = True
    found = int(np.count_nonzero(seen))
    if found < total:
        _raise_duplicates(rows, position, total - found)
    if found < grid.rows:
        grid.holes = ~seen
        if on_gap == "error":
            grid.raise_gaps(rows.axis, rows.roles.time, rows.name)
    return grid, position


def _phases(rows: _Rows) -> Array:
    """The phase of each series: of any of its rows, or the least where the clocks may have been moved forward."""
    if not rows.axis.shifting:
        return rows.axis.split(rows.time.ticks(take(rows.times, rows.first)))[1]
    phase = np.full(len(rows.keys), np.iinfo(np.int64).max)
    for a, b in chunks(len(rows.codes)):
        np.minimum.at(phase, rows.codes[a:b], rows.axis.split(rows.ticks(a, b))[1])
    return phase


def _raise_duplicates(rows: _Rows, position: Array, count: int) -> None:
    order = np.argsort(position, kind="stable")
    again = order[1:][position[order[1:]] == position[order[:-1]]]
    first = int(again.min())
    keys = f"({rows.roles.id}, {rows.roles.time})" if rows.roles.id else rows.roles.time
    raise ValueError(
        f"{counted(count, 'row repeats', 'rows repeat')} the same {keys}; first: {rows.where(first)}; "
        f"drop or aggregate them"
    )


def _fill_rows(rows: _Rows, grid: Grid, position: Array | None, learner: Learner) -> dict[str, Any]:
    roles = rows.roles
    target = np.empty((grid.rows, len(roles.target)))
    for j, column in enumerate(roles.target):
        _fill(rows, grid, position, column, target[:, j], missing=True)
    weight = None
    if roles.weight is not None:
        weight = np.empty(grid.rows, np.float32)
        _fill(rows, grid, position, roles.weight, weight, missing=False, hole=1.0)
        if (weight < 0).any():
            bad = int((weight < 0).sum())
            raise ValueError(f"weight column {roles.weight!r} has {bad} negative values; weights are >= 0")
    return {
        "target": target,
        "weight": weight,
        "known": _fill_reals(rows, grid, position, roles.reals("future"), learner, missing=False),
        "past": _fill_reals(rows, grid, position, roles.reals("past"), learner, missing=True),
        "known_categories": _fill_categories(rows, grid, position, roles.categories("future"), learner),
        "past_categories": _fill_categories(rows, grid, position, roles.categories("past"), learner),
    }


def _fill_reals(
    rows: _Rows, grid: Grid, position: Array | None, columns: tuple[str, ...], learner: Learner, *, missing: bool
) -> Array:
    """Standardised columns. Moments are taken in grid order, so that the order of the rows does not matter."""
    out = np.empty((grid.rows, len(columns)), np.float32)
    for j, column in enumerate(columns):
        series = rows.frame[column]
        if position is None:
            location, scale = learner.standardise(column, (floats(part(series, a, b)) for a, b in chunks(len(series))))
            _fill(rows, grid, None, column, out[:, j], missing=missing, location=location, scale=scale)
            continue
        values = np.empty(grid.rows)
        _fill(rows, grid, position, column, values, missing=missing)
        location, scale = learner.standardise(column, (values[a:b] for a, b in chunks(grid.rows)))
        for a, b in chunks(grid.rows):
            out[a:b, j] = (values[a:b] - location) / scale
    if grid.holes is not None and not missing and len(columns):
        grid.carry(out)
    return out


def _fill(
    rows: _Rows,
    grid: Grid,
    position: Array | None,
    column: str,
    out: Array,
    *,
    missing: bool,
    location: float = 0.0,
    scale: float = 1.0,
    hole: float = np.nan,
) -> None:
    """Write a real column to its places; refuse infinite values, and missing ones where they may not be."""
    series = rows.frame[column]
    bad, first = 0, -1
    if grid.holes is not None:
        out[grid.holes] = hole
    for a, b in chunks(len(rows.codes)):
        x = floats(part(series, a, b))
        wrong = np.isinf(x) if missing else ~np.isfinite(x)
        if wrong.any():
            bad, first = bad + int(wrong.sum()), first if first >= 0 else a + int(np.argmax(wrong))
        out[slice(a, b) if position is None else position[a:b]] = (
            x if location == 0.0 and scale == 1.0 else (x - location) / scale
        )
    if bad:
        raise ValueError(bad_values(column, bad, rows.where(first), missing))


def _fill_categories(
    rows: _Rows, grid: Grid, position: Array | None, columns: tuple[str, ...], learner: Learner
) -> Array:
    out = np.zeros((grid.rows, len(columns)), np.int32)
    for j, column in enumerate(columns):
        vocabulary, series = Vocabulary(), rows.frame[column]
        codes = np.empty(len(rows.codes), np.int32)
        for a, b in chunks(len(codes)):
            codes[a:b] = vocabulary.codes(part(series, a, b))
        table = learner.table(column, vocabulary)
        for a, b in chunks(len(codes)):
            out[slice(a, b) if position is None else position[a:b], j] = table[codes[a:b]]
    return out


def _fill_static(rows: _Rows, static_df: Any, learner: Learner) -> dict[str, Array]:
    roles, n = rows.roles, len(rows.keys)
    frame, row, constant = rows.frame, rows.first, rows.codes
    if static_df is not None:
        frame, row = _static_rows(rows, static_df)
        constant = None  # type: ignore[assignment]
    reals, categories = roles.reals("static"), roles.categories("static")
    static = np.empty((n, len(reals)), np.float32)
    for j, column in enumerate(reals):
        values = _one_each(rows, frame, column, row, constant, floats)
        if np.isinf(values).any():
            raise ValueError(f"static column {column!r} is infinite for {rows.name(int(np.argmax(np.isinf(values))))}")
        location, scale = learner.standardise(column, [values])
        static[:, j] = (values - location) / scale
    indices = np.zeros((n, len(categories)), np.int32)
    for j, column in enumerate(categories):
        vocabulary = Vocabulary()
        source = (rows.frame, rows.first, None) if column == roles.id else (frame, row, constant)
        codes = _one_each(rows, source[0], column, source[1], source[2], vocabulary.codes)
        indices[:, j] = learner.table(column, vocabulary)[codes]
    return {"static": static, "static_categories": indices}


def _one_each(rows: _Rows, frame: Columns, column: str, row: Array, codes: Array | None, read: Any) -> Array:
    """A static column's value for each series; where it comes with every row, all rows must agree."""
    values = read(take(frame[column], row))
    if codes is None:
        return values
    for a, b in chunks(len(codes)):
        found, expected = read(part(frame[column], a, b)), values[codes[a:b]]
        differs = (found != expected) & ~((found != found) & (expected != expected))
        if differs.any():
            at = a + int(np.argmax(differs))
            raise ValueError(
                f"static column {column!r} changes within a series; first: {rows.where(at)}; "
                f"give it as past or future covariate"
            )
    return values


def _static_rows(rows: _Rows, static_df: Any) -> tuple[Columns, Array]:
    roles = rows.roles
    opened, _ = open_frame(static_df, roles, "static_df")
    frame = Columns(opened)
    require(opened, [*([roles.id] if roles.id else []), *roles.static], "static_df")
    for column in roles.reals("static"):
        numeric(frame[column], "static covariate", booleans=True)
    if roles.id is None:
        if frame.rows != 1:
            raise ValueError(f"static_df has {frame.rows} rows; without an id column it needs exactly one")
        return frame, np.zeros(1, np.int64)
    ids = [plain(v) for v in frame[roles.id].to_list()]
    index = {key: i for i, key in enumerate(ids)}
    if len(index) < len(ids):
        repeated = next(key for i, key in enumerate(ids) if index[key] != i)
        raise ValueError(f"static_df has more than one row for {roles.id}={repeated!r}; keep one")
    lacking = [key for key in rows.keys if key not in index]
    if lacking:
        raise ValueError(
            f"static_df lacks {counted(len(lacking), 'series', 'series')}; first: {roles.id}={lacking[0]!r}; add a row "
            f"for each (missing values are allowed in it)"
        )
    return frame, np.array([index[key] for key in rows.keys])
