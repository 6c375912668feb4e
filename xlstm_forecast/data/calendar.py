"""Time as integers: frequencies with exact calendar arithmetic, their inference from data, and calendar features.

A time stamp t is an int64 in its column's own unit. A frequency splits it into an ordinal, which grows by one per step,
and a phase, which is constant within a series; joined, they give the time stamp back. Steps shorter than a day are
counted in absolute time, days and longer on the wall clock of the column's time zone, so daylight saving moves neither.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

Array = np.ndarray

TICKS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}  # ticks of a unit in one second
_SECOND = 10**9
_FIXED = {
    "ns": 1,
    "us": 10**3,
    "ms": 10**6,
    "s": _SECOND,
    "min": 60 * _SECOND,
    "t": 60 * _SECOND,
    "h": 3600 * _SECOND,
}
_WEEKDAYS = ("MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN")
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_MONTHLY = {"M": 1, "Q": 3, "Y": 12, "A": 12}
_EPOCH_WEEKDAY = 3  # 1970-01-01 was a Thursday
_EXAMPLES = "'15min', 'h', 'D', 'B', 'W', 'W-SUN', 'MS', 'ME', 'QS', 'QE-DEC', 'YS', 'YE'"


@dataclass(frozen=True, kw_only=True)
class Frequency:
    """The step of a time column.

    kind "int" counts in the column's integers, "fixed" in nanoseconds, "days" in wall-clock days, "business" in
    weekdays, "months" in months stamped on `day` (31: the last one). `anchor` fixes which day of a span of days, or
    month of a span of months, is stamped; None leaves that to each series.
    """

    kind: str
    step: int
    day: int = 0
    anchor: int | None = None

    @classmethod
    def of_periods(cls, period: str | None) -> Frequency:
        """The step of periods named so by pandas, whose ordinals count single units: 15 for "15min"."""
        return cls(kind="int", step=pd.Period(ordinal=0, freq=period).freq.n)

    @property
    def name(self) -> str | int:
        """The frequency as pandas writes it, or the integer step; `parse_frequency` reads it back."""
        if self.kind == "int":
            return self.step
        if self.kind == "months":
            return self._month_name()
        if self.kind == "days":
            if self.step == 7 and self.anchor is not None:
                return f"W-{_WEEKDAYS[(self.anchor + _EPOCH_WEEKDAY) % 7]}"
            return _times(self.step, "D")
        if self.kind == "business":
            return _times(self.step, "B")
        for unit in ("h", "min", "s", "ms", "us"):
            if self.step % _FIXED[unit] == 0:
                return _times(self.step // _FIXED[unit], unit)
        return _times(self.step, "ns")

    def _month_name(self) -> str:
        end = "E" if self.day == 31 else "S"
        tail = "" if self.day in (1, 31, 0) else f"+{self.day - 1}D"
        if self.anchor is not None and self.step in (3, 12):
            letter = "Q" if self.step == 3 else "Y"
            month = self.anchor % 12 if end == "S" or letter == "Y" else (self.anchor % 3) + 9
            return f"{letter}{end}-{_MONTHS[month]}{tail}"
        letter, step = ("Y", self.step // 12) if self.step % 12 == 0 else ("M", self.step)
        letter, step = ("Q", self.step // 3) if letter == "M" and self.step % 3 == 0 else (letter, step)
        return _times(step, f"{letter}{'' if self.day == 0 else end}{tail}")


def _times(step: int, unit: str) -> str:
    return unit if step == 1 else f"{step}{unit}"


def parse_frequency(freq: Any) -> Frequency:
    """Read a frequency: an integer step, a pandas or polars alias, an offset, a timedelta.

    Raises ValueError for what is none of them, naming examples.
    """
    if isinstance(freq, Frequency):
        return freq
    if isinstance(freq, (int, np.integer)) and not isinstance(freq, bool):
        if freq < 1:
            raise ValueError(f"freq={freq!r}: an integer step must be at least 1")
        return Frequency(kind="int", step=int(freq))
    if hasattr(freq, "freqstr"):
        freq = freq.freqstr
    if not isinstance(freq, str):
        try:
            return _fixed_or_days(int(pd.Timedelta(freq).value), freq)
        except (TypeError, ValueError):
            raise ValueError(f"freq={freq!r} is not a frequency; use an integer step or one of {_EXAMPLES}") from None
    found = re.fullmatch(r"(\d*)([A-Za-z]+)(?:-([A-Za-z]{3}))?(?:\+(\d+)D)?", freq.strip())
    parsed = _from_parts(*found.groups()) if found else None
    if parsed is None or parsed.step < 1:
        raise ValueError(
            f"freq={freq!r} is not a frequency this package knows; use an integer step or one of {_EXAMPLES}"
        )
    return parsed


def _fixed_or_days(nanoseconds: int, given: Any) -> Frequency:
    if nanoseconds < 1:
        raise ValueError(f"freq={given!r} is not a positive step")
    day = 86400 * _SECOND
    if nanoseconds % day == 0:
        return Frequency(kind="days", step=nanoseconds // day)
    return Frequency(kind="fixed", step=nanoseconds)


def _from_parts(count: str, unit: str, suffix: str | None, shift: str | None) -> Frequency | None:
    step = int(count or 1)
    lower = {"d": "D", "w": "W", "mo": "MS", "q": "QS", "y": "YS", "m": "min", "H": "h", "T": "min", "S": "s"}
    unit = lower.get(unit, unit)
    if unit in _FIXED and suffix is None:
        return Frequency(kind="fixed", step=step * _FIXED[unit])
    if unit in ("D", "B") and suffix is None:
        return Frequency(kind="days" if unit == "D" else "business", step=step)
    if unit == "W":
        if suffix is not None and suffix.upper() not in _WEEKDAYS:
            return None
        anchor = None if suffix is None or step > 1 else (_WEEKDAYS.index(suffix.upper()) - _EPOCH_WEEKDAY) % 7
        return Frequency(kind="days", step=7 * step, anchor=anchor)
    if unit[0] not in _MONTHLY or unit[1:] not in ("", "S", "E"):
        return None
    if suffix is not None and (suffix.upper() not in _MONTHS or unit[0] == "M"):
        return None
    months = step * _MONTHLY[unit[0]]
    anchor = None if suffix is None or step > 1 else _MONTHS.index(suffix.upper()) % months
    day = {"": 0, "S": 1, "E": 31}[unit[1:]]
    return Frequency(kind="months", step=months, day=day + int(shift or 0), anchor=anchor)


@dataclass(frozen=True, kw_only=True)
class TimeAxis:
    """How a time column is stored and how it steps: `split` and `join` between time stamps, ordinals and phases.

    kind is "int", "datetime", "date" or "period"; unit one of s, ms, us, ns ("" for int); tz a zone's name or None.
    """

    kind: str
    freq: Frequency
    unit: str = ""
    tz: str | None = None
    period: str | None = None  # pandas' name of the period, for kind "period"

    def __post_init__(self) -> None:
        integer = self.kind in ("int", "period")
        if integer != (self.freq.kind == "int"):
            found, wanted = ("integers", "an integer") if integer else ("dates", f"a calendar step such as {_EXAMPLES}")
            raise ValueError(f"freq={self.freq.name!r} does not fit a time column of {found}; use {wanted}")
        if self.freq.kind == "fixed" and (self.freq.step * TICKS[self.unit]) % _SECOND:
            raise ValueError(f"freq={self.freq.name!r} is finer than the time column's unit {self.unit!r}")

    @property
    def _day(self) -> int:
        return 86400 * TICKS[self.unit]

    @property
    def _step(self) -> int:
        if self.freq.kind == "fixed":
            return self.freq.step * TICKS[self.unit] // _SECOND
        return self.freq.step if self.freq.kind == "int" else self.freq.step * self._day

    @property
    def shifting(self) -> bool:
        """Whether a time stamp may stand off its grid because its zone's clock skipped it."""
        return self.tz not in (None, "UTC") and self.freq.kind != "fixed"

    def wall(self, t: Array) -> Array:
        """Time stamps (int64) as wall-clock ticks in the axis' zone."""
        if self.tz is None or self.tz == "UTC":
            return t
        index = pd.DatetimeIndex(t.view(f"M8[{self.unit}]")).tz_localize("UTC").tz_convert(self.tz)
        return index.tz_localize(None).asi8

    def absolute(self, wall: Array) -> Array:
        """Wall-clock ticks back to time stamps: a skipped time moves forward, of a repeated one it is the first."""
        if self.tz is None or self.tz == "UTC":
            return wall
        index = pd.DatetimeIndex(np.ascontiguousarray(wall).reshape(-1).view(f"M8[{self.unit}]"))
        first = np.ones(len(index), bool)
        zoned = index.tz_localize(self.tz, ambiguous=first, nonexistent="shift_forward")
        return zoned.asi8.reshape(wall.shape)

    def split(self, t: Array) -> tuple[Array, Array]:
        """Time stamps -> (ordinal, phase), both int64. A phase that is not `regular` lies off the calendar's grid."""
        if self.freq.kind in ("int", "fixed"):
            ordinal = t // self._step
            return ordinal, t - ordinal * self._step
        wall = self.wall(t)
        if self.freq.kind == "days":
            ordinal = wall // self._step
            return ordinal, wall - ordinal * self._step
        days, clock = np.divmod(wall, self._day)
        count, off = _business_count(days) if self.freq.kind == "business" else _month_count(days, self.freq.day)
        ordinal = count // self.freq.step
        return ordinal, ((count - ordinal * self.freq.step) * 32 + off) * self._day + clock

    def join(self, ordinal: Array, phase: Array) -> Array:
        """(ordinal, phase) -> time stamps, the inverse of `split`."""
        if self.freq.kind in ("int", "fixed"):
            return ordinal * self._step + phase
        if self.freq.kind == "days":
            return self.absolute(ordinal * self._step + phase)
        residue, clock = np.divmod(phase, 32 * self._day)
        count = ordinal * self.freq.step + residue
        days = _business_days(count) if self.freq.kind == "business" else _month_days(count, self.freq.day)
        return self.absolute(days * self._day + clock)

    def regular(self, phase: Array) -> Array:
        """Whether phases lie on the grid that the frequency itself demands (weekday, month end, quarter)."""
        if self.freq.kind in ("int", "fixed"):
            return np.ones(phase.shape, bool)
        if self.freq.kind == "days":
            return np.ones(phase.shape, bool) if self.freq.anchor is None else phase // self._day == self.freq.anchor
        residue, rest = np.divmod(phase, 32 * self._day)
        right = rest < self._day
        return right if self.freq.anchor is None else right & (residue == self.freq.anchor)

    @property
    def first_phase(self) -> int:
        """The least phase on the grid that the frequency itself demands."""
        anchor = self.freq.anchor or 0
        return anchor * self._day * (32 if self.freq.kind == "months" else 1)

    def stamps(self, t: Array) -> pd.Index:
        """Time stamps (int64) as a pandas index in the axis' own type."""
        t = np.ascontiguousarray(t, dtype=np.int64)
        if self.kind == "int":
            return pd.Index(t)
        if self.kind == "period":
            return pd.PeriodIndex.from_ordinals(t, freq=self.period)
        index = pd.DatetimeIndex(t.view(f"M8[{self.unit}]"))
        return index if self.tz is None else index.tz_localize("UTC").tz_convert(self.tz)

    def show(self, t: int) -> str:
        """One time stamp for a message."""
        return str(self.stamps(np.array([t]))[0])

    def parse(self, value: Any) -> int:
        """A user's time stamp (anything pandas reads) as an int64 of this axis; ValueError if it does not fit."""
        if self.kind == "int":
            if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
                return int(value)
            raise ValueError(f"{value!r} is not an integer time, as the time column is")
        if isinstance(value, (int, float, np.number)):
            raise ValueError(f"time {value!r} is a number, and the time column holds dates: pass a time stamp")
        if self.kind == "period":
            return int(pd.Period(value, freq=self.period).ordinal)
        stamp = pd.Timestamp(value)
        if (stamp.tz is None) != (self.tz is None):
            zone = "has no time zone" if self.tz is None else f"has the time zone {self.tz}"
            raise ValueError(f"time {value!r} does not fit: the time column {zone}")
        return int(stamp.as_unit(self.unit).asm8.view(np.int64))


