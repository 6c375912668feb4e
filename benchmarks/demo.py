"""Fits on every family of data/, backtests, and draws the forecasts: `make demo`, or python -m benchmarks.demo.

Three forecasters see the same windows: the default xLSTM, the same model with torch.nn.LSTM in the encoder's place, and
the seasonal naive forecast. Each is fitted before the first window and not again. MASE and CRPS are means over series,
and CRPS is in percent of the mean absolute value of its series, as series of different units are averaged. Two families
run at a time, so their lines come mixed.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import joblib
import pandas as pd
from matplotlib.figure import Figure

from xlstm_forecast import XLSTMForecaster
from xlstm_forecast.backtest import backtest
from xlstm_forecast.baselines import SeasonalNaive
from xlstm_forecast.metrics import evaluate
from xlstm_forecast.plot import plot_forecast

DATA = Path(__file__).parents[1] / "data"
LEVELS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
SHOWN = ["unique_id", "ds", "forecast", "q0.05", "q0.2", "q0.5", "q0.8", "q0.95"]
OURS, LSTM, NAIVE = "xLSTM", "torch.nn.LSTM", "seasonal naive"


@dataclass(frozen=True, kw_only=True)
class Family:
    """One kind of data: what is forecast, over how many windows, and which series the figure shows."""

    title: str
    horizon: int
    season: int
    windows: int
    shown: tuple[str, ...]
    columns: dict[str, Any] = field(default_factory=dict)  # arguments of XLSTMForecaster about columns


COVARIATES = {
    "target_col": "sales",
    "future": ["price", "promotion", "holiday"],
    "past": ["visitors"],
    "static": ["category", "store", "area"],
    "categorical": ["holiday", "category", "store"],
    "on_gap": "mask",
    "lower": 0,
}
FAMILIES = {
    "co2": Family(title="CO2, weekly, ppm", horizon=26, season=52, windows=6, shown=("mauna_loa",)),
    "elnino": Family(title="El Nino, monthly, deg C", horizon=12, season=12, windows=10, shown=("nino_1_2",)),
    "nile": Family(title="Nile, yearly, 1e8 m3", horizon=5, season=1, windows=6, shown=("aswan",)),
    "macro": Family(title="US economy, quarterly", horizon=8, season=4, windows=6, shown=("realinv",)),
    "panel": Family(
        title="Sales, daily",
        horizon=28,
        season=7,
        windows=4,
        shown=("north_drinks", "east_candles"),
        columns=COVARIATES,
    ),
}


def read(name: str) -> tuple[pd.DataFrame, pd.DataFrame | None, pd.DataFrame | None]:
    """History, static table and known future of a family, as far as it has them."""
    tables = []
    for part in ("", "_static", "_future"):
        path = DATA / f"{name}{part}.csv"
        table = pd.read_csv(path) if path.exists() else None
        if table is not None and "ds" in table and not pd.api.types.is_numeric_dtype(table["ds"]):
            table["ds"] = pd.to_datetime(table["ds"])
        tables.append(table)
    return tables[0], tables[1], tables[2]


def forecasters(family: Family, max_steps: int | None) -> dict[str, Any]:
    """The forecasters by name; the LSTM's blocks are set when those of the xLSTM are known."""
    common: dict[str, Any] = {"horizon": family.horizon, "quantiles": LEVELS}
    learned = {**common, **family.columns, "max_steps": max_steps}
    kept = {name: value for name, value in family.columns.items() if name in ("target_col", "on_gap")}
    naive = SeasonalNaive(**common, **kept, season_length=family.season)
    return {OURS: XLSTMForecaster(**learned), LSTM: XLSTMForecaster(**learned), NAIVE: naive}


def score(frame: pd.DataFrame, history: pd.DataFrame, season: int) -> dict[str, float]:
    """Means over the series of MASE, CRPS over the mean absolute value, and coverage of the 80 % band."""
    rows = evaluate(frame, ["mase", "wql", "coverage"], history=history, season_length=season, by="series")
    mean = rows.mean(numeric_only=True)
    return {"MASE": mean["mase"], "CRPS %": 100 * mean["wql"], "80 % band": mean["coverage80"]}


