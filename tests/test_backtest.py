"""Backtests: which windows, what each fit and forecast may see, resuming, workers, and what is refused."""

from __future__ import annotations

import itertools
import os
from typing import Any

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.base import clone

from xlstm_forecast import XLSTMForecaster
from xlstm_forecast.backtest import backtest, iterate
from xlstm_forecast.baselines import BASELINES, LastValue, Linear, SeasonalNaive
from xlstm_forecast.calibration import CalibratedForecaster, calibrate, calibrated
from xlstm_forecast.heads import HEADS
from xlstm_forecast.models import MODELS

ROWS, HORIZON = 60, 4
START = pd.Timestamp("2024-01-01")


def make(rows: int = ROWS, ids: str = "abc") -> pd.DataFrame:
    """Daily walks with a known price and past-only visitors."""
    rng = np.random.default_rng(0)
    n = rows * len(ids)
    return pd.DataFrame(
        {
            "unique_id": np.repeat(list(ids), rows),
            "ds": np.tile(pd.date_range(START, periods=rows, freq="D"), len(ids)),
            "y": 50 + rng.standard_normal(n).cumsum(),
            "price": rng.standard_normal(n),
            "visitors": rng.standard_normal(n),
        }
    )


def tiny(**options: Any) -> XLSTMForecaster:
    small: dict[str, Any] = {"horizon": HORIZON, "max_steps": 2, "d_model": 8, "input_length": 12, "blocks": "s"}
    return XLSTMForecaster(**{**small, "quantiles": (0.1, 0.5, 0.9), "calendar": (), **options})


def day(n: int) -> pd.Timestamp:
    return START + pd.Timedelta(days=n)


def spoiled(df: pd.DataFrame, cutoff: Any) -> pd.DataFrame:
    """The target and the past-only column replaced by nonsense, some of it missing, after a time."""
    out = df.copy()
    late = (out["ds"] > cutoff).to_numpy()
    rng = np.random.default_rng(1)
    for column in ("y", "visitors"):
        out.loc[late, column] = np.where(rng.random(late.sum()) < 0.2, np.nan, 1e6 * rng.standard_normal(late.sum()))
    return out


class Recorder(SeasonalNaive):
    """Seasonal naive that remembers what its fits were given, and fails when it is told to."""

    seen: list[pd.DataFrame] = []  # noqa: RUF012
    fail_after: int | None = None

    def fit(self, df: Any, static_df: Any = None, **options: Any) -> Any:
        type(self).seen.append(df)
        if self.fail_after is not None and len(self.seen) > self.fail_after:
            raise RuntimeError("the machine went away")
        return super().fit(df, static_df, **options)


@pytest.fixture(autouse=True)
def _forget():
    Recorder.seen, Recorder.fail_after = [], None


# --- which windows


def test_the_frame_holds_the_last_windows_of_every_series_and_their_labels():
    df = make()
    frame = backtest(LastValue(horizon=HORIZON), df, n_windows=3)
    assert frame.columns.tolist() == ["unique_id", "ds", "cutoff", "y", "forecast", "q0.1", "q0.5", "q0.9"]
    assert len(frame) == 3 * 3 * HORIZON
    assert sorted(frame["cutoff"].unique()) == [day(ROWS - 1 - HORIZON * k) for k in (3, 2, 1)]
    joined = frame.merge(df, on=["unique_id", "ds"], suffixes=("", "_given"))
    assert (joined["y"] == joined["y_given"]).all()
    last = df.rename(columns={"ds": "cutoff", "y": "last"})
    assert (frame.merge(last, on=["unique_id", "cutoff"])["last"] == frame["forecast"]).all()


def test_steps_horizon_and_cutoffs_can_be_chosen():
    df = make()
    overlapping = backtest(LastValue(horizon=HORIZON), df, n_windows=4, step_size=1, horizon=2)
    assert sorted(overlapping["cutoff"].unique()) == [day(ROWS - 1 - 2 - k) for k in (3, 2, 1, 0)]
    assert overlapping.groupby(["unique_id", "cutoff"]).size().unique().tolist() == [2]
    named = backtest(LastValue(horizon=HORIZON), df, cutoffs=["2024-02-10", day(30)])
    assert sorted(named["cutoff"].unique()) == [day(30), pd.Timestamp("2024-02-10")]
    one = backtest(LastValue(horizon=HORIZON), df, cutoffs="2024-02-10")
    assert one["cutoff"].unique().tolist() == [pd.Timestamp("2024-02-10")]


