"""The models over variates: they start as the naive forecast, read every role, ignore what is missing, and learn."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from xlstm_forecast.batch import Batch, Labels
from xlstm_forecast.encoder import EncoderConfig
from xlstm_forecast.models.mixer import MixerConfig, MixerModel
from xlstm_forecast.models.time import TimeConfig, TimeModel, moving_average
from xlstm_forecast.scaling import scale_context

B, L, H, V = 6, 20, 5, 2
SHAPE = {"known": 1, "past": 1, "static": 1, "known_sizes": (3,), "past_sizes": (3,), "static_sizes": (3,), "series": 4}


def build(kind, width=16, **options):
    common = {"input_length": L, "horizon": H, "targets": V, **SHAPE, **options}
    small = EncoderConfig(d_model=width, num_heads=2, blocks="s", conv_kernel=0)
    if kind == "mixer":
        return MixerModel(MixerConfig(encoder=small, **common)).eval()
    return TimeModel(TimeConfig(encoder=small, kernel=5, **common)).eval()


def make_batch(seed=0, rows=B):
    g = torch.Generator().manual_seed(seed)
    present = torch.ones(rows, L, dtype=torch.bool)
    present[0, :7] = False
    observed = (torch.rand(rows, L, V, generator=g) > 0.1) & present[..., None]
    seen = (torch.rand(rows, L, 1, generator=g) > 0.1) & present[..., None]
    return Batch(
        target=torch.randn(rows, L, V, generator=g) * observed,
        observed=observed,
        offset=torch.full((rows, V), 100.0, dtype=torch.float64),
        present=present,
        known=torch.randn(rows, L + H, 1, generator=g),
        past=torch.randn(rows, L, 1, generator=g) * seen,
        past_observed=seen,
        static=torch.randn(rows, 1, generator=g),
        static_observed=torch.ones(rows, 1, dtype=torch.bool),
        known_categories=torch.randint(0, 3, (rows, L + H, 1), generator=g),
        past_categories=torch.randint(0, 3, (rows, L, 1), generator=g),
        static_categories=torch.randint(0, 3, (rows, 1), generator=g),
        series=torch.arange(rows) % 4,
        origin=torch.full((rows,), L),
    )


KINDS = pytest.mark.parametrize("kind", ["mixer", "time"])


@KINDS
def test_before_training_the_median_stays_near_the_naive_forecast(kind):
    batch = make_batch()
    batch = replace(batch, observed=batch.present[..., None].expand(-1, -1, V))
    model = build(kind, season=4)
    middle = model.quantiles(batch, (0.5,))[..., 0]
    naive = batch.target[:, L - 4 + torch.arange(H) % 4].double() + 100
    assert (middle - naive).abs().mean() < 0.2


@KINDS
def test_quantiles_are_ordered_and_carry_level_and_scale(kind):
    model, batch = build(kind), make_batch()
    found = model.quantiles(batch, (0.1, 0.5, 0.9))
    assert (found.diff(dim=-1) > 0).all()
    scaled = replace(batch, target=batch.target * 1000, offset=batch.offset + 1e6)
    torch.testing.assert_close(model.quantiles(scaled, (0.1, 0.5, 0.9)), (found - 100) * 1000 + 1e6 + 100)


@KINDS
def test_a_row_alone_is_the_row_in_any_batch(kind):
    model, batch = build(kind), make_batch()
    torch.testing.assert_close(model(batch[2:3]).params, model(batch).params[2:3])


@KINDS
def test_values_that_are_missing_or_before_the_series_start_change_nothing(kind):
    model, batch = build(kind), make_batch()
    noise = torch.full_like(batch.target, 55.0)
    early = ~batch.present[..., None]
    ahead = torch.zeros(B, H, 1, dtype=torch.bool)
    spoiled = replace(
        batch,
        target=torch.where(batch.observed, batch.target, noise),
        past=torch.where(batch.past_observed, batch.past, torch.full_like(batch.past, 9.0)),
        known=torch.where(torch.cat((early, ahead), 1), torch.full_like(batch.known, 9.0), batch.known),
        past_categories=torch.where(early, torch.full_like(batch.past_categories, 2), batch.past_categories),
    )
    torch.testing.assert_close(model(spoiled).params, model(batch).params)


@KINDS
@pytest.mark.parametrize(
    ("role", "size"), [("known", 1.0), ("past", 1.0), ("static", 1.0), ("known_categories", 1), ("past_categories", 1)]
)
def test_every_role_reaches_the_forecast_of_every_target(kind, role, size):
    model, batch = build(kind), make_batch()
    values = getattr(batch, role)
    changed = (values + 1) % 3 if values.dtype == torch.int64 else values + size * torch.randn(values.shape)
    moved = (model(replace(batch, **{role: changed})).params - model(batch).params).abs().amax((0, 1, 3))
    assert (moved > 1e-6).all()


@KINDS
def test_the_history_of_a_target_shapes_its_own_spread(kind):
    model, batch = build(kind), make_batch()
    mirrored = replace(batch, target=batch.target * torch.tensor([1.0, -1.0]))
    widths = [model(b).params.diff(dim=-1) for b in (batch, mirrored)]
    assert (widths[0] - widths[1]).abs()[:, :, 1].amax((1, 2)).min() > 1e-6


@KINDS
def test_known_covariates_that_drive_the_target_are_learned(kind):
    torch.manual_seed(1)
    model = build(
        kind, width=32, series=0, static=0, known_sizes=(), past_sizes=(), static_sizes=(), head="point"
    ).train()
    step = torch.optim.Adam(model.parameters(), 5e-3)
    losses = []
    for number in range(120):
        batch = make_batch(number, rows=64)
        batch = replace(
            batch,
            known_categories=batch.known_categories[..., :0],
            past_categories=batch.past_categories[..., :0],
            static_categories=batch.static_categories[..., :0],
            static=batch.static[:, :0],
            static_observed=batch.static_observed[:, :0],
        )
        target = batch.known[:, L:].expand(-1, -1, V).clone()
        labels = Labels(target=target, observed=torch.ones(64, H, V, dtype=torch.bool), weight=torch.ones(64, H))
        loss = model.loss(batch, labels)
        step.zero_grad()
        loss.backward()
        step.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 6.5  # forecasting the mean costs 8


@KINDS
def test_without_gaps_the_tokens_are_made_of_the_forecast_alone(kind):
    batch = make_batch()
    model = build(kind)
    features, _ = model.features(batch, scale_context(batch.target, batch.observed, batch.offset))
    features.sum().backward()
    assert model.embed.weight.grad[:, H:].abs().sum() > 0
    model.zero_grad()
    whole = replace(batch, observed=torch.ones_like(batch.observed))
    features, _ = model.features(whole, scale_context(whole.target, whole.observed, whole.offset))
    features.sum().backward()
    assert model.embed.weight.grad[:, H:].abs().sum() == 0


@KINDS
def test_errors_count_in_the_units_of_their_target_where_these_are_known(kind):
    batch = make_batch()
    labels = Labels(target=torch.randn(B, H, V), observed=torch.ones(B, H, V).bool(), weight=torch.ones(B, H))
    lively = replace(batch, target=10 * batch.target), replace(labels, target=10 * labels.target)
    for units, ratio in (((), 1.0), ((2.0, 2.0), 10.0)):
        model = build(kind, units=units)
        once, many = (model.loss_sum(*pair)[0] for pair in ((batch, labels), lively))
        torch.testing.assert_close(many / once, torch.tensor(ratio), rtol=1e-3, atol=0)


def test_the_moving_average_is_centred_and_repeats_the_edges():
    values = torch.tensor([[1.0, 2.0, 6.0, 3.0]])
    expected = torch.tensor([[4 / 3, 3.0, 11 / 3, 4.0]])
    torch.testing.assert_close(moving_average(values, 3), expected)


@pytest.mark.parametrize(
    ("config", "options", "name"),
    [
        (MixerConfig, {"learned_tokens": -1}, "learned_tokens=-1"),
        (TimeConfig, {"kernel": 4}, "kernel=4"),
        (MixerConfig, {"units": (0.0,)}, "units="),
    ],
)
def test_options_that_make_no_model_are_named(config, options, name):
    with pytest.raises(ValueError, match=name):
        config(input_length=L, horizon=H, **options)
