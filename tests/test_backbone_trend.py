"""Trends in the backbone: seasons free of them, exponential smoothing, drifts that stand out of their noise."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_backbone import LEVELS, flat

from xlstm_forecast import XLSTMForecaster
from xlstm_forecast.backbone import Backbone, BackboneConfig, FittedBackbone
from xlstm_forecast.backbone import features as module
from xlstm_forecast.backbone.features import TRENDING, Shape, corrects, priors, proposals, seasonal_profile, unjudged
from xlstm_forecast.backbone.median import look
from xlstm_forecast.backbone.spread import volatility
from xlstm_forecast.checkpoint import load_checkpoint, save_checkpoint


def feature(rows: np.ndarray, name: str, shape: Shape, available: int | None = None) -> np.ndarray:
    """(n, H) what a simple forecaster says, in true units."""
    seen = np.full(len(rows), rows.shape[1] if available is None else available)
    found = proposals(rows, seen, shape)
    return found.last + found.features[..., found.names.index(name)]


def test_a_season_is_told_from_the_trend_that_it_lies_on() -> None:
    rng = np.random.default_rng(0)
    pattern = rng.standard_normal(12)
    pattern -= pattern.mean()
    step = np.arange(60)
    rows = (3.0 + 0.7 * step + pattern[step % 12])[None]
    np.testing.assert_allclose(seasonal_profile(rows, 12, np.array([60]))[0], pattern, atol=1e-10)
    one = seasonal_profile(rows, 12, np.array([23]))[0]  # a single season: its trend is not known
    np.testing.assert_allclose(one, rows[0, -12:] - rows[0, -12:].mean(), atol=1e-10)


@pytest.mark.parametrize("name", ["holt slow", "holt fast"])
def test_smoothing_is_what_statsmodels_computes(name: str) -> None:
    rng = np.random.default_rng(0)
    holt = pytest.importorskip("statsmodels.tsa.holtwinters").Holt
    level, slope, damping = module._HOLT[name]
    row = 50 + np.cumsum(rng.standard_normal(80))
    for available in (80, 30, 3):
        past = row[-available:]
        model = holt(
            past[1:], damped_trend=True, initialization_method="known", initial_level=past[0], initial_trend=0.0
        )
        fitted = model.fit(smoothing_level=level, smoothing_trend=slope, damping_trend=damping, optimized=False)
        found = feature(row[None], name, Shape(9, 1, 1), available)[0]
        np.testing.assert_allclose(found, fitted.forecast(9), rtol=1e-9)


def test_smoothing_goes_on_with_trend_and_season() -> None:
    pattern, step = np.array([3.0, -1.0, -4.0, 2.0]), np.arange(200)
    rows = (0.5 * step + pattern[step % 4])[None]
    ahead = np.arange(200, 204)
    found = feature(rows, "holt fast", Shape(4, 4, 1))[0]
    np.testing.assert_allclose(found, 0.5 * ahead + pattern[ahead % 4], atol=0.25)


def drift(rows: np.ndarray, season: int = 1, horizon: int = 8, available: int | None = None) -> np.ndarray:
    """(n, H) what is added to the naive forecast."""
    shape = Shape(horizon, season, 1)
    naive = np.repeat(rows[:, -1:], horizon, 1) if season == 1 else feature(rows, "naive", shape, available)
    return feature(rows, "drifting", shape, available) - naive


def test_an_exact_line_is_gone_on_with_and_slows_down() -> None:
    rows = (5.0 - 2.0 * np.arange(40))[None]
    step = np.arange(1, 9)
    np.testing.assert_allclose(drift(rows)[0], -2.0 * step / (1 + step / 80), rtol=1e-9)
    seasons = np.repeat(np.arange(10.0), 4)[None]  # the same quarter rises by one a year
    whole = np.repeat([4.0, 8.0], 4)
    np.testing.assert_allclose(drift(seasons, season=4)[0], 0.25 * whole / (1 + whole / 80), rtol=1e-9)


def test_a_drift_counts_as_far_as_it_stands_out_of_its_noise() -> None:
    rng = np.random.default_rng(0)
    steps = rng.standard_normal((400, 60))
    none = drift(np.cumsum(steps, 1))[:, -1] / 8
    some = drift(np.cumsum(steps + 0.5, 1))[:, -1] / 8
    clear = drift(np.cumsum(steps + 2.0, 1))[:, -1] / 8
    slowed = 1 / (1 + 8 / 120)
    assert np.mean(none != 0) < 0.15
    assert np.abs(none).mean() < 0.02
    assert 0.25 * slowed < some.mean() / 0.5 < 0.95 * slowed
    assert clear.mean() == pytest.approx(2.0 * slowed, rel=0.05)


def test_a_drift_takes_two_changes_of_whole_seasons_and_these_have_to_agree() -> None:
    rows = (1.0 * np.arange(60))[None]
    assert not drift(rows, available=2).any()
    assert drift(rows, available=3).any()
    assert not drift(rows, season=12, available=35).any()
    assert drift(rows, season=12, available=36).any()
    for second, found in ((1.2, True), (1.5, False)):  # t is 11 and 5, of which 8 is noise
        two = np.array([[0.0, 1.0, 1.0 + second]])
        assert drift(two).any() == found
        assert drift(np.array([[*np.arange(8.0), 7.0 + second]])).any()  # eight changes need not agree as well


@pytest.mark.parametrize(
    ("values", "season", "width"), [(23, 1, 1), (24, 1, 2), (500, 1, 41), (900, 1, 42), (95, 4, 4), (96, 4, 8)]
)
def test_a_drift_is_measured_between_a_dozen_means(values: int, season: int, width: int) -> None:
    seen = min(values, 512)
    first = values - seen // width * width
    for jump, counts in ((values - 1, True), (first + width, True), (first, False)):
        rows = np.zeros((1, values))
        rows[:, jump:] = 1.0
        change, told = module._changes(rows[:, -seen:], np.array([seen]), np.array([width]))
        assert told.sum() == seen // width - 1
        assert change.any() == counts
    level = 1.5 * np.arange(seen // width) + 0.5 * (np.arange(seen // width) % 2)  # changes of 2 and 1 in turn
    rows = np.concatenate([np.zeros(first), np.repeat(level, width)])[None]
    changes = np.diff(level)
    squared = changes.mean() ** 2 / (changes.var(ddof=1) / len(changes))
    kept = 1 - 4.0 * (1 + 4 / (len(changes) - 1)) / squared
    found = drift(rows, season, horizon=1)[0, 0]
    assert found == pytest.approx(kept * changes.mean() / width * season / (1 + season / (2 * seen)), rel=1e-9)


def test_long_seasons_are_seen_too_seldom_to_drift() -> None:
    rows = (1.0 * np.arange(2400))[None]
    assert drift(rows, season=170).any()
    assert not drift(rows, season=171).any()


def test_trends_do_not_read_what_is_not_there() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((3, 90)).cumsum(1) + 0.7 * np.arange(90)
    shape = Shape(6, 7, 1)
    for name in TRENDING:
        there = feature(rows, name, shape, 40)
        spoilt = rows.copy()
        spoilt[:, :50] = 1e6
        assert np.array_equal(feature(spoilt, name, shape, 40), there)
        moved = feature(3.0 * rows - 100.0, name, shape, 40)
        np.testing.assert_allclose(moved, 3.0 * there - 100.0, rtol=1e-9)


def test_huge_and_tiny_values_have_a_trend_like_others() -> None:
    rng = np.random.default_rng(0)
    rows = (2.0 * np.arange(50) + rng.standard_normal(50))[None]
    expected = feature(rows, "drifting", Shape(5, 1, 1))
    for unit in (1e150, 1e-150):
        np.testing.assert_allclose(feature(rows * unit, "drifting", Shape(5, 1, 1)) / unit, expected, rtol=1e-9)
    assert np.array_equal(feature(np.full((1, 50), 7.0), "drifting", Shape(5, 1, 1)), np.full((1, 5), 7.0))


def test_changes_are_exact_on_a_high_level() -> None:
    rows = np.random.default_rng(0).integers(0, 100, (4, 90)).astype(float)
    sizes = np.full(4, 90), np.full(4, 2)
    low, high = (module._changes(rows + level, *sizes)[0] for level in (0.0, 2.0**52))
    assert np.array_equal(low, high)


def test_what_keeps_a_part_drifts_unless_it_is_a_year_and_which_features_shrink_to_nothing() -> None:
    names = [proposals(np.zeros((1, 200)), np.array([200]), shape).names for shape in (Shape(3, 1, 1), Shape(3, 7, 1))]
    assert [unjudged(n) for n in names] == ["drifting", "drifting"]
    long = proposals(np.zeros((1, 200)), np.array([200]), Shape(3, 1, 52)).names
    assert unjudged(long) == "long"
    assert {name for name in long if corrects(name)} == {"slope slow", "slope fast", "drift", "drifting"}
    assert corrects("known 3 short")
    starts, costs = priors(names[1])
    for name in TRENDING:
        at = [i for i, start in enumerate(starts) if start[names[1].index(name)] == 1]
        assert len(at) == 1
        assert costs[at[0]] > 0


def test_a_trend_is_no_disagreement() -> None:
    rng = np.random.default_rng(0)
    seen = look(rng.standard_normal((2, 60)).cumsum(1), Shape(4, 7, 1), 60)
    moved = seen.simple.features.copy()
    moved[..., [seen.simple.names.index(name) for name in TRENDING]] += 100.0
    other = replace(seen, simple=replace(seen.simple, features=moved))
    assert np.array_equal(volatility(seen, 7, 4), volatility(other, 7, 4))


def test_few_windows_leave_a_part_with_the_forecast_that_drifts(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = flat([np.random.default_rng(0).standard_normal(40)])
    fitted = Backbone(BackboneConfig(horizon=6, freq="YS")).fit(*columns)
    names = fitted._blank().simple.names
    monkeypatch.setattr("xlstm_forecast.backbone.median.RESERVE", 0.0)
    free = Backbone(BackboneConfig(horizon=6, freq="YS")).fit(*columns)
    kept = 1 / (1 + (40 - 6) / 6)  # one window beside those that do not overlap
    stands = np.array([name == "drifting" for name in names])
    np.testing.assert_allclose(fitted.structured, (1 - kept) * free.structured + kept * stands, atol=1e-12)


def growing(rng: np.random.Generator, n: int) -> np.ndarray:
    """Months of a level that grows unevenly, with a season."""
    slope = 0.5 + 0.3 * np.cumsum(rng.standard_normal(n)) / np.sqrt(n)
    return 100 + np.cumsum(slope) + 5 * np.sin(2 * np.pi * np.arange(n) / 12) + 0.5 * rng.standard_normal(n)


def scores(draw, n: int, horizon: int, freq: str, count: int = 24) -> tuple[float, float]:
    """Mean absolute errors of single series' forecasts and of their seasonal naive (last value but for months)."""
    ours, naive = [], []
    period = 12 if freq == "MS" else 1
    for seed in range(count):
        full = draw(np.random.default_rng(seed), n + horizon)
        found = Backbone(BackboneConfig(horizon=horizon, freq=freq)).fit(*flat([full[:n]]))
        values, offsets = flat([full])
        median = found.forecast(values, offsets, np.array([0]), np.array([n]), LEVELS)[0, :, 4]
        ours.append(np.abs(median - full[n:]).mean())
        naive.append(np.abs(full[n - period + np.arange(horizon) % period] - full[n:]).mean())
    return float(np.mean(ours)), float(np.mean(naive))