def ragged() -> pd.DataFrame:
    df = make()
    ends = {"a": 60, "b": 50, "c": 45}
    return df[df["ds"] < df["unique_id"].map(lambda i: day(ends[i]))].reset_index(drop=True)


def test_ragged_series_have_their_own_cutoffs_or_those_of_the_calendar():
    df = ragged()
    own = backtest(LastValue(horizon=HORIZON), df, n_windows=2)
    last = own.groupby("unique_id")["cutoff"].max()
    assert last.to_dict() == {"a": day(55), "b": day(45), "c": day(40)}
    common = backtest(LastValue(horizon=HORIZON), df, n_windows=4, align="calendar")
    assert common.groupby("unique_id")["cutoff"].max().to_dict() == {"a": day(55), "b": day(47), "c": day(43)}
    assert common[common["ds"] >= day(45)].query("unique_id == 'c'")["y"].isna().all()
    for cutoffs in ({"a": [day(40), day(50)], "b": day(30)}, pd.DataFrame({"unique_id": ["a"], "cutoff": [day(40)]})):
        named = backtest(LastValue(horizon=HORIZON), df, cutoffs=cutoffs)
        wanted = {("a", day(40)), ("a", day(50)), ("b", day(30))} if isinstance(cutoffs, dict) else {("a", day(40))}
        assert set(named[["unique_id", "cutoff"]].itertuples(index=False, name=None)) == wanted


def test_other_kinds_of_frames_times_and_targets_come_back_as_given():
    df = make()
    expected = backtest(LastValue(horizon=HORIZON), df, n_windows=2)
    polars = backtest(LastValue(horizon=HORIZON), pl.from_pandas(df), n_windows=2)
    assert isinstance(polars, pl.DataFrame)
    assert polars["q0.9"].to_list() == expected["q0.9"].tolist()
    zoned = df.assign(ds=df["ds"].dt.tz_localize("Europe/Berlin"))
    assert backtest(LastValue(horizon=HORIZON), zoned, n_windows=2)["cutoff"].dtype == zoned["ds"].dtype
    whole = df.assign(ds=(df["ds"] - START).dt.days)
    numbered = backtest(LastValue(horizon=HORIZON), whole, n_windows=2, refit=True)
    assert sorted(numbered["cutoff"].unique()) == [51, 55]
    two = backtest(LastValue(horizon=HORIZON, target_col=["y", "visitors"]), df, n_windows=2)
    assert two.columns.tolist()[:5] == ["unique_id", "ds", "cutoff", "target", "label"]
    y = two[two["target"] == "y"].reset_index(drop=True)
    assert (y["label"].to_numpy() == expected["y"].to_numpy()).all()
    alone = df[df["unique_id"] == "a"].set_index("ds")["y"]
    series = backtest(LastValue(horizon=HORIZON, id_col=None), alone, n_windows=2, refit=True)
    assert series["forecast"].tolist() == expected.query("unique_id == 'a'")["forecast"].tolist()
    shuffled = backtest(LastValue(horizon=HORIZON), df.sample(frac=1, random_state=0), n_windows=2, refit=True)
    pd.testing.assert_frame_equal(shuffled, expected)


def test_gaps_are_masked_where_the_forecaster_masks_them():
    df = make().drop(index=[20, 21, 75]).reset_index(drop=True)
    with pytest.raises(ValueError, match=r"gap|missing"):
        backtest(LastValue(horizon=HORIZON), df)
    frame = backtest(LastValue(horizon=HORIZON, on_gap="mask"), df, n_windows=13, refit=13)
    assert frame["y"].isna().sum() == 3
    assert frame["forecast"].notna().all()


# --- what a fit and a forecast may see


@pytest.mark.parametrize(
    ("refit", "ends"),
    [
        (False, [43]),
        (True, [43, 47, 51, 55]),
        (2, [43, 51]),
        (3, [43, 55]),
        (day(50), [43, 51, 55]),
        ("2024-02-24", [43, 55]),
    ],
)
def test_fits_are_as_many_as_asked_and_end_at_their_cutoff(refit, ends):
    backtest(Recorder(horizon=HORIZON), make(), n_windows=4, refit=refit)
    assert [part["ds"].max() for part in Recorder.seen] == [day(end) for end in ends]
    assert all(part["ds"].min() == START for part in Recorder.seen)


