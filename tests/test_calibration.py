"""Calibrated bands: coverage in numbers, order, online updates through change, and what is refused."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone

from xlstm_forecast import XLSTMForecaster
from xlstm_forecast.backtest import backtest
from xlstm_forecast.baselines import LastValue, Linear, SeasonalNaive
from xlstm_forecast.calibration import (
    CalibratedForecaster,
    Calibration,
    calibrate,
    calibrated,
    conformal_quantile,
    fit_calibration,
    reliability,
    scores_needed,
)
from xlstm_forecast.checkpoint import load_checkpoint
from xlstm_forecast.metrics import columns_of, compare, evaluate

LEVELS = (0.025, 0.1, 0.25, 0.5, 0.75, 0.9, 0.975)
Z = np.array([NormalDist().inv_cdf(q) for q in LEVELS])


def windows(
    noise: np.ndarray | None = None,
    *,
    series: int = 8,
    n: int = 60,
    horizon: int = 3,
    width: float = 0.5,
    seed: int = 0,
) -> pd.DataFrame:
    """Raw forecasts of 0 whose bands are `width` times too narrow for unit noise; scales differ by series."""
    rng = np.random.default_rng(seed)
    y = rng.standard_normal((series, n + horizon)) if noise is None else noise
    scale = 10.0 ** (np.arange(series) % 4)
    s, w, h = (index.ravel() for index in np.indices((series, n, horizon)))
    bands = {f"q{q:g}": width * z * scale[s] for q, z in zip(LEVELS, Z, strict=True)}
    label = y[s, w + h + 1 - (1 if noise is not None else 0)] * scale[s]
    return pd.DataFrame(
        {"unique_id": [f"s{i}" for i in s], "ds": w + h + 1, "cutoff": w, "y": label, "forecast": 0.0 * s, **bands}
    )


def coverage(frame: pd.DataFrame) -> np.ndarray:
    return evaluate(frame, ["coverage"]).to_numpy()[0]


# --- the rank


def test_the_conformal_quantile_is_the_score_of_that_rank():
    scores = np.array([5.0, 1.0, 4.0, 2.0, 3.0, 9.0, 7.0, 8.0, 6.0])
    for level, expected in ((0.5, 5.0), (0.8, 8.0), (0.9, 9.0), (0.91, np.inf)):
        assert conformal_quantile(scores, np.ones(9), np.array(level)) == expected
    holes = np.concatenate([scores, [np.nan, np.nan]])
    assert conformal_quantile(holes, np.ones(11), np.array(0.8)) == 8.0


def test_weights_count_like_repeated_scores():
    scores, weights = np.array([1.0, 2.0, 3.0]), np.array([3.0, 1.0, 2.0])
    repeated = np.repeat(scores, weights.astype(int))
    for level in (0.3, 0.5, 0.6, 0.8):
        a = conformal_quantile(scores, weights, np.array(level))
        assert a == conformal_quantile(repeated, np.ones(6), np.array(level))


@pytest.mark.parametrize(("nominal", "n"), [(0.5, 1), (0.8, 4), (0.9, 9), (0.95, 19), (0.99, 99)])
def test_a_band_needs_as_many_residuals_as_its_rank(nominal, n):
    assert scores_needed(nominal) == n
    assert np.isfinite(conformal_quantile(np.zeros(n), np.ones(n), np.array(nominal)))
    assert n == 1 or np.isinf(conformal_quantile(np.zeros(n - 1), np.ones(n - 1), np.array(nominal)))


# --- coverage


@pytest.mark.parametrize("method", ["cqr", "conformal"])
@pytest.mark.parametrize("pool", ["all", "series"])
@pytest.mark.parametrize("width", [0.5, 2.0])
def test_calibrated_bands_cover_what_they_promise(method, pool, width):
    calibration = fit_calibration(windows(width=width, seed=1, n=800), method=method, pool=pool)
    fresh = windows(width=width, seed=2, n=800)
    assert np.abs(coverage(fresh) - [0.5, 0.8, 0.95]).max() > 0.04
    assert np.abs(coverage(calibration.apply(fresh)) - [0.5, 0.8, 0.95]).max() < 0.02


def test_scores_rise_where_calibration_helps():
    raw = windows(width=0.4, seed=2)
    better = fit_calibration(windows(width=0.4, seed=1)).apply(raw)
    assert evaluate(better, ["crps"]).iloc[0, 0] < evaluate(raw, ["crps"]).iloc[0, 0]


def test_each_step_has_its_own_bands():
    frame = windows(seed=1)
    frame["y"] *= frame["ds"] - frame["cutoff"]
    done = fit_calibration(frame).apply(frame)
    width = (done["q0.9"] - done["q0.1"]) / (frame["q0.9"] - frame["q0.1"])
    by_step = width.groupby(frame["ds"] - frame["cutoff"]).mean()
    assert by_step[3] / by_step[1] == pytest.approx(3, rel=0.2)


def test_the_median_stays_and_the_bands_are_ordered_around_it():
    rng = np.random.default_rng(3)
    frame = windows(seed=1, series=1, n=200)
    crossed = frame.copy()
    names = columns_of(frame).quantiles
    crossed[names] = rng.standard_normal((len(frame), len(names)))
    crossed["q0.025"], crossed["q0.975"] = -3.0, 3.0
    choices: list[dict[str, Any]] = [{}, {"method": "conformal"}, {"adaptive": True}]
    for chosen in choices:
        done = fit_calibration(crossed, **chosen).apply(crossed)
        assert (done["forecast"] == crossed["forecast"]).all()
        values = done[[n for n in names if n != "q0.5"]].to_numpy()
        assert (np.diff(values, axis=1) >= 0).all()
        assert ((values[:, :3] <= 0) & (values[:, 3:] >= 0)).all()


def test_levels_without_a_partner_are_calibrated_alone():
    frame = windows(width=0.5, seed=1)[["unique_id", "ds", "cutoff", "y", "forecast", "q0.1", "q0.75"]]
    fresh = fit_calibration(frame).apply(windows(width=0.5, seed=2, n=200)[frame.columns])
    assert abs((fresh["y"] >= fresh["q0.1"]).mean() - 0.9) < 0.02
    assert abs((fresh["y"] <= fresh["q0.75"]).mean() - 0.75) < 0.02


def test_zero_width_and_constant_series_stay_finite():
    frame = windows(seed=1)
    flat = frame["unique_id"] == "s0"
    frame.loc[flat, ["y", *columns_of(frame).quantiles]] = 0.0
    done = fit_calibration(frame).apply(frame)
    assert np.isfinite(done[columns_of(frame).quantiles].to_numpy()).all()
    assert (done.loc[flat, "q0.9"] == 0).all()


def test_rescaling_the_data_rescales_the_bands():
    frame = windows(seed=1)
    values = ["y", "forecast", *columns_of(frame).quantiles]
    other = frame.copy()
    other[values] = 7.0 * other[values] - 3.0
    choices: list[dict[str, Any]] = [{}, {"method": "conformal", "pool": "series"}]
    for options in choices:
        a, b = fit_calibration(frame, **options).apply(frame), fit_calibration(other, **options).apply(other)
        np.testing.assert_allclose(b["q0.9"], 7.0 * a["q0.9"] - 3.0, rtol=1e-9)


def changing(series: int, n: int, horizon: int) -> np.ndarray:
    """Noise that triples and moves by two in the middle third."""
    y = np.random.default_rng(5).standard_normal((series, n + horizon))
    a, b = n // 3, 2 * n // 3
    y[:, a:b] = 3 * y[:, a:b] + 2
    return y


@pytest.mark.parametrize(("series", "horizon"), [(1, 1), (6, 3)])
@pytest.mark.parametrize("pool", ["all", "series"])
def test_adaptive_bands_hold_coverage_through_a_change_of_level_and_noise(series, horizon, pool):
    n = 600
    frame = windows(changing(series, n, horizon), series=series, n=n, horizon=horizon, width=1.0)
    online = calibrated(frame, pool=pool, adaptive=True)
    fixed = calibrated(frame, pool=pool)
    assert np.abs(coverage(online) - [0.5, 0.8, 0.95]).max() < 0.03
    for start in (200, 400):
        near = online[online["cutoff"].between(start, start + 149)]
        assert np.abs(coverage(near) - [0.5, 0.8, 0.95]).max() < 0.03 + 0.03 * (series == 1)
    assert np.abs(coverage(fixed[fixed["cutoff"].between(200, 299)]) - [0.5, 0.8, 0.95]).max() > 0.1


def test_recent_residuals_weigh_more_with_a_half_life():
    n = 120
    y = np.random.default_rng(5).standard_normal((4, n + 3))
    y[:, n // 2 :] *= 3
    frame = windows(y, series=4, n=n, width=1.0)
    plain, weighted = (fit_calibration(frame, half_life=h).offsets()[:, 1].mean() for h in (None, 10))
    recent = fit_calibration(frame[frame["cutoff"] >= n // 2]).offsets()[:, 1].mean()
    assert abs(weighted - recent) < 0.3 * abs(plain - recent)


@pytest.mark.parametrize("pool", ["all", "series"])
@pytest.mark.parametrize("step_size", [5, 2])
def test_fitted_and_rolling_bands_weigh_the_same_ages(pool, step_size):
    frame = backtest(SeasonalNaive(horizon=5), panel(250, "abc"), n_windows=30, step_size=step_size)
    last = frame["cutoff"].max()
    known = frame[frame["cutoff"] < last].assign(y=lambda t: t["y"].where(t["ds"] <= last))
    options = {"pool": pool, "half_life": {5: 1.0, 2: 3.0}[step_size] if pool == "all" else 6.0}
    rolled = calibrated(frame, **options).query("cutoff == @last")
    applied = fit_calibration(known, **options).apply(frame[frame["cutoff"] == last])
    np.testing.assert_array_equal(rolled[["q0.1", "q0.9"]], applied[["q0.1", "q0.9"]])


def test_updates_one_by_one_equal_one_pass():
    frame = windows(seed=1, n=40)
    choices: list[dict[str, Any]] = [{}, {"adaptive": True}, {"memory": 30, "pool": "series", "adaptive": 0.02}]
    for options in choices:
        whole = fit_calibration(frame, **options)
        late = frame.copy()
        late.loc[late["ds"] > 31, "y"] = np.nan  # not yet known when the first 30 cutoffs were
        parts = fit_calibration(late[late["cutoff"] <= 30], **options)
        for cutoff in range(31, 40):
            now = frame[frame["cutoff"] <= cutoff].copy()
            now.loc[now["ds"] > cutoff, "y"] = np.nan
            parts.update(now)
        parts.update(frame)
        if options.get("adaptive"):
            np.testing.assert_allclose(parts.drift, whole.drift, atol=0.02)
        np.testing.assert_allclose(parts.offsets(), whole.offsets(), atol=0.1)
        assert len(parts.residuals) == len(whole.residuals)


def test_a_label_that_is_filled_in_late_takes_its_place_in_time():
    frame = windows(seed=1)
    gap = frame.assign(y=frame["y"].where(frame["ds"] != 20))
    choices: list[dict[str, Any]] = [{"pool": "series", "half_life": 40.0}, {"pool": "all", "memory": 30}]
    for options in choices:
        whole, late = fit_calibration(frame, **options), fit_calibration(gap, **options)
        assert (late.offsets() != whole.offsets()).any() or "memory" in options
        np.testing.assert_array_equal(late.update(frame).offsets(), whole.offsets())


def test_reliability_has_an_error_that_covers_the_truth():
    rows = [reliability(windows(width=1.0, seed=seed), n_resamples=200) for seed in range(8)]
    far = [abs(r["coverage"] - r["nominal"]) > 2 * r["standard_error"] for r in rows]
    assert np.mean(far) < 0.2


# --- forecasters


def panel(n: int = 200, ids: str = "abcd") -> pd.DataFrame:
    rng = np.random.default_rng(0)
    season = 3 * np.sin(2 * np.pi * np.arange(n) / 7)
    parts = [
        pd.DataFrame({"unique_id": k, "ds": pd.date_range("2023", periods=n, freq="D"), "y": 20 + season + i + e})
        for i, k in enumerate(ids)
        for e in [rng.standard_normal(n)]
    ]
    return pd.concat(parts, ignore_index=True)


OPTIONS: dict[str, Any] = {"horizon": 5, "quantiles": LEVELS}


def test_a_fitted_forecaster_is_measured_on_the_windows_after_its_data():
    df = panel()
    early, middle = df[df["ds"] < "2023-03-01"], df[df["ds"] < "2023-06-01"]
    wrapped = calibrate(SeasonalNaive(**OPTIONS).fit(early), middle)
    assert wrapped.n_windows == 18
    after = wrapped.backtest(df, n_windows=9)
    raw = wrapped.forecaster_.backtest(df, n_windows=9)
    assert np.abs(coverage(after) - [0.5, 0.8, 0.95]).max() < 0.08
    assert (after["forecast"] == raw["forecast"]).all()
    forecast = wrapped.predict(df)
    assert forecast.columns.tolist() == ["unique_id", "ds", "forecast", *[f"q{q:g}" for q in LEVELS]]
    assert wrapped.predict(df, quantiles=(0.1, 0.9)).columns.tolist()[-2:] == ["q0.1", "q0.9"]
    with pytest.raises(ValueError, match=r"level 0.3 was not calibrated"):
        wrapped.predict(df, quantiles=(0.3,))
    with pytest.raises(ValueError, match="after the cutoff"):
        wrapped.backtest(middle, n_windows=2)


def test_a_forecaster_fitted_on_everything_is_measured_by_a_copy_fitted_before():
    df = panel()
    whole = Linear(**OPTIONS).fit(df)
    wrapped = calibrate(whole, df)
    assert wrapped.forecaster_ is whole
    assert (wrapped.predict()["forecast"] == whole.predict()["forecast"]).all()
    assert not (wrapped.predict()["q0.9"] == whole.predict()["q0.9"]).all()


def test_fit_clone_and_refits_work_as_for_any_forecaster():
    df = panel()
    made = CalibratedForecaster(Linear(**OPTIONS), n_windows=6, method="conformal")
    assert clone(made).get_params()["forecaster__horizon"] == 5
    frame = backtest(made, df, n_windows=2, refit=True)
    assert frame["q0.9"].notna().all()
    assert not hasattr(made, "calibration_")
    with pytest.raises(ValueError, match="not fitted"):
        made.predict(df)


def test_updates_follow_the_labels_that_arrived():
    df = panel()
    forecaster = SeasonalNaive(**OPTIONS).fit(df[df["ds"] < "2023-03-01"])
    known = df[df["ds"] < "2023-06-01"]
    wrapped = calibrate(forecaster, known, adaptive=True, pool="series", step_size=3)
    noisy = df.copy()
    late = noisy["ds"] >= "2023-06-01"
    noisy.loc[late, "y"] += 6 * np.random.default_rng(1).standard_normal(late.sum())
    before = wrapped.predict(known)
    for end in ("2023-06-20", "2023-07-01", "2023-07-20"):
        wrapped.update(noisy[noisy["ds"] < end])
    after = wrapped.predict()
    assert after["ds"].min() == pd.Timestamp("2023-07-20")
    width = [(f["q0.9"] - f["q0.1"]).mean() for f in (before, after)]
    assert width[1] > 2 * width[0]
    pd.testing.assert_frame_equal(wrapped.update(noisy[noisy["ds"] < "2023-07-20"]).predict(), after)


def test_the_xlstm_forecaster_is_calibrated_with_its_covariates():
    df = panel().assign(price=lambda d: np.sin(d.index.to_numpy()))
    forecaster = XLSTMForecaster(
        **OPTIONS, future=("price",), max_steps=5, d_model=8, input_length=14, blocks="s", calendar=()
    )
    forecaster.fit(df[df["ds"] < "2023-04-01"], verbose=False)
    wrapped = calibrate(forecaster, df[df["ds"] < "2023-06-20"])
    frame = wrapped.backtest(df, n_windows=5)
    assert np.abs(coverage(frame) - [0.5, 0.8, 0.95]).max() < 0.12
    future = df.groupby("unique_id").tail(5).assign(ds=lambda d: d["ds"] + pd.Timedelta(days=5))
    assert wrapped.predict(df, future_df=future)["q0.9"].notna().all()


def short(ends: dict[str, str], df: pd.DataFrame) -> pd.DataFrame:
    """The rows of each series up to its own end."""
    return df[df["ds"] < df["unique_id"].map(ends).astype("datetime64[ns]")]


@pytest.mark.parametrize("options", [{}, {"adaptive": True}, {"memory": 40, "half_life": 30.0}])
def test_labels_that_arrive_at_different_times_are_all_learnt_from(options):
    df = panel()
    late = (df["ds"] >= "2023-06-01") & df["unique_id"].isin(["a", "b"])
    df.loc[late, "y"] += 6 * np.random.default_rng(1).standard_normal(late.sum())
    forecaster = SeasonalNaive(**OPTIONS).fit(df[df["ds"] < "2023-03-01"])
    known = df[df["ds"] < "2023-06-01"]
    on_time, ragged = (calibrate(forecaster, known, pool="series", step_size=2, **options) for _ in range(2))
    steps = ["2023-06-11", "2023-06-21", "2023-07-01", "2023-07-11"]
    for end, before in zip(steps, ["2023-06-01", *steps], strict=False):
        on_time.update(df[df["ds"] < end])
        ragged.update(short({"a": end, "b": before, "c": before, "d": "2023-06-01"}, df))
    ragged.update(df[df["ds"] < steps[-1]])
    pd.testing.assert_frame_equal(ragged.predict(), on_time.predict(), rtol=1e-12)
    width = ragged.predict().assign(w=lambda f: f["q0.9"] - f["q0.1"]).groupby("unique_id")["w"].mean()
    assert width["b"] > 1.5 * width["d"]
    assert len(ragged.calibration_.residuals) == len(on_time.calibration_.residuals)


def test_pooled_bands_learn_from_series_that_come_late_and_from_new_ones():
    df = panel()
    forecaster = SeasonalNaive(**OPTIONS).fit(df[df["ds"] < "2023-03-01"])
    known = df[(df["ds"] < "2023-06-01") & (df["unique_id"] != "d")]
    on_time, ragged = (calibrate(forecaster, known, step_size=5) for _ in range(2))
    on_time.update(df[df["ds"] < "2023-07-11"])
    for end in ("2023-06-16", "2023-07-11"):
        ragged.update(short({"a": end, "b": "2023-06-01", "c": "2023-06-01", "d": "2023-06-01"}, df))
    assert len(ragged.calibration_.residuals) < len(on_time.calibration_.residuals)
    ragged.update(df[df["ds"] < "2023-07-11"])
    count = [np.bincount(wrapped.calibration_.cells) for wrapped in (on_time, ragged)]
    assert (count[0] == count[1]).all()
    pd.testing.assert_frame_equal(ragged.predict(), on_time.predict())
    assert ragged.calibration_.windows == on_time.calibration_.windows


def test_labels_that_are_missing_when_their_rows_come_are_filled_in_later():
    df = panel()
    forecaster = SeasonalNaive(**OPTIONS).fit(df[df["ds"] < "2023-03-01"])
    known, now = df[df["ds"] < "2023-06-01"], df[df["ds"] < "2023-06-21"]
    blank = now.copy()
    blank.loc[(now["ds"] >= "2023-06-13") & (now["unique_id"] != "a"), "y"] = np.nan
    on_time, ragged = (calibrate(forecaster, known, pool="series", step_size=2) for _ in range(2))
    bare = now.assign(y=now["y"].where(now["ds"] < "2023-06-16"))  # in the last windows no series has a label
    ragged.update(bare).update(blank).update(now)
    on_time.update(now)
    count = [np.bincount(wrapped.calibration_.cells) for wrapped in (on_time, ragged)]
    assert (count[0][:5] == count[1][:5]).all()
    assert (count[0] - count[1]).max() <= 1


# --- kept in a file


SMALL: dict[str, Any] = {**OPTIONS, "max_steps": 3, "d_model": 8, "input_length": 14, "blocks": "s", "calendar": ()}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("days", {}),
        ("zoned", {"adaptive": True, "pool": "series", "method": "conformal"}),
        ("integers", {"memory": 40}),
    ],
)
def test_a_saved_calibration_goes_on_with_the_same_bits(tmp_path, kind, options):
    df = panel()
    path = tmp_path / "calibrated.safetensors"
    given = df
    if kind == "zoned":
        given = df.assign(ds=df["ds"].dt.tz_localize("Europe/Berlin").dt.as_unit("ms"))
    elif kind == "integers":
        given = df.assign(ds=(df["ds"] - df["ds"].min()).dt.days, unique_id=df["unique_id"].map(ord))

    def until(day: str) -> pd.DataFrame:
        return given[(df["ds"] < day).to_numpy()]

    forecaster = XLSTMForecaster(**SMALL).fit(until("2023-03-01"), verbose=False)
    wrapped = calibrate(forecaster, until("2023-06-01"), step_size=2, **options)
    assert wrapped.update(until("2023-06-06")).calibration_.waiting is not None
    wrapped.save(path)
    loaded = CalibratedForecaster.load(path)
    assert loaded.get_params()["adaptive"] == options.get("adaptive", False)
    with pytest.raises(ValueError, match="does not hold the data"):
        loaded.predict()
    for day in ("2023-06-06", "2023-06-15", "2023-07-01"):
        for each in (wrapped, loaded):
            each.update(until(day))
        pd.testing.assert_frame_equal(loaded.predict(), wrapped.predict(), check_exact=True)
    pd.testing.assert_frame_equal(loaded.predict(until("2023-05-01")), wrapped.predict(until("2023-05-01")))
    loaded.save(tmp_path / "again.safetensors")
    wrapped.save(path)
    (a, first), (b, second) = (load_checkpoint(tmp_path / name) for name in ("again.safetensors", path.name))
    assert first == second
    assert a.keys() == b.keys()
    assert all(a[name].numpy().tobytes() == b[name].numpy().tobytes() for name in a)


def test_damaged_edited_and_other_files_are_refused(tmp_path):
    path = tmp_path / "calibrated.safetensors"
    df = panel()
    wrapped = calibrate(XLSTMForecaster(**SMALL).fit(df[df["ds"] < "2023-06-01"], verbose=False), df)
    wrapped.save(path)
    sound = path.read_bytes()
    for damaged, told in (
        (sound[: len(sound) // 2], "truncated"),
        (sound[:-2] + bytes([sound[-2] ^ 1]) + sound[-1:], "changed after it was saved"),
        (sound.replace(b'\\"half_life\\": null', b'\\"half_life\\": 1e9 '), "changed after it was saved"),
    ):
        assert damaged != sound
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=told):
            CalibratedForecaster.load(path)
    wrapped.forecaster_.save(path)
    with pytest.raises(ValueError, match="holds no calibrated forecaster"):
        CalibratedForecaster.load(path)
    wrapped.save(path)
    with pytest.raises(ValueError, match="holds 'xlstm-calibrated-forecaster', not an XLSTMForecaster"):
        XLSTMForecaster.load(path)
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        CalibratedForecaster.load(tmp_path / "missing")
    naive = calibrate(SeasonalNaive(**OPTIONS), panel())
    with pytest.raises(TypeError, match="calibrated SeasonalNaive cannot be saved"):
        naive.save(path)
    with pytest.raises(ValueError, match="not fitted"):
        CalibratedForecaster(XLSTMForecaster(horizon=3)).save(path)


# --- refused


@pytest.mark.parametrize(
    ("frame", "options", "message"),
    [
        (windows(n=4, series=2), {}, "coverage 0.95 needs at least 19 labels.*calibrate on at least 10 windows"),
        (windows(n=10), {"pool": "series"}, "series 's0' has 10 over 10 windows.*at least 19 windows, or pool='all'"),
        (
            windows(n=25),
            {"pool": "series", "half_life": 2.0},
            "coverage 0.8 needs .* weigh at least 4 together.*longer half_life",
        ),
        (windows(n=10, series=2), {"half_life": 0.1}, "coverage 0.8 needs labels .* longer half_life"),
        (windows(), {"method": "bayes"}, "method='bayes' is not known"),
        (windows(), {"pool": "id"}, "pool='id' is not known"),
        (windows(), {"adaptive": 1.5}, "adaptive=1.5"),
        (windows(), {"half_life": 0}, "half_life=0"),
        (windows(), {"pool": "series", "memory": 5}, "memory=5 windows cannot reach coverage 0.95: keep 19 or more"),
        (windows()[["unique_id", "ds", "cutoff", "y", "forecast", "q0.5"]], {}, "no band to calibrate"),
    ],
)
def test_too_few_windows_and_unknown_options_are_refused(frame, options, message):
    with pytest.raises(ValueError, match=message):
        fit_calibration(frame, **options)
    with pytest.raises(ValueError):
        calibrated(frame, **options)


def test_too_few_windows_are_refused_before_any_fit():
    made = CalibratedForecaster(LastValue(**OPTIONS), n_windows=3, pool="series")
    with pytest.raises(ValueError, match=r"coverage 0.95 needs 19 labels.*at least n_windows=19; found n_windows=3"):
        made.fit(panel())
    with pytest.raises(ValueError, match="no band to calibrate"):
        CalibratedForecaster(LastValue(horizon=5, quantiles=(0.5,))).fit(panel())


class Unfitted(LastValue):
    def fit(self, *args: Any, **options: Any) -> Any:
        raise AssertionError("fitted")


@pytest.mark.parametrize(
    ("forecaster", "options", "message"),
    [
        (Unfitted(horizon=3), {"n_windows": 0}, "n_windows=0"),
        (Unfitted(horizon=3), {"memory": 0}, "memory=0 must be"),
        (Unfitted(horizon=3), {"memory": 2.5}, "memory=2.5 must be"),
        (
            Unfitted(horizon=3, quantiles=(0.01, 0.5, 0.99)),
            {"memory": 10},
            "memory=10 windows over 4 series are too few",
        ),
        (XLSTMForecaster(horizon=3, head="point"), {}, "head='point' has no bands"),
        (
            Unfitted(horizon=60),
            {"pool": "series"},
            "at least 4 windows, but unique_id='a' with 200 rows has room for 3",
        ),
    ],
)
def test_what_cannot_be_calibrated_is_refused_before_any_fit(forecaster, options, message):
    with pytest.raises(ValueError, match=message):
        calibrate(forecaster, panel(), **options)


def test_levels_that_are_not_calibrated_are_refused_before_any_fit():
    with pytest.raises(ValueError, match=r"level 0\.3 is not calibrated"):
        backtest(CalibratedForecaster(Unfitted(horizon=3)), panel(), refit=True, quantiles=(0.3, 0.5))


def test_without_a_number_as_many_windows_are_taken_as_fit():
    rng = np.random.default_rng(0)
    df = pd.DataFrame({"ds": pd.date_range("2015-01-01", periods=120, freq="MS"), "y": rng.standard_normal(120)})
    for forecaster in (LastValue(horizon=12, id_col=None), LastValue(horizon=12, id_col=None).fit(df)):
        assert calibrate(forecaster, df).calibration_.windows == 9
    assert calibrate(LastValue(horizon=12, id_col=None), df.tail(52)).calibration_.windows == 4


def test_what_was_not_calibrated_is_refused():
    calibration: Calibration = fit_calibration(windows(), pool="series")
    with pytest.raises(ValueError, match="was not calibrated: use pool='all'"):
        calibration.apply(windows().replace({"unique_id": {"s0": "new"}}))
    with pytest.raises(ValueError, match="step 4 lies beyond the 3 steps"):
        calibration.apply(windows(horizon=4))
    with pytest.raises(ValueError, match=r"level 0.9 was calibrated"):
        calibration.apply(windows().drop(columns="q0.9"))


# --- real and demo data


def assert_covers(
    df: pd.DataFrame, forecaster: Any, season: int, n_windows: int, step_size: int, **options: Any
) -> None:
    """Within 2 points or 2 standard errors on the later windows, and a better MSIS than conformal seasonal naive."""
    naive = SeasonalNaive(**{**forecaster.get_params(), "season_length": season})
    scores = []
    for model in (forecaster, naive):
        frame = backtest(model, df, n_windows=n_windows, step_size=step_size)
        done = calibrated(frame, **options)
        held = done[done["cutoff"] >= np.sort(frame["cutoff"].unique())[n_windows // 2]]
        scores.append(evaluate(held, ["msis"], history=df, season_length=season).to_numpy()[0])
        if model is forecaster:
            table = reliability(held, n_resamples=200)
            far = (table["coverage"] - table["nominal"]).abs()
            assert (far <= np.maximum(0.02, 2 * table["standard_error"])).all(), table
    assert (scores[0] <= scores[1]).all()


def test_bands_cover_on_the_demo_panel_and_beat_conformal_seasonal_naive():
    df = pd.read_csv(Path(__file__).parents[1] / "data" / "panel.csv", parse_dates=["ds"])
    df = df[df["unique_id"].str.startswith(("north", "south"))]
    assert_covers(df, Linear(horizon=7, quantiles=LEVELS, target_col="sales", on_gap="mask"), 7, 24, 7)


def shared(name: str) -> Path:
    folder = os.environ.get("XLSTM_FORECAST_DATA")
    if not folder:
        pytest.skip("XLSTM_FORECAST_DATA does not name the folder of real data")
    return Path(folder) / name


@pytest.mark.data
def test_bands_cover_on_etth1():
    wide = pd.read_csv(shared("ETTh1.csv.gz"), parse_dates=["date"]).rename(columns={"date": "ds"})
    df = wide.melt("ds", var_name="unique_id", value_name="y")
    assert_covers(df, Linear(horizon=24, quantiles=LEVELS), 24, 120, 24, half_life=10)


@pytest.mark.data
def test_bands_cover_on_hospital():
    with gzip.open(shared("hospital_dataset.tsf.gz"), "rt", encoding="cp1252") as file:
        lines = file.read().split("@data\n")[1].splitlines()
    parts = []
    for line in lines:
        name, _, values = line.strip().split(":")
        y = np.array(values.split(","), float)
        ds = pd.date_range("2000-01-01", periods=len(y), freq="MS")
        parts.append(pd.DataFrame({"unique_id": name, "ds": ds, "y": y}))
    assert_covers(pd.concat(parts, ignore_index=True), Linear(horizon=6, quantiles=LEVELS), 12, 24, 1)


@pytest.mark.parametrize("method", ["cqr", "conformal"])
def test_calibrated_bands_keep_the_least_value(method):
    df = panel()
    df["y"] = np.random.default_rng(0).poisson(0.7, len(df)).astype(float)
    levels = (0.05, 0.1, 0.5, 0.9, 0.95)
    forecaster = XLSTMForecaster(horizon=5, model="linear", lower=0, quantiles=levels).fit(df, verbose=False)
    found = calibrate(forecaster, df, method=method).predict()
    assert found[[f"q{level:g}" for level in levels]].to_numpy().min() == 0
    free = calibrate(
        XLSTMForecaster(horizon=5, model="linear", quantiles=levels).fit(df, verbose=False), df, method=method
    )
    assert free.predict()["q0.05"].min() < 0


@pytest.mark.parametrize(
    "kind", ["timestamp[ns][pyarrow]", "date32[pyarrow]", "timestamp[us, tz=Europe/Berlin][pyarrow]"]
)
def test_dates_that_arrow_holds_are_calibrated_and_judged_as_others(kind, tmp_path):
    pytest.importorskip("pyarrow")
    df = panel()
    times = df["ds"].dt.tz_localize("Europe/Berlin") if "tz" in kind else df["ds"]
    found = []
    for frame in (df.assign(ds=times), df.assign(ds=times.astype(kind))):
        forecaster = XLSTMForecaster(horizon=5, model="linear")
        windows = forecaster.backtest(frame, n_windows=4)
        calibrated = calibrate(XLSTMForecaster(horizon=5, model="linear").fit(frame, verbose=False), frame)
        calibrated.save(tmp_path / "kept")
        again = type(calibrated).load(tmp_path / "kept").predict(frame)
        assert again["q0.1"].tolist() == calibrated.predict()["q0.1"].tolist()
        found.append((again["q0.9"].tolist(), evaluate(windows)["mae"].tolist()))
        compare(windows, windows.assign(forecast=windows["forecast"] + 1))
    assert found[0] == found[1]