def test_short_growing_series_are_gone_on_with() -> None:
    ours, naive = scores(growing, 72, 12, "MS")
    assert ours < 0.45 * naive
    ours, last = scores(lambda rng, n: np.cumsum(1.0 + rng.standard_normal(n)), 40, 6, "YS")
    assert ours < 0.85 * last


def test_walks_without_a_drift_lose_little() -> None:
    ours, last = scores(lambda rng, n: np.cumsum(rng.standard_normal(n)), 40, 6, "YS", count=60)
    assert ours < 1.04 * last


def test_coefficients_of_other_features_are_refused() -> None:
    rng = np.random.default_rng(0)
    fitted = Backbone(BackboneConfig(horizon=3)).fit(*flat([np.cumsum(rng.standard_normal(60))]))
    arrays, text = fitted.to_arrays()
    assert FittedBackbone.from_arrays(arrays, text).horizon == 3
    meta = json.loads(text)
    revision = meta.pop("features")
    others: tuple[dict[str, int], ...] = ({}, {"features": revision - 1}, {"features": revision + 1})
    for other in others:
        with pytest.raises(ValueError, match=r"features of another version.*fit again"):
            FittedBackbone.from_arrays(arrays, json.dumps(meta | other))
    first = {k: v for k, v in arrays.items() if k not in ("alone", "spread.brief", "spread.ageing")}
    with pytest.raises(ValueError, match=r"another version"):  # as version 0.1.0 wrote them
        FittedBackbone.from_arrays(first, json.dumps(meta))