def test_a_sliding_span_cuts_the_start_and_ragged_series_end_at_their_own_cutoffs():
    backtest(Recorder(horizon=HORIZON), make(), n_windows=2, refit=True, span=20)
    assert [part.groupby("unique_id").size().tolist() for part in Recorder.seen] == [[20, 20, 20]] * 2
    Recorder.seen = []
    backtest(Recorder(horizon=HORIZON), ragged(), n_windows=2, refit=True)
    ends = [part.groupby("unique_id")["ds"].max().tolist() for part in Recorder.seen]
    assert ends == [[day(51), day(41), day(36)], [day(55), day(45), day(40)]]
    Recorder.seen = []
    backtest(Recorder(horizon=HORIZON), ragged(), n_windows=2, refit=True, align="calendar")
    assert [part["ds"].max() for part in Recorder.seen] == [day(51), day(55)]


class Tripwire:
    """A value that raises when it is read as a number."""

    def __float__(self) -> float:
        raise AssertionError("a row after the cutoff was read")


def test_a_fit_never_reads_a_row_after_its_cutoff():
    class Reader(SeasonalNaive):
        def fit(self, df, static_df=None, **options):
            rows = df.index.to_numpy()
            wired = make()["y"].astype(object)
            wired[make()["ds"] > df["ds"].max()] = Tripwire()
            read = np.array([float(value) for value in wired[rows]])
            return super().fit(df.assign(y=read), static_df, **options)

    for refit in (False, True, 2):
        assert len(backtest(Reader(horizon=HORIZON), make(), n_windows=4, refit=refit)) == 48


COMBINATIONS = [
    (model, head, scaling, refit)
    for model, head, scaling in itertools.product(MODELS, HEADS, ("window", "causal"))
    for refit in (False, True)
]


def assert_no_leak(forecaster: Any, refit: Any, levels: bool = True, n_windows: int = 3, **options: Any) -> None:
    """Spoiling everything after each cutoff leaves what was forecast at or before it bit-equal."""
    df = make()
    clean = backtest(forecaster(), df, n_windows=n_windows, refit=refit, **options)
    assert clean["forecast"].notna().all()
    for cutoff in sorted(clean["cutoff"].unique()):
        other = backtest(forecaster(), spoiled(df, cutoff), n_windows=n_windows, refit=refit, **options)
        before = (clean["cutoff"] <= cutoff).to_numpy()
        columns = ["forecast", *(["q0.1", "q0.9"] if levels else [])]
        assert before.sum() >= 3 * HORIZON
        pd.testing.assert_frame_equal(clean.loc[before, columns], other.loc[before, columns], check_exact=True)
        if not before.all():
            assert not clean.loc[~before, columns].equals(other.loc[~before, columns])


@pytest.mark.parametrize(("model", "head", "scaling", "refit"), COMBINATIONS)
def test_no_model_head_scaler_or_refit_leaks(model, head, scaling, refit):
    def forecaster() -> XLSTMForecaster:
        return tiny(model=model, head=head, scaling=scaling, future=("price",), past=("visitors",))

    assert_no_leak(forecaster, refit, levels=head != "point" or model == "linear", n_windows=2)


@pytest.mark.parametrize("refit", [2, day(50)])
def test_no_refit_schedule_leaks(refit):
    assert_no_leak(lambda: tiny(future=("price",), past=("visitors",)), refit)
    assert_no_leak(lambda: tiny(), refit, span=30)


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("refit", [False, True])
def test_no_baseline_leaks(name, refit):
    assert_no_leak(lambda: BASELINES[name](horizon=HORIZON), refit)


@pytest.mark.parametrize("refit", [False, True])
def test_no_calibrated_forecaster_leaks(refit):
    for options in ({}, {"method": "conformal", "adaptive": True}, {"pool": "series", "half_life": 50.0}):
        assert_no_leak(lambda o=options: CalibratedForecaster(Linear(horizon=HORIZON), n_windows=7, **o), refit)


