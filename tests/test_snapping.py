"""Times that keep no strict step, moved onto a grid that does."""

from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pytest

from xlstm_forecast import XLSTMForecaster
from xlstm_forecast.data import snap_times

WEEKS = pd.date_range("2015-01-04", periods=260, freq="W-SUN")


def irregular(share: float = 0.2) -> pd.DataFrame:
    """Weeks of which a share is stamped a day early or late, with a yearly season."""
    rng = np.random.default_rng(0)
    off = np.where(rng.random(len(WEEKS)) < share, rng.integers(-1, 2, len(WEEKS)), 0)
    season = np.sin(2 * np.pi * np.arange(len(WEEKS)) / 52)
    return pd.DataFrame({"ds": WEEKS + pd.to_timedelta(off, "D"), "y": 10 + 3 * season})


@pytest.mark.parametrize("freq", ["W", "7D", "W-SUN"])
def test_irregular_weeks_get_the_commonest_weekday(freq):
    df = irregular()
    before = df.copy()
    assert (snap_times(df, freq, id_col=None)["ds"] == WEEKS).all()
    pd.testing.assert_frame_equal(df, before)


def test_a_forecaster_finds_the_season_of_irregular_weeks():
    df = irregular()
    with pytest.raises(ValueError, match=r"no clear frequency.*snap_times"):
        XLSTMForecaster(horizon=26, id_col=None, model="linear").fit(df)
    with pytest.raises(ValueError, match=r"not on the grid.*snap_times"):
        XLSTMForecaster(horizon=26, id_col=None, model="linear", freq="W-SUN").fit(df)
    found = XLSTMForecaster(horizon=26, id_col=None, model="linear").fit(snap_times(df, "W", id_col=None)).predict()
    expected = 10 + 3 * np.sin(2 * np.pi * np.arange(260, 286) / 52)
    assert np.abs(found["forecast"] - expected).max() < 0.1


def test_weeks_counted_from_new_year_leave_a_gap_every_seven_years():
    times = np.concatenate([pd.date_range(f"{year}-01-01", periods=52, freq="7D") for year in range(2000, 2018)])
    found = snap_times(pd.DataFrame({"ds": times}), "W", id_col=None)["ds"]
    steps = found.diff().dropna().dt.days
    assert set(steps) == {7, 14}
    assert (steps == 14).sum() in (2, 3)  # 18 years of 1.24 days more than 52 weeks
    assert np.abs(found - times).max() < pd.Timedelta(days=3.5)


def test_each_series_has_its_own_weekday_in_its_zone_whatever_the_order_of_rows():
    one = irregular()
    df = pd.concat([one.assign(unique_id="a"), one.assign(unique_id="b", ds=one["ds"] + pd.Timedelta(days=2))])
    df["ds"] = df["ds"].dt.tz_localize("Europe/Berlin")
    shuffled = df.sample(frac=1, random_state=0)
    found = snap_times(shuffled, "W")
    assert found["y"].equals(shuffled["y"])
    for name, days in (("a", 0), ("b", 2)):
        times = found[found["unique_id"] == name].sort_values("y", kind="stable")["ds"].sort_values()
        assert list(times) == list((WEEKS + pd.Timedelta(days=days)).tz_localize("Europe/Berlin"))


@pytest.mark.parametrize(
    ("freq", "expected"), [("MS", "2024-01-01 2024-02-01 2024-03-01"), ("ME", "2023-12-31 2024-01-31 2024-02-29")]
)
def test_months_go_to_the_nearest_start_or_end(freq, expected):
    df = pd.DataFrame({"ds": pd.to_datetime(["2024-01-05", "2024-02-03", "2024-03-04"])})
    assert list(snap_times(df, freq, id_col=None)["ds"]) == list(pd.to_datetime(expected.split()))


def test_integers_and_polars_frames():
    assert snap_times(pd.DataFrame({"ds": [0, 10, 21, 29]}), 10, id_col=None)["ds"].tolist() == [0, 10, 20, 30]
    found = snap_times(pl.from_pandas(irregular()), "W", id_col=None)
    assert isinstance(found, pl.DataFrame)
    assert found["ds"].to_list() == list(WEEKS)


def test_two_rows_on_one_step_are_an_error_that_names_them():
    df = pd.DataFrame({"ds": pd.to_datetime(["2024-01-07", "2024-01-09", "2024-01-14"]), "unique_id": "shop"})
    with pytest.raises(
        ValueError, match=r"1 row falls on a step of freq='7D'.*unique_id='shop', ds=2024-01-09.*2024-01-07"
    ):
        snap_times(df, "W")
    with pytest.raises(ValueError, match="no column 'when'"):
        snap_times(df, "W", time_col="when")
