"""Forecasters to beat: seasonal naive, last value, drift, and a closed-form ridge, with the estimator's own face.

All of them fit in a moment, have quantiles at any level, and go wherever an `XLSTMForecaster` goes: `backtest`,
`calibrate`, leaderboards. They read the target alone. The bands of the first three grow as those of their random walks.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

from .backbone.seasons import table
from .backbone.windows import fill, gather, origins_between
from .data.frame import to_panel
from .data.panel import Panel, forecast_frame
from .data.roles import Roles
from .metrics import quantile_name
from .parameters import check_positive

Array = np.ndarray


class _Baseline(BaseEstimator):
    """Fit, predict and backtest over a panel; a subclass says how windows of one target are forecast."""

    def __init__(
        self,
        *,
        horizon: int,
        quantiles: Sequence[float] = (0.1, 0.5, 0.9),
        season_length: int | None = None,
        id_col: str | None = "unique_id",
        time_col: str = "ds",
        target_col: str | Sequence[str] = "y",
        freq: Any = None,
        on_gap: str = "error",
    ) -> None:
        self.horizon = horizon
        self.quantiles = quantiles
        self.season_length = season_length
        self.id_col = id_col
        self.time_col = time_col
        self.target_col = target_col
        self.freq = freq
        self.on_gap = on_gap

    def fit(self, df: Any, static_df: Any = None, **options: Any) -> Any:
        """Read the series; further options of `XLSTMForecaster.fit` are accepted and have no effect."""
        check_positive({"horizon": self.horizon}, ("horizon",), "a number of steps, at least 1")
        if self.season_length is not None:
            check_positive(
                {"season_length": self.season_length},
                ("season_length",),
                "a number of steps, at least 1 (1: no season), or None",
            )
        self.panel_ = self._read(df, self.freq)
        season = self.season_length
        if season is None:
            freq = self.panel_.freq
            short, long = table(freq if isinstance(freq, str) else None)
            season = short if short > 1 else long
        self.season_ = int(season)
        self._learn(self.panel_)
        self.ends_ = self.panel_.ends()
        self.fitted_until_ = max(end for _, end in self.ends_)
        return self

    def _learn(self, panel: Panel) -> None:
        """Nothing to learn, unless a subclass does."""

    def _read(self, df: Any, freq: Any) -> Panel:
        roles = Roles(id=self.id_col, time=self.time_col, target=self.target_col)  # type: ignore[arg-type]
        return to_panel(df, roles, freq=freq, on_gap=self.on_gap)

    def predict(self, df: Any = None, future_df: Any = None, quantiles: Sequence[float] | None = None) -> Any:
        """Forecast the steps after each series' last row: id, time, forecast, q0.1, ...; `future_df` has no effect."""
        self._check_fitted()
        panel = self.panel_ if df is None else self._to_panel(df)
        levels = self._levels(quantiles)
        series = np.arange(len(panel))
        cube = self._forecast(panel, series, panel.history, (*levels, 0.5))
        values = {"forecast": cube[..., -1]} | {quantile_name(q): cube[..., i] for i, q in enumerate(levels)}
        return forecast_frame(panel, series, panel.history, values)

    def backtest(self, df: Any, **options: Any) -> Any:
        """`xlstm_forecast.backtest.backtest` of this forecaster."""
        from .backtest import backtest

        return backtest(self, df, **options)

    def _check_fitted(self) -> None:
        if not hasattr(self, "panel_"):
            raise ValueError(f"this {type(self).__name__} is not fitted: call fit(df) first")

    def _to_panel(self, df: Any, static_df: Any = None) -> Panel:
        return self._read(df, self.panel_.freq)

    def _levels(self, quantiles: Sequence[float] | None) -> tuple[float, ...]:
        levels = tuple(float(level) for level in (self.quantiles if quantiles is None else quantiles))
        if any(not 0 < level < 1 for level in levels) or list(levels) != sorted(set(levels)):
            raise ValueError(f"quantiles={levels}: they must lie between 0 and 1, ascending, each once")
        return levels

    def _forecast(self, panel: Panel, series: Array, origin: Array, levels: Sequence[float]) -> Array:
        """(n, H, V, Q) quantiles of the steps after the first `origin` rows of each series, from those rows alone."""
        series, origin = np.asarray(series, np.int64), np.asarray(origin, np.int64)
        at = np.asarray(levels, np.float64)
        parts = [self._windows(panel, v, series, origin, at) for v in range(panel.target.shape[1])]
        return np.stack(parts, axis=2)

    def _windows(self, panel: Panel, target: int, series: Array, origin: Array, levels: Array) -> Array:
        """(n, H, Q) quantiles of one target."""
        return _normal(*self._walk(panel.target[:, target], panel.offsets, series, origin), levels)

    def _walk(self, values: Array, offsets: Array, series: Array, origin: Array) -> tuple[Array, Array]:
        """(n, H) medians and standard deviations, for the baselines with normal bands."""
        raise AssertionError("a baseline forecasts by _walk or by _windows")


