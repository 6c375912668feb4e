"""Going on from a fitted network: what is kept, what is trained, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.exceptions import NotFittedError
from test_covariates import promoted
from test_forecaster import DF, fit, frame, tiny

from xlstm_forecast import XLSTMForecaster


@pytest.fixture(scope="module")
def going_on():
    return fit(DF)


def test_training_goes_on_from_a_fitted_network_and_may_leave_its_encoder():
    f = fit(frame(steps=120), max_steps=40, lr=5e-3)
    before = {n: p.clone() for n, p in f.model_.state_dict().items()}
    f.set_params(max_steps=5)
    f.fit(frame(steps=120, seed=9), warm_start=True, freeze_encoder=True, verbose=False)
    after = f.model_.state_dict()
    moved = {n for n in before if not torch.equal(before[n], after[n])}
    assert not any(n.startswith("members.0.encoder") for n in moved)
    assert all(p.requires_grad for p in f.model_.parameters())
    with pytest.raises(ValueError, match="warm_start=True"):
        tiny().fit(DF, freeze_encoder=True, verbose=False)
    with pytest.raises(NotFittedError):
        tiny().fit(DF, warm_start=True, verbose=False)


@pytest.mark.parametrize(
    "changed",
    [{"model": "mixer"}, {"model": "linear"}, {"horizon": 9}, {"quantiles": (0.05, 0.5)}, {"head": "point"},
     {"input_length": 9}, {"patch_length": 3}, {"networks": 2}, {"blocks": "m"}, {"d_model": 16}, {"num_heads": 1},
     {"scaling": "causal"}, {"backbone": False}, {"season_length": 5}],
    ids=str,
)  # fmt: skip
def test_a_warm_start_with_another_network_is_refused_by_name(changed, going_on):
    before = going_on.predict()
    (name,) = changed
    with pytest.raises(ValueError, match=f"{name}=.*: warm_start=True goes on with a network of {name}="):
        copy.copy(going_on).set_params(**changed).fit(DF, warm_start=True, verbose=False)
    pd.testing.assert_frame_equal(going_on.predict(), before)


def test_a_warm_start_of_any_model_keeps_its_sizes(tmp_path):
    for model in ("patch", "mixer", "time"):
        fit(DF, model=model).save(tmp_path / "f.safetensors")
        f = XLSTMForecaster.load(tmp_path / "f.safetensors")
        sizes = {name: f.summary()[name] for name in ("input_length", "patch_length", "blocks", "d_model", "num_heads")}
        f.set_params(d_model=None, num_heads=None, quantiles=(0.2, 0.5), presets="fast")
        f.fit(frame(steps=120), warm_start=True, verbose=False)
        assert {name: f.summary()[name] for name in sizes} == sizes


def test_a_correction_beside_covariates_goes_on_from_a_warm_start_in_its_own_sizes():
    df = promoted(steps=120)[["unique_id", "ds", "y", "promotion"]]
    shorter = df.groupby("unique_id").tail(50)
    f = fit(df, future=["promotion"], max_steps=5)
    length = f.correction_.models[0].config.input_length
    f.fit(shorter, warm_start=True, verbose=False)
    assert f.correction_.models[0].config.input_length == length
    f.fit(df, val_size=0, verbose=False)
    assert vars(f)["correction_"] is None
    f.fit(df, warm_start=True, freeze_encoder=True, verbose=False)
    assert all(member.config.known == 2 * len(f.calendar_) for member in f.correction_.models)
    f.fit(df, warm_start=True, val_size=0, verbose=False)
    assert f.correction_.share == 0


def test_another_frequency_is_refused_and_the_summary_counts_the_series_of_now():
    def regular(count: int, freq: str) -> pd.DataFrame:
        ds = pd.date_range("2020-01-06", periods=120, freq=freq)
        y = np.arange(120) % 7 + 20.0
        return pd.concat(pd.DataFrame({"unique_id": f"{freq}{i}", "ds": ds, "y": y + i}) for i in range(count))

    options: dict[str, Any] = {"max_steps": 2, "d_model": 8, "blocks": "s", "input_length": 16, "on_gap": "mask"}
    f = XLSTMForecaster(horizon=7, **options).fit(regular(2, "D"), verbose=False)
    f.fit(regular(5, "D"), warm_start=True, verbose=False)
    assert f.summary()["series"] == 5
    weekly = regular(2, "W-MON")
    for call in (f.predict, lambda df: f.fit(df, warm_start=True, verbose=False)):
        with pytest.raises(ValueError, match=r"7 steps of 'D' apart.*fitted on freq='D'"):
            call(weekly)
    every_other = regular(2, "D").iloc[::2]
    assert len(f.set_params(freq="D").predict(every_other)) == 14  # who says so may leave out days
    with pytest.raises(ValueError, match="freq='W-MON': warm_start=True goes on with a model of freq='D'"):
        f.set_params(freq="W-MON").fit(weekly, warm_start=True, verbose=False)
