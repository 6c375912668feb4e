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


def test_a_row_counts_for_all_models_or_for_none():
    good, bad = many(1.0, 1), many(1.0, 2)
    for table in (good, bad):
        for level, shift in ((0.1, -1.0), (0.5, 0.0), (0.9, 1.0)):
            table[f"q{level:g}"] = table["forecast"] + shift
    rows = np.flatnonzero(bad["ds"] % 5 == 0)
    spoilt = bad.copy()
    spoilt.loc[rows[::2], "forecast"] = np.inf
    spoilt.loc[rows[1::2], "q0.9"] = np.nan
    left = [table.drop(index=rows) for table in (good, bad)]
    metrics = ["mae", "crps", "coverage"]
    board = leaderboard({"good": good, "spoilt": spoilt}, metrics).set_index("model")
    for name, table in zip(["good", "spoilt"], left, strict=True):
        assert board.loc[name].tolist() == pytest.approx(evaluate(table, metrics).iloc[0].tolist(), rel=1e-12)
    assert board.loc["good", "mae"] != pytest.approx(evaluate(good, "mae").iloc[0, 0], rel=1e-3)
    pd.testing.assert_frame_equal(
        common_rows({"a": good, "b": spoilt}, (0.9,))["a"],
        left[0].sort_values(["unique_id", "ds", "cutoff"], ignore_index=True),
    )
    assert len(common_rows({"a": good, "b": spoilt})["a"]) == len(good) - len(rows[::2])
    for metric, (one, two) in (("pinball", left), ("mae", [t.drop(index=rows[::2]) for t in (good, bad)])):
        a, b = compare(good, spoilt, metric, n_resamples=50), compare(one, two, metric, n_resamples=50)
        assert (a.ratio, a.difference) == (pytest.approx(b.ratio), pytest.approx(b.difference))


def test_point_metrics_ask_for_no_quantiles_and_labels_of_some_models_only_count_for_none():
    table = small()
    table.loc[0, "q0.9"] = np.nan
    assert evaluate(table, ["mae"]).iloc[0, 0] == pytest.approx(7 / 4)
    assert evaluate(table, ["mae", "coverage"]).iloc[0].tolist() == [pytest.approx(5 / 3), pytest.approx(2 / 3)]
    assert leaderboard({"a": small(), "b": table}, "mae")["mae"].tolist() == [pytest.approx(7 / 4)] * 2
    unlabelled = small()
    unlabelled.loc[1, "y"] = np.nan
    board = leaderboard({"a": small(), "b": unlabelled}, "mae")
    assert board["mae"].tolist() == [pytest.approx(1.0)] * 2
    assert len(common_rows({"a": unlabelled, "b": unlabelled})["a"]) == 4
    with pytest.raises(ValueError, match=r"no row of model 'b' is finite in \['forecast', 'q0.1'"):
        leaderboard({"a": small(), "b": small().assign(**{"q0.1": np.nan})}, "crps")
    with pytest.raises(ValueError, match=r"1 rows repeat a .series, time, cutoff.; first: unique_id=b, ds=6"):
        compare(small(), pd.concat([small(), small().iloc[[3]]]), "mae")


