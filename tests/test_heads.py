"""Heads: ordered quantiles, exact losses, levels other than the fitted ones."""

import numpy as np
import pytest
import torch
from scipy import stats

from xlstm_forecast.heads import HEADS, build_head, check_levels, interpolate_quantiles, pinball

LEVELS = (0.05, 0.2, 0.5, 0.9, 0.99)


@pytest.mark.parametrize("kind", [k for k in HEADS if HEADS[k].has_quantiles])
@pytest.mark.parametrize("size", [0.0, 1.0, 30.0, 1000.0])
def test_quantiles_are_ordered_also_untrained_and_for_wild_features(kind, size):
    head = build_head(kind, 8, LEVELS)
    torch.nn.init.normal_(head.projection.weight, std=3)
    params = head(size * torch.randn(500, 8))
    for levels in (LEVELS, (0.001, 0.01, 0.3, 0.31, 0.5, 0.77, 0.999)):
        quantiles = head.quantiles(params, levels)
        assert quantiles.shape == (500, len(levels))
        assert torch.isfinite(quantiles).all()
        assert (quantiles.diff(dim=-1) >= 0).all()


def test_pinball_is_twice_the_textbook_loss_and_the_absolute_error_at_the_median():
    error, levels = torch.tensor([2.0, -3.0]), torch.tensor([0.1, 0.5])
    values = pinball(error[:, None], levels)
    assert torch.allclose(values, torch.tensor([[0.4, 2.0], [5.4, 3.0]]))


def test_quantile_head_starts_as_a_normal_distribution_of_scale_one_half():
    head = build_head("quantile", 4, (0.1, 0.5, 0.9))
    quantiles = head.quantiles(head(torch.zeros(1, 4)), (0.1, 0.5, 0.9))[0]
    assert quantiles.tolist() == pytest.approx((0.5 * stats.norm.ppf([0.1, 0.5, 0.9])).tolist(), abs=1e-5)


def test_other_levels_follow_the_normal_score_and_known_levels_come_back_exactly():
    values = torch.tensor(stats.norm.ppf([0.1, 0.5, 0.9]))
    other = interpolate_quantiles(values, (0.1, 0.5, 0.9), (0.01, 0.1, 0.25, 0.5, 0.975))
    assert other.tolist() == pytest.approx(stats.norm.ppf([0.01, 0.1, 0.25, 0.5, 0.975]).tolist(), abs=1e-12)
    assert other[1] == values[0]
    assert other[3] == values[1]


def test_student_t_loss_and_quantiles_equal_scipys():
    head = build_head("student_t", 4, LEVELS)
    torch.nn.init.normal_(head.projection.weight)
    params = head(torch.randn(50, 4))
    y = torch.randn(50) * 3
    location, scale, df = params.detach().double().numpy().T
    expected = -stats.t.logpdf(y.numpy(), df, location, scale)
    assert np.allclose(head.loss(params, y).detach().numpy(), expected, atol=1e-4)
    quantiles = head.quantiles(params, LEVELS).numpy()
    assert np.allclose(quantiles, stats.t.ppf(np.array(LEVELS), df[:, None], location[:, None], scale[:, None]))


@pytest.mark.parametrize("kind", list(HEADS))
def test_shifting_a_head_moves_its_median_by_as_much(kind):
    head = build_head(kind, 4, (0.1, 0.5, 0.9))
    params = head(torch.randn(5, 4))
    base = torch.randn(5)
    moved = head.quantiles(head.shift(params, base), (0.5,)) - head.quantiles(params, (0.5,))
    assert torch.allclose(moved[..., 0].float(), base, atol=1e-5)


def test_quantile_head_learns_the_quantiles_of_a_skewed_distribution():
    generator = torch.Generator().manual_seed(1)
    head = build_head("quantile", 1, (0.1, 0.5, 0.9))
    optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
    for _ in range(600):
        y = -torch.log(torch.rand(512, generator=generator))  # exponential
        optimizer.zero_grad()
        head.loss(head(torch.ones(512, 1)), y).mean().backward()
        optimizer.step()
    learned = head.quantiles(head(torch.ones(1, 1)), (0.1, 0.5, 0.9))[0]
    assert learned.tolist() == pytest.approx([0.105, 0.693, 2.303], abs=0.12)


def test_point_head_has_no_quantiles_but_the_median():
    head = build_head("point", 4, ())
    with pytest.raises(ValueError, match="point head has no quantiles"):
        head.quantiles(head(torch.zeros(1, 4)), (0.1,))


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ((0.1, 1.0), "1.0 lies outside"),
        ((-0.1,), "-0.1 lies outside"),
        ((10, 50, 90), "10.0 lies outside .* percentages"),
        ((0.5, 0.1), "0.1 comes after 0.5"),
        ((0.1, 0.1), "0.1 is repeated"),
        (("a",), "expected a sequence of numbers"),
        (0.5, "expected a sequence of numbers"),
    ],
)
def test_wrong_levels_are_named(levels, message):
    with pytest.raises(ValueError, match=message):
        check_levels(levels)


def test_an_unknown_head_names_the_choices():
    with pytest.raises(ValueError, match="'quantile', 'student_t', 'point'"):
        build_head("gauss", 4, LEVELS)
