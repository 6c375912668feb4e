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

from ..data.panel import Panel, future_times
from ..forecaster import XLSTMForecaster

Array = np.ndarray
ID, TIME = "series", "time"


class SktimeForecaster(BaseForecaster):
    """Quantile forecasts with an xLSTM for sktime: single series, panels and hierarchies, one or several targets.

    Exogenous columns are known over the horizon and found by name: X of predict and update must have the columns of
    fit's X, in any order, and no others. predict needs their values at the steps that are asked for; steps between
    them that X lacks repeat the value before. Missing values in y are allowed. A series that ends before the others is
    missing from there on, its exogenous values stay as they were last. Arguments are those of `XLSTMForecaster`;
    `options`: further ones, as a dictionary. `update` reads new observations and, with
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
        self._history = self._joined(y, X, "fit")
        self._keys = _instances(self._history.index)
        forecaster, frame = self._forecaster(), self._frame()
        integers = pd.api.types.is_integer_dtype(self._history.index.get_level_values(-1))
        panel = forecaster._read(frame) if integers or self._by_stamps(fh) else None
        if integers and panel is not None and int(panel.freq) != 1:
            raise ValueError(
                f"the integer index of y has steps of {panel.freq}, and sktime's horizons count units: number the rows "
                "0, 1, 2, ..."
            )
        self.forecaster_ = forecaster.set_params(horizon=int(self._steps(fh, panel).max()))
        self.forecaster_.fit(frame, verbose=False)
        return self

    def _forecaster(self) -> XLSTMForecaster:
        """The forecaster of these settings, with a horizon of one step. Raises ValueError for options not of it."""
        options = dict(self.options or {})
        own = {key: value for key, value in self.get_params(deep=False).items() if key != "options"}
        ours: dict[str, Any] = {
            "horizon": 1,
            "target_col": [_name("y", i) for i in range(len(self._columns))],
            "future": [_name("x", i) for i in range(len(self._exogenous))],
            "id_col": ID,
            "time_col": TIME,
            "on_gap": "mask",
        }
        for key in options:
            if key in own:
                raise ValueError(f"options has the key {key!r}: give {key}= to SktimeForecaster itself")
            if key in ours:
                raise ValueError(
                    f"options has the key {key!r}: SktimeForecaster takes that from y, X and fh; leave it out"
                )
        return XLSTMForecaster(**ours, **own, **options)

    def _update(self, y: pd.DataFrame, X: pd.DataFrame | None = None, update_params: bool = True) -> SktimeForecaster:
        new = self._joined(y, X, "update")
        history = pd.concat((self._history.drop(new.index, errors="ignore"), new)).sort_index()
        keys, own = self._keys, _instances(history.index)
        if keys is not None and own is not None:  # in the order of the fit, which numbered them; new ones behind
            keys = keys.append(own.difference(keys, sort=False))
            at = keys.get_indexer(history.index.droplevel(-1))
            history = history.iloc[np.argsort(at, kind="stable")]
        self._history, self._keys = history, keys
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
        forecaster = self.forecaster_
        panel = forecaster._to_panel(self._frame())
        steps = self._steps(fh, panel)
        X = self._checked(X, "predict")
        future = None if X is None else self._future(X, panel, steps)
        panel = panel.with_future(future, forecaster.horizon)
        count = len(panel)
        values = forecaster._forecast(panel, np.arange(count), panel.history, tuple(levels))[:, steps - 1]
        times = self._asked(fh, panel, steps)
        return values.reshape(-1, *values.shape[2:]), _rows(self._history.index, times)

    def _by_stamps(self, fh: Any) -> bool:
        """Whether the horizon is told by dates: sktime counts steps between them right only where y has a freq."""
        return not fh.is_relative and isinstance(self.cutoff, pd.DatetimeIndex)

    def _steps(self, fh: Any, panel: Panel | None) -> Array:
        """The asked steps, counted from the cutoff. Raises ValueError for a date that is not on the series' grid."""
        if panel is None or not self._by_stamps(fh):
            return np.asarray(fh.to_relative(self.cutoff), dtype=int)
        wanted = fh.to_pandas()
        ticks = np.array([panel.axis.parse(time) for time in wanted], dtype=np.int64)
        steps = panel.axis.split(ticks)[0] - (panel.start[0] + panel.history[0] - 1)
        off = panel.axis.join(panel.start[0] + panel.history[0] - 1 + steps, panel.phase[[0]]) != ticks
        if off.any():
            raise ValueError(
                f"fh has {wanted[off][0]}, which is not a time of the series: their frequency is {panel.freq!r} and "
                f"the cutoff {self.cutoff[0]}"
            )
        return steps

    def _asked(self, fh: Any, panel: Panel, steps: Array) -> pd.Index:
        """The time stamps of the asked steps: sktime's, or the reader's where sktime found no frequency."""
        if fh.is_relative and isinstance(self.cutoff, pd.DatetimeIndex) and fh.freq is None:
            return _stamps(panel, steps)
        return fh.to_absolute_index(self.cutoff)

    def _joined(self, y: pd.DataFrame, X: pd.DataFrame | None, where: str) -> pd.DataFrame:
        """y and, at its times, X, with columns y0, y1, ... and x0, x1, ..."""
        if max(y.shape[1], len(self._columns)) > 1:
            y = _by_name(y, self._columns, "y", where)
        X = self._checked(X, where)
        if X is None:
            return _numbers(y, "y")
        X = X.reindex(y.index)
        self._refuse(~np.isfinite(X.to_numpy()), X.index, where)
        return pd.concat((_numbers(y, "y"), X), axis=1)

    def _checked(self, X: pd.DataFrame | None, where: str) -> pd.DataFrame | None:
        """The columns of fit's X, found by name, as numbers, named x0, x1, ..."""
        if X is not None:
            return _numbers(_by_name(X, self._exogenous, "X", where), "x")
        if self._exogenous:
            raise ValueError(f"X was given to fit, so {where} needs X with the columns {self._exogenous}")
        return None

    def _refuse(self, bad: Array, index: pd.Index, where: str) -> None:
        """Raise ValueError for the first of the bad values (rows, columns) of X; `index` holds the rows' times."""
        if bad.any():
            row, column = np.argwhere(bad)[0]
            raise ValueError(
                f"X of {where} has no finite value of column {self._exogenous[column]!r} at {_shown(index[row])}; it "
                f"must have one at every time of y and at every step that is asked for"
            )

    def _frame(self) -> pd.DataFrame:
        """All observations as a long frame that reaches to the cutoff for every series."""
        frame = self._history.reset_index(drop=True)
        frame.insert(0, TIME, _times(self._history.index.get_level_values(-1)))
        frame.insert(0, ID, _codes(self._history.index))
        last, end = frame.groupby(ID).tail(1), frame[TIME].max()
        late = last[last[TIME] < end]  # all series end with the latest: what is not there is missing
        if len(late):
            unseen = {_name("y", i): np.nan for i in range(len(self._columns))}
            frame = pd.concat((frame, late.assign(**{TIME: end}, **unseen)), ignore_index=True)
        return frame

    def _future(self, X: pd.DataFrame, panel: Panel, steps: Array) -> pd.DataFrame:
        """Exogenous values over the whole horizon; steps that were not asked for repeat the value before them."""
        horizon, keys = self.forecaster_.horizon, _instances(self._history.index)
        ahead = _stamps(panel, np.arange(1, horizon + 1))
        wanted = pd.MultiIndex.from_product((range(len(panel)), ahead), names=(ID, TIME))
        series = np.zeros(len(X), dtype=int) if keys is None else keys.get_indexer(X.index.droplevel(-1))
        times = _times(X.index.get_level_values(-1))
        if isinstance(times, pd.DatetimeIndex):
            times = times.as_unit(panel.axis.unit)
        here = (series >= 0) & times.isin(ahead)
        found = X[here].set_axis(pd.MultiIndex.from_arrays((series[here], times[here]))).reindex(wanted)
        asked = np.isin(np.arange(horizon) + 1, steps)
        bad = np.isinf(found.to_numpy()) | (found.isna().to_numpy() & np.tile(asked, len(panel))[:, None])
        self._refuse(bad, _rows(self._history.index, _like(self._history.index, ahead)), "predict")
        return found.groupby(level=0).ffill().groupby(level=0).bfill().reset_index()

    @classmethod
    def get_test_params(cls, parameter_set: str = "default") -> list[dict[str, Any]]:
        """Small settings for sktime's tests: the closed-form backbone, and a network of a few steps."""
        network = {"d_model": 8, "num_heads": 2, "blocks": "s", "batch_size": 8}
        return [{"model": "linear"}, {"max_steps": 2, "options": network}]


