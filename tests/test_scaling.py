"""Scaling: location and scale of the observed values, exactly undone, at every level."""

import pytest
import torch

from xlstm_forecast.scaling import scale_context, scale_labels, unscale


def window(values, observed=None, offset=0.0):
    target = torch.tensor(values, dtype=torch.float32)[None, :, None]
    seen = torch.ones_like(target, dtype=torch.bool) if observed is None else torch.tensor(observed)[None, :, None]
    return target, seen, torch.full((1, 1), offset, dtype=torch.float64)


@pytest.mark.parametrize("mode", ["window", "causal"])
def test_scaled_values_have_mean_zero_and_deviation_one_over_what_is_observed(mode):
    target, seen, offset = window([1.0, 2.0, 99.0, 3.0, 6.0], [True, True, False, True, True])
    scaled = scale_context(target, seen, offset, mode)
    assert scaled.location.item() == pytest.approx(3.0)
    assert scaled.scale.item() == pytest.approx(3.5**0.5)
    if mode == "window":
        assert scaled.values[0, :, 0].tolist() == pytest.approx([(x - 3) / 3.5**0.5 for x in (1, 2, 3, 3, 6)], abs=1e-6)


def test_causal_scaling_of_a_step_ignores_later_steps():
    torch.manual_seed(0)
    target, seen, offset = torch.randn(2, 30, 1), torch.rand(2, 30, 1) > 0.3, torch.zeros(2, 1).double()
    whole = scale_context(target, seen, offset, "causal").values
    cut = scale_context(target[:, :17], seen[:, :17], offset, "causal").values
    assert torch.equal(whole[:, :17], cut)


@pytest.mark.parametrize("mode", ["window", "causal"])
def test_values_under_a_false_mask_do_not_matter(mode):
    target, seen, offset = window([1.0, 5.0, 2.0, 4.0], [True, False, True, True])
    spoiled = target.clone()
    spoiled[0, 1, 0] = 1e30
    for a, b in zip(scale_context(target, seen, offset, mode), scale_context(spoiled, seen, offset, mode), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("mode", ["window", "causal"])
@pytest.mark.parametrize("value", [0.0, 0.1, 1e8, 1e-8, -3.7])
def test_a_constant_window_has_scale_zero_and_its_own_level(mode, value):
    target, seen, offset = window([value] * 50)
    scaled = scale_context(target, seen, offset, mode)
    assert scaled.scale.item() == 0
    assert (scaled.values == 0).all()
    forecast = unscale(torch.full((1, 3, 1, 2), 5.0), scaled, offset)
    assert forecast.flatten().tolist() == pytest.approx([value] * 6, rel=1e-6)


def test_unscaling_undoes_scaling_at_a_level_of_1e8():
    offset = 1e8
    target, seen, off = window([0.0, 50.0, -20.0, 13.0], offset=offset)
    scaled = scale_context(target, seen, off)
    y = torch.tensor([[[7.0], [-31.0]]])
    values, usable = scale_labels(y, scaled)
    assert usable.all()
    assert unscale(values[..., None], scaled, off).flatten().tolist() == pytest.approx([1e8 + 7, 1e8 - 31], abs=1e-4)


def test_rounding_noise_on_a_high_level_counts_as_constant():
    target, seen, offset = window([0.0, 1e-8, -1e-8, 0.0], offset=1e8)
    assert scale_context(target, seen, offset).scale.item() == 0


def test_an_unknown_mode_names_the_choices():
    target, seen, offset = window([1.0, 2.0])
    with pytest.raises(ValueError, match="'window', 'causal'"):
        scale_context(target, seen, offset, "batch")
