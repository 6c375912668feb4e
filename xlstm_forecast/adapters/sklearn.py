"""scikit-learn: a regressor over windows of numbers, and a splitter and scorer for searches over a forecaster.

`XLSTMForecaster` is a scikit-learn estimator by itself; `TimeSplit` gives `GridSearchCV` train and test parts of its
long frames, cut at time stamps, and `forecast_scorer` the score of a forecast on the test part.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from ..batch import Batch, Labels
from ..data.frame import forecast_frame, frame_of
from ..encoder import EncoderConfig
from ..heads import LEVELS, check_levels
from ..models.patch import PatchConfig, PatchModel
from ..parameters import check_positive

Array = np.ndarray
PENALTIES = tuple(10.0**power for power in range(-3, 4))
PATIENCE = 3  # checks on the held-back rows without an improvement before training stops
READ: dict[str, Any] = {"dtype": np.float64, "allow_nd": True, "ensure_all_finite": "allow-nan"}
MISSES = {"mae": np.abs, "mse": np.square}


class XLSTMRegressor(RegressorMixin, BaseEstimator):
    """Maps windows of L steps to H values: a ridge regression, corrected by an xLSTM over the steps.

    X: (n, L), or (n, L, F) with F variables per step, of which the first scales the window; y: (n,) or (n, H).
    NaN in X is a missing value. Rows are taken in order: the last `validation_fraction` of them choose the penalty,
    whether windows are scaled one by one (`scaling`: "window", "global" or "auto"), and when training stops, after no
    step at all where the network does not help. `predict` is the median; `predict_quantiles` any levels.

    d_model, num_heads, blocks, patch_length, dropout: the network. max_steps, batch_size, lr: its training.
    random_state: of weights and batches.

    >>> import numpy as np
    >>> series = np.sin(np.arange(200) / 3)
    >>> windows = np.lib.stride_tricks.sliding_window_view(series, 16)
    >>> model = XLSTMRegressor(max_steps=10, random_state=0).fit(windows[:100, :12], windows[:100, 12:])
    >>> model.predict(windows[150:152, :12]).shape
    (2, 4)
    """

    def __init__(
        self,
        *,
        scaling: str = "auto",
        d_model: int = 32,
        num_heads: int = 4,
        blocks: str = "s",
        patch_length: int = 1,
        dropout: float = 0.0,
        max_steps: int = 200,
        batch_size: int = 64,
        lr: float = 3e-3,
        validation_fraction: float = 0.2,
        random_state: Any = None,
    ):
        self.scaling = scaling
        self.d_model = d_model
        self.num_heads = num_heads
        self.blocks = blocks
        self.patch_length = patch_length
        self.dropout = dropout
        self.max_steps = max_steps
        self.batch_size = batch_size
        self.lr = lr
        self.validation_fraction = validation_fraction
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.three_d_array = True
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any) -> XLSTMRegressor:
        """Fit the ridge regression in closed form and train the network on what it leaves."""
        self._check_options()
        X, y = validate_data(self, X, y, **READ, multi_output=True, y_numeric=True, ensure_min_samples=2)
        self._check_shape(X)
        self.shape_ = X.shape[1:]
        self.single_output_ = y.ndim == 1
        targets = np.asarray(y, dtype=np.float64).reshape(len(y), -1)
        windows = X.reshape(len(X), X.shape[1], -1)
        held = min(len(X) - 1, max(1, round(self.validation_fraction * len(X))))
        mode, penalty = self._choose(windows, targets, len(X) - held)
        early = _Ridge(mode, penalty).fit(windows[:-held], targets[:-held], windows[-held:], targets[-held:])
        self.network_, self.steps_ = self._train(windows, targets, held, early)
        self.ridge_ = _Ridge(mode, penalty).fit(windows, targets)
        self.ridge_.offsets = early.offsets
        return self

    def predict(self, X: Any) -> Array:
        """Median (n,) or (n, H)."""
        middle = self._quantiles(X, (0.5,))[..., 0]
        return middle[:, 0] if self.single_output_ else middle

    def predict_quantiles(self, X: Any, quantiles: Sequence[float]) -> Array:
        """Quantiles (n, Q) or (n, H, Q) at ascending levels."""
        values = self._quantiles(X, check_levels(quantiles))
        return values[:, 0] if self.single_output_ else values

    def _quantiles(self, X: Any, levels: Sequence[float]) -> Array:
        check_is_fitted(self)
        X = validate_data(self, X, **READ, reset=False)
        if X.shape[1:] != self.shape_:
            raise ValueError(f"X has windows of shape {X.shape[1:]}, the regressor was fitted on {self.shape_}")
        batch = _batch(X.reshape(len(X), X.shape[1], -1), self.ridge_)
        with torch.inference_mode():
            return self.network_.quantiles(batch, levels)[:, :, 0].numpy()

    def _check_options(self) -> None:
        if self.scaling not in ("auto", "window", "global"):
            raise ValueError(f"scaling={self.scaling!r} is unknown: choose 'auto', 'window' or 'global'")
        if not isinstance(self.blocks, str):
            raise ValueError(f'blocks={self.blocks!r}: expected a letter for each block, such as "ms"')
        counts = ("d_model", "num_heads", "patch_length", "batch_size")
        check_positive(self.get_params(deep=False), counts, "a whole number, at least 1")
        steps = self.max_steps
        if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or steps < 0:
            raise ValueError(f"max_steps={steps!r}: expected a whole number, at least 0")
        for name, expected, right in (
            ("validation_fraction", "a share within (0, 1)", lambda value: 0 < value < 1),
            ("dropout", "a probability in [0, 1)", lambda value: 0 <= value < 1),
            ("lr", "a positive learning rate", lambda value: 0 < value < math.inf),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, numbers.Real) or not right(value):
                raise ValueError(f"{name}={value!r}: expected {expected}")

    def _check_shape(self, X: Array) -> None:
        if X.ndim > 3 or 0 in X.shape[1:]:
            raise ValueError(
                f"X has the shape {X.shape}: expected (n, L), or (n, L, F) with F variables per step, none of them 0"
            )
        if self.patch_length > X.shape[1]:
            raise ValueError(
                f"patch_length={self.patch_length} is longer than the windows, which have {X.shape[1]} steps"
            )

    def _choose(self, X: Array, y: Array, split: int) -> tuple[str, float]:
        """Scaling and penalty with the least absolute error on the held-back rows."""
        modes = ("window", "global") if self.scaling == "auto" else (self.scaling,)
        errors = {
            (mode, penalty): np.abs(_Ridge(mode, penalty).fit(X[:split], y[:split])(X[split:]) - y[split:]).mean()
            for mode in modes
            for penalty in PENALTIES
        }
        return min(errors, key=errors.__getitem__)

    def _train(self, X: Array, y: Array, held: int, ridge: _Ridge) -> tuple[PatchModel, int]:
        """The network at its best on the held-back rows, and after how many steps that was."""
        config = PatchConfig(
            input_length=X.shape[1],
            horizon=y.shape[1],
            patch_length=self.patch_length,
            past=X.shape[2] - 1,
            dropout=self.dropout,
            backbone=True,
            encoder=EncoderConfig(
                d_model=self.d_model, num_heads=self.num_heads, blocks=self.blocks, dropout=self.dropout
            ),
        )
        seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
        generator = torch.Generator().manual_seed(seed)
        batch, labels = _batch(X, ridge), _labels(y)
        ahead, later = (batch[:-held], labels[:-held]), (batch[-held:], labels[-held:])
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            model = PatchModel(config).double()
            steps = _descend(model, ahead, later, self.max_steps, self.batch_size, self.lr, generator)
        return model.eval(), steps


def _descend(
    model: PatchModel,
    ahead: tuple[Batch, Labels],
    later: tuple[Batch, Labels],
    max_steps: int,
    batch_size: int,
    lr: float,
    generator: torch.Generator,
) -> int:
    """Trains on `ahead`, keeps the weights that are best on `later`; returns their step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-2)
    interval = max(1, max_steps // 20)

    def judge() -> float:
        model.eval()
        with torch.no_grad():
            return float(model.loss(*later))

    best, kept, at = judge(), {k: v.clone() for k, v in model.state_dict().items()}, 0
    for step in range(1, max_steps + 1):
        rows = torch.randint(len(ahead[0]), (min(batch_size, len(ahead[0])),), generator=generator)
        model.train()
        loss = model.loss(ahead[0][rows], ahead[1][rows])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % interval == 0 or step == max_steps:
            value = judge()
            if value < best:
                best, kept, at = value, {k: v.clone() for k, v in model.state_dict().items()}, step
            elif step - at >= PATIENCE * interval:
                break
    model.load_state_dict(kept)
    return at


class _Ridge:
    """Ridge regression on all values of a window, scaled by the window's first variable or by the training rows."""

    def __init__(self, mode: str, penalty: float):
        self.mode = mode
        self.penalty = penalty
        self.offsets = np.zeros((1, len(LEVELS)))

    def fit(self, X: Array, y: Array, X_later: Array | None = None, y_later: Array | None = None) -> _Ridge:
        """On windows (n, L, F) and values (n, H); the spread of the quantiles comes from later rows where given."""
        self.columns = np.nan_to_num(_mean(X, (0, 1))), _positive(_spread(X, (0, 1)))
        features, centre, scale = self._features(X)
        wanted = (y - centre) / scale
        self.mean, self.bias = features.mean(0), wanted.mean(0)
        design = features - self.mean
        gram = design.T @ design + self.penalty * len(X) * np.eye(design.shape[1])
        self.weight = np.linalg.solve(gram, design.T @ (wanted - self.bias))
        X_later, y_later = (X, y) if X_later is None or y_later is None else (X_later, y_later)
        _, centre, scale = self._features(X_later)
        rest = (y_later - self(X_later)) / scale  # n H
        self.offsets = np.quantile(rest - np.median(rest, axis=0), LEVELS, axis=0).T
        return self

    def __call__(self, X: Array) -> Array:
        """Forecasts (n, H)."""
        features, centre, scale = self._features(X)
        return ((features - self.mean) @ self.weight + self.bias) * scale + centre

    def quantiles(self, X: Array) -> Array:
        """Quantiles (n, H, Q) at `LEVELS`."""
        _, _, scale = self._features(X)
        return self(X)[..., None] + scale[..., None] * self.offsets

    def _features(self, X: Array) -> tuple[Array, Array, Array]:
        """Scaled values (n, L F) with 0 for missing ones, and each row's centre and scale (n, 1)."""
        centre, scale = np.zeros((len(X), 1)), np.ones((len(X), 1))
        scaled = (X - self.columns[0]) / self.columns[1]
        if self.mode == "window":
            own = X[..., 0]
            centre = np.nan_to_num(_mean(own, 1))[:, None]
            scale = _positive(_spread(own, 1))[:, None]
            scaled = np.concatenate((((own - centre) / scale)[..., None], scaled[..., 1:]), -1)
        return np.nan_to_num(scaled).reshape(len(X), -1), centre, scale


def _mean(values: Array, axis: Any) -> Array:
    """Mean of the finite values; NaN where there are none."""
    count = np.isfinite(values).sum(axis)
    return np.where(count > 0, np.nansum(values, axis) / np.maximum(count, 1), np.nan)


def _spread(values: Array, axis: Any) -> Array:
    """Standard deviation of the finite values."""
    return np.sqrt(_mean((values - np.expand_dims(_mean(values, axis), axis)) ** 2, axis))


def _positive(scale: Array) -> Array:
    return np.where(np.isfinite(scale) & (scale > 0), scale, 1.0)


def _batch(X: Array, ridge: _Ridge) -> Batch:
    """Windows (n, L, F) as a batch whose base forecast is the ridge regression's."""
    n, length, _ = X.shape
    values = torch.from_numpy(np.nan_to_num((X - ridge.columns[0]) / ridge.columns[1]))
    seen = torch.from_numpy(np.isfinite(X))
    target = torch.from_numpy(np.nan_to_num(X[..., :1]))
    base = torch.from_numpy(ridge.quantiles(X))[:, :, None]
    empty = torch.zeros(n, length + base.shape[1], 0, dtype=torch.float64)
    codes = empty.long()
    return Batch(
        target=target,
        observed=seen[..., :1],
        offset=torch.zeros(n, 1, dtype=torch.float64),
        present=torch.ones(n, length, dtype=torch.bool),
        known=empty,
        past=values[..., 1:],
        past_observed=seen[..., 1:],
        static=empty[:, 0],
        static_observed=empty[:, 0].bool(),
        known_categories=codes,
        past_categories=codes[:, :length],
        static_categories=codes[:, 0],
        series=torch.full((n,), -1),
        origin=torch.full((n,), length),
        base=base,
    )


def _labels(y: Array) -> Labels:
    target = torch.tensor(y)[..., None]
    weight: Tensor = torch.ones(target.shape[:2], dtype=torch.float64)
    return Labels(target=target, observed=torch.ones_like(target, dtype=torch.bool), weight=weight)


class TimeSplit:
    """Cross-validation over time for long frames: train on all rows up to a cutoff, test on the horizon after it.

    The last test part ends with the frame; every earlier one lies `step_size` (None: the horizon) time stamps before.

    >>> import pandas as pd
    >>> df = pd.DataFrame({"ds": range(10), "y": range(10)})
    >>> list(TimeSplit(horizon=2, n_windows=2).cutoffs(df))
    [5, 7]
    """

    def __init__(self, *, horizon: int, n_windows: int = 3, step_size: int | None = None, time_col: str = "ds"):
        counts = {"horizon": horizon, "n_windows": n_windows}
        counts |= {} if step_size is None else {"step_size": step_size}
        check_positive(counts, tuple(counts), "a whole number, at least 1")
        self.horizon = horizon
        self.n_windows = n_windows
        self.step_size = step_size
        self.time_col = time_col

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:
        """Number of cutoffs."""
        return self.n_windows

    def cutoffs(self, X: Any) -> Iterator[Any]:
        """The last time stamp of every training part, earliest first: a value to compare the time column with.

        A `pandas.Timestamp`, in the column's zone if it has one, for a column of dates with times, in polars too.
        """
        times = self._stamps(X)
        kind = nw.from_native(X, eager_only=True)[self.time_col].dtype
        for at in self._places(len(times)):
            yield _value(times[at], kind)

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Iterator[tuple[Array, Array]]:
        """Row numbers of training and test part at every cutoff."""
        times = self._stamps(X)
        place = np.searchsorted(times, nw.from_native(X, eager_only=True)[self.time_col].to_numpy())
        for at in self._places(len(times)):
            yield np.flatnonzero(place <= at), np.flatnonzero((place > at) & (place <= at + self.horizon))

    def _stamps(self, X: Any) -> Array:
        frame = nw.from_native(X, eager_only=True)
        if self.time_col not in frame.columns:
            raise ValueError(f"time_col={self.time_col!r} is not a column; the frame has {frame.columns}")
        return np.unique(frame[self.time_col].to_numpy())

    def _places(self, count: int) -> list[int]:
        step = self.horizon if self.step_size is None else self.step_size
        first = count - 1 - self.horizon - (self.n_windows - 1) * step
        if first < 0:
            raise ValueError(
                f"{self.n_windows} cutoffs of horizon {self.horizon}, {step} apart, need {count - first} time stamps, "
                f"found {count}: lower n_windows, horizon or step_size"
            )
        return [first + window * step for window in range(self.n_windows)]


def _value(time: Any, kind: nw.dtypes.DType) -> Any:
    """A time stamp as numpy has it, zones told in UTC, as a value of its column's own kind."""
    if not (isinstance(time, np.datetime64) and isinstance(kind, nw.Datetime)):
        return time.item() if isinstance(time, np.generic) else time
    return pd.Timestamp(time) if kind.time_zone is None else pd.Timestamp(time, tz="UTC").tz_convert(kind.time_zone)


_LABEL = "__label__"  # a target may be called "forecast"


def _forecast(forecaster: Any, future: Any) -> Any:
    """The forecast after the data that it was fitted on; steps for which `future` has no row will not be scored."""
    if future is None or "panel_" not in vars(forecaster):
        return forecaster.predict(future_df=future)
    panel = forecaster.panel_.with_future(future, forecaster.horizon, carry=True)
    series, origin = np.arange(len(panel)), panel.history
    values = forecaster._forecast(panel, series, origin, (0.5,))
    return forecast_frame(panel, series, origin, {"forecast": values[..., 0]})


def forecast_scorer(metric: str = "mae") -> Callable[..., float]:
    """A scorer for searches over `XLSTMForecaster`: minus the error ("mae" or "mse") of its forecast on the test rows.

    The forecaster predicts from what it was fitted on; known-future columns are taken from the test rows, as far as a
    series has them. Test rows beyond its horizon, of series that it was not fitted on or without a value are left out.
    """
    if metric not in MISSES:
        raise ValueError(f"metric={metric!r} is unknown: choose one of {', '.join(map(repr, MISSES))}")

    def score(forecaster: Any, X: Any, y: Any = None) -> float:
        targets = [forecaster.target_col] if isinstance(forecaster.target_col, str) else list(forecaster.target_col)
        keys = [name for name in (forecaster.id_col, forecaster.time_col) if name is not None]
        test = nw.from_native(X, eager_only=True)
        ahead = test.select([*keys, *forecaster.future]).to_native() if forecaster.future else None
        forecast = nw.from_native(_forecast(forecaster, ahead), eager_only=True)
        known = test.select([*keys, *targets]).to_native()
        test = nw.from_native(frame_of(known, forecast.implementation.value), eager_only=True)
        errors = []
        for target in targets:
            part = forecast.filter(nw.col("target") == target) if len(targets) > 1 else forecast
            label = test.select([*keys, nw.col(target).alias(_LABEL)])
            both = part.select([*keys, "forecast"]).join(label, on=keys, how="inner")
            errors.append(both["forecast"].to_numpy() - both[_LABEL].to_numpy().astype(float))
        error = np.concatenate(errors)
        error = error[np.isfinite(error)]
        if not len(error):
            raise ValueError("no test row matches a forecast: the test part must follow the training part directly")
        return -float(MISSES[metric](error).mean())

    return score