@pytest.mark.parametrize(
    "options", [{}, {"adaptive": True}, {"pool": "series"}, {"method": "conformal", "half_life": 3.0}]
)
def test_rolling_calibration_of_a_backtest_leaks_nothing(options):
    df = make()
    clean = calibrated(backtest(Linear(horizon=HORIZON), df, n_windows=8), **options)
    cutoffs = sorted(clean["cutoff"].unique())
    assert len(cutoffs) >= 3
    for cutoff in cutoffs:
        frame = backtest(Linear(horizon=HORIZON), spoiled(df, cutoff), n_windows=8)
        frame["y"] = frame["y"].fillna(1e6)
        other = calibrated(frame, **options)
        before = (clean["cutoff"] <= cutoff).to_numpy()
        pd.testing.assert_series_equal(clean.loc[before, "q0.9"], other.loc[before, "q0.9"], check_exact=True)


def test_early_stopping_looks_at_windows_before_the_cutoff_only():
    df = make()
    first = backtest(tiny(max_steps=20), df, n_windows=2, fit_options={"val_size": 8})
    late = spoiled(df, first["cutoff"].min())
    other = backtest(tiny(max_steps=20), late, n_windows=2, fit_options={"val_size": 8})
    early = first["cutoff"] == first["cutoff"].min()
    assert first.loc[early, "forecast"].tolist() == other.loc[early, "forecast"].tolist()


# --- fitted forecasters


def test_a_forecaster_that_is_not_fitted_stays_so_and_is_read_anew_each_time():
    df = make()
    forecaster = Linear(horizon=HORIZON, season_length=1)
    fitted = Linear(horizon=HORIZON, season_length=1).fit(df[df["ds"] <= day(ROWS - 1 - 2 * HORIZON)])
    plain = backtest(forecaster, df, n_windows=2)
    pd.testing.assert_frame_equal(plain, backtest(fitted, df, n_windows=2))  # on the rows up to the first cutoff
    for refit in (False, True):
        backtest(forecaster, df, n_windows=2, refit=refit)
        assert not hasattr(forecaster, "panel_")
    other = df.assign(y=df["y"] ** 2)
    pd.testing.assert_frame_equal(
        backtest(forecaster, other, n_windows=3),
        backtest(Linear(horizon=HORIZON, season_length=1), other, n_windows=3),
    )
    seasonal = backtest(forecaster.set_params(season_length=7), df, n_windows=2)
    pd.testing.assert_frame_equal(seasonal, backtest(Linear(horizon=HORIZON, season_length=7), df, n_windows=2))
    assert not seasonal["forecast"].equals(plain["forecast"])


def test_a_forecaster_fitted_on_later_data_is_refused_without_refits():
    df = make()
    for forecaster in (tiny(), Linear(horizon=HORIZON)):
        forecaster.fit(df, verbose=False)
        with pytest.raises(ValueError, match=r"fitted on data up to 2024-02-29.*after the cutoff 2024-02-17"):
            backtest(forecaster, df, n_windows=3)
        assert len(backtest(forecaster, df, n_windows=3, refit=3)) == 36
        early = clone(forecaster).fit(df[df["ds"] <= day(47)], verbose=False)
        assert len(backtest(early, df, n_windows=3)) == 36
        with pytest.raises(ValueError, match="after the cutoff"):
            backtest(early, df, n_windows=4)


def test_the_method_of_the_forecaster_is_the_function():
    df = make()
    pd.testing.assert_frame_equal(
        Linear(horizon=HORIZON).backtest(df, n_windows=2), backtest(Linear(horizon=HORIZON), df, n_windows=2)
    )


def test_without_refits_each_window_equals_a_forecast_from_its_history():
    df = make()
    forecaster = tiny(future=("price",), past=("visitors",)).fit(df[df["ds"] <= day(47)], verbose=False)
    frame = backtest(forecaster, df, n_windows=3)
    for cutoff in frame["cutoff"].unique():
        alone = forecaster.predict(df[df["ds"] <= cutoff], future_df=df[df["ds"] > cutoff].drop(columns="y"))
        part = frame[frame["cutoff"] == cutoff].reset_index(drop=True)
        np.testing.assert_allclose(part["q0.9"], alone["q0.9"], rtol=1e-5)
        assert (part["ds"] == alone["ds"]).all()


# --- known-future columns


