"""scikit-learn: its own checks for the regressor, what the regressor learns, and searches over time."""

from __future__ import annotations

import datetime
import pickle
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, TimeSeriesSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from xlstm_forecast import XLSTMForecaster
from xlstm_forecast.adapters.sklearn import TimeSplit, XLSTMRegressor, _Ridge, forecast_scorer

SMALL: dict[str, Any] = {"d_model": 16, "num_heads": 2, "random_state": 0}


def windows(count=300, length=12, horizon=4, seed=0):
    rng = np.random.default_rng(seed)
    series = 50 + np.sin(np.arange(count + length + horizon) / 3) + 0.05 * rng.standard_normal(count + length + horizon)
    view = np.lib.stride_tricks.sliding_window_view(series, length + horizon)[:count]
    return view[:, :length].copy(), view[:, length:].copy()


def test_the_regressor_passes_scikit_learns_checks():
    results = check_estimator(XLSTMRegressor(max_steps=5, **SMALL), on_skip=None)
    assert len(results) > 45
    assert {r["status"] for r in results if r["check_name"] != "check_array_api_input"} == {"passed"}


def test_forecasts_of_windows_are_close_and_their_quantiles_cover():
    X, y = windows()
    model = XLSTMRegressor(max_steps=60, **SMALL).fit(X[:200], y[:200])
    assert model.score(X[200:], y[200:]) > 0.95
    low, high = np.moveaxis(model.predict_quantiles(X[200:], (0.1, 0.9)), -1, 0)
    assert 0.6 < np.mean((low <= y[200:]) & (y[200:] <= high)) < 0.95


def test_the_network_learns_what_a_ridge_regression_cannot():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((1200, 6))
    y = 2 * np.abs(X[:, -1]) + 0.05 * rng.standard_normal(1200)
    model = XLSTMRegressor(max_steps=400, scaling="global", lr=1e-2, **SMALL).fit(X[:1000], y[:1000])
    ridge = _Ridge("global", 1e-3).fit(X[:1000, :, None], y[:1000, None])
    left = np.abs(ridge(X[1000:, :, None])[:, 0] - y[1000:]).mean()
    assert model.steps_ > 0
    assert np.abs(model.predict(X[1000:]) - y[1000:]).mean() < 0.7 * left


def test_a_window_far_from_all_training_windows_keeps_its_level():
    X, y = windows()
    model = XLSTMRegressor(max_steps=20, scaling="window", **SMALL).fit(X, y)
    np.testing.assert_allclose(model.predict(X[:5] * 1e3 + 1e6), model.predict(X[:5]) * 1e3 + 1e6, rtol=1e-9)


def test_further_variables_and_missing_values_are_taken():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((300, 8, 2))
    y = X[:, -1, 1] + 0.01 * rng.standard_normal(300)
    X[rng.random((300, 8)) < 0.1, 0] = np.nan
    model = XLSTMRegressor(max_steps=10, **SMALL).fit(X[:250], y[:250])
    assert model.score(X[250:], y[250:]) > 0.9
    assert model.predict(X[250:]).shape == (50,)


def test_single_outputs_stay_flat_and_several_keep_their_shape():
    X, y = windows()
    flat = XLSTMRegressor(max_steps=2, **SMALL).fit(X, y[:, 0])
    assert flat.predict(X[:7]).shape == (7,)
    assert flat.predict_quantiles(X[:7], (0.1, 0.9)).shape == (7, 2)
    wide = XLSTMRegressor(max_steps=2, **SMALL).fit(X, y)
    assert wide.predict_quantiles(X[:7], (0.1, 0.9)).shape == (7, 4, 2)


def test_a_fit_repeats_and_leaves_the_global_generator_alone():
    X, y = windows()
    before = torch.random.get_rng_state()
    first = XLSTMRegressor(max_steps=10, **SMALL).fit(X, y)
    second = clone(first).fit(X, y)
    assert torch.equal(torch.random.get_rng_state(), before)
    np.testing.assert_array_equal(first.predict(X), second.predict(X))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(first)).predict(X), first.predict(X))


