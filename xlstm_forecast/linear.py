"""model="linear": the closed-form backbone over a panel, a forecaster by itself and what the networks correct.

Every target variate of every series is a series of its own to the backbone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .backbone import Backbone, BackboneConfig, FittedBackbone, Recent, gather, joined_history, slices
from .batch import Batch
from .data.frame import Panel

Array = np.ndarray
KEPT = 1 << 26  # bytes of forecasts that training keeps at most
LEVELS = 8  # of a known-future category at most, for the backbone to read it
Base = Callable[[Array, Array], Array]  # of windows at (series, origin), (n,) each, their quantiles (n, H, V, Q)


class LinearModel:
    """A fitted backbone, and the series that it was fitted on."""

    def __init__(self, fitted: FittedBackbone, keys: Sequence[Any], levels: Sequence[Sequence[int]] = ()):
        self.fitted = fitted
        self.keys = list(keys)  # ids of the series in the fit, as plain values
        self.levels = [(int(column), int(k)) for column, k in levels]  # known categories that are inputs, 0 or 1

    @classmethod
    def fit(cls, panel: Panel, end: Array, horizon: int, season: int | None = None) -> LinearModel:
        """Fit on the first `end` (n,) rows of each series of a panel; nothing after them is read."""
        config = BackboneConfig(
            horizon=horizon, freq=None if panel.axis.kind == "int" else str(panel.freq), season=season
        )
        variates = panel.target.shape[1]
        rows = np.concatenate([np.arange(a, a + n) for a, n in zip(panel.offsets[:-1], end, strict=True)])
        values = np.concatenate([panel.target[rows, v] for v in range(variates)])
        offsets = np.r_[0, np.cumsum(np.tile(end, variates))]
        starts = _dates(panel, np.arange(len(panel)), np.zeros(len(panel), np.int64))
        levels = _levels(panel)
        inputs = _inputs(panel, rows, levels)
        known = np.tile(inputs, (variates, 1)) if inputs.shape[1] else None
        fitted = Backbone(config).fit(values, offsets, None if starts is None else np.tile(starts, variates), known)
        return cls(fitted, panel.keys, levels)

    def quantiles(self, panel: Panel, series: Array, origin: Array, levels: Sequence[float]) -> Array:
        """Quantiles (n, H, V, Q) of the windows at (series, origin) of any panel, from rows before each origin."""
        return self.on(panel, levels)(series, origin)

    def on(self, panel: Panel, levels: Sequence[float]) -> Base:
        """The quantiles at fixed levels as a function of (series, origin), as `Windows` takes it."""

        def forecast(series: Array, origin: Array) -> Array:
            known = self._known(panel, series, origin, self.fitted.known_behind)
            parts = []
            for history, index, when in self._variates(panel, series, origin, self.fitted.history):
                parts.append(self.fitted.quantiles(history, np.asarray(levels), index, when, known))
            return np.stack(parts, 2)

        return forecast

    def around(self, panel: Panel, model: Callable[[Array], Array], reach: int) -> Base:
        """Another model of the values alone, (n, reach) -> (n, H, Q), as a function of (series, origin) like `on`.

        It is given the histories without sentinels and calendar effects, and from a new level on as if there had been
        no other; effects are put back, and the floor is kept.
        """

        def forecast(series: Array, origin: Array) -> Array:
            parts = []
            for history, index, when in self._variates(panel, series, origin, reach):
                history, factor, floor = self.fitted.freed(history, index, when)
                history = joined_history(history, self.fitted.sizes.short)
                parts.append(np.maximum(model(history) * factor[..., None], floor))
            return np.stack(parts, 2)

        return forecast

    def joined(self, batch: Batch) -> Batch:
        """Windows that start from the backbone, as networks forecast from them: what lies before a new level is moved
        onto it. Training windows are as they are; few of them hold a new level."""
        if batch.base is None:
            return batch
        history = np.where(batch.observed, batch.target.double(), np.nan)
        variates = [history[..., v] for v in range(history.shape[2])]
        moved = [joined_history(values, self.fitted.sizes.short) for values in variates]
        if all(found is values for found, values in zip(moved, variates, strict=True)):
            return batch
        target = torch.from_numpy(np.nan_to_num(np.stack(moved, 2))).float()
        return replace(batch, target=target)

    def floors(self, panel: Panel, series: Array, origin: Array) -> Array:
        """(n, 1, V, 1) the values that forecasts do not fall below, -inf where there is none."""
        if not np.isfinite(self.fitted.floor).any():
            return np.full((len(series), 1, panel.target.shape[1], 1), -np.inf)
        seen = self._variates(panel, series, origin, self.fitted.history)
        return np.stack([self.fitted.floors(history, index) for history, index, _ in seen], 2)

    def recent_inputs(self) -> list[int]:
        """The known-future inputs that the regression on each window's own past reads; none where it does not suit."""
        kept = self.fitted.kept_inputs
        return kept if Recent(self.fitted.sizes.shape).suits(len(kept)) else []

    def recent_seconds(self) -> float:
        """About what such a regression takes of a core for one window."""
        return Recent(self.fitted.sizes.shape).seconds(len(self.recent_inputs()))

    def has_past(self, panel: Panel, series: Array, origin: Array) -> Array:
        """(n,) bool, whether every target has past enough before an origin for such a regression."""
        since = origin[:, None] - panel.first_observed[series]
        return Recent(self.fitted.sizes.shape).has_past(since.min(1))

    def recent(self, panel: Panel, levels: Sequence[float]) -> Base:
        """Quantiles by a regression on each window's own past, see `backbone.recent`, as a function like `on`.

        Windows whose past is too short get those of the backbone, and all where no known-future input was kept.
        """
        regression, kept, backbone = Recent(self.fitted.sizes.shape), self.recent_inputs(), self.on(panel, levels)
        at = np.asarray(levels, dtype=np.float64)
        if not kept:  # the fit on all rows may keep none of those that the regression was judged with
            return backbone

        def forecast(series: Array, origin: Array) -> Array:
            out = np.full((len(series), self.fitted.horizon, panel.target.shape[1], len(at)), np.nan)
            for part in slices(len(series), 16):
                known = self._known(panel, series[part], origin[part], regression.reach)
                assert known is not None
                for v, seen in enumerate(self._variates(panel, series[part], origin[part], regression.reach)):
                    history, factor, floor = self.fitted.freed(*seen)
                    for i in range(len(history)):
                        found = regression.quantiles(history[i], known[i][:, kept], at)
                        if found is not None:
                            factors = factor[min(i, len(factor) - 1), :, None]
                            out[part.start + i, :, v] = np.maximum(found * factors, floor[i])
            return out

        return filled(forecast, backbone)

    def _variates(
        self, panel: Panel, series: Array, origin: Array, reach: int
    ) -> Iterator[tuple[Array, Array, Array | None]]:
        """For every variate the histories (n, reach), which series of the fit they are (-1: none), and the dates."""
        place = {key: i for i, key in enumerate(self.keys)}
        fitted_as = np.array([place.get(key, -1) for key in panel.keys], np.int64)[series]
        when = _dates(panel, series, origin) if self.fitted.calendar is not None else None
        for v in range(panel.target.shape[1]):
            history = gather(panel.target[:, v], panel.offsets, series, origin, reach)
            for i in np.flatnonzero(~np.isfinite(history).any(1)):  # all was seen longer ago: the last of it
                start = panel.offsets[series[i]]
                seen = panel.target[start : start + origin[i], v]
                seen = seen[np.isfinite(seen)]
                history[i, -1] = seen[-1] if len(seen) else np.nan
            yield history, np.where(fitted_as >= 0, fitted_as + v * len(self.keys), -1), when

    def _known(self, panel: Panel, series: Array, origin: Array, behind: int) -> Array | None:
        """(n, behind + H, K) known-future inputs around each origin, NaN outside the series' rows."""
        if not panel.known.shape[1] and not self.levels:
            return None
        row = origin[:, None] + np.arange(-behind, self.fitted.horizon)
        inside = (row >= 0) & (row < np.diff(panel.offsets)[series][:, None])
        flat = np.where(inside, row + panel.offsets[:-1][series][:, None], 0)
        return np.where(inside[..., None], _inputs(panel, flat, self.levels), np.nan)

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON values for a checkpoint."""
        arrays, text = self.fitted.to_arrays()
        return {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in arrays.items()}, {
            "text": text,
            "keys": self.keys,
            "levels": self.levels,
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], values: dict[str, Any]) -> LinearModel:
        """The inverse of `to_tensors`."""
        arrays = {k: v.numpy() for k, v in tensors.items()}
        return cls(FittedBackbone.from_arrays(arrays, values["text"]), values["keys"], values.get("levels", ()))


def _levels(panel: Panel) -> list[tuple[int, int]]:
    """(column, index) of the known-future categories that the backbone reads as 0 or 1: all but the first of a few."""
    sizes = panel.encoding.sizes(panel.roles.categories("future"))  # index 0 of each: unknown
    return [(column, k) for column, size in enumerate(sizes) if size - 1 <= LEVELS for k in range(2, size)]


def _inputs(panel: Panel, rows: Array, levels: Sequence[tuple[int, int]]) -> Array:
    """(*rows, K) known-future numbers of rows of the panel, and behind them its categories at `levels`."""
    parts = [panel.known[rows].astype(np.float64)]
    parts += [(panel.known_categories[rows, column] == index)[..., None].astype(np.float64) for column, index in levels]
    return np.concatenate(parts, -1)


class Remembered:
    """A base that keeps its forecasts of a panel's windows, for training, which asks for each of them many times.

    Where all of them would take more than `KEPT` bytes nothing is kept. A forecast's last digit depends on the windows
    beside it, so it is that of the first time it was asked for.
    """

    def __init__(self, base: Base, panel: Panel):
        self.base = base
        self.first = panel.offsets[:-1] + np.arange(len(panel))  # a series has one origin more than rows
        self.there = np.zeros(len(panel.target) + len(panel), bool)
        self.kept: Array | None = None

    def __call__(self, series: Array, origin: Array) -> Array:
        """Quantiles (n, H, V, Q) of the windows at (series, origin), (n,) each."""
        at = self.first[series] + origin
        new = ~self.there[at]
        if self.kept is None or new.any():
            found = self.base(series[new], origin[new])
            if self.kept is None:
                if not len(found) or len(self.there) * found[0].nbytes > KEPT:
                    return found
                self.kept = np.empty((len(self.there), *found.shape[1:]), found.dtype)
            self.kept[at[new]] = found
            self.there[at[new]] = True
        return self.kept[at]


def filled(forecast: Base, backbone: Base) -> Base:
    """A forecast of windows, with the backbone's for those that it has none for (NaN)."""

    def complete(series: Array, origin: Array) -> Array:
        out = forecast(series, origin)
        short = np.isnan(out).any((1, 2, 3))
        if short.any():
            out[short] = backbone(series[short], origin[short])
        return out

    return complete


def _dates(panel: Panel, series: Array, rows: Array) -> Array | None:
    """Wall-clock stamps (datetime64) of rows of series; None for integer time."""
    if panel.axis.kind == "int":
        return None
    stamps: Any = panel.axis.stamps(panel.times(series, rows))
    stamps = stamps.to_timestamp() if panel.axis.kind == "period" else stamps.tz_localize(None)
    return np.asarray(stamps, "datetime64[ns]")
