"""What reading a frame and reading files have in common: the time grid, what is learnt from columns, their errors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .calendar import TimeAxis
from .columns import Vocabulary, chunks, counted
from .roles import Encoding, ordered

Array = np.ndarray
Name = Callable[[int], str]  # a series' or row's number -> how a message calls it

_FILL_LIMIT = 20  # a grid this many times the rows given is a wrong frequency or a wrong date, not a gap


@dataclass
class Grid:
    """The time steps of n series, one after another, from the first to the last row of each."""

    offsets: Array  # (n + 1,) int64
    start: Array  # (n,) int64 ordinals
    phase: Array  # (n,) int64
    holes: Array | None = None  # (R,) bool, steps without a row; None: none

    @property
    def rows(self) -> int:
        return int(self.offsets[-1])

    @classmethod
    def spanning(
        cls, axis: TimeAxis, column: str, name: Name, start: Array, end: Array, phase: Array, rows: int
    ) -> Grid:
        """The grid from the first to the last ordinal of each series; ValueError where it dwarfs the rows given."""
        length = end - start + 1
        if length.astype(float).sum() > _FILL_LIMIT * rows + 1000:
            worst = int(np.argmax(length))
            times = axis.join(np.array([start[worst], end[worst]]), phase[[worst, worst]])
            raise ValueError(
                f"{name(worst)} runs from {axis.show(times[0])} to {axis.show(times[1])}: {length[worst]} steps of "
                f"freq={axis.freq.name!r}, far more than its rows; look for a wrong date in {column!r} or pass the "
                f"right freq="
            )
        return cls(np.r_[0, np.cumsum(length)], start, phase)

    def raise_gaps(self, axis: TimeAxis, column: str, name: Name) -> None:
        """The error that counts the series with holes and names the first."""
        assert self.holes is not None
        gappy = np.flatnonzero(np.add.reduceat(self.holes, self.offsets[:-1], dtype=np.int64))
        series = int(gappy[0])
        hole = int(np.argmax(self.holes[self.offsets[series] : self.offsets[series + 1]]))
        after = axis.join(self.start[[series]] + hole - 1, self.phase[[series]])[0]
        raise ValueError(
            f"{counted(len(gappy), 'series has', 'series have')} gaps in {column!r} at freq={axis.freq.name!r}; first: "
            f"{name(series)}, after {axis.show(after)}; fill them, or pass on_gap='mask' to treat the missing steps as "
            f"missing values"
        )

    def carry(self, values: Array) -> None:
        """Fill the holes of a column (R, W) with the row before them."""
        assert self.holes is not None
        at = np.flatnonzero(self.holes)
        starts = np.r_[True, at[1:] != at[:-1] + 1] if len(at) else np.zeros(0, bool)
        before = (at[starts] - 1)[np.cumsum(starts) - 1]
        values[at] = values[before]


def ordinals(axis: TimeAxis, ticks: Array, phase: Array, column: str, where: Name) -> Array:
    """Ordinals of time stamps that must lie on their series' grid: of phase (rows,), that of each row's series."""
    ordinal, own = axis.split(ticks)
    odd = np.flatnonzero((own != phase) | ~axis.regular(own))
    if len(odd):
        moved = (axis.join(ordinal[odd], phase[odd]) == ticks[odd]) & axis.regular(phase[odd])
        odd = odd[~moved]
    if len(odd):
        raise ValueError(
            f"time column {column!r} is not on the grid of freq={axis.freq.name!r} in "
            f"{counted(len(odd), 'row', 'rows')}; first: {where(int(odd[0]))}; pass the right freq=, or move the times "
            f"onto the grid (data.snap_times)"
        )
    return ordinal


class Moments:
    """Mean and standard deviation of a column that comes in parts; missing and infinite values are passed over."""

    def __init__(self) -> None:
        self.count, self.shift, self.first, self.second = 0, 0.0, 0.0, 0.0

    def add(self, x: Array) -> None:
        finite = np.isfinite(x)
        x = x if finite.all() else x[finite]
        if len(x) == 0:
            return
        if self.count == 0:
            self.shift = float(x[0])
        x = x - self.shift
        self.count, self.first, self.second = (
            self.count + len(x),
            self.first + float(x.sum()),
            self.second + float(x @ x),
        )

    def result(self) -> tuple[float, float]:
        """(location, scale); the scale of a constant is 1."""
        if self.count == 0:
            return 0.0, 1.0
        mean = self.first / self.count
        scale = float(np.sqrt(max(self.second / self.count - mean * mean, 0.0)))
        location = self.shift + mean
        return location, scale if np.isfinite(scale) and scale > 1e-12 * max(abs(location), 1e-300) else 1.0


def indices(column: str, vocabulary: Vocabulary, known: list[Any]) -> Array:
    """Numbers of a vocabulary (-1: missing) -> indices of the known categories, 0 for others.

    Raises ValueError where all are text and the known ones are not, or the other way round.
    """
    index = {value: i for i, value in enumerate(known, 1)}
    found = list(vocabulary.index)
    text = [{isinstance(value, str) for value in values} for values in (found, known)]
    if text in ([{True}, {False}], [{False}, {True}]):
        raise ValueError(
            f"column {column!r} holds values such as {found[0]!r}, and the model was fitted on values such as "
            f"{known[0]!r}: give them the same type"
        )
    return np.array([*(index.get(value, 0) for value in found), 0], np.int32)


class Learner:
    """Standardisation and vocabularies: learnt from these columns, or those of an earlier encoding."""

    def __init__(self, fitted: Encoding | None):
        self.fitted = fitted
        self.categories: dict[str, list[Any]] = {} if fitted is None else fitted.categories
        self.location: dict[str, float] = {} if fitted is None else fitted.location
        self.scale: dict[str, float] = {} if fitted is None else fitted.scale

    def standardise(self, column: str, parts: Iterable[Array]) -> tuple[float, float]:
        """Location and scale of a column that comes in parts (float64, NaN where missing)."""
        if self.fitted is None:
            moments = Moments()
            for part in parts:
                moments.add(part)
            self.location[column], self.scale[column] = moments.result()
        return self.location[column], self.scale[column]

    def table(self, column: str, vocabulary: Vocabulary) -> Array:
        """Numbers of a vocabulary (-1: missing) -> indices of the encoding."""
        if self.fitted is None:
            self.categories[column] = ordered(vocabulary.index)
        return indices(column, vocabulary, self.categories[column])

    def encoding(self, axis: TimeAxis, keys: list[Any]) -> Encoding:
        """All that was learnt."""
        if self.fitted is not None:
            return self.fitted
        return Encoding(
            time=axis.kind,
            tz=axis.tz,
            freq=axis.freq.name,
            ids=keys,
            categories=self.categories,
            location=self.location,
            scale=self.scale,
            period=axis.period,
        )


LARGEST = 1e37  # absolute value of a target


def bad_values(column: str, count: int, first: str, missing: bool) -> str:
    """The message about a real column with values that it may not have."""
    found = "infinite" if missing else "missing or infinite"
    remedy = "make them NaN to treat them as missing" if missing else "fill them: this column must always be known"
    return f"column {column!r} is {found} in {counted(count, 'row', 'rows')}; first: {first}; {remedy}"


def check_observed(columns: tuple[str, ...], grid: Grid, target: Array, name: Name) -> None:
    """Raise ValueError for a target (R, V) without any value or too large ones, or a series without any of one."""
    observed = np.zeros((len(grid.offsets) - 1, len(columns)), bool)
    for a, b in chunks(len(target)):
        first = int(np.searchsorted(grid.offsets, a, "right")) - 1
        starts = np.maximum(grid.offsets[first:-1], a)
        starts = starts[starts < b]
        there = ~np.isnan(target[a:b])
        observed[first : first + len(starts)] |= np.logical_or.reduceat(there, starts - a)
        large = (np.abs(np.where(there, target[a:b], 0.0)) > LARGEST).any(axis=0)
        if large.any():
            raise ValueError(
                f"target column {columns[int(large.argmax())]!r} has values beyond {LARGEST:g}, which single precision "
                "cannot hold: give it in a larger unit"
            )
    for v, column in enumerate(columns):
        if not observed[:, v].any():
            raise ValueError(f"target column {column!r} has no observed value; all {len(target)} are missing")
    for v, column in enumerate(columns):
        empty = np.flatnonzero(~observed[:, v])
        if len(empty):
            raise ValueError(
                f"{counted(len(empty), 'series has', 'series have')} no observed target value in column {column!r}; "
                f"first: {name(int(empty[0]))}; drop {'it' if len(empty) == 1 else 'them'}"
            )
