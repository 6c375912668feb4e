"""The door for frames: pandas or polars columns in, numpy arrays out, and back to the caller's kind of frame."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd

from .calendar import TICKS
from .roles import Roles, plain

Array = np.ndarray

CHUNK = 1 << 18  # rows read at a time: what a conversion needs beyond its result


def chunks(rows: int) -> Iterator[tuple[int, int]]:
    """Spans [a, b) that cover a number of rows."""
    for a in range(0, rows, CHUNK):
        yield a, min(a + CHUNK, rows)


def part(series: nw.Series, a: int, b: int) -> nw.Series:
    """Rows [a, b) of a column."""
    return series if a == 0 and b == len(series) else series[a:b]


class Columns(dict[str, nw.Series]):
    """The columns of a frame by name, each looked up once: a lookup takes as long as reading a hundred rows."""

    def __init__(self, frame: nw.DataFrame):
        super().__init__()
        self.frame, self.rows = frame, len(frame)

    def __missing__(self, name: str) -> nw.Series:
        return self.setdefault(name, self.frame[name])


def open_frame(data: Any, roles: Roles, what: str = "the frame") -> tuple[nw.DataFrame, Roles]:
    """A user's frame, or pandas Series with its times in the index, as a narwhals frame, and the roles that fit it.

    The frame is not copied or changed. Raises TypeError for other kinds, ValueError for repeated columns or no rows.
    """
    if isinstance(data, pd.Series):
        data = pd.DataFrame({roles.time: data.index, roles.target[0]: data.array}, copy=False)
        roles = replace(roles, id=None)
    elif isinstance(data, pd.DataFrame):
        repeated = data.columns[data.columns.duplicated()]
        if len(repeated):
            raise ValueError(f"{what} has more than one column named {repeated[0]!r}; keep one")
        if roles.time not in data.columns and data.index.name == roles.time:
            data = data.reset_index()
    try:
        frame = nw.from_native(data, eager_only=True)
    except TypeError:
        kind = f"{type(data).__module__}.{type(data).__qualname__}"
        raise TypeError(f"{what} must be a pandas or polars DataFrame, or a pandas Series; found {kind}") from None
    if len(frame) == 0:
        raise ValueError(f"{what} has no rows")
    return frame, roles


def require(frame: nw.DataFrame, columns: Sequence[str], what: str = "the frame") -> None:
    """Raise ValueError for columns that the frame lacks, naming the nearest ones it has."""
    present = list(frame.columns)
    missing = [c for c in columns if c not in present]
    if missing:
        near = difflib.get_close_matches(str(missing[0]), [str(c) for c in present], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        others = f" (and {len(missing) - 1} more: {missing[1:]})" if len(missing) > 1 else ""
        raise ValueError(f"{what} has no column {missing[0]!r}{others}; its columns are {present[:20]}{hint}")


def numeric(series: nw.Series, role: str, *, booleans: bool = False) -> None:
    """Raise ValueError for a column whose type is not numeric, saying what to do about it."""
    dtype = series.dtype
    native = series.to_native().dtype
    if isinstance(native, np.dtype) and native.kind == "c":
        raise ValueError(
            f"{role} column {series.name!r} holds complex numbers; give real and imaginary part as columns"
        )
    if dtype.is_numeric() or (booleans and dtype == nw.Boolean):
        return
    if dtype == nw.Boolean:
        raise ValueError(f"{role} column {series.name!r} is boolean; cast it to 0.0 and 1.0 if that is meant")
    remedy = (
        "convert it to numbers" if role in ("target", "weight") else "convert it to numbers or add it to categorical"
    )
    where = _first_text(series)
    raise ValueError(f"{role} column {series.name!r} has type {native}, not numbers; {where}{remedy}")


def _first_text(series: nw.Series) -> str:
    """Where the first value of a column of text stands that does not read as a number; nothing where all do."""
    for row, (value, missing) in enumerate(zip(series, is_missing(series), strict=True)):
        if not missing:
            try:
                float(value)
            except (TypeError, ValueError):
                return f"first value that is none: {value!r} in row {row}; "
    return ""


def floats(series: nw.Series) -> Array:
    """A numeric column (part) as float64, missing values as NaN."""
    native = series.to_native()
    if isinstance(native, pd.Series) and not isinstance(native.dtype, np.dtype):
        return native.to_numpy(dtype=np.float64, na_value=np.nan)
    if isinstance(native, pd.Series):
        return native.to_numpy().astype(np.float64, copy=False)
    return series.cast(nw.Float64).to_numpy()


def is_missing(series: nw.Series) -> Array:
    """(n,) whether a value is missing."""
    native = series.to_native()
    return native.isna().to_numpy() if isinstance(native, pd.Series) else series.is_null().to_numpy()


class Vocabulary:
    """Values met so far in a column, numbered in order of appearance; `codes` reads the column part by part."""

    def __init__(self) -> None:
        self.index: dict[Any, int] = {}

    def codes(self, series: nw.Series) -> Array:
        """(n,) int32 numbers of the values, new values being added; -1 where missing."""
        native = series.to_native()
        if isinstance(native, pd.Series):
            local, values = pd.factorize(native)
            table = self._numbers(values)
            return table[local]  # -1 takes the last entry
        if series.dtype in (nw.Categorical, nw.Enum):
            series = series.cast(nw.String)
        met = series.drop_nulls().unique(maintain_order=True).to_list()
        table = self._numbers(met)
        if not met:
            return np.full(len(series), -1, np.int32)
        return series.replace_strict(met, table[:-1].tolist(), default=-1, return_dtype=nw.Int32).to_numpy()

    def _numbers(self, values: Any) -> Array:
        numbers = [self.index.setdefault(plain(v), len(self.index)) for v in values]
        return np.array([*numbers, -1], np.int32)


def take(series: nw.Series, rows: Array) -> nw.Series:
    """Rows of a column, in its own type."""
    native = series.to_native()
    if isinstance(native, pd.Series):
        taken = pd.Series(native.array.take(rows), name=native.name, dtype=native.dtype, copy=False)
        return nw.from_native(taken, series_only=True)
    return series[rows.tolist()]


@dataclass(frozen=True)
class TimeColumn:
    """How a time column is stored; `ticks` reads a part of it as int64."""

    kind: str
    unit: str = ""
    tz: str | None = None
    period: str | None = None

    @classmethod
    def of(cls, series: nw.Series) -> TimeColumn:
        """Recognise a time column. Raises ValueError for text, floats and objects, saying what to do."""
        dtype, native = series.dtype, series.to_native().dtype
        if isinstance(native, pd.PeriodDtype):
            return cls("period", period=str(native).removeprefix("period[").removesuffix("]"))
        if dtype.is_integer():
            return cls("int")
        if dtype == nw.Date:
            return cls("date", unit="s")
        if isinstance(dtype, nw.Datetime):
            return cls("datetime", unit=dtype.time_unit, tz=_zone(dtype.time_zone, series.name))
        if isinstance(native, pd.DatetimeTZDtype):
            return cls("datetime", unit=native.unit, tz=_zone(str(native.tz), series.name))
        remedy = "convert it with pandas.to_datetime, or use integers"
        if native == np.dtype(object):
            zones = {str(getattr(v, "tzinfo", None)) for v in series.head(1000).to_list() if hasattr(v, "tzinfo")}
            if len(zones) > 1:
                raise ValueError(
                    f"time column {series.name!r} mixes time zones ({', '.join(sorted(zones))}); convert to one"
                )
        raise ValueError(f"time column {series.name!r} has type {native}; {remedy}")

    def ticks(self, series: nw.Series) -> Array:
        """A part of the column as int64 in `unit`, in absolute time."""
        native = series.to_native()
        if self.kind == "period":
            return pd.PeriodIndex(native).asi8
        if self.kind == "int":
            return series.cast(nw.Int64).to_numpy()
        if isinstance(native, pd.Series) and isinstance(native.dtype, (np.dtype, pd.DatetimeTZDtype)):
            return pd.DatetimeIndex(native).asi8
        if self.kind == "date":
            return series.cast(nw.Datetime("ms")).dt.timestamp("ms").to_numpy().astype(np.int64) // 1000
        if self.unit == "s":  # pandas only: no other frame stores whole seconds
            return pd.DatetimeIndex(native).as_unit("s").asi8
        return series.dt.timestamp(self.unit).to_numpy().astype(np.int64)  # type: ignore[arg-type]

    def convert(self, ticks: Array, unit: str) -> Array:
        """Ticks of this column in another unit; exact or ValueError."""
        if self.kind != "datetime" or unit == self.unit or not unit:
            return ticks
        up, down = TICKS[unit], TICKS[self.unit]
        return ticks * (up // down) if up > down else ticks // (down // up)


def _zone(zone: str | None, column: str) -> str | None:
    if zone is None:
        return None
    try:
        pd.Timestamp(0, tz=zone)
    except Exception as error:
        raise ValueError(
            f"time column {column!r} has the time zone {zone}, which has no usable name: {error}"
        ) from None
    return zone


def time_series(template: nw.Series, stamps: pd.Index) -> nw.Series:
    """Time stamps as a column of the template's own type and library."""
    native = template.to_native()
    if isinstance(native, pd.Series):
        values = pd.Series(stamps, name=template.name)
        return nw.from_native(values if values.dtype == native.dtype else values.astype(native.dtype), series_only=True)
    plain_ticks = stamps.asi8 if isinstance(stamps, pd.DatetimeIndex) else stamps.to_numpy()
    if template.dtype == nw.Date:
        plain_ticks = (plain_ticks // 86400).astype(np.int32)
    ints = nw.new_series(template.name, plain_ticks, backend=template.implementation)
    return ints.cast(template.dtype)


def build_frame(columns: Mapping[str, Any], backend: Any) -> Any:
    """A native frame of the given library from narwhals columns and numpy arrays."""
    made = {name: c.to_native() if isinstance(c, nw.Series) else c for name, c in columns.items()}
    if backend.is_pandas():
        return pd.DataFrame({n: c.array if isinstance(c, pd.Series) else c for n, c in made.items()})
    series = [
        nw.from_native(c, series_only=True).alias(n)
        if not isinstance(c, np.ndarray)
        else nw.new_series(n, c, backend=backend)
        for n, c in made.items()
    ]
    return nw.to_native(nw.DataFrame.from_dict({s.name: s for s in series}, backend=backend))


def counted(count: int, one: str, many: str) -> str:
    """ "1 series has", "37 series have": the head of a message about problems of one kind."""
    return f"1 {one}" if count == 1 else f"{count} {many}"


Show = Callable[[int], str]
