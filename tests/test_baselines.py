"""The forecasters to beat, against numbers worked by hand."""

from __future__ import annotations

import pickle
from statistics import NormalDist

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.base import clone

from xlstm_forecast.baselines import BASELINES, Drift, LastValue, Linear, SeasonalNaive

Z = NormalDist().inv_cdf(0.9)


def frame(values: list[float], **more: list[float]) -> pd.DataFrame:
    parts = {"a": values, **more}
    return pd.concat(
        [pd.DataFrame({"unique_id": k, "ds": np.arange(len(v)), "y": v}) for k, v in parts.items()], ignore_index=True
    )


def test_seasonal_naive_repeats_the_season_and_widens_with_every_season():
    got = SeasonalNaive(horizon=5, season_length=2).fit(frame([1.0, 5.0, 2.0, 7.0, 4.0])).predict()
    sigma = np.sqrt(np.mean([1.0, 4.0, 4.0]))
    assert got["forecast"].tolist() == [7.0, 4.0, 7.0, 4.0, 7.0]
    width = Z * sigma * np.sqrt([1, 1, 2, 2, 3])
    np.testing.assert_allclose(got["q0.9"] - got["forecast"], width)
    np.testing.assert_allclose(got["forecast"] - got["q0.1"], width)


def test_a_past_no_longer_than_a_season_repeats_its_last_value():
    got = SeasonalNaive(horizon=2, season_length=3).fit(frame([1.0, 5.0, 2.0])).predict()
    assert got["forecast"].tolist() == [2.0, 2.0]
    np.testing.assert_allclose(got["q0.9"] - 2.0, Z * np.sqrt((16 + 9) / 2) * np.sqrt([1, 2]))


def test_a_missing_value_gives_way_to_the_season_before_or_the_last_one():
    nan = float("nan")
    got = SeasonalNaive(horizon=3, season_length=3).fit(frame([1.0, nan, 3.0, 4.0, nan, 6.0])).predict()
    assert got["forecast"].tolist() == [4.0, 6.0, 6.0]
    got = SeasonalNaive(horizon=3, season_length=3).fit(frame([1.0, 2.0, 3.0, 4.0, nan, 6.0])).predict()
    assert got["forecast"].tolist() == [4.0, 2.0, 6.0]


def test_last_value_has_the_bands_of_a_random_walk_and_counts_missing_steps():
    got = LastValue(horizon=2).fit(frame([1.0, 2.0, 4.0])).predict()
    np.testing.assert_allclose(got["q0.9"] - 4.0, Z * np.sqrt(2.5) * np.sqrt([1, 2]))
    got = LastValue(horizon=2).fit(frame([1.0, 2.0, 4.0, float("nan")])).predict()
    np.testing.assert_allclose(got["q0.9"] - 4.0, Z * np.sqrt(2.5) * np.sqrt([2, 3]))


def test_drift_is_the_line_through_the_ends():
    got = Drift(horizon=2).fit(frame([1.0, 4.0, 5.0, 7.0])).predict()
    assert got["forecast"].tolist() == pytest.approx([9.0, 11.0])
    sigma = np.sqrt(np.mean([9.0, 1.0, 4.0]) - 4.0)
    np.testing.assert_allclose(got["q0.9"] - got["forecast"], Z * sigma * np.sqrt([1 * (1 + 1 / 3), 2 * (1 + 2 / 3)]))


def test_linear_finds_a_linear_rule_and_falls_back_where_nothing_fits():
    rng = np.random.default_rng(0)
    t = np.arange(200)
    values = [list(10 * np.sin(2 * np.pi * t / 10 + p) + 0.01 * rng.standard_normal(200)) for p in (0.0, 1.0)]
    df = frame(values[0], b=values[1])
    got = Linear(horizon=5, season_length=10).fit(df).predict()
    truth = np.concatenate([10 * np.sin(2 * np.pi * np.arange(200, 205) / 10 + p) for p in (0.0, 1.0)])
    assert np.abs(got["forecast"] - truth).max() < 0.1
    assert (got["q0.1"] < got["q0.9"]).all()
    short = frame([1.0, 2.0, 4.0])
    pd.testing.assert_frame_equal(
        Linear(horizon=2, season_length=1).fit(short).predict(),
        SeasonalNaive(horizon=2, season_length=1).fit(short).predict(),
    )


