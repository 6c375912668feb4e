"""Our networks as pytorch-forecasting models: `XLSTM`, and xLSTM-Mixer and xLSTMTime beside it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import torch
from pytorch_forecasting import TimeSeriesDataSet
from pytorch_forecasting.metrics import RMSE, QuantileLoss
from pytorch_forecasting.metrics.base_metrics import MultiLoss
from pytorch_forecasting.models.base import BaseModelWithCovariates
from pytorch_forecasting.models.base._base_model import PredictCallback
from pytorch_forecasting.models.nn import MultiEmbedding
from pytorch_forecasting.utils import get_embedding_size
from torch import Tensor, nn

from ...encoder import EncoderConfig
from ...models.common import ForecastModel
from ...models.mixer import MixerConfig, MixerModel
from ...models.patch import PatchConfig, PatchModel
from ...models.time import TimeConfig, TimeModel
from .frames import FrameReader, with_known_ids
from .heads import (
    DefinedGradient,
    LossHead,
    ScaleGradient,
    centred,
    check_loss,
    in_target_units,
    keep_positive,
    linear_space,
    median,
    output_size,
    scaling_metric,
)
from .windows import Columns, Reader


class _Forecaster(BaseModelWithCovariates):
    """What the models have in common: their data set's windows in, parameters of their loss in real units out."""

    def __init__(
        self,
        *,
        context_length: int,
        prediction_length: int,
        target: str | Sequence[str],
        output_size: int | Sequence[int],
        loss: Any = None,
        window_scaling: bool = True,
        balance: float = 0.5,
        static_categoricals: Sequence[str] = (),
        static_reals: Sequence[str] = (),
        time_varying_categoricals_encoder: Sequence[str] = (),
        time_varying_categoricals_decoder: Sequence[str] = (),
        time_varying_reals_encoder: Sequence[str] = (),
        time_varying_reals_decoder: Sequence[str] = (),
        x_reals: Sequence[str] = (),
        x_categoricals: Sequence[str] = (),
        embedding_sizes: dict[str, tuple[int, int]] | None = None,
        embedding_labels: dict[str, Sequence[str]] | None = None,
        embedding_paddings: Sequence[str] = (),
        categorical_groups: dict[str, Sequence[str]] | None = None,
        optimizer_params: dict[str, Any] | None = None,
        logging_metrics: Any = (),
        **kwargs: Any,
    ):
        if kwargs.get("monotone_constraints"):
            raise ValueError(
                "monotone_constraints need second derivatives, which the recurrences do not have: leave them out"
            )
        if not 0 <= balance <= 1:
            raise ValueError(f"balance={balance}: expected a number from 0 to 1")
        loss = QuantileLoss() if loss is None else loss
        embedding_sizes, embedding_labels = dict(embedding_sizes or {}), dict(embedding_labels or {})
        categorical_groups = dict(categorical_groups or {})
        logging_metrics = nn.ModuleList(logging_metrics)
        with warnings.catch_warnings():  # Lightning would rather not save the loss, which the checkpoint needs
            warnings.simplefilter("ignore", UserWarning)
            self.save_hyperparameters()
            super().__init__(loss=loss, logging_metrics=logging_metrics, optimizer_params=optimizer_params, **kwargs)
        if self.hparams.optimizer_params is not None:  # which choosing the optimizer may write to
            self.hparams.optimizer_params = dict(self.hparams.optimizer_params)
        names = [target] if isinstance(target, str) else list(target)
        sizes = [output_size] if isinstance(output_size, int) else list(output_size)
        self._check_sizes(names, sizes)
        reader = Reader(
            Columns.of(self.hparams, names),
            MultiEmbedding(
                embedding_sizes=embedding_sizes,
                categorical_groups=categorical_groups,
                embedding_paddings=list(embedding_paddings),
                x_categoricals=list(x_categoricals),
            ),
            context=context_length,
            horizon=prediction_length,
            centred=[centred(metric) for metric in self._metrics],
            linear=[linear_space(m, n) for m, n in zip(self._metrics, self._normalizers, strict=True)],
            scaling=window_scaling,
        )
        self.reader = reader
        self.network, width = self._network(
            targets=len(names), **{role: reader.width(role) for role in ("known", "past", "static")}
        )
        self.heads = nn.ModuleList(
            LossHead(width, metric, normalizer, size)
            for metric, normalizer, size in zip(self._metrics, self._normalizers, sizes, strict=True)
        )

    def _network(self, *, targets: int, known: int, past: int, static: int) -> tuple[ForecastModel, int]:
        """The network around which a model is built, and the width of its features."""
        raise TypeError(f"{type(self).__name__} has no network; use XLSTM, XLSTMTime or XLSTMMixer")

    def _check_sizes(self, names: list[str], sizes: list[int]) -> None:
        metrics = self._metrics
        if len(metrics) != len(names):
            raise ValueError(f"loss: {len(metrics)} losses for {len(names)} targets {names}: give one for each target")
        if len(self._normalizers) != len(names):
            raise ValueError(f"output_transformer: {len(self._normalizers)} normalizers for {len(names)} targets")
        for name, metric, normalizer in zip(names, metrics, self._normalizers, strict=True):
            check_loss(metric, normalizer, name)
        needed = [output_size(metric) for metric in metrics]
        if sizes != needed:
            raise ValueError(f"output_size={sizes} does not fit the loss, which takes {needed} parameters per value")

    @property
    def _metrics(self) -> list[Any]:
        return list(self.loss.metrics) if isinstance(self.loss, MultiLoss) else [self.loss]

    @property
    def _normalizers(self) -> list[Any]:
        transformer = self.output_transformer
        if transformer is None:
            raise ValueError("output_transformer is missing: build the model with from_dataset, or give a normalizer")
        return list(transformer.normalizers) if isinstance(self.loss, MultiLoss) else [transformer]

    def forward(self, x: dict[str, Any]) -> Any:
        """Forecast of a batch of their data set: prediction (B, T, n) in real units; several targets: a list of such.

        Of decoder_cont and decoder_cat only columns that are known in the future are read.
        """
        steps = x["decoder_cont"].shape[1]
        if steps > self.hparams.prediction_length:
            raise ValueError(
                f"x has {steps} decoder steps, the model was built for prediction_length="
                f"{self.hparams.prediction_length}"
            )
        batch, scaled = self.reader(x, self._normalizers)
        features, base = self.network.features(batch, scaled)
        several = isinstance(self.loss, MultiLoss)
        given = [scale.to(base.dtype) for scale in (x["target_scale"] if several else [x["target_scale"]])]
        outputs = []
        for v, (head, metric, normalizer, scale) in enumerate(
            zip(self.heads, self._metrics, self._normalizers, given, strict=True)
        ):
            params = head(features[:, :steps, v], base[:, :steps, v])
            # their scaling, whose spread may be negative, around the window's makes one affine map of both
            centre, spread = scale[:, 0], scale[:, 1].abs()
            if self.training and in_target_units(metric):
                params = ScaleGradient.apply(params, (spread * scaled.scale[:, 0, v]) ** -self.hparams.balance)
            both = torch.stack((centre + spread * scaled.location[:, 0, v], spread * scaled.scale[:, 0, v]), -1)
            real = self._rescale(params, both.to(params.dtype), metric, normalizer, self.reader.linear[v])
            outputs.append(DefinedGradient.apply(real) if self.training and isinstance(metric, RMSE) else real)
        return self.to_network_output(prediction=outputs if several else outputs[0])

    def configure_optimizers(self) -> Any:
        """As theirs, with all parameters updated together where the optimizer can."""
        configured = super().configure_optimizers()
        for group in configured["optimizer"].param_groups:
            if group.get("foreach", False) is None and not group.get("fused"):
                group["foreach"] = True
        return configured

    @staticmethod
    def _rescale(params: Tensor, scale: Tensor, metric: Any, normalizer: Any, linear: bool) -> Tensor:
        """Parameters in real units; scale: (B, 2), the centre and spread of the window."""
        if not linear:
            return scaling_metric(metric).rescale_parameters(params, target_scale=scale, encoder=normalizer)
        values = params * scale[:, None, 1:] + scale[:, None, :1]
        return values if normalizer.transformation is None else keep_positive(values)

    @classmethod
    def from_dataset(
        cls, dataset: TimeSeriesDataSet, allowed_encoder_known_variable_names: list[str] | None = None, **kwargs: Any
    ) -> Any:
        """A model for a data set; **kwargs go to the model.

        Raises ValueError where the data set has no history or no reals, a target is not a number, or the loss does
        not fit the targets and their normalizers.
        """
        if not isinstance(dataset, TimeSeriesDataSet):
            raise TypeError(f"dataset must be a TimeSeriesDataSet, found {type(dataset).__name__}")
        if dataset.min_encoder_length < 1:
            raise ValueError(
                f"min_encoder_length={dataset.min_encoder_length}: the model needs at least one step of history; "
                "build the data set with min_encoder_length=1 or more"
            )
        if not dataset.reals:
            raise ValueError(
                "the data set has no reals: name the target in time_varying_unknown_reals, or a covariate in "
                "time_varying_known_reals or static_reals"
            )
        loss = cls._loss_for(dataset, kwargs.get("loss"))
        metrics = loss.metrics if isinstance(loss, MultiLoss) else [loss]
        for name, metric, normalizer in zip(dataset.target_names, metrics, dataset.target_normalizers, strict=True):
            check_loss(metric, normalizer, name)
        sizes = [output_size(metric) for metric in metrics]
        defaults = {
            "context_length": dataset.max_encoder_length,
            "prediction_length": dataset.max_prediction_length,
            "target": dataset.target,
            "output_size": sizes if dataset.multi_target else sizes[0],
        }
        if "embedding_sizes" in kwargs:  # theirs would take the given sizes for all
            kwargs = {**kwargs, "embedding_sizes": {**_embedding_sizes(dataset), **kwargs["embedding_sizes"]}}
        return super().from_dataset(
            dataset,
            allowed_encoder_known_variable_names=allowed_encoder_known_variable_names,
            **{**defaults, **kwargs, "loss": loss},
        )

    @staticmethod
    def _loss_for(dataset: TimeSeriesDataSet, loss: Any) -> Any:
        """The loss for all targets: one metric is copied for each of several."""
        loss = QuantileLoss() if loss is None else loss
        names = dataset.target_names
        if isinstance(loss, (list, tuple)):
            loss = MultiLoss(list(loss))
        if not dataset.multi_target:
            if isinstance(loss, MultiLoss):
                raise ValueError(
                    f"loss: a MultiLoss of {len(loss)} for the single target {names[0]!r}: give one metric"
                )
            return loss
        if not isinstance(loss, MultiLoss):  # each its own copy: distribution losses remember their normalizer
            return MultiLoss([deepcopy(loss) for _ in names])
        if len(loss) != len(names):
            raise ValueError(f"loss: a MultiLoss of {len(loss)} metrics for {len(names)} targets {names}: one for each")
        return loss

    def to_prediction(self, out: Any, use_metric: bool = True, **kwargs: Any) -> Any:
        """As theirs; a quantile loss without the level 0.5 gives the interpolated median."""
        lacking = [isinstance(m, QuantileLoss) and 0.5 not in m.quantiles for m in self._metrics]
        if not use_metric or not any(lacking):
            return super().to_prediction(out, use_metric=use_metric, **kwargs)
        several = isinstance(self.loss, MultiLoss)
        parts = out["prediction"] if several else [out["prediction"]]
        points = [
            median(m, part) if missing else m.to_prediction(part)
            for m, part, missing in zip(self._metrics, parts, lacking, strict=True)
        ]
        return points if several else points[0]

    def predict(self, data: Any, *args: Any, trainer_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        """As theirs, without a Trainer where none of its options is asked for.

        The caller's trainer_kwargs stay as they are, and nothing is written to the working directory.
        """
        if trainer_kwargs or args or kwargs.get("output_dir") or not self._in_place():
            given = {"logger": False, **(trainer_kwargs or {})}
            return _predict_with_trainer(super().predict, data, *args, trainer_kwargs=given, **kwargs)
        return self._predict_directly(data, **kwargs)

    def _in_place(self) -> bool:
        """Whether the model stands where a Trainer would put it."""
        return self.device.type != "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available())

    def _read(self, df: Any) -> TimeSeriesDataSet:
        """The data set of a frame's last windows: theirs the first time, which shows the way for the next ones."""
        reader = self.__dict__.get("_frame_reader")
        if reader is not None and reader[0] is self.dataset_parameters:
            dataset = reader[1](df)
            if dataset is not None:
                return dataset
        try:
            dataset = TimeSeriesDataSet.from_parameters(self.dataset_parameters, df, predict=True)
        except KeyError:
            dataset = self._read_new(df)
            if dataset is None:
                raise
            return dataset
        self.__dict__["_frame_reader"] = (self.dataset_parameters, FrameReader(self.dataset_parameters, dataset))
        return dataset

    def _read_new(self, df: Any) -> TimeSeriesDataSet | None:
        """The data set of a frame with ids that theirs does not know, or None: its first series under a known id shows
        the way."""
        known = with_known_ids(self.dataset_parameters, df)
        if known is None:
            return None
        shown = TimeSeriesDataSet.from_parameters(self.dataset_parameters, known, predict=True)
        reader = FrameReader(self.dataset_parameters, shown)
        dataset = reader(df)
        if dataset is not None:
            self.__dict__["_frame_reader"] = (self.dataset_parameters, reader)
        return dataset

    def _predict_directly(
        self,
        data: Any,
        mode: Any = "prediction",
        return_index: bool = False,
        return_decoder_lengths: bool = False,
        batch_size: int = 64,
        num_workers: int = 0,
        fast_dev_run: bool = False,
        return_x: bool = False,
        return_y: bool = False,
        mode_kwargs: dict[str, Any] | None = None,
        write_interval: Any = "batch",
        output_dir: None = None,
        **kwargs: Any,
    ) -> Any:
        if not hasattr(data, "dataset"):
            if not isinstance(data, TimeSeriesDataSet):
                data = self._read(data)
            data = data.to_dataloader(batch_size=batch_size, train=False, num_workers=num_workers)
        gather = PredictCallback(
            mode=mode,
            return_index=return_index,
            return_decoder_lengths=return_decoder_lengths,
            return_x=return_x,
            return_y=return_y,
            mode_kwargs=dict(mode_kwargs or {}),
        )
        stand_in = SimpleNamespace(predict_dataloaders=data)  # all that the callback asks of a Trainer
        training = self.training
        self.eval()
        try:
            with torch.no_grad():
                for number, batch in enumerate(data):
                    batch = _to(batch, self.device)
                    gather.on_predict_batch_end(stand_in, self, self(batch[0], **kwargs), batch, number)
                    if fast_dev_run:
                        break
        finally:
            self.train(training)
        gather.on_predict_epoch_end(stand_in, self)
        return gather.result


def _embedding_sizes(dataset: TimeSeriesDataSet) -> dict[str, tuple[int, int]]:
    """Entries and widths of the embeddings of all categorical columns."""
    sizes = {name: len(dataset._categorical_encoders[name].classes_) for name in dataset.categoricals}
    return {name: (size, get_embedding_size(size)) for name, size in sizes.items()}


def _predict_with_trainer(predict: Any, data: Any, *args: Any, trainer_kwargs: dict[str, Any], **kwargs: Any) -> Any:
    """Their predict, which adds its callback to the given ones only if the caller's dictionary has none."""
    own = list(trainer_kwargs.pop("callbacks", None) or [])
    return predict(data, *args, trainer_kwargs=_WithCallbacks(trainer_kwargs, own), **kwargs)


class _WithCallbacks(dict):  # type: ignore[type-arg]
    """A dictionary of Trainer options in which a default for callbacks is added to the caller's own."""

    def __init__(self, options: dict[str, Any], callbacks: list[Any]):
        super().__init__(options)
        self.callbacks = callbacks

    def setdefault(self, key: str, default: Any = None) -> Any:
        return super().setdefault(key, [*self.callbacks, *default] if key == "callbacks" else default)


def _to(value: Any, device: torch.device) -> Any:
    """Nested lists, tuples and dictionaries of tensors on another device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _to(part, device) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_to(part, device) for part in value)
    return value


class XLSTM(_Forecaster):
    """Patches of the window through a stack of mLSTM and sLSTM blocks, for every role and loss of a TimeSeriesDataSet.

    hidden_size: width of the encoder; blocks: a letter for each block, m or s (see `xlstm_forecast.encoder`);
    num_layers: recurrent layers in each block; structure: "post", a feed-forward net after each block, "pre",
    projections around its layers, "plain", neither, or None, as in the paper; conv_kernel: steps of the convolution
    before a layer's gates, 0 for none; decode: "steps", the encoder goes on over the horizon, whose known columns it
    reads, or "last", its output at the end of the history gives the whole horizon, which is faster and for data sets
    without known-future columns alone;
    patch_length: steps per token; season_length: the seasonal naive forecast from which training starts (1: the last
    value); window_scaling: every window is also scaled by its own mean and spread.

    >>> from pytorch_forecasting.data.examples import generate_ar_data
    >>> data = generate_ar_data(n_series=2, timesteps=30)
    >>> from pytorch_forecasting import TimeSeriesDataSet
    >>> from xlstm_forecast.adapters.pytorch_forecasting import XLSTM
    >>> dataset = TimeSeriesDataSet(
    ...     data, time_idx="time_idx", target="value", group_ids=["series"], max_encoder_length=12,
    ...     max_prediction_length=4, time_varying_unknown_reals=["value"])
    >>> model = XLSTM.from_dataset(dataset, hidden_size=16, blocks="s")
    >>> tuple(model.predict(dataset, mode="quantiles").shape[1:])
    (4, 7)
    """

    def __init__(
        self,
        hidden_size: int = 64,
        num_heads: int = 4,
        blocks: str = "ms",
        num_layers: int = 1,
        structure: str | None = None,
        patch_length: int = 1,
        season_length: int = 1,
        dropout: float = 0.1,
        conv_kernel: int = 4,
        bidirectional: bool = False,
        decode: str = "steps",
        backend: str = "auto",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)

    @classmethod
    def _pkg(cls) -> Any:
        from .packages import XLSTM_pkg

        return XLSTM_pkg

    def _network(self, *, targets: int, known: int, past: int, static: int) -> tuple[ForecastModel, int]:
        options = self.hparams
        config = PatchConfig(
            input_length=options.context_length,
            horizon=options.prediction_length,
            patch_length=options.patch_length,
            decode=options.decode,
            season=options.season_length,
            targets=targets,
            known=known,
            past=past,
            static=static,
            dropout=options.dropout,
            encoder=EncoderConfig(
                d_model=options.hidden_size,
                num_heads=options.num_heads,
                blocks=options.blocks,
                num_layers=options.num_layers,
                structure=options.structure,
                dropout=options.dropout,
                conv_kernel=options.conv_kernel,
                bidirectional=options.bidirectional,
                backend=options.backend,
            ),
        )
        return PatchModel(config, head=nn.Identity()), config.features


class _OverVariates(_Forecaster):
    """Options that xLSTM-Mixer and xLSTMTime share."""

    def _shape(self, *, targets: int, known: int, past: int, static: int) -> dict[str, Any]:
        options = self.hparams
        return {
            "input_length": options.context_length,
            "horizon": options.prediction_length,
            "season": options.season_length,
            "targets": targets,
            "known": known,
            "past": past,
            "static": static,
            "dropout": options.dropout,
            "encoder": EncoderConfig(
                d_model=options.hidden_size,
                num_heads=options.num_heads,
                blocks=options.blocks,
                dropout=options.dropout,
                conv_kernel=options.conv_kernel,
                backend=options.backend,
            ),
        }


class XLSTMMixer(_OverVariates):
    """xLSTM-Mixer: a linear forecast of each variate, mixed over targets and covariates by sLSTM blocks in two views.

    learned_tokens: tokens before the variates; the other options as those of `XLSTM`.
    """

    def __init__(
        self,
        hidden_size: int = 64,
        num_heads: int = 4,
        blocks: str = "s",
        learned_tokens: int = 2,
        season_length: int = 1,
        dropout: float = 0.1,
        conv_kernel: int = 0,
        backend: str = "auto",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)

    @classmethod
    def _pkg(cls) -> Any:
        from .packages import XLSTMMixer_pkg

        return XLSTMMixer_pkg

    def _network(self, **columns: int) -> tuple[ForecastModel, int]:
        config = MixerConfig(learned_tokens=self.hparams.learned_tokens, **self._shape(**columns))
        return MixerModel(config, head=nn.Identity()), config.features


class XLSTMTime(_OverVariates):
    """xLSTMTime: trend and remainder of each variate, a linear forecast of both, sLSTM blocks over the variates.

    kernel: steps of the moving average, odd; the other options as those of `XLSTM`.
    """

    def __init__(
        self,
        hidden_size: int = 64,
        num_heads: int = 4,
        blocks: str = "sss",
        kernel: int = 25,
        season_length: int = 1,
        dropout: float = 0.1,
        conv_kernel: int = 4,
        backend: str = "auto",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)

    @classmethod
    def _pkg(cls) -> Any:
        from .packages import XLSTMTime_pkg

        return XLSTMTime_pkg

    def _network(self, **columns: int) -> tuple[ForecastModel, int]:
        config = TimeConfig(kernel=self.hparams.kernel, **self._shape(**columns))
        return TimeModel(config, head=nn.Identity()), config.features