def _name(kind: str, place: int) -> str:
    return f"{kind}{place}"


def _numbers(data: pd.DataFrame, kind: str) -> pd.DataFrame:
    """The values as float64, the columns named by kind and place."""
    names = [_name(kind, i) for i in range(data.shape[1])]
    return pd.DataFrame(data.to_numpy(dtype=float, na_value=np.nan), index=data.index, columns=names)


def _by_name(data: pd.DataFrame, columns: list[Any], what: str, where: str) -> pd.DataFrame:
    """The columns that fit had, in its order. Raises ValueError for one that is missing and for a further one."""
    found = list(data.columns)
    missing, further = [c for c in columns if c not in found], [c for c in found if c not in columns]
    if missing:
        raise ValueError(f"{what} of {where} has no column {missing[0]!r}, which fit had; its columns are {found}")
    if further:
        raise ValueError(f"{what} of {where} has the column {further[0]!r}, which fit did not have: fit had {columns}")
    return data[columns]


def _instances(index: pd.Index) -> pd.Index | None:
    """The keys of the series, in the order of their codes; None for a single series."""
    return None if index.nlevels == 1 else index.droplevel(-1).unique()


def _codes(index: pd.Index) -> Array:
    """The number of each row's series."""
    return np.zeros(len(index), dtype=int) if index.nlevels == 1 else pd.factorize(index.droplevel(-1))[0]


def _rows(index: pd.Index, times: pd.Index) -> pd.Index:
    """The given times of every series of an index."""
    keys = _instances(index)
    if keys is None:
        return times
    rows = [(*(key if isinstance(key, tuple) else (key,)), time) for key in keys for time in times]
    return pd.MultiIndex.from_tuples(rows, names=index.names)


def _shown(key: Any) -> str:
    """A row's key for a message: its time and, in a panel, its series."""
    return f"{key[-1]} of series {', '.join(map(repr, key[:-1]))}" if isinstance(key, tuple) else str(key)


def _like(index: pd.Index, times: pd.Index) -> pd.Index:
    """Time stamps in the form that an index has: as periods if it holds these."""
    own = index.levels[-1] if isinstance(index, pd.MultiIndex) else index
    return times.to_period(own.freq) if isinstance(own, pd.PeriodIndex) else times


def _times(index: pd.Index) -> pd.Index:
    """Time stamps that a long frame can hold: periods by their start."""
    return index.to_timestamp() if isinstance(index, pd.PeriodIndex) else index


def _stamps(panel: Panel, steps: Array) -> pd.Index:
    """The time stamps of steps after the cutoff, with which all series of the panel end."""
    return panel.axis.stamps(future_times(panel, np.zeros(1), panel.history[:1], int(steps.max()))[0, steps - 1])
