"""The same encoder as a language model: model, tokenizer, data, training, all names of the language side.

model.py is the network and its generation, text.py tokenizer and data set, config.py the YAML configuration, fitting.py
training, scoring and whole runs, module.py the Lightning form (imported when `LanguageModule` is asked for).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .config import LanguageConfig, load_config, parse_options
from .fitting import (
    LanguageFit,
    Score,
    TrainLog,
    build_model,
    complete,
    evaluate,
    fit_from_config,
    get_device,
    parameter_groups,
    set_seed,
    train,
)
from .model import xLSTM
from .text import LanguageModelingDataset, Tokenizer

if TYPE_CHECKING:
    from .module import LanguageModule

__all__ = [
    "LanguageConfig",
    "LanguageFit",
    "LanguageModelingDataset",
    "LanguageModule",
    "Score",
    "Tokenizer",
    "TrainLog",
    "build_model",
    "complete",
    "evaluate",
    "fit_from_config",
    "get_device",
    "load_config",
    "parameter_groups",
    "parse_options",
    "set_seed",
    "train",
    "xLSTM",
]


def __getattr__(name: str) -> Any:
    if name == "LanguageModule":
        from .module import LanguageModule

        return LanguageModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
