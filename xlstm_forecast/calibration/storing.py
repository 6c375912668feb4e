"""A calibrated forecaster as tensors and JSON values, and back: what `CalibratedForecaster.save` and `load` need."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..checkpoint import load_checkpoint, save_checkpoint
from ..data.roles import plain
from ..forecaster import XLSTMForecaster
from .conformal import Calibration

Parts = tuple[dict[str, Tensor], dict[str, Any]]
KIND = "xlstm-calibrated-forecaster"
_ARRAYS = ("cells", "ages", "residuals", "drift")
_VALUES = ("method", "pool", "horizon", "gamma", "memory", "half_life", "windows")
_OFFSETS = "_offsets"


def forecaster_parts(forecaster: Any) -> Parts:
    """What `XLSTMForecaster.save` writes. Raises TypeError for other forecasters, which have no file of their own."""
    if not isinstance(forecaster, XLSTMForecaster):
        raise TypeError(
            f"a calibrated {type(forecaster).__name__} cannot be saved: only an XLSTMForecaster has a file to go in; "
            "calibrate one, or fit and calibrate again where it is needed"
        )
    with TemporaryDirectory() as folder:
        forecaster.save(Path(folder) / "forecaster.safetensors")
        return load_checkpoint(Path(folder) / "forecaster.safetensors")


def forecaster_of(tensors: dict[str, Tensor], config: dict[str, Any]) -> XLSTMForecaster:
    """The inverse of `forecaster_parts`."""
    with TemporaryDirectory() as folder:
        save_checkpoint(Path(folder) / "forecaster.safetensors", tensors, config)
        return XLSTMForecaster.load(Path(folder) / "forecaster.safetensors")


def calibration_parts(calibration: Calibration) -> Parts:
    """All that a calibration knows, the windows that wait for labels included."""
    tensors = {name: torch.from_numpy(np.array(getattr(calibration, name))) for name in _ARRAYS}
    config: dict[str, Any] = {name: plain_value(getattr(calibration, name)) for name in _VALUES}
    config |= {
        "levels": list(calibration.levels),
        "units": [_ids(key) for key in calibration.units],
        "series": [_ids(key) for key in calibration.seen],
        "seen": _stamps(pd.Index(list(calibration.seen.values()))),
        "rounds": _stamps(pd.Index(calibration.rounds)),
        "waiting": None,
    }
    if calibration.waiting is not None:
        numbers, config["waiting"] = _table_parts(calibration.waiting)
        tensors |= numbers
    return tensors, config


def calibration_of(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Calibration:
    """The inverse of `calibration_parts`."""
    series = [tuple(key) for key in config["series"]]
    arrays: dict[str, Any] = {name: tensors[name].numpy() for name in _ARRAYS}
    return Calibration(
        **{name: config[name] for name in _VALUES},
        levels=tuple(config["levels"]),
        units={tuple(key): i for i, key in enumerate(config["units"])},
        seen=dict(zip(series, _index(config["seen"]), strict=True)),
        rounds=list(_index(config["rounds"])),
        waiting=None if config["waiting"] is None else _table(tensors, config["waiting"]),
        **arrays,
    )


def plain_value(value: Any) -> Any:
    """A parameter as a JSON value."""
    return value.item() if isinstance(value, np.generic) else value


def _ids(values: Iterable[Any]) -> list[Any]:
    found = [plain(value) for value in values]
    for given, value in zip(values, found, strict=True):
        if given != value:
            raise TypeError(f"the id {given!r} of type {type(given).__name__} cannot be saved: use texts or integers")
    return found


def _stamps(index: pd.Index) -> dict[str, Any]:
    """Time stamps of any kind as integers and their type."""
    if isinstance(index, pd.DatetimeIndex):
        zone = None if index.tz is None else str(index.tz)
        return {"kind": "datetime", "unit": index.unit, "zone": zone, "values": index.asi8.tolist()}
    if isinstance(index, pd.PeriodIndex):
        return {"kind": "period", "freq": index.freqstr, "values": index.asi8.tolist()}
    return {"kind": "int", "values": [int(value) for value in index]}


def _index(stamps: Mapping[str, Any]) -> pd.Index:
    values = np.array(stamps["values"], np.int64)
    if stamps["kind"] == "datetime":
        index = pd.DatetimeIndex(values.view(f"M8[{stamps['unit']}]"))
        return index if stamps["zone"] is None else index.tz_localize("UTC").tz_convert(stamps["zone"])
    if stamps["kind"] == "period":
        return pd.PeriodIndex.from_ordinals(values, freq=stamps["freq"])
    return pd.Index(values)


def _table_parts(table: pd.DataFrame) -> Parts:
    """A frame column by column: times and integers, texts, and floats of any width."""
    tensors, columns = {}, []
    for name in table.columns:
        values = table[name]
        entry: dict[str, Any] = {"name": str(name)}
        if name == _OFFSETS or values.dtype.kind == "f":
            array = np.stack(values.to_list()) if name == _OFFSETS else values.to_numpy(np.float64)
            tensors[f"waiting.{name}"] = torch.from_numpy(np.array(array))
        elif isinstance(values.dtype, (pd.DatetimeTZDtype, pd.PeriodDtype)) or values.dtype.kind in "Mi":
            entry["stamps"] = _stamps(pd.Index(values))
        else:
            entry["values"] = _ids(values.to_list())
        columns.append(entry)
    return tensors, {"columns": columns}


def _table(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> pd.DataFrame:
    columns: dict[str, Any] = {}
    for entry in config["columns"]:
        name = entry["name"]
        if "stamps" in entry:
            columns[name] = _index(entry["stamps"])
        elif "values" in entry:
            columns[name] = entry["values"]
        else:
            array = tensors[f"waiting.{name}"].numpy()
            columns[name] = list(array) if name == _OFFSETS else array
    return pd.DataFrame(columns)
