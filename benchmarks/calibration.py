"""Coverage and interval score of calibrated bands on the demo panel, ETTh1 and hospital, beside seasonal naive's.

python -m benchmarks.calibration [--data DIR] [--sets demo ETTh1 hospital] [--max-steps N] [--out FILE]

Every forecaster is fitted once, with its defaults, on the rows before the first window. `calibrated` then goes through
the windows in time, each with the labels known at its cutoff; the later half of the windows is scored. Standard errors
come from a bootstrap over series and blocks of windows.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from xlstm_forecast import XLSTMForecaster
from xlstm_forecast.backtest import backtest
from xlstm_forecast.baselines import SeasonalNaive
from xlstm_forecast.calibration import calibrated, reliability
from xlstm_forecast.metrics import columns_of, evaluate
from xlstm_forecast.metrics.paired import block_weights, overlap

from .sets import data_argument, data_folder, gift_tasks

LEVELS = (0.025, 0.1, 0.25, 0.5, 0.75, 0.9, 0.975)
BANDS = (50, 80, 95)


@dataclass(frozen=True)
class Case:
    """A set, its windows, and how it is calibrated."""

    df: pd.DataFrame
    season: int
    horizon: int
    n_windows: int
    step_size: int
    columns: dict[str, Any]  # arguments that say what the columns are
    covariates: dict[str, Any]  # those that a baseline does not take
    calibration: dict[str, Any]


def demo(_: Path | None) -> Case:
    """The panel that ships with the package: 20 series, daily, known-future columns."""
    df = pd.read_csv(Path(__file__).parents[1] / "data" / "panel.csv", parse_dates=["ds"])
    columns = {"target_col": "sales", "on_gap": "mask"}
    known = {"future": ("price", "promotion", "holiday"), "past": ("visitors",), "categorical": ("holiday",)}
    return Case(df, 7, 7, 24, 7, columns, known, {})


def etth1(folder: Path | None) -> Case:
    """Seven hourly series; their level and noise change, so that recent windows weigh more."""
    assert folder is not None
    wide = pd.read_csv(folder / "ETTh1.csv.gz", parse_dates=["date"]).rename(columns={"date": "ds"})
    return Case(wide.melt("ds", var_name="unique_id", value_name="y"), 24, 24, 120, 24, {}, {}, {"half_life": 10})


def hospital(folder: Path | None) -> Case:
    """767 monthly series of 84 rows."""
    assert folder is not None
    task = gift_tasks(folder)["hospital/M/short"]()
    assert task.starts is not None
    parts = [
        pd.DataFrame({"unique_id": f"T{i}", "ds": pd.date_range(start, periods=len(y), freq="MS"), "y": y})
        for i, (y, start) in enumerate(zip(task.series, task.starts, strict=True))
    ]
    return Case(pd.concat(parts, ignore_index=True), 12, 6, 24, 1, {}, {}, {})


CASES = {"demo": demo, "ETTh1": etth1, "hospital": hospital}


def held_out(case: Case, model: Any, **options: Any) -> tuple[pd.DataFrame, pd.DataFrame, float]:
    """The later half of the windows, raw and calibrated with each entry of `options`, and the seconds it took."""
    started = time.process_time()
    raw = backtest(model, case.df, n_windows=case.n_windows, step_size=case.step_size, align="calendar")
    seconds = time.process_time() - started
    cutoffs = np.sort(raw["cutoff"].unique())
    first = cutoffs[len(cutoffs) // 2]
    done = calibrated(raw, **{**case.calibration, **options})
    return raw[raw["cutoff"] >= first], done[done["cutoff"] >= first], seconds


def ratio_interval(
    ours: pd.DataFrame, theirs: pd.DataFrame, metric: str, history: dict[str, Any]
) -> tuple[float, float]:
    """95 % interval of the ratio of mean scores, paired, over series and blocks of windows."""
    columns = columns_of(ours)
    tables = [
        evaluate(frame, [metric.rstrip("0123456789")], by=["series", "cutoff"], **history).pivot(
            index=columns.id, columns="cutoff", values=metric
        )
        for frame in (ours, theirs)
    ]
    a, b = (table.to_numpy() for table in tables)
    both = np.isfinite(a) & np.isfinite(b)
    a, b = np.where(both, a, 0.0), np.where(both, b, 0.0)
    weights = block_weights(a.shape, overlap(ours, columns), 1000, 0)
    ratios = [float(rows @ a @ cols) / float(rows @ b @ cols) for rows, cols in weights]
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(low), float(high)


def measure(name: str, case: Case, max_steps: int | None) -> list[dict[str, Any]]:
    """One row per band."""
    common: dict[str, Any] = {"horizon": case.horizon, "quantiles": LEVELS, **case.columns}
    steps: dict[str, Any] = {} if max_steps is None else {"max_steps": max_steps}
    raw, ours, seconds = held_out(case, XLSTMForecaster(**common, **case.covariates, **steps))
    naive = SeasonalNaive(**common, season_length=case.season)
    rival = held_out(case, naive, method="conformal")[1]
    history = {"history": case.df, "season_length": case.season}
    frames = {"raw": raw, "xLSTM": ours, "naive": rival}
    msis = {key: evaluate(frame, ["msis"], **history).iloc[0] for key, frame in frames.items()}
    before, after = reliability(raw), reliability(ours)
    rows = []
    for i, band in enumerate(BANDS):
        low, high = ratio_interval(ours, rival, f"msis{band}", history)
        rows.append(
            {
                "set": name,
                "band": band,
                "raw": before["coverage"][i],
                "covers": after["coverage"][i],
                "error": after["standard_error"][i],
                **{f"msis {key}": float(value[f"msis{band}"]) for key, value in msis.items()},
                "low": low,
                "high": high,
                "seconds": seconds,
            }
        )
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """The table in Markdown."""
    header = "set | band | covers uncalibrated | calibrated ± se | within | MSIS uncalibrated | calibrated"
    print(f"| {header} | conformal seasonal naive | ratio, 95 % |\n|{'---|' * 9}")
    for row in rows:
        off = abs(100 * row["covers"] - row["band"])
        within = "yes" if off <= max(2.0, 200 * row["error"]) else f"no, {off:.1f} off"
        covers = f"{100 * row['raw']:.1f} | {100 * row['covers']:.1f} ± {100 * row['error']:.1f} | {within}"
        scores = " | ".join(f"{row[f'msis {key}']:.3f}" for key in ("raw", "xLSTM", "naive"))
        ratio = f"{row['msis xLSTM'] / row['msis naive']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
        print(f"| {row['set']} | {row['band']} | {covers} | {scores} | {ratio} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data_argument(parser)
    parser.add_argument("--sets", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--max-steps", type=int, help="train less than by default")
    parser.add_argument("--out", type=Path, help="a CSV file for the numbers")
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = data_folder(args.data) if set(args.sets) - {"demo"} else None
    rows: list[dict[str, Any]] = []
    for name in args.sets:
        rows += measure(name, CASES[name](folder), args.max_steps)
        print(f"{name}: {rows[-1]['seconds']:.0f} seconds of the processor to fit and forecast", flush=True)
        if args.out:
            pd.DataFrame(rows).to_csv(args.out, index=False)
    show(rows)


if __name__ == "__main__":
    main()