def test_the_regressor_works_in_a_pipeline_and_a_search():
    X, y = windows()
    pipeline = make_pipeline(StandardScaler(), XLSTMRegressor(**SMALL))
    grid = {"xlstmregressor__max_steps": [0, 5]}
    search = GridSearchCV(pipeline, grid, cv=TimeSeriesSplit(2, gap=4)).fit(X, y)
    assert search.best_score_ > 0.9


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"scaling": "row"}, "scaling='row'"),
        ({"validation_fraction": 1}, "validation_fraction=1"),
        ({"max_steps": -1}, "max_steps=-1"),
        ({"max_steps": "a"}, "max_steps='a'"),
        ({"max_steps": 2.5}, "max_steps=2.5"),
        ({"validation_fraction": None}, "validation_fraction=None"),
        ({"validation_fraction": np.nan}, "validation_fraction=nan"),
        ({"lr": "a"}, "lr='a'"),
        ({"dropout": 2}, "dropout=2"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"blocks": None}, "blocks=None"),
        ({"patch_length": 13}, "patch_length=13 is longer than the windows, which have 12 steps"),
    ],
)
def test_options_that_cannot_work_are_named(options, name):
    X, y = windows(20)
    with pytest.raises(ValueError, match=name):
        XLSTMRegressor(**options).fit(X, y)


def test_windows_of_another_shape_than_fitted_are_refused():
    X, y = windows(20)
    model = XLSTMRegressor(max_steps=0, **SMALL).fit(X[..., None], y)
    with pytest.raises(ValueError, match=r"\(12, 2\)"):
        model.predict(np.zeros((3, 12, 2)))


@pytest.mark.parametrize("shape", [(20, 12, 1, 1), (20, 3, 2, 2), (20, 12, 0), (20, 0, 2)])
def test_windows_that_are_no_steps_of_variables_are_refused_with_their_shape(shape):
    with pytest.raises(ValueError, match=re.escape(str(shape))):
        XLSTMRegressor(max_steps=0, **SMALL).fit(np.zeros(shape), np.arange(20.0))


# --- searches over a forecaster ---


def panel(days=60):
    rng = np.random.default_rng(0)
    frames = []
    for name, level in (("a", 10.0), ("b", 100.0)):
        ds = pd.date_range("2024-01-01", periods=days, freq="D")
        y = level * (1 + 0.3 * np.sin(2 * np.pi * np.arange(days) / 7)) + 0.01 * level * rng.standard_normal(days)
        frames.append(pd.DataFrame({"unique_id": name, "ds": ds, "y": y, "promo": rng.integers(0, 2, days)}))
    return pd.concat(frames, ignore_index=True)


def test_the_splitter_cuts_all_series_at_the_same_time_stamps():
    df = panel().sample(frac=1, random_state=0).reset_index(drop=True)
    splitter = TimeSplit(horizon=7, n_windows=3, step_size=5)
    cutoffs = list(splitter.cutoffs(df))
    assert cutoffs == [np.datetime64(day) for day in ("2024-02-12", "2024-02-17", "2024-02-22")]
    for cutoff, (train, test) in zip(cutoffs, splitter.split(df), strict=True):
        assert (df["ds"].iloc[train] <= cutoff).all()
        assert (df["ds"].iloc[test] > cutoff).all()
        assert len(train) == (df["ds"] <= cutoff).sum()
        assert len(test) == 14
    assert df["ds"].iloc[test].max() == df["ds"].max()
    assert splitter.get_n_splits() == 3


@pytest.mark.parametrize("kind", ["pandas", "polars"])
def test_a_grid_search_over_time_finds_the_better_forecaster(kind):
    df = panel()
    if kind == "polars":
        df = pytest.importorskip("polars").from_pandas(df)
    forecaster = XLSTMForecaster(horizon=7, model="linear", future=("promo",), calendar=())
    grid = {"lower": [None, 1e3]}
    search = GridSearchCV(forecaster, grid, cv=TimeSplit(horizon=7, n_windows=2), scoring=forecast_scorer("mae"))
    search.fit(df, verbose=False)
    assert search.best_params_ == {"lower": None}
    assert -3 < search.best_score_ < 0
    assert len(search.best_estimator_.predict(future_df=future(df))) == 14