def _business_count(days: Array) -> tuple[Array, Array]:
    week, weekday = np.divmod(days + _EPOCH_WEEKDAY, 7)
    return week * 5 + np.minimum(weekday, 4), np.where(weekday > 4, weekday, 0)


def _business_days(count: Array) -> Array:
    week, weekday = np.divmod(count, 5)
    return week * 7 + weekday - _EPOCH_WEEKDAY


def _month_start(months: Array) -> Array:
    return months.view("M8[M]").astype("M8[D]").astype(np.int64)


def _month_count(days: Array, day: int) -> tuple[Array, Array]:
    months = days.view("M8[D]").astype("M8[M]").astype(np.int64)
    first = _month_start(months)
    of_month = days - first + 1
    expected = np.minimum(day, _month_start(months + 1) - first)
    return months, np.where(of_month == expected, 0, of_month)


def _month_days(months: Array, day: int) -> Array:
    months = np.ascontiguousarray(months)
    first = _month_start(months)
    return first + np.minimum(day, _month_start(months + 1) - first) - 1


def settle(axis: Callable[[Frequency], TimeAxis], freq: Frequency, t: Array) -> Frequency:
    """Fill in the day of the month that "M", "Q" and "Y" leave open, from the time stamps t (int64)."""
    if freq.kind != "months" or freq.day:
        return freq
    days = axis(replace(freq, day=1)).wall(t) // axis(replace(freq, day=1))._day
    return replace(freq, day=_stamped_day(days))


