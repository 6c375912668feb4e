"""The backbone on histories of hardly any values, and on values far from all others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from test_backbone import LEVELS, flat

from xlstm_forecast import XLSTMForecaster
from xlstm_forecast.backbone import Backbone, BackboneConfig, FittedBackbone
from xlstm_forecast.backbone.windows import clean


@pytest.mark.parametrize("n", [40, 100, 200, 365])
@pytest.mark.parametrize("spike", [800.0, -5000.0, 99999.0])
def test_one_value_far_from_all_others_counts_as_missing(n, spike):
    rng = np.random.default_rng(0)
    t = np.arange(n + 7)
    full = 50 + 5 * np.sin(2 * np.pi * t / 7) + 0.5 * rng.standard_normal(n + 7)
    errors = []
    for value in (full[n // 2], spike):
        series = full[:n].copy()
        series[n // 2] = value
        fitted = Backbone(BackboneConfig(horizon=7, freq="D")).fit(*flat([series]))
        found = fitted.quantiles(series[None], np.array([0.1, 0.5, 0.9]), np.array([0]))[0]
        errors.append((np.abs(found[:, 1] - full[n:]).mean(), (found[:, 2] - found[:, 0]).mean()))
    assert errors[1][0] < 1.15 * errors[0][0] + 0.05
    assert errors[1][1] < 1.3 * errors[0][1]


@pytest.mark.parametrize(
    "series",
    [
        np.exp(1.5 * np.random.default_rng(0).standard_normal(150)),  # heavy tails
        np.random.default_rng(1).poisson(0.3, 150) * 40.0,  # demand now and then
        np.exp(0.1 * np.arange(60)),  # growth
        np.r_[np.zeros(60), 100.0],  # no range to judge by
        np.r_[np.random.default_rng(2).standard_normal(12), 1e4],  # too few values to judge by
        np.r_[np.zeros(50), np.full(50, 1e4)] + np.random.default_rng(3).standard_normal(100),  # another level
    ],
)
def test_values_that_belong_to_a_series_are_kept(series):
    assert np.isinf(clean(series, np.array([0, len(series)]))[1]).all()


@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("count", [1, 2])
def test_the_band_of_a_new_series_of_few_values_is_as_wide_as_other_series_change(positive, count):
    rng = np.random.default_rng(3)
    walks = np.cumsum(0.1 * rng.standard_normal((600, 120)), 1) + 2 * rng.standard_normal((600, 1))
    walks = np.exp(walks) if positive else 50 * walks
    fitted = Backbone(BackboneConfig(horizon=6, freq="D")).fit(*flat(list(walks[:60])))
    new = walks[60:, :count]
    bands = fitted.quantiles(new, np.array([0.1, 0.9]))
    inside = (walks[60:, count : count + 6] >= bands[..., 0]) & (walks[60:, count : count + 6] <= bands[..., 1])
    assert inside.mean(0).min() > 0.65
    assert inside.mean(0).max() < 0.92
    if positive:  # as wide in parts of the value
        np.testing.assert_allclose(fitted.quantiles(new * 1000, np.array([0.1, 0.9])) / 1000, bands, rtol=1e-9)
    old = replace(fitted, alone=np.zeros((2, 6)))
    early, index = walks[:60, :2], np.arange(60)  # windows that were fitted on and judged
    np.testing.assert_array_equal(fitted.quantiles(early, LEVELS, index), old.quantiles(early, LEVELS, index))
    flat_one = fitted.quantiles(walks[:1, :1], LEVELS, index[:1])[0]
    assert (np.diff(flat_one, axis=1) > 0).all()  # but one value tells nothing of its series, fitted or not
    same = fitted.quantiles(np.repeat(new[:, :1], 9, 1), np.array([0.1, 0.9]))
    np.testing.assert_array_equal(same[..., 0], same[..., 1])  # nine values that do not change will not


def test_the_band_around_a_single_value_is_saved():
    fitted = Backbone(BackboneConfig(horizon=12, freq="MS")).fit(*flat([5 + np.sin(np.arange(200.0))] * 3))
    arrays, text = fitted.to_arrays()
    again = FittedBackbone.from_arrays(arrays, text)
    one = np.array([[5.0]])
    np.testing.assert_array_equal(again.quantiles(one, LEVELS), fitted.quantiles(one, LEVELS))
    assert np.ptp(again.quantiles(one, LEVELS)) > 0


@pytest.mark.parametrize(("n", "horizon", "freq"), [(25, 1, "MS"), (30, 6, "MS"), (49, 1, "h")])
def test_what_one_window_alone_can_tell_decides_nothing(n: int, horizon: int, freq: str) -> None:
    """Features that first exist in one training window had coefficients of hundreds, and forecasts of ten ranges."""
    for seed in range(12):
        values = 100 + np.random.default_rng(seed).normal(0, 5, n)
        df = pd.DataFrame({"unique_id": "a", "ds": pd.date_range("2020-01-01", periods=n, freq=freq), "y": values})
        forecast = XLSTMForecaster(horizon=horizon, model="linear").fit(df, verbose=False).predict().forecast
        room = 0.5 * np.ptp(values)
        assert forecast.between(values.min() - room, values.max() + room).all()


def test_what_was_seen_before_the_context_alone_is_carried_on() -> None:
    values = 1000 + np.random.default_rng(0).normal(0, 1, 500)
    values[-130:] = np.nan  # a context of daily values is shorter
    df = pd.DataFrame({"unique_id": "a", "ds": pd.date_range("2020-01-01", periods=500), "y": values})
    forecast = XLSTMForecaster(horizon=14, model="linear").fit(df, verbose=False).predict()
    np.testing.assert_allclose(forecast.forecast, values[369], atol=0.1)
    assert (forecast["q0.9"] - forecast["q0.1"] > 1).all()


def test_a_series_that_pauses_for_years_leaves_the_others_their_forecasts() -> None:
    """Two values, 14 years without any, then 17: the first held-back windows of that series have no past to fit."""
    rng = np.random.default_rng(0)
    paused, other = 100 + np.cumsum(rng.standard_normal((2, 375)), 1)
    paused[2:168] = np.nan
    values, offsets = np.concatenate([paused, other]), np.array([0, 375, 750])
    fitted = Backbone(BackboneConfig(horizon=12, freq="MS")).fit(values, offsets)
    found = fitted.forecast(values, offsets, np.arange(2), np.full(2, 375), np.array([0.1, 0.5, 0.9]))
    assert np.abs(found[..., 1] - [[paused[-1]], [other[-1]]]).max() < 15