def future(df):
    last = df["ds"].max()
    ds = pd.date_range(pd.Timestamp(last) + pd.Timedelta(days=1), periods=7)
    frame = pd.concat([pd.DataFrame({"unique_id": name, "ds": ds, "promo": 0}) for name in ("a", "b")])
    return frame if isinstance(df, pd.DataFrame) else pytest.importorskip("polars").from_pandas(frame)


def test_a_forecaster_clones_pickles_and_takes_new_parameters():
    forecaster = XLSTMForecaster(horizon=7, model="linear")
    copy = clone(forecaster).set_params(horizon=5)
    assert (forecaster.horizon, copy.horizon) == (7, 5)
    assert clone(copy).get_params() == copy.get_params()
    df = panel().drop(columns="promo")
    fitted = copy.fit(df, verbose=False)
    pd.testing.assert_frame_equal(pickle.loads(pickle.dumps(fitted)).predict(), fitted.predict())


def times(kind):
    """Series of every kind of id and time stamp that a frame may have."""
    ids = pd.Series(["a", "b"], dtype="category") if kind == "category" else pd.Series(["a", "b"])
    ds = pd.date_range("2024-01-01", periods=40, freq="h", tz="Europe/Paris" if kind == "zone" else None)
    ds = pd.Series(range(40)) if kind == "whole" else ds
    frames = [pd.DataFrame({"ds": ds, "y": np.arange(40) % 5 + 10.0 * k}) for k in range(2)]
    df = pd.concat(frames, ignore_index=True)
    return df.assign(unique_id=ids.repeat(40).reset_index(drop=True))


@pytest.mark.parametrize("kind", ["plain", "zone", "whole", "category"])
def test_set_output_changes_the_kind_of_frame_and_no_number_or_time_stamp(kind):
    pl = pytest.importorskip("polars")
    df = times(kind)
    forecaster = XLSTMForecaster(horizon=3, model="linear").fit(df, verbose=False)
    own = forecaster.predict()
    assert isinstance(own, pd.DataFrame)
    assert forecaster.set_output(transform="polars") is forecaster
    other = forecaster.predict()
    assert isinstance(other, pl.DataFrame)
    assert isinstance(forecaster.set_output().predict(), pl.DataFrame)
    assert list(other.columns) == list(own.columns)
    for column in own.columns:
        assert other[column].to_list() == own[column].tolist()
    if kind == "zone":
        assert other["ds"].dtype.time_zone == "Europe/Paris"
    assert isinstance(forecaster.predict(n_samples=2), pl.DataFrame)
    pd.testing.assert_frame_equal(forecaster.set_output(transform="pandas").predict(), own)
    again = XLSTMForecaster(horizon=3, model="linear").fit(pl.from_pandas(df), verbose=False)
    assert isinstance(again.predict(), pl.DataFrame)
    back = again.set_output(transform="pandas").predict()
    pd.testing.assert_frame_equal(back, own, check_dtype=False, check_categorical=False)
    assert back.dtypes["ds"] == own.dtypes["ds"]
    assert isinstance(again.set_output(transform="default").predict(), pl.DataFrame)


def test_set_output_outlives_clones_pickles_and_searches():
    pl = pytest.importorskip("polars")
    df = panel().drop(columns="promo")
    forecaster = XLSTMForecaster(horizon=7, model="linear").set_output(transform="polars")
    assert isinstance(clone(forecaster).fit(df, verbose=False).predict(), pl.DataFrame)
    fitted = pickle.loads(pickle.dumps(forecaster.fit(df, verbose=False)))
    assert isinstance(fitted.predict(), pl.DataFrame)
    search = {"cv": TimeSplit(horizon=7, n_windows=2), "scoring": forecast_scorer("mae")}
    scores = [
        GridSearchCV(each, {"lower": [None, 1e3]}, **search).fit(df, verbose=False).cv_results_["mean_test_score"]
        for each in (forecaster, clone(forecaster).set_output(transform="default"))
    ]
    np.testing.assert_array_equal(*scores)
    with pytest.raises(ValueError, match="transform='arrow'"):
        forecaster.set_output(transform="arrow")


