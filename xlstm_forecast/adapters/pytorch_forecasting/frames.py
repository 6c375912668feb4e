"""From a frame to the data set of its last windows, without pytorch-forecasting's preparation in pandas.

Forecasting one new series after another spends nine tenths of its time there. What the preparation decides does not
change from frame to frame, so it is taken from a data set that theirs made once; the columns are encoded and scaled
directly. A frame that is anything but plain (gaps, lags, unseen categories, missing values, ...) is left to theirs.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pandas as pd
import torch
from pytorch_forecasting import TimeSeriesDataSet
from pytorch_forecasting.data.encoders import EncoderNormalizer, GroupNormalizer, NaNLabelEncoder, TorchNormalizer
from sklearn.preprocessing import StandardScaler

from .data import FastTimeSeriesDataSet, accelerate

Array = np.ndarray
DYNAMIC = ("relative_time_idx", "encoder_length")  # filled in by window


class FrameReader:
    """Reads frames like the one that `dataset` was made of, in predict mode, from the same parameters."""

    def __init__(self, parameters: dict[str, Any], dataset: TimeSeriesDataSet):
        self.template = accelerate(dataset)
        self.template.data = {}
        self.ids = {name: parameters["categorical_encoders"].get(f"__group_id__{name}") for name in dataset.group_ids}
        self.encoders = dict(dataset._categorical_encoders)
        self.plain = self._is_plain(dataset)

    def _is_plain(self, dataset: TimeSeriesDataSet) -> bool:
        scalers = (dataset.get_transformer(name) for name in dataset.reals if name not in dataset.target_names)
        return (
            not dataset._lags
            and None not in self.ids.values()
            and all(type(s) in (StandardScaler, EncoderNormalizer, type(None)) for s in scalers)
            and all(
                type(n) in (EncoderNormalizer, GroupNormalizer, TorchNormalizer) for n in dataset.target_normalizers
            )
        )

    def __call__(self, df: pd.DataFrame) -> FastTimeSeriesDataSet | None:
        """The data set of the last window of each series of the frame; None where theirs has to make it."""
        template = self.template
        if not self.plain or not self._has_columns(df):
            return None
        ids = {name: _extended(encoder, df[name]) for name, encoder in self.ids.items()}
        keys = [np.array([encoder.classes_[value] for value in df[name].tolist()]) for name, encoder in ids.items()]
        time = df[template.time_idx].to_numpy()
        order = np.lexsort((time, *keys[::-1]))
        groups, time = np.stack(keys, -1)[order], time[order]
        first = np.flatnonzero(np.r_[True, (groups[1:] != groups[:-1]).any(1)])
        windows = self._windows(first, time)
        if windows is None:
            return None
        data = self._data(df, order, groups, time, first)
        if data is None:
            return None
        fast = copy.copy(template)
        fast.data, fast.index = data, windows
        fast._categorical_encoders = self.encoders | {f"__group_id__{name}": e for name, e in ids.items()}
        fast.reset_overwrite_values()
        return fast

    def _has_columns(self, df: pd.DataFrame) -> bool:
        ds = self.template
        made = {*DYNAMIC, *(f"{name}_{part}" for name in ds.target_names for part in ("center", "scale"))}
        needed = {ds.time_idx, *ds.group_ids, *ds.flat_categoricals, *ds.reals, *ds.target_names} - made
        needed |= {ds.weight} - {None}
        columns = set(df.columns)
        return needed <= columns and not (made & columns) and len(df) > 0 and df[ds.time_idx].dtype.kind == "i"

    def _windows(self, first: Array, time: Array) -> pd.DataFrame | None:
        """Their index of the last window of every series, None where one is too short or has gaps."""
        ds = self.template
        end = np.r_[first[1:], len(time)] - 1
        inside = np.ones(len(time), bool)
        inside[first] = False
        least = ds.min_encoder_length + ds.max_prediction_length
        length = np.minimum(end - first + 1, ds.max_encoder_length + ds.max_prediction_length)
        if (
            (np.diff(time, prepend=0)[inside] != 1).any()
            or length.min() < least
            or time[first].min() < ds.min_prediction_idx
            or time[end].min() - ds.min_prediction_idx + 1 < ds.max_prediction_length
        ):
            return None
        start = end - length + 1
        columns = {"index_start": start, "index_end": end, "sequence_length": length, "time": time[start]}
        columns["sequence_id"] = np.arange(len(first))
        return pd.DataFrame({name: values.astype(np.int32) for name, values in columns.items()})

    def _data(self, df: pd.DataFrame, order: Array, groups: Array, time: Array, first: Array) -> dict[str, Any] | None:
        """Their tensors, None where a category is unseen or a value is not finite."""
        ds = self.template
        row = np.repeat(np.arange(len(first)), np.diff(np.r_[first, len(time)]))  # each row's series
        codes = {}
        for name in dict.fromkeys((*ds.flat_categoricals, *self._scaled_by())):
            encoder = self.encoders[ds.variable_to_group_mapping.get(name, name)]
            column = df[name]
            if name in ds.flat_categoricals and column.dtype.kind in "biufc":
                return None
            code = _codes(column, encoder.classes_)
            if code is None:
                return None
            codes[name] = code[order]
        targets = [_numbers(df[name], order) for name in ds.target_names]
        made = self._normalized(targets, {name: code[first] for name, code in codes.items()}, row)
        reals = [made[name] if name in made else self._scaled(name, df, order) for name in ds.reals]
        weight = None if ds.weight is None else _numbers(df[ds.weight], order)
        numbers = _finite([*reals, *targets, *([] if ds.weight is None else [weight])])
        if numbers is None or not self._within_reach(targets):
            return None
        flat = [codes[name] for name in ds.flat_categoricals]
        return {
            "reals": torch.from_numpy(_table(numbers[: len(reals)], len(time)).astype(np.float32)),
            "categoricals": torch.from_numpy(_table(flat, len(time)).astype(np.int64)),
            "groups": torch.from_numpy(groups.astype(np.int64)),
            "target": [torch.from_numpy(values.astype(np.float32)) for values in numbers[len(reals) :][: len(targets)]],
            "weight": None if weight is None else torch.from_numpy(weight.astype(np.float32)),
            "time": torch.from_numpy(time.astype(np.int64)),
        }

    def _within_reach(self, targets: list[Array | None]) -> bool:
        """Whether transformations that are applied window by window take the targets to finite numbers."""
        for normalizer, values in zip(self.template.target_normalizers, targets, strict=True):
            if isinstance(normalizer, EncoderNormalizer) and values is not None:
                with np.errstate(all="ignore"):
                    changed = normalizer.preprocess(torch.from_numpy(np.ascontiguousarray(values)))
                if not torch.isfinite(changed).all():
                    return False
        return True

    def _scaled_by(self) -> list[str]:
        """The group ids by whose categories targets are normalised."""
        used = [n._groups for n in self.template.target_normalizers if isinstance(n, GroupNormalizer)]
        return [name for name in self.template.group_ids if any(name in names for names in used)]

    def _normalized(self, targets: list[Array | None], codes: dict[str, Array], row: Array) -> dict[str, Array]:
        """Normalised targets and their scales, as far as windows do not set them; codes: each series' categories."""
        ds, made = self.template, {}
        for name, normalizer, values in zip(ds.target_names, ds.target_normalizers, targets, strict=True):
            if isinstance(normalizer, GroupNormalizer):
                groups = [g for g in ds.group_ids if g in normalizer._groups]
                keys = zip(*(codes[g].tolist() for g in groups), strict=True) if groups else [()] * (row[-1] + 1)
                scale = np.stack([normalizer.get_parameters(key, groups) for key in keys])[row]
            elif isinstance(normalizer, EncoderNormalizer):
                scale = np.broadcast_to([0.0, 1.0], (len(row), 2))  # fitted to each window later
            else:
                scale = np.broadcast_to(normalizer.get_parameters().numpy(), (len(row), 2))
            if values is None:
                continue
            plain = isinstance(normalizer, EncoderNormalizer)
            made[name] = (values if plain else normalizer.preprocess(values) - scale[:, 0]) / scale[:, 1]
            for place, part in enumerate(("center", "scale")):
                made[f"{name}_{part}"] = self._standard(f"{name}_{part}", scale[:, place])
        return made | {name: np.zeros(len(row)) for name in DYNAMIC}

    def _scaled(self, name: str, df: pd.DataFrame, order: Array) -> Array | None:
        values = _numbers(df[name], order) if name in df else None
        return None if values is None else self._standard(name, values)

    def _standard(self, name: str, values: Array) -> Array:
        scaler = self.template.get_transformer(name)
        if type(scaler) is not StandardScaler:
            return values
        centred = values if scaler.mean_ is None else values - scaler.mean_[0]
        return centred if scaler.scale_ is None else centred / scaler.scale_[0]