def _stamped_day(days: Array) -> int:
    months = days.view("M8[D]").astype("M8[M]").astype(np.int64)
    if np.array_equal(days, _month_start(months + 1) - 1):
        return 31
    return int((days - _month_start(months) + 1).max())


def infer_frequency(axis: Callable[[Frequency], TimeAxis], t: Array, series: Array, name: str) -> Frequency:
    """The frequency of time stamps t (int64), sorted within each series; `axis` builds the TimeAxis of a candidate.

    It is the most frequent step; every other step must be a multiple of it. Raises ValueError where there is none.
    """
    step = np.diff(t)
    inside = (series[1:] == series[:-1]) & (step > 0)
    if not inside.any():
        raise ValueError(f"time column {name!r}: no series has two different times, so pass freq=")
    try:
        candidates = [Frequency(kind="int", step=_mode(step[inside]))]
        axis(candidates[0])
    except ValueError:
        candidates = _date_candidates(axis, t, step, inside)
    for freq in candidates:
        if _on_grid(axis(freq), t, series):
            return freq
    values, counts = np.unique(step[inside], return_counts=True)
    top = values[np.argsort(-counts, kind="stable")[:3]]
    unit = axis(candidates[-1]).unit
    shown = ", ".join(str(pd.Timedelta(int(v), unit=unit)) if unit else str(v) for v in top)
    raise ValueError(
        f"time column {name!r} has no clear frequency: its commonest steps are {shown}; pass freq=, or "
        f"move the times onto a grid (data.snap_times)"
    )


