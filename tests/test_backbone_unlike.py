"""The backbone where what it is asked to forecast is unlike what it was fitted on: brief and gappy histories, new
levels, seasons that were hardly seen, and short series beside long ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_backbone import LEVELS, flat

from xlstm_forecast import XLSTMForecaster
from xlstm_forecast.backbone import Backbone, BackboneConfig, FittedBackbone
from xlstm_forecast.backbone.climatology import climatology
from xlstm_forecast.backbone.features import standing_drift
from xlstm_forecast.backbone.median import look
from xlstm_forecast.backbone.seasons import confirm, recurs
from xlstm_forecast.backbone.shifts import joined
from xlstm_forecast.batch import Batch
from xlstm_forecast.data.windows import Windows
from xlstm_forecast.linear import LinearModel
from xlstm_forecast.models.ensemble import Ensemble

Series = list[np.ndarray]


def climate(rows: Any, available: Any, season: int, *rest: Any, **options: Any) -> Any:
    """`climatology` with the drift that stands out, as forecasts have it."""
    return climatology(rows, available, standing_drift(rows, available, season), season, *rest, **options)


def walk(rng: np.random.Generator, n: int) -> np.ndarray:
    return 50 + np.cumsum(rng.standard_normal(n))


def trend(rng: np.random.Generator, n: int) -> np.ndarray:
    return 100 + 2 * np.arange(n) + 3 * rng.standard_normal(n)


def season(period: int):
    def draw(rng: np.random.Generator, n: int) -> np.ndarray:
        t = np.arange(n) + rng.integers(period)
        return 50 + 10 * np.sin(2 * np.pi * t / period) + 2 * rng.standard_normal(n)

    return draw


def fit(series: Series, horizon: int, freq: str) -> FittedBackbone:
    return Backbone(BackboneConfig(horizon=horizon, freq=freq)).fit(*flat(series))


def error(found: np.ndarray, label: np.ndarray) -> float:
    return float(np.abs(found[..., 4] - label).mean())


def inside(found: np.ndarray, label: np.ndarray) -> float:
    return float(((label >= found[..., 0]) & (label <= found[..., 8])).mean())


# ---- seasons ---------------------------------------------------------------------------------------------------------


def alone(draw, n: int, horizon: int, freq: str, count: int) -> tuple[float, float]:
    """Mean error of forecasts of single series, and of their last values."""
    ours, last = [], []
    for seed in range(count):
        full = draw(np.random.default_rng(seed), n + horizon)
        found = fit([full[:n]], horizon, freq).quantiles(full[None, :n], LEVELS, np.array([0]))[0]
        ours.append(error(found, full[n:]))
        last.append(np.abs(full[n - 1] - full[n:]).mean())
    return float(np.mean(ours)), float(np.mean(last))


@pytest.mark.parametrize(("draw", "most"), [(walk, 1.6), (trend, 0.7)])
@pytest.mark.parametrize("n", [78, 104])
def test_a_year_that_hardly_was_seen_is_not_repeated_where_values_speak_against_it(draw, most, n):
    ours, last = alone(draw, n, 8, "W", 8)
    assert ours < most * last


@pytest.mark.parametrize("n", [78, 104])
def test_a_year_that_hardly_was_seen_is_repeated_where_values_speak_for_it(n):
    ours, last = alone(season(52), n, 8, "W", 6)
    assert ours < 0.75 * last


@pytest.mark.parametrize("n", [24, 36])
def test_months_of_a_trend_have_no_season(n):
    ours, last = alone(trend, n, 12, "MS", 8)
    assert ours < 1.4 * last
    assert confirm([trend(np.random.default_rng(0), n)], "MS", 12)[0] == 1
    assert confirm([season(12)(np.random.default_rng(0), n)], "MS", 12)[0] == 12


def test_four_years_of_noise_have_no_season_by_chance():
    found = [confirm([np.random.default_rng(seed).standard_normal(48)], "MS", 12)[0] for seed in range(60)]
    assert np.mean([short == 1 for short in found]) > 0.75  # two of three passed a strength of .04
    real = [confirm([season(12)(np.random.default_rng(seed), 48)], "MS", 12)[0] for seed in range(60)]
    assert set(real) == {12}


def test_what_recurs_does_so_in_values_or_in_changes():
    rng = np.random.default_rng(0)
    year = season(52)(rng, 80)
    assert recurs([year], 52, 8)
    assert recurs([20 * np.sin(2 * np.pi * np.arange(100) / 52) + np.cumsum(rng.standard_normal(100))], 52, 8)
    clear = 10 * np.sin(2 * np.pi * np.arange(80) / 52) + 0.5 * rng.standard_normal(80)
    assert recurs([clear + 1.5 * np.arange(80)], 52, 8)  # in changes alone
    assert recurs([rng.standard_normal(80)] * 3, 52, 8)  # nothing speaks against it
    assert not recurs([np.arange(80.0)], 52, 8)
    assert not recurs([trend(rng, 80)], 52, 8)
    assert not recurs([np.full(80, 3.0)], 52, 8)
    assert not recurs([year[:52]], 52, 8)
    assert not recurs([np.full(80, np.nan)], 52, 8)
    assert recurs([year, year, trend(rng, 80), year[:10]], 52, 8)  # the median of those that tell
    assert not recurs([year, trend(rng, 80), trend(rng, 80)], 52, 8)


# ---- climatology -----------------------------------------------------------------------------------------------------


def test_the_distribution_of_past_values_goes_on_with_a_trend():
    """Without it, it was .14 of the forecast, what is not known to be wrong, and drew it back by a tenth of a year."""
    rng = np.random.default_rng(0)
    full = np.stack([trend(rng, 66) for _ in range(10)])
    history, label = full[:, :58], full[:, 58:]
    fitted = fit(list(history), 8, "W")
    assert fitted.blend.max() > 0.02
    found = fitted.quantiles(history, LEVELS, np.arange(10))
    assert abs((found[..., 4] - label).mean()) < 0.3
    assert error(found, label) < 1.2 * np.abs(100 + 2 * np.arange(58, 66) - label).mean()
    alone = climate(full, np.full(10, 66), 1, 4, LEVELS)
    assert np.abs(alone[..., 4] - (100 + 2 * np.arange(66, 70))).max() < 4
    assert fit([rng.standard_normal(58) for _ in range(10)], 8, "W").blend.mean() > 0.1


def test_what_no_window_could_judge_has_no_weight():
    fitted = fit([np.random.default_rng(0).standard_normal(10)], 3, "W")
    assert fitted.blend.max() == 0
    assert any(stage["stage"] == "climatology" for stage in fitted.report)


def test_climatology_of_brief_histories_is_only_given_where_asked_for():
    rows = np.random.default_rng(0).standard_normal(60)[None].repeat(3, 0)
    available = np.array([60, 30, 7])
    assert np.isfinite(climate(rows, available, 1, 4, LEVELS)).all((1, 2)).tolist() == [True, False, False]
    found = climate(rows, available, 1, 4, LEVELS, brief=True)
    np.testing.assert_allclose(found[1, 0], np.quantile(rows[0, 30:], LEVELS))
    assert np.isnan(found[2]).all()
    seasons = climate(rows, np.array([60, 59, 23]), 12, 4, LEVELS)
    assert np.isfinite(seasons).all((1, 2)).tolist() == [True, False, False]
    brief = climate(rows, np.array([60, 59, 23]), 12, 4, LEVELS, brief=True)
    assert np.isfinite(brief).all((1, 2)).tolist() == [True, True, False]
    np.testing.assert_allclose(brief[1, 0], np.quantile(rows[0, 12::12], LEVELS))
    np.testing.assert_array_equal(brief[0], seasons[0])


# ---- brief histories and gaps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("freq", "period"), [("D", 7), ("MS", 12)])
def test_bands_of_new_series_of_any_length_hold_what_comes(freq, period):
    rng = np.random.default_rng(1)
    draw = season(period)
    fitted = fit([draw(rng, 300) for _ in range(12)], 14, freq)
    for n, least in ((period - 1, 0.55), (period, 0.65), (2 * period, 0.68), (4 * period, 0.7)):
        new = np.stack([draw(rng, n + 14) for _ in range(60)])
        found = fitted.quantiles(new[:, :n], LEVELS)
        assert least < inside(found, new[:, n:]) < 0.93, n  # .07 to .45 before


def test_bands_of_a_short_series_beside_a_long_one_hold_what_comes():
    kept, ours, naive = [], [], []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        series = [season(7)(rng, 1000), *(season(7)(rng, 26) for _ in range(3))]
        fitted = fit([series[0], *(s[:12] for s in series[1:])], 14, "D")
        history, label = np.stack([s[:12] for s in series[1:]]), np.stack([s[12:] for s in series[1:]])
        found = fitted.quantiles(history, LEVELS, np.array([1, 2, 3]))
        kept.append(inside(found, label))
        ours.append(error(found, label))
        naive.append(np.abs(history[:, 5 + np.arange(14) % 7] - label).mean())
    assert np.mean(kept) > 0.6  # .17 before
    assert np.mean(ours) < 1.02 * np.mean(naive)


def test_two_weeks_beside_years_have_the_years_quantiles():
    """Of one block of its own; counted as many as of the long one, they moved the median by .7 of the noise."""
    ours, naive = [], []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        long, new = season(7)(rng, 3000), 5 * season(7)(rng, 30)
        found = fit([long, new[:16]], 14, "D").quantiles(new[None, :16], LEVELS, np.array([1]))[0]
        ours.append(error(found, new[16:]))
        naive.append(np.abs(new[9 + np.arange(14) % 7] - new[16:]).mean())
    assert np.mean(ours) < 1.1 * np.mean(naive)


def test_bands_grow_with_the_age_of_the_last_value_where_errors_do():
    rng = np.random.default_rng(0)
    for draw, gap, least, wider in ((walk, 5, 0.7, 1.2), (walk, 20, 0.65, 1.6), (season(7), 20, 0.68, 0.95)):
        full = np.stack([draw(rng, 414) for _ in range(30)])
        fitted = fit(list(full[:, :380]), 14, "D")
        index, history = np.arange(30), full[:, :400].copy()
        fresh = fitted.quantiles(history, LEVELS, index)
        history[:, -gap:] = np.nan
        stale = fitted.quantiles(history, LEVELS, index)
        assert least < inside(stale, full[:, 400:]) < 0.92  # .24 with twenty missing days of a walk
        width = (stale[..., 8] - stale[..., 0]).mean() / (fresh[..., 8] - fresh[..., 0]).mean()
        assert wider < width < 4 * wider
    assert abs(fit([walk(rng, 400) for _ in range(30)], 14, "D").spread.ageing[0] - 0.5) < 0.15
    assert fit([season(7)(rng, 400) for _ in range(30)], 14, "D").spread.ageing[0] < 0.1


def test_what_is_added_for_brief_histories_never_grows_with_their_length_and_ends():
    rng = np.random.default_rng(0)
    fitted = fit([season(7)(rng, 300) for _ in range(12)], 14, "D")
    values, added = fitted.spread.brief
    assert (np.diff(values) > 0).all()
    assert (np.diff(added) <= 0).all()
    assert added[-1] == 0
    assert added[0] > 0.3


def test_what_brief_histories_and_gaps_cost_is_saved():
    rng = np.random.default_rng(0)
    fitted = fit([season(7)(rng, 300) for _ in range(4)], 14, "D")
    assert fitted.spread.brief[1].any()
    new = season(7)(rng, 20)[None]
    same = FittedBackbone.from_arrays(*fitted.to_arrays())
    np.testing.assert_array_equal(same.quantiles(new, LEVELS), fitted.quantiles(new, LEVELS))


# ---- new levels ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [7, 14, 28])
@pytest.mark.parametrize("seen", [False, True])
def test_a_new_level_is_kept(after, seen):
    ours, naive, kept = [], [], []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        t = np.arange(314)
        full = np.stack([50 + 5 * np.sin(2 * np.pi * t / 7) + 2 * rng.standard_normal(314) for _ in range(5)])
        full[:, 300 - after :] += 35
        fitted = fit(list(full[:, : 300 if seen else 300 - after]), 14, "D")
        found = fitted.quantiles(full[:, :300], LEVELS, np.arange(5))
        ours.append(error(found, full[:, 300:]))
        naive.append(np.abs(full[:, 293 + np.arange(14) % 7] - full[:, 300:]).mean())
        kept.append(inside(found, full[:, 300:]))
    assert np.mean(ours) < 1.05 * np.mean(naive)  # 7 to 12 times as much before
    assert np.mean(kept) > 0.65


def test_networks_forecast_from_a_new_level_too(monkeypatch):
    """The pre-trained one, and those that correct the backbone, took the old level for the mean to go back to."""
    rng = np.random.default_rng(0)
    full = np.stack([season(7)(rng, 320) for _ in range(5)])
    full[:, 292:] += 35
    days = pd.date_range("2024-01-01", periods=306)
    df = pd.concat([pd.DataFrame({"unique_id": i, "ds": days, "y": full[i, :306]}) for i in range(5)])
    seen: list[Batch] = []
    joins = LinearModel.joined

    def joined_and_kept(linear: LinearModel, batch: Batch) -> Batch:
        seen.append(joins(linear, batch))
        return seen[-1]

    monkeypatch.setattr(LinearModel, "joined", joined_and_kept)
    forecaster = XLSTMForecaster(horizon=14, max_steps=30, seed=0).fit(df[df.ds < days[280]], verbose=False)
    assert seen  # the held-back windows
    assert forecaster.model_ is not None
    assert forecaster.linear_ is not None
    naive = np.abs(full[:, 299 + np.arange(14) % 7] - full[:, 306:]).mean()
    for member in ("network", "pretrained"):
        forecaster.model_.keep(1.0)
        forecaster.weights_ = {member: 1.0}
        found = forecaster.predict(df).forecast.to_numpy().reshape(5, 14)
        assert np.abs(found - full[:, 306:]).mean() < 1.1 * naive
    panel, length = forecaster._to_panel(df), forecaster.settings_.input_length
    base = forecaster.linear_.on(panel, (0.5,))
    batch, _ = Windows(panel, length, 14, base=base).gather_at(np.arange(5), np.full(5, 306), labels=False)
    added = (seen[-1].target - batch.target)[..., 0].numpy()  # what the network read
    assert seen[-1].observed.equal(batch.observed)
    assert (added[:, -14:] == 0).all()
    np.testing.assert_allclose(added[:, :-14], 35, atol=3)
    assert np.ptp(added[:, :-14], axis=1).max() < 1e-4
    monkeypatch.setattr("xlstm_forecast.linear.joined_history", lambda history, season: history)
    found = forecaster.predict(df).forecast.to_numpy().reshape(5, 14)
    assert np.abs(found - full[:, 306:]).mean() > 1.5 * naive


def test_histories_are_joined_where_they_leave_all_they_were_for_good():
    rng = np.random.default_rng(0)
    base = 5 * np.sin(2 * np.pi * np.arange(100) / 7) + rng.standard_normal(100)
    shifted = base.copy()
    shifted[86:] += 100
    every = np.array([100])
    found = joined(shifted[None], every, 7)[0]
    np.testing.assert_array_equal(found[86:], shifted[86:])
    np.testing.assert_allclose(found[:86] - base[:86], found[0] - base[0])
    assert abs(found[0] - base[0] - 100) < 1.5  # as far as noise lets the jump be known
    padded = np.concatenate([np.full(150, shifted[0]), shifted])[None]  # of a series that began later
    np.testing.assert_array_equal(joined(padded, every, 7)[0, 150:], found)
    np.testing.assert_allclose(joined(-shifted[None], every, 7)[0], -found, atol=1e-12)
    np.testing.assert_allclose(joined(3 * shifted[None] + 7, every, 7)[0], 3 * found + 7, atol=1e-9)


@pytest.mark.parametrize(
    "row",
    [
        walk(np.random.default_rng(0), 100),
        np.exp(0.05 * np.arange(100)),  # growth
        np.exp(0.7 * np.maximum(np.arange(100) - 80, 0)),  # that has begun
        np.arange(100.0),
        np.r_[np.random.default_rng(1).standard_normal(90), np.full(10, 50.0)],  # an outage
        np.r_[
            np.random.default_rng(1).standard_normal(95), 50 + np.random.default_rng(2).standard_normal(5)
        ],  # no week
        np.r_[np.zeros(90), np.full(10, 7.0)],
        np.r_[np.random.default_rng(1).standard_normal(90), 50 + 20 * np.random.default_rng(2).standard_normal(10)],
        np.full(100, 3.0),
    ],
)
def test_other_histories_are_left_as_they_are(row):
    assert joined(row[None], np.array([100]), 7)[0].tolist() == row.tolist()


def test_a_new_level_needs_four_times_as_many_values_before_it():
    rng = np.random.default_rng(0)
    row = rng.standard_normal(60)
    row[46:] = 50 + 0.5 * row[46:]
    before = np.arange(20, 60)
    moved = [not np.array_equal(joined(row[None], np.array([n]), 7)[0], row) for n in before]
    assert before[np.argmax(moved)] == 14 + 28
    assert moved == sorted(moved)


def test_a_lasting_level_out_of_bounds_is_no_sentinel_and_single_values_are():
    rng = np.random.default_rng(0)
    series = [50 + 5 * np.sin(2 * np.pi * np.arange(400) / 7) + rng.standard_normal(400) for _ in range(3)]
    for s in series:
        s[100] = -9999.0
    fitted = fit(series, 7, "D")
    assert np.isfinite(fitted.bounds).all()
    far = np.stack(series)
    far[:, -10:] += 1000
    assert fitted.quantiles(far, LEVELS, np.arange(3))[..., 4].mean() == pytest.approx(1050, abs=5)
    single = np.stack(series)
    single[:, [-9, -3]] = 9999.0
    assert fitted.quantiles(single, LEVELS, np.arange(3))[..., 4].mean() == pytest.approx(50, abs=5)


@pytest.mark.parametrize("run", [5, 6, 8])
def test_a_sensor_that_is_stuck_out_of_bounds_is_no_level(run):
    rng = np.random.default_rng(0)
    series = [50 + 5 * np.sin(2 * np.pi * np.arange(400) / 7) + rng.standard_normal(400) for _ in range(3)]
    for s in series:
        s[100] = -9999.0
    fitted = fit(series, 7, "D")
    stuck, both = np.stack(series), np.stack(series)
    stuck[:, -run:] = -9999.0
    assert fitted.quantiles(stuck, LEVELS, np.arange(3))[..., 4].mean() == pytest.approx(50, abs=5)
    both[:, -40], both[:, -10:] = -9999.0, both[:, -10:] + 1000  # an old one beside a new level
    assert fitted.quantiles(both, LEVELS, np.arange(3))[..., 4].mean() == pytest.approx(1050, abs=8)


@pytest.mark.parametrize("after", [10, 14, 28])
def test_a_missing_day_of_a_new_level_does_not_hide_it(after):
    rng = np.random.default_rng(0)
    t = np.arange(314)
    full = np.stack([50 + 5 * np.sin(2 * np.pi * t / 7) + 2 * rng.standard_normal(314) for _ in range(5)])
    full[:, 300 - after :] += 35
    fitted = fit(list(full[:, : 300 - after]), 14, "D")
    history = full[:, :300].copy()
    history[:, 302 - after] = np.nan
    ours = error(fitted.quantiles(history, LEVELS, np.arange(5)), full[:, 300:])
    assert ours < 1.1 * np.abs(full[:, 293 + np.arange(14) % 7] - full[:, 300:]).mean()  # 8 to 12 times


def test_steps_that_no_window_tells_of_leave_no_hole():
    values = 10 + np.random.default_rng(0).standard_normal(22)
    values[[1, 3, 5, 9, 10, 15, 19, 20]] = np.nan
    assert np.isfinite(fit([values], 14, "MS").quantiles(values[None], LEVELS, np.array([0]))).all()
    rng = np.random.default_rng(1)
    for _ in range(12):
        series = [np.where(rng.random(n) < 0.4, np.nan, rng.standard_normal(n)) for n in (20, 5, 9)]
        fitted = fit(series, 6, "D")
        for i, row in enumerate(series):
            assert np.isfinite(fitted.quantiles(row[None], LEVELS, np.array([i]))).all() or np.isnan(row).all()


def test_windows_without_any_change_do_not_widen_the_bands_of_others():
    """Sigma is 0 there, and errors in units of it are endless: bands of sparse new series were 12 times as wide."""
    rng = np.random.default_rng(0)
    series = [np.where(rng.random(300) < 0.2, rng.poisson(4, 300), 0).astype(float) for _ in range(20)]
    with np.errstate(all="raise"):
        fitted = fit(series, 14, "D")
    assert fitted.spread.brief[1].max() < 1
    new = np.stack([np.where(rng.random(20) < 0.2, rng.poisson(4, 20), 0).astype(float) for _ in range(50)])
    assert fitted.quantiles(new, LEVELS)[..., 8].mean() < 10


def test_a_first_value_long_ago_does_not_make_a_brief_history_long():
    rng = np.random.default_rng(0)
    fitted = fit([season(7)(rng, 300) for _ in range(12)], 14, "D")
    history = np.full((1, fitted.history), np.nan)
    history[0, -3:] = 50, 55, 52
    added = [fitted.spread.scarce(look(history, fitted.sizes.shape, fitted.sizes.reach)).mean()]
    history[0, 0] = 51
    added.append(fitted.spread.scarce(look(history, fitted.sizes.shape, fitted.sizes.reach)).mean())
    assert added[0] >= added[1] > 0.7 * added[0] > 0.2


def test_no_forecast_falls_below_a_floor_and_a_series_below_it_has_none(monkeypatch):
    rng = np.random.default_rng(0)
    n = 160
    parts = []
    for i in range(4):
        y = np.where(rng.random(n) < 0.5, rng.poisson(3 + 2 * np.sin(2 * np.pi * np.arange(n) / 7)), 0).astype(float)
        parts.append(pd.DataFrame({"unique_id": i, "ds": pd.date_range("2024-01-01", periods=n), "y": y}))
    df = pd.concat(parts, ignore_index=True)
    forecaster = XLSTMForecaster(horizon=7, max_steps=30, presets="fast", seed=0).fit(df, verbose=False)
    assert forecaster.weights_["network"] > 0
    found = forecaster.predict(df, quantiles=[0.01, 0.1, 0.5])
    assert found.filter(like="q0").min().min() == 0
    low = df.copy()
    low.loc[low.groupby("unique_id").cumcount() >= n - 15, "y"] -= 50
    assert (forecaster.predict(low)["forecast"] < -30).all()
    assert forecaster.model_ is not None
    forecaster.model_.keep(1.0)  # whatever the held-back windows said of the network
    plain = Ensemble.quantiles
    monkeypatch.setattr(Ensemble, "quantiles", lambda *given: plain(*given) - 100)  # of networks that err downwards
    assert forecaster.predict(df).filter(like="q0").min().min() == 0
    assert (forecaster.predict(low)["forecast"] < -60).all()