class SeasonalNaive(_Baseline):
    """The value one season before, with normal bands that widen with every season ahead (as GIFT-Eval's anchor).

    Where that value is missing the season before it counts, or else the last value; a past that is not longer than
    a season repeats its last value.
    """

    def _walk(self, values: Array, offsets: Array, series: Array, origin: Array) -> tuple[Array, Array]:
        return _seasonal(values, offsets, series, origin, self.season_, self.horizon)


def _normal(middle: Array, scale: Array, levels: Array) -> Array:
    z = np.array([NormalDist().inv_cdf(float(q)) for q in levels])
    return middle[..., None] + scale[..., None] * z


def _seasonal(
    values: Array, offsets: Array, series: Array, origin: Array, season: int, horizon: int
) -> tuple[Array, Array]:
    m = np.where(origin > season, season, 1)[:, None]
    step = np.arange(horizon)
    start = offsets[series][:, None]
    row = origin[:, None] - m + step % m
    middle = values[start + row]
    while (back := np.isnan(middle) & (row >= m)).any():
        row = np.where(back, row - m, row)
        middle = np.where(back, values[start + row], middle)
    middle = np.where(np.isnan(middle), _last(values, offsets, series, origin)[0][:, None], middle)
    power = [_mean_power(values, offsets, series, origin, lag)[:, None] for lag in (season, 1)]
    return middle, np.sqrt(np.where(m > 1, *power) * (step // m + 1))


class LastValue(_Baseline):
    """The last value, with the bands of a random walk."""

    def _walk(self, values: Array, offsets: Array, series: Array, origin: Array) -> tuple[Array, Array]:
        last, age = _last(values, offsets, series, origin)
        sigma = np.sqrt(_mean_power(values, offsets, series, origin, 1))
        ahead = age[:, None] + 1 + np.arange(self.horizon)
        return np.repeat(last[:, None], self.horizon, 1), sigma[:, None] * np.sqrt(ahead)


class Drift(_Baseline):
    """The line through the first and the last value, with the bands of a random walk whose drift is estimated."""

    def _walk(self, values: Array, offsets: Array, series: Array, origin: Array) -> tuple[Array, Array]:
        last, age = _last(values, offsets, series, origin)
        first, begin = _first(values, offsets, series)
        span = origin - 1 - age - begin
        slope = np.divide(last - first, span, out=np.zeros(len(last)), where=span > 0)
        power = _mean_power(values, offsets, series, origin, 1)
        sigma = np.sqrt(np.maximum(power - slope**2, 0.0))
        ahead = age[:, None] + 1 + np.arange(self.horizon)
        grow = np.sqrt(ahead * (1 + ahead / np.maximum(span, 1)[:, None]))
        return last[:, None] + slope[:, None] * ahead, sigma[:, None] * grow


def _last(values: Array, offsets: Array, series: Array, origin: Array) -> tuple[Array, Array]:
    """The last observed value before each origin, 0 where there is none, and how many steps it is old. (n,), (n,)"""
    position = np.maximum.accumulate(np.where(np.isfinite(values), np.arange(len(values)), -1))
    end = offsets[series] + origin - 1
    at = position[end]
    inside = at >= offsets[series]
    return np.where(inside, values[np.maximum(at, 0)], 0.0), np.where(inside, end - at, 0)


def _first(values: Array, offsets: Array, series: Array) -> tuple[Array, Array]:
    """The first observed value of each series and its row. (n,), (n,)"""
    ahead = np.where(np.isfinite(values), np.arange(len(values)), len(values))
    position = np.minimum.accumulate(ahead[::-1])[::-1]
    at = np.minimum(position[offsets[series]], len(values) - 1)
    return values[at], at - offsets[series]


def _mean_power(values: Array, offsets: Array, series: Array, origin: Array, lag: int) -> Array:
    """Mean of (x_t - x_(t - lag))**2 within the rows before each origin; 0 without a pair. (n,)"""
    power = np.zeros(len(values))
    power[lag:] = (values[lag:] - values[:-lag]) ** 2 if len(values) > lag else 0.0
    inside = np.arange(len(values)) - np.repeat(offsets[:-1], np.diff(offsets)) >= lag
    usable = inside & np.isfinite(power)
    out = np.zeros(len(series))
    for i in np.unique(series):
        a, b = offsets[i], offsets[i + 1]
        count = np.cumsum(usable[a:b])
        total = np.cumsum(np.where(usable[a:b], power[a:b], 0.0))
        mine = np.flatnonzero(series == i)
        end = origin[mine] - 1
        out[mine] = np.divide(total[end], count[end], out=np.zeros(len(mine)), where=count[end] > 0)
    return out


class Linear(_Baseline):
    """Ridge regression from the normalised context to every step, in closed form, pooled over all series.

    Context and penalty are chosen by the error, over the seasonal difference, on the last horizon of the training data;
    bands are quantiles of the residuals that a fit on half of the windows leaves on the other half. Where no context
    fits it is seasonal naive.
    """

    penalties = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
    limit = 60_000  # windows
    grid = np.round(np.arange(1, 200) / 200, 3)  # levels that are kept of the residuals

    def _learn(self, panel: Panel) -> None:
        self.context_: list[int] = []
        self.coefficients_: list[Array] = []  # per target (L + 1, H)
        self.offsets_: list[Array] = []  # per target (H, len(grid))
        for v in range(panel.target.shape[1]):
            context, penalty = self._choose(panel, panel.target[:, v])
            self.context_.append(context)
            if context:
                x, y = self._training(panel, panel.target[:, v], context, panel.history)
                half = np.arange(len(x)) % 2 == 0
                fitted = _ridge(x[half], y[half], (penalty,))[0]
                residual = y[~half] - x[~half] @ fitted[:-1] - fitted[-1]
                self.offsets_.append(np.quantile(residual, self.grid, axis=0).T)
                self.coefficients_.append(_ridge(x, y, (penalty,))[0])
            else:
                self.offsets_.append(np.empty(0))
                self.coefficients_.append(np.empty(0))

    def _choose(self, panel: Panel, values: Array) -> tuple[int, float]:
        """The context, 0 where none fits, and the penalty with the least validation error."""
        m, h = self.season_, self.horizon
        longest = int(panel.history.max())
        wanted = {2 * m, 4 * m, 7 * m, 21 * m, 2 * h, 4 * h, 96, 336, 512, 730, 1024}
        best, choice = np.inf, (0, 1.0)
        for context in sorted(c for c in wanted if c > 1 and c + 2 * h + 8 <= longest):
            end = panel.history - h
            x, y = self._training(panel, values, context, end)
            series = np.flatnonzero(end >= context)
            power = np.sqrt(_mean_power(values, panel.offsets, series, np.maximum(end[series], 1), m))
            series, power = series[power > 0], power[power > 0]
            if len(x) < 4 or not len(series):
                continue
            past = fill(gather(values, panel.offsets, series, end[series], context), m)[0]
            label = values[(panel.offsets[series] + end[series])[:, None] + np.arange(h)]
            mean, std = _moments(past)
            for penalty, b in zip(self.penalties, _ridge(x, y, self.penalties), strict=True):
                path = (((past - mean) / std) @ b[:-1] + b[-1]) * std + mean
                error = float(np.nanmean(np.abs(path - label) / power[:, None]))
                if error < best:
                    best, choice = error, (context, penalty)
        return choice

    def _training(self, panel: Panel, values: Array, context: int, end: Array) -> tuple[Array, Array]:
        """Normalised windows (n, L) and labels (n, H) whose labels lie before row `end` of their series."""
        first, last = np.full(len(panel), context), end - self.horizon
        total = int(np.maximum(last - first + 1, 0).sum())
        series, origin = origins_between(first, last, max(1, -(-total // self.limit)))
        y = values[(panel.offsets[series] + origin)[:, None] + np.arange(self.horizon)]
        whole = np.isfinite(y).all(1)
        x = fill(gather(values, panel.offsets, series[whole], origin[whole], context), self.season_)[0]
        mean, std = _moments(x)
        return (x - mean) / std, (y[whole] - mean) / std

    def _windows(self, panel: Panel, target: int, series: Array, origin: Array, levels: Array) -> Array:
        values, context = panel.target[:, target], self.context_[target]
        out = _normal(*_seasonal(values, panel.offsets, series, origin, self.season_, self.horizon), levels)
        long = np.flatnonzero(origin >= context) if context else np.empty(0, np.int64)
        if len(long):
            past = fill(gather(values, panel.offsets, series[long], origin[long], context), self.season_)[0]
            mean, std = _moments(past)
            b = self.coefficients_[target]
            path = ((past - mean) / std) @ b[:-1] + b[-1]
            offsets = np.stack([np.interp(levels, self.grid, row) for row in self.offsets_[target]])  # (H, Q)
            out[long] = (path[..., None] + offsets) * std[..., None] + mean[..., None]
        return out


def _ridge(x: Array, y: Array, penalties: Sequence[float]) -> list[Array]:
    """Coefficients (L + 1, H) per penalty, a tenth of the windows times it; the intercept, last, is free."""
    mean_x, mean_y = x.mean(0), y.mean(0)
    x, y = x - mean_x, y - mean_y
    value, vector = np.linalg.eigh(x.T @ x)
    projected = vector.T @ (x.T @ y)
    out = []
    for penalty in penalties:
        b = vector @ (projected / (np.maximum(value, 0) + penalty * len(x) / 10)[:, None])
        out.append(np.concatenate([b, (mean_y - mean_x @ b)[None]]))
    return out


def _moments(x: Array) -> tuple[Array, Array]:
    """Mean and standard deviation of each row, 1 for the spread of a constant one. (n, 1), (n, 1)"""
    std = x.std(1, keepdims=True)
    return x.mean(1, keepdims=True), np.where(std > 1e-8 * (np.abs(x).max(1, keepdims=True) + 1e-300), std, 1.0)


BASELINES = {"seasonal naive": SeasonalNaive, "last value": LastValue, "drift": Drift, "linear": Linear}
