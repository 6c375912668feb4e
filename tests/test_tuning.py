"""Tuning: finds what is best, prunes what is not, goes on from its storage."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from xlstm_forecast import XLSTMForecaster
from xlstm_forecast.backtest import backtest
from xlstm_forecast.baselines import Linear, SeasonalNaive
from xlstm_forecast.metrics import evaluate

pytest.importorskip("optuna")
from xlstm_forecast.tuning import tune


def seasonal() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    y = 10 * np.sin(2 * np.pi * np.arange(120) / 6) + rng.standard_normal(120)
    return pd.DataFrame({"unique_id": "a", "ds": np.arange(120), "y": y})


def test_the_best_choice_and_the_best_number_are_found_and_its_score_is_the_backtest_s():
    df = seasonal()
    found = tune(SeasonalNaive(horizon=6), df, {"season_length": [1, 4, 6, 9]}, 12, metric="mase", n_windows=4)
    assert found.params == {"season_length": 6}
    again = evaluate(backtest(found.forecaster, df, n_windows=4), ["mase"], history=df)
    assert found.score == pytest.approx(float(again.iloc[0, 0]))
    assert found.trials["score"].min() == found.score
    assert tune(SeasonalNaive(horizon=6), df, {"season_length": (2, 7)}, 15).params["season_length"] == 6


def test_the_same_seed_tries_the_same_and_the_forecaster_is_left_alone():
    df, forecaster = seasonal(), SeasonalNaive(horizon=6)
    a, b = (tune(forecaster, df, {"season_length": (1, 12)}, 5, seed=3).trials["season_length"].tolist() for _ in "ab")
    assert a == b
    assert forecaster.season_length is None
    assert not hasattr(forecaster, "panel_")


def test_bad_trials_are_stopped_after_a_window():
    found = tune(SeasonalNaive(horizon=6), seasonal(), {"season_length": (1, 30)}, 20, refit=True, n_windows=3)
    assert (found.trials["state"] == "PRUNED").sum() >= 2
    assert found.trials.loc[found.trials["state"] == "COMPLETE", "score"].min() == found.score


def test_a_search_goes_on_from_its_storage(tmp_path):
    storage = f"sqlite:///{tmp_path / 'tune.db'}"
    space = {"season_length": (1, 12)}
    first = tune(SeasonalNaive(horizon=6), seasonal(), space, 4, storage=storage)
    second = tune(SeasonalNaive(horizon=6), seasonal(), space, 7, storage=storage)
    assert len(first.trials) == 4
    assert len(second.trials) == 7
    pd.testing.assert_frame_equal(second.trials.head(4), first.trials)
    assert len(tune(SeasonalNaive(horizon=6), seasonal(), space, 7, storage=storage).trials) == 7


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"df": seasonal().assign(y=lambda t: t["y"] + 1)}, "other data"),
        ({"metric": "mae"}, "other metric"),
        ({"space": {"season_length": (1, 13)}}, r"other space \(season_length\)"),
        ({"forecaster": SeasonalNaive(horizon=6, quantiles=(0.2, 0.8))}, r"other forecaster \(quantiles\)"),
        ({"forecaster": Linear(horizon=6)}, r"other forecaster \(class\)"),
        ({"n_windows": 4}, r"other windows \(n_windows\)"),
        ({"step_size": 2}, r"other windows \(step_size\)"),
    ],
)
def test_the_trials_of_another_search_are_not_mixed_in(tmp_path, change, told):
    call = {"forecaster": SeasonalNaive(horizon=6), "df": seasonal(), "space": {"season_length": (1, 12)}}
    call |= {"storage": f"sqlite:///{tmp_path / 'tune.db'}", "n_trials": 2}
    tune(**call)
    with pytest.raises(ValueError, match=f"is another search: {told}"):
        tune(**{**call, **change})
    assert len(tune(**{**call, "n_trials": 3, "seed": 1}).trials) == 3
    assert len(tune(**{**call, **change, "name": "other"}).trials) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_windows": 30}, "n_windows=19 would do"),
        ({"n_windows": 0}, "n_windows=0"),
        ({"refit": None}, "refit=None"),
        ({"folder": "runs"}, "use storage= instead"),
        ({"refit": True, "n_jobs": 2}, "n_jobs: with refits"),
        ({"quantiles": (0.9, 0.1)}, "ascending"),
    ],
)
def test_windows_that_no_trial_could_use_are_refused_before_the_first(options, message, monkeypatch):
    monkeypatch.setattr("optuna.create_study", lambda **_: pytest.fail("a study was made"))
    with pytest.raises(ValueError, match=message):
        tune(SeasonalNaive(horizon=6), seasonal(), {"season_length": (2, 7)}, 3, **options)


def test_the_forecaster_s_own_parameters_are_tuned():
    small = XLSTMForecaster(horizon=6, max_steps=2, input_length=12, blocks="s", d_model=8)
    found = tune(small, seasonal(), {"lr": (1e-4, 1e-2, "log"), "blocks": ["s", "m"]}, 2, n_windows=2)
    assert 1e-4 <= found.params["lr"] <= 1e-2
    assert found.forecaster.blocks in ("s", "m")


@pytest.mark.parametrize(
    ("space", "options", "message"),
    [
        ({}, {}, "space is empty"),
        ({"depth": [1]}, {}, "names 'depth', which is no parameter of SeasonalNaive"),
        ({"season_length": 7}, {}, r"space\['season_length'\]=7"),
        ({"season_length": (7, 2)}, {}, r"\(low, high\)"),
        ({"season_length": (2, 7)}, {"metric": "coverage"}, "metric='coverage' cannot be minimised"),
        ({"season_length": (2, 7)}, {"n_trials": 0}, "n_trials=0"),
    ],
)
def test_what_cannot_be_searched_is_refused(space, options, message):
    with pytest.raises(ValueError, match=message):
        tune(SeasonalNaive(horizon=6), seasonal(), space, **options)


class Picky(SeasonalNaive):
    """Fails with a season of 3 where the series is long: in the last windows."""

    def fit(self, df: Any, static_df: Any = None, **options: Any) -> Any:
        if self.season_length == 3 and len(df) >= 105:
            raise MemoryError("too much data")
        return super().fit(df, static_df, **options)


def test_a_candidate_that_fails_in_a_window_is_given_up_and_the_search_goes_on():
    df = seasonal()
    df.loc[102:, "y"] = 100.0  # the hard windows, which a season of 3 does not live to see
    for refit in (True, 2):
        found = tune(
            Picky(horizon=6), df, {"season_length": [3, 6]}, 8, refit=refit, n_windows=4, metric="mae",
            on_error="record", prune=False,
        )  # fmt: skip
        assert found.params == {"season_length": 6}
        failed = found.trials[found.trials["season_length"] == 3]
        assert len(failed) > 0
        assert (failed["state"] == "PRUNED").all()
        assert failed["score"].isna().all()


@pytest.mark.parametrize(
    ("space", "told"),
    [
        ({"quantiles": [(0.1, 0.9), (0.5,)]}, "quantiles.*what is asked"),
        ({"horizon": [3, 6]}, "horizon.*what is asked"),
        ({"season_length": (0, 12, "log")}, "low above 0"),
        ({"season_length": (False, True)}, "list of choices"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_the_first_trial(space, told):
    with pytest.raises(ValueError, match=told):
        tune(SeasonalNaive(horizon=6), seasonal(), space, 3)


def test_numpy_s_numbers_are_a_range_and_optuna_talks_as_before():
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        found = tune(SeasonalNaive(horizon=6), seasonal(), {"season_length": (np.int64(5), np.int64(7))}, 6)
        assert found.params == {"season_length": 6}
        assert optuna.logging.get_verbosity() == optuna.logging.ERROR
    finally:
        optuna.logging.set_verbosity(before)
