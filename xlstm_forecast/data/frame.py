"""From a long frame to a `Panel`: checks, the time grid, the filling of the columns, and what is learnt on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import narwhals as nw
import numpy as np

from .calendar import Frequency, TimeAxis, infer_frequency, parse_frequency, settle
from .columns import (
    TimeColumn,
    Vocabulary,
    chunks,
    counted,
    floats,
    numeric,
    open_frame,
    require,
    take,
)
from .panel import Panel, forecast_frame, future_times
from .roles import Encoding, Roles, ordered, plain

__all__ = ["Encoding", "Panel", "Roles", "forecast_frame", "future_times", "to_panel"]

Array = np.ndarray

_SAMPLED_SERIES = 64
_SAMPLED_ROWS = 500_000
_FILL_LIMIT = 20  # a grid this many times the rows given is a wrong frequency or a wrong date, not a gap


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
    frame, roles = open_frame(df, roles)
    inside = [c for c in roles.columns if static_df is None or c not in roles.static]
    require(frame, inside)
    _check_types(frame, roles, inside)
    rows = _read_rows(frame, roles, freq, encoding)
    grid = _place(rows, on_gap)
    learner = _Learner(roles, encoding)
    columns = _fill_rows(rows, grid, learner)
    static = _fill_static(rows, static_df, learner)
    _check_observed(rows, grid, columns["target"])
    known = learner.encoding(rows)
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
    frame: nw.DataFrame
    roles: Roles
    time: TimeColumn
    axis: TimeAxis
    codes: Array  # (rows,) int32, series in sorted order
    first: Array  # (n,) int64, a row of each series: its first in the frame
    keys: list[Any]
    ids: nw.Series | None

    def ticks(self, a: int, b: int) -> Array:
        return self.time.ticks(self.frame[self.roles.time][a:b])

    def name(self, series: int) -> str:
        return "the series" if self.roles.id is None else f"{self.roles.id}={self.keys[series]!r}"

    def where(self, row: int) -> str:
        """Series and time of a row of the frame, for a message."""
        time = self.axis.show(int(self.ticks(row, row + 1)[0]))
        return f"{self.name(int(self.codes[row]))}, {self.roles.time}={time}"


def _check_types(frame: nw.DataFrame, roles: Roles, inside: list[str]) -> None:
    for column in roles.target:
        numeric(frame[column], "target")
    if roles.weight is not None:
        numeric(frame[roles.weight], "weight")
    for role in ("static", "past", "future"):
        for column in roles.reals(role):
            if column in inside:
                numeric(frame[column], f"{role} covariate", booleans=True)
    for column in filter(None, (roles.id, roles.time)):
        if missing := int(frame[column].is_null().sum()):
            row = int(np.flatnonzero(frame[column].is_null().to_numpy())[0])
            raise ValueError(f"column {column!r} is missing in {counted(missing, 'row', 'rows')}; first: row {row}")


def _read_rows(frame: nw.DataFrame, roles: Roles, freq: Any, encoding: Encoding | None) -> _Rows:
    codes, keys = _series_codes(frame, roles)
    first = np.zeros(len(keys), np.int64)
    for a, b in reversed(list(chunks(len(codes)))):
        first[codes[a:b][::-1]] = np.arange(b - 1, a - 1, -1)
    time = TimeColumn.of(frame[roles.time])
    axis = _time_axis(frame[roles.time], roles, time, codes, freq, encoding)
    ids = None if roles.id is None else take(frame[roles.id], first)
    return _Rows(frame, roles, time, axis, codes, first, keys, ids)


def _series_codes(frame: nw.DataFrame, roles: Roles) -> tuple[Array, list[Any]]:
    if roles.id is None:
        return np.zeros(len(frame), np.int32), [0]
    column, vocabulary = frame[roles.id], Vocabulary()
    codes = np.empty(len(frame), np.int32)
    for a, b in chunks(len(frame)):
        codes[a:b] = vocabulary.codes(column[a:b])
    keys = ordered(vocabulary.index)
    rank = np.empty(len(keys), np.int32)
    rank[[vocabulary.index[key] for key in keys]] = np.arange(len(keys), dtype=np.int32)
    for a, b in chunks(len(frame)):
        codes[a:b] = rank[codes[a:b]]
    return codes, keys


def _time_axis(
    column: nw.Series, roles: Roles, time: TimeColumn, codes: Array, freq: Any, encoding: Encoding | None
) -> TimeAxis:
    if encoding is not None:
        _check_time(time, roles.time, encoding)
        freq = encoding.freq if freq is None else freq

    def axis(candidate: Frequency) -> TimeAxis:
        return TimeAxis(kind=time.kind, freq=candidate, unit=time.unit, tz=time.tz, period=time.period)

    if freq is None and time.kind == "period":
        return axis(Frequency(kind="int", step=1))
    if time.kind == "period" and isinstance(freq, str):
        if freq != time.period and freq[:1] != (time.period or "")[:1]:
            raise ValueError(
                f"freq={freq!r} does not fit time column {roles.time!r}, whose periods are {time.period!r}"
            )
        return axis(Frequency(kind="int", step=1))
    t, series = _sample(column, time, codes)
    if freq is None:
        return axis(infer_frequency(axis, t, series, roles.time))
    return axis(settle(axis, parse_frequency(freq), t))


def _check_time(time: TimeColumn, column: str, encoding: Encoding) -> None:
    if time.kind != encoding.time:
        raise ValueError(f"time column {column!r} holds {time.kind} values; the model was fitted on {encoding.time}")
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
            ticks.append(time.ticks(column[a:b])[keep])
            series.append(codes[a:b][keep])
            if sum(map(len, ticks)) > _SAMPLED_ROWS:
                break
    t, s = np.concatenate(ticks), np.concatenate(series)
    order = np.lexsort((t, s))
    return t[order], s[order]


@dataclass
class _Grid:
    offsets: Array  # (n + 1,)
    start: Array  # (n,)
    phase: Array  # (n,)
    position: Array | None  # (rows,) int64 where each row of the frame goes; None: where it is
    holes: Array | None  # (R,) bool, grid points without a row; None: none

    def put(self, out: Array, a: int, b: int, values: Array) -> None:
        if self.position is None:
            out[a:b] = values
        else:
            out[self.position[a:b]] = values


def _place(rows: _Rows, on_gap: str) -> _Grid:
    n, total_rows = len(rows.keys), len(rows.codes)
    phase = _phases(rows)
    start, end = np.full(n, np.iinfo(np.int64).max), np.full(n, np.iinfo(np.int64).min)
    position = np.empty(total_rows, np.int64)
    for a, b in chunks(total_rows):
        ordinal = _ordinals(rows, a, b, phase)
        np.minimum.at(start, rows.codes[a:b], ordinal)
        np.maximum.at(end, rows.codes[a:b], ordinal)
        position[a:b] = ordinal
    length = end - start + 1
    if length.astype(float).sum() > _FILL_LIMIT * total_rows + 1000:
        _raise_gaps(rows, start, length, None)
    offsets = np.r_[0, np.cumsum(length)]
    in_place = offsets[-1] == total_rows
    for a, b in chunks(total_rows):
        position[a:b] += (offsets[:-1] - start)[rows.codes[a:b]]
        in_place = in_place and np.array_equal(position[a:b], np.arange(a, b))
    if in_place:
        return _Grid(offsets, start, phase, None, None)
    seen = np.zeros(offsets[-1], bool)
    seen[position] = True
    found = int(np.count_nonzero(seen))
    if found < total_rows:
        _raise_duplicates(rows, position, total_rows - found)
    grid = _Grid(offsets, start, phase, position, ~seen if found < len(seen) else None)
    if grid.holes is not None and on_gap == "error":
        _raise_gaps(rows, start, length, grid)
    return grid


def _phases(rows: _Rows) -> Array:
    """The phase of each series: of any of its rows, or the least where the clocks may have been moved forward."""
    n, axis = len(rows.keys), rows.axis
    if axis.tz is None or axis.freq.kind == "fixed":
        return axis.split(rows.time.ticks(take(rows.frame[rows.roles.time], rows.first)))[1]
    phase = np.full(n, np.iinfo(np.int64).max)
    for a, b in chunks(len(rows.codes)):
        np.minimum.at(phase, rows.codes[a:b], axis.split(rows.ticks(a, b))[1])
    return phase


def _ordinals(rows: _Rows, a: int, b: int, phase: Array) -> Array:
    ticks, codes, axis = rows.ticks(a, b), rows.codes[a:b], rows.axis
    ordinal, own = axis.split(ticks)
    off = ~axis.regular(own)
    moved = own != phase[codes]
    if moved.any() or off.any():
        odd = np.flatnonzero(moved | off)
        same = axis.join(ordinal[odd], phase[codes[odd]]) == ticks[odd]
        odd = odd[~(same & axis.regular(phase[codes[odd]]))]
        if len(odd):
            raise ValueError(
                f"time column {rows.roles.time!r} is not on the grid of freq={axis.freq.name!r}; first: row "
                f"{a + odd[0]} ({rows.where(a + int(odd[0]))}); pass the right freq=, or move the times onto the grid"
            )
    return ordinal


def _raise_duplicates(rows: _Rows, position: Array, count: int) -> None:
    order = np.argsort(position, kind="stable")
    again = order[1:][position[order[1:]] == position[order[:-1]]]
    first = int(again.min())
    keys = f"({rows.roles.id}, {rows.roles.time})" if rows.roles.id else rows.roles.time
    raise ValueError(
        f"{counted(count, 'row repeats', 'rows repeat')} the same {keys}; first: row {first} ({rows.where(first)}); "
        f"drop or aggregate them"
    )


def _raise_gaps(rows: _Rows, start: Array, length: Array, grid: _Grid | None) -> None:
    if grid is None or grid.holes is None:
        worst = int(np.argmax(length))
        times = rows.axis.join(
            np.array([start[worst], start[worst] + length[worst] - 1]), _phases(rows)[[worst, worst]]
        )
        span = f"{rows.axis.show(times[0])} to {rows.axis.show(times[1])}"
        raise ValueError(
            f"{rows.name(worst)} runs from {span}: {length[worst]} steps of freq={rows.axis.freq.name!r}, far more "
            f"than its rows; look for a wrong date in {rows.roles.time!r} or pass the right freq="
        )
    offsets, holes = grid.offsets, grid.holes
    gappy = np.flatnonzero(np.add.reduceat(holes, offsets[:-1], dtype=np.int64))
    series = int(gappy[0])
    hole = int(np.argmax(holes[offsets[series] : offsets[series + 1]]))
    after = rows.axis.join(start[[series]] + hole - 1, grid.phase[[series]])[0]
    raise ValueError(
        f"{counted(len(gappy), 'series has', 'series have')} gaps in {rows.roles.time!r} at "
        f"freq={rows.axis.freq.name!r}; first: {rows.name(series)}, after {rows.axis.show(after)}; "
        f"fill them, or pass on_gap='mask' to treat the missing steps as missing values"
    )


class _Learner:
    """Standardisation and vocabularies: learnt from this frame, or those of an earlier encoding."""

    def __init__(self, roles: Roles, fitted: Encoding | None):
        self.fitted = fitted
        self.categories: dict[str, list[Any]] = {} if fitted is None else fitted.categories
        self.location: dict[str, float] = {} if fitted is None else fitted.location
        self.scale: dict[str, float] = {} if fitted is None else fitted.scale

    def standardise(self, column: str, parts: Callable[[], Any]) -> tuple[float, float]:
        """Location and scale of a column, given as an iterator over its parts (float64, NaN where missing)."""
        if self.fitted is None:
            self.location[column], self.scale[column] = _moments(parts())
        return self.location[column], self.scale[column]

    def table(self, column: str, vocabulary: Vocabulary) -> Array:
        """Numbers of a vocabulary (-1: missing) -> indices of the encoding."""
        if self.fitted is None:
            self.categories[column] = ordered(vocabulary.index)
        index = {value: i for i, value in enumerate(self.categories[column], 1)}
        return np.array([*(index.get(value, 0) for value in vocabulary.index), 0], np.int32)

    def encoding(self, rows: _Rows) -> Encoding:
        if self.fitted is not None:
            return self.fitted
        axis = rows.axis
        return Encoding(
            time=axis.kind,
            tz=axis.tz,
            freq=axis.freq.name,
            ids=rows.keys,
            categories=self.categories,
            location=self.location,
            scale=self.scale,
        )


def _moments(parts: Any) -> tuple[float, float]:
    """Mean and standard deviation over the values that are there; 1 for the spread of a constant."""
    count, shift, first, second = 0, 0.0, 0.0, 0.0
    for x in parts:
        x = x[~np.isnan(x)] if np.isnan(x).any() else x
        if len(x) == 0:
            continue
        if count == 0:
            shift = float(x[0])
        count, first, second = (
            count + len(x),
            first + float((x - shift).sum()),
            second + float(((x - shift) ** 2).sum()),
        )
    if count == 0:
        return 0.0, 1.0
    mean = first / count
    spread = float(np.sqrt(max(second / count - mean * mean, 0.0)))
    location = shift + mean
    return location, spread if np.isfinite(spread) and spread > 1e-12 * max(abs(location), 1e-300) else 1.0


def _fill_rows(rows: _Rows, grid: _Grid, learner: _Learner) -> dict[str, Any]:
    total, roles = int(grid.offsets[-1]), rows.roles
    target = (
        np.full((total, len(roles.target)), np.nan) if grid.holes is not None else np.empty((total, len(roles.target)))
    )
    for j, column in enumerate(roles.target):
        _fill(rows, grid, column, target[:, j], missing=True)
    weight = None
    if roles.weight is not None:
        weight = np.ones(total, np.float32)
        _fill(rows, grid, roles.weight, weight, missing=False)
        if (weight < 0).any():
            raise ValueError(
                f"weight column {roles.weight!r} has {int((weight < 0).sum())} negative values; weights are >= 0"
            )
    return {
        "target": target,
        "weight": weight,
        "known": _fill_reals(rows, grid, roles.reals("future"), learner, missing=False),
        "past": _fill_reals(rows, grid, roles.reals("past"), learner, missing=True),
        "known_categories": _fill_categories(rows, grid, roles.categories("future"), learner),
        "past_categories": _fill_categories(rows, grid, roles.categories("past"), learner),
    }


def _fill_reals(rows: _Rows, grid: _Grid, columns: tuple[str, ...], learner: _Learner, *, missing: bool) -> Array:
    out = np.full((int(grid.offsets[-1]), len(columns)), np.nan, np.float32)
    for j, column in enumerate(columns):
        series = rows.frame[column]
        spread = learner.standardise(column, lambda s=series: (floats(s[a:b]) for a, b in chunks(len(s))))  # type: ignore[misc]
        _fill(rows, grid, column, out[:, j], missing=missing, spread=spread)
    if grid.holes is not None and not missing and len(columns):
        carry = np.where(grid.holes, 0, np.arange(len(out)))
        np.maximum.accumulate(carry, out=carry)
        out = out[carry]
    return out


def _fill(
    rows: _Rows, grid: _Grid, column: str, out: Array, *, missing: bool, spread: tuple[float, float] = (0.0, 1.0)
) -> None:
    """Write a real column to its places; refuse infinite values, and missing ones where they may not be."""
    series = rows.frame[column]
    bad, first = 0, -1
    for a, b in chunks(len(rows.codes)):
        x = floats(series[a:b])
        wrong = np.isinf(x) if missing else ~np.isfinite(x)
        if wrong.any():
            bad, first = bad + int(wrong.sum()), first if first >= 0 else a + int(np.argmax(wrong))
        grid.put(out, a, b, x if spread == (0.0, 1.0) else (x - spread[0]) / spread[1])
    if bad:
        found = "infinite" if missing or np.isinf(floats(series[first : first + 1])[0]) else "missing"
        remedy = "make them NaN to treat them as missing" if missing else "fill them: this column must always be known"
        raise ValueError(
            f"column {column!r} is {found} in {counted(bad, 'row', 'rows')}; first: row {first} "
            f"({rows.where(first)}); {remedy}"
        )


def _fill_categories(rows: _Rows, grid: _Grid, columns: tuple[str, ...], learner: _Learner) -> Array:
    out = np.zeros((int(grid.offsets[-1]), len(columns)), np.int32)
    for j, column in enumerate(columns):
        vocabulary, series = Vocabulary(), rows.frame[column]
        codes = np.empty(len(rows.codes), np.int32)
        for a, b in chunks(len(codes)):
            codes[a:b] = vocabulary.codes(series[a:b])
        table = learner.table(column, vocabulary)
        for a, b in chunks(len(codes)):
            grid.put(out[:, j], a, b, table[codes[a:b]])
    return out


def _fill_static(rows: _Rows, static_df: Any, learner: _Learner) -> dict[str, Array]:
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
        location, scale = learner.standardise(column, lambda v=values: iter([v]))  # type: ignore[misc]
        static[:, j] = (values - location) / scale
    indices = np.zeros((n, len(categories)), np.int32)
    for j, column in enumerate(categories):
        vocabulary = Vocabulary()
        source = (rows.frame, rows.first, None) if column == roles.id else (frame, row, constant)
        codes = _one_each(rows, source[0], column, source[1], source[2], vocabulary.codes)
        indices[:, j] = learner.table(column, vocabulary)[codes]
    return {"static": static, "static_categories": indices}


def _one_each(rows: _Rows, frame: nw.DataFrame, column: str, row: Array, codes: Array | None, read: Any) -> Array:
    """A static column's value for each series; where it comes with every row, all rows must agree."""
    values = read(take(frame[column], row))
    if codes is None:
        return values
    for a, b in chunks(len(codes)):
        part, expected = read(frame[column][a:b]), values[codes[a:b]]
        differs = (part != expected) & ~((part != part) & (expected != expected))
        if differs.any():
            at = a + int(np.argmax(differs))
            raise ValueError(
                f"static column {column!r} changes within a series; first: row {at} ({rows.where(at)}); "
                f"give it as past or future covariate"
            )
    return values


