"""The last windows of each series, which training does not see: where they lie, and how much they can tell."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .data.frame import Panel
from .settings import Settings, choose_validation

Array = np.ndarray
MAX_VALIDATION = 4096  # windows


@dataclass(frozen=True, kw_only=True)
class Split:
    """The held-back last windows. Every row at or after a series' `end` is kept from training."""

    end: Array  # (n,) rows of each series that training sees
    series: Array  # (m,) of the validation windows
    origin: Array  # (m,)

    def none_held_back(self, lengths: Array) -> Split:
        """Everything to train on and nothing to judge by."""
        nothing = np.zeros(0, np.int64)
        return Split(end=lengths, series=nothing, origin=nothing)

    def count(self, horizons: float, apart: float | None) -> float:
        """How many independent windows they are worth.

        horizons: that fit one after another into what is held back. apart: series that move on their own, as far as the
        backbone could tell.
        """
        series = len(np.unique(self.series))
        return horizons * (series**0.5 if apart is None else min(apart, series))


def split(panel: Panel, settings: Settings, horizon: int) -> Split:
    """Hold back the last windows of each series that is long enough to spare them."""
    length, keep = panel.history, settings.validation
    spare = (length >= keep + horizon + settings.min_context) if keep else np.zeros(len(length), bool)
    end = np.where(spare, length - keep, length)
    series = np.flatnonzero(spare)
    steps = np.arange(keep - horizon, -1, -settings.validation_step)[::-1] if keep else np.zeros(0, np.int64)
    series, steps = np.repeat(series, len(steps)), np.tile(steps, len(series))
    if len(series) > MAX_VALIDATION:
        chosen = np.sort(np.random.default_rng(0).choice(len(series), MAX_VALIDATION, replace=False))
        series, steps = series[chosen], steps[chosen]
    return Split(end=end, series=series, origin=end[series] + steps)


def could_judge(panel: Panel, settings: Settings, horizon: int) -> bool:
    """Whether series are long enough to hold windows back, whatever was asked for."""
    size, step = choose_validation(panel.history, horizon, None)
    return bool(len(split(panel, replace(settings, validation=size, validation_step=step), horizon).series))