def test_models_are_compared_at_the_levels_that_all_have():
    z = {level: statistics.NormalDist().inv_cdf(level) for level in (0.01, 0.1, 0.5, 0.9, 0.99)}
    inner, outer = (
        many(1.0, 1).assign(**{f"q{level:g}": many(1.0, 1)["forecast"] + z[level] for level in levels})
        for levels in ((0.1, 0.5, 0.9), (0.01, 0.5, 0.99))
    )
    plain = evaluate(inner.drop(columns=["q0.1", "q0.9"]), ["crps", "wql"]).iloc[0].tolist()
    assert plain[0] != pytest.approx(evaluate(inner, "crps").iloc[0, 0], rel=0.05)
    board = leaderboard({"inner": inner, "outer": outer}, ["crps", "wql"])
    assert board.iloc[:, 1:].to_numpy().tolist() == [pytest.approx(plain)] * 2
    found = compare(inner, outer, "pinball", n_resamples=50)
    assert (found.ratio, found.difference) == (pytest.approx(1.0), pytest.approx(0.0, abs=1e-12))
    both = outer.assign(**{"q0.1": inner["q0.1"], "q0.9": inner["q0.9"]})
    board = leaderboard({"inner": inner, "both": both}, ["coverage", "crps"])
    assert board.columns.tolist() == ["model", "coverage80", "crps"]
    assert board["crps"].tolist() == [pytest.approx(evaluate(inner, "crps").iloc[0, 0])] * 2
    with pytest.raises(ValueError, match=r"'coverage' needs a pair .* that all frames have: 'inner' has \['q0.1', "):
        leaderboard({"inner": inner, "outer": outer}, ["coverage"])
    with pytest.raises(ValueError, match=r"'pinball' needs quantile columns .* that all frames have: .* 'second' has "):
        compare(inner, outer.drop(columns="q0.5"), "pinball")


def test_the_best_bias_is_nearest_to_none_and_the_best_coverage_to_nominal():
    shifts = {"low": -3.0, "best": 0.5, "high": 1.0}
    frames = {name: small().assign(forecast=small()["y"] + shift) for name, shift in shifts.items()}
    board = leaderboard(frames, ["bias", "mae"])
    assert board["model"].tolist() == ["best", "high", "low"]
    assert board["bias"].tolist() == [0.5, 1.0, -3.0]
    hits = {"all": 10, "none": 0, "eight": 8, "seven": 7}
    base = pd.DataFrame({"ds": np.arange(1, 11), "cutoff": 0, "y": 0.0, "forecast": 0.0})
    frames = {
        name: base.assign(**{"q0.1": np.where(np.arange(10) < n, -1.0, 1.0), "q0.9": 2.0}) for name, n in hits.items()
    }
    board = leaderboard(frames, ["coverage", "width"])
    assert board["model"].tolist() == ["eight", "seven", "all", "none"]
    assert board["coverage80"].tolist() == [0.8, 0.7, 1.0, 0.0]
    assert leaderboard(frames, ["width", "coverage"])["model"].tolist() == ["none", "seven", "eight", "all"]


def gappy() -> tuple[pd.DataFrame, pd.DataFrame]:
    """A frame and its history of two daily series, whose scale at season 2 differs with and without the grid."""
    days = pd.date_range("2024-01-01", periods=8, freq="D")
    y = {"a": [1.0, 5.0, 2.0, 7.0, 3.0, 9.0, 5.0, 11.0], "b": [2.0, 4.0, 1.0, 0.0, 6.0, 3.0, 8.0, 2.0]}
    past = pd.concat([pd.DataFrame({"unique_id": key, "ds": days, "y": values}) for key, values in y.items()])
    table = pd.DataFrame({"unique_id": ["a", "b"], "ds": days[-1] + pd.Timedelta(days=1), "cutoff": days[-1]})
    return table.assign(y=1.0, forecast=0.0), past.drop(index=[2, 3]).reset_index(drop=True)


@pytest.mark.parametrize("times", ["same", "another calendar", "repeated"])
def test_a_series_without_a_value_changes_no_scale_of_the_others(times):
    table, past = gappy()
    expected = seasonal_scale(table, past, 2)
    assert expected[0] == 2.0
    own = past.loc[past["unique_id"] == "a", "ds"]
    own = own + pd.to_timedelta(np.arange(len(own)) ** 2, "h") if times == "another calendar" else own
    empty = pd.DataFrame({"unique_id": "c", "ds": own, "y": np.nan})
    empty = pd.concat([empty, empty]) if times == "repeated" else empty
    assert seasonal_scale(table, pd.concat([past, empty]), 2).tolist() == expected.tolist()
    both = pd.concat([table, table.iloc[:1].assign(unique_id="c")])
    scale = seasonal_scale(both, pd.concat([past, empty]), 2)
    assert scale[:2].tolist() == expected.tolist()
    assert np.isnan(scale[2])


