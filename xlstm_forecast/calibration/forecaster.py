"""A forecaster with calibrated bands, and the way there: `calibrate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, clone

from ..backtest import backtest, fit_and_backtest, plan_panel, rows_until
from ..backtest.plan import has_quantiles, rows_needed
from ..checkpoint import load_checkpoint, save_checkpoint
from ..data.panel import Panel, forecast_frame
from ..metrics import as_pandas, quantile_name
from ..parameters import check_positive
from . import storing
from .conformal import scores_needed, sides_of, unit_keys
from .rolling import check_options, fit_calibration

Array = np.ndarray
_SHARED = ("horizon", "quantiles", "id_col", "time_col", "target_col", "freq", "on_gap", "future", "n_jobs")
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
        levels = self._checked(use)
        panel = plan_panel(self, df)
        fitted = hasattr(measure, "fitted_until_")
        room = _room(panel, int(use.horizon), int(self.step_size or use.horizon), 1 if fitted else rows_needed(measure))
        least, usual = _least(levels, self.pool, panel), _usual(levels, self.pool, panel)
        windows = max(least, min(usual, room)) if self.n_windows is None else self.n_windows
        _check_windows(levels, self.pool, panel, windows, room)
        if self.memory is not None and self.memory < least:
            raise ValueError(f"memory={self.memory} windows over {len(panel)} series are too few: keep {least} or more")
        run = fit_and_backtest if use is measure else backtest
        frame = run(measure, df, n_windows=windows, step_size=self.step_size, static_df=static_df, **options)
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

    def _checked(self, forecaster: Any) -> tuple[float, ...]:
        """The levels to calibrate. Raises ValueError for options that cannot be, and for a forecaster without bands."""
        if not has_quantiles(forecaster):
            raise ValueError("head='point' has no bands to calibrate: use head='quantile'")
        count = self.n_windows
        if count is not None:
            check_positive({"n_windows": count}, ("n_windows",), "a number of windows, at least 1, or None")
        levels = tuple(float(level) for level in forecaster.quantiles)
        check_options(levels, self.method, self.pool, self.adaptive, self.memory, self.half_life)
        return levels

    def _seen(self, df: Any, static_df: Any) -> CalibratedForecaster:
        self.panel_ = self.forecaster_._to_panel(df, static_df)
        self.ends_ = self.panel_.ends()
        self.fitted_until_ = max(self.forecaster_.fitted_until_, *(end for _, end in self.ends_))
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
        if df is None and "panel_" not in self.__dict__:
            raise ValueError("a loaded forecaster does not hold the data it was calibrated on: call predict(df)")
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
        residuals join the old ones. Each series goes on from its own last window, so that their labels may arrive at
        different times, and a new one from the first window of all; cutoffs before the end of the data that the
        forecaster was fitted on are left out.
        """
        self._levels(None)
        panel = plan_panel(self, df)
        cutoffs = self._new_cutoffs(panel)
        if cutoffs:
            frame = backtest(self.forecaster_, df, cutoffs=cutoffs, static_df=static_df)
            self.calibration_.update(frame)
        return self._seen(df, static_df)

    def _new_cutoffs(self, panel: Panel) -> list[Any] | dict[Any, list[Any]]:
        """Cutoffs after those taken in, every series on its own grid, and those whose labels were not complete.

        A list where all series have the same, otherwise by series.
        """
        series, origin = self._new_windows(panel)
        ticks = panel.times(series, origin - 1)
        own = np.unique(ticks)
        stamps = list(panel.axis.stamps(own))
        rows = [rows_until(panel, int(tick)) for tick in own]
        if sum(int(((r > 0) & (r < panel.history)).sum()) for r in rows) == len(series):
            return stamps
        found: dict[Any, list[Any]] = {}
        for i, at in zip(series.tolist(), np.searchsorted(own, ticks).tolist(), strict=True):
            found.setdefault(panel.keys[i], []).append(stamps[at])
        return found

    def _new_windows(self, panel: Panel) -> tuple[Array, Array]:
        """(series, origin) of the windows to forecast: with a label, and with all their known-future rows."""
        calibration, step = self.calibration_, int(self.step_size or self.horizon)
        index = {(key,) if panel.roles.id else (): i for i, key in enumerate(panel.keys)}
        last = np.full(len(panel), panel.axis.parse(calibration.rounds[0]))  # of a series that is new
        for key, cutoff in calibration.seen.items():
            if key in index:
                last[index[key]] = panel.axis.parse(cutoff)
        begin = np.empty(len(panel), np.int64)
        for tick in np.unique(last):
            begin[last == tick] = rows_until(panel, int(tick))[last == tick]
        count = np.maximum((panel.history - 1 - begin) // step, 0)
        series = np.repeat(np.arange(len(panel)), count)
        origin = begin[series] + step * (1 + np.arange(len(series)) - (np.cumsum(count) - count)[series])
        windows = {*zip(series.tolist(), origin.tolist(), strict=True), *self._waiting(panel, index)}
        if not windows:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        series, origin = np.array(sorted(windows), np.int64).T
        keep = panel.times(series, origin - 1) >= self.forecaster_.fitted_until_
        keep &= _has_label(panel, series, origin, self.horizon)
        if tuple(getattr(self.forecaster_, "future", ())):
            keep &= origin + self.horizon <= panel.history[series]
        return series[keep], origin[keep]

    def _waiting(self, panel: Panel, index: dict[Any, int]) -> list[tuple[int, int]]:
        """(series, origin) of the windows taken in whose labels are not complete."""
        waiting = self.calibration_.waiting
        if waiting is None:
            return []
        codes, found = unit_keys(waiting, [panel.roles.id] if panel.roles.id else [])
        pairs = waiting[["cutoff"]].assign(_series=[index.get(found[code], -1) for code in codes]).drop_duplicates()
        out = []
        for cutoff, mine in pairs.groupby("cutoff")["_series"]:
            rows = rows_until(panel, panel.axis.parse(cutoff))
            out += [(int(i), int(rows[i])) for i in mine if i >= 0 and 0 < rows[i] < panel.history[i]]
        return out

    def save(self, path: str | Path) -> None:
        """Write forecaster and calibration to one file (safetensors with a JSON header); bands go on as they are.

        Raises:
            TypeError: the forecaster is no `XLSTMForecaster`, or its series have ids that JSON cannot hold.
        """
        self._levels(None)
        inner, forecaster = storing.forecaster_parts(self.forecaster_)
        learnt, calibration = storing.calibration_parts(self.calibration_)
        params = {name: value for name, value in self.get_params(deep=False).items() if name != "forecaster"}
        config = {
            "kind": storing.KIND,
            "params": {name: storing.plain_value(value) for name, value in params.items()},
            "fitted_until": self.fitted_until_,
            "ends": self.ends_,
            "forecaster": forecaster,
            "calibration": calibration,
        }
        tensors = {f"forecaster.{name}": value for name, value in inner.items()}
        save_checkpoint(path, tensors | {f"calibration.{name}": value for name, value in learnt.items()}, config)

    @classmethod
    def load(cls, path: str | Path) -> CalibratedForecaster:
        """Read what `save` wrote: forecasts and updates have the same bits; the data is not in the file.

        Raises FileNotFoundError, or ValueError for a file that is damaged, edited, newer, or of another kind.
        """
        tensors, config = load_checkpoint(path)
        if config.get("kind") != storing.KIND:
            raise ValueError(f"{path} holds no calibrated forecaster; XLSTMForecaster.load reads plain ones")
        inner, learnt = (
            {name.removeprefix(part): value for name, value in tensors.items() if name.startswith(part)}
            for part in ("forecaster.", "calibration.")
        )
        forecaster = storing.forecaster_of(inner, config["forecaster"])
        self = cls(forecaster, **config["params"])
        self.forecaster_ = forecaster
        self.calibration_ = storing.calibration_of(learnt, config["calibration"])
        self.fitted_until_ = config["fitted_until"]
        if "ends" in config:  # not in files of 0.1.0
            self.ends_ = [(key, end) for key, end in config["ends"]]
        return self

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
        stacked = np.stack(parts, axis=-1)
        lower = getattr(self.forecaster_, "lower", None)
        return stacked if lower is None else np.maximum(stacked, lower)


def _has_label(panel: Panel, series: Array, origin: Array, horizon: int) -> Array:
    """Whether any of the `horizon` steps after each origin has a label. (n,)"""
    count = np.r_[0, np.cumsum(np.isfinite(panel.target).any(axis=1))]
    end = np.minimum(origin + horizon, panel.history[series])
    return count[panel.offsets[series] + end] > count[panel.offsets[series] + origin]


def _usual(levels: tuple[float, ...], pool: str, panel: Panel) -> int:
    """How many windows to calibrate on where the user does not say."""
    needed = scores_needed(sides_of(levels)[-1].nominal)
    if pool == "series":
        return max(needed, _USUAL[1])
    low, high = _USUAL
    return max(-(-needed // len(panel)), low, min(high, -(-_ENOUGH // len(panel))))


def _least(levels: tuple[float, ...], pool: str, panel: Panel) -> int:
    """The fewest windows that the widest band needs."""
    return -(-scores_needed(sides_of(levels)[-1].nominal) // (len(panel) if pool == "all" else 1))


def _room(panel: Panel, horizon: int, step: int, need: int) -> int:
    """How many windows fit into every series, with `need` rows of the longest before the first."""
    rows = min(int(panel.history.min()) - 1, int(panel.history.max()) - need)
    return max(0, (rows - horizon) // step + 1)


def _check_windows(levels: tuple[float, ...], pool: str, panel: Panel, windows: int, room: int) -> None:
    """Refuse too few windows before anything is fitted."""
    nominal, least = sides_of(levels)[-1].nominal, _least(levels, pool, panel)
    whose = "in each series (pool='series')" if pool == "series" else f"over {len(panel)} series (pool='all')"
    needs = f"coverage {nominal:g} needs {scores_needed(nominal)} labels of each step {whose}, so at least "
    if windows < least:
        raise ValueError(f"{needs}n_windows={least}; found n_windows={windows}")
    if room < least:
        short = int(np.argmin(panel.history))
        raise ValueError(
            f"{needs}{least} windows, but {panel.name(short)} with {panel.history[short]} rows has room for {room}: "
            "use levels closer to the median, a shorter horizon or step_size, or give more rows"
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
    levels = made._checked(forecaster)
    panel = plan_panel(forecaster, df)
    left = panel.history - rows_until(panel, forecaster.fitted_until_)
    after = int((left.min() - made.horizon) // (made.step_size or made.horizon)) + 1
    wanted = _least(levels, made.pool, panel) if n_windows is None else n_windows
    if after < wanted:
        return made._calibrate(forecaster, clone(forecaster), df, static_df)
    made.n_windows = after if n_windows is None else n_windows
    return made._calibrate(forecaster, forecaster, df, static_df)
