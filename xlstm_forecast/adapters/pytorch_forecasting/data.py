"""A faster loader for pytorch-forecasting: its own data set, its own batches, gathered for all windows at once."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pandas as pd
import torch
from pytorch_forecasting import TimeSeriesDataSet
from pytorch_forecasting.data.encoders import EncoderNormalizer
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.distributions import Beta

from ...data.spans import Spans

Sample = tuple[dict[str, Any], tuple[Any, Tensor | None]]


def accelerate(dataset: TimeSeriesDataSet) -> FastTimeSeriesDataSet:
    """The same data set with a fast `to_dataloader`: equal batches (keys, shapes, types, values), no worker processes.

    The tensors are shared with the data set that is given, which stays as it is. Works with every model and Trainer of
    pytorch-forecasting, as the result is a TimeSeriesDataSet and its loader a torch DataLoader.
    """
    if not isinstance(dataset, TimeSeriesDataSet):
        raise TypeError(f"accelerate takes a TimeSeriesDataSet; found {type(dataset).__qualname__}")
    fast = copy.copy(dataset)
    fast.__class__ = FastTimeSeriesDataSet
    fast._windows = None
    return fast  # type: ignore[return-value]


class FastTimeSeriesDataSet(TimeSeriesDataSet):
    """A TimeSeriesDataSet whose loader fetches a batch as a few gathers; made by `accelerate`."""

    _windows: _Windows | None = None

    def __getitems__(self, index: list[int]) -> Any:
        """A whole batch for a torch DataLoader: (x, y), or its samples where values are overwritten."""
        if self._overwrite_values is not None:
            return [self[i] for i in index]
        if self._windows is None or self._windows.index is not self.index:
            self._windows = _Windows(self)
        return self._windows.batch(torch.as_tensor(index))

    @staticmethod
    def _collate_fn(batches: Any) -> Any:
        """Batches pass as they are; samples are collated by pytorch-forecasting."""
        return batches if isinstance(batches, tuple) else TimeSeriesDataSet._collate_fn(batches)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_windows": None}


class _Windows:
    """All samples of a data set as arithmetic on its own tensors. B windows, T steps, R rows of the data."""

    def __init__(self, dataset: TimeSeriesDataSet):
        self.dataset, self.index = dataset, dataset.index
        data = dataset.data
        start, end = (dataset.index[c].to_numpy(np.int64) for c in ("index_start", "index_end"))
        steps = dataset.index["sequence_length"].to_numpy(np.int64)
        time = data["time"].numpy()
        decoder = np.asarray(dataset.calculate_decoder_length(time[end], steps), np.int64)
        self.first_row = torch.from_numpy(start)
        if (end - start + 1 < steps).any():
            data, start = _without_holes(dataset, data, start)
        self.start, self.decoder = torch.from_numpy(start), torch.from_numpy(decoder)
        self.encoder = torch.from_numpy(steps) - self.decoder
        self.time = torch.from_numpy(time)[self.first_row]
        self.reals, self.categories = Spans(data["reals"]), Spans(data["categoricals"])
        self.targets = [Spans(t) for t in data["target"]]
        self.weight = None if data["weight"] is None else Spans(data["weight"])
        self.groups = dataset.data["groups"]
        self.even = bool((self.encoder == self.encoder[0]).all() and (self.decoder == self.decoder[0]).all())
        self._plan(dataset)

    def _plan(self, dataset: TimeSeriesDataSet) -> None:
        """What is to be filled in or scaled per window, by column of the reals."""
        column = {name: i for i, name in enumerate(dataset.reals)}
        self.relative = column["relative_time_idx"] if dataset.add_relative_time_idx else None
        self.length = column["encoder_length"] if dataset.add_encoder_length else None
        own: dict[int, EncoderNormalizer] = {}  # copies: fitting must not touch the data set's own

        def mine(normalizer: EncoderNormalizer) -> EncoderNormalizer:
            return own.setdefault(id(normalizer), copy.deepcopy(normalizer))

        pairs = list(zip(dataset.target_names, dataset.target_normalizers, strict=True))
        self.scaled_targets = [
            (i, mine(n), column.get(name)) for i, (name, n) in enumerate(pairs) if isinstance(n, EncoderNormalizer)
        ]
        self.scale_columns = {
            i: [(column[f"{name}_{part}"], _scaler(dataset, f"{name}_{part}")) for part in ("center", "scale")]
            for i, (name, n) in enumerate(pairs)
            if isinstance(n, EncoderNormalizer) and dataset.add_target_scales
        }
        self.scaled_reals: list[tuple[int, EncoderNormalizer]] = []
        self.scaled_lags: list[tuple[int, EncoderNormalizer]] = []
        for name, i in column.items():
            normalizer = dataset.get_transformer(name)
            if name in dataset.target_names or not isinstance(normalizer, EncoderNormalizer):
                continue
            (self.scaled_lags if name in dataset.lagged_variables else self.scaled_reals).append((i, mine(normalizer)))
        self.scales = self._scale_tables(dataset)

    def _scale_tables(self, dataset: TimeSeriesDataSet) -> list[Tensor]:
        """For each target, (series, 2): the fixed parameters of its normaliser, by series number of the index."""
        number = dataset.index["sequence_id"].to_numpy(np.int64).reshape(len(dataset.index), -1)[:, 0]  # may be twice
        series, first = np.unique(number, return_index=True)
        self.series = torch.from_numpy(np.searchsorted(series, number))
        rows: list[list[Any]] = []
        for group in self.groups[self.first_row[torch.from_numpy(first)]]:
            scale = dataset.target_normalizer.get_parameters(group, dataset.group_ids)
            rows.append(scale if isinstance(scale, list) else [scale])
        return [
            torch.stack(each) if isinstance(each[0], Tensor) else torch.from_numpy(np.array(each, dtype=np.float32))
            for each in map(list, zip(*rows, strict=True))
        ]

    def batch(self, index: Tensor) -> Sample:
        """The samples of these numbers (B,), as the data set's own loader collates them."""
        start, encoder, decoder = (x.index_select(0, index) for x in (self.start, self.encoder, self.decoder))
        time = self.time.index_select(0, index)
        even = self.even
        if self.dataset.randomize_length is not None:
            shift, encoder, decoder = self._randomized(encoder, decoder)
            start, time, even = start + shift, time + shift, False
        parts = _Parts(start, encoder, decoder, even)
        reals, targets = parts.cut(self.reals), [parts.cut(t) for t in self.targets]
        categories = parts.cut(self.categories)
        self._fill_in(parts, reals, categories)
        scales = [table.index_select(0, self.series.index_select(0, index)) for table in self.scales]
        self._scale(parts, reals, targets, scales)
        weight = None if self.weight is None else parts.cut_decoder(self.weight)
        past, future = [t[0] for t in targets], [t[1] for t in targets]
        many = self.dataset.multi_target
        target = future if many else future[0]
        x = {
            "encoder_cat": categories[0],
            "encoder_cont": reals[0],
            "encoder_target": past if many else past[0],
            "encoder_lengths": encoder,
            "decoder_cat": categories[1],
            "decoder_cont": reals[1],
            "decoder_target": target,
            "decoder_lengths": decoder,
            "decoder_time_idx": (time + encoder)[:, None] + torch.arange(parts.longest[1]),
            "groups": self.groups.index_select(0, self.first_row.index_select(0, index)),
            "target_scale": scales if many else scales[0],
        }
        return x, (target, weight)

    def _randomized(self, encoder: Tensor, decoder: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Shorter encoders drawn as pytorch-forecasting draws them: (rows skipped, encoder, decoder)."""
        ds = self.dataset
        a, b = ds.randomize_length
        chance = Beta(float(a), float(b)).sample((len(encoder),))
        shorter = ds.min_encoder_length + ((encoder - ds.min_encoder_length) * chance).round().long()
        longer = torch.minimum(decoder + encoder - shorter, torch.tensor(ds.max_prediction_length))
        cut = shorter + longer < encoder + decoder
        kept = torch.where(cut, shorter, encoder)
        return encoder - kept, kept, torch.where(cut, longer, decoder)

    def _fill_in(self, parts: _Parts, reals: list[Tensor], categories: list[Tensor]) -> None:
        ds = self.dataset
        if self.relative is not None:
            for values, position in zip(reals, parts.positions(), strict=True):
                values[:, :, self.relative] = position / ds.max_encoder_length
        if self.length is not None:
            value = (parts.encoder - 0.5 * ds.max_encoder_length) / ds.max_encoder_length * 2.0
            for side in reals:
                side[:, :, self.length] = value[:, None]
        if ds.randomize_length is not None and len(ds.dropout_categoricals):
            none = (parts.encoder == 0)[:, None]
            for name in ds.dropout_categoricals:
                categories[1][:, :, ds.flat_categoricals.index(name)].masked_fill_(none, 0)
        parts.clear(reals)

    def _scale(self, parts: _Parts, reals: list[Tensor], targets: list[list[Tensor]], scales: list[Tensor]) -> None:
        """Fit the encoder normalisers to each window and apply them."""
        fitted: dict[int, Tensor] = {}
        for i, normalizer, column in self.scaled_targets:
            scale = fitted[id(normalizer)] = parts.fit(normalizer, targets[i][0])
            scales[i] = scale.float()
            if column is not None:
                for side, target in zip(reals, targets[i], strict=True):
                    side[:, :, column] = normalizer.transform(target, target_scale=scale)
            for j, (place, scaler) in enumerate(self.scale_columns.get(i, ())):
                for side in reals:
                    side[:, :, place] = scaler(scale[:, j])[:, None]
        for column, normalizer in self.scaled_reals:
            scale = fitted[id(normalizer)] = parts.fit(normalizer, reals[0][:, :, column].contiguous())
            for side in reals:
                side[:, :, column] = normalizer.transform(side[:, :, column], target_scale=scale)
        for column, normalizer in self.scaled_lags:
            for side in reals:
                side[:, :, column] = normalizer.transform(side[:, :, column], target_scale=fitted[id(normalizer)])
        if self.scaled_targets or self.scaled_reals:
            parts.clear(reals)


class _Parts:
    """The encoder and the decoder of a batch of windows, both padded with zeros at their ends."""

    def __init__(self, start: Tensor, encoder: Tensor, decoder: Tensor, even: bool):
        self.start, self.encoder, self.decoder, self.even = start, encoder, decoder, even
        self.middle = start + encoder
        self.longest = (int(encoder[0]), int(decoder[0])) if even else (int(encoder.max()), int(decoder.max()))
        self.masks = (
            None if even else tuple(self._beyond(n, t) for n, t in zip((encoder, decoder), self.longest, strict=True))
        )

    @staticmethod
    def _beyond(length: Tensor, longest: int) -> Tensor:
        return torch.arange(longest) >= length[:, None]

    def cut(self, column: Spans) -> list[Tensor]:
        """[encoder (B, T, ...), decoder (B, T, ...)] of a column."""
        sides = [column.cut(self.start, self.longest[0], not self.even), self.cut_decoder(column)]
        if self.masks is not None:
            _blank(sides[0], self.masks[0])
        return sides

    def cut_decoder(self, column: Spans) -> Tensor:
        side = column.cut(self.middle, self.longest[1], not self.even)
        return side if self.masks is None else _blank(side, self.masks[1])

    def positions(self) -> tuple[Tensor, Tensor]:
        """Steps from the start of the decoder, of the encoder (B, T) and of the decoder (1, T)."""
        before, after = (torch.arange(n) for n in self.longest)
        return before - self.encoder[:, None], after[None]

    def clear(self, sides: list[Tensor]) -> None:
        if self.masks is not None:
            for side, mask in zip(sides, self.masks, strict=True):
                _blank(side, mask)

    def fit(self, normalizer: EncoderNormalizer, values: Tensor) -> Tensor:
        """(B, 2) centre and scale of each window's encoder values (B, T), by the normaliser's own fit."""
        if self.even:
            return normalizer.fit(values).get_parameters()
        out = torch.empty(len(values), 2)
        for length in torch.unique(self.encoder).tolist():
            rows = self.encoder == length
            out[rows] = normalizer.fit(values[rows, :length]).get_parameters().to(out.dtype)
        return out


def _blank(values: Tensor, mask: Tensor) -> Tensor:
    return values.masked_fill_(mask if values.ndim == 2 else mask[:, :, None], 0)


def _scaler(dataset: TimeSeriesDataSet, name: str) -> Any:
    """The data set's scaling of one real, as a function of a tensor (B,)."""
    scaler = dataset.get_transformer(name)
    if type(scaler) is StandardScaler:
        mean = 0.0 if scaler.mean_ is None else float(scaler.mean_[0])
        scale = 1.0 if scaler.scale_ is None else float(scaler.scale_[0])
        return lambda values: (values - mean) / scale
    return lambda values: torch.as_tensor(dataset.transform_values(name, values)).float()


def _without_holes(
    dataset: TimeSeriesDataSet, data: dict[str, Any], start: np.ndarray
) -> tuple[dict[str, Any], np.ndarray]:
    """The data with missing time steps filled as the data set fills them in each sample, and the new first rows."""
    time = data["time"].numpy()
    groups = (
        pd.DataFrame(data["groups"].numpy())
        .groupby(list(range(data["groups"].shape[1])), sort=False)
        .ngroup()
        .to_numpy()
    )
    step = np.r_[np.where(np.diff(groups) == 0, np.diff(time), 1), 1]
    place = np.r_[0, np.cumsum(step)]
    source = torch.from_numpy(np.repeat(np.arange(len(time)), step))
    filled = torch.ones(len(source), dtype=torch.bool)
    filled[torch.from_numpy(place[:-1])] = False
    reals, categories = data["reals"][source], data["categoricals"][source]
    targets = [t[source] for t in data["target"]]
    if dataset.time_idx in dataset.reals:
        _interpolate(reals, dataset.reals.index(dataset.time_idx), place, step)
    for name, value in dataset.encoded_constant_fill_strategy.items():
        if name in dataset.reals:
            reals[filled, dataset.reals.index(name)] = float(value)
        elif name.startswith("__target__"):
            targets[dataset.target_names.index(name.removeprefix("__target__"))][filled] = float(value)
        elif name in dataset.flat_categoricals:
            categories[filled, dataset.flat_categoricals.index(name)] = int(value)
    weight = None if data["weight"] is None else data["weight"][source]
    return {"reals": reals, "categoricals": categories, "target": targets, "weight": weight}, place[start]


def _interpolate(reals: Tensor, column: int, place: np.ndarray, step: np.ndarray) -> None:
    """Make a column that holds the scaled time linear over the filled rows."""
    values = reals[:, column].double().numpy()
    known = place[:-1]
    reals[:, column] = torch.from_numpy(np.interp(np.arange(len(values)), known, values[known])).float()