def test_linear_bands_cover_what_they_promise_on_data_like_that_fitted_on():
    rng = np.random.default_rng(1)
    values = rng.standard_normal(3000)
    ar = np.zeros(3000)
    for t in range(1, 3000):
        ar[t] = 0.7 * ar[t - 1] + values[t]
    df = frame(list(ar))
    forecaster = Linear(horizon=3, season_length=1, quantiles=(0.1, 0.5, 0.9)).fit(df[df["ds"] < 2000])
    back = forecaster.backtest(df, n_windows=300)
    inside = (back["y"] >= back["q0.1"]) & (back["y"] <= back["q0.9"])
    assert abs(inside.mean() - 0.8) < 0.04


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_behaves_as_an_estimator(name):
    df = frame(list(np.arange(40.0) % 4), b=list(100 + np.arange(30.0) % 4))
    baseline = BASELINES[name](horizon=3, season_length=4)
    copy = clone(baseline)
    assert copy.get_params() == baseline.get_params()
    with pytest.raises(ValueError, match="not fitted"):
        copy.predict()
    one = baseline.fit(df).predict()
    pd.testing.assert_frame_equal(one, pickle.loads(pickle.dumps(baseline)).predict())
    alone = baseline.predict(df[df["unique_id"] == "b"])
    np.testing.assert_allclose(alone["q0.9"], one.loc[one["unique_id"] == "b", "q0.9"])
    scaled = BASELINES[name](horizon=3, season_length=4).fit(df.assign(y=7 * df["y"] - 3)).predict()
    np.testing.assert_allclose(scaled["q0.9"], 7 * one["q0.9"] - 3, atol=1e-6)
    assert isinstance(baseline.predict(pl.from_pandas(df)), pl.DataFrame)
    assert baseline.predict(quantiles=(0.3,)).columns.tolist() == ["unique_id", "ds", "forecast", "q0.3"]
    with pytest.raises(ValueError, match="between 0 and 1"):
        baseline.predict(quantiles=(0.9, 0.1))
    with pytest.raises(ValueError, match="horizon=0"):
        BASELINES[name](horizon=0).fit(df)


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("level", [0.0, 5.0, 1e8, 1e-8])
def test_constant_and_extreme_series_stay_finite_at_their_level(name, level):
    got = BASELINES[name](horizon=3, season_length=4).fit(frame([level] * 40)).predict()
    np.testing.assert_allclose(got[["forecast", "q0.1", "q0.9"]].to_numpy(), level, rtol=1e-9)


def test_the_season_comes_from_the_frequency():
    days = pd.DataFrame({"unique_id": 1, "ds": pd.date_range("2024", periods=30, freq="D"), "y": np.arange(30.0)})
    assert SeasonalNaive(horizon=2).fit(days).season_ == 7
    months = days.assign(ds=pd.date_range("2000", periods=30, freq="MS"))
    assert SeasonalNaive(horizon=2).fit(months).season_ == 12


@pytest.mark.parametrize("name", BASELINES)
def test_numbers_of_steps_are_whole_and_positive(name):
    df = frame([float(i % 4) for i in range(60)])
    for wrong in ({"season_length": 0}, {"season_length": -7}, {"season_length": 2.5}, {"season_length": True}):
        with pytest.raises(ValueError, match=f"season_length={next(iter(wrong.values()))}: expected a number of steps"):
            BASELINES[name](horizon=5, **wrong).fit(df)
    for horizon in (True, 0, 2.0):
        with pytest.raises(ValueError, match=f"horizon={horizon}: expected"):
            BASELINES[name](horizon=horizon).fit(df)  # type: ignore[arg-type]
    small = BASELINES[name](horizon=np.int64(5), season_length=np.int64(4)).fit(df).predict()  # type: ignore[arg-type]
    pd.testing.assert_frame_equal(small, BASELINES[name](horizon=5, season_length=4).fit(df).predict())
