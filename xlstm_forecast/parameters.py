"""What the arguments of a forecaster may be: checked before anything is read, and as plain values for a checkpoint."""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .heads import HEADS, check_levels
from .models import MODELS
from .settings import PRESETS

CHOICES = {
    "model": (*MODELS, "linear"),
    "presets": tuple(PRESETS),
    "head": tuple(HEADS),
    "scaling": ("window", "causal"),
}
COUNTS = (
    "input_length", "max_steps", "d_model", "num_heads", "patch_length", "networks", "season_length", "batch_size",
)  # fmt: skip
TYPES: tuple[tuple[str, tuple[type, ...], str], ...] = (
    ("blocks", (str, type(None)), 'a letter for each block, such as "ms", or None'),
    ("checkpoint_dir", (str, Path, type(None)), "a folder, or None"),
    ("devices", (str, int), 'a number of devices, or "auto"'),
    ("n_jobs", (int, np.integer), "a number of processes, or -1 for all processors"),
)


def checked(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of `XLSTMForecaster`, its levels as floats. Raises ValueError naming the first that cannot be."""
    found = dict(params)
    check_positive(found, ("horizon",), "a number of steps, at least 1")
    check_positive({k: v for k, v in found.items() if v is not None}, COUNTS, "a whole number, at least 1, or None")
    found |= {name: int(found[name]) for name in ("horizon", *COUNTS) if found[name] is not None}
    found["quantiles"] = check_levels(found["quantiles"])
    for name, allowed in CHOICES.items():
        if found[name] not in allowed:
            raise ValueError(f"{name}={found[name]!r} is unknown: choose one of {', '.join(map(repr, allowed))}")
    for name in ("backbone", "pretrained"):
        if not isinstance(found[name], (bool, np.bool_)):
            raise ValueError(f"{name}={found[name]!r}: expected True or False")
    for name, kinds, expected in TYPES:
        if not isinstance(found[name], kinds) or isinstance(found[name], bool):
            raise ValueError(f"{name}={found[name]!r}: expected {expected}")
    _check_numbers(found)
    return found


def check_positive(params: Mapping[str, Any], names: Sequence[str], expected: str) -> None:
    """Raise ValueError for the first of `names` whose value is no whole number of at least 1."""
    for name in names:
        if name not in params:
            continue
        value = params[name]
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise ValueError(f"{name}={value!r}: expected {expected}")


def _check_numbers(params: Mapping[str, Any]) -> None:
    def number(name: str, expected: str, low: float, high: float = math.inf, *, open_low: bool = False) -> None:
        value = params[name]
        if value is None:
            return
        real = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
        if not real or not low <= value < high or (open_low and value == low):
            raise ValueError(f"{name}={value!r}: expected {expected}")

    number("dropout", "a probability in [0, 1), or None", 0.0, 1.0)
    number("lr", "a positive learning rate, or None", 0.0, open_low=True)
    number("time_limit", "a positive number of seconds, or None", 0.0, open_low=True)
    number("lower", "a finite number below which no forecast is to lie, or None", -math.inf)
    devices = params["devices"]
    if isinstance(devices, str) and devices != "auto" and not re.fullmatch(r"-1|[1-9]\d*", devices):
        raise ValueError(f'devices={devices!r}: expected a number of devices, or "auto"')
    if not isinstance(devices, str) and devices < 1 and devices != -1:
        raise ValueError(f"devices={devices!r}: expected at least 1, or -1 for all")
    seed = params["seed"]
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed!r}: expected a whole number from 0 to 4294967295")


def stored(params: Mapping[Any, Any]) -> dict[Any, Any]:
    """The parameters as JSON values: numpy's numbers as Python's, paths and frequencies as text, collections as lists,
    at any depth."""
    return {name: _plain(value) for name, value in params.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return stored(value)
    if isinstance(value, (np.ndarray, pd.Index, pd.Series, list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (pd.Timedelta, pd.tseries.offsets.BaseOffset)):
        return pd.tseries.frequencies.to_offset(value).freqstr
    return value
