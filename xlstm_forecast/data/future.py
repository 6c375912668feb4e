"""The rows after the history: known-future columns for the horizon of a forecast."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from .columns import TimeColumn, Vocabulary, counted, floats, numeric, open_frame, require
from .grid import indices
from .panel import Panel, future_times

Array = np.ndarray


def extend(panel: Panel, future_df: Any, horizon: int, carry: bool = False) -> Panel:
    """`Panel.with_future`."""
    roles = panel.roles
    if not roles.future:
        return panel
    if future_df is None:
        raise ValueError(
            f"future_df is needed: the columns {list(roles.future)} must be known for {horizon} steps ahead"
        )
    frame, _ = open_frame(future_df, roles, "future_df")
    require(frame, [c for c in (roles.id, roles.time) if c is not None] + list(roles.future), "future_df")
    place = _places(panel, frame, horizon)  # (n, H) row of future_df
    if (place < 0).any():
        if not (carry and (place >= 0).any()):
            _raise_uncovered(panel, place, horizon)
        place = _carried(place)
    known = np.empty((len(panel), horizon, panel.known.shape[1]), np.float32)
    for j, column in enumerate(roles.reals("future")):
        numeric(frame[column], "future covariate", booleans=True)
        values = floats(frame[column])[place]
        if not np.isfinite(values).all():
            series, step = np.argwhere(~np.isfinite(values))[0]
            when = panel.axis.show(int(future_times(panel, [series], [panel.history[series]], horizon)[0, step]))  # type: ignore[arg-type]
            bad = int((~np.isfinite(values)).sum())
            raise ValueError(
                f"column {column!r} of future_df is missing or infinite in {counted(bad, 'row', 'rows')}; first: "
                f"{panel.name(int(series))}, {roles.time}={when}; fill them: this column must be known over the horizon"
            )
        known[:, :, j] = (values - panel.encoding.location[column]) / panel.encoding.scale[column]
    categories = np.zeros((len(panel), horizon, panel.known_categories.shape[1]), np.int32)
    for j, column in enumerate(roles.categories("future")):
        vocabulary = Vocabulary()
        codes = vocabulary.codes(frame[column])
        table = indices(column, vocabulary, panel.encoding.categories[column])
        categories[:, :, j] = table[codes][place]
    return _append(panel, horizon, known, categories)


def _places(panel: Panel, frame: Any, horizon: int) -> Array:
    """(n, H) the row of the frame for each step of each series' horizon, -1 where there is none."""
    roles, axis = panel.roles, panel.axis
    time = TimeColumn.of(frame[roles.time])
    if (time.kind, time.tz) != (axis.kind, axis.tz):
        have, need = (f"{k} with time zone {z}" if z else k for k, z in ((time.kind, time.tz), (axis.kind, axis.tz)))
        raise ValueError(f"time column {roles.time!r} of future_df is {have}; that of the history is {need}")
    if int(frame[roles.time].is_null().sum()):
        raise ValueError(f"column {roles.time!r} of future_df has missing values")
    ticks = time.convert(time.ticks(frame[roles.time]), axis.unit)
    codes = np.zeros(len(frame), np.int64)
    if roles.id is not None:
        vocabulary = Vocabulary()
        own = vocabulary.codes(frame[roles.id])
        index = {key: i for i, key in enumerate(panel.keys)}
        codes = np.array([*(index.get(key, -1) for key in vocabulary.index), -1], np.int64)[own]
    rows = np.flatnonzero(codes >= 0)
    codes, ticks = codes[rows], ticks[rows]
    step = axis.split(ticks)[0] - panel.start[codes] - panel.history[codes]
    inside = (step >= 0) & (step < horizon)
    rows, codes, ticks, step = rows[inside], codes[inside], ticks[inside], step[inside]
    exact = panel.times(codes, panel.history[codes] + step) == ticks
    rows, codes, step = rows[exact], codes[exact], step[exact]
    place = np.full((len(panel), horizon), -1, np.int64)
    place[codes, step] = rows
    if len(rows) > int((place >= 0).sum()):
        again = np.flatnonzero(place[codes, step] != rows)[0]
        raise ValueError(
            f"future_df has more than one row for the same time of {panel.name(int(codes[again]))}; keep one"
        )
    return place


def _carried(place: Array) -> Array:
    """(n, H) rows with those of the step before, the next or another series in place of -1."""
    step = np.maximum.accumulate(np.where(place >= 0, np.arange(place.shape[1]), -1), axis=1)
    first = (place >= 0).argmax(1)[:, None]
    found = np.take_along_axis(place, np.where(step >= 0, step, first), 1)
    return np.where(found >= 0, found, place.max())


def _raise_uncovered(panel: Panel, place: Array, horizon: int) -> None:
    lacking = np.flatnonzero((place < 0).any(axis=1))
    series = int(lacking[0])
    times = future_times(panel, lacking[:1], panel.history[lacking[:1]], horizon)[0]
    first, begin, end = (panel.axis.show(int(t)) for t in (times[np.argmax(place[series] < 0)], times[0], times[-1]))
    raise ValueError(
        f"future_df does not cover the horizon of {counted(len(lacking), 'series', 'series')}; first: "
        f"{panel.name(series)} lacks {panel.roles.time}={first}; it needs the {horizon} steps from {begin} to {end}"
    )


def _append(panel: Panel, horizon: int, known: Array, categories: Array) -> Panel:
    """The panel with `horizon` rows more per series; rows after the history that it had are replaced."""
    n, length = len(panel), panel.history
    offsets = np.r_[0, np.cumsum(length + horizon)]
    old = np.arange(int(length.sum())) + np.repeat(panel.offsets[:-1] - np.r_[0, np.cumsum(length)[:-1]], length)
    new = np.arange(len(old)) + np.repeat(np.arange(n) * horizon, length)
    ahead = (offsets[1:, None] - horizon + np.arange(horizon)).reshape(-1)

    def grown(values: Array, future: Any) -> Array:
        out = np.empty((int(offsets[-1]), *values.shape[1:]), values.dtype)
        out[new], out[ahead] = values[old], future
        return out

    return replace(
        panel,
        offsets=offsets,
        target=grown(panel.target, np.nan),
        past=grown(panel.past, np.nan),
        past_categories=grown(panel.past_categories, 0),
        weight=None if panel.weight is None else grown(panel.weight, 1),
        known=grown(panel.known, known.reshape(n * horizon, -1)),
        known_categories=grown(panel.known_categories, categories.reshape(n * horizon, -1)),
    )
