"""Covariates beside a backbone: what takes part in the forecast, and how it is corrected."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from test_forecaster import H, fit, frame, tiny

from xlstm_forecast import XLSTMForecaster


def promoted(series: int = 12, steps: int = 120) -> pd.DataFrame:
    """Weekly seasons with promotions that raise the level, and a column of noise."""
    df = frame(series=[f"s{i:02d}" for i in range(series)], steps=steps)
    rng = np.random.default_rng(3)
    df["promotion"] = (rng.random(len(df)) < 0.2).astype(float)
    df["noise"] = rng.standard_normal(len(df))
    df["y"] += 2.0 * df["promotion"]
    return df


def test_beside_networks_with_covariates_the_backbone_is_corrected_by_one_that_knows_none(tmp_path):
    df = promoted()
    f = fit(df.iloc[:, :4], future=["promotion"], max_steps=60, d_model=16, lr=5e-3)
    assert set(f.weights_) >= {"network", "backbone", "pretrained"}
    assert len(f.training_) == len(f.model_.models) + len(f.correction_.models)
    assert f.summary()["share"] == f.correction_.share
    assert all(member.config.known == len(f.calendar_) * 2 for member in f.correction_.models)
    f.correction_.keep(1.0)
    future = df.groupby("unique_id").tail(H)[["unique_id", "ds", "promotion"]]
    future["ds"] += pd.Timedelta(days=H)
    path = tmp_path / "f.safetensors"
    f.save(path)
    again = XLSTMForecaster.load(path)
    pd.testing.assert_frame_equal(f.predict(future_df=future), again.predict(df.iloc[:, :4], future_df=future))
    with_it = f.predict(future_df=future)
    f.correction_.keep(0.0)
    assert not np.array_equal(with_it["forecast"], f.predict(future_df=future)["forecast"])


def test_columns_of_noise_leave_the_backbone_as_it_is_without_them():
    df = promoted()[["unique_id", "ds", "y", "noise"]]
    noisy = tiny(model="linear", future=["noise"]).fit(df, verbose=False)
    plain = tiny(model="linear").fit(df[["unique_id", "ds", "y"]], verbose=False)
    future = df.groupby("unique_id").tail(H)[["unique_id", "ds", "noise"]]
    future["ds"] += pd.Timedelta(days=H)
    (told,) = [stage for stage in noisy.summary()["backbone"] if stage["stage"] == "known inputs"]
    assert told["kept"] == []
    pd.testing.assert_frame_equal(noisy.predict(future_df=future), plain.predict())


@pytest.mark.parametrize(("steps", "held"), [(2 * H + 2, 0), (4 * H, 4 * H // 3)])
@pytest.mark.parametrize("role", ["future", "past"])
def test_noise_takes_no_part_where_less_than_two_horizons_are_held_back(role, steps, held):
    df = promoted(series=3, steps=steps)[["unique_id", "ds", "y", "noise"]]
    future = df.groupby("unique_id").tail(H)[["unique_id", "ds", "noise"]]
    future["ds"] += pd.Timedelta(days=H)
    noisy = tiny(networks=1, **{role: ["noise"]}).fit(df, verbose=False)
    assert set(noisy.weights_) == {"pretrained", "backbone"}
    assert noisy.summary()["steps"][0] == 0
    plain = tiny().fit(df[["unique_id", "ds", "y"]], verbose=False)
    assert noisy.summary()["held_back"] == plain.summary()["held_back"] == held
    found = noisy.predict(future_df=future if role == "future" else None)
    assert found["forecast"].to_numpy() == pytest.approx(plain.predict()["forecast"].to_numpy(), rel=1e-6)


@pytest.mark.parametrize(
    ("column", "weights"), [("noise", {"pretrained": 0.5, "backbone": 0.5}), ("promotion", {"backbone": 1.0})]
)
def test_a_time_limit_below_three_fits_of_the_backbone_trains_nothing_with_covariates_either(column, weights):
    df = promoted(series=3, steps=200)[["unique_id", "ds", "y", column]]
    f = tiny(time_limit=0.01, max_steps=100_000, future=[column]).fit(df, verbose=False)
    assert f.summary()["held_back"] == 0
    assert f.summary()["steps"] == [0, 0, 0]
    assert f.weights_ == weights
    future = df.groupby("unique_id").tail(H)[["unique_id", "ds", column]]
    future["ds"] += pd.Timedelta(days=H)
    assert np.isfinite(f.predict(future_df=future)["forecast"]).all()


def test_past_columns_do_where_nothing_was_to_be_held_back():
    df = promoted(series=3, steps=60)[["unique_id", "ds", "y", "noise"]]
    f = tiny(networks=1, past=["noise"]).fit(df, val_size=0, verbose=False)
    assert f.weights_ == {name: pytest.approx(1 / 3) for name in ("network", "pretrained", "backbone")}
    assert f.summary()["steps"] > [0]


def test_a_column_that_the_backbone_kept_does_where_nothing_is_held_back():
    df = promoted(series=3, steps=60)[["unique_id", "ds", "y", "promotion"]]
    f = tiny(networks=1, future=["promotion"]).fit(df, val_size=0, verbose=False)
    assert f.weights_ == {name: pytest.approx(1 / 3) for name in ("network", "pretrained", "backbone")}


def test_a_known_category_is_read_where_one_horizon_is_held_back():
    """The backbone reads it, and so need not hold back more to let networks read it too."""
    rng, steps = np.random.default_rng(0), 60
    parts = []
    for i in range(12):
        t, promo = np.arange(steps + 12), rng.integers(0, 2, steps + 12)
        y = 100 + 10 * np.sin(2 * np.pi * t / 12) + 50 * promo + rng.normal(0, 2, steps + 12)
        ds = pd.date_range("2018-01-01", periods=steps + 12, freq="MS")
        parts.append(pd.DataFrame({"unique_id": f"s{i}", "ds": ds, "y": y, "promo": np.array(["no", "yes"])[promo]}))
    df = pd.concat(parts)
    late = df.ds >= "2023-01-01"
    f = XLSTMForecaster(horizon=12, presets="fast", future=["promo"], categorical=["promo"])
    f.fit(df[~late], verbose=False)
    future = df[late].drop(columns="y")
    no, yes = (f.predict(future_df=future.assign(promo=value)).forecast for value in ("no", "yes"))
    assert 30 < (yes - no).mean() < 60


def test_a_category_of_another_type_is_refused_by_name_and_a_new_one_is_unknown():
    df = promoted(series=3, steps=60)
    df["kind"] = (np.arange(len(df)) // 7) % 2
    future = df.groupby("unique_id").tail(H)
    past = df.groupby("unique_id").head(-H)
    f = tiny(networks=1, future=["kind"], categorical=["kind"]).fit(
        past[["unique_id", "ds", "y", "kind"]], verbose=False
    )
    future = future[["unique_id", "ds", "kind"]]
    assert f.predict(future_df=future.assign(kind=5)).forecast.notna().all()
    for wrong in ({"future_df": future.assign(kind="1")}, {"df": past.assign(kind="0"), "future_df": future}):
        with pytest.raises(ValueError, match=r"column 'kind' holds values such as '.', and the model.* such as 0"):
            f.predict(**wrong)
