"""What pytorch-forecasting's own conformance suite asks of a model: tags, test parameters and synthetic loaders."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from pytorch_forecasting import TimeSeriesDataSet
from pytorch_forecasting.data import GroupNormalizer
from pytorch_forecasting.metrics import NegativeBinomialDistributionLoss, PoissonLoss, TweedieLoss
from pytorch_forecasting.models.base import _BasePtForecaster


def synthetic_panel(series: int = 4, steps: int = 40, seed: int = 0) -> pd.DataFrame:
    """A small panel with every column role: positive demand of agencies and products, driven by a known discount."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(series):
        time = np.arange(steps)
        discount = rng.uniform(0, 1, steps)
        level = 10.0 ** rng.uniform(0, 2)
        season = 1 + 0.5 * np.sin(2 * np.pi * time / 12)
        volume = level * season * (1 + discount) * rng.gamma(20, 1 / 20, steps)
        rows.append(
            pd.DataFrame(
                {
                    "agency": f"a{number // 2}",
                    "sku": f"s{number % 2}",
                    "time_idx": time,
                    "volume": volume,
                    "stock": volume * rng.uniform(1, 2, steps),
                    "discount": discount,
                    "population": level * 100,
                    "month": (time % 12).astype(str),
                }
            )
        )
    return pd.concat(rows, ignore_index=True)


def synthetic_loaders(params: dict[str, Any]) -> dict[str, Any]:
    """Loaders of the panel for the loss in `params`, with its target normalizer: train, val and test."""
    loss, given = params.get("loss"), params.get("data_loader_kwargs", {})
    data = synthetic_panel()
    if isinstance(loss, NegativeBinomialDistributionLoss):
        data["volume"] = data["volume"].round()
    logarithms = isinstance(loss, (PoissonLoss, TweedieLoss))
    if params.get("clip_target") or logarithms:
        data["volume"] = (data["volume"] / data["volume"].max()).clip(1e-3, 1 - 1e-3)
    options: dict[str, Any] = {
        "target_normalizer": GroupNormalizer(
            groups=["agency", "sku"], transformation={"forward": torch.log1p} if logarithms else None
        ),
        "static_categoricals": ["agency"],
        "static_reals": ["population"],
        "time_varying_known_categoricals": ["month"],
        "time_varying_known_reals": ["discount"],
        "time_varying_unknown_reals": ["volume", "stock"],
        "add_relative_time_idx": True,
        **given,
    }
    training = TimeSeriesDataSet(
        data[data["time_idx"] < 35],
        time_idx="time_idx",
        target="volume",
        group_ids=["agency", "sku"],
        min_encoder_length=6,
        max_encoder_length=12,
        max_prediction_length=4,
        **options,
    )
    validation = TimeSeriesDataSet.from_dataset(training, data, min_prediction_idx=35)
    return {
        "train": training.to_dataloader(train=True, batch_size=4, num_workers=0),
        "val": validation.to_dataloader(train=False, batch_size=4, num_workers=0),
        "test": validation.to_dataloader(train=False, batch_size=1, num_workers=0),
    }


class _Package(_BasePtForecaster):
    """Tags and test data that all models share."""

    _tags: ClassVar[dict[str, Any]] = {
        "info:compute": 3,
        "info:pred_type": ["distr", "point", "quantile"],
        "info:y_type": ["numeric"],
        "authors": ["xlstm-forecast"],
        "capability:exogenous": True,
        "capability:multivariate": True,
        "capability:pred_int": True,
        "capability:flexible_history_length": True,
        "capability:cold_start": False,
    }

    @classmethod
    def losses(cls) -> list[Any]:
        """One of each loss that their suite trains for these tags."""
        from pytorch_forecasting.tests._loss_mapping import get_compatible_losses

        return get_compatible_losses(cls.get_class_tag("info:pred_type"), cls.get_class_tag("info:y_type"))

    @classmethod
    def _get_test_dataloaders_from(cls, params: dict[str, Any]) -> dict[str, Any]:
        return synthetic_loaders(params)


class XLSTM_pkg(_Package):
    """Package of `XLSTM`."""

    _tags: ClassVar[dict[str, Any]] = {"info:name": "XLSTM"}

    @classmethod
    def get_cls(cls) -> Any:
        from .models import XLSTM

        return XLSTM

    @classmethod
    def get_base_test_params(cls) -> list[dict[str, Any]]:
        return [{}]


class XLSTMTime_pkg(_Package):
    """Package of `XLSTMTime`."""

    _tags: ClassVar[dict[str, Any]] = {"info:name": "XLSTMTime"}

    @classmethod
    def get_cls(cls) -> Any:
        from .models import XLSTMTime

        return XLSTMTime

    @classmethod
    def get_base_test_params(cls) -> list[dict[str, Any]]:
        return [{}]


class XLSTMMixer_pkg(_Package):
    """Package of `XLSTMMixer`."""

    _tags: ClassVar[dict[str, Any]] = {"info:name": "XLSTMMixer"}

    @classmethod
    def get_cls(cls) -> Any:
        from .models import XLSTMMixer

        return XLSTMMixer

    @classmethod
    def get_base_test_params(cls) -> list[dict[str, Any]]:
        return [{}]
