"""sktime: `XLSTMForecaster` behind sktime's forecaster interface, with quantiles, exogenous data, panels and update."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from sktime.forecasting.base import BaseForecaster

from ..forecaster import XLSTMForecaster

Array = np.ndarray
ID, TIME = "series", "time"


class SktimeForecaster(BaseForecaster):
    """Quantile forecasts with an xLSTM for sktime: single series, panels and hierarchies, one or several targets.

    Exogenous columns are known over the horizon; missing values in y are allowed. Arguments are those of
    `XLSTMForecaster`; `options`: further ones, as a dictionary. `update` reads new observations and, with
    update_params=True, trains the fitted network further on all of them.

    >>> import pandas as pd
    >>> from xlstm_forecast.adapters.sktime import SktimeForecaster
    >>> y = pd.Series([float(i % 4) for i in range(60)])
    >>> forecaster = SktimeForecaster(model="linear").fit(y, fh=[1, 2])
    >>> forecaster.predict_quantiles(alpha=[0.1, 0.9]).shape
    (2, 2)
    """

    _tags = {  # noqa: RUF012
        "authors": ["xlstm-forecast"],
        "maintainers": ["xlstm-forecast"],
        "python_dependencies": ["torch"],
        "y_inner_mtype": ["pd.DataFrame", "pd-multiindex", "pd_multiindex_hier"],
        "X_inner_mtype": ["pd.DataFrame", "pd-multiindex", "pd_multiindex_hier"],
        "capability:multivariate": True,
        "capability:exogenous": True,
        "capability:insample": False,
        "capability:pred_int": True,
        "capability:pred_int:insample": False,
        "capability:missing_values": True,
        "capability:non_contiguous_X": False,
        "capability:categorical_in_X": False,
        "capability:update": True,
        "capability:unequal_length": True,
        "requires-fh-in-fit": True,
        "X-y-must-have-same-index": True,
    }

    def __init__(
        self,
        model: str = "patch",
        presets: str = "default",
        time_limit: float | None = None,
        input_length: int | None = None,
        max_steps: int | None = None,
        season_length: int | None = None,
        lower: float | None = None,
        seed: int = 0,
        options: dict[str, Any] | None = None,
    ):
        self.model = model
        self.presets = presets
        self.time_limit = time_limit
        self.input_length = input_length
        self.max_steps = max_steps
        self.season_length = season_length
        self.lower = lower
        self.seed = seed
        self.options = options
        with warnings.catch_warnings():  # a default of sktime's own that will change
            warnings.simplefilter("ignore", FutureWarning)
            super().__init__()

    def _fit(self, y: pd.DataFrame, X: pd.DataFrame | None, fh: Any) -> SktimeForecaster:
        self._columns = list(y.columns)
        self._exogenous = [] if X is None else list(X.columns)
        self._history = _joined(y, X)
        self.forecaster_ = XLSTMForecaster(
            horizon=int(max(fh.to_relative(self.cutoff))),
            target_col=[_name("y", i) for i in range(len(self._columns))],
            future=[_name("x", i) for i in range(len(self._exogenous))],
            id_col=ID,
            time_col=TIME,
            on_gap="mask",
            model=self.model,
            presets=self.presets,
            time_limit=self.time_limit,
            input_length=self.input_length,
            max_steps=self.max_steps,
            season_length=self.season_length,
            lower=self.lower,
            seed=self.seed,
            **(self.options or {}),
        )
        self.forecaster_.fit(self._frame(), verbose=False)
        return self

    def _update(self, y: pd.DataFrame, X: pd.DataFrame | None = None, update_params: bool = True) -> SktimeForecaster:
        new = _joined(y, X)
        self._history = pd.concat((self._history.drop(new.index, errors="ignore"), new)).sort_index()
        if update_params:
            self.forecaster_.fit(self._frame(), warm_start=self.forecaster_.model_ is not None, verbose=False)
        return self

    def _predict(self, fh: Any, X: pd.DataFrame | None) -> pd.DataFrame:
        values, index = self._quantile_values(fh, X, (0.5,))
        return pd.DataFrame(values[..., 0], index=index, columns=self._columns)

    def _predict_quantiles(self, fh: Any, X: pd.DataFrame | None, alpha: Sequence[float]) -> pd.DataFrame:
        values, index = self._quantile_values(fh, X, alpha)
        names = pd.MultiIndex.from_product((self._get_varnames(), alpha))
        return pd.DataFrame(values.reshape(len(values), -1), index=index, columns=names)

    def _quantile_values(self, fh: Any, X: pd.DataFrame | None, levels: Sequence[float]) -> tuple[Array, pd.Index]:
        """Quantiles (series steps, V, Q) of the asked steps, and their index in y's form."""
        forecaster, steps = self.forecaster_, np.asarray(fh.to_relative(self.cutoff), dtype=int)
        frame = self._frame()
        future = None
        if self._exogenous:
            future = self._future(X, forecaster.horizon)
        panel = forecaster._to_panel(frame).with_future(future, forecaster.horizon)
        count = len(panel)
        values = forecaster._forecast(panel, np.arange(count), panel.history, tuple(levels))[:, steps - 1]
        times = fh.to_absolute_index(self.cutoff)
        keys = _instances(self._history)
        if keys is None:
            return values[0], times
        rows = [(*key, time) for key in keys for time in times]
        return values.reshape(-1, *values.shape[2:]), pd.MultiIndex.from_tuples(rows, names=self._history.index.names)

    def _frame(self) -> pd.DataFrame:
        """All observations as a long frame that reaches to the cutoff for every series."""
        data = self._history
        columns = [_name("y", i) for i in range(len(self._columns))]
        columns += [_name("x", i) for i in range(len(self._exogenous))]
        frame = pd.DataFrame(data.to_numpy(dtype=float), columns=columns)
        frame.insert(0, TIME, _times(data.index.get_level_values(-1)))
        frame.insert(0, ID, _codes(data))
        ends = frame.groupby(ID)[TIME].max()
        late = ends.index[ends < ends.max()]  # all series end with the latest: what is not there is missing
        if len(late):
            rest = pd.DataFrame({ID: late, TIME: ends.max()}).reindex(columns=frame.columns)
            rest[columns[len(self._columns) :]] = frame[columns[len(self._columns) :]].mean()
            frame = pd.concat((frame, rest), ignore_index=True)
        return frame

    def _future(self, X: pd.DataFrame | None, horizon: int) -> pd.DataFrame:
        """Exogenous values over the whole horizon; steps that were not asked for repeat the value before them."""
        if X is None:
            raise ValueError("X was given to fit, so predict needs X over the forecasting horizon")
        keys = _instances(self._history)
        times = self._stamps(horizon)
        parts = []
        for code, key in enumerate(keys or [()]):
            own = X.xs(key if len(key) > 1 else key[0], level=list(range(len(key)))) if key else X
            own = own.set_axis(_times(own.index)).reindex(times).ffill().bfill()
            own.columns = [_name("x", i) for i in range(len(self._exogenous))]
            parts.append(own.astype(float).rename_axis(TIME).reset_index().assign(**{ID: code}))
        return pd.concat(parts, ignore_index=True)

    def _stamps(self, horizon: int) -> pd.Index:
        """The time stamps 1 ... horizon after the cutoff."""
        from sktime.forecasting.base import ForecastingHorizon

        fh = ForecastingHorizon(np.arange(1, horizon + 1), is_relative=True, freq=self._fh.freq)
        return _times(fh.to_absolute_index(self.cutoff))

    @classmethod
    def get_test_params(cls, parameter_set: str = "default") -> list[dict[str, Any]]:
        """Small settings for sktime's tests: the closed-form backbone, and a network of a few steps."""
        network = {"d_model": 8, "num_heads": 2, "blocks": "s", "batch_size": 8}
        return [{"model": "linear"}, {"max_steps": 2, "options": network}]


def _name(kind: str, place: int) -> str:
    return f"{kind}{place}"


def _joined(y: pd.DataFrame, X: pd.DataFrame | None) -> pd.DataFrame:
    return y.copy() if X is None else pd.concat((y, X.reindex(y.index)), axis=1)


def _instances(data: pd.DataFrame) -> list[tuple[Any, ...]] | None:
    """The keys of the series, in the order of their codes; None for a single series."""
    if data.index.nlevels == 1:
        return None
    keys = data.index.droplevel(-1).unique()
    return [key if isinstance(key, tuple) else (key,) for key in keys]


def _codes(data: pd.DataFrame) -> Array:
    """The number of each row's series."""
    if data.index.nlevels == 1:
        return np.zeros(len(data), dtype=int)
    return pd.factorize(data.index.droplevel(-1))[0]


def _times(index: pd.Index) -> pd.Index:
    """Time stamps that a long frame can hold: periods by their start."""
    return index.to_timestamp() if isinstance(index, pd.PeriodIndex) else index