def run(name: str, max_steps: int | None) -> tuple[list[dict[str, Any]], pd.DataFrame, pd.DataFrame]:
    """Table rows of a family, and the xLSTM's forecast of the time after the data, with the history."""
    family = FAMILIES[name]
    history, static, future = read(name)
    times = history["ds"].drop_duplicates().sort_values()
    before = history[history["ds"] <= times.iloc[-1 - family.horizon * family.windows]]
    models = forecasters(family, max_steps)
    rows = []
    for model, forecaster in models.items():
        if model == LSTM:
            forecaster.set_params(blocks="l" * len(models[OURS].settings_.blocks))
        started = time.perf_counter()
        forecaster.fit(before, static_df=static, verbose=False)
        frame = backtest(forecaster, history, n_windows=family.windows, static_df=static, verbose=False)
        seconds = time.perf_counter() - started
        rows.append({"family": name, "model": model, **score(frame, history, family.season), "seconds": seconds})
        print(line(rows[-1]), flush=True)
    forecast = models[OURS].predict(history, future_df=future, static_df=static)
    forecast.insert(0, "family", name)
    return rows, forecast, history


def line(row: dict[str, Any]) -> str:
    numbers = f"{row['MASE']:9.3f}{row['CRPS %']:9.2f}{row['80 % band']:11.2f}{row['seconds']:10.1f}"
    return f"{row['family']:9}{row['model']:16}{numbers}"


def draw(forecasts: dict[str, pd.DataFrame], histories: dict[str, pd.DataFrame], path: Path) -> None:
    """History, median and bands of the series that the families show."""
    panes = [(name, series) for name in forecasts for series in FAMILIES[name].shown]
    figure = Figure(figsize=(12, 2.9 * -(-len(panes) // 2)), layout="constrained")
    axes = figure.subplots(-(-len(panes) // 2), 2, squeeze=False)
    for ax, (name, series) in zip(axes.flat, panes, strict=False):
        family = FAMILIES[name]
        target = family.columns.get("target_col", "y")
        plot_forecast(forecasts[name][SHOWN], histories[name], series=series, target=target, ax=ax)
        ax.set_title(f"{family.title}: {series}", fontsize=10, loc="left")
    for ax in axes.flat[len(panes) :]:
        ax.set_visible(False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--max-steps", type=int, help="training steps, in place of the default")
    parser.add_argument("--output", type=Path, default=Path("demo_output"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    print(f"{'family':9}{'model':16}{'MASE':>9}{'CRPS %':>9}{'80 % band':>11}{'seconds':>10}")
    longest_first = arguments.families[::-1]
    done = joblib.Parallel(n_jobs=2)(joblib.delayed(run)(name, arguments.max_steps) for name in longest_first)
    found = dict(zip(longest_first, done, strict=True))
    table = [row for name in arguments.families for row in found[name][0]]
    forecasts, histories = ({name: found[name][part] for name in arguments.families} for part in (1, 2))
    written = [frame.assign(ds=frame["ds"].astype("str")) for frame in forecasts.values()]
    pd.concat(written).to_csv(arguments.output / "forecast.csv", index=False)
    draw(forecasts, histories, arguments.output / "forecast.png")
    scores = pd.DataFrame(table).set_index(["family", "model"])[["MASE", "CRPS %"]].unstack("model")
    for other in (NAIVE, LSTM):
        both = sum(all(scores[m, OURS][f] < scores[m, other][f] for m in ("MASE", "CRPS %")) for f in forecasts)
        print(f"{OURS} is better than {other} in both MASE and CRPS on {both} of {len(forecasts)} families")
    print(f"written: {arguments.output / 'forecast.csv'} and {arguments.output / 'forecast.png'}")


if __name__ == "__main__":
    main()
