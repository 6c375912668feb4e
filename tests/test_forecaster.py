"""XLSTMForecaster as users meet it: frames in, frames out, and a clear word where something is wrong."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from xlstm_forecast import XLSTMForecaster
from xlstm_forecast.encoder import MIXERS

H = 6
TINY: dict[str, Any] = {"horizon": H, "max_steps": 2, "d_model": 8, "num_heads": 2, "batch_size": 16}
MODELS: list[dict[str, Any]] = [
    {"model": "linear"},
    {"model": "patch"},
    {"model": "patch", "backbone": False},
    {"model": "mixer"},
    {"model": "time"},
]
EVERYTHING: list[dict[str, Any]] = [
    *MODELS, {"head": "student_t"}, {"head": "point"}, *({"blocks": letter} for letter in MIXERS if letter not in "ms"),
]  # fmt: skip


def frame(series=("a", "b", "c"), steps=80, start="2024-01-01", freq="D", seed=0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    t = np.arange(steps)
    parts = [
        pd.DataFrame(
            {
                "unique_id": name,
                "ds": pd.date_range(start, periods=steps, freq=freq),
                "y": 10 * (i + 1) + np.sin(2 * np.pi * t / 7) + 0.3 * rng.normal(size=steps),
            }
        )
        for i, name in enumerate(series)
    ]
    return pd.concat(parts, ignore_index=True)


def tiny(**changes: Any) -> Any:
    return XLSTMForecaster(**TINY | changes)


def fit(df: Any, **changes: Any) -> Any:
    return tiny(**changes).fit(df, verbose=False)


# --- what comes out ---


@pytest.mark.parametrize("options", MODELS, ids=str)
def test_a_forecast_has_ids_times_median_and_levels_in_order(options):
    df = frame()
    out = fit(df, **options, quantiles=(0.05, 0.5, 0.95)).predict()
    assert list(out.columns) == ["unique_id", "ds", "forecast", "q0.05", "q0.5", "q0.95"]
    assert out.unique_id.tolist() == [n for n in "abc" for _ in range(H)]
    expected = pd.date_range(df.ds.max() + pd.Timedelta(days=1), periods=H)
    assert (out.ds.to_numpy().reshape(3, H) == expected.to_numpy()).all()
    assert (out["forecast"] == out["q0.5"]).all()
    assert (out["q0.05"] < out["q0.5"]).all()
    assert (out["q0.5"] < out["q0.95"]).all()
    assert out.groupby("unique_id").forecast.mean().tolist() == pytest.approx([10, 20, 30], abs=1.0)


@pytest.mark.parametrize("options", EVERYTHING, ids=str)
@pytest.mark.parametrize("level", [0.0, 1e8, 1e-8, -5.0])
def test_a_constant_series_is_forecast_at_its_own_level(options, level):
    df = frame().assign(y=level)
    out = fit(df, **options).predict()
    assert np.isfinite(out.forecast).all()
    assert out.forecast.to_numpy() == pytest.approx(np.full(len(out), level), rel=1e-6, abs=1e-15)


@pytest.mark.parametrize(
    "options", [o for o in EVERYTHING if o.get("backbone", True) and o.get("head") != "point"], ids=str
)
def test_a_new_series_of_one_row_has_a_band(options):
    """However many members there are: none of them halves it."""
    one = frame().tail(1).assign(unique_id="new")
    fitted = fit(frame(), **options)
    out, paths = fitted.predict(one), fitted.linear_.fitted.paths(one[["y"]].to_numpy(float))
    assert (out["q0.9"] - out["q0.1"] > 1.5 * paths.sigma[0]).all()


@pytest.mark.parametrize("options", EVERYTHING, ids=str)
def test_the_order_of_rows_and_the_index_do_not_matter(options):
    df = frame()
    mixed = df.sample(frac=1.0, random_state=0).set_index(pd.Index(np.arange(len(df)) * 7 - 3))
    plain, other = fit(df, **options), fit(mixed, **options)
    pd.testing.assert_frame_equal(other.predict(), plain.predict())
    pd.testing.assert_frame_equal(plain.predict(mixed), plain.predict())


@pytest.mark.parametrize("options", EVERYTHING, ids=str)
def test_levels_of_1e8_and_1e_minus_8_keep_their_precision(options):
    df = frame()
    plain = fit(df, **options).predict()
    for scale, shift in ((50.0, 1e8), (1e-9, 1e-8)):
        out = fit(df.assign(y=scale * df.y + shift), **options).predict()
        assert ((out.forecast - shift) / scale).to_numpy() == pytest.approx(plain.forecast.to_numpy(), abs=0.05)


@pytest.mark.parametrize("kind", ["pandas", "polars"])
@pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
@pytest.mark.parametrize("unit", ["ns", "ms"])
def test_ids_times_zones_and_frame_kind_come_back_as_given(kind, zone, unit):
    df = frame(series=(7, 3))
    df["unique_id"] = df.unique_id.astype("int32")
    df["ds"] = df.ds.dt.tz_localize(zone).dt.as_unit(unit)
    given: Any = pl.from_pandas(df) if kind == "polars" else df
    out = fit(given, model="linear").predict()
    assert type(out) is type(given)
    if kind == "polars":
        assert dict(out.schema)["unique_id"] == dict(given.schema)["unique_id"]
        assert out.schema["ds"] == given.schema["ds"]
        out = out.to_pandas()
    else:
        assert out.dtypes["unique_id"] == df.dtypes["unique_id"]
        assert out.dtypes["ds"] == df.dtypes["ds"]
    assert out.ds.iloc[0] == df.ds.max() + pd.Timedelta(days=1)


def test_one_series_needs_no_id_column_and_a_series_with_dates_will_do():
    df = frame(series=("a",)).drop(columns="unique_id")
    out = fit(df, id_col=None).predict()
    assert list(out.columns) == ["ds", "forecast", "q0.1", "q0.5", "q0.9"]
    series = df.set_index("ds")["y"]
    again = fit(series, id_col=None).predict(series)
    assert again["forecast"].to_numpy() == pytest.approx(out["forecast"].to_numpy())


def test_integer_time_takes_a_season_length():
    t = np.arange(200)
    df = pd.DataFrame({"t": t, "y": np.array([0.0, 5, 1, 9, 2])[t % 5]})
    out = fit(df, id_col=None, time_col="t", season_length=5, model="linear").predict()
    assert out["t"].tolist() == list(range(200, 200 + H))
    assert out["forecast"].to_numpy() == pytest.approx(np.array([0.0, 5, 1, 9, 2])[(t[:H]) % 5], abs=0.2)


def test_several_targets_come_long_with_their_names():
    df = frame()
    df["z"] = -df.y
    out = fit(df, target_col=["y", "z"]).predict()
    assert out.columns[:4].tolist() == ["unique_id", "ds", "target", "forecast"]
    means = out.groupby(["unique_id", "target"]).forecast.mean()
    assert means["c"].tolist() == pytest.approx([30, -30], abs=1.5)


@pytest.mark.parametrize("options", MODELS, ids=str)
def test_lower_bounds_forecasts_and_samples(options):
    df = frame()
    df["y"] = df.y - df.groupby("unique_id").y.transform("mean")
    f = fit(df, **options, lower=0)
    out = f.predict()
    assert out.drop(columns=["unique_id", "ds"]).to_numpy().min() >= 0
    assert f.predict(n_samples=20).forecast.min() >= 0
    assert fit(df, **options).predict()["q0.1"].min() < 0


@pytest.mark.parametrize("options", MODELS, ids=str)
def test_other_levels_than_fitted_can_be_asked_for(options):
    f = fit(frame(), **options)
    out = f.predict(quantiles=(0.01, 0.1, 0.25, 0.9))
    assert list(out.columns[3:]) == ["q0.01", "q0.1", "q0.25", "q0.9"]
    assert (out["q0.01"] < out["q0.1"]).all()
    assert (out["q0.1"] < out["q0.25"]).all()
    assert np.allclose(out["q0.1"], f.predict()["q0.1"])


@pytest.mark.parametrize("options", MODELS, ids=str)
def test_sample_paths_have_the_marginals_of_the_quantiles(options):
    f = fit(frame(steps=200), **options)
    paths = f.predict(n_samples=4000)
    assert paths["sample"].nunique() == 4000
    wanted = f.predict(quantiles=(0.1, 0.3, 0.5, 0.9))
    drawn = paths.groupby(["unique_id", "ds"]).forecast.quantile([0.1, 0.3, 0.5, 0.9]).unstack()
    width = (wanted["q0.9"] - wanted["q0.1"]).to_numpy()
    for level in (0.1, 0.3, 0.5, 0.9):
        gap = (drawn[level].to_numpy() - wanted[f"q{level}"].to_numpy()) / width
        assert np.abs(gap).max() < 0.06


def test_sums_over_the_horizon_of_sample_paths_are_as_wide_as_the_errors_are_correlated():
    rng = np.random.default_rng(0)
    walk = pd.DataFrame({"ds": range(1500), "y": rng.normal(size=1500).cumsum()})
    noise = walk.assign(y=rng.normal(size=1500))
    for df, low, high in ((walk, 0.8, 1.01), (noise, 0.3, 0.65)):
        f = fit(df, id_col=None, max_steps=20)
        paths = f.predict(n_samples=3000)
        sums = paths.groupby("sample").forecast.sum()
        band = f.predict()
        together = (band["q0.9"] - band["q0.1"]).sum()  # the width if all steps moved as one
        ratio = (sums.quantile(0.9) - sums.quantile(0.1)) / together
        assert low < ratio < high


# --- history ---


def test_new_series_and_later_history_are_forecast_from_history_alone():
    df = frame(steps=90)
    f = fit(df[df.ds < df.ds.max() - pd.Timedelta(days=9)])
    later = f.predict(df)
    assert later.ds.min() == df.ds.max() + pd.Timedelta(days=1)
    fresh = frame(series=("new",), steps=30, seed=5)
    out = f.predict(fresh)
    assert out.unique_id.unique().tolist() == ["new"]
    assert out.forecast.mean() == pytest.approx(10, abs=1.5)


@pytest.mark.parametrize("options", MODELS, ids=str)
def test_series_shorter_than_the_context_work(options):
    df = pd.concat([frame(), frame(series=("short",)).head(9)])
    out = fit(df, **options).predict()
    short = out[out.unique_id == "short"]
    assert short.ds.min() == pd.Timestamp("2024-01-10")
    assert np.isfinite(short.forecast).all()


def one(y, freq="D") -> pd.DataFrame:
    return pd.DataFrame({"ds": pd.date_range("2024-01-01", periods=len(y), freq=freq), "y": y})


def test_the_default_forecasts_eight_rows_and_one_row_too():
    y = np.array([3.0, 5, 4, 6, 5, 7, 6, 8])
    out = fit(one(y), id_col=None, horizon=50).predict()
    assert len(out) == 50
    assert out["forecast"].between(0, 15).all()
    assert (out["q0.1"] < out["q0.9"]).all()
    for model in ("patch", "mixer", "time", "linear"):
        out = fit(one([4.5]), id_col=None, freq="D", model=model).predict()
        assert out["forecast"].to_numpy() == pytest.approx(np.full(H, 4.5))
        assert out["ds"].iloc[0] == pd.Timestamp("2024-01-02")


@pytest.mark.parametrize("options", MODELS[:3], ids=str)
def test_leading_missing_values_change_nothing(options):
    df = one(frame(series=("a",), steps=200)["y"])
    late = df.assign(y=df["y"].where(df.index >= 180))
    f, g = (fit(d, id_col=None, **options) for d in (late, df[180:]))
    for out in (f.predict(), f.predict(late)):
        pd.testing.assert_frame_equal(out, g.predict())
    both = pd.concat([late.assign(unique_id="a"), df.assign(unique_id="b"), df[180:].assign(unique_id="c")])
    by_id = fit(both, **options, max_steps=1).predict().groupby("unique_id")["forecast"].apply(list)
    assert by_id["a"] == pytest.approx(by_id["c"], abs=0.3)


@pytest.mark.parametrize(("freq", "season"), [("MS", 12), ("QS", 4)])
def test_stamps_in_mid_month_are_forecast_with_their_season(freq, season):
    t = np.arange(66)
    shape = 10 * np.sin(2 * np.pi * t / season)
    df = one(100 + shape, freq).assign(ds=lambda d: d["ds"] + pd.Timedelta(days=14))
    f = fit(df[:60], id_col=None, model="linear")
    assert f.summary()["season"] == season
    out = f.predict()
    assert out["ds"].tolist() == df["ds"][60:].tolist()
    assert out["forecast"].to_numpy() == pytest.approx(100 + shape[60:], abs=0.5)


def test_a_season_longer_than_what_is_left_beside_the_horizon_is_repeated():
    shape = 10 * np.random.default_rng(1).standard_normal(24)
    y = 100 + np.resize(shape, 42) + 0.1 * np.random.default_rng(0).standard_normal(42)
    for given in (None, 24):
        f = fit(one(y, "h"), id_col=None, model="linear", horizon=24, season_length=given)
        assert np.abs(f.predict()["forecast"] - 100 - np.resize(shape, 66)[42:]).max() < 1


@pytest.mark.parametrize("options", MODELS, ids=str)
def test_missing_values_are_masked_and_gaps_can_be(options):
    df = frame()
    holes = df.copy()
    holes.loc[4::9, "y"] = np.nan
    dropped = holes.dropna()
    f, g = fit(holes, **options), fit(dropped, **options, on_gap="mask")
    assert np.isfinite(f.predict().forecast).all()
    pd.testing.assert_frame_equal(f.predict(), g.predict())


def known(df):
    """The target follows a known-future column at once."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=len(df))
    return df.assign(x=x, y=df.y + 5 * x)


