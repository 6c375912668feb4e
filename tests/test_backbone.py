"""The closed-form backbone on data whose best forecast is known, and the rules that every fit has to keep."""

from __future__ import annotations

import argparse
import os
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xlstm_forecast.backbone import Backbone, BackboneConfig, FittedBackbone, gather
from xlstm_forecast.backbone.calendar import fit_calendar
from xlstm_forecast.backbone.climatology import climatology
from xlstm_forecast.backbone.features import standing_drift
from xlstm_forecast.backbone.regression import near_best, pooled_paths
from xlstm_forecast.backbone.seasons import confirm, repeats, strength, table
from xlstm_forecast.backbone.spread import GRID, interpolate, normal_quantiles, weighted_quantiles
from xlstm_forecast.backbone.windows import clean, fill, gather_labels, rolling_splits

LEVELS = np.arange(1, 10) / 10


def climate(rows: Any, available: Any, season: int, *rest: Any, **options: Any) -> Any:
    """`climatology` with the drift that stands out, as forecasts have it."""
    return climatology(rows, available, standing_drift(rows, available, season), season, *rest, **options)


def flat(series):
    return np.concatenate(series), np.cumsum([0] + [len(s) for s in series])


def rolled(series, horizon, freq, windows, known=None, starts=None):
    """Fit before the last `windows` horizons, forecast them all: labels, quantiles (n, H, 9), origins, the fit."""
    cut = [s[: len(s) - windows * horizon] for s in series]
    ends = [len(c) for c in cut]
    values, offsets = flat(series)
    index = np.repeat(np.arange(len(series)), windows)
    origin = np.concatenate([e + horizon * np.arange(windows) for e in ends])
    train_known = None
    if known is not None:
        train_known = np.concatenate([known[a : a + e] for a, e in zip(offsets[:-1], ends, strict=True)])
    before, at = flat(cut)
    fitted = Backbone(BackboneConfig(horizon=horizon, freq=freq)).fit(before, at, starts, train_known)
    quantiles = fitted.forecast(values, offsets, index, origin, LEVELS, starts=starts, known=known)
    return gather_labels(values, offsets, index, origin, horizon), quantiles, (index, origin), fitted


def reloaded(fitted):
    arrays, text = fitted.to_arrays()
    return FittedBackbone.from_arrays(arrays, text)


def mae(labels, quantiles):
    return float(np.nanmean(np.abs(labels - quantiles[..., 4])))


def coverage(labels, quantiles):
    return float(((labels >= quantiles[..., 0]) & (labels <= quantiles[..., 8])).mean())


def seasonal_series(n=600, m=12, noise=1.0, seed=0, count=6):
    rng = np.random.default_rng(seed)
    t = np.arange(n)
    return [10 * np.sin(2 * np.pi * t / m + i) + 50 * i + noise * rng.standard_normal(n) for i in range(count)]


# ---- forecasts whose best is known ---------------------------------------------------------------------------------


def test_an_autoregression_is_forecast_almost_as_well_as_with_its_true_coefficient():
    rng = np.random.default_rng(0)
    series = []
    for _ in range(10):
        x = np.zeros(500)
        for t in range(1, 500):
            x[t] = 0.8 * x[t - 1] + rng.standard_normal()
        series.append(x + 100)
    labels, quantiles, (index, origin), _ = rolled(series, 6, None, 10)
    last = np.array([series[i][o - 1] for i, o in zip(index, origin, strict=True)])[:, None]
    oracle = np.abs(labels - (100 + (last - 100) * 0.8 ** np.arange(1, 7))).mean()
    assert mae(labels, quantiles) < 1.04 * oracle
    assert mae(labels, quantiles) < 0.9 * np.abs(labels - last).mean()
    assert 0.74 < coverage(labels, quantiles) < 0.86