def test_a_forecaster_of_other_features_is_refused_by_the_name_of_its_file(tmp_path: Path) -> None:
    frame = pd.DataFrame({"unique_id": "a", "ds": pd.date_range("2020-01-01", periods=50), "y": np.arange(50.0) % 7})
    file = tmp_path / "old.safetensors"
    XLSTMForecaster(horizon=3, model="linear").fit(frame, verbose=False).save(file)
    tensors, config = load_checkpoint(file)
    text = json.loads(config["linear"]["text"])
    del text["features"]
    save_checkpoint(file, tensors, config | {"linear": config["linear"] | {"text": json.dumps(text)}})
    with pytest.raises(ValueError, match=r"old\.safetensors.*another version"):
        XLSTMForecaster.load(file)


def months(path: np.ndarray, amplitude: float, seed: int, count: int = 8) -> np.ndarray:
    """Series that share a path and a season and have noise of their own, of deviation 3."""
    noise = 3 * np.random.default_rng(seed).standard_normal((count, len(path)))
    return path + amplitude * np.sin(2 * np.pi * np.arange(len(path)) / 12) + noise


@pytest.mark.parametrize("kind", ["line", "growth"])
@pytest.mark.parametrize("amplitude", [0.0, 10.0])
def test_months_that_grow_are_forecast_to_grow_on(kind: str, amplitude: float) -> None:
    """The error was up to 27 where the true path leaves 2.4: the season before was kept without its growth."""
    ours, last = [], []
    for n in (60, 66, 120):
        step = np.arange(n + 12.0)
        path = 3 * step if kind == "line" else 100 * 1.01**step
        for seed in range(2):
            full = 100 + months(path, amplitude, seed)
            found = Backbone(BackboneConfig(horizon=12, freq="MS")).fit(*flat(list(full[:, :n])))
            values, offsets = flat(list(full))
            median = found.forecast(values, offsets, np.arange(8), np.full(8, n), LEVELS)[..., 4]
            ours.append(np.abs(median - full[:, n:]).mean())
            last.append(np.abs(full[:, n - 1 : n] - full[:, n:]).mean())
    assert np.mean(ours) < 6.5
    assert np.mean(ours) < 0.4 * np.mean(last)


def test_series_that_grow_alike_move_on_their_own_and_those_with_a_common_walk_do_not() -> None:
    def apart(rows: np.ndarray) -> float:
        fitted = Backbone(BackboneConfig(horizon=12, freq="MS")).fit(*flat(list(rows)))
        return next(stage["independent"] for stage in fitted.report if stage["stage"] == "series")

    alike = months(100 + 3.0 * np.arange(120), 10.0, 0)
    assert apart(alike) > 4
    walk = 10 * np.random.default_rng(1).standard_normal(120).cumsum()
    assert apart(months(100 + walk, 10.0, 0)) < 2