def test_a_history_that_repeats_rows_or_lacks_times_is_refused_and_infinite_values_are_missing():
    table, past = gappy()
    with pytest.raises(ValueError, match=r"history that repeat a .series, time.: 1; first: unique_id=b, ds=2024-01-05"):
        evaluate(table, "mase", history=pd.concat([past, past.iloc[[8]]]), season_length=2)
    series = past[past["unique_id"] == "a"].set_index("ds")["y"]
    alone = table.iloc[:1].drop(columns="unique_id")
    with pytest.raises(ValueError, match=r"repeat a .series, time.: 1; first: ds=2024-01-01"):
        seasonal_scale(alone, pd.concat([series, series.iloc[:1]]), 2)
    with pytest.raises(ValueError, match="column 'ds' of history is missing in 1 rows; first: row 3"):
        seasonal_scale(table, past.assign(ds=past["ds"].where(past.index != 3)), 2)
    spoilt = past.assign(y=past["y"].where(past.index != 3, np.inf))
    missing = past.assign(y=past["y"].where(past.index != 3))
    assert seasonal_scale(table, spoilt, 2).tolist() == seasonal_scale(table, missing, 2).tolist()


def test_a_history_without_a_clear_frequency_is_scaled_row_by_row():
    table, past = gappy()
    past["ds"] += pd.to_timedelta(np.arange(len(past)) ** 2, "min")
    table = table.assign(cutoff=past["ds"].max(), ds=past["ds"].max() + pd.Timedelta(days=1))
    values = past.loc[past["unique_id"] == "a", "y"].to_numpy()
    assert seasonal_scale(table, past, 2)[0] == pytest.approx(np.abs(values[2:] - values[:-2]).mean())


@pytest.mark.parametrize("length", [2.0, np.int64(2), np.float32(2), np.uint8(2)])
def test_a_season_may_be_any_whole_number(length):
    table, past = gappy()
    expected = evaluate(table, ["mase", "rmsse"], history=past, season_length=2)
    pd.testing.assert_frame_equal(evaluate(table, ["mase", "rmsse"], history=past, season_length=length), expected)
    assert expected.iloc[0, 0] != evaluate(table, "mase", history=past).iloc[0, 0]


@pytest.mark.parametrize("length", [2.5, math.nan, math.inf, "2", None, True])
def test_a_season_that_is_no_whole_number_is_named(length):
    table, past = gappy()
    with pytest.raises(ValueError, match=f"season_length={length!r} is not a whole number"):
        evaluate(table, "mase", history=past, season_length=length)


def test_ids_may_be_tuples():
    ids = {"a": ("a", 1), "b": ("b", 2)}
    table, whole = small(), past()
    expected = evaluate(table, history=whole, by="series")
    for frame in (table, whole):
        frame["unique_id"] = frame["unique_id"].map(ids)
    scores = evaluate(table, history=whole, by="series")
    assert scores["unique_id"].tolist() == [("a", 1), ("b", 2)]
    pd.testing.assert_frame_equal(scores.drop(columns="unique_id"), expected.drop(columns="unique_id"))
    holes = whole.drop(index=1)
    assert seasonal_scale(table, holes).tolist() == [3.0, 3.0, 4 / 3, 4 / 3]
    with pytest.raises(ValueError, match=r"series \('b', 2\) is not in history"):
        evaluate(table, "mase", history=whole.iloc[:4])
    two = pd.concat([table.assign(target=name)[[*table.columns[:3], "target", *table.columns[3:]]] for name in "uv"])
    wide = whole.assign(u=whole["y"], v=2 * whole["y"])
    assert evaluate(two, "mase", history=wide, by="target")["mase"].tolist() == pytest.approx(
        [expected["mase"].mean(), expected["mase"].mean() / 2]
    )


