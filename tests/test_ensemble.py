"""Several networks on contexts of different length: their mean, its order, resuming and keeping."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from test_training import Killed, forecaster, frame, killer, small_checks  # noqa: F401

from xlstm_forecast import XLSTMForecaster, fitting
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


def test_few_windows_get_three_networks_unless_something_else_is_asked_for():
    few, many = frame(steps=80), frame(steps=900)
    count = {
        (name, preset): len(forecaster(networks=None, presets=preset, max_steps=1).fit(df, verbose=False).model_.models)
        for name, df in (("few", few), ("many", many))
        for preset in ("fast", "default", "best")
    }
    assert count == {
        ("few", "fast"): 1, ("few", "default"): 3, ("few", "best"): 3,
        ("many", "fast"): 1, ("many", "default"): 1, ("many", "best"): 3,
    }  # fmt: skip
    assert len(forecaster(networks=2, max_steps=1).fit(few, verbose=False).model_.models) == 2


def test_windows_count_as_few_up_to_two_thousand():
    def networks(rows: int) -> int:
        f = forecaster(networks=None, max_steps=1)
        panel = f._read(frame(steps=rows, series=4))
        settings = fitting.settle(panel, f._params(), 20)
        assert 4 * (rows - 20 - f.horizon) - 2000 in (0, 4)
        return settings.networks

    assert [networks(525), networks(526)] == [3, 1]


def test_networks_of_one_fit_start_from_different_weights():
    f = forecaster(networks=2)
    panel = f._read(frame())
    settings = fitting.settle(panel, f._params(), None)
    windows = Windows(panel, settings.input_length, f.horizon)
    first, again, other = (fitting.new_model(panel, windows, settings, f._params(), rank) for rank in (0, 0, 1))
    same, total = 0, 0
    for (name, a), b, c in zip(first.named_parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
        same, total = same + int((a == c).sum()), total + a.numel()
    assert same < 0.5 * total  # ones, zeros and what starts as the last value are not drawn


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