def test_a_noisy_season_is_forecast_to_near_the_noise_with_honest_bands():
    labels, quantiles, _, fitted = rolled(seasonal_series(), 12, "MS", 8)
    assert fitted.sizes.short == 12
    assert mae(labels, quantiles) < 1.12 * np.sqrt(2 / np.pi)
    assert 0.74 < coverage(labels, quantiles) < 0.86


def test_a_random_walk_stays_at_its_last_value():
    rng = np.random.default_rng(1)
    series = [np.cumsum(rng.standard_normal(400)) for _ in range(8)]
    labels, quantiles, (index, origin), _ = rolled(series, 10, "D", 10)
    last = np.array([series[i][o - 1] for i, o in zip(index, origin, strict=True)])[:, None]
    assert mae(labels, quantiles) < 1.02 * np.abs(labels - last).mean()


def test_a_trend_with_a_season_is_carried_on():
    t = np.arange(300)
    rng = np.random.default_rng(0)
    series = [0.5 * t + 8 * np.sin(2 * np.pi * t / 12) + rng.standard_normal(300) for _ in range(5)]
    labels, quantiles, (index, origin), _ = rolled(series, 12, "MS", 5)
    naive = np.stack([series[i][o - 12 : o] for i, o in zip(index, origin, strict=True)])
    assert mae(labels, quantiles) < 0.3 * np.abs(labels - naive).mean()


def test_zeros_that_pile_up_are_a_floor_and_fill_the_low_quantiles():
    rng = np.random.default_rng(0)
    series = [np.maximum(rng.standard_normal(800) * 3 - 2, 0) for _ in range(4)]
    _, quantiles, _, fitted = rolled(series, 24, "h", 5)
    assert (fitted.floor == 0).all()
    assert quantiles.min() == 0
    assert (quantiles[..., 1] == 0).mean() > 0.6
    assert quantiles[..., 8].mean() == pytest.approx(np.quantile(np.concatenate(series), 0.9), rel=0.35)


@pytest.mark.parametrize("value", [0.0, 3.5, -1e8])
def test_constant_series_are_forecast_exactly_and_without_width(value):
    other = seasonal_series(count=1, n=120)[0]
    _, quantiles, _, _ = rolled([np.full(120, value), other], 6, "MS", 1)
    np.testing.assert_array_equal(quantiles[0], value)
    assert np.isfinite(quantiles).all()
    assert (quantiles[1, :, 8] > quantiles[1, :, 0]).all()


@pytest.mark.parametrize(("a", "b"), [(1e8, 0.0), (1e-8, 0.0), (3.0, 1e6), (0.5, -40.0)])
def test_shifting_and_scaling_a_series_shifts_and_scales_its_forecasts(a, b):
    series = seasonal_series(n=240, count=4)
    _, base, _, _ = rolled(series, 12, "MS", 2)
    _, moved, _, _ = rolled([a * s + b for s in series], 12, "MS", 2)
    np.testing.assert_allclose((moved - b) / a, base, rtol=2e-5, atol=2e-5 * 60)


def test_values_from_the_origin_on_are_never_read():
    series = seasonal_series(n=300, count=3)
    values, offsets = flat(series)
    cut = [s[:250] for s in series]
    fitted = Backbone(BackboneConfig(horizon=12, freq="MS")).fit(*flat(cut))
    index, origin = np.array([0, 1, 2, 1]), np.array([250, 250, 260, 288])
    expected = fitted.forecast(values, offsets, index, origin, LEVELS)
    for row, (i, o) in enumerate(zip(index, origin, strict=True)):
        spoilt = [s.copy() for s in series]
        for k, s in enumerate(spoilt):
            s[o if k == i else 0 :] = 1e9
        poisoned, _ = flat(spoilt)
        got = fitted.forecast(poisoned, offsets, index[row : row + 1], origin[row : row + 1], LEVELS)
        np.testing.assert_allclose(got[0], expected[row], rtol=1e-13)


