"""XLSTMForecaster: quantile forecasts from a data frame; fit, predict, save, load."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator

from .blend import BAND, mix, zero_shot
from .checkpoint import load_checkpoint, save_checkpoint
from .data.frame import Encoding, Panel, Roles, forecast_frame, frame_of, to_panel
from .data.roles import check_names
from .data.windows import Windows
from .encoder import EncoderConfig
from .heads import LEVELS, check_levels
from .linear import LinearModel
from .models import Ensemble, build_model
from .parameters import checked, stored
from .settings import Settings, TrainResult
from .surroundings import undisturbed

Array = np.ndarray
NETWORKS = ("model", "correction")  # fitted attributes, and parts of a checkpoint
COLUMNS = ("target", "static", "past", "future", "categorical")  # roles that a fit depends on


class XLSTMForecaster(BaseEstimator):
    """Quantile forecasts with an xLSTM from a long data frame.

    Every argument is keyword-only and a plain value; None is chosen from the data when fitting (see `summary`).

    horizon: steps to forecast. quantiles: levels of the columns "q0.1", ...; `forecast` is always the median.
    model: "patch", the xLSTM over patches; "mixer" (xLSTM-Mixer) and "time" (xLSTMTime), which mix several targets; or
    "linear", the closed-form backbone alone. backbone: whether the network
    corrects the backbone (True) or stands alone on a linear map of its context. pretrained: whether the forecast is
    averaged with that of the network that ships with the package, as far as held-back windows support it; it takes part
    where there is a backbone and head="quantile". With known-future or past columns networks forecast by
    themselves and are averaged with the backbone, which one that knows none of the columns corrects as ever.
    presets: "fast", "default" or "best", how large networks are trained, for how long, and how many.
    time_limit: seconds that fitting may take. input_length: context steps. max_steps: training steps.
    blocks, d_model, num_heads, patch_length, dropout: the encoder, see `EncoderConfig` and `PatchConfig`.
    networks: how many are trained, on contexts of different length, and averaged.
    head: "quantile", "student_t" or "point" (no quantile columns). scaling: "window" or "causal".
    id_col: None for one series; target_col: a name, or a list of names. freq: a pandas alias, None: inferred.
    season_length: steps of the season, 1: none at all; None: from the frequency, confirmed on the data.
    static, past, future: columns with static, past-only and known-future covariates; categorical: which of them, or
    which others (then static), are categories. weight_col: weights of the rows in the loss of networks alone; what is
    not to count at all is to be missing.
    calendar: cyclic features of the time, e.g. ("hour", "dayofweek"); None: those that the data covers; (): none.
    on_gap: "error", or "mask" to treat missing time steps as missing values. lower: forecasts are not below it.
    batch_size, lr, accelerator, devices, strategy, precision, checkpoint_dir: training, see `TrainConfig`.
    n_jobs: processes of a backtest that refits. seed: of weights, batches and dropout.

    >>> import pandas as pd
    >>> df = pd.DataFrame({"ds": range(60), "y": [i % 4 for i in range(60)]})
    >>> f = XLSTMForecaster(horizon=4, id_col=None, max_steps=2).fit(df, verbose=False)
    >>> list(f.predict().columns)
    ['ds', 'forecast', 'q0.1', 'q0.5', 'q0.9']
    """

    settings_: Settings
    model_: Ensemble | None
    correction_: Ensemble | None = None  # of the backbone, where `model_` stands beside it
    linear_: LinearModel | None
    weights_: dict[str, float]
    widths_: dict[str, float]  # how wide each member's band usually is
    training_: list[TrainResult]
    copula_: torch.Tensor
    panel_: Panel
    encoding_: Encoding
    calendar_: tuple[str, ...]
    fitted_until_: int
    ends_: list[tuple[Any, int]]  # id and last time stamp of each series
    errors_: dict[str, float]
    seconds_: float

    def __init__(
        self,
        *,
        horizon: int,
        quantiles: Sequence[float] = (0.1, 0.5, 0.9),
        model: str = "patch",
        backbone: bool = True,
        pretrained: bool = True,
        presets: str = "default",
        time_limit: float | None = None,
        input_length: int | None = None,
        max_steps: int | None = None,
        blocks: str | None = None,
        d_model: int | None = None,
        num_heads: int | None = None,
        patch_length: int | None = None,
        dropout: float | None = None,
        networks: int | None = None,
        head: str = "quantile",
        scaling: str = "window",
        id_col: str | None = "unique_id",
        time_col: str = "ds",
        target_col: str | Sequence[str] = "y",
        freq: int | str | None = None,
        season_length: int | None = None,
        static: Sequence[str] = (),
        past: Sequence[str] = (),
        future: Sequence[str] = (),
        categorical: Sequence[str] = (),
        weight_col: str | None = None,
        calendar: Sequence[str] | None = None,
        on_gap: str = "error",
        lower: float | None = None,
        batch_size: int | None = None,
        lr: float | None = None,
        accelerator: str = "auto",
        devices: int | str = 1,
        strategy: str = "auto",
        precision: str | None = None,
        checkpoint_dir: str | None = None,
        n_jobs: int = 1,
        seed: int = 0,
    ):
        self.horizon = horizon
        self.quantiles = quantiles
        self.model = model
        self.backbone = backbone
        self.pretrained = pretrained
        self.presets = presets
        self.time_limit = time_limit
        self.input_length = input_length
        self.max_steps = max_steps
        self.blocks = blocks
        self.d_model = d_model
        self.num_heads = num_heads
        self.patch_length = patch_length
        self.dropout = dropout
        self.networks = networks
        self.head = head
        self.scaling = scaling
        self.id_col = id_col
        self.time_col = time_col
        self.target_col = target_col
        self.freq = freq
        self.season_length = season_length
        self.static = static
        self.past = past
        self.future = future
        self.categorical = categorical
        self.weight_col = weight_col
        self.calendar = calendar
        self.on_gap = on_gap
        self.lower = lower
        self.batch_size = batch_size
        self.lr = lr
        self.accelerator = accelerator
        self.devices = devices
        self.strategy = strategy
        self.precision = precision
        self.checkpoint_dir = checkpoint_dir
        self.n_jobs = n_jobs
        self.seed = seed

    # --- fitting ---

    @undisturbed()
    def fit(
        self,
        df: Any,
        static_df: Any = None,
        val_size: int | None = None,
        warm_start: bool = False,
        freeze_encoder: bool = False,
        *,
        logger: Any = False,
        callbacks: Sequence[Any] = (),
        verbose: bool = True,
    ) -> XLSTMForecaster:
        """Fit on a long frame (pandas or polars), or on a Series with a DatetimeIndex.

        static_df: one row per series with the static columns, where they are not in `df`. val_size: steps held back at
        the end of each series for early stopping; None: chosen, 0: none. warm_start: go on from the fitted (or loaded)
        network on new data, with the sizes it has; arguments that ask for others are refused. freeze_encoder: then
        train all but its encoder. logger, callbacks: Lightning's.
        Raises ValueError naming the column, series or argument that is wrong; nothing of an earlier fit is lost then.
        """
        began = time.monotonic()  # before what is imported for a fit alone
        params = self._params()
        check_names(self._roles(), self._names(params["quantiles"]))
        if warm_start:
            self._check_fitted()
            self._check_columns()
        elif freeze_encoder:
            raise ValueError("freeze_encoder=True needs warm_start=True: a new encoder has nothing to keep")
        panel = self._read(df, static_df=static_df, encoding=self.encoding_ if warm_start else None)
        self._fit_panel(
            panel,
            params,
            val_size,
            warm_start=warm_start,
            freeze_encoder=freeze_encoder,
            logger=logger,
            callbacks=callbacks,
            verbose=verbose,
            began=began,
        )
        return self

    def _fit_panel(
        self, panel: Panel, params: dict[str, Any], val_size: int | None, warm_start: bool, **options: Any
    ) -> None:
        from . import fitting
        from .held_back import split

        start = fitting.Starts(self.model_, self.correction_) if warm_start else fitting.Starts(None, None)
        panel = panel.since_observed()
        if start.model is not None:
            panel = panel.with_calendar(self.calendar_)
        elif self.calendar is None:
            panel = fitting.with_calendar(panel)
        settings = fitting.settle(panel, params, val_size)
        if start.model is not None:
            fitting.check_continued(start.model, self.settings_, params)
            if panel.axis.freq.name != self.encoding_.freq:
                raise ValueError(
                    f"freq={panel.axis.freq.name!r}: warm_start=True goes on with a model of "
                    f"freq={self.encoding_.freq!r}"
                )
            settings = replace(settings, **{name: getattr(self.settings_, name) for name in fitting.KEPT})
        parts = split(panel, settings, self.horizon)
        fitted = fitting.fit(panel, settings, parts, params, start, val_size=val_size, **options)
        for name, value in fitted.items():
            setattr(self, name, value)
        self.panel_ = panel
        self.encoding_ = panel.encoding
        self.calendar_ = panel.roles.calendar
        self.ends_ = panel.ends()
        self.columns_ = {name: getattr(panel.roles, name) for name in COLUMNS}
        self.fitted_until_ = max(end for _, end in self.ends_)

    def _params(self) -> dict[str, Any]:
        """All parameters, checked."""
        return checked(self.get_params(deep=False))

    def _roles(self) -> Roles:
        named: dict[str, Any] = {name: getattr(self, name) for name in COLUMNS[1:]}
        return Roles(
            id=self.id_col,
            time=self.time_col,
            target=self.target_col,  # type: ignore[arg-type]
            weight=self.weight_col,
            calendar=self.calendar,  # type: ignore[arg-type]
            **named,
        )

    def _read(
        self, df: Any, static_df: Any = None, encoding: Encoding | None = None, *, weighted: bool = True
    ) -> Panel:
        roles = self._roles() if weighted else replace(self._roles(), weight=None)
        return to_panel(df, roles, freq=self.freq, on_gap=self.on_gap, static_df=static_df, encoding=encoding)

    # --- predicting ---

    def set_output(self, *, transform: str | None = None) -> XLSTMForecaster:
        """The kind of frame that `predict` returns: "pandas", "polars", or "default", as it reads; None: no change.

        Kept by `clone` and by pickling. Raises ValueError for another name. scikit-learn's global `transform_output`,
        which is about transformers, changes nothing.
        """
        if transform not in (None, "default", "pandas", "polars"):
            raise ValueError(f"transform={transform!r}: choose 'default', 'pandas' or 'polars', or None")
        if transform is not None:
            self._sklearn_output_config = {"transform": transform}  # the name under which `clone` looks for it
        return self

    def _output(self, frame: Any) -> Any:
        kind = getattr(self, "_sklearn_output_config", {}).get("transform", "default")
        return frame if kind == "default" else frame_of(frame, kind)

    @undisturbed()
    def predict(
        self,
        df: Any = None,
        future_df: Any = None,
        static_df: Any = None,
        quantiles: Sequence[float] | None = None,
        n_samples: int | None = None,
    ) -> Any:
        """Forecast the `horizon` steps after the end of each series.

        df: history to forecast from, of fitted or new series; None: the one fitted on. future_df: the known-future
        columns over the horizon. quantiles: other levels than fitted. Returns a frame of the caller's kind (see
        `set_output`) with id, time, `forecast` (the median) and one column per level.
        n_samples: joint paths instead; id, time, `sample` (0 ... n_samples - 1) and `forecast`, whose marginals are the
        quantile forecasts, and whose sums over the horizon have the spread that the held-back errors had.
        """
        self._check_fitted()
        panel = self._history(df, static_df).with_future(future_df, self.horizon)
        series, origin = np.arange(len(panel)), panel.history
        if n_samples is not None:
            if quantiles is not None:
                raise ValueError("n_samples gives paths and quantiles levels: ask for one of the two")
            return self._output(self._sample(panel, series, origin, n_samples))
        levels = self._levels(quantiles)
        check_names(panel.roles, self._names(levels))
        values = self._forecast(panel, series, origin, (0.5, *levels))
        return self._output(forecast_frame(panel, series, origin, self._columns(values, levels)))

    def _levels(self, quantiles: Sequence[float] | None) -> tuple[float, ...]:
        if self._has_quantiles():
            return check_levels(self.quantiles if quantiles is None else quantiles)
        if quantiles is not None:
            raise ValueError("head='point' has no quantiles: fit with head='quantile', or leave quantiles=None")
        return ()

    def _has_quantiles(self) -> bool:
        return self.model_ is None or self.model_.head.has_quantiles

    @staticmethod
    def _names(levels: Sequence[float]) -> list[str]:
        return [f"q{level:g}" for level in levels]

    def _columns(self, values: Array, levels: Sequence[float]) -> dict[str, Array]:
        columns = {"forecast": values[..., 0]}
        return columns | {name: values[..., 1 + q] for q, name in enumerate(self._names(levels))}

    def _history(self, df: Any, static_df: Any) -> Panel:
        if df is not None:
            return self._to_panel(df, static_df)
        if static_df is not None:
            raise ValueError("static_df without df: the static columns of the series fitted on are known; pass both")
        if not hasattr(self, "panel_"):
            raise ValueError(
                "a loaded forecaster does not hold the data it was fitted on: call predict(df) with a history"
            )
        return self.panel_

    def _to_panel(self, df: Any, static_df: Any = None) -> Panel:
        """A frame read with what was learnt when fitting."""
        self._check_columns()
        return self._read(df, static_df, self.encoding_, weighted=False).with_calendar(self.calendar_)

    def _check_columns(self) -> None:
        """Raise where parameters name other columns than those fitted with."""
        roles = self._roles()
        for name, fitted in self.columns_.items():
            found = getattr(roles, name)
            if found != fitted:
                argument = "target_col" if name == "target" else name
                raise ValueError(f"{argument}={list(found)}: this forecaster was fitted with {list(fitted)}; fit again")

    def _forecast(self, panel: Panel, series: Any, origin: Any, levels: Sequence[float]) -> Array:
        """Quantiles (n, H, V, Q) at any levels, in the order given, of the windows at (series, origin), (n,) each.

        Only rows before each origin are read, and known-future columns over its horizon. NaN for a target without any
        observed value before its origin.
        """
        if self.horizon != len(self.copula_):
            raise ValueError(f"horizon={self.horizon}: this forecaster was fitted for {len(self.copula_)}; fit again")
        levels = tuple(float(level) for level in levels)
        # in the order of a loaded forecaster's: the same sum to the bit
        weights = {name: weight for name, weight in sorted(self.weights_.items()) if weight > 0}
        wanted = {*levels, *BAND} if len(weights) > 1 and self._has_quantiles() else {*levels}
        ordered = tuple(sorted(wanted))
        series, origin = np.asarray(series), np.asarray(origin)
        found = {name: torch.from_numpy(self._member(name, panel, series, origin, ordered)) for name in weights}
        out = mix(found, weights, ordered, self.widths_).numpy()
        if self.lower is not None:
            out = np.maximum(out, self.lower)
        blank = panel.first_observed[series] >= origin[:, None]  # n V, nothing seen yet: nothing to say
        if blank.any():
            out[np.broadcast_to(blank[:, None, :, None], out.shape)] = np.nan
        return out[..., [ordered.index(level) for level in levels]]

    def _member(self, name: str, panel: Panel, series: Array, origin: Array, levels: tuple[float, ...]) -> Array:
        """Quantiles (n, H, V, Q) of one of those that the forecast is the average of."""
        model, linear = self.model_, self.linear_
        if name == "pretrained" and linear is not None:
            return zero_shot(linear, panel, self.settings_.seasons, self.horizon, levels)(series, origin)
        if name == "recent" and linear is not None:
            return linear.recent(panel, levels)(series, origin)
        corrects = linear is not None and (name == "backbone" or not self.settings_.alone)
        if name == "backbone":
            model, read = self.correction_, panel.without_covariates()
        else:
            read = panel
        if linear is not None and (model is None or (corrects and model.share == 0)):
            return linear.quantiles(panel, series, origin, levels)
        assert model is not None
        base = linear.on(panel, model.models[0].config.levels) if linear is not None and corrects else None
        found = self._networks(model, read, base, series, origin, levels)
        return found if linear is None else np.maximum(found, linear.floors(panel, series, origin))

    def _networks(
        self, model: Ensemble, panel: Panel, base: Any, series: Array, origin: Array, levels: tuple[float, ...]
    ) -> Array:
        """Quantiles (n, H, V, Q) of networks, of which those with a base correct it."""
        windows = Windows(panel, model.models[0].config.input_length, self.horizon, base=base)
        out = np.empty((len(series), self.horizon, len(panel.roles.target), len(levels)))
        with torch.inference_mode():
            for a in range(0, len(series), 1024):
                batch, _ = windows.gather_at(series[a : a + 1024], origin[a : a + 1024], labels=False)
                batch = batch if self.linear_ is None else self.linear_.joined(batch)
                out[a : a + 1024] = model.quantiles(batch, levels).numpy()
        return out

    def _sample(self, panel: Panel, series: Array, origin: Array, count: int) -> Any:
        from .sampling import joint_ranks, paths

        if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 1:
            raise ValueError(f"n_samples={count!r}: expected a whole number of paths, at least 1")
        if not self._has_quantiles():
            raise ValueError("head='point' has no distribution to sample from: fit with head='quantile'")
        levels = tuple(sorted({0.005, 0.025, 0.05, 0.95, 0.975, 0.995, *LEVELS, *check_levels(self.quantiles)}))
        quantiles = torch.from_numpy(self._forecast(panel, series, origin, levels))  # n H V Q
        generator = torch.Generator().manual_seed(self.seed)
        n, horizon, variates, _ = quantiles.shape
        scores = joint_ranks(self.copula_.double(), n * variates, count, generator)
        table = quantiles.transpose(1, 2).flatten(0, 1)
        drawn = paths(table, torch.tensor(levels, dtype=torch.float64), scores)  # (n V) S H
        if self.lower is not None:
            drawn = drawn.clamp(min=self.lower)
        cube = drawn.view(n, variates, count, horizon).permute(0, 2, 3, 1).reshape(-1, horizon, variates).numpy()
        sample = np.broadcast_to(np.tile(np.arange(count), n)[:, None, None], cube.shape)
        columns: dict[str, Array] = {"sample": sample, "forecast": cube}
        return forecast_frame(panel, np.repeat(series, count), np.repeat(origin, count), columns)

    # --- judging ---

    def backtest(self, df: Any, **options: Any) -> Any:
        """Forecasts of past windows with their labels; see `xlstm_forecast.backtest.backtest` for the options."""
        from .backtest import backtest

        return backtest(self, df, **options)

    def calibrate(self, df: Any, **options: Any) -> Any:
        """A forecaster with bands corrected by backtest windows; see `xlstm_forecast.calibration.calibrate`."""
        from .calibration import calibrate

        return calibrate(self, df, **options)

    def summary(self) -> dict[str, Any]:
        """What the fit decided: sizes, calendar, the backbone's stages, validation errors, steps and seconds.

        "backbone" lists its stages; the one called "calendar" says whether a profile of dates was accepted, and why.
        "held_back" are the steps at the end of each series that the choices were made on, "held_back_step" those
        between two of their windows.
        "validation" holds mean absolute errors on the held-back windows in units of each window's standard deviation,
        those of the naive forecasts and of the members beside; "share" how much of a network's correction of the
        backbone is kept; "steps", "best_step" and "loss_by_step" have one entry per network.
        "weights" of what the forecast is the average: the network (with the backbone that it corrects), the backbone
        where the network stands beside it ("alone", with covariates; a network of its own, which knows none of them,
        corrects it then, the last of "steps"), "recent", a regression on known-future inputs
        that every forecast solves anew on its own past, and the pre-trained network. A step takes more of a member
        that is surer of it than usual: "widths" of the 80 % bands on the held-back windows, in logarithms relative to
        the members' mean.
        """
        self._check_fitted()
        correction = self.correction_ if self.settings_.alone else self.model_
        settings = asdict(self.settings_)
        settings |= {"held_back": settings.pop("validation"), "held_back_step": settings.pop("validation_step")}
        return {
            "model": self.model,
            "freq": self.encoding_.freq,
            "series": len(self.ends_),
            "calendar": list(self.calendar_),
            **settings,
            "backbone": list(self.linear_.fitted.report) if self.linear_ else [],
            "share": None if correction is None else correction.share,
            "weights": self.weights_,
            "widths": self.widths_,
            "steps": [result.steps for result in self.training_],
            "best_step": [result.best_step for result in self.training_],
            "loss_by_step": [result.validation for result in self.training_],
            "validation": self.errors_,
            "seconds": self.seconds_,
        }

    def _check_fitted(self) -> None:
        if not hasattr(self, "settings_"):
            from sklearn.exceptions import NotFittedError

            raise NotFittedError(
                "this XLSTMForecaster is not fitted yet: call fit(df) first, or XLSTMForecaster.load(path)"
            )

    # --- keeping ---

    def save(self, path: str | Path) -> None:
        """Write the fitted forecaster to one file (safetensors with a JSON header)."""
        self._check_fitted()
        config = {
            "params": self.get_params(deep=False),
            **{name: _configs(getattr(self, f"{name}_")) for name in NETWORKS},
            "settings": asdict(self.settings_),
            "encoding": self.encoding_.to_dict(),
            "calendar": list(self.calendar_),
            "fitted_until": self.fitted_until_,
            "ends": self.ends_,
            "columns": self.columns_,
            "training": [asdict(result) for result in self.training_],
            "errors": self.errors_,
            "weights": self.weights_,
            "widths": self.widths_,
            "seconds": self.seconds_,
        }
        tensors = {"copula": self.copula_}
        for part in NETWORKS:
            networks = getattr(self, f"{part}_")
            if networks is not None:
                tensors |= {f"{part}.{name}": value for name, value in networks.state_dict().items()}
        if self.linear_ is not None:
            arrays, config["linear"] = self.linear_.to_tensors()
            tensors |= {f"linear.{name}": value for name, value in arrays.items()}
        save_checkpoint(path, tensors, stored(config))

    @classmethod
    @undisturbed()
    def load(cls, path: str | Path) -> XLSTMForecaster:
        """Read a forecaster from a file written by `save`, on the CPU, wherever it was fitted.

        Raises FileNotFoundError, or ValueError for a file that is damaged, edited, newer than this version, of an
        earlier one whose backbone had other features, or of something else than a forecaster.
        """
        tensors, config = load_checkpoint(path)
        if "kind" in config or "params" not in config:
            found = config.get("kind", "something else")
            raise ValueError(
                f"{path} holds {found!r}, not an XLSTMForecaster: read it with the `load` "
                "of the class that saved it (CalibratedForecaster, language.xLSTM)"
            )
        self = cls(**_tuples(config["params"]))
        for part in NETWORKS:
            setattr(self, f"{part}_", _built(self.model, config.get(part), _under(f"{part}.", tensors)))
        self.linear_ = None
        if "linear" in config:
            try:
                self.linear_ = LinearModel.from_tensors(_under("linear.", tensors), config["linear"])
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
        self.copula_ = tensors["copula"]
        self.settings_ = Settings(**_tuples(config["settings"]))
        self.weights_ = config["weights"]
        self.widths_ = config.get("widths", dict.fromkeys(self.weights_, 0.0))  # files before have one member
        self.encoding_ = Encoding.from_dict(config["encoding"])
        self.calendar_ = tuple(config["calendar"])
        self.fitted_until_ = config["fitted_until"]
        if "ends" in config:  # not in files of 0.1.0
            self.ends_ = [(key, end) for key, end in config["ends"]]
        self.columns_ = _tuples(config.get("columns", {}))  # likewise
        self.training_ = [TrainResult.from_dict(result) for result in config["training"]]
        self.errors_, self.seconds_ = config["errors"], config["seconds"]
        return self


def _configs(networks: Ensemble | None) -> list[dict[str, Any]] | None:
    return None if networks is None else [asdict(member.config) for member in networks.models]


def _built(model: str, configs: list[dict[str, Any]] | None, tensors: dict[str, Any]) -> Ensemble | None:
    """Networks of a checkpoint."""
    if configs is None:
        return None
    shapes = [_tuples(shape) for shape in configs]
    shapes = [shape | {"encoder": EncoderConfig(**shape["encoder"])} for shape in shapes]
    networks = Ensemble([build_model(model, shape) for shape in shapes])
    try:
        networks.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"these weights are not of this version's model={model!r}: fit again and save") from error
    networks.eval()
    return networks


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


def _under(prefix: str, tensors: dict[str, Any]) -> dict[str, Any]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
