"""How members are averaged: weights by held-back windows, and more of a member where it is surer than usual."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from xlstm_forecast import XLSTMForecaster, blend
from xlstm_forecast.blend import BAND, Truth, choose_weights, mix, usual_widths
from xlstm_forecast.heads import pinball

LEVELS = (0.1, 0.5, 0.9)
SCORES = torch.special.ndtri(torch.tensor(LEVELS, dtype=torch.float64))


def truth_and(*errors: float, count: int = 400) -> tuple[Truth, list[torch.Tensor]]:
    """Labels, and medians with normal errors of these deviations."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(count, 1, 1, generator=generator, dtype=torch.float64)
    ones = torch.ones(count, 1, 1, dtype=torch.float64)
    made = [y + e * torch.randn(count, 1, 1, generator=generator, dtype=torch.float64) for e in errors]
    return Truth(y, ones.bool(), ones, ones), [m[..., None] for m in made]


def test_the_weights_follow_the_better_forecast_and_are_equal_where_both_are_as_good():
    truth, (good, bad, like) = truth_and(0.1, 2.0, 0.1)

    def weights(*medians: torch.Tensor, count: float = 400) -> list[float]:
        members = {str(k): [m] for k, m in enumerate(medians)}
        return list(choose_weights(members, [truth], (0.5,), dict.fromkeys(members, 0.0), count).values())

    assert weights(good, bad)[1] < 0.05
    assert weights(bad, good)[1] > 0.95
    assert weights(good, like)[1] == pytest.approx(0.5, abs=0.1)
    of_three = weights(bad, good, like)
    assert sum(of_three) == pytest.approx(1)
    assert of_three[0] < 0.05
    assert of_three[1] == pytest.approx(0.5, abs=0.15)
    assert weights(good, bad, count=0.1)[1] > weights(good, bad)[1], "a few windows decide less"
    assert choose_weights({"a": [], "b": []}, [], (0.5,), {}, 0) == {"a": 0.5, "b": 0.5}


def test_the_pretrained_network_has_the_larger_part_where_little_can_be_judged():
    truth, (good, bad, like) = truth_and(0.1, 2.0, 0.1)

    def share(fitted: torch.Tensor, pretrained: torch.Tensor, count: float) -> float:
        members = {"network": [fitted], "pretrained": [pretrained]}
        return choose_weights(members, [truth], (0.5,), dict.fromkeys(members, 0.0), count)["pretrained"]

    assert share(good, good, 1) == pytest.approx(0.559, abs=0.005)
    assert share(good, like, 1) == pytest.approx(0.55, abs=0.03)
    assert share(good, like, 1000) == pytest.approx(0.5, abs=0.01)
    swapped = choose_weights(
        {"pretrained": [good], "network": [good]}, [truth], (0.5,), {"pretrained": 0.0, "network": 0.0}, 1
    )
    assert swapped["pretrained"] == pytest.approx(0.559, abs=0.005)
    assert share(good, bad, 1) < 0.1
    assert share(bad, good, 1) > 0.9
    nothing = choose_weights({"network": [], "pretrained": []}, [], (0.5,), {}, 0)
    assert nothing == {"network": pytest.approx(1 / 3), "pretrained": pytest.approx(2 / 3)}
    three = choose_weights({"network": [], "backbone": [], "pretrained": []}, [], (0.5,), {}, 0)
    assert three["pretrained"] == pytest.approx(1 / 3)