def test_gaps_cost_little():
    series = seasonal_series(n=600)
    rng = np.random.default_rng(3)
    holed = [np.where(rng.random(len(s)) < 0.2, np.nan, s) for s in series]
    _, clean_quantiles, at, _ = rolled(series, 12, "MS", 4)
    values, offsets = flat(series)
    labels = gather_labels(values, offsets, at[0], at[1], 12)
    _, quantiles, _, _ = rolled(holed, 12, "MS", 4)
    assert np.isfinite(quantiles).all()
    assert mae(labels, quantiles) < 1.15 * mae(labels, clean_quantiles)


@pytest.mark.parametrize("length", [1, 2, 3, 8, 15])
def test_series_too_short_to_learn_from_get_the_naive_forecast_with_some_width(length):
    series = np.arange(1.0, length + 1) ** 2 % 7
    fitted = Backbone(BackboneConfig(horizon=6, freq="MS")).fit(series, np.array([0, length]))
    quantiles = fitted.quantiles(series[None], LEVELS, np.array([0]))
    assert np.isfinite(quantiles).all()
    assert np.abs(quantiles[..., 4]).max() <= 3 * np.abs(series).max()
    if length > 2:
        assert (quantiles[..., 8] > quantiles[..., 0]).all()


def test_two_seasons_and_no_more_are_repeated():
    rng = np.random.default_rng(0)
    series = [np.tile([0.0, 10, 30, 5], 3)[:11] + 0.1 * rng.standard_normal(11) + 100 for _ in range(3)]
    labels, quantiles, (index, _), _ = rolled(series, 3, "QS", 1)
    naive = np.stack([series[i][4:7] for i in index])
    assert mae(labels, quantiles) < 2 * np.abs(labels - naive).mean() + 0.5


def test_ragged_and_empty_series_do_not_disturb_the_others():
    series = [*seasonal_series(n=300, count=3), np.array([5.0, 6.0]), np.full(40, np.nan)]
    values, offsets = flat(series)
    fitted = Backbone(BackboneConfig(horizon=6, freq="MS")).fit(values, offsets)
    ends = np.diff(offsets)
    quantiles = fitted.forecast(values, offsets, np.arange(5), ends, LEVELS)
    assert np.isfinite(quantiles).all()
    assert 3 < quantiles[3, 0, 4] < 8


def test_a_series_that_was_not_fitted_is_forecast_from_its_history_alone():
    series = seasonal_series(n=300, count=4)
    values, offsets = flat(series[:3])
    fitted = Backbone(BackboneConfig(horizon=12, freq="MS")).fit(values, offsets)
    history = 1000 * series[3][None, :288]
    quantiles = fitted.quantiles(history, LEVELS)
    assert np.abs(quantiles[0, :, 4] / 1000 - series[3][288:]).mean() < 1.5


def test_quantiles_are_ordered_whatever_the_order_of_the_levels():
    series = seasonal_series(n=200, count=3)
    values, offsets = flat(series)
    fitted = Backbone(BackboneConfig(horizon=6, freq="MS")).fit(values, offsets)
    mixed = np.array([0.9, 0.01, 0.5, 0.995, 0.2])
    got = fitted.forecast(values, offsets, np.arange(3), np.full(3, 200), mixed)
    assert (np.diff(got[..., np.argsort(mixed)], axis=-1) >= 0).all()
    np.testing.assert_allclose(
        got[..., 2], fitted.forecast(values, offsets, np.arange(3), np.full(3, 200), np.array([0.5]))[..., 0]
    )


def test_levels_outside_of_zero_and_one_are_refused():
    fitted = Backbone(BackboneConfig(horizon=2)).fit(np.arange(30.0), np.array([0, 30]))
    with pytest.raises(ValueError, match="between 0 and 1"):
        fitted.quantiles(np.ones((1, 5)), np.array([0.5, 1.0]))


def test_data_without_a_single_value_is_refused():
    with pytest.raises(ValueError, match="no observed value"):
        Backbone(BackboneConfig(horizon=2)).fit(np.full(9, np.nan), np.array([0, 9]))