def _mode(values: Array) -> int:
    found, counts = np.unique(values, return_counts=True)
    return int(found[counts.argmax()])


def _date_candidates(axis: Any, t: Array, step: Array, inside: Array) -> list[Frequency]:
    days_axis = axis(Frequency(kind="days", step=1))
    wall, day = days_axis.wall(t), days_axis._day
    fixed = Frequency(kind="fixed", step=_mode(step[inside]) * _SECOND // TICKS[days_axis.unit])
    common = _mode(np.diff(wall)[inside])
    if common < day or common % day:
        return [fixed]
    days, count = wall // day, common // day
    candidates = []
    if 28 <= count <= 31 or 59 <= count <= 62 or 89 <= count <= 92 or count >= 120:
        candidates += _month_candidates(days, inside)
    weekday = (days + _EPOCH_WEEKDAY) % 7
    over_weekend = inside & (weekday[:-1] == 4) & (np.diff(days) == 3)
    if count == 1 and weekday.max() < 5 and over_weekend.any():
        candidates.append(Frequency(kind="business", step=1))
    if count == 7 and np.ptp(days % 7) == 0:
        candidates.append(Frequency(kind="days", step=7, anchor=int(days[0] % 7)))
    return [*candidates, Frequency(kind="days", step=int(count)), fixed]


def _month_candidates(days: Array, inside: Array) -> list[Frequency]:
    months = days.view("M8[D]").astype("M8[M]").astype(np.int64)
    step = np.diff(months)[inside]
    count = _mode(step[step > 0]) if (step > 0).any() else 0
    if count not in (1, 2, 3, 4, 6) and (count == 0 or count % 12):
        return []
    residue = months % count
    anchor = int(residue[0]) if count in (3, 12) and np.ptp(residue) == 0 else None
    return [Frequency(kind="months", step=count, day=_stamped_day(days), anchor=anchor)]


def _on_grid(axis: TimeAxis, t: Array, series: Array) -> bool:
    _, phase = axis.split(t)
    same = (np.diff(phase) == 0) | (series[1:] != series[:-1])
    if not same.all() and axis.shifting:
        ordinal, _ = axis.split(t)
        low = np.minimum.reduceat(phase, np.flatnonzero(np.r_[True, series[1:] != series[:-1]]))
        run = np.cumsum(np.r_[0, series[1:] != series[:-1]])
        return bool(np.array_equal(axis.join(ordinal, low[run]), t)) and bool(axis.regular(low).all())
    return bool(same.all()) and bool(axis.regular(phase).all())


CALENDAR_FEATURES = ("minute", "hour", "dayofweek", "day", "dayofyear", "week", "month", "quarter")


def calendar_features(axis: TimeAxis, t: Array, names: tuple[str, ...]) -> Array:
    """Cyclic features of time stamps t (n,) int64: sine and cosine per name, (n, 2 * len(names)) float32.

    They depend on the wall clock alone, fitted on nothing. Raises ValueError for an unknown name or integer time.
    """
    unknown = [name for name in names if name not in CALENDAR_FEATURES]
    if unknown:
        raise ValueError(f"calendar feature {unknown[0]!r} is unknown; there are {', '.join(CALENDAR_FEATURES)}")
    if names and axis.kind == "int":
        raise ValueError("calendar features need dates in the time column; it holds integers")
    out = np.empty((len(t), 2 * len(names)), np.float32)
    if not names:
        return out
    if axis.kind == "period":
        t, unit = axis.stamps(t).to_timestamp().as_unit("s").asi8, "s"  # type: ignore[attr-defined]
    else:
        t, unit = axis.wall(t), axis.unit
    for j, name in enumerate(names):
        angle = 2 * np.pi * _turn(t, 86400 * TICKS[unit], name)
        out[:, 2 * j], out[:, 2 * j + 1] = np.sin(angle), np.cos(angle)
    return out


def _turn(wall: Array, day: int, name: str) -> Array:
    """The position in a cycle, in [0, 1)."""
    days, clock = np.divmod(wall, day)
    hour = 24.0 * clock / day
    if name == "minute":
        return hour % 1.0
    if name == "hour":
        return hour / 24.0
    if name == "dayofweek":
        return ((days + _EPOCH_WEEKDAY) % 7) / 7.0
    months = days.view("M8[D]").astype("M8[M]").astype(np.int64)
    if name == "day":
        first = _month_start(months)
        return (days - first) / (_month_start(months + 1) - first)
    if name == "month":
        return (months % 12) / 12.0
    if name == "quarter":
        return (months % 12 // 3) / 4.0
    january = _month_start(months - months % 12)
    of_year = days - january
    length = _month_start(months - months % 12 + 12) - january
    return of_year / length if name == "dayofyear" else (of_year // 7) / 53.0
