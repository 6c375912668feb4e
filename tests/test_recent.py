"""The regression that every forecast solves on its own past: what it finds, what it reads, and when it takes part."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from xlstm_forecast import XLSTMForecaster
from xlstm_forecast.backbone import Recent
from xlstm_forecast.backbone.features import Shape
from xlstm_forecast.backbone.recent import Squash, ridge

SHAPE = Shape(horizon=6, short=6, long=1)
LEVELS = np.array([0.05, 0.25, 0.5, 0.75, 0.95])


def driven(seasons=120, noise=0.1, seed=0, since=0):
    """(T,) a series of seasons of 6 steps that follow their own input a little and, from a season on, that of their
    second step much; the input (T, 1)."""
    rng = np.random.default_rng(seed)
    known = rng.standard_normal(seasons * 6)
    told = np.repeat(known.reshape(-1, 6)[:, 1] * (np.arange(seasons) >= since), 6)
    profile = np.tile(np.array([0.0, 1.0, 3.0, 2.0, 1.0, 0.5]), seasons)
    return 10 + profile + 2 * told + known + noise * rng.standard_normal(seasons * 6), known[:, None]


def last(values, known, levels=LEVELS):
    """The forecast of the last season from what precedes it."""
    return Recent(SHAPE).quantiles(values[:-6], known, levels)


def frame(values, known, **more):
    return pd.DataFrame({"ds": np.arange(len(values)), "y": values, "x": known[:, 0], **more})


def small(**arguments):
    defaults = {"horizon": 6, "season_length": 6, "id_col": None, "future": ["x"], "networks": 1, "max_steps": 2}
    return XLSTMForecaster(**defaults | arguments)


def test_every_step_reads_the_inputs_of_all_steps_of_the_horizon():
    errors = []
    for seed in range(5):
        values, known = driven(seed=seed)
        errors.append(np.abs(last(values, known)[:, 2] - values[-6:]).mean())
    assert np.mean(errors) < 0.35  # the input moves the series by 1.6 on average


def test_a_relation_that_began_lately_is_found_without_a_fit():
    moved, missed = [], []
    for seed in range(5):
        values, known = driven(seasons=400, seed=seed, since=340)
        moved.append(np.abs(last(values, known)[:, 2] - values[-6:]).mean())
        unaware = 10 + np.array([0.0, 1.0, 3.0, 2.0, 1.0, 0.5]) + known[-6:, 0]
        missed.append(np.abs(unaware - values[-6:]).mean())
    assert np.mean(moved) < 0.7 * np.mean(missed)


def test_forecasts_follow_a_change_of_unit_of_the_series_and_of_its_inputs():
    values, known = driven()
    expected = 1000 * last(values, known) - 5
    assert np.allclose(last(1000 * values - 5, 3 * known + 1e4), expected, rtol=1e-6)


def test_quantiles_are_ordered_and_cover_what_they_say():
    inside = []
    for seed in range(40):
        values, known = driven(noise=1.0, seed=seed)
        found = last(values, known)
        assert (np.diff(found, axis=1) >= 0).all()
        inside.append((found[:, 0] <= values[-6:]) & (values[-6:] <= found[:, -1]))
    assert 0.8 < np.mean(inside) < 0.99  # of 90 %


def test_missing_values_and_missing_inputs_cost_little():
    values, known = driven()
    whole = last(values, known)
    rng = np.random.default_rng(1)
    values = np.where(rng.random(len(values)) < 0.05, np.nan, values)
    known = np.where(rng.random(known.shape) < 0.02, np.nan, known)
    assert np.abs(last(values, known) - whole)[:, 2].max() < 0.6  # the series deviates by 2.4


def test_one_enormous_spike_moves_the_forecast_by_less_than_a_deviation():
    values, known = driven()
    calm = last(values, known)[:, 2]
    values[-200] = 1e6
    assert np.abs(last(values, known)[:, 2] - calm).max() < np.std(driven()[0])


def test_a_constant_series_comes_back_exactly():
    _, known = driven()
    assert (last(np.full(len(known), 3.7), known) == 3.7).all()


def test_a_past_that_is_too_short_has_no_regression():
    values, known = driven()
    regression = Recent(SHAPE)
    enough = 6 + regression.behind + 55 * 6
    assert regression.quantiles(values[-6 - enough : -6], known[-6 - enough :], LEVELS) is not None
    assert regression.quantiles(values[-5 - enough : -6], known[-5 - enough :], LEVELS) is None
    assert regression.has_past(enough)
    assert not regression.has_past(enough - 1)
    assert regression.quantiles(np.full(900, np.nan), np.zeros((906, 1)), LEVELS) is None


@pytest.mark.parametrize(
    ("horizon", "short", "long"), [(1, 24, 168), (30, 24, 168), (5, 7, 365), (3, 1, 1), (13, 1, 52), (7, 6, 9)]
)
def test_any_horizon_and_any_seasons_are_forecast(horizon, short, long):
    regression = Recent(Shape(horizon, short, long))
    rng = np.random.default_rng(0)
    length = regression.gap + 60 * short + regression.behind
    history, known = rng.standard_normal(length), rng.standard_normal((length + horizon, 2))
    found = regression.quantiles(history, known, LEVELS)
    assert found is not None
    assert found.shape == (horizon, 5)
    assert np.isfinite(found).all()
    known[: length - regression.reach] = np.nan
    history[: length - regression.reach] = np.nan
    again = regression.quantiles(history, known, LEVELS)
    assert again is not None
    assert np.array_equal(found, again)


def test_too_many_inputs_or_steps_are_not_solved_for():
    assert Recent(Shape(24, 24, 168)).suits(2)
    assert not Recent(Shape(24, 24, 168)).suits(0)
    assert not Recent(Shape(24, 24, 168)).suits(30)
    assert not Recent(Shape(720, 24, 168)).suits(1)


def test_squashing_is_undone_exactly_enough():
    values = np.random.default_rng(0).standard_cauchy((500, 2)) * [1, 1e6]
    squash = Squash.of(values)
    assert np.allclose(squash.undo(squash(values)), values, rtol=1e-9)


def test_few_and_many_rows_give_the_same_ridge():
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((41, 40))
    labels = rng.standard_normal((40, 3))
    seen = np.ones_like(labels, dtype=bool)
    wide = ridge(np.concatenate([inputs, np.zeros((41, 1))], 1), labels, seen, 2.0)
    tall = ridge(inputs, labels, seen, 2.0)
    assert np.allclose(wide[0], tall[0])
    assert np.allclose(wide[1], tall[1])


@pytest.fixture(scope="module")
def fitted():
    values, known = driven()
    return small().fit(frame(values, known)[:-6], verbose=False), values, known


def test_the_default_takes_what_the_regression_finds(fitted):
    forecaster, values, known = fitted
    summary = forecaster.summary()
    assert summary["weights"]["recent"] > 0.5
    assert summary["validation"]["recent"] < 0.7 * summary["validation"]["seasonal_naive"]
    future = frame(values, known)[-6:].drop(columns="y")
    found = forecaster.predict(future_df=future)
    assert np.abs(found["forecast"] - values[-6:]).mean() < 0.7


def test_a_loaded_forecaster_solves_the_same(fitted, tmp_path):
    forecaster, values, known = fitted
    forecaster.save(tmp_path / "f.ckpt")
    future = frame(values, known)[-6:].drop(columns="y")
    again = XLSTMForecaster.load(tmp_path / "f.ckpt").predict(frame(values, known)[:-6], future)
    pd.testing.assert_frame_equal(forecaster.predict(future_df=future), again)


def test_windows_are_solved_apart_and_read_nothing_from_their_origin_on(fitted):
    forecaster, values, known = fitted
    panel = forecaster._to_panel(frame(values, known))
    origin = np.array([600, 660, 714])
    whole = forecaster._member("recent", panel, np.zeros(3, np.int64), origin, (0.1, 0.5, 0.9))
    poisoned = values.copy()
    poisoned[660:] = np.nan
    other = known.copy()
    other[666:] = 1e9
    panel = forecaster._to_panel(frame(poisoned, other))
    alone = forecaster._member("recent", panel, np.zeros(1, np.int64), origin[1:2], (0.1, 0.5, 0.9))
    assert (alone == whole[1:2]).all()


def test_windows_without_past_enough_get_the_backbone(fitted):
    forecaster, values, known = fitted
    panel = forecaster._to_panel(frame(values, known))
    at = (panel, np.zeros(2, np.int64), np.array([40, 660]), (0.1, 0.5, 0.9))
    recent, backbone = forecaster._member("recent", *at), forecaster.linear_.on(panel, at[-1])(*at[1:3])
    assert np.allclose(recent[0], backbone[0])
    assert not np.allclose(recent[1], backbone[1])


def test_it_takes_no_part_without_inputs_that_help_or_time_to_solve_it():
    values, known = driven()
    noise = np.random.default_rng(5).standard_normal((len(values), 1))
    assert "recent" not in small().fit(frame(values[:300], known[:300]), verbose=False).weights_  # too short
    assert "recent" not in small(future=[]).fit(frame(values, known)[["ds", "y"]], verbose=False).weights_
    assert "recent" not in small(time_limit=1.0).fit(frame(values, known), verbose=False).weights_
    without = small().fit(frame(values, noise), verbose=False)
    assert without.weights_.get("recent", 0.0) < 0.5
