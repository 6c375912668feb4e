"""The fast loader of a pytorch-forecasting data set gives the batches of its own loader, over all windows."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.preprocessing import RobustScaler, StandardScaler

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from pytorch_forecasting import GroupNormalizer, TimeSeriesDataSet
    from pytorch_forecasting.data import EncoderNormalizer, MultiNormalizer, NaNLabelEncoder, TorchNormalizer

from xlstm_forecast.adapters.pytorch_forecasting import FastTimeSeriesDataSet, accelerate

pytestmark = pytest.mark.filterwarnings("ignore")
COLUMNS: dict[str, Any] = {
    "static_categoricals": ["h"],
    "static_reals": ["sr"],
    "time_varying_known_reals": ["k", "t"],
    "time_varying_known_categoricals": ["kc"],
    "time_varying_unknown_reals": ["y", "u"],
    "time_varying_unknown_categoricals": ["c"],
}
SHORT: dict[str, Any] = {"min_encoder_length": 3, "min_prediction_length": 1}
FEATURES: dict[str, Any] = {"add_relative_time_idx": True, "add_target_scales": True}
TWO: dict[str, Any] = {"target": ["y", "z"], "time_varying_unknown_reals": ["y", "z", "u"]}


def frame(gaps: bool = False) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    parts = []
    for i in range(5):
        n = 62 - 3 * i
        columns = {
            "g": f"s{i}",
            "h": "ab"[i % 2],
            "t": np.arange(n) + i,
            "y": 20 + 5 * i + rng.normal(size=n).cumsum() * 0.3,
            "z": np.abs(3 + rng.normal(size=n)),
            "k": rng.normal(size=n),
            "u": rng.normal(size=n) * 4,
            "c": rng.choice(list("xyz"), n),
            "kc": rng.choice(list("pq"), n),
            "sr": float(i),
            "w": rng.uniform(0.5, 2, n),
        }
        rows = pd.DataFrame(columns)
        parts.append(rows[rng.random(n) > 0.15] if gaps else rows)
    return pd.concat(parts, ignore_index=True)


def dataset(df: pd.DataFrame, **changed: Any) -> TimeSeriesDataSet:
    arguments = {
        "time_idx": "t",
        "target": "y",
        "group_ids": ["g"],
        "max_encoder_length": 24,
        "max_prediction_length": 6,
    }
    return TimeSeriesDataSet(df, **{**arguments, **COLUMNS, **changed})


def assert_same(theirs: Any, ours: Any, path: str = "") -> None:
    assert type(theirs) is type(ours), path
    if isinstance(theirs, dict):
        assert list(theirs) == list(ours), path
        for key in theirs:
            assert_same(theirs[key], ours[key], f"{path}.{key}")
    elif isinstance(theirs, (list, tuple)):
        assert len(theirs) == len(ours), path
        for i, (a, b) in enumerate(zip(theirs, ours, strict=True)):
            assert_same(a, b, f"{path}[{i}]")
    elif theirs is not None:
        theirs, ours = torch.as_tensor(theirs), torch.as_tensor(ours)
        assert (theirs.dtype, theirs.shape) == (ours.dtype, ours.shape), path
        assert ours.is_contiguous() or not theirs.is_contiguous(), path
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6, msg=lambda m: f"{path}: {m}")


CASES: dict[str, dict[str, Any]] = {
    "one target alone": {**dict.fromkeys(COLUMNS), "time_varying_unknown_reals": ["y"]},
    "known covariates alone": {**dict.fromkeys(COLUMNS), "time_varying_known_reals": ["k"]},
    "all kinds of columns": {},
    "weights, relative time, target scales, encoder length": {"weight": "w", "add_encoder_length": True, **FEATURES},
    "group normaliser": {"target_normalizer": GroupNormalizer(groups=["g"])},
    "group normaliser with softplus": {"target_normalizer": GroupNormalizer(groups=["g"], transformation="softplus")},
    "group normaliser by group": {
        "group_ids": ["g", "h"],
        "target_normalizer": GroupNormalizer(groups=["g", "h"], scale_by_group=True),
    },
    "one normaliser for all": {"target_normalizer": TorchNormalizer(), "add_target_scales": True},
    "standard, variable lengths": {"target_normalizer": EncoderNormalizer(), **SHORT, **FEATURES},
    "robust, variable lengths": {"target_normalizer": EncoderNormalizer(method="robust"), **SHORT, **FEATURES},
    "short memory": {"target_normalizer": EncoderNormalizer(max_length=8), **SHORT},
    "two memories": {"target_normalizer": EncoderNormalizer(max_length=[8, 12]), **SHORT},
    "logarithm": {"target_normalizer": EncoderNormalizer(transformation="log"), **SHORT},
    "not centred": {"target_normalizer": EncoderNormalizer(center=False), **SHORT},
    "identity": {"target_normalizer": EncoderNormalizer(method="identity"), **SHORT},
    "two targets": {**TWO, "weight": "w", "add_target_scales": True, "min_encoder_length": 5},
    "two targets, two normalisers": {
        **TWO,
        "target_normalizer": MultiNormalizer([EncoderNormalizer(), TorchNormalizer()]),
    },
    "two targets by group": {**TWO, "target_normalizer": MultiNormalizer([GroupNormalizer(groups=["g"])] * 2)},
    "categories as target": {
        "target": "c",
        "target_normalizer": NaNLabelEncoder(),
        "time_varying_unknown_reals": ["u"],
    },
    "lags": {"lags": {"y": [2, 7]}},
    "covariates scaled in each window": {
        "scalers": {"u": EncoderNormalizer(), "k": EncoderNormalizer(method="robust"), "sr": StandardScaler()},
        "min_encoder_length": 4,
        "lags": {"u": [3]},
    },
    "other scalers": {"scalers": {"u": RobustScaler(), "y_center": RobustScaler(), "k": None}, **FEATURES},
    "one window per series": {"predict_mode": True, "min_encoder_length": 4, "add_relative_time_idx": True},
    "first prediction late": {"min_prediction_idx": 40, "min_encoder_length": 4, "min_prediction_length": 2},
    "no encoder at all": {
        "min_encoder_length": 0,
        "min_prediction_length": 1,
        "target_normalizer": GroupNormalizer(groups=["g"]),
    },
    "groups of categories": {
        "variable_groups": {"hol": ["kc", "c"]},
        "time_varying_known_categoricals": ["hol"],
        "time_varying_unknown_categoricals": [],
    },
    "gaps": {"allow_missing_timesteps": True, "weight": "w", "min_encoder_length": 4, **FEATURES},
    "gaps filled by constants": {
        "allow_missing_timesteps": True,
        "constant_fill_strategy": {"y": 0.0, "u": 1.0, "c": "x"},
        "target_normalizer": GroupNormalizer(groups=["g"]),
    },
}


@pytest.mark.parametrize("name", CASES)
def test_every_batch_is_that_of_the_data_sets_own_loader(name):
    theirs = dataset(frame(gaps=name.startswith("gaps")), **CASES[name])
    ours = accelerate(theirs)
    loaders = [d.to_dataloader(train=False, batch_size=16) for d in (theirs, ours)]
    assert len(loaders[0]) == len(loaders[1])
    for a, b in zip(*loaders, strict=True):
        assert_same(a, b)


def test_shuffled_windows_are_the_same_in_the_same_order():
    theirs = dataset(frame())
    loaders = [d.to_dataloader(train=True, batch_size=32) for d in (theirs, accelerate(theirs))]
    for a, b in zip(*(_seeded(loader) for loader in loaders), strict=True):
        assert_same(a, b)


def _seeded(loader: Any) -> list[Any]:
    torch.manual_seed(3)
    return list(loader)


def test_random_encoder_lengths_have_the_distribution_of_their_own():
    theirs = dataset(frame(), min_encoder_length=4, randomize_length=(0.4, 0.8))
    lengths = []
    for data in (theirs, accelerate(theirs)):
        torch.manual_seed(0)
        batches = [x for _ in range(8) for x, _ in data.to_dataloader(train=False, batch_size=64)]
        assert all((x["decoder_lengths"] >= 6).all() and (x["encoder_lengths"] <= 24).all() for x in batches)
        lengths.append(torch.cat([x["encoder_lengths"] for x in batches]).float())
    assert len(lengths[0]) == len(lengths[1])
    assert abs(lengths[0].mean() - lengths[1].mean()) < 0.6
    assert abs(lengths[0].std() - lengths[1].std()) < 0.6
    x, y = next(iter(accelerate(theirs).to_dataloader(train=False, batch_size=8)))
    time = theirs.data["time"]
    for row in range(8):
        at = (time == x["decoder_time_idx"][row, 0]) & (theirs.data["groups"][:, 0] == x["groups"][row, 0])
        assert theirs.data["target"][0][at].item() == y[0][row, 0].item()


def test_the_fast_data_set_is_one_of_theirs_and_leaves_the_first_alone():
    df = frame()
    theirs = dataset(df, target_normalizer=EncoderNormalizer())
    before = theirs.target_normalizer.get_parameters().clone()
    ours = accelerate(theirs)
    list(ours.to_dataloader(batch_size=64))
    assert type(theirs) is TimeSeriesDataSet
    assert isinstance(ours, TimeSeriesDataSet)
    assert torch.equal(before, theirs.target_normalizer.get_parameters())
    assert_same(theirs[5], ours[5])
    x, _ = next(iter(ours.to_dataloader(train=False, batch_size=4)))
    pd.testing.assert_frame_equal(ours.x_to_index(x), theirs.x_to_index(x))
    valid = FastTimeSeriesDataSet.from_dataset(ours, df, predict=True)
    assert isinstance(valid, FastTimeSeriesDataSet)
    assert len(next(iter(valid.to_dataloader(train=False)))[0]["groups"]) == 5
    some = ours.filter(lambda index: index["time_idx_first_prediction"] > 40)
    assert sum(len(x["groups"]) for x, _ in some.to_dataloader(train=False)) == len(some) < len(ours)
    again = pickle.loads(pickle.dumps(ours))
    assert_same(next(iter(again.to_dataloader(train=False))), next(iter(ours.to_dataloader(train=False))))


def test_overwritten_values_and_other_samplers_work_as_before():
    theirs = dataset(frame())
    ours = accelerate(theirs)
    for data in (theirs, ours):
        data.set_overwrite_values(variable="k", values=1.5, target="decoder")
    assert_same(*(next(iter(d.to_dataloader(train=False, batch_size=8))) for d in (theirs, ours)))
    for data in (theirs, ours):
        data.reset_overwrite_values()
    loaders = (d.to_dataloader(batch_sampler="synchronized", train=False, batch_size=8) for d in (theirs, ours))
    for a, b in zip(*loaders, strict=True):
        assert_same(a, b)


def test_other_objects_are_refused():
    with pytest.raises(TypeError, match="accelerate takes a TimeSeriesDataSet; found DataFrame"):
        accelerate(frame())  # type: ignore[arg-type]