def test_known_columns_come_from_the_frame_from_future_rows_or_as_known_at_each_cutoff():
    df = make()
    forecaster = tiny(future=("price",)).fit(df[df["ds"] <= day(47)], verbose=False)
    ahead = pd.DataFrame(
        {
            "unique_id": np.repeat(list("abc"), HORIZON),
            "ds": np.tile([day(ROWS + k) for k in range(HORIZON)], 3),
            "price": 0.5,
        }
    )
    with pytest.raises(ValueError, match=r"reaches 2 steps beyond its last row.*pass future_df"):
        backtest(forecaster, df, cutoffs=[day(57)])
    late = backtest(forecaster, df, cutoffs=[day(57)], future_df=ahead)
    assert late["y"].notna().sum() == 6
    vintages = pd.concat(
        [df[(df["ds"] > c) & (df["ds"] <= c + pd.Timedelta(days=HORIZON))].assign(cutoff=c) for c in (day(51), day(55))]
    ).drop(columns=["y", "visitors"])
    plain = backtest(forecaster, df, n_windows=2)
    same = backtest(forecaster, df, n_windows=2, future_df=vintages)
    np.testing.assert_allclose(same["forecast"], plain["forecast"], rtol=1e-5)
    moved = backtest(forecaster, df, n_windows=2, future_df=vintages.assign(price=vintages["price"] + 3))
    assert np.abs(moved["forecast"] - plain["forecast"]).max() > 1e-6


def test_overlapping_future_rows_are_refused():
    df = make()
    forecaster = tiny(future=("price",))
    with pytest.raises(ValueError, match="future_df overlaps the data in 30 rows; first: unique_id='a'"):
        backtest(forecaster, df, future_df=df[df["ds"] >= day(50)])
    with pytest.raises(ValueError, match="future_df overlaps the past: 3 rows lie at or before their cutoff"):
        backtest(forecaster, df, n_windows=1, future_df=df[df["ds"] >= day(55)].assign(cutoff=day(55)))


# --- failing, resuming, workers


class Fragile(LastValue):
    """Fails to forecast from an origin of 52 rows."""

    def _forecast(self, panel, series, origin, levels):
        if (np.asarray(origin) == 52).any():
            raise RuntimeError("bad window")
        return super()._forecast(panel, series, origin, levels)


@pytest.mark.parametrize("make_frame", [lambda df: df, pl.from_pandas])
def test_a_failing_window_ends_the_run_or_is_recorded(make_frame):
    df = make_frame(make())
    with pytest.raises(RuntimeError, match="bad window"):
        backtest(Fragile(horizon=HORIZON), df, n_windows=3)
    frame = backtest(Fragile(horizon=HORIZON), df, n_windows=3, on_error="record")
    frame = frame if isinstance(frame, pd.DataFrame) else frame.to_pandas()
    failed = frame["cutoff"] == day(51)
    assert failed.sum() == 12
    assert frame.loc[failed, "forecast"].isna().all()
    assert frame.loc[failed, "error"].unique().tolist() == ["RuntimeError: bad window"]
    assert frame.loc[~failed, "forecast"].notna().all()
    assert frame.loc[~failed, "error"].isna().all()


def test_a_killed_run_goes_on_from_its_folder(tmp_path):
    df = make()
    whole = backtest(Recorder(horizon=HORIZON), df, n_windows=4, refit=True)
    Recorder.seen, Recorder.fail_after = [], 2
    with pytest.raises(RuntimeError, match="went away"):
        backtest(Recorder(horizon=HORIZON), df, n_windows=4, refit=True, folder=tmp_path / "run")
    assert len(list((tmp_path / "run").glob("window-*.npz"))) == 2
    Recorder.seen, Recorder.fail_after = [], None
    again = backtest(Recorder(horizon=HORIZON), df, n_windows=4, refit=True, folder=tmp_path / "run")
    assert len(Recorder.seen) == 2
    pd.testing.assert_frame_equal(again, whole, check_exact=True)
    Recorder.seen = []
    backtest(Recorder(horizon=HORIZON), df, n_windows=4, refit=True, folder=tmp_path / "run")
    assert Recorder.seen == []


def test_a_folder_of_another_backtest_is_refused(tmp_path):
    df = make()
    backtest(LastValue(horizon=HORIZON), df, folder=tmp_path)
    for other in (
        lambda: backtest(LastValue(horizon=HORIZON), df, n_windows=2, folder=tmp_path),
        lambda: backtest(LastValue(horizon=HORIZON), df.assign(y=df["y"] + 1), folder=tmp_path),
        lambda: backtest(LastValue(horizon=HORIZON, season_length=7), df, folder=tmp_path),
        lambda: backtest(Linear(horizon=HORIZON), df, folder=tmp_path),
    ):
        with pytest.raises(ValueError, match="holds windows of another backtest"):
            other()
    fitted = [tiny(seed=seed).fit(df[df["ds"] <= day(47)], verbose=False) for seed in (0, 1)]
    fitted[1].seed = 0
    backtest(fitted[0], df, folder=tmp_path / "fitted")
    with pytest.raises(ValueError, match="another backtest"):
        backtest(fitted[1], df, folder=tmp_path / "fitted")