def test_too_few_time_stamps_for_the_cutoffs_are_counted_in_the_error():
    with pytest.raises(ValueError, match="need 63 time stamps, found 60"):
        list(TimeSplit(horizon=20, n_windows=3, step_size=21).split(panel()))
    with pytest.raises(ValueError, match="time_col='day'"):
        list(TimeSplit(horizon=2, time_col="day").split(panel()))
    with pytest.raises(ValueError, match="metric='mape'"):
        forecast_scorer("mape")


@pytest.mark.parametrize("kind", ["pandas", "polars"])
@pytest.mark.parametrize("zone", [None, "Europe/Paris"])
def test_cutoffs_are_values_of_the_time_column(kind, zone):
    df = panel().assign(ds=lambda frame: frame["ds"].dt.tz_localize(zone))
    own = df if kind == "pandas" else pytest.importorskip("polars").from_pandas(df)
    splitter = TimeSplit(horizon=7, n_windows=2)
    cutoffs = list(splitter.cutoffs(own))
    assert cutoffs == [pd.Timestamp("2024-02-15", tz=zone), pd.Timestamp("2024-02-22", tz=zone)]
    assert [str(cutoff.tz) for cutoff in cutoffs] == [str(zone)] * 2
    for cutoff, (train, _) in zip(cutoffs, splitter.split(own), strict=True):
        assert int((own["ds"] <= cutoff).sum()) == len(train)


def test_cutoffs_of_days_and_of_integers_are_days_and_integers():
    pl = pytest.importorskip("polars")
    df = pl.from_pandas(panel()).with_columns(pl.col("ds").cast(pl.Date))
    (cutoff,) = TimeSplit(horizon=7, n_windows=1).cutoffs(df)
    assert cutoff == datetime.date(2024, 2, 22)
    assert int((df["ds"] <= cutoff).sum()) == 2 * 53
    assert list(TimeSplit(horizon=7, n_windows=1).cutoffs(df.with_row_index("i").with_columns(ds="i"))) == [112]


def test_a_splitter_names_what_it_is_given():
    assert repr(TimeSplit(horizon=3)) == "TimeSplit(horizon=3, n_windows=3, step_size=None, time_col='ds')"
    for name, value in (("horizon", 2.5), ("horizon", "a"), ("n_windows", 0), ("step_size", True)):
        options: dict[str, Any] = {"horizon": 7, name: value}
        with pytest.raises(ValueError, match=re.escape(f"{name}={value!r}")):
            list(TimeSplit(**options).split(panel()))


def test_series_that_end_at_different_times_are_scored_as_far_as_they_go():
    df = panel()
    uneven = df[(df["unique_id"] == "a") | (df["ds"] < df["ds"].max() - pd.Timedelta(days=2))]
    forecaster = XLSTMForecaster(horizon=7, model="linear", future=("promo",), calendar=())
    search = {"cv": TimeSplit(horizon=7, n_windows=2), "scoring": forecast_scorer(), "error_score": "raise"}
    found = GridSearchCV(forecaster, {"lower": [None, 1e3]}, **search).fit(uneven, verbose=False)
    assert np.isfinite(found.cv_results_["mean_test_score"]).all()
    assert found.best_params_ == {"lower": None}


@pytest.mark.parametrize("name", ["forecast", "target", "label"])
def test_targets_of_any_name_are_scored(name):
    df = panel().drop(columns="promo").assign(**{name: lambda frame: 3 * frame["y"] + 1})
    cutoff = df["ds"].max() - pd.Timedelta(days=7)
    fitted = XLSTMForecaster(horizon=7, model="linear", target_col=["y", name]).fit(
        df[df["ds"] <= cutoff], verbose=False
    )
    long = df[df["ds"] > cutoff].melt(["unique_id", "ds"], ["y", name], "target", "__truth__")
    both = fitted.predict().merge(long, on=["unique_id", "ds", "target"])
    assert len(both) == 28
    expected = -(both["forecast"] - both["__truth__"]).abs().mean()
    assert forecast_scorer()(fitted, df[df["ds"] > cutoff]) == pytest.approx(expected)
