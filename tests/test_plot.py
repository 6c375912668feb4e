"""Pictures: what is drawn, into which axes, and how much a model depends on what it should."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("matplotlib")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from xlstm_forecast import XLSTMForecaster
from xlstm_forecast.backtest import backtest
from xlstm_forecast.baselines import BASELINES, SeasonalNaive
from xlstm_forecast.metrics import evaluate, leaderboard, pit
from xlstm_forecast.plot import (
    attribute,
    plot_attribution,
    plot_backtest,
    plot_error_by_step,
    plot_forecast,
    plot_leaderboard,
    plot_pit,
    plot_reliability,
)

LEVELS = (0.1, 0.25, 0.5, 0.75, 0.9)


def make() -> pd.DataFrame:
    """The label follows the price of the same day; the noise column drives nothing."""
    rng = np.random.default_rng(0)
    n = 120
    parts = []
    for name in "ab":
        price, noise = rng.standard_normal(n), rng.standard_normal(n)
        y = 30 + 5 * price + 2 * np.sin(2 * np.pi * np.arange(n) / 7) + 0.1 * rng.standard_normal(n)
        ds = pd.date_range("2024", periods=n, freq="D")
        parts.append(pd.DataFrame({"unique_id": name, "ds": ds, "y": y, "price": price, "noise": noise}))
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="module")
def frames() -> dict[str, pd.DataFrame]:
    options: dict[str, Any] = {"horizon": 7, "quantiles": LEVELS}
    return {name: backtest(kind(**options), make(), n_windows=6) for name, kind in BASELINES.items()}


def figures(frames: dict[str, pd.DataFrame]) -> dict:
    """Every plot as a function of ax."""
    df = make()
    naive = frames["seasonal naive"]
    forecast = SeasonalNaive(horizon=7, quantiles=LEVELS).fit(df).predict()
    board = leaderboard(frames, ["mae", "crps"])
    steps = pd.DataFrame({"part": ["y"] * 3, "step": [-1, 0, 1], "effect": [0.1, 2.0, 1.0]})
    return {
        "forecast": lambda ax: plot_forecast(forecast, df, series="b", target="y", ax=ax),
        "backtest": lambda ax: plot_backtest(naive, df, ax=ax),
        "error": lambda ax: plot_error_by_step(frames, "mase", history=df, season_length=7, ax=ax),
        "reliability": lambda ax: plot_reliability(naive, ax=ax),
        "pit": lambda ax: plot_pit(naive, ax=ax),
        "leaderboard": lambda ax: plot_leaderboard(board, ax=ax),
        "slopes": lambda ax: plot_attribution(steps, ax=ax),
        "bars": lambda ax: plot_attribution(steps.drop(columns="step"), ax=ax),
    }


def test_every_plot_returns_its_figure_takes_axes_and_leaves_none_open(frames, tmp_path):
    plt.close("all")
    for name, draw in figures(frames).items():
        figure = draw(None)
        assert isinstance(figure, Figure)
        assert plt.get_fignums() == []
        figure.savefig(tmp_path / f"{name}.png", dpi=60)
        assert (tmp_path / f"{name}.png").stat().st_size > 4000
        mine, ax = plt.subplots()
        assert draw(ax) is mine
        assert len(ax.lines) + len(ax.patches) + len(ax.collections) > 0
        plt.close(mine)
    parent = plt.figure()
    halves: Any = parent.subfigures(1, 2)
    inner = halves[0].subplots()
    assert plot_pit(frames["linear"], ax=inner) is parent
    plt.close(parent)


def test_what_is_drawn_are_the_numbers(frames):
    ax: Any
    df, naive = make(), frames["seasonal naive"]
    forecast = SeasonalNaive(horizon=7, quantiles=LEVELS).fit(df).predict()
    ax = plot_forecast(forecast, df, series="b", target="y", n_history=20).axes[0]
    past, median = (line.get_ydata() for line in ax.lines)
    assert list(past) == df.query("unique_id == 'b'")["y"].tail(20).tolist()
    assert list(median) == forecast.query("unique_id == 'b'")["forecast"].tolist()
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["history", "80 % band", "50 % band", "forecast"]
    ax = plot_backtest(naive, df, series="a").axes[0]
    cutoffs = naive["cutoff"].unique()
    assert sum(line.get_linestyle() == ":" for line in ax.lines) == len(cutoffs)
    ax = plot_error_by_step(naive, "mae").axes[0]
    assert list(ax.lines[0].get_ydata()) == evaluate(naive, ["mae"], by="step")["mae"].tolist()
    bars: Any = plot_pit(naive).axes[0].patches
    counts = np.histogram(pit(naive), [0, *LEVELS, 1])[0]
    np.testing.assert_allclose([b.get_height() * b.get_width() * len(naive) for b in bars], counts)
    board = leaderboard(frames, ["mae", "crps"])
    ax = plot_leaderboard(board, "crps").axes[0]
    assert [b.get_width() for b in ax.patches] == sorted(board["crps"], reverse=True)
    board = pd.DataFrame({"model": ["near", "below", "above"], "bias": [0.1, -0.5, 2.0], "mae": [1.0, 0.5, 2.0]})
    bars = plot_leaderboard(board).axes[0].patches  # the best, nearest to zero, on top and marked
    assert [b.get_width() for b in bars] == [2.0, -0.5, 0.1]
    assert bars[2].get_facecolor() != bars[1].get_facecolor() == bars[0].get_facecolor()


def test_frames_without_dates_ids_or_history_are_drawn():
    df = make().query("unique_id == 'a'").drop(columns="unique_id").assign(ds=np.arange(120))
    naive = SeasonalNaive(horizon=7, id_col=None, season_length=7).fit(df)
    plot_forecast(naive.predict())
    plot_forecast(naive.predict(), df.set_index("ds")["y"])
    plot_backtest(backtest(SeasonalNaive(horizon=7, id_col=None), df, n_windows=2))
    zoned = make().assign(ds=lambda d: d["ds"].dt.tz_localize("Asia/Tokyo"))
    plot_backtest(backtest(SeasonalNaive(horizon=7), zoned, n_windows=2), zoned)
    two = backtest(SeasonalNaive(horizon=7, target_col=["y", "price"]), make(), n_windows=2)
    ax = plot_backtest(two, make(), target="price").axes[0]
    assert ax.get_title(loc="left") == "a · price"


def test_what_cannot_be_drawn_is_refused(frames):
    naive = frames["seasonal naive"]
    for draw, message in (
        (lambda: plot_backtest(naive, series="z"), "series 'z' is not in the forecast"),
        (lambda: plot_forecast(naive.drop(columns="forecast")), "column 'forecast' is missing"),
        (lambda: plot_forecast(SeasonalNaive(horizon=7).fit(make()).predict(), make()[["unique_id", "y"]]), "'ds'"),
        (lambda: plot_forecast(naive.iloc[:0]), "the forecast has no rows"),
        (lambda: plot_error_by_step({}), "frames is empty"),
        (lambda: plot_error_by_step(naive, "mase"), "needs history="),
        (lambda: plot_leaderboard(naive), "column 'model' is missing"),
        (lambda: plot_leaderboard(leaderboard(frames, ["mae"]), "crps"), "column 'crps' is missing"),
        (lambda: plot_attribution(naive), "'part' and 'effect' are needed"),
    ):
        with pytest.raises(ValueError, match=message):
            draw()


class Known(SeasonalNaive):
    """Forecasts 15 plus 5 times the known price of the step plus half of the last value."""

    future = ("price", "noise")

    def _read(self, df, freq):
        from xlstm_forecast.data.frame import to_panel
        from xlstm_forecast.data.roles import Roles

        return to_panel(df, Roles(target=("y",), future=self.future), freq=freq)

    def _forecast(self, panel, series, origin, levels):
        at = (panel.offsets[series] + origin)[:, None]
        price = panel.known[at + np.arange(self.horizon), 0] * panel.encoding.scale["price"]
        middle = 15 + 5 * (price + panel.encoding.location["price"]) + panel.target[at - 1, 0] / 2
        return np.repeat(middle[..., None, None], len(levels), -1)


def test_slopes_are_those_of_the_forecaster():
    df = make()
    table = attribute(Known(horizon=7).fit(df), df, series="b", n_steps=30)
    y = table[table["part"] == "y"].set_index("step")["effect"]
    seen = df.query("unique_id == 'b'").iloc[120 - 7 - 30 : 120 - 7]
    assert y[0] == pytest.approx(seen["y"].std(ddof=0) / 2, rel=1e-3)
    assert np.abs(y.drop(0)).max() < 1e-9
    price = table[table["part"] == "price"].set_index("step")["effect"]
    np.testing.assert_allclose(price.loc[1:7], 5 * seen["price"].std(ddof=0) / 7, rtol=1e-3)
    assert np.abs(price.loc[:0]).max() < 1e-9
    assert np.abs(table.loc[table["part"] == "noise", "effect"]).max() < 1e-9


def test_shuffling_hurts_where_the_forecaster_depends_on_it():
    df = make()
    table = attribute(Known(horizon=7).fit(df), df, method="permutation").set_index("part")
    assert table.index.tolist() == ["price", "noise"]
    assert table.loc["noise", "effect"] == 0
    assert table.loc["price", "effect"] > 1
    assert table.loc["price", "loss"] > 0


def test_the_xlstm_forecaster_is_attributed_by_both_methods():
    df = make()
    small = XLSTMForecaster(
        horizon=7, future=("price", "noise"), max_steps=40, d_model=8, input_length=14, blocks="s", calendar=()
    )
    small.fit(df, verbose=False)
    ahead = df.groupby("unique_id").tail(7).assign(ds=lambda d: d["ds"] + pd.Timedelta(days=7))
    slopes = attribute(small, df, future_df=ahead)
    assert slopes["step"].min() == -13
    assert slopes["step"].max() == 7
    assert np.isfinite(slopes["effect"]).all()
    table = attribute(small, df, method="permutation").set_index("part")
    assert table.loc["price", "effect"] > table.loc["noise", "effect"]
    with pytest.raises(ValueError, match="method='shap'"):
        attribute(small, df, method="shap")
    with pytest.raises(ValueError, match="series='z'"):
        attribute(small, df, series="z")
    with pytest.raises(ValueError, match="not fitted"):
        attribute(XLSTMForecaster(horizon=7), df)


def test_the_other_modules_do_not_import_matplotlib():
    code = (
        "import sys, xlstm_forecast.backtest, xlstm_forecast.calibration, xlstm_forecast.baselines;"
        "print([m for m in ('matplotlib', 'lightning', 'scoringrules', 'optuna') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_sample_paths_are_no_forecast_to_draw():
    df = pd.DataFrame({"ds": pd.date_range("2024-01-01", periods=60), "y": np.arange(60) % 7.0})
    paths = XLSTMForecaster(horizon=5, id_col=None, model="linear").fit(df, verbose=False).predict(n_samples=3)
    with pytest.raises(ValueError, match="sample paths"):
        plot_forecast(paths)
