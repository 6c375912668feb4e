"""The long-horizon benchmark: what is scored, and how a blend's weights are found on the validation rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

ROWS, HORIZON = 900, 8
ENDS = (500, 700, 900)


@pytest.fixture
def ltsf(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import ltsf

    return ltsf


@pytest.fixture
def values():
    return np.random.default_rng(0).normal(size=(ROWS, 2)).cumsum(0)


def shifted(values, median, mean):
    """A forecast that is off by `median` in its median and by `mean` in its mean."""

    def forecast(origin, channel):
        truth = values[origin[:, None] + np.arange(HORIZON), channel]
        return truth + median, truth + mean

    return forecast


def test_the_median_is_scored_by_absolute_and_the_mean_by_squared_error(ltsf, values):
    assert ltsf.score(values, ENDS, HORIZON, shifted(values, 3.0, 2.0), 1) == pytest.approx((4.0, 3.0))


def test_a_blend_takes_each_metric_from_the_members_that_do_best_in_it(ltsf, values):
    members = {"a": shifted(values, 1.0, 9.0), "b": shifted(values, 9.0, 1.0), "c": shifted(values, 5.0, 5.0)}
    forecast, weights = ltsf.blend(values, ENDS, HORIZON, members)
    assert weights["a"][0] == 1.0
    assert weights["b"][1] == 1.0
    mse, mae = ltsf.score(values, ENDS, HORIZON, forecast, 1)
    assert mse < 2.0
    assert mae < 1.5


def test_errors_that_cancel_are_averaged_out(ltsf, values):
    members = {"low": shifted(values, -1.0, -1.0), "high": shifted(values, 3.0, 3.0)}
    forecast, weights = ltsf.blend(values, ENDS, HORIZON, members)
    assert weights["low"] == [0.75, 0.75]
    assert max(ltsf.score(values, ENDS, HORIZON, forecast, 1)) < 0.05


def test_the_weights_of_a_blend_see_no_test_row(ltsf, values):
    noise = np.random.default_rng(1).normal(size=(2, ROWS, HORIZON))
    members = {
        str(k): lambda origin, channel, k=k: (values[origin - 1, channel, None] + noise[k][origin],) * 2 for k in (0, 1)
    }
    before = ltsf.blend(values, ENDS, HORIZON, members)[1]
    values[ENDS[1] :] = 1e6
    assert ltsf.blend(values, ENDS, HORIZON, members)[1] == before


def test_the_mean_of_quantiles_is_above_the_median_of_a_skewed_distribution(ltsf):
    median, mean = ltsf.of_quantiles(np.exp(np.linspace(-1, 1, 9))[None, None])
    assert median.item() == pytest.approx(1.0)
    assert mean.item() > 1.1


def test_the_ridge_continues_a_line_of_any_level(ltsf):
    line = np.arange(400.0)[:, None] * 0.01
    path, mean = ltsf.ridge(line, 300, HORIZON, 16)(np.array([350, 380]), 0)
    assert path is mean
    np.testing.assert_allclose(path, line[np.array([350, 380])[:, None] + np.arange(HORIZON), 0], atol=0.02)


def test_runs_are_kept_in_a_csv_and_told_with_their_spread(ltsf, values, monkeypatch, tmp_path, capsys):
    fitted = []

    def network(*arguments):
        fitted.append(arguments[6])
        return shifted(values, 1.0 + arguments[6], 2.0)

    monkeypatch.setattr(ltsf, "load", lambda folder, name: (values, ENDS))
    monkeypatch.setattr(ltsf, "network", network)
    monkeypatch.setenv("XLSTM_FORECAST_DATA", str(tmp_path))
    told = ["ltsf.py", "--sets", "ETTm1", "--models", "ridge", "mixer", "--horizons", str(HORIZON), "--look-back", "16"]
    for seeds in (["0"], ["0", "1"]):
        monkeypatch.setattr("sys.argv", [*told, "--seeds", *seeds, "--out", str(tmp_path / "runs.csv")])
        ltsf.main()
    assert fitted == [0, 1]
    assert "| ETTm1 | 8 | mixer | 2 | 4.000 ± 0.000 | 1.500 ± 0.500 |" in capsys.readouterr().out