def test_a_folder_knows_what_was_fitted_and_the_frames_beside_the_data(tmp_path):
    df = make()
    past = df[df["ds"] <= day(47)]
    linear = [Linear(horizon=HORIZON).fit(part) for part in (past, past.assign(y=past["y"] ** 2))]
    networks = [tiny().fit(past, verbose=False) for _ in "ab"]
    networks[1].weights_ = {name: 1 - weight for name, weight in networks[1].weights_.items()}
    bands = [calibrate(LastValue(horizon=HORIZON), past, n_windows=n) for n in (5, 6)]
    for i, (one, other) in enumerate([linear, networks, bands]):
        frame = backtest(one, df, folder=tmp_path / str(i))
        pd.testing.assert_frame_equal(backtest(one, df, folder=tmp_path / str(i)), frame)
        with pytest.raises(ValueError, match="another backtest"):
            backtest(other, df, folder=tmp_path / str(i))
    networks[0].save(tmp_path / "kept")
    backtest(XLSTMForecaster.load(tmp_path / "kept"), df, folder=tmp_path / "1")

    future = df.assign(price=df["price"] + 1)[df["ds"] > day(51)]
    vintages = pd.concat([future[future["ds"] > c].assign(cutoff=c) for c in (day(51), day(55))])
    vintages = vintages[vintages["ds"] <= vintages["cutoff"] + pd.Timedelta(days=HORIZON)]
    static = pd.DataFrame({"unique_id": list("abc"), "size": [1.0, 2.0, 3.0]})
    known = {"n_windows": 2, "static_df": static, "future_df": vintages, "folder": tmp_path / "known"}
    forecaster = tiny(future=("price",), static=("size",))
    forecaster.fit(past, static_df=static, verbose=False)
    backtest(forecaster, df, **known)
    for change in (
        {"future_df": vintages.assign(price=vintages["price"] * 2)},
        {"static_df": static.assign(size=[3.0, 2.0, 1.0])},
    ):
        with pytest.raises(ValueError, match="another backtest"):
            backtest(forecaster, df, **{**known, **change})


def test_workers_give_the_bits_of_the_serial_run():
    df = make()
    serial = backtest(tiny(), df, n_windows=3, refit=True)
    with joblib.parallel_config("threading"):
        pd.testing.assert_frame_equal(backtest(tiny(), df, n_windows=3, refit=True, n_jobs=2), serial, check_exact=True)


def test_fits_come_one_by_one():
    df = make()
    parts = list(iterate(LastValue(horizon=HORIZON), df, n_windows=3, refit=True))
    assert [part["cutoff"].nunique() for part in parts] == [1, 1, 1]
    whole = backtest(LastValue(horizon=HORIZON), df, n_windows=3)
    joined = pd.concat(parts).sort_values(["unique_id", "cutoff", "ds"], ignore_index=True)
    pd.testing.assert_frame_equal(joined, whole)


def test_progress_is_shown_when_asked_for(capsys):
    backtest(LastValue(horizon=HORIZON), make())
    assert capsys.readouterr().err == ""
    backtest(LastValue(horizon=HORIZON), make(), verbose=True)
    assert "3/3" in capsys.readouterr().err


