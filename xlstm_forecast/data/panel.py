"""A panel: the series of a frame as flat columns, one after another, on a regular time grid."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import narwhals as nw
import numpy as np

from .calendar import TimeAxis
from .columns import build_frame, take, time_series
from .roles import Encoding, Roles

Array = np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class Panel:
    """Series i owns the rows offsets[i] to offsets[i + 1] of every column, one per step of the time axis, no holes.

    R rows, n series; V, K, O, S, C as in `batch`. The rows after `history` hold known-future columns only.
    """

    roles: Roles
    encoding: Encoding
    axis: TimeAxis
    ids: nw.Series | None  # (n,) in the caller's own type; None without an id column
    keys: list[Any]  # (n,) ids as plain values
    series: Array  # (n,) int64, index in the fitted panel; -1 where it was not fitted on the series
    offsets: Array  # (n + 1,) int64
    start: Array  # (n,) int64, ordinal of the first row
    phase: Array  # (n,) int64
    history: Array  # (n,) int64, rows of history
    target: Array  # (R, V) float64, NaN where missing
    known: Array  # (R, K) float32, standardised
    past: Array  # (R, O) float32, standardised, NaN where missing
    static: Array  # (n, S) float32, standardised, NaN where missing
    known_categories: Array  # (R, C) int32, 0 = unknown or missing
    past_categories: Array  # (R, C) int32
    static_categories: Array  # (n, C) int32
    weight: Array | None  # (R,) float32
    time_template: nw.Series  # no rows: the type and library of the caller's time column

    def __len__(self) -> int:
        return len(self.history)

    @property
    def rows(self) -> int:
        """R, the number of rows of all series, future rows included."""
        return int(self.offsets[-1])

    @functools.cached_property
    def first_observed(self) -> Array:
        """(n, V) rows of each series before its first observed value of each target; all rows where there is none."""
        rows = np.arange(len(self.target))[:, None] - np.repeat(self.offsets[:-1], np.diff(self.offsets))[:, None]
        length = np.diff(self.offsets)[:, None]
        found = np.where(np.isnan(self.target), np.iinfo(np.int64).max, rows)
        return np.minimum(np.minimum.reduceat(found, self.offsets[:-1]), length)

    @property
    def freq(self) -> str | int:
        """The step of the time axis, as pandas writes it, or an integer."""
        return self.axis.period or self.axis.freq.name

    def times(self, series: Array, rows: Array) -> Array:
        """Time stamps (int64 in the axis' unit) of rows of series, counted from their first; also beyond their last."""
        return self.axis.join(self.start[series] + rows, self.phase[series])

    def rows_before(self, time: Any) -> Array:
        """(n,) how many rows of history each series has before a time stamp."""
        t = np.full(len(self), self.axis.parse(time), np.int64)
        base = self.axis.split(t)[0] - self.start - 1
        before = base + sum((self.axis.join(self.start + base + d, self.phase) < t).astype(np.int64) for d in range(3))
        return np.clip(before, 0, self.history)

    def name(self, series: int) -> str:
        """A series for a message."""
        return "the series" if self.roles.id is None else f"{self.roles.id}={self.keys[series]!r}"

    def ends(self) -> list[tuple[Any, int]]:
        """Id and last time stamp (int64) of each series' history."""
        return list(zip(self.keys, self.times(np.arange(len(self)), self.history - 1).tolist(), strict=True))

    def with_future(self, future_df: Any, horizon: int, *, carry: bool = False) -> Panel:
        """This panel with `horizon` rows after each series' history, their known-future columns taken from a frame.

        Without known-future columns the panel itself is returned. Raises ValueError where the frame does not cover the
        horizon of every series, naming the first one; with `carry` its steps without a row take that of the step
        before, or the next one, or, in a series without any, some other series'.
        """
        from .future import extend

        return extend(self, future_df, horizon, carry)

    def with_calendar(self, features: tuple[str, ...]) -> Panel:
        """This panel with these calendar features; see `CALENDAR_FEATURES`."""
        return replace(self, roles=replace(self.roles, calendar=tuple(features)))

    def without_covariates(self) -> Panel:
        """This panel with the targets, their weights and calendar features alone."""
        roles = replace(self.roles, future=(), past=(), static=(), categorical=())
        names = ("known", "past", "static", "known_categories", "past_categories", "static_categories")
        return replace(self, roles=roles, **{name: getattr(self, name)[:, :0] for name in names})

    def select(self, series: Array) -> Panel:
        """A panel of some of the series, in the given order."""
        series = np.asarray(series, np.int64)
        per_series = ("series", "start", "phase", "history", "static", "static_categories")
        return replace(
            self,
            ids=None if self.ids is None else take(self.ids, series),
            keys=[self.keys[i] for i in series],
            **self._rows(self.offsets[series], np.diff(self.offsets)[series]),
            **{k: getattr(self, k)[series] for k in per_series},
        )

    def since_observed(self) -> Panel:
        """This panel without the rows of each series before the first observed value of any target."""
        skip = self.first_observed.min(1)
        skip = np.where(skip < self.history, skip, 0)
        if not skip.any():
            return self
        rows = self._rows(self.offsets[:-1] + skip, np.diff(self.offsets) - skip)
        return replace(self, start=self.start + skip, history=self.history - skip, **rows)

    def _rows(self, first: Array, lengths: Array) -> dict[str, Any]:
        """The columns of runs of rows, one after another, and where each run begins."""
        offsets = np.r_[0, np.cumsum(lengths)]
        flat = np.arange(offsets[-1]) + np.repeat(first - offsets[:-1], lengths)
        per_row = ("target", "known", "past", "known_categories", "past_categories")
        return {
            "offsets": offsets,
            "weight": None if self.weight is None else self.weight[flat],
            **{k: getattr(self, k)[flat] for k in per_row},
        }


def future_times(panel: Panel, series: Array, origin: Array, horizon: int) -> Array:
    """(n, H) int64 time stamps of the steps that follow `origin` rows of history of each given series."""
    series, origin = np.asarray(series, np.int64), np.asarray(origin, np.int64)
    rows = origin[:, None] + np.arange(horizon)
    return panel.times(np.repeat(series, horizon), rows.reshape(-1)).reshape(rows.shape)


def forecast_frame(
    panel: Panel, series: Array, origin: Array, values: Mapping[str, Array], *, cutoff: bool = False
) -> Any:
    """Values for the steps after each origin as a frame of the caller's kind: id, time, [cutoff], [target], values.

    series, origin (n,); each value (n, H), or (n, H, V) for V targets: they come long, with their names in a column
    "target" where V > 1. `cutoff` is the last time stamp before the origin. Ids, time type, unit and zone are as given.
    """
    series, origin = np.asarray(series, np.int64), np.asarray(origin, np.int64)
    cubes = {k: v if v.ndim == 3 else v[:, :, None] for k, v in ((k, np.asarray(v)) for k, v in values.items())}
    n, horizon, variates = next(iter(cubes.values())).shape
    times = np.repeat(future_times(panel, series, origin, horizon)[:, None], variates, 1)  # (n, V, H)
    columns: dict[str, Any] = {}
    if panel.ids is not None and panel.roles.id is not None:
        columns[panel.roles.id] = take(panel.ids, np.repeat(series, variates * horizon))
    columns[panel.roles.time] = _stamps(panel, times.reshape(-1))
    if cutoff:
        last = panel.times(series, origin - 1)
        columns["cutoff"] = _stamps(panel, np.repeat(last, variates * horizon))
    if variates > 1:
        columns["target"] = np.tile(np.repeat(np.array(panel.roles.target, object), horizon), n)
    for name, cube in cubes.items():
        columns[name] = np.ascontiguousarray(cube.transpose(0, 2, 1)).reshape(-1)
    return build_frame(columns, panel.time_template.implementation)


def frame_of(frame: Any, kind: str) -> Any:
    """The same frame in "pandas" or "polars", with its columns' types, their time zones included."""
    given = nw.from_native(frame, eager_only=True)
    backend: Any = nw.Implementation.from_string(kind)
    if given.implementation is backend:
        return frame
    columns = {}
    for name, dtype in given.schema.items():
        column = given[name]
        values = column.to_numpy() if dtype.is_numeric() else column.to_list()
        known = None if dtype in (nw.Object, nw.Unknown) else dtype
        columns[name] = nw.new_series(name, values, known, backend=backend)
    return build_frame(columns, backend)


def _stamps(panel: Panel, ticks: Array) -> nw.Series:
    return time_series(panel.time_template, panel.axis.stamps(ticks))