def with_known_ids(parameters: dict[str, Any], df: Any) -> pd.DataFrame | None:
    """The first series of a frame, its unknown ids replaced by known ones; None for what is no such frame."""
    ids = list(parameters["group_ids"])
    encoders = [parameters["categorical_encoders"].get(f"__group_id__{name}") for name in ids]
    if not isinstance(df, pd.DataFrame) or not len(df) or not {*ids} <= {*df.columns} or None in encoders:
        return None
    first = df[(df[ids] == df[ids].iloc[0]).all(axis=1)].copy()
    for name, encoder in zip(ids, encoders, strict=True):
        if first[name].iloc[0] not in encoder.classes_:
            first[name] = next(value for value in encoder.classes_ if value != "nan")
    return first


def _extended(encoder: NaNLabelEncoder, column: pd.Series) -> NaNLabelEncoder:
    """The encoder of an id column, with new ids after the known ones; the given one stays as it is."""
    if all(value in encoder.classes_ for value in column.unique().tolist()):
        return encoder
    longer = copy.copy(encoder)
    longer.classes_ = dict(encoder.classes_)
    return longer.fit(column.to_numpy(), overwrite=False)


def _codes(column: pd.Series, classes: dict[Any, int]) -> Array | None:
    """The numbers of a column's categories; None where one is unseen."""
    codes = [classes.get(value) for value in column.tolist()]
    return None if None in codes else np.array(codes)


def _numbers(column: pd.Series, order: Array) -> Array | None:
    return column.to_numpy(np.float64)[order] if column.dtype.kind in "biuf" else None


def _finite(columns: list[Array | None]) -> list[Array] | None:
    """The columns, None where one holds no numbers or a value that is not finite."""
    numbers = [values for values in columns if values is not None and np.isfinite(values).all()]
    return numbers if len(numbers) == len(columns) else None


def _table(columns: list[Any], rows: int) -> Array:
    return np.stack(columns, -1) if columns else np.zeros((rows, 0))