def normal(centre: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
    """Quantiles (..., 3) of normal distributions."""
    return centre[..., None] + spread[..., None] * SCORES


def two(rows: int = 5, steps: int = 3, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draw = {name: torch.randn(2, rows, steps, 1, generator=generator, dtype=torch.float64) for name in "ab"}
    return {name: normal(x[0], (0.3 * x[1]).exp()) for name, x in draw.items()}


def test_a_step_takes_of_each_member_by_its_weight_over_its_width():
    members = two()
    width = {name: (q[..., 2] - q[..., 0])[..., None] for name, q in members.items()}
    parts = {"a": 0.3 / width["a"], "b": 0.7 / width["b"]}
    expected = sum(parts[name] * members[name] for name in "ab") / (parts["a"] + parts["b"])
    found = mix(members, {"a": 0.3, "b": 0.7}, LEVELS, {"a": 0.0, "b": 0.0})
    torch.testing.assert_close(found, expected)
    assert (found.diff(dim=-1) > 0).all()
    plain = 0.3 * members["a"] + 0.7 * members["b"]
    torch.testing.assert_close(mix(members, {"a": 0.3, "b": 0.7}, (0.2, 0.5, 0.8), {"a": 0.0, "b": 0.0}), plain)
    assert (found - plain).abs().max() > 0.02


def test_three_members_share_in_the_same_way_and_their_order_and_units_do_not_matter():
    members = two() | {"c": two(seed=1)["a"]}
    weights, widths = {"a": 0.2, "b": 0.5, "c": 0.3}, {"a": 0.3, "b": -0.1, "c": -0.2}
    parts = {k: weights[k] * np.exp(widths[k]) / (q[..., 2:] - q[..., :1]) for k, q in members.items()}
    expected = sum(parts[k] * members[k] for k in members) / sum(parts.values())
    found = mix(members, weights, LEVELS, widths)
    torch.testing.assert_close(found, expected)
    turned = {k: members[k] for k in "cab"}
    torch.testing.assert_close(mix(turned, weights, LEVELS, widths), found)
    torch.testing.assert_close(mix({k: 1e9 * q for k, q in members.items()}, weights, LEVELS, widths), 1e9 * found)


def test_a_member_that_is_wider_everywhere_is_as_wide_as_usual():
    members = two()
    wide = members | {
        "b": members["b"].mean(-1, keepdim=True) + 4 * (members["b"] - members["b"].mean(-1, keepdim=True))
    }
    usual = [usual_widths({k: [q] for k, q in m.items()}, LEVELS) for m in (members, wide)]
    assert usual[1]["b"] - usual[1]["a"] == pytest.approx(usual[0]["b"] - usual[0]["a"] + np.log(4))
    assert usual[0]["a"] + usual[0]["b"] == pytest.approx(0)
    weights = {"a": 0.5, "b": 0.5}
    first, second = (mix(m, weights, LEVELS, w) for m, w in zip((members, wide), usual, strict=True))
    torch.testing.assert_close(second[..., 1], first[..., 1])


def test_widths_count_within_bounds_and_where_there_are_any():
    centre = torch.tensor([[[0.0], [0.0], [0.0]]], dtype=torch.float64)
    spread = torch.tensor([[[1.0], [0.0], [1.0]]], dtype=torch.float64)
    members = {"a": normal(centre, spread), "b": normal(centre + 1, spread * torch.tensor([1e9, 1.0, 1.0])[:, None])}
    members["b"][0, 2] = torch.nan
    found = mix(members, {"a": 0.5, "b": 0.5}, LEVELS, {"a": 0.0, "b": 0.0})[0, :, 0, 1]
    assert found[0] == pytest.approx(1 / (1 + np.exp(3)))  # a billion times as wide counts as exp(3) times
    assert found[1] == pytest.approx(0.5)  # no width: the weights as they are
    assert found[2].isnan()
    assert mix(members, {"a": 0.5, "b": 0.5}, (0.2, 0.5, 0.8), {"a": 0.0, "b": 0.0})[0, 0, 0, 1] == pytest.approx(0.5)


def test_members_that_know_where_they_are_good_are_worth_more_together():
    generator = torch.Generator().manual_seed(0)

    def noise() -> torch.Tensor:
        return torch.randn(4000, 2, 1, generator=generator, dtype=torch.float64)

    y = noise()
    spread = {
        "a": torch.tensor([0.2, 2.0])[:, None].expand(4000, 2, 1),
        "b": torch.tensor([2.0, 0.2])[:, None].expand(4000, 2, 1),
    }
    members = {name: normal(y + s * noise(), s.double()) for name, s in spread.items()}
    ones = torch.ones(4000, 2, 1, dtype=torch.float64)
    truth = Truth(y, ones.bool(), ones[:, :1], ones[..., :1])
    batches = {name: [q] for name, q in members.items()}
    widths = usual_widths(batches, LEVELS)
    weights = choose_weights(batches, [truth], LEVELS, widths, 4000)
    assert weights["a"] == pytest.approx(0.5, abs=0.05)
    forecasts = mix(members, weights, LEVELS, widths), (members["a"] + members["b"]) / 2
    at = torch.tensor(LEVELS, dtype=torch.float64)
    sure, plain = (float(pinball(y[..., None] - forecast, at).mean()) for forecast in forecasts)
    assert sure < 0.5 * plain


def test_the_weights_are_those_of_mixtures_as_they_are_made(monkeypatch):
    generator = torch.Generator().manual_seed(1)
    y = torch.randn(500, 2, 1, generator=generator, dtype=torch.float64)
    wrong = y + torch.tensor([3.0, 0.0])[:, None]  # and very sure of its first step
    members = {
        "a": normal(wrong, torch.tensor([0.01, 1.0])[:, None].expand(500, 2, 1).double()),
        "b": normal(y, torch.tensor([0.5, 0.5])[:, None].expand(500, 2, 1).double()),
    }
    ones = torch.ones(500, 2, 1, dtype=torch.float64)
    truth = Truth(y, ones.bool(), ones[:, :1], ones[..., :1])
    batches = {name: [q] for name, q in members.items()}
    sure = choose_weights(batches, [truth], LEVELS, usual_widths(batches, LEVELS), 3)
    monkeypatch.setattr(blend, "BAND", (0.2, 0.8))  # a band that these levels do not have
    plain = choose_weights(batches, [truth], LEVELS, usual_widths(batches, LEVELS), 3)
    assert sure["a"] < 0.9 * plain["a"]


def made(steps: int = 120, series: int = 4) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    stamps = pd.date_range("2012-01-31", periods=steps, freq="ME")
    wave = 20 + 5 * np.sin(2 * np.pi * np.arange(steps) / 12)
    parts = [
        pd.DataFrame({"unique_id": f"s{k}", "ds": stamps, "y": wave + rng.standard_normal(steps)})
        for k in range(series)
    ]
    return pd.concat(parts, ignore_index=True)


def test_a_forecast_does_not_depend_on_the_levels_asked_for_beside_it():
    df = made()
    model = XLSTMForecaster(horizon=6, max_steps=2).fit(df, verbose=False)
    assert 0 < model.weights_["pretrained"] < 1
    usual = model.predict(df)
    for levels in ((0.5,), (0.3,), (0.02, 0.98), BAND):
        other = model.predict(df, quantiles=levels)
        shared = [name for name in other.columns if name in usual.columns]
        pd.testing.assert_frame_equal(other[shared], usual[shared])
    values = model.predict(df, quantiles=(0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)).iloc[:, 3:].to_numpy()
    assert (np.diff(values, axis=1) > 0).all()


def test_a_file_keeps_the_widths(tmp_path):
    df = made()
    model = XLSTMForecaster(horizon=6, max_steps=2).fit(df, verbose=False)
    assert model.widths_["network"] == pytest.approx(-model.widths_["pretrained"])
    assert abs(model.widths_["network"]) > 0.01
    model.save(tmp_path / "model.safetensors")
    loaded = XLSTMForecaster.load(tmp_path / "model.safetensors")
    assert loaded.summary()["widths"] == model.summary()["widths"] == model.widths_
    pd.testing.assert_frame_equal(loaded.predict(df), model.predict(df), check_exact=True)
