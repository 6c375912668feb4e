"""A forecaster with calibrated bands, and the way there: `calibrate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, clone

from ..backtest import backtest, plan_panel, rows_until
from ..data.panel import Panel, forecast_frame
from ..metrics import as_pandas, quantile_name
from .conformal import scores_needed, sides_of
from .rolling import check_options, fit_calibration

Array = np.ndarray
_SHARED = ("horizon", "quantiles", "id_col", "time_col", "target_col", "freq", "on_gap", "future")
_ENOUGH = 400  # residuals per step after which more windows hardly sharpen the bands
_USUAL = (5, 20)  # least and most windows by default


class CalibratedForecaster(BaseEstimator):
    """A forecaster whose bands are moved by what past windows taught: fits, predicts, backtests and updates.

    `fit` fits a copy of the forecaster on the rows before the calibration windows and calibrates it on those; for a
    forecaster that is fitted already see `calibrate`. `n_windows` None: as many as the bands and the number of series
    ask for; `step_size` None: the horizon; the other options are those of `fit_calibration`.
    """

    def __init__(
        self,
        forecaster: Any,
        *,
        n_windows: int | None = None,
        step_size: int | None = None,
        method: str = "cqr",
        pool: str = "all",
        adaptive: bool | float = False,
        memory: int | None = None,
        half_life: float | None = None,
    ) -> None:
        self.forecaster = forecaster
        self.n_windows = n_windows
        self.step_size = step_size
        self.method = method
        self.pool = pool
        self.adaptive = adaptive
        self.memory = memory
        self.half_life = half_life

    def __getattr__(self, name: str) -> Any:
        if name in _SHARED:
            return getattr(self.forecaster, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def fit(self, df: Any, static_df: Any = None, **options: Any) -> CalibratedForecaster:
        """Fit on the rows before the calibration windows, then calibrate on those; `options` go to the inner `fit`."""
        inner = clone(self.forecaster)
        return self._calibrate(inner, inner, df, static_df, fit_options=options)

    def _calibrate(self, use: Any, measure: Any, df: Any, static_df: Any, **options: Any) -> CalibratedForecaster:
        """Give `use` the bands that backtest windows of `measure` call for."""
        levels = tuple(float(level) for level in use.quantiles)
        check_options(levels, self.method, self.pool, self.adaptive, self.memory, self.half_life)
        panel = plan_panel(self, df)
        windows = self.n_windows or _usual(levels, self.pool, panel)
        _check_windows(levels, self.pool, panel, windows)
        frame = backtest(measure, df, n_windows=windows, step_size=self.step_size, static_df=static_df, **options)
        self.calibration_ = fit_calibration(
            frame,
            method=self.method,
            pool=self.pool,
            adaptive=self.adaptive,
            memory=self.memory,
            half_life=self.half_life,
        )
        self.forecaster_ = use
        return self._seen(df, static_df)

    def _seen(self, df: Any, static_df: Any) -> CalibratedForecaster:
        self.panel_ = self.forecaster_._to_panel(df, static_df)
        last = self.panel_.times(np.arange(len(self.panel_)), self.panel_.history - 1)
        self.fitted_until_ = int(max(last.max(), self.forecaster_.fitted_until_))
        return self

    def predict(
        self, df: Any = None, future_df: Any = None, static_df: Any = None, quantiles: Sequence[float] | None = None
    ) -> Any:
        """As the forecaster's `predict`, with calibrated bands, always ordered.

        `df` None: from the end of the data calibrated on, or last updated with.

        Raises:
            ValueError: a level that was not calibrated, or (pool "series") a series that was not.
        """
        levels = self._levels(quantiles)
        panel = self.panel_ if df is None else self._to_panel(df, static_df)
        panel = panel.with_future(future_df, self.horizon)
        series, origin = np.arange(len(panel)), panel.history
        cube = self._forecast(panel, series, origin, (0.5, *levels))
        values = {"forecast": cube[..., 0]} | {quantile_name(q): cube[..., 1 + i] for i, q in enumerate(levels)}
        return forecast_frame(panel, series, origin, values)

    def backtest(self, df: Any, **options: Any) -> Any:
        """`xlstm_forecast.backtest.backtest` of this forecaster, on data after that calibrated on, or with refits."""
        return backtest(self, df, **options)

    def update(self, df: Any, static_df: Any = None) -> CalibratedForecaster:
        """Take in the labels that arrived: `df` is the history up to now, known-future columns included.

        The forecaster is not fitted again; with `adaptive` the bands widen or narrow with its misses, otherwise the new
        residuals join the old ones.
        """
        self._levels(None)
        panel = plan_panel(self, df)
        cutoffs = self._new_cutoffs(panel)
        if cutoffs:
            frame = backtest(self.forecaster_, df, cutoffs=cutoffs, static_df=static_df)
            self.calibration_.update(frame)
        return self._seen(df, static_df)

    def _new_cutoffs(self, panel: Panel) -> list[Any]:
        """Cutoffs after those taken in, on the same grid, and those taken in whose labels are not complete."""
        calibration = self.calibration_
        reference = int(np.argmax(panel.times(np.arange(len(panel)), panel.history - 1)))
        last = panel.axis.parse(calibration.cutoff)
        origin = np.arange(rows_until(panel, last)[reference], panel.history[reference], self.step_size or self.horizon)
        ticks = set(panel.times(np.full(len(origin) - 1, reference), origin[1:] - 1).tolist()) if len(origin) else set()
        if calibration.waiting is not None:
            ticks |= {panel.axis.parse(value) for value in calibration.waiting["cutoff"].unique()}
        return list(panel.axis.stamps(np.array(sorted(t for t in ticks if t >= self.forecaster_.fitted_until_))))

    def _levels(self, quantiles: Sequence[float] | None) -> tuple[float, ...]:
        if not hasattr(self, "calibration_"):
            raise ValueError("this CalibratedForecaster is not fitted: call fit(df), or make it by calibrate(f, df)")
        known = self.calibration_.levels
        levels = known if quantiles is None else tuple(float(level) for level in quantiles)
        other = [level for level in levels if level not in known]
        if other:
            raise ValueError(f"level {other[0]:g} was not calibrated: choose from {known}, or calibrate with it")
        return levels

    def _to_panel(self, df: Any, static_df: Any = None) -> Panel:
        self._levels(None)
        return self.forecaster_._to_panel(df, static_df)

    def _forecast(self, panel: Panel, series: Array, origin: Array, levels: Sequence[float]) -> Array:
        """(n, H, V, Q) calibrated quantiles of the steps after the first `origin` rows of each series."""
        known = self.calibration_.levels
        cube = self.forecaster_._forecast(panel, series, origin, (0.5, *known))
        values = {"label": np.full(cube.shape[:3], np.nan), "forecast": cube[..., 0]}
        values |= {quantile_name(level): cube[..., 1 + i] for i, level in enumerate(known)}
        table = self.calibration_.apply(as_pandas(forecast_frame(panel, series, origin, values, cutoff=True)))
        n, horizon, variates, _ = cube.shape
        found = {0.5: table["forecast"]} | {level: table[quantile_name(level)] for level in known}
        parts = [found[float(q)].to_numpy(np.float64).reshape(n, variates, horizon).transpose(0, 2, 1) for q in levels]
        return np.stack(parts, axis=-1)


def _usual(levels: tuple[float, ...], pool: str, panel: Panel) -> int:
    """How many windows to calibrate on where the user does not say."""
    needed = scores_needed(sides_of(levels)[-1].nominal)
    if pool == "series":
        return max(needed, _USUAL[1])
    low, high = _USUAL
    return max(-(-needed // len(panel)), low, min(high, -(-_ENOUGH // len(panel))))


def _check_windows(levels: tuple[float, ...], pool: str, panel: Panel, windows: int) -> None:
    """Refuse too few windows before anything is fitted."""
    nominal = sides_of(levels)[-1].nominal
    each = len(panel) if pool == "all" else 1
    least = -(-scores_needed(nominal) // each)
    if windows < least:
        whose = "in each series (pool='series')" if pool == "series" else f"over {len(panel)} series (pool='all')"
        raise ValueError(
            f"coverage {nominal:g} needs {scores_needed(nominal)} labels of each step {whose}, so at least "
            f"n_windows={least}; found n_windows={windows}"
        )


def calibrate(
    forecaster: Any, df: Any, *, n_windows: int | None = None, static_df: Any = None, **options: Any
) -> CalibratedForecaster:
    """A fitted forecaster with bands calibrated on the last windows of `df`; options as for `CalibratedForecaster`.

    Windows after the data that the forecaster was fitted on measure the forecaster itself (all of them, unless
    `n_windows` says how many). Where they do not suffice, a copy fitted before the first window is measured in its
    place, and the forecaster stays as it is. An unfitted one is fitted before the first window.

    Raises:
        ValueError: fewer windows than the widest band needs (says how many), no band, or too few rows.
    """
    made = CalibratedForecaster(forecaster, n_windows=n_windows, **options)
    if not hasattr(forecaster, "fitted_until_"):
        return made.fit(df, static_df)
    panel = plan_panel(forecaster, df)
    left = panel.history - rows_until(panel, forecaster.fitted_until_)
    after = int((left.min() - made.horizon) // (made.step_size or made.horizon)) + 1
    levels = tuple(float(level) for level in forecaster.quantiles)
    check_options(levels, made.method, made.pool, made.adaptive, made.memory, made.half_life)
    needed = scores_needed(sides_of(levels)[-1].nominal)
    wanted = n_windows or -(-needed // (len(panel) if made.pool == "all" else 1))
    if after < wanted:
        return made._calibrate(forecaster, clone(forecaster), df, static_df)
    made.n_windows = n_windows or after
    return made._calibrate(forecaster, forecaster, df, static_df)
