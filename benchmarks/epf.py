"""Day-ahead electricity prices with known-future covariates (Lago et al., Applied Energy 2021), MAE over 728 days.

    python benchmarks/epf.py --model linear                 # fitted once
    python benchmarks/epf.py --model linear --refit 30      # refitted every 30 days
    python benchmarks/epf.py --model linear --covariates none   # without covariates;  random: with noise beside them

Each day at midnight the next 24 prices are forecast from everything before plus that day's values of both covariates.
The published forecasts of the same hours, refitted daily, are scored beside ours.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from sets import Array, data_argument, data_folder

DAYS = 728


def load(folder: Path, market: str) -> tuple[Array, Array, np.datetime64]:
    """Prices (T,), covariates (T, 2), first stamp."""
    frame = pd.read_csv(folder / f"epf_{market}.csv.gz")
    stamps = pd.to_datetime(frame.iloc[:, 0])
    return frame.iloc[:, 3].to_numpy(float), frame.iloc[:, 1:3].to_numpy(float), np.datetime64(stamps.iloc[0], "s")


def covariates_for(known: Array, kind: str) -> Array | None:
    """The covariates as they are, none, or with two random ones beside them."""
    if kind == "none":
        return None
    if kind == "random":
        return np.concatenate([known, np.random.default_rng(0).standard_normal((len(known), 2))], 1)
    return known


def linear(prices: Array, known: Array | None, cut: int, origins: Array) -> Array:
    """(n, 24) medians of the backbone, fitted on the rows before `cut`."""
    from xlstm_forecast.backbone import Backbone, BackboneConfig

    config = BackboneConfig(horizon=24, freq="h", stride=24)
    fitted = Backbone(config).fit(prices[:cut], np.array([0, cut]), known=None if known is None else known[:cut])
    at = np.array([0, len(prices)])
    zeros = np.zeros(len(origins), dtype=np.int64)
    return np.asarray(fitted.forecast(prices, at, zeros, origins, np.array([0.5]), known=known)[:, :, 0])


def estimator(prices: Array, known: Array | None, cut: int, origins: Array, preset: str, seed: int) -> Array:
    """(n, 24) medians of `XLSTMForecaster`."""
    from xlstm_forecast import XLSTMForecaster

    names = [] if known is None else [f"x{k}" for k in range(known.shape[1])]
    frame = pd.DataFrame({"ds": pd.date_range("2010-01-03", periods=len(prices), freq="h"), "y": prices})
    for k, name in enumerate(names):
        frame[name] = known[:, k]  # type: ignore[index]
    arguments = {"presets": preset, "id_col": None, "future": names, "seed": seed}
    forecaster = XLSTMForecaster(horizon=24, quantiles=(0.1, 0.5, 0.9), **arguments)
    forecaster.fit(frame[:cut], verbose=False)
    panel = forecaster._to_panel(frame)
    return np.asarray(forecaster._forecast(panel, np.zeros(len(origins), dtype=np.int64), origins, (0.5,)))[:, :, 0, 0]


def kept(file: Path | None, compute: Callable[[], Array]) -> Array:
    """What a file holds; where there is none, what `compute` gives, which is then kept there."""
    if file and file.exists():
        return np.asarray(np.load(file))
    found = compute()
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, found)
    return found


def published(folder: Path, market: str) -> dict[str, float]:
    """MAE of the published forecasts, by column."""
    path = folder.parent / "anchors" / f"epf_{market}_published_forecasts.csv.gz"
    if not path.exists():
        return {}
    frame = pd.read_csv(path, index_col=0)
    truth = next((c for c in frame.columns if c.lower() in ("real price", "price", "real")), None)
    if truth is None:
        return {}
    return {c: float((frame[c] - frame[truth]).abs().mean()) for c in frame.columns if c != truth}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    data_argument(parser)
    parser.add_argument("--model", default="linear", help="linear, or a preset of XLSTMForecaster")
    parser.add_argument("--markets", nargs="+", default=["NP", "BE"])
    parser.add_argument("--refit", type=int, default=DAYS, help="days between fits")
    parser.add_argument("--covariates", choices=["both", "none", "random"], default="both")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keeps the forecasts of every fit, which then is not run again")
    args = parser.parse_args()
    folder = data_folder(args.data)
    fit = linear if args.model == "linear" else partial(estimator, preset=args.model, seed=args.seed)
    print("| market | model | covariates | refitted every | MAE | naive, 7 days | seconds |")
    print("|---|---|---|---|---|---|---|")
    for market in args.markets:
        prices, known, _ = load(folder, market)
        inputs = covariates_for(known, args.covariates)
        first = len(prices) - DAYS * 24
        path, start = [], time.perf_counter()
        for day in range(0, DAYS, args.refit):
            cut = first + day * 24
            origins = cut + 24 * np.arange(min(args.refit, DAYS - day))
            name = f"{market}-{args.model}-{args.covariates}-{args.seed}-{args.refit}-{day}.npy"
            path.append(kept(args.folder and args.folder / name, partial(fit, prices, inputs, cut, origins)))
        error = np.abs(np.concatenate(path).ravel() - prices[first:]).mean()
        naive = np.abs(prices[first - 168 : -168] - prices[first:]).mean()
        every = "never" if args.refit >= DAYS else f"{args.refit} days"
        print(
            f"| {market} | {args.model} | {args.covariates} | {every} | {error:.3f} | {naive:.3f} "
            f"| {time.perf_counter() - start:.0f} |",
            flush=True,
        )
        for name, mae in published(folder, market).items():
            print(f"| {market} | published {name} | both | 1 day | {mae:.3f} | {naive:.3f} | |")


if __name__ == "__main__":
    main()
