"""Forecasting models: `Batch` in, forecast out; plain nn.Modules that know neither Lightning nor pandas."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from ..encoder import EncoderConfig
from .common import Forecast, ForecastModel, ModelConfig
from .ensemble import Ensemble, last_steps
from .mixer import MixerConfig, MixerModel
from .patch import PatchConfig, PatchModel
from .time import TimeConfig, TimeModel

__all__ = [
    "MODELS", "Ensemble", "Forecast", "ForecastModel", "ModelConfig", "build_model", "default_encoder", "last_steps",
]  # fmt: skip

MODELS: dict[str, tuple[type[ModelConfig], Any]] = {
    "patch": (PatchConfig, PatchModel),
    "mixer": (MixerConfig, MixerModel),
    "time": (TimeConfig, TimeModel),
}


def default_encoder(name: str) -> EncoderConfig:
    """The encoder that a model has where nothing else is asked for."""
    factory: Any = next(f.default_factory for f in fields(MODELS[name][0]) if f.name == "encoder")
    return factory()


def build_model(name: str, values: dict[str, Any]) -> ForecastModel:
    """A model by name from the fields of its configuration; those that only other models have are left out.

    Raises ValueError naming the choices.
    """
    if name not in MODELS:
        raise ValueError(f"model={name!r} is unknown: choose one of {', '.join(map(repr, MODELS))}")
    config, model = MODELS[name]
    own = {f.name for f in fields(config)}
    return model(config(**{k: v for k, v in values.items() if k in own}))