def test_known_future_columns_are_read_from_future_df_and_matter():
    df = known(frame(steps=160))
    f = fit(df, future=["x"], max_steps=150, d_model=16, lr=5e-3)
    times = df.ds.max() + pd.to_timedelta(np.arange(1, H + 1), "D")
    future = pd.MultiIndex.from_product([list("abc"), times], names=["unique_id", "ds"]).to_frame(index=False)
    low, high = (f.predict(future_df=future.assign(x=v)).forecast.mean() for v in (-1.0, 1.0))
    assert high - low > 4
    with pytest.raises(ValueError, match=r"future_df is needed: .*'x'"):
        f.predict()
    with pytest.raises(ValueError, match=r"future_df does not cover .* lacks ds="):
        f.predict(future_df=future.head(-1).assign(x=0.0))
    with pytest.raises(ValueError, match="column 'x' of future_df is missing"):
        f.predict(future_df=future.assign(x=np.nan))
    shifted = future.assign(x=0.0, ds=future.ds + pd.Timedelta(days=1))
    with pytest.raises(ValueError, match="does not cover"):
        f.predict(future_df=shifted)


def test_unseen_categories_are_accepted():
    df = frame().assign(kind=lambda d: d.unique_id.map({"a": "x", "b": "y", "c": "x"}))
    f = fit(df, static=["kind"], categorical=["kind"])
    out = f.predict(frame(series=("d",)).assign(kind="never seen"))
    assert np.isfinite(out.forecast).all()


