"""The pre-trained network: what it looks up, that it sees no future, and how it takes part in a forecast."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from xlstm_forecast import XLSTMForecaster, pretrained
from xlstm_forecast.blend import mix
from xlstm_forecast.encoder import EncoderConfig
from xlstm_forecast.pretrained.learning import LearningConfig, Run, Samples, averaged, keep, loss, read
from xlstm_forecast.pretrained.lookups import PATCH, look
from xlstm_forecast.pretrained.network import Network, NetworkConfig

LEVELS = (0.1, 0.5, 0.9)
SMALL = NetworkConfig(encoder=EncoderConfig(d_model=32, num_heads=2, blocks="s"))


def waves(rows: int = 4, steps: int = 192, period: int = 12, noise: float = 0.1, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    phase = rng.uniform(0, 2 * np.pi, (rows, 1))
    return 20 + 5 * np.sin(2 * np.pi * np.arange(steps) / period + phase) + noise * rng.standard_normal((rows, steps))


def test_the_first_candidates_are_the_season_before_the_mean_of_four_and_the_last_value():
    row = torch.arange(48.0, dtype=torch.float64)[None]
    window = look(row, torch.tensor([[12, 0]]), 1)
    back = torch.sinh(window.candidates.double()) * window.scale[..., None] + window.location[..., None]
    ahead = back[0, 48:]
    season = torch.tensor([36.0 + h % 12 for h in range(PATCH)], dtype=torch.float64)
    torch.testing.assert_close(ahead[:, 0], season, atol=1e-4, rtol=0)
    torch.testing.assert_close(ahead[:, 3], torch.full((PATCH,), 47.0, dtype=torch.float64), atol=1e-4, rtol=0)
    bent = torch.arcsinh((row - window.location) / window.scale)[0]
    mean = torch.stack([bent[36 - 12 * k] for k in range(4)]).mean()
    assert window.candidates[0, 48, 1].item() == pytest.approx(mean.item(), abs=1e-5)


def test_a_patch_of_the_context_is_forecast_from_the_patches_before_it():
    torch.manual_seed(0)
    row = torch.randn(1, 64, dtype=torch.float64)
    other = row.clone()
    other[0, 32:] = 0.5 * other[0, 32:].flip(0)  # another future of the same mean and spread is not needed: units move
    a, b = (look(x, torch.tensor([[7, 0]]), 1) for x in (row, other))
    first, second = (torch.sinh(w.candidates.double()) * w.scale[..., None] + w.location[..., None] for w in (a, b))
    looked_up = [0, 3]  # single values: the same whatever the units are
    torch.testing.assert_close(first[:, 16:48, looked_up], second[:, 16:48, looked_up], atol=1e-3, rtol=0)
    assert not torch.allclose(first[:, 48:64, looked_up], second[:, 48:64, looked_up], atol=1e-2)


def test_a_seasonal_series_is_forecast_far_better_than_by_its_last_value():
    series = waves()
    context, truth = series[:, :168], series[:, 168:]
    median = pretrained.quantiles(context, (12, 1), 24, (0.5,))[..., 0]
    error = np.abs(median - truth).mean()
    assert error < 0.25 * np.abs(context[:, -1:] - truth).mean()
    assert error < 3 * np.abs(context[:, -24:] - truth).mean()


def test_quantiles_rise_with_the_level_and_come_in_the_order_asked_for():
    out = pretrained.quantiles(waves(), (12, 1), 30, (0.9, 0.1, 0.35, 0.5))
    assert (np.diff(out[..., [1, 2, 3, 0]], axis=-1) > 0).all()


def test_a_row_does_not_depend_on_the_rows_beside_it():
    rows = waves(rows=5)
    rows[1, :100] = np.nan
    rows[2] *= 1e6
    rows[3, 5::7] = np.nan
    together = pretrained.quantiles(rows, (12, 48), 20, LEVELS)
    for k in range(len(rows)):
        alone = pretrained.quantiles(rows[k : k + 1], (12, 48), 20, LEVELS)
        np.testing.assert_allclose(alone[0], together[k], rtol=1e-4, atol=1e-4 * np.nanstd(rows[k]))


def test_forecasts_move_and_stretch_with_the_values():
    rows = waves()
    plain = pretrained.quantiles(rows, (12, 1), 12, LEVELS)
    moved = pretrained.quantiles(1e4 + 100 * rows, (12, 1), 12, LEVELS)
    np.testing.assert_allclose(moved, 1e4 + 100 * plain, rtol=1e-6)


@pytest.mark.parametrize("level", [0.0, 1e8, -3e-8])
def test_a_constant_history_stays_as_it_is(level):
    out = pretrained.quantiles(np.full((2, 40), level), (7, 1), 5, LEVELS)
    np.testing.assert_array_equal(out, np.full((2, 5, 3), level))


def test_one_value_and_long_horizons_give_finite_forecasts():
    assert np.isfinite(pretrained.quantiles(np.array([[3.0]]), (1, 1), 3, LEVELS)).all()
    assert np.isfinite(pretrained.quantiles(waves(), (12, 1), 1000, LEVELS)).all()


def test_a_step_of_training_lowers_the_loss_of_its_batch():
    sample = next(Samples(LearningConfig(tokens=320)).pool(0))
    network = Network(SMALL, torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    before = loss(network, sample)
    before.backward()
    optimizer.step()
    assert float(loss(network, sample).detach()) < float(before.detach())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_a_run_that_was_stopped_ends_with_the_weights_of_one_that_was_not(tmp_path, monkeypatch):
    from xlstm_forecast.pretrained import learning

    monkeypatch.setattr(learning, "POOL", 64)
    config = LearningConfig(steps=6, tokens=640)
    whole = Run(SMALL, config)
    whole.go_on()
    first = Run(SMALL, config, tmp_path)
    first.go_on(seconds=0.0)
    ticks = itertools.count()
    monkeypatch.setattr(learning, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    stops = 0
    while not Run(SMALL, config, tmp_path).go_on(seconds=1.5):  # by this clock one pool a call
        stops += 1
        assert stops < 10
    again = Run(SMALL, config, tmp_path)
    assert again.step == 6
    for a, b in zip(whole.average.parameters(), again.average.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0)
    keep(again.average, tmp_path / "weights.safetensors", config)
    kept = read(tmp_path / "weights.safetensors")
    for name, value in kept.state_dict().items():
        torch.testing.assert_close(value, again.average.state_dict()[name].half().float(), atol=0, rtol=0)


def test_a_written_network_can_be_trained_further():
    first = Run(SMALL, LearningConfig(steps=3, tokens=640))
    first.go_on()
    further = Run(SMALL, LearningConfig(steps=2, tokens=640, seed=1, lr=0.0))
    further.begin(first.average)
    further.go_on()
    assert further.step == 2
    for name, value in first.average.state_dict().items():
        for network in (further.network, further.average):
            torch.testing.assert_close(network.state_dict()[name], value, atol=0, rtol=0)


def test_networks_are_averaged_weight_by_weight():
    networks = [Network(SMALL, torch.Generator().manual_seed(seed)) for seed in range(3)]
    mean = averaged(networks).state_dict()
    for name, value in mean.items():
        expected = sum(network.state_dict()[name] for network in networks) / 3
        torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-6)
    other = NetworkConfig(encoder=EncoderConfig(d_model=16, num_heads=2, blocks="s"))
    with pytest.raises(ValueError, match="different sizes"):
        averaged([networks[0], Network(other)])


def test_it_learns_from_growing_series_where_told_to():
    with_growth, without = (next(Samples(LearningConfig(growing=growing)).pool(0)) for growing in (True, False))
    assert torch.equal(with_growth.periods, without.periods)
    assert not torch.equal(with_growth.future, without.future)


def test_training_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    next(Samples(LearningConfig(tokens=320)).pool(0))
    Network(SMALL, torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_year_of_rare_sales_does_not_come_again_day_by_day():
    """One pair of days a year apart, both without a sale, had stood for a year that repeats itself exactly."""
    rng = np.random.default_rng(0)
    for days in (365, 366, 368):
        sales = np.where(rng.random((8, days)) < 0.12, rng.poisson(4, (8, days)), 0).astype(float)
        found = pretrained.quantiles(sales, (7, 364), 28, LEVELS)
        assert (found[..., 0] < 1).all(), days
    rows = np.array([[0, 0, 5, 0, 1, 0, 2, 9, 0, 0, 3], [3, 1, 5, 2, 8, 6, 3.5, 9, 4, 7, 5.5]])
    assert pretrained._ordered(rows, (3, 8)).tolist() == [[3, 0], [3, 8]]
    assert pretrained._ordered(rows, (8, 3)).tolist() == [[3, 0], [3, 8]]
    assert pretrained._ordered(rows, (8,)).tolist() == [[0, 0], [8, 0]]
    assert pretrained._ordered(rows, (1, 1)).tolist() == [[0, 0], [0, 0]]
    assert pretrained._ordered(rows, (12, 3)).tolist() == [[3, 12], [3, 12]]


def test_short_series_take_two_thirds_of_the_pretrained_network_and_long_ones_not_held_back_one_half():
    for steps, val_size, limit, share in (
        (14, None, None, 2 / 3),
        (14, 0, None, 2 / 3),
        (14, None, 0.001, 2 / 3),
        (150, 0, None, 1 / 2),
        (150, None, 0.001, 1 / 2),
    ):
        model = XLSTMForecaster(horizon=6, max_steps=1, time_limit=limit)
        model.fit(frame(steps), val_size=val_size, verbose=False)
        assert model.settings_.validation == 0
        assert model.weights_["pretrained"] == pytest.approx(share), (steps, val_size, limit)


def frame(steps: int = 150) -> pd.DataFrame:
    values = waves(4, steps, noise=1.0)
    stamps = pd.date_range("2015-01-31", periods=steps, freq="ME")
    return pd.concat([pd.DataFrame({"unique_id": f"s{k}", "ds": stamps, "y": row}) for k, row in enumerate(values)])


def test_the_forecast_is_the_average_that_the_summary_names():
    df = frame()
    parts = {}
    for use in (True, False):
        model = XLSTMForecaster(horizon=6, pretrained=use, max_steps=2).fit(df, verbose=False)
        parts[use] = model.predict(df)[["q0.1", "forecast", "q0.9"]].to_numpy().reshape(4, 6, 3)
        summary = model.summary()
        assert sum(summary["weights"].values()) == pytest.approx(1)
        if use:
            weights, widths, fitted = summary["weights"], summary["widths"], model
        else:
            assert summary["weights"] == {"network": 1.0}
    rows = df["y"].to_numpy().reshape(4, -1)
    shipped = pretrained.quantiles(rows, fitted.settings_.seasons, 6, LEVELS)
    band = (parts[False][..., 2] - parts[False][..., 0]) / (shipped[..., 2] - shipped[..., 0])
    usual = np.exp(widths["network"] - widths["pretrained"])
    odds = weights["pretrained"] / weights["network"] * band / usual
    share = (odds / (1 + odds))[..., None]
    assert np.ptp(share) > 0.02
    np.testing.assert_allclose(parts[True], parts[False] + share * (shipped - parts[False]), rtol=1e-6)


def test_a_point_head_and_a_bare_network_do_without_it():
    df = frame(80)
    for arguments in ({"head": "point"}, {"backbone": False}, {"model": "linear"}):
        model = XLSTMForecaster(horizon=4, max_steps=2, **arguments).fit(df, verbose=False)
        assert "pretrained" not in model.summary()["weights"]


def test_the_weights_survive_saving(tmp_path):
    df = frame(90)
    model = XLSTMForecaster(horizon=4, max_steps=2).fit(df, verbose=False)
    model.save(tmp_path / "model.safetensors")
    loaded = XLSTMForecaster.load(tmp_path / "model.safetensors")
    assert loaded.summary()["weights"] == model.summary()["weights"]
    assert loaded.summary()["weights"]["pretrained"] > 0
    pd.testing.assert_frame_equal(loaded.predict(df), model.predict(df), check_exact=True)


def test_with_covariates_the_network_stands_beside_the_backbone_and_the_weights_say_so():
    rng = np.random.default_rng(0)
    df = frame(120)
    df["price"] = rng.standard_normal(len(df))
    df["y"] += 3 * df["price"]
    history = df.groupby("unique_id").head(114)
    model = XLSTMForecaster(horizon=6, future=["price"], max_steps=60).fit(history, verbose=False)
    summary = model.summary()
    assert summary["alone"]
    assert 0 <= summary["share"] <= 1
    assert set(summary["weights"]) == {"network", "backbone", "pretrained"}
    levels = (0.1, 0.5, 0.9)
    panel = model._to_panel(df)
    where = np.arange(len(panel)), panel.history - 6
    parts = {name: model._member(name, panel, *where, levels) for name in summary["weights"]}
    quantiles = {name: torch.from_numpy(part) for name, part in parts.items()}
    mixed = mix(quantiles, summary["weights"], levels, summary["widths"]).numpy()
    np.testing.assert_allclose(model._forecast(panel, *where, levels), mixed, rtol=1e-12)
    truth = df.groupby("unique_id").tail(6)["y"].to_numpy().reshape(4, 6, 1)
    error = {name: np.abs(value[..., 1] - truth).mean() for name, value in (parts | {"all": mixed}).items()}
    assert error["all"] < error["pretrained"], "what knows the price must count"


@pytest.mark.parametrize(
    ("context", "horizon", "levels", "message"),
    [
        (np.zeros(9), 4, LEVELS, "context must be"),
        (np.zeros((2, 0)), 4, LEVELS, "context must be"),
        (np.full((2, 9), np.inf), 4, LEVELS, "infinite"),
        (np.zeros((2, 9)), 0, LEVELS, "horizon=0"),
        (np.zeros((2, 9)), 4, (0.5, 1.0), "level 1.0"),
    ],
)
def test_what_cannot_be_forecast_is_refused(context, horizon, levels, message):
    with pytest.raises(ValueError, match=message):
        pretrained.quantiles(context, (7,), horizon, levels)
