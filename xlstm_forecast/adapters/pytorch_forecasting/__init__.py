"""Models and a faster loader for pytorch-forecasting: its data set in, its Trainer, `predict` and plots around ours.

Names load lazily; only this package imports pytorch_forecasting.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .data import FastTimeSeriesDataSet, accelerate
    from .models import XLSTM, XLSTMMixer, XLSTMTime
    from .packages import XLSTM_pkg, XLSTMMixer_pkg, XLSTMTime_pkg

__all__ = [
    "XLSTM",
    "FastTimeSeriesDataSet",
    "XLSTMMixer",
    "XLSTMMixer_pkg",
    "XLSTMTime",
    "XLSTMTime_pkg",
    "XLSTM_pkg",
    "accelerate",
]

_HOMES = {name: "packages" if name.endswith("_pkg") else "models" for name in __all__}
_HOMES |= {"FastTimeSeriesDataSet": "data", "accelerate": "data"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
