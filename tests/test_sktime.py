"""sktime: its checks, and what the forecaster does with panels, exogenous data, quantiles and updates."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("sktime")
from xlstm_forecast.adapters.sktime import SktimeForecaster

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

# Of sktime's 890 checks, all of which apply and pass, those that need no more than a few seconds together.
CHECKS = [
    "test_clone",
    "test_constructor",
    "test_create_test_instance",
    "test_deepcopy",
    "test_get_params",
    "test_has_common_interface",
    "test_object_tags",
    "test_repr",
    "test_set_params",
    "test_set_params_sklearn",
    "test_valid_object_class_tags",
    "test_X_invalid_type_raises_error",
    "test_cutoff",
    "test_different_fh_in_fit_and_predict_error_handling",
    "test_fh_attribute",
    "test_fh_not_passed_error_handling",
    "test_fit_does_not_overwrite_hyper_params",
    "test_fit_predict",
    "test_fit_returns_self",
    "test_fit_updates_state",
    "test_get_fitted_params",
    "test_hierarchical_with_exogenous",
    "test_methods_have_no_side_effects",
    "test_pred_int_tag",
    "test_predict_interval",
    "test_predict_quantiles",
    "test_predict_series_name_preserved",
    "test_predict_time_index_with_X",
    "test_raises_not_fitted_error",
    "test_score",
    "test_unequal_length_hierarchical_fit_predict",
    "test_update_predict_single",
    "test_update_tag",
    "test_update_with_exogenous_variables",
    "test_y_invalid_type_raises_error",
]


def test_sktimes_checks_pass():
    from sktime.utils.estimator_checks import check_estimator

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(SktimeForecaster(model="linear"), tests_to_run=CHECKS, verbose=False)
    failed = {name: result for name, result in results.items() if result != "PASSED"}
    assert not failed
    assert {name.split("[")[0] for name in results} == set(CHECKS)


def monthly(level=100.0, months=72, start="2015-01"):
    index = pd.period_range(start, periods=months, freq="M")
    return pd.Series(level * (1 + 0.3 * np.sin(2 * np.pi * np.arange(months) / 12)), index=index, name="sales")


def test_a_seasonal_series_is_continued_with_ordered_quantiles():
    y = monthly() + np.random.default_rng(0).normal(0, 1, 72)
    forecaster = SktimeForecaster(model="linear").fit(y[:60], fh=[1, 3, 6, 12])
    found = forecaster.predict()
    assert found.index.equals(y.index[[60, 62, 65, 71]])
    assert np.abs(found.to_numpy() - y.to_numpy()[[60, 62, 65, 71]]).max() < 6
    bands = forecaster.predict_quantiles(alpha=[0.1, 0.5, 0.9])["sales"]
    assert (bands[0.1] <= bands[0.5]).all()
    assert (bands[0.5] < bands[0.9]).all()
    pd.testing.assert_series_equal(bands[0.5], found, check_names=False)


def test_series_of_a_panel_keep_their_levels_and_ends():
    parts = {"a": monthly(10.0), "b": monthly(1e4), "c": monthly(500.0, months=69)}
    y = pd.concat(parts, names=["shop", "month"]).to_frame()
    found = SktimeForecaster(model="linear").fit(y, fh=[1, 2]).predict()
    assert found.index.names == ["shop", "month"]
    assert found.index.get_level_values("month").unique().equals(pd.period_range("2021-01", periods=2, freq="M"))
    wanted = {name: monthly(level, months=74)[-2:] for name, level in (("a", 10.0), ("b", 1e4), ("c", 500.0))}
    for name, values in wanted.items():
        np.testing.assert_allclose(found.loc[name, "sales"], values, rtol=0.1)


def test_exogenous_values_of_the_horizon_move_the_network():
    rng = np.random.default_rng(0)
    X = pd.DataFrame({"promo": rng.integers(0, 2, 160).astype(float)}, index=pd.RangeIndex(160))
    y = pd.Series(10 + 5 * X["promo"].to_numpy() + 0.1 * rng.standard_normal(160), index=X.index)
    small = {"d_model": 16, "num_heads": 2, "blocks": "s", "lr": 1e-2, "backbone": False, "patch_length": 1}
    forecaster = SktimeForecaster(max_steps=150, input_length=8, season_length=1, options=small)
    forecaster.fit(y[:150], X=X[:150], fh=range(1, 5))
    with_promo, without = (
        forecaster.predict(X=pd.DataFrame({"promo": [value] * 4}, index=pd.RangeIndex(150, 154))).mean()
        for value in (1.0, 0.0)
    )
    assert with_promo - without > 2
    with pytest.raises(ValueError, match="X"):
        forecaster.predict()


def test_an_update_moves_the_cutoff_and_reads_the_new_values():
    y = monthly()
    forecaster = SktimeForecaster(model="linear").fit(y[:54], fh=[1, 2])
    before = forecaster.forecaster_.fitted_until_
    forecaster.update(y[54:60], update_params=False)
    assert forecaster.forecaster_.fitted_until_ == before
    found = forecaster.predict()
    assert found.index.equals(y.index[60:62])
    np.testing.assert_allclose(found, y[60:62], rtol=0.05)
    forecaster.update(y[60:66], update_params=True)
    assert forecaster.forecaster_.fitted_until_ > before
    assert forecaster.predict().index.equals(y.index[66:68])


def test_missing_values_are_taken_as_missing():
    y = monthly()
    y.iloc[[5, 20, 40]] = np.nan
    found = SktimeForecaster(model="linear").fit(y[:60], fh=[1]).predict()
    np.testing.assert_allclose(found, monthly()[60:61], rtol=0.1)


def daily(days=40, freq=None):
    """Times without a freq attribute, as a frame that was read from a file has them."""
    return pd.DatetimeIndex(list(pd.date_range("2020-01-01", periods=days, freq=freq or "D")))


def flat_panel(times, ids=("a", "b")):
    count = len(times)
    ramps = np.concatenate([np.arange(float(count)) + 100 * k for k in range(len(ids))])
    frame = pd.DataFrame({"id": np.repeat(list(ids), count), "t": list(times) * len(ids), "y": ramps})
    return frame.set_index(["id", "t"])


@pytest.mark.parametrize("freq", ["D", "MS", "W-WED", "2h"])
def test_a_panel_whose_index_has_no_freq_is_continued_at_the_right_times(freq):
    times = daily(43, freq)
    found = SktimeForecaster(model="linear").fit(flat_panel(times[:40]), fh=[1, 3]).predict()
    assert found.index.equals(pd.MultiIndex.from_product((["a", "b"], times[[40, 42]]), names=["id", "t"]))
    np.testing.assert_allclose(found["y"], [40, 42, 140, 142], atol=8)


def test_gaps_and_aggregates_keep_the_frequency_that_the_data_show():
    from sktime.transformations.hierarchical.aggregate import Aggregator

    times = daily(42)
    series = pd.Series(np.arange(38.0), index=times[:40].delete([5, 6]))
    assert SktimeForecaster(model="linear").fit(series, fh=[1, 2]).predict().index.equals(times[40:])
    whole = Aggregator().fit_transform(flat_panel(times[:40]))
    found = SktimeForecaster(model="linear").fit(whole, fh=[2]).predict()
    assert found.index.get_level_values(-1).unique().equals(times[41:])
    assert set(found.index.get_level_values(0)) == {"__total", "a", "b"}
    assert found.loc["__total", "y"].item() == pytest.approx(41 + 141, abs=10)


def test_a_horizon_of_dates_is_counted_on_the_grid_of_the_series():
    from sktime.forecasting.base import ForecastingHorizon

    y = flat_panel(daily(40, "W-WED"))
    ahead = pd.date_range(y.index.levels[-1][-1], periods=4, freq="W-WED")[1:]
    by_date = SktimeForecaster(model="linear").fit(y, fh=ForecastingHorizon(ahead, is_relative=False)).predict()
    pd.testing.assert_frame_equal(by_date, SktimeForecaster(model="linear").fit(y, fh=[1, 2, 3]).predict())
    between = ForecastingHorizon(pd.date_range(ahead[0], periods=3, freq="D"), is_relative=False)
    with pytest.raises(ValueError, match=f"fh has {ahead[0] + pd.Timedelta('1D')}.*W-WED"):
        SktimeForecaster(model="linear").fit(y, fh=between)


def promoted(steps=160):
    rng = np.random.default_rng(0)
    X = pd.DataFrame({"promo": rng.integers(0, 2, steps), "noise": rng.integers(0, 2, steps)}, dtype=float)
    return pd.Series(10 + 5 * X["promo"].to_numpy() + 0.1 * rng.standard_normal(steps)), X


NETWORK = {"d_model": 8, "num_heads": 2, "blocks": "s", "batch_size": 8}


@pytest.fixture(scope="module")
def with_promo():
    """A forecaster that has seen 150 steps, and the exogenous columns of the 3 steps after them and one more."""
    y, X = promoted()
    small = NETWORK | {"lr": 1e-2, "backbone": False, "patch_length": 1, "batch_size": 32}
    forecaster = SktimeForecaster(max_steps=60, input_length=8, season_length=1, options=small)
    forecaster.fit(y[:150], X=X[:150], fh=[1, 3, 4])
    return forecaster, pd.DataFrame({"promo": 1.0, "noise": 0.0}, index=range(150, 154))


def test_exogenous_columns_are_found_by_their_names(with_promo):
    forecaster, X = with_promo
    found = forecaster.predict(X=X)
    pd.testing.assert_series_equal(forecaster.predict(X=X[["noise", "promo"]]), found)
    assert (found > forecaster.predict(X=X.assign(promo=0.0)) + 1).all()
    with pytest.raises(ValueError, match=r"no column 'promo'.*\['noise', 'price'\]"):
        forecaster.predict(X=X.rename(columns={"promo": "price"})[["noise", "price"]])
    with pytest.raises(ValueError, match=r"column 'price', which fit did not have.*\['promo', 'noise'\]"):
        forecaster.predict(X=X.assign(price=1.0))
    y, more = promoted()
    copies = [forecaster.clone().set_params(max_steps=2).fit(y[:150], X=more[:150], fh=[1, 3, 4]) for _ in range(2)]
    copies[0].update(y[150:155], X=more[150:155], update_params=False)
    copies[1].update(y[150:155], X=more[150:155][["noise", "promo"]], update_params=False)
    ahead = more[155:159]
    pd.testing.assert_series_equal(copies[0].predict(X=ahead), copies[1].predict(X=ahead))
    with pytest.raises(ValueError, match="update needs X with the columns"):
        copies[0].update(y[155:157], update_params=False)


def test_exogenous_values_are_needed_at_the_steps_that_are_asked_for_and_no_others(with_promo):
    forecaster, X = with_promo
    with pytest.raises(ValueError, match="column 'promo' at 152"):
        forecaster.predict(X=X[:2])
    hole = X.copy()
    hole.loc[153, "noise"] = np.nan
    with pytest.raises(ValueError, match="column 'noise' at 153"):
        forecaster.predict(X=hole)
    with pytest.raises(ValueError, match="column 'noise' at 151"):
        forecaster.predict(X=X.assign(noise=[0, np.inf, 0, 0]))
    pd.testing.assert_series_equal(forecaster.predict(X=X.drop(index=151)), forecaster.predict(X=X))
    y, history = promoted()
    history.loc[7, "noise"] = np.nan
    with pytest.raises(ValueError, match=r"X of fit.*column 'noise' at 7"):
        forecaster.clone().fit(y, X=history, fh=[1])


def test_exogenous_data_of_a_panel_may_end_early_and_go_by_keys_of_any_type():
    y = pd.DataFrame({"y": 10 + np.arange(74) % 3 * 1.0}, index=pd.period_range("2015-01", periods=74, freq="M"))
    X = (y - 10).set_axis(["p"], axis=1)

    def panel(data, ends, first=0):
        return pd.concat(
            {key: (k + 1) * data[first:end] for k, (key, end) in enumerate(ends.items())}, names=["id", "t"]
        )

    for keys in (("a", "b"), (2, 7), ((1, "x"), (1, "y"))):
        ends = dict(zip(keys, (72, 66), strict=True))
        forecaster = SktimeForecaster(max_steps=2, options=NETWORK)
        forecaster.fit(panel(y, ends), X=panel(X, ends), fh=[1, 2])
        ahead = panel(X, dict.fromkeys(keys, 74), 72)
        found = forecaster.predict(X=ahead)
        assert list(found.index.droplevel(-1).unique()) == list(keys)
        assert found.index.get_level_values(-1).unique().equals(y.index[72:])
        np.testing.assert_allclose(found["y"], panel(y, dict.fromkeys(keys, 74), 72)["y"], rtol=0.2)
        with pytest.raises(ValueError, match=r"column 'p' at 2021-02 of series .*('b'|7|'y')"):
            forecaster.predict(X=ahead[:-1])


def test_options_that_have_another_place_are_named():
    with pytest.raises(ValueError, match="key 'model': give model= to SktimeForecaster"):
        SktimeForecaster(options={"model": "linear"}).fit(monthly(), fh=[1])
    with pytest.raises(ValueError, match="key 'horizon'"):
        SktimeForecaster(options={"horizon": 3}).fit(monthly(), fh=[1])


def test_an_update_keeps_the_series_of_a_panel_apart():
    """A noiseless zigzag and a random walk, whose bands tell them apart, in an order that is not the sorted one."""
    rng, t = np.random.default_rng(1), np.arange(300)
    times = pd.date_range("2020-01-01", periods=300)
    values = {"z": 50 + 10 * (-1.0) ** t + rng.normal(0, 1, 300), "b": 50 + rng.normal(0, 5, 300).cumsum()}
    y = pd.concat(pd.DataFrame({"i": n, "t": times, "y": v}) for n, v in values.items()).set_index(["i", "t"])
    f = SktimeForecaster(model="linear").fit(y, fh=range(1, 8))
    before = f.predict_interval(coverage=0.8)
    f.update(y.groupby(level=0).tail(1), update_params=False)
    pd.testing.assert_frame_equal(f.predict_interval(coverage=0.8), before)
    new = y.loc[["z"]].rename(index={"z": "a"}, level=0)  # sorts before both
    f.update(pd.concat([y.groupby(level=0).tail(1), new]), update_params=False)
    after = f.predict_interval(coverage=0.8)
    for name in "zb":
        np.testing.assert_allclose(after.loc[name], before.loc[name])
    assert list(after.index.get_level_values(0).unique()) == ["z", "b", "a"]


def test_an_integer_index_with_steps_of_two_is_refused():
    y = pd.Series(np.arange(120) % 4 * 10.0, index=pd.RangeIndex(0, 240, 2))
    with pytest.raises(ValueError, match=r"steps of 2.*0, 1, 2"):
        SktimeForecaster(model="linear").fit(y, fh=[1, 2])
