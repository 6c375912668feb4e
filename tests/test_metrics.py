"""Scores against numbers worked by hand, gluonts' formulas, and the libraries that compute them."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pandas as pd
import polars as pl
import pytest
import utilsforecast.evaluation
import utilsforecast.losses

from xlstm_forecast.metrics import (
    METRICS,
    columns_of,
    common_rows,
    compare,
    crps_normal,
    crps_samples,
    crps_student_t,
    evaluate,
    interval_score,
    leaderboard,
    pit,
    seasonal_scale,
    steps,
    to_utilsforecast,
)


def small() -> pd.DataFrame:
    """Two series, one window each, two steps; bands of 80 %."""
    return pd.DataFrame(
        {
            "unique_id": ["a", "a", "b", "b"],
            "ds": [5, 6, 5, 6],
            "cutoff": [4, 4, 4, 4],
            "y": [10.0, 20.0, 1.0, 3.0],
            "forecast": [12.0, 16.0, 1.0, 2.0],
            "q0.1": [9.0, 14.0, 0.0, 1.0],
            "q0.5": [12.0, 16.0, 1.0, 2.0],
            "q0.9": [13.0, 18.0, 2.0, 4.0],
        }
    )


def past() -> pd.DataFrame:
    """Lag 1 changes of a: 2, 1, 3 (mean 2); of b: 1, 1, 2 (mean 4/3)."""
    values = {"a": [5.0, 7.0, 8.0, 5.0], "b": [1.0, 2.0, 1.0, 3.0]}
    return pd.DataFrame(
        {"unique_id": np.repeat(["a", "b"], 4), "ds": [1, 2, 3, 4] * 2, "y": np.concatenate(list(values.values()))}
    )


def score(metric: str, **options) -> float:
    return float(evaluate(small(), [metric], **options).iloc[0, -1])


def test_point_scores_equal_numbers_worked_by_hand():
    # errors: 2, -4, 0, -1; labels: 10, 20, 1, 3
    assert score("mae") == pytest.approx(7 / 4)
    assert score("rmse") == pytest.approx(math.sqrt(21 / 4))
    assert score("bias") == pytest.approx(-3 / 4)
    assert score("wape") == pytest.approx(7 / 34)
    assert score("smape") == pytest.approx((2 * 2 / 22 + 2 * 4 / 36 + 0 + 2 * 1 / 5) / 4)


def test_scaled_scores_divide_each_window_by_the_change_of_its_own_past():
    assert score("mase", history=past()) == pytest.approx((2 / 2 + 4 / 2 + 0 + 1 / (4 / 3)) / 4)
    squares = {"a": (4 + 1 + 9) / 3, "b": (1 + 1 + 4) / 3}
    by_hand = math.sqrt((4 / squares["a"] + 16 / squares["a"] + 0 + 1 / squares["b"]) / 4)
    assert score("rmsse", history=past()) == pytest.approx(by_hand)


def test_quantile_scores_equal_gluonts_formulas():
    table, rho = small(), {}
    for level in (0.1, 0.5, 0.9):
        q = table[f"q{level:g}"]
        rho[level] = (2 * ((table.y - q) * ((table.y <= q) - level)).abs()).sum()
    assert score("wql") == pytest.approx(np.mean([total / 34 for total in rho.values()]))
    assert score("crps") == pytest.approx(np.mean([total / 4 for total in rho.values()]))
    assert score("pinball") == pytest.approx(score("crps") / 2)


def test_band_scores_equal_numbers_worked_by_hand():
    assert score("coverage") == pytest.approx(3 / 4)  # 20 lies above 18
    assert score("width") == pytest.approx((4 + 4 + 2 + 3) / 4)
    misses = [4 / 2, (4 + 2 / 0.2 * 2) / 2, 2 / (4 / 3), 3 / (4 / 3)]
    assert score("msis", history=past()) == pytest.approx(np.mean(misses))


def test_distribution_scores_are_exact():
    y = np.array([0.3, -1.2])
    by_hand = [  # Gneiting and Raftery (2007), equation 21
        z * (2 * 0.5 * (1 + math.erf(z / math.sqrt(2))) - 1)
        + 2 * math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
        - 1 / math.sqrt(math.pi)
        for z in y
    ]
    assert crps_normal(y, 0.0, 1.0) == pytest.approx(by_hand)
    assert crps_student_t(y, 1e6, 0.0, 1.0) == pytest.approx(by_hand, abs=1e-4)
    assert crps_samples(np.array([1.0]), np.array([[0.0, 2.0]])) == pytest.approx([1.0 - 2 / 2])
    one = interval_score(np.array([5.0]), np.array([1.0]), np.array([3.0]), 0.5)
    assert one.tolist() == [pytest.approx(2 + 4 * 2)]


def test_crps_from_many_quantiles_approaches_the_exact_one():
    levels = np.round(np.arange(1, 200) / 200, 3)
    z = [statistics.NormalDist().inv_cdf(q) for q in levels]
    table = pd.DataFrame({"ds": [1], "cutoff": [0], "y": [0.7], "forecast": [0.0]})
    table = pd.concat([table, pd.DataFrame({f"q{q:g}": [v] for q, v in zip(levels, z, strict=True)})], axis=1)
    assert float(evaluate(table, ["crps"]).iloc[0, 0]) == pytest.approx(float(crps_normal(0.7, 0.0, 1.0)), rel=0.01)


def test_groups_are_what_they_are_named_after():
    table = small()
    assert evaluate(table, ["mae"], by="series")["mae"].tolist() == [3.0, 0.5]
    assert evaluate(table, ["mae"], by="step")["mae"].tolist() == [1.0, 2.5]
    assert evaluate(table, ["mae"], by="cutoff").columns.tolist() == ["cutoff", "mae"]
    both = evaluate(table, ["mae"], by=["series", "step"]).set_index(["unique_id", "step"])["mae"]
    assert both.to_dict() == {
        ("a", 1): 2,
        ("a", 2): 4,
        ("b", 1): 0,
        ("b", 2): 1,
    }


@pytest.mark.parametrize("freq", ["h", "D", "B", "W-WED", "MS", "ME", "QS", "YS", "int", "M"])
def test_a_row_keeps_its_step_where_others_of_its_window_are_gone(freq):
    dates = pd.date_range("2023-01-02", periods=40, freq="MS" if freq in ("M", "int") else freq)
    axis = np.arange(40) * 3 if freq == "int" else dates.to_period("M") if freq == "M" else dates
    window, step = (index.ravel() for index in np.indices((30, 5)))
    table = pd.DataFrame({"ds": axis[window + step + 1], "cutoff": axis[window], "y": 0.0, "forecast": step + 1.0})
    some = table[np.random.default_rng(0).random(len(table)) > 0.3]
    assert steps(some, columns_of(some)).tolist() == some["forecast"].tolist()
    assert evaluate(some, "mae", by="step")["mae"].tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_steps_of_times_without_a_calendar_are_ranks_of_whole_windows_only():
    times = pd.to_datetime(
        ["2024-01-01 00:00", "2024-01-02 00:00", "2024-01-09 00:00", "2024-01-11 07:00", "2024-01-20 00:00"]
    )
    rows = [(times[w + h + 1], times[w], 0.0, 0.0) for w in range(3) for h in range(2)]
    table = pd.DataFrame(rows, columns=["ds", "cutoff", "y", "forecast"])
    assert steps(table, columns_of(table)).tolist() == [1, 2] * 3
    with pytest.raises(ValueError, match="steps of the rows are not clear: windows have from 1 to 2 rows"):
        evaluate(table.drop(index=2), by="step")


def test_missing_labels_are_left_out_and_a_group_without_any_is_missing():
    table = small()
    table.loc[table.unique_id == "a", "y"] = [10.0, np.nan]
    assert evaluate(table, ["mae"], by="overall")["mae"].tolist() == [pytest.approx(1.0)]
    table.loc[table.unique_id == "a", "y"] = np.nan
    assert np.isnan(evaluate(table, ["mae", "crps"], by="series").loc[0, ["mae", "crps"]].to_numpy(float)).all()


def test_the_order_of_rows_changes_no_score():
    shuffled = small().sample(frac=1, random_state=1)
    a = evaluate(small(), history=past(), by=["series", "step"])
    b = evaluate(shuffled, history=past().sample(frac=1, random_state=2), by=["series", "step"])
    pd.testing.assert_frame_equal(a, b)
    assert steps(shuffled, columns_of(shuffled)).tolist() == [1 + int(t == 6) for t in shuffled.ds]


def test_rows_after_the_cutoff_never_enter_a_scale():
    later = pd.concat([past(), pd.DataFrame({"unique_id": ["a"] * 3, "ds": [5, 6, 7], "y": [1e9, np.nan, -1e9]})])
    assert seasonal_scale(small(), later).tolist() == seasonal_scale(small(), past()).tolist()


def test_a_past_no_longer_than_a_season_is_scaled_by_its_steps():
    assert seasonal_scale(small(), past(), 4).tolist() == seasonal_scale(small(), past(), 1).tolist()
    assert seasonal_scale(small(), past(), 3)[0] == 0.0 or np.isnan(seasonal_scale(small(), past(), 3)[0])


def test_steps_without_a_row_count_as_missing_and_a_series_is_a_history():
    days = pd.date_range("2024-01-01", periods=8, freq="D")
    y = pd.Series([1.0, 5.0, 2.0, 7.0, 3.0, 9.0, 5.0, 11.0], index=days)
    table = pd.DataFrame({"ds": [days[-1] + pd.Timedelta(days=1)], "cutoff": [days[-1]], "y": [1.0], "forecast": [0.0]})
    whole = y.rename_axis("ds").reset_index(name="y")
    holes = whole.drop(index=[2, 3])
    assert seasonal_scale(table, whole, 2).tolist() == [np.mean([1, 2, 1, 2, 2, 2])]
    assert seasonal_scale(table, holes, 2).tolist() == [2.0]  # 9 - 7 is gone with its row, 3 - 2 and 5 - 7 too
    assert seasonal_scale(table, y, 2).tolist() == seasonal_scale(table, whole, 2).tolist()


def test_every_metric_has_a_column_and_equals_utilsforecast_per_series():
    table, whole = small(), past()
    scores = evaluate(table, history=whole, by="series")
    assert all(any(str(c).startswith(name) for c in scores.columns) for name in METRICS)
    plain = table.drop(columns="cutoff")
    theirs = utilsforecast.losses.mase(plain, ["forecast"], seasonality=1, train_df=whole)
    assert scores["mase"].tolist() == pytest.approx(theirs["forecast"].tolist())
    theirs = utilsforecast.losses.rmsse(plain, ["forecast"], seasonality=1, train_df=whole)
    assert scores["rmsse"].tolist() == pytest.approx(theirs["forecast"].tolist())


def test_utilsforecast_reads_the_renamed_frame():
    table = to_utilsforecast(small())
    assert table.columns.tolist() == [
        "unique_id", "ds", "cutoff", "y", "forecast", "forecast-lo-80", "forecast-hi-80",
    ]  # fmt: skip
    scores = utilsforecast.evaluation.evaluate(
        table, metrics=[utilsforecast.losses.mae, utilsforecast.losses.coverage], models=["forecast"], level=[80]
    )
    assert scores.loc[scores.metric == "mae", "forecast"].mean() == pytest.approx(7 / 4)
    assert scores.loc[scores.metric.str.startswith("coverage"), "forecast"].mean() == pytest.approx(3 / 4)


def test_polars_frames_are_scored_alike_and_answered_in_polars():
    scores = evaluate(pl.from_pandas(small()), history=pl.from_pandas(past()), by="series")
    assert isinstance(scores, pl.DataFrame)
    expected = evaluate(small(), history=past(), by="series")
    for column in expected.columns[1:]:
        assert scores[column].to_list() == pytest.approx(expected[column].tolist())


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda t: t, {"metrics": ["mse"]}, "unknown metric 'mse'"),
        (lambda t: t, {"metrics": ["mase"]}, "'mase' needs history="),
        (lambda t: t.drop(columns=["q0.1", "q0.5", "q0.9"]), {"metrics": ["crps"]}, "'crps' needs quantile columns"),
        (lambda t: t.drop(columns=["q0.1"]), {"metrics": ["coverage"]}, "'coverage' needs a pair of quantile columns"),
        (lambda t: t.drop(columns=["cutoff"]), {}, "column 'cutoff' is missing"),
        (lambda t: t.assign(y=np.nan), {}, "no row of the 4 has both a label"),
        (lambda t: pd.concat([t, t]), {}, "4 rows repeat a .series, time, cutoff.; first: unique_id=a, ds=5"),
        (lambda t: t, {"by": "month"}, "by='month' is not known"),
        (lambda t: t, {"history": past().iloc[:4]}, "series 'b' is not in history"),
        (lambda t: t, {"history": past().drop(columns="ds")}, "column 'ds' is missing from history"),
        (lambda t: t, {"history": past().assign(ds=[7, 8, 9, 10] * 2)}, "no row at or before the cutoff"),
        (lambda t: t, {"history": past(), "season_length": 0}, "season_length must be at least 1"),
    ],
)
def test_what_cannot_be_scored_is_named(change, options, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        evaluate(change(small()), **options)


def test_labels_fall_at_the_levels_their_quantiles_say():
    table = small()
    table["y"] = [9.0, 15.0, 5.0, 0.5]  # on q0.1; halfway between q0.1 and q0.5; above; below
    assert pit(table) == pytest.approx([0.1, 0.3, 0.95, 0.05])


def test_pit_of_calibrated_quantiles_is_uniform():
    rng, levels = np.random.default_rng(0), np.arange(1, 20) / 20
    z = np.array([statistics.NormalDist().inv_cdf(q) for q in levels])
    table = pd.DataFrame({"ds": np.arange(4000) + 1, "cutoff": np.arange(4000), "y": rng.standard_normal(4000)})
    table["forecast"] = 0.0
    table = pd.concat(
        [table, pd.DataFrame({f"q{q:g}": np.full(4000, v) for q, v in zip(levels, z, strict=True)})], axis=1
    )
    counts, _ = np.histogram(pit(table), 20, (0, 1))
    assert np.abs(counts / 200 - 1).max() < 0.25


def many(noise: float, seed: int, n_series: int = 6, n_windows: int = 30) -> pd.DataFrame:
    rng = np.random.default_rng(7)
    y = rng.standard_normal((n_series, n_windows, 2))
    error = noise * np.random.default_rng(seed).standard_normal(y.shape)
    index = np.indices(y.shape).reshape(3, -1)
    return pd.DataFrame(
        {
            "unique_id": index[0],
            "ds": 2 * index[1] + index[2] + 1,
            "cutoff": 2 * index[1],
            "y": y.ravel(),
            "forecast": (y + error).ravel(),
        }
    )


@pytest.mark.parametrize("method", ["bootstrap", "dm"])
def test_a_real_difference_is_significant_and_noise_is_not(method):
    better, worse, equal = many(1.0, 1), many(1.4, 2), many(1.0, 3)
    found = compare(better, worse, "mae", method=method)
    assert found.significant
    assert found.ratio < 0.9
    assert found.difference < 0
    assert not compare(better, equal, "mae", method=method).significant
    assert compare(better, better, "mae", method=method).p_value == pytest.approx(1.0, abs=0.01)


def test_the_paired_tests_reject_about_as_often_as_they_promise():
    rejected = [compare(many(1.0, 2 * s), many(1.0, 2 * s + 1), "mae", method="dm").significant for s in range(60)]
    assert np.mean(rejected) <= 0.15


def test_student_tails_are_those_of_tables():
    from xlstm_forecast.metrics.paired import _student_reach, _student_tail

    assert _student_tail(2.228, 10) == pytest.approx(0.05, abs=2e-4)
    assert _student_tail(12.706, 1) == pytest.approx(0.05, abs=2e-4)
    assert _student_reach(30) == pytest.approx(2.042, abs=1e-3)


def test_too_few_windows_for_a_paired_test_says_how_many():
    few = many(1.0, 1, n_windows=2)
    with pytest.raises(ValueError, match="at least 4 windows here, found 2"):
        compare(few, few, "mae", method="dm")
    with pytest.raises(ValueError, match="'crps'"):
        compare(few, few, "crps")


def test_models_are_ranked_on_the_rows_they_share():
    frames = {"bad": many(2.0, 1), "good": many(1.0, 2).iloc[:-1]}
    board = leaderboard(frames, ["mae", "bias"], relative_to="bad")
    assert board["model"].tolist() == ["good", "bad"]
    assert board["mae"].tolist()[1] == 1.0
    assert board["mae"].tolist()[0] < 0.6
    assert len(common_rows(frames)["bad"]) == len(frames["bad"]) - 1
    with pytest.raises(ValueError, match="no \\(series, time, cutoff\\) in common"):
        leaderboard({"a": many(1, 1), "b": many(1, 1).assign(cutoff=-1)}, ["mae"])
    with pytest.raises(ValueError, match="relative_to='c'"):
        leaderboard(frames, ["mae"], relative_to="c")


def test_one_metric_may_be_a_text_and_frames_without_rows_are_named():
    pd.testing.assert_frame_equal(evaluate(small(), "mae"), evaluate(small(), ["mae"]))
    assert list(leaderboard({"a": small()}, "mae")) == ["model", "mae"]
    with pytest.raises(ValueError, match="frames is empty"):
        leaderboard({})
    with pytest.raises(ValueError, match="the frame of model 'b' has no rows"):
        leaderboard({"a": small(), "b": small().iloc[:0]}, "mae")