def test_static_columns_can_come_in_a_frame_of_their_own():
    df = frame()
    static = pd.DataFrame({"unique_id": list("cab"), "size": [3.0, 1.0, 2.0]})
    merged = df.merge(static, on="unique_id")
    apart = tiny(static=["size"]).fit(df, static_df=static, verbose=False).predict()
    together = tiny(static=["size"]).fit(merged, verbose=False).predict()
    pd.testing.assert_frame_equal(apart, together)


# --- bad input ---

DF = frame()
BAD: dict[str, tuple[Any, dict[str, Any], str]] = {
    "empty": (DF.head(0), {}, "no rows|empty"),
    "one row of no frequency": (DF.head(1), {}, "'ds': no series has two different times, so pass freq="),
    "one row and no backbone": (DF.head(1), {"freq": "D", "backbone": False}, "no window fits.*at least 7 rows"),
    "missing column": (DF.drop(columns="y"), {}, "'y'"),
    "duplicate column": (pd.concat([DF, DF[["y"]]], axis=1), {}, "more than one column named 'y'"),
    "duplicate rows": (pd.concat([DF, DF.iloc[[5]]]), {}, "unique_id='a'.*2024-01-06"),
    "gap": (DF.drop(index=10), {}, "gap.*2024-01-1|2024-01-1.*on_gap"),
    "wrong frequency": (DF, {"freq": "h"}, "freq|gap|step"),
    "text target": (DF.assign(y="1"), {}, "'y'"),
    "boolean target": (DF.assign(y=True), {}, "'y'"),
    "complex target": (DF.assign(y=1j), {}, "'y'"),
    "all missing": (DF.assign(y=np.nan), {}, "'y'.*(no observed|missing)|no observed"),
    "infinite": (DF.assign(y=DF.y.mask(DF.index == 3, np.inf)), {}, "'y'.*inf"),
    "unobserved series": (DF.assign(y=DF.y.mask(DF.unique_id == "b")), {}, "'b'"),
    "missing known future": (DF.assign(x=np.nan), {"future": ["x"]}, "'x'"),
    "levels outside": (DF, {"quantiles": (0.1, 1.5)}, "1.5 lies outside"),
    "levels unsorted": (DF, {"quantiles": (0.9, 0.1)}, "ascending"),
    "levels repeated": (DF, {"quantiles": (0.1, 0.1)}, "repeated"),
    "horizon": (DF, {"horizon": 0}, "horizon=0"),
    "fractional horizon": (DF, {"horizon": 2.5}, "horizon=2.5"),
    "model": (DF, {"model": "pach"}, "model='pach'.*'patch'"),
    "preset": (DF, {"presets": "slow"}, "presets='slow'.*'fast'"),
    "head": (DF, {"head": "gauss"}, "head='gauss'.*'student_t'"),
    "blocks": (DF, {"blocks": "mx"}, "'x' is unknown"),
    "heads": (DF, {"d_model": 10, "num_heads": 4}, "num_heads=4 must divide"),
    "dropout": (DF, {"dropout": 1.5}, "dropout=1.5"),
    "role twice": (DF.assign(x=1.0), {"future": ["x"], "past": ["x"]}, "'x'"),
    "calendar": (DF, {"calendar": ("moon",)}, "'moon'"),
    "too large": (DF.assign(y=DF.y * 1e39), {}, "'y' has values beyond 1e.37"),
    "no value of one target": (
        DF.assign(z=DF.y.mask(DF.unique_id == "b")), {"target_col": ["y", "z"]}, "in column 'z'; first: unique_id='b'"
    ),
    "lower": (DF, {"lower": float("nan")}, "lower=nan"),
    "learning rate": (DF, {"lr": "a"}, "lr='a'"),
    "time limit": (DF, {"time_limit": -1}, "time_limit=-1"),
    "seed": (DF, {"seed": None}, "seed=None"),
    "devices": (DF, {"devices": 0}, "devices=0"),
    "blocks as a list": (DF, {"blocks": ["m"]}, r"blocks=\['m'\]"),
    "backbone": (DF, {"backbone": "yes"}, "backbone='yes'"),
    "target named as a forecast": (DF.rename(columns={"y": "forecast"}), {"target_col": "forecast"}, "rename it"),
    "id named as a quantile": (DF.rename(columns={"unique_id": "q0.5"}), {"id_col": "q0.5"}, "id_col='q0.5'"),
    "levels too fine": (DF, {"quantiles": (0.1234567, 0.12345671)}, "more than six digits"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_a_value_error_that_names_it_and_leaves_nothing_half_done(case):
    df, params, message = BAD[case]
    f = tiny(**params)
    with pytest.raises(ValueError, match=message):
        f.fit(df, verbose=False)
    assert [name for name in vars(f) if name.endswith("_")] == []


def test_numbers_of_numpy_and_offsets_of_pandas_are_kept(tmp_path):
    f = tiny(model="linear", horizon=np.int64(4), season_length=np.int64(7), seed=np.int64(1), freq=pd.Timedelta("1D"))
    f.fit(DF, verbose=False).save(tmp_path / "f.safetensors")
    again = XLSTMForecaster.load(tmp_path / "f.safetensors")
    assert (again.horizon, again.season_length, again.freq) == (4, 7, "24h")
    pd.testing.assert_frame_equal(again.predict(DF), f.predict(DF))


@pytest.mark.parametrize(("freq", "season"), [("D", 7), ("M", 12), ("h", 24), ("Q", 4)])
def test_periods_are_forecast_as_periods(freq, season):
    t = np.arange(120)
    y = np.sin(2 * np.pi * t / season) + 0.01 * t
    df = pd.DataFrame({"unique_id": "a", "ds": pd.period_range("2010-01", periods=120, freq=freq), "y": y})
    f = tiny(model="linear").fit(df, verbose=False)
    assert f.summary()["season"] == season
    found = f.predict()
    assert found["ds"].dtype == df["ds"].dtype
    assert found["ds"].iloc[0] == df["ds"].iloc[-1] + 1


def test_paths_and_levels_are_not_asked_for_at_once():
    with pytest.raises(ValueError, match="one of the two"):
        fit(DF, model="linear").predict(n_samples=3, quantiles=(0.1, 0.9))


def test_a_validation_part_that_leaves_nothing_is_refused():
    with pytest.raises(ValueError, match="val_size=1000 leaves nothing"):
        tiny().fit(DF, val_size=1000, verbose=False)
    with pytest.raises(ValueError, match="val_size='a'"):
        tiny().fit(DF, val_size="a", verbose=False)


def test_a_failed_fit_keeps_the_earlier_one():
    f = fit(DF, model="linear")
    before = f.predict()
    with pytest.raises(ValueError, match="'y'"):
        f.fit(DF.drop(columns="y"), verbose=False)
    pd.testing.assert_frame_equal(f.predict(), before)


def test_time_zones_may_not_change_between_fit_and_predict():
    zoned = DF.assign(ds=DF.ds.dt.tz_localize("UTC"))
    f = fit(zoned, model="linear")
    with pytest.raises(ValueError, match="time zone"):
        f.predict(DF)
    with pytest.raises(ValueError, match="time zone"):
        fit(DF, model="linear").predict(zoned)


def test_predict_before_fit_says_what_to_call():
    with pytest.raises(NotFittedError, match=r"call fit\(df\) first"):
        tiny().predict(DF)


@pytest.mark.parametrize("count", [0, 1.5, True])
def test_a_wrong_number_of_samples_is_named(count):
    with pytest.raises(ValueError, match="n_samples="):
        fit(DF, model="linear").predict(n_samples=count)


def test_a_point_head_has_a_forecast_and_nothing_else():
    f = fit(DF, head="point")
    assert list(f.predict().columns) == ["unique_id", "ds", "forecast"]
    with pytest.raises(ValueError, match="head='point'"):
        f.predict(quantiles=(0.1,))
    with pytest.raises(ValueError, match="head='point'"):
        f.predict(n_samples=3)


# --- keeping and going on ---


@pytest.mark.parametrize("options", [*MODELS, {"head": "student_t"}, {"head": "point"}], ids=str)
def test_a_saved_forecaster_comes_back_with_the_same_bits(options, tmp_path):
    df = frame().assign(kind=lambda d: d.unique_id)
    f = fit(df, **options, static=["kind"], categorical=["kind"], calendar=("dayofweek",), lower=-3)
    f.save(tmp_path / "f.safetensors")
    g = XLSTMForecaster.load(tmp_path / "f.safetensors")
    pd.testing.assert_frame_equal(g.predict(df), f.predict())
    assert g.get_params() == {**f.get_params(), "static": ("kind",), "categorical": ("kind",)}
    assert g.fitted_until_ == f.fitted_until_
    assert g.summary() == f.summary()
    if options.get("head") != "point":
        pd.testing.assert_frame_equal(g.predict(df, n_samples=3), f.predict(n_samples=3))
    with pytest.raises(ValueError, match="does not hold the data"):
        g.predict()


def test_parameters_survive_clone_and_set_params():
    f = tiny(future=["x"], quantiles=(0.2, 0.8))
    assert clone(f).get_params() == f.get_params()
    assert clone(f).set_params(horizon=9, lower=0).horizon == 9
    fitted = fit(DF, model="linear")
    assert not hasattr(clone(fitted), "settings_")


def test_a_time_limit_is_kept_with_what_follows_training_in_it():
    df = frame(series=[f"s{i:02d}" for i in range(60)], steps=200)
    fit(df, max_steps=1)  # kernels are compiled once
    f = fit(df, max_steps=100_000, time_limit=8.0, d_model=64, batch_size=512)
    assert f.seconds_ < 1.1 * 8.0
    assert f.training_[0].steps < 300, "patience ended it, not the limit"


def test_the_clock_of_a_fit_starts_with_its_first_line(monkeypatch):
    read = XLSTMForecaster._read

    def slow(*args, **options):
        time.sleep(0.5)
        return read(*args, **options)

    monkeypatch.setattr(XLSTMForecaster, "_read", slow)
    started = time.monotonic()
    fitted = fit(frame(steps=60), max_steps=1)
    assert time.monotonic() - started - fitted.seconds_ < 0.4


def test_a_time_limit_below_three_fits_of_the_backbone_holds_nothing_back():
    f = fit(frame(steps=400), max_steps=100_000, time_limit=0.01)
    assert f.training_[0].steps == 0
    assert f.weights_ == {"network": 0.5, "pretrained": 0.5}
    assert np.isfinite(f.predict()["forecast"]).all()


def test_a_correction_that_nothing_can_judge_is_not_trained():
    f = tiny().fit(frame(steps=400), val_size=0, verbose=False)
    alone = tiny(pretrained=False).fit(frame(steps=400), val_size=0, verbose=False)
    linear = fit(frame(steps=400), model="linear")
    assert f.training_[0].steps == 0
    assert f.model_.share == 0
    pd.testing.assert_frame_equal(alone.predict(), linear.predict())


def test_the_summary_tells_what_was_chosen_and_how_it_did_beside_the_naive_forecasts():
    f = fit(frame(steps=200), max_steps=30)
    told = f.summary()
    assert told["season"] == 7
    assert told["calendar"] == ["dayofweek"]
    assert {"last_value", "seasonal_naive", "backbone", "model"} <= told["validation"].keys()
    assert told["validation"]["model"] < told["validation"]["last_value"]
    assert 0 <= told["share"] <= 1


def test_the_summary_has_what_was_held_back_beside_the_errors_on_it():
    told = tiny().fit(frame(steps=200), val_size=24, verbose=False).summary()
    assert (told["held_back"], told["held_back_step"]) == (24, 3)
    assert "validation_step" not in told
    assert told["validation"]["seasonal_naive"] < told["validation"]["last_value"]
    (pooled,) = [stage for stage in told["backbone"] if stage["stage"] == "pooled"]
    assert "naive" in pooled
    assert not any(name.startswith("prior") for name in pooled)


def test_the_seasonal_naive_of_the_summary_is_the_year_of_weeks_where_a_window_holds_it():
    y = 100 + 10 * np.sin(2 * np.pi * np.arange(260) / 52) + 0.1 * np.random.default_rng(0).standard_normal(260)
    options: dict[str, Any] = {"id_col": None, "model": "linear"}
    told = fit(one(y, "W"), **options, input_length=60).summary()["validation"]
    assert told["seasonal_naive"] < 0.1 * told["last_value"]
    assert "seasonal_naive" not in fit(one(y, "W"), **options, input_length=40).summary()["validation"]
    none = fit(one(y, "W"), **options, input_length=60, season_length=1).summary()["validation"]
    assert none["seasonal_naive"] == none["last_value"]


def test_errors_are_missing_where_nothing_held_back_was_observed():
    df = one(frame(series=("a",), steps=200)["y"]).assign(y=lambda d: d["y"].where(d.index < 170))
    told = tiny(id_col=None, model="linear").fit(df, val_size=24, verbose=False).summary()
    assert np.isnan(told["validation"]["last_value"])
    assert np.isnan(told["validation"]["backbone"])


def test_an_explicit_argument_always_wins():
    f = fit(DF, input_length=13, patch_length=4, blocks="s", season_length=5, d_model=12, num_heads=3)
    chosen = dataclasses.asdict(f.settings_)
    assert {k: chosen[k] for k in ("input_length", "patch_length", "blocks", "season", "d_model", "num_heads")} == {
        "input_length": 13, "patch_length": 4, "blocks": "s", "season": 5, "d_model": 12, "num_heads": 3,
    }  # fmt: skip


@pytest.mark.parametrize("options", MODELS, ids=str)
def test_a_fitted_model_beats_seasonal_naive_and_a_constant(options):
    df = frame(steps=260)
    day = df.groupby("unique_id").cumcount()
    f = XLSTMForecaster(horizon=H, d_model=16, max_steps=150, **options).fit(df[day < 200], verbose=False)
    errors = {"model": 0.0, "naive": 0.0, "constant": 0.0}
    for end in range(200, 254, H):
        past, future = df[day < end], df[(day >= end) & (day < end + H)].y.to_numpy()
        by_id = past.groupby("unique_id").y
        forecasts = {
            "model": f.predict(past).forecast,
            "naive": by_id.apply(lambda y: y.iloc[-7:][:H]),
            "constant": by_id.mean().repeat(H),
        }
        for name, values in forecasts.items():
            errors[name] += np.abs(values.to_numpy() - future).sum()
    assert errors["model"] < 0.9 * errors["naive"]
    assert errors["model"] < 0.5 * errors["constant"]


def test_held_back_windows_that_were_asked_for_stay_under_a_tight_time_limit():
    f = tiny(time_limit=0.01, max_steps=100_000).fit(frame(steps=200), val_size=28, verbose=False)
    assert f.settings_.validation == 28
    assert {"backbone", "model"} <= f.summary()["validation"].keys()