# --- bad input, before any fit


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_windows": 30}, r"has 60 rows, but 30 windows of 4 steps, 4 apart, need 121.*n_windows=14 would do"),
        ({"n_windows": 58, "step_size": 1}, r"n_windows=55 would do"),
        ({"n_windows": 0}, "n_windows=0"),
        ({"step_size": 0}, "step_size=0"),
        ({"horizon": 5}, "horizon=5: the forecaster reaches from 1 to 4"),
        ({"cutoffs": []}, "cutoffs is empty"),
        ({"cutoffs": ["2023-01-01"]}, "cutoff 2023-01-01.* lies outside the data: rows run from 2024-01-01"),
        ({"cutoffs": ["2024-02-29"]}, "lies outside the data"),
        ({"cutoffs": [day(40), day(40)]}, "names a time stamp twice"),
        ({"cutoffs": {"z": [day(40)]}}, "the series 'z', which is not in the data"),
        ({"cutoffs": {"a": [day(90)]}}, "unique_id='a' lies outside its rows"),
        ({"cutoffs": {"a": [day(40), day(40)]}}, "unique_id='a' twice"),
        ({"cutoffs": pd.DataFrame({"unique_id": ["a"], "time": [day(40)]})}, "no column 'cutoff'"),
        ({"refit": "soon"}, "refit='soon'"),
        ({"refit": 0}, "refit=0"),
        ({"refit": 1.5}, "refit=1.5"),
        ({"refit": None}, "refit=None: False, True, every how many windows"),
        ({"refit": pd.NaT}, "refit=NaT"),
        ({"quantiles": (0.9, 0.1)}, "ascending"),
        ({"quantiles": (0.1, 0.1 + 1e-8, 0.9)}, r"column 'q0\.1'|six digits"),
        ({"span": "sliding"}, "span='sliding'"),
        ({"span": 0}, "span=0"),
        ({"align": "id"}, "align='id'"),
        ({"on_error": "skip"}, "on_error='skip'"),
    ],
)
def test_what_cannot_be_backtested_is_refused_before_any_fit(options, message):
    with pytest.raises(ValueError, match=message):
        backtest(Recorder(horizon=HORIZON), make(), **options)
    assert Recorder.seen == []


def test_too_few_rows_for_a_fit_are_refused_before_it():
    df = make(20)
    told = "the fit at the cutoff 2024-01-04 .* sees 4 rows of the longest series, and needs 5"
    with pytest.raises(ValueError, match=told.replace(" .* ", r".*")):
        backtest(tiny(), df, n_windows=4)
    with pytest.raises(ValueError, match=r"sees 3 rows .* needs 5.*longer span"):
        backtest(tiny(), df, n_windows=1, span=3)
    with pytest.raises(ValueError, match="n_windows=3 would do"):
        backtest(tiny(), df, n_windows=9)
    assert len(backtest(tiny(), df, n_windows=3)) == 36
    assert len(backtest(LastValue(horizon=HORIZON), make(), n_windows=55, step_size=1)) == 3 * 55 * HORIZON


def test_numpy_s_booleans_are_booleans():
    for value in (False, True):
        Recorder.seen = []
        backtest(Recorder(horizon=HORIZON), make(), refit=np.bool_(value))
        assert len(Recorder.seen) == (3 if value else 1)


@pytest.mark.parametrize(
    ("part", "name", "options"),
    [
        ("target_col", "forecast", {}),
        ("target_col", "cutoff", {}),
        ("target_col", "sample", {}),
        ("target_col", "q0.5", {}),
        ("target_col", "error", {"on_error": "record"}),
        ("id_col", "cutoff", {}),
        ("time_col", "forecast", {}),
        ("time_col", "target", {}),
    ],
)
def test_columns_named_like_those_of_the_frame_of_forecasts_are_refused(part, name, options):
    own = {"id_col": "unique_id", "time_col": "ds", "target_col": "y"}[part]
    df = make().rename(columns={own: name})
    with pytest.raises(ValueError, match=f"{part}='{name}'.*rename"):
        backtest(Recorder(horizon=HORIZON, **{part: name}), df, **options)
    assert Recorder.seen == []
    several = df.rename(columns={name: own}).rename(columns={"unique_id": "label"})
    with pytest.raises(ValueError, match="id_col='label'"):
        backtest(Recorder(horizon=HORIZON, id_col="label", target_col=["y", "price"]), several)
    fine = backtest(LastValue(horizon=HORIZON, target_col="target"), make().rename(columns={"y": "target"}))
    assert "target" in fine


def test_a_window_without_any_label_is_refused():
    df = make()
    df.loc[df["ds"].between(day(52), day(55)), "y"] = np.nan
    with pytest.raises(ValueError, match="no series has a label in the 4 steps after the cutoff 2024-02-21"):
        backtest(Recorder(horizon=HORIZON), df, n_windows=3)
    assert Recorder.seen == []


def test_nothing_is_written_to_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    backtest(tiny(), make(), n_windows=2, refit=True)
    assert os.listdir(tmp_path) == []