def test_saving_and_loading_changes_no_forecast():
    rng = np.random.default_rng(0)
    known = rng.standard_normal((600, 2))
    series = [np.cumsum(rng.standard_normal(300)), 3 * known[300:, 0] + rng.standard_normal(300)]
    values, offsets = flat(series)
    fitted = Backbone(BackboneConfig(horizon=5)).fit(values, offsets, known=known)
    again = reloaded(fitted)
    index, origin = np.array([0, 1]), np.array([295, 290])
    np.testing.assert_array_equal(
        fitted.forecast(values, offsets, index, origin, LEVELS, known=known),
        again.forecast(values, offsets, index, origin, LEVELS, known=known),
    )


def test_paths_and_offsets_make_up_the_quantiles_where_climatology_has_no_weight():
    values, offsets = flat([np.cumsum(np.random.default_rng(0).standard_normal(300))])
    fitted = Backbone(BackboneConfig(horizon=4)).fit(values, offsets)
    history = gather(values, offsets, np.array([0]), np.array([300]), fitted.history)
    paths = fitted.paths(history, np.array([0]))
    model = paths.median[..., None] + paths.sigma[..., None] * fitted.offsets(np.array([0]), LEVELS)
    climate = fitted.climate(history, LEVELS, np.array([0]))
    share = fitted.blend[0][:, None]
    expected = np.where(np.isfinite(climate), model + share * (climate - model), model)
    np.testing.assert_allclose(fitted.quantiles(history, LEVELS, np.array([0])), np.sort(expected, -1), rtol=1e-12)


