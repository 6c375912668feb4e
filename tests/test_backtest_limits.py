"""Backtests: what many windows cost, and windows about which nothing is known."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pandas as pd
import pytest

from xlstm_forecast import XLSTMForecaster
from xlstm_forecast.backtest import backtest
from xlstm_forecast.metrics import evaluate


@pytest.mark.parametrize("model", ["patch", "linear"])
def test_twenty_windows_of_five_hundred_series_cost_at_most_three_predictions_of_them(model):
    rng = np.random.default_rng(0)
    rows, names = 80, [f"s{i:03d}" for i in range(500)]
    df = pd.DataFrame(
        {
            "unique_id": np.repeat(names, rows),
            "ds": np.tile(pd.date_range("2024", periods=rows, freq="D"), len(names)),
            "y": 50 + rng.standard_normal(rows * len(names)).cumsum(),
        }
    )
    early = df[df["ds"] < df["ds"].min() + pd.Timedelta(days=50)]
    f = XLSTMForecaster(horizon=4, model=model, max_steps=2, d_model=16, blocks="s", calendar=()).fit(
        early, verbose=False
    )
    panel = f._to_panel(df)
    series, origin = (x.ravel() for x in np.meshgrid(np.arange(500), np.arange(57, 77), indexing="ij"))

    def seconds(run: Any) -> float:
        start = time.process_time()
        run()
        return time.process_time() - start

    one = min(seconds(lambda: f._forecast(panel, series, origin, (0.1, 0.5, 0.9))) for _ in range(2))
    assert len(backtest(f, df, n_windows=20, step_size=1)) == 500 * 20 * 4
    assert min(seconds(lambda: backtest(f, df, n_windows=20, step_size=1)) for _ in range(2)) < 3 * one


@pytest.mark.parametrize("model", ["patch", "linear"])
def test_a_window_without_any_value_before_it_has_no_forecast(model):
    df = pd.DataFrame({"unique_id": np.repeat(["a", "b"], 60), "ds": [*range(60)] * 2, "y": np.arange(120.0) % 7})
    f = XLSTMForecaster(horizon=4, model=model, max_steps=2, d_model=8).fit(df[df["ds"] < 40], verbose=False)
    late = df.assign(y=df["y"].mask((df["unique_id"] == "a") & (df["ds"] < 52)))
    found = backtest(f, late, n_windows=4, step_size=4)
    blank = (found["unique_id"] == "a") & (found["cutoff"] < 52)
    assert blank.any()
    assert found.loc[blank, ["forecast", "q0.1", "q0.9"]].isna().all(axis=None)
    assert found.loc[~blank, "forecast"].notna().all()
    assert np.isfinite(evaluate(found, ["mae"])["mae"]).all()
