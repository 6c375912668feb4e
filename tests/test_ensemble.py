"""Several networks on contexts of different length: their mean, its order, resuming and keeping."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from test_training import Killed, forecaster, frame, killer, small_checks  # noqa: F401

from xlstm_forecast import XLSTMForecaster
from xlstm_forecast.data.windows import Windows
from xlstm_forecast.models import Ensemble, last_steps


def batch_of(f: Any, df: pd.DataFrame) -> Any:
    panel = f._to_panel(df)
    windows = Windows(panel, f.settings_.input_length, f.horizon)
    return windows.gather_at(np.arange(len(panel)), panel.history, labels=False)[0]


def test_networks_read_contexts_of_their_own_and_are_averaged():
    df = frame()
    f = forecaster(networks=3, input_length=30, pretrained=False).fit(df, verbose=False)
    assert [model.config.input_length for model in f.model_.models] == [30, 20, 10]
    assert len({round(float(next(m.parameters()).sum().detach()), 6) for m in f.model_.models}) == 3
    batch = batch_of(f, df)
    with torch.no_grad():
        parts = [m.quantiles(last_steps(batch, m.config.input_length), (0.1, 0.5, 0.9)) for m in f.model_.models]
    mean = torch.stack(parts).mean(0)
    found = f.predict(df)[["q0.1", "q0.5", "q0.9"]].to_numpy().reshape(mean[:, :, 0].shape)
    np.testing.assert_allclose(found, mean[:, :, 0].numpy(), rtol=1e-12)
    assert float((parts[0] - parts[2]).abs().max()) > 1e-3


def test_the_first_of_several_networks_is_the_one_that_stands_alone():
    df = frame()
    several = forecaster(networks=2).fit(df, verbose=False)
    one = forecaster().fit(df, verbose=False)
    for name, value in one.model_.models[0].state_dict().items():
        assert torch.equal(several.model_.models[0].state_dict()[name], value), name


def test_a_short_context_is_the_end_of_the_long_one():
    df = frame()
    f = forecaster(networks=2).fit(df, verbose=False)
    batch = batch_of(f, df)
    cut = last_steps(batch, 7)
    assert cut.context == 7
    assert cut.horizon == batch.horizon
    assert torch.equal(cut.target, batch.target[:, -7:])
    assert torch.equal(cut.known, batch.known[:, -7 - f.horizon :])
    assert last_steps(batch, batch.context) is batch


def test_several_networks_are_saved_resumed_and_warm_started(tmp_path, small_checks):  # noqa: F811
    df = frame()
    whole = forecaster(networks=2, dropout=0.2).fit(df, verbose=False)
    whole.save(tmp_path / "f.safetensors")
    again = XLSTMForecaster.load(tmp_path / "f.safetensors")
    pd.testing.assert_frame_equal(again.predict(df), whole.predict(df))
    assert again.training_ == whole.training_

    folder = tmp_path / "runs"
    stopped = forecaster(networks=2, dropout=0.2, checkpoint_dir=str(folder))
    with pytest.raises(Killed):
        stopped.fit(df, verbose=False, callbacks=[killer(21)])
    assert len(list(folder.glob("*/training.ckpt"))) == 1
    resumed = stopped.fit(df, verbose=False)
    pd.testing.assert_frame_equal(resumed.predict(df), whole.predict(df))
    assert list(folder.iterdir()) == []

    longer = again.set_params(max_steps=4).fit(df, warm_start=True, verbose=False)
    assert [m.config.input_length for m in longer.model_.models] == [20, 10]


def test_networks_that_correct_a_backbone_share_one_share():
    df = frame(steps=200)
    f = forecaster(networks=2, backbone=True, max_steps=40, lr=5e-3).fit(df, verbose=False)
    shares = {float(model.share) for model in f.model_.models}
    assert shares == {f.summary()["share"]}
    values = f.predict(df)[["q0.1", "q0.5", "q0.9"]].to_numpy()
    assert (np.diff(values, axis=1) >= 0).all()


def test_no_network_at_all_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        Ensemble([])
    with pytest.raises(ValueError, match="networks=0"):
        forecaster(networks=0).fit(frame(), verbose=False)