def test_fitting_twice_gives_the_same_and_touches_no_global_random_state():
    series = seasonal_series(n=200, count=3)
    state: Any = np.random.get_state()
    before = state[1].copy()
    first, second = (rolled(series, 6, "MS", 1)[1] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    after: Any = np.random.get_state()
    np.testing.assert_array_equal(before, after[1])


# ---- covariates and calendar ---------------------------------------------------------------------------------------


def driven(n=900, seed=0):
    rng = np.random.default_rng(seed)
    known = np.cumsum(rng.standard_normal((n, 1)), 0) * 0.3 + rng.standard_normal((n, 1))
    t = np.arange(n)
    return 5 * np.sin(2 * np.pi * t / 24) + 4 * known[:, 0] + rng.standard_normal(n), known


def test_a_known_driver_of_the_series_is_used():
    series, known = driven()
    labels, without, _, _ = rolled([series], 24, "h", 8)
    _, given, _, _ = rolled([series], 24, "h", 8, known=known)
    assert mae(labels, given) < 0.5 * mae(labels, without)


def test_random_covariates_cost_at_most_one_percent():
    errors = []
    for seed in range(4):
        series, known = driven(seed=seed)
        noise = np.random.default_rng(seed + 9).standard_normal((len(series), 3))
        labels, given, _, _ = rolled([series], 24, "h", 8, known=known)
        _, noisy, _, _ = rolled([series], 24, "h", 8, known=np.concatenate([known, noise], 1))
        errors.append(mae(labels, noisy) / mae(labels, given))
    assert np.mean(errors) < 1.01


def test_a_forecast_without_the_inputs_of_the_fit_says_what_is_missing():
    series, known = driven()
    fitted = Backbone(BackboneConfig(horizon=24, freq="h")).fit(series, np.array([0, 900]), known=known)
    with pytest.raises(ValueError, match="known: the fit had 1 known-future inputs"):
        fitted.quantiles(series[None], LEVELS)


def holiday_series(n=2200, seed=0):
    rng = np.random.default_rng(seed)
    dates = np.datetime64("2010-01-01") + np.arange(n)
    weekday = (dates.astype("datetime64[D]").astype(int) + 3) % 7
    month_day = np.array([str(d)[5:] for d in dates])
    effect = np.where(np.isin(month_day, ["12-25", "01-01", "07-04", "11-11", "05-01"]), 0.6, 1.0)
    return (100 + 10 * (weekday < 5) + 2 * rng.standard_normal(n)) * effect


def test_holidays_are_found_with_true_dates_and_not_with_invented_ones():
    values = holiday_series()
    offsets, true = np.array([0, len(values)]), np.array(["2010-01-01"], dtype="datetime64[s]")
    calendar, _ = fit_calendar(values, offsets, true, "D")
    assert calendar is not None
    factors = calendar.at(np.array(["2016-12-25", "2016-12-20", "2016-07-04"], dtype="datetime64[D]"))
    np.testing.assert_allclose(factors, [0.6, 1.0, 0.6], atol=0.12)
    noise = 100 + 10 * np.random.default_rng(0).standard_normal(len(values))
    assert fit_calendar(noise, offsets, true, "D").calendar is None


def test_the_report_tells_whether_a_calendar_was_accepted_and_why():
    holidays, noise = holiday_series(), 100 + 10 * np.random.default_rng(0).standard_normal(1461)
    dated = np.array(["2010-01-01"], dtype="datetime64[s]")
    cases: tuple[tuple[Any, Any, str, bool, str], ...] = (
        (holidays, dated, "D", True, "of the validation error is left"),
        (noise, dated, "D", False, "of the variation on dates it has not seen, where 0.95 is the most"),
        (noise[:500], dated, "D", False, "0 of 1 series have 1100 values, all positive"),
        (noise, dated, "h", False, "steps of one day, week or month"),
        (noise, None, "D", False, "no dates"),
    )
    for values, starts, freq, accepted, why in cases:
        fitted = Backbone(BackboneConfig(horizon=14, freq=freq)).fit(values, np.array([0, len(values)]), starts)
        (told,) = [stage for stage in fitted.report if stage["stage"] == "calendar"]
        assert told["accepted"] is accepted
        assert why in told["why"]


def test_an_accepted_calendar_lowers_the_error_on_holidays_and_asks_for_stamps():
    values = holiday_series()
    starts = np.array(["2010-01-01"], dtype="datetime64[s]")
    labels, quantiles, _, fitted = rolled([values], 28, "D", 10, starts=starts)
    _, plain, _, _ = rolled([values], 28, "D", 10)
    assert fitted.needs_stamps
    assert mae(labels, quantiles) < 0.9 * mae(labels, plain)
    with pytest.raises(ValueError, match="stamp of each first forecast step"):
        fitted.quantiles(values[None], LEVELS)
    again = reloaded(fitted)
    when = np.array(["2015-12-20"], dtype="datetime64[D]")
    np.testing.assert_array_equal(
        fitted.quantiles(values[None], LEVELS, when=when), again.quantiles(values[None], LEVELS, when=when)
    )


# ---- the parts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("freq", "seasons"),
    [("15min", (96, 672)), ("5min", (288, 2016)), ("h", (24, 168)), ("4h", (6, 42)), ("D", (7, 364)), ("B", (5, 260)),
     ("10D", (1, 37)), ("W-THU", (1, 52)), ("MS", (12, 1)), ("ME", (12, 1)), ("QS", (4, 1)), ("YS", (1, 1)),
     ("MS+14D", (12, 1)), ("QS-JAN+14D", (4, 1)), ("2D", (1, 183)), ("36h", (1, 244)), ("18h", (1, 487)),
     ("5h", (1, 34)), (None, (1, 1))],
)  # fmt: skip
def test_seasons_follow_from_the_length_of_a_step(freq, seasons):
    assert table(freq) == seasons


def test_an_unknown_frequency_is_named():
    with pytest.raises(ValueError, match="'fortnight'"):
        table("fortnight")


def test_a_season_is_confirmed_on_the_data_and_dropped_from_noise():
    rng = np.random.default_rng(0)
    season = seasonal_series(n=240, count=3)
    noise = [np.cumsum(rng.standard_normal(240)) for _ in range(10)]
    assert confirm(season, "MS", 12) == (12, 1)
    assert confirm(noise, "MS", 12) == (1, 1)
    assert confirm(season, None, 12) == (12, 1)
    assert confirm(noise, None, 12) == (1, 1)
    assert strength(season, 12) > 0.95
    assert abs(strength(noise, 12)) < 0.1


