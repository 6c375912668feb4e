"""What a fitted forecaster keeps: its file, its horizon, its columns, and what it is asked for afterwards."""

from __future__ import annotations

from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest

from xlstm_forecast import XLSTMForecaster


def history(uneven: int = 0, steps: int = 120) -> pd.DataFrame:
    """Two weekly series, the second shorter by `uneven` steps, with a column x."""
    rng = np.random.default_rng(0)
    parts = []
    for k, name in enumerate("ab"):
        n = steps - k * uneven
        y = 5 + np.sin(np.arange(n) * 2 * np.pi / 7) + rng.normal(0, 0.3, n)
        days = pd.date_range("2024-01-01", periods=n)
        parts.append(pd.DataFrame({"unique_id": name, "ds": days, "y": y, "x": rng.normal(size=n), "w": 1.0}))
    return pd.concat(parts, ignore_index=True)


def linear(**arguments: Any) -> XLSTMForecaster:
    return XLSTMForecaster(horizon=5, model="linear", **arguments)


def test_a_loaded_forecaster_sums_its_members_in_the_same_order(tmp_path):
    df = history()
    fitted = XLSTMForecaster(horizon=5, past=["x"], presets="fast", max_steps=5).fit(df, verbose=False)
    assert len(fitted.weights_) == 3
    fitted.save(tmp_path / "kept")
    again = XLSTMForecaster.load(tmp_path / "kept")
    pd.testing.assert_frame_equal(fitted.predict(df), again.predict(df), check_exact=True)


def test_a_loaded_forecaster_knows_where_each_series_ended(tmp_path):
    df = history(uneven=10)
    left = df.groupby("unique_id").cumcount(ascending=False)
    fitted = linear().fit(df[left >= 15], verbose=False)
    fitted.save(tmp_path / "kept")
    again = XLSTMForecaster.load(tmp_path / "kept")
    pd.testing.assert_frame_equal(fitted.backtest(df, n_windows=3), again.backtest(df, n_windows=3))
    for forecaster in (fitted, again):
        with pytest.raises(ValueError, match="was fitted on data up to"):
            forecaster.backtest(df, n_windows=4)


def test_static_columns_without_a_history_are_refused():
    fitted = linear().fit(history(), verbose=False)
    with pytest.raises(ValueError, match="static_df without df"):
        fitted.predict(static_df=pd.DataFrame({"unique_id": ["a", "b"]}))


def test_another_horizon_than_fitted_is_refused():
    fitted = linear().fit(history(), verbose=False).set_params(horizon=3)
    with pytest.raises(ValueError, match="horizon=3: this forecaster was fitted for 5"):
        fitted.predict()


def test_weights_are_not_needed_to_forecast():
    df = history()
    fitted = linear(weight_col="w").fit(df, verbose=False)
    pd.testing.assert_frame_equal(fitted.predict(df.drop(columns="w")), fitted.predict(df))


@pytest.mark.parametrize(("given", "expected"), [({}, 2), ({"n_jobs": 3}, 3)])
def test_a_backtest_with_refits_takes_the_forecasters_processes(monkeypatch, given, expected):
    asked = []

    class Serial(joblib.Parallel):
        def __init__(self, n_jobs: int | None = None, **options: Any) -> None:
            asked.append(n_jobs)
            super().__init__(n_jobs=1, **options)

    monkeypatch.setattr(joblib, "Parallel", Serial)
    linear(n_jobs=2).backtest(history(), n_windows=2, refit=True, **given)
    assert asked == [expected]
