"""Finished windows of a backtest on disk: one file per group of windows, each written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator

from ..files import replacing
from ..metrics import as_pandas

MANIFEST = "backtest.json"
_APART = ("panel_", "seconds_", "training_", "errors_")  # no forecast reads the data fitted on, nor how the fit went


class Folder:
    """Keeps finished windows, for one backtest only: forecaster, data and options are recognised by `fingerprint`.

    Raises ValueError where the folder belongs to another backtest.
    """

    def __init__(self, path: str | os.PathLike[str], fingerprint: str) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        manifest = self.path / MANIFEST
        if manifest.exists():
            found = json.loads(manifest.read_text()).get("fingerprint")
            if found != fingerprint:
                raise ValueError(
                    f"folder {str(path)!r} holds windows of another backtest (other data, options or forecaster): "
                    "give another folder, or empty this one"
                )
        else:
            with replacing(manifest) as file:
                file.write_text(json.dumps({"fingerprint": fingerprint}))

    def _file(self, group: int) -> Path:
        return self.path / f"window-{group:05d}.npz"

    def read(self, group: int) -> dict[str, np.ndarray] | None:
        """The arrays of a finished group, None where it is not finished."""
        file = self._file(group)
        if not file.exists():
            return None
        with np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}

    def keep(self, group: int, **arrays: Any) -> None:
        """Write a finished group, unless it is there."""
        if self._file(group).exists():
            return
        with replacing(self._file(group)) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)


def content(frame: Any) -> Any:
    """What a frame holds, its names and types included, to tell it from another one; None for None."""
    if frame is None:
        return None
    if isinstance(frame, pd.Series):
        frame = frame.rename("value" if frame.name is None else frame.name).to_frame().reset_index()
    table = as_pandas(frame, "df").reset_index(drop=True)
    names = [(str(name), str(kind)) for name, kind in table.dtypes.items()]
    return names, pd.util.hash_pandas_object(table, index=False).to_numpy()


def parameters(forecaster: Any) -> dict[str, str]:
    """A hash of every parameter of a forecaster, but of `n_jobs`, which changes no forecast."""
    params = forecaster.get_params(deep=False)
    return {name: fingerprint(value) for name, value in params.items() if name != "n_jobs"}


def fingerprint(value: Any) -> str:
    """A hash of values of any kind, the same in every process: estimators by parameters and all that they learnt."""
    parts = _parts(value)
    try:
        return str(joblib.hash(parts))
    except Exception:  # what cannot be pickled is another thing in the next process: refused rather than mixed
        return str(joblib.hash(repr(parts)))


def _parts(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().numpy()
    if isinstance(value, torch.nn.Module):
        return type(value).__qualname__, _parts(dict(value.state_dict())), _parts(getattr(value, "share", None))
    if hasattr(value, "to_tensors"):
        return _parts(value.to_tensors())
    if isinstance(value, np.generic):
        return value.item()
    if is_dataclass(value) and not isinstance(value, type):
        return type(value).__qualname__, {part.name: _parts(getattr(value, part.name)) for part in fields(value)}
    if isinstance(value, BaseEstimator):
        return type(value).__qualname__, parameters(value), _parts(_learnt(value))
    if isinstance(value, Mapping):
        return {key: _parts(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_parts(part) for part in value]
    return content(value) if hasattr(value, "columns") or isinstance(value, pd.Series) else value


def _learnt(forecaster: Any) -> dict[str, Any]:
    """All fitted attributes of a forecaster, by name."""
    found = {name: value for name, value in vars(forecaster).items() if name.endswith("_") and not name.startswith("_")}
    drop = _APART if "model_" in found or "calibration_" in found else ()
    return {name: value for name, value in found.items() if name not in drop}