SHAPE = 10 * np.random.default_rng(3).standard_normal(52)


def short_of_a_season(season, length, noise=0.1):
    return 100 + SHAPE[np.arange(length) % season] + noise * np.random.default_rng(0).standard_normal(length)


@pytest.mark.parametrize(("freq", "season", "length", "horizon"), [("h", 24, 42, 24), ("W", 52, 80, 30)])
def test_a_season_that_leaves_no_horizon_to_fit_is_repeated_where_the_data_repeat(freq, season, length, horizon):
    values, offsets = short_of_a_season(season, length), np.array([0, length])
    fitted = Backbone(BackboneConfig(horizon=horizon, freq=freq)).fit(values, offsets)
    median = fitted.quantiles(values[None], LEVELS, np.array([0]))[0, :, 4]
    assert (fitted.sizes.short, fitted.sizes.long) == (season, 1)
    assert np.abs(median - 100 - SHAPE[np.arange(length, length + horizon) % season]).max() < 1
    trend = np.arange(length) + np.random.default_rng(0).standard_normal(length)
    assert Backbone(BackboneConfig(horizon=horizon, freq=freq)).fit(trend, offsets).sizes.short == 1


def test_an_explicit_season_stands_where_one_and_no_horizon_was_seen_and_one_is_none():
    row = short_of_a_season(24, 30)
    given = Backbone(BackboneConfig(horizon=24, freq="h", season=24)).fit(row, np.array([0, 30]))
    assert given.sizes.short == 24
    assert np.abs(given.quantiles(row[None], LEVELS, np.array([0]))[0, :6, 4] - 100 - SHAPE[6:12]).max() < 1
    year = short_of_a_season(52, 160)
    plain, none = (
        Backbone(BackboneConfig(horizon=8, freq="W", season=s)).fit(year, np.array([0, 160])) for s in (None, 1)
    )
    assert (plain.sizes.short, plain.sizes.long) == (1, 52)
    assert (none.sizes.short, none.sizes.long) == (1, 1)


@pytest.mark.parametrize("period", [4, 7, 12, 24])
@pytest.mark.parametrize("power", [1, 2])
def test_a_trend_is_no_season(period: int, power: int) -> None:
    """The moving average of an even season is half a step off its middle, and its distance from a slope a constant."""
    step = np.arange(20.0 * period)
    path = 3.0 * step if power == 1 else 0.05 * step**2
    noise = np.random.default_rng(0).standard_normal((6, len(step)))
    assert strength([path + 3 * row for row in noise], period) < 0.03
    if power == 1 or period % 2:
        assert np.isnan(strength([path], period))  # nothing is left to judge by
    wave = 10 * np.sin(2 * np.pi * step / period)
    assert strength([path + wave + 0.1 * row for row in noise], period) > (0.95 if power == 1 else 0.5)
    assert strength([1e9 + 0.001 * wave], period) > 0.95
    assert np.isnan(strength([1e9 + path], period)) or power == 2


def test_values_repeat_where_those_a_season_apart_are_nearer_than_those_within_the_horizon():
    row = short_of_a_season(24, 42)
    assert repeats([row], 24, 24)
    assert not repeats([row[:35]], 24, 24)
    assert not repeats([np.arange(42.0)], 24, 24)
    assert not repeats([np.full(42, 5.0)], 24, 24)
    assert not repeats([np.full(42, np.nan)], 24, 24)
    assert repeats([np.where(np.arange(42) % 9 == 0, np.nan, row), row, row[:30]], 24, 24)


def test_the_report_names_what_was_shrunk_to():
    values, offsets = flat(seasonal_series(count=2))
    report = Backbone(BackboneConfig(horizon=6, freq="MS")).fit(values, offsets).report
    (told,) = [stage for stage in report if stage["stage"] == "pooled"]
    starts = {name: weight for name, weight in told.items() if name != "stage" and not name.startswith("penalty")}
    assert {"last value", "naive", "0.5 level fast + 0.5 naive"} <= starts.keys()
    assert sum(starts.values()) == pytest.approx(1, abs=0.01)