def _static_rows(rows: _Rows, static_df: Any) -> tuple[nw.DataFrame, Array]:
    roles = rows.roles
    frame, _ = open_frame(static_df, roles, "static_df")
    require(frame, [*([roles.id] if roles.id else []), *roles.static], "static_df")
    for column in roles.reals("static"):
        numeric(frame[column], "static covariate", booleans=True)
    if roles.id is None:
        if len(frame) != 1:
            raise ValueError(f"static_df has {len(frame)} rows; without an id column it needs exactly one")
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


def _check_observed(rows: _Rows, grid: _Grid, target: Array) -> None:
    for j, column in enumerate(rows.roles.target):
        if all(np.isnan(target[a:b, j]).all() for a, b in chunks(len(target))):
            raise ValueError(f"target column {column!r} has no observed value; all {len(target)} are missing")
    observed = np.empty(len(target), bool)
    for a, b in chunks(len(target)):
        observed[a:b] = ~np.isnan(target[a:b]).all(axis=1)
    empty = np.flatnonzero(~np.logical_or.reduceat(observed, grid.offsets[:-1]))
    if len(empty):
        raise ValueError(
            f"{counted(len(empty), 'series has', 'series have')} no observed target value; first: "
            f"{rows.name(int(empty[0]))}; drop {'it' if len(empty) == 1 else 'them'}"
        )
