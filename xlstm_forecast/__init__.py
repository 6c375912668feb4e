"""Time-series forecasting with xLSTM. Public names load lazily (PEP 562), so that the import stays light."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .forecaster import XLSTMForecaster
    from .layers import mLSTM, sLSTM, sLSTMCell

__all__ = ["XLSTMForecaster", "__version__", "mLSTM", "sLSTM", "sLSTMCell"]

PROCESS = os.getpid()  # that imported the package; the compiled kernels, which load later, know a forked child by it
_HOMES = {"XLSTMForecaster": "forecaster", "sLSTM": "layers", "mLSTM": "layers", "sLSTMCell": "layers"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