def test_gaps_take_the_value_one_season_before_and_short_histories_repeat_their_first_season():
    row = np.array([[np.nan, np.nan, 1.0, 2, 3, np.nan, 5, np.nan]])
    rows, available = fill(row, 3)
    np.testing.assert_array_equal(rows, [[2, 3, 1, 2, 3, 1, 5, 3]])
    assert available.tolist() == [6]
    assert fill(np.full((1, 4), np.nan), 2)[0].tolist() == [[0, 0, 0, 0]]


def test_sentinels_are_cleaned_and_heavy_tails_are_not():
    rng = np.random.default_rng(0)
    values = rng.standard_normal(2000)
    values[[5, 700]] = -9999
    cleaned, bounds = clean(values, np.array([0, 2000]))
    assert np.isnan(cleaned[[5, 700]]).all()
    assert np.isfinite(np.delete(cleaned, [5, 700])).all()
    assert np.isnan(clean(np.array([-9999.0, 1.0]), np.array([0, 2]), bounds)[0][0])
    assert np.isfinite(clean(rng.standard_t(3, 2000), np.array([0, 2000]))[0]).mean() > 0.998


@pytest.mark.parametrize(
    ("length", "horizon", "season"), [(40, 6, 1), (100, 12, 12), (300, 24, 12), (9000, 48, 24), (7, 4, 1)]
)
def test_validation_parts_follow_what_was_fitted_and_end_with_the_data(length, horizon, season):
    splits = rolling_splits(np.array([length, length // 2]), horizon, season)
    assert splits[-1].end.tolist() == [length, length // 2]
    for before, after in pairwise(splits):
        np.testing.assert_array_equal(before.end, after.fit_end)
    assert all((s.end - s.fit_end)[0] >= min(horizon, length) for s in splits)


def test_few_windows_leave_the_cheap_candidate_and_many_choose_the_best():
    rng = np.random.default_rng(0)
    cost = np.array([0.0, 2.0])

    def weight(n):
        return near_best(np.stack([1 + 0.2 * rng.random(n), 0.9 + 0.2 * rng.random(n)], 1), 1.0, cost)[1]

    assert weight(2) < 0.25
    assert weight(3000) > 0.9


def test_an_infinite_penalty_is_the_prior_and_none_is_least_squares():
    rng = np.random.default_rng(0)
    f, b = rng.standard_normal((500, 3)), np.array([0.2, -0.4, 1.0])
    prior = np.array([1.0, 0.0, 0.0])
    paths = pooled_paths(f.T @ f / 500, f.T @ (f @ b) / 500, [prior], (1e-12, np.inf))
    np.testing.assert_allclose(paths[1], prior)
    np.testing.assert_allclose(
        f @ paths[0] - f @ prior, (f - (f @ prior)[:, None]) @ paths[0] + f @ prior * (paths[0].sum() - 1)
    )


def test_quantiles_on_the_grid_are_interpolated_and_weighted():
    np.testing.assert_allclose(interpolate(normal_quantiles(GRID), LEVELS), normal_quantiles(LEVELS), atol=1e-9)
    values = np.repeat([[1.0], [5.0]], 200, 0).reshape(-1, 1)
    weights = np.repeat([[1.0], [0.0]], 200, 0).reshape(-1, 1)
    np.testing.assert_array_equal(weighted_quantiles(values, weights), 1.0)
    draws = np.random.default_rng(0).standard_normal((20_000, 1))
    np.testing.assert_allclose(weighted_quantiles(draws, np.ones_like(draws))[0], normal_quantiles(GRID), atol=0.08)


def test_a_candidate_that_fails_badly_once_is_left_out() -> None:
    """Its mean error is one standard error behind the best one's, however large."""
    rng = np.random.default_rng(0)
    good = 1 + 0.2 * rng.random(64)
    failing = 2 * good
    failing[3] = 500.0
    weight = near_best(np.stack([good, failing], 1), 1.0, np.array([1.0, 0.0]))
    assert weight[1] < 0.01
    same = near_best(np.stack([good, good[::-1]], 1), 1.0, np.array([1.0, 0.0]))
    assert same[1] > 0.6
    assert near_best(np.zeros((4, 2)), 1.0, np.zeros(2)).tolist() == [0.5, 0.5]
    exact = near_best(np.stack([np.zeros(8), good[:8]], 1), 1.0, np.zeros(2))
    assert exact[0] > 0.99


def test_climatology_is_the_spread_of_the_same_phase():
    rows = np.tile([0.0, 10.0], (1, 30)) + np.repeat(np.arange(30), 2)[None] * 0.01
    got = climate(rows, np.array([60]), 2, 3, np.array([0.5]))
    np.testing.assert_allclose(got[0, :, 0], [0.3, 10.3, 0.31], atol=0.001)  # the drift goes on
    noise = np.random.default_rng(0).permutation(np.repeat(np.arange(30), 2))[None] * 0.01
    rows = np.tile([0.0, 10.0], (1, 30)) + noise
    got = climate(rows, np.array([60]), 2, 3, np.array([0.5]))
    phases = [np.median(rows[0, -42 + k :: 2]) for k in range(2)]  # of the last 21 seasons
    np.testing.assert_allclose(got[0, :, 0], [*phases, phases[0]], atol=1e-9)
    assert np.isnan(climate(rows, np.array([4]), 2, 3, np.array([0.5]))).all()


# ---- the harness ---------------------------------------------------------------------------------------------------


def test_poison_is_looked_for_although_every_row_is_in_the_csv(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import runner
    from sets import Task

    task = Task(name="one", series=seasonal_series(n=60, count=2), season=12, horizon=4, windows=2, freq="MS")
    rows = [f"one,{model},0,1.0,1.0" for model in ("seasonal_naive", "ridge", "linear", "leak")]
    out = tmp_path / "done.csv"
    out.write_text("\n".join(["config,model,seed,MASE_ratio,CRPS_ratio", *rows]) + "\n")
    honest = runner.models()

    def leak(task, seed):
        return np.zeros((4, 4, 9)) + task.series[0][-1], 0.0

    monkeypatch.setattr(runner, "models", lambda: honest | {"leak": leak})
    options = {"out": out, "seeds": [0], "against": None, "poison": True}
    assert len(runner.run_all({"one": lambda: task}, argparse.Namespace(model="linear", **options))) == 3
    with pytest.raises(SystemExit, match="one: leak reads values that it may not see"):
        runner.run_all({"one": lambda: task}, argparse.Namespace(model="leak", **options))


@pytest.mark.data
@pytest.mark.skipif(not os.environ.get("XLSTM_FORECAST_DATA"), reason="XLSTM_FORECAST_DATA names no data folder")
def test_seasonal_naive_scores_what_the_published_table_says():
    import pandas as pd

    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    import anchors
    import sets

    folder = Path(os.environ["XLSTM_FORECAST_DATA"])
    table = folder.parent / "anchors" / "gift_eval_published.csv"
    if not table.exists():
        pytest.skip("no published table beside the data")
    published = pd.read_csv(table)
    published = published[published.model == "seasonal_naive"].set_index("config")
    for name in ("ett1/H/short", "ett1/D/short", "m4_weekly/W/short", "us_births/M/short"):
        task = sets.gift_tasks(folder)[name]()
        ours = sets.aggregate(sets.window_scores(task, anchors.seasonal_naive(task)))
        assert ours["MASE"] == pytest.approx(published.loc[name, "MASE"], abs=5e-6)
        assert ours["CRPS"] == pytest.approx(published.loc[name, "CRPS"], abs=5e-6)
    assert tuple(sets.HELD_OUT) == sets.draw_held_out(folder)
