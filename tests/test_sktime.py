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
