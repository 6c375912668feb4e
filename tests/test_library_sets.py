"""The benchmark sets that come with other packages, and the classical models beside them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("statsmodels")
pytest.importorskip("sktime")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import anchors
    import classical
    import library_sets
    import runner
    import sets

    return {"anchors": anchors, "classical": classical, "library_sets": library_sets, "runner": runner, "sets": sets}


def test_every_set_is_there_with_labels_and_a_past(bench: Any) -> None:
    tasks = bench["library_sets"].library_tasks()
    whole = {name: build() for name, build in tasks.items() if "@" not in name}
    assert len(whole) == 28
    assert len(whole["fertility"].series) == 192
    np.testing.assert_array_equal(whole["airline"].series[0][:3], [112, 118, 132])
    for task in whole.values():
        assert (task.cutoffs() > task.horizon).all()
        labels = task.labels()
        assert np.isfinite(labels).mean() > 0.9
        assert np.abs(labels).sum() > 0
        assert all(np.isfinite(series[-1]) for series in task.series), task.name
    cuts = {name: build() for name, build in tasks.items() if "@" in name}
    assert len(cuts["nowcast@60"].series[0]) == 60 + 12
    assert "pbs@30" not in cuts


@pytest.mark.parametrize("name", ["ets", "theta"])
def test_classical_models_find_trend_and_season(name: str, bench: Any) -> None:
    """A line and a season without noise, also below zero: far closer than the last value, and quantiles in order."""
    t = np.arange(60.0)
    made = np.stack([level + t + 10 * np.sin(np.pi * t / 2) for level in (50.0, -20.0)])
    task = bench["sets"].Task(name="made", series=list(made), season=4, horizon=4, windows=1, freq="QS")
    found, _ = bench["classical"].classical(name)(task, 0)
    assert found.shape == (2, 4, 9)
    assert (np.diff(found, axis=2) >= 0).all()
    assert (found[..., 8] > found[..., 0]).all(), "what cannot be fitted has no band"
    last = np.abs(made[:, -5:-4] - task.labels()).mean(1)
    error = np.abs(found[..., 4] - task.labels()).mean(1)
    assert error[0] < 0.6 * last[0]
    if name == "ets":  # theta divides by the season, which negative values forbid: no season there
        assert error[1] < 0.2 * last[1]


def test_what_cannot_be_fitted_is_the_last_value(bench: Any) -> None:
    values = np.array([np.nan, 4.0, 5.0])
    task = bench["sets"].Task(name="made", series=[values], season=12, horizon=1, windows=1, freq="MS")
    found, _ = bench["classical"].classical("ets")(task, 0)
    np.testing.assert_array_equal(found, np.full((1, 1, 9), 4.0))


def test_a_subset_is_chosen_by_names_and_words(bench: Any) -> None:
    tasks: dict[str, Any] = dict.fromkeys(["lynx", "macro", "macro@60"])
    for quick, only, left in ((False, None, 3), (True, None, 2), (False, ["macro"], 2), (True, ["ly", "60"], 1)):
        args = argparse.Namespace(quick=quick, only=only)
        assert len(bench["runner"].chosen(tasks, args, ("lynx", "macro", "other"))) == left


def test_a_forecast_that_is_no_number_stops_the_benchmark(bench: Any) -> None:
    task = bench["sets"].Task(name="made", series=[np.arange(9.0)], season=1, horizon=2, windows=1, freq=None)
    for wrong in (np.nan, np.inf):
        quantiles = np.zeros((1, 2, 9))
        quantiles[0, 1] = wrong
        with pytest.raises(SystemExit, match="50%"):
            bench["sets"].window_scores(task, quantiles)
