"""Classical models of one series, fitted again at every test window: what a first try compares with.

Exponential smoothing (statsmodels; season, trend, damping and kind of error by AICc, quantiles from simulated paths)
and theta (sktime). Missing values are carried forward; of long series the last `LONGEST` values are read.
"""

from __future__ import annotations

import contextlib
import itertools
import time
import warnings
from collections.abc import Callable

import numpy as np
import pandas as pd
from anchors import carried
from sets import LEVELS, Array, Task

LONGEST = 600
PATHS = 500
UNFIT = (ValueError, IndexError, np.linalg.LinAlgError)  # what statsmodels raises where values are too few


def _ets(past: Array, season: int, horizon: int) -> Array:
    """(H, 9) of the exponential smoothing of the lowest AICc. Multiplied seasons and errors where all is positive."""
    from statsmodels.tsa.exponential_smoothing.ets import ETSModel

    positive = bool((past > 0).all())
    errors = ["add", "mul"] if positive else ["add"]
    seasons = [None, "add", *(["mul"] if positive else [])] if season > 1 else [None]
    best = None
    for error, (trend, damped), kind in itertools.product(
        errors, [(None, False), ("add", False), ("add", True)], seasons
    ):
        try:
            model = ETSModel(
                past, error=error, trend=trend, damped_trend=damped, seasonal=kind,
                seasonal_periods=season if kind else None,
            )  # fmt: skip
            found = model.fit(disp=False)
        except UNFIT:
            continue
        if np.isfinite(found.aicc) and (best is None or found.aicc < best.aicc):
            best = found
    if best is None:
        raise ValueError("no model fits")
    paths = best.simulate(horizon, anchor="end", repetitions=PATHS, rng=0)
    return np.nanquantile(np.asarray(paths).reshape(horizon, -1), LEVELS, axis=1).T


def _theta(past: Array, season: int, horizon: int) -> Array:
    from sktime.forecasting.theta import ThetaForecaster

    steps = np.arange(1, horizon + 1)
    seasonal = season > 1 and bool((past > 0).all())  # it divides by the season
    model = ThetaForecaster(sp=season, deseasonalize=seasonal).fit(pd.Series(past), fh=steps)
    return np.sort(model.predict_quantiles(alpha=list(LEVELS)).to_numpy(float), axis=1)


def classical(name: str) -> Callable[[Task, int], tuple[Array, float]]:
    """A model for the runner by name, "ets" or "theta".

    A season counts where the past holds two of it and four values more. What cannot be fitted is the last value with
    no band.
    """
    model = {"ets": _ets, "theta": _theta}[name]

    def run(task: Task, seed: int) -> tuple[Array, float]:
        start, out = time.perf_counter(), []
        for i, origin in zip(*task.origins(), strict=True):
            past = task.series[i][:origin]
            past = carried(past[int(np.isfinite(past).argmax()) :])[-LONGEST:]
            season = task.season if len(past) >= 2 * task.season + 4 else 1
            found = np.full((task.horizon, len(LEVELS)), np.nan)
            with warnings.catch_warnings(), contextlib.suppress(*UNFIT):
                warnings.simplefilter("ignore")
                found = model(past, season, task.horizon)
            out.append(np.where(np.isfinite(found), found, past[-1]))
        return np.stack(out), time.perf_counter() - start

    return run