def stepped(freq: str = "D", horizon: int = 14, n_windows: int = 4) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A backtest whose forecasts are wrong by their step, and its history."""
    dates = pd.date_range("2023-01-02", periods=(n_windows + 1) * horizon, freq="D" if freq == "int" else freq)
    axis = pd.Index(np.arange(len(dates)) * 3) if freq == "int" else dates
    window, step = (index.ravel() for index in np.indices((n_windows, horizon)))
    at = horizon * (window + 1) + step
    table = pd.DataFrame({"ds": axis[at], "cutoff": axis[at - step - 1], "y": 0.0, "forecast": step + 1.0})
    return table, pd.DataFrame({"ds": axis, "y": 0.0})


@pytest.mark.parametrize("freq", ["h", "D", "B", "W-WED", "MS", "ME", "int"])
@pytest.mark.parametrize("kept", [[7, 14], [7], [4, 6], [2, 3], [1, 3]])
def test_steps_of_selected_rows_are_counted_in_those_of_the_history(freq, kept):
    table, past = stepped(freq)
    some = table[table["forecast"].isin(kept)]
    for frame in (some, some.reset_index(drop=True), some.sample(frac=1, random_state=0)):
        scores = evaluate(frame, "mae", history=past, by="step")
        assert scores["step"].tolist() == kept
        assert scores["mae"].tolist() == kept
    polars = evaluate(pl.from_pandas(some), "mae", history=pl.from_pandas(past), by="step")
    assert polars["step"].to_list() == kept


@pytest.mark.parametrize("freq", ["M", "15min", "2M"])
def test_periods_of_several_units_are_one_step(freq):
    table, past = stepped("int")
    periods = pd.period_range("2020-01", periods=len(past), freq=freq)
    place = {value: periods[i] for i, value in enumerate(past["ds"])}
    table, past = (frame.assign(ds=pd.PeriodIndex(frame["ds"].map(place))) for frame in (table, past))
    table["cutoff"] = pd.PeriodIndex(table["cutoff"].map(place))
    some = table[table["forecast"].isin([7, 14])]
    assert evaluate(some, "mae", history=past, by="step")["step"].tolist() == [7, 14]


@pytest.mark.parametrize("kept", [[7, 14], [7], [4, 6], [2, 4]])
def test_steps_of_selected_rows_that_cannot_be_told_are_refused(kept):
    table, past = stepped()
    some = table[table["forecast"].isin(kept)]
    with pytest.raises(ValueError, match=r"steps of the rows are not clear: rows of the frame are gone.*pass history="):
        evaluate(some, "mae", by="step")
    with pytest.raises(ValueError, match="steps of the rows are not clear"):
        evaluate(some.sample(frac=1, random_state=0), "mae", by="step")
    assert evaluate(some, "mae").iloc[0, 0] == np.mean(kept)
    times = past["ds"] + pd.to_timedelta(np.arange(len(past)) ** 2, "s")  # tells no frequency
    with pytest.raises(ValueError, match="steps of the rows are not clear"):
        evaluate(some, "mae", history=past.assign(ds=times), by="step")


def test_steps_of_selected_rows_are_told_by_neighbours_that_are_left_or_by_the_first_step():
    table, _ = stepped()
    for kept in ([2, 3], [1, 2, 3], [3, 7, 8], list(range(1, 15))):
        some = table[table["forecast"].isin(kept)]
        assert evaluate(some, "mae", by="step")["step"].tolist() == kept
    assert evaluate(table[table["cutoff"] > table["cutoff"].min()], "mae", by="step")["step"].tolist() == [
        *range(1, 15)
    ]
    for kept in ([2, 3], [4, 6], [1, 3]):  # no index tells that rows are gone, but the first or the second step is
        some = table[table["forecast"].isin(kept)].reset_index(drop=True)
        with pytest.raises(ValueError, match="steps of the rows are not clear"):
            evaluate(some, "mae", by="step")
