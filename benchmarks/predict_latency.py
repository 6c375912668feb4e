"""Latency of `predict` beside pytorch-forecasting's on the same frame in the same run, and what imports cost.

python -m benchmarks.predict_latency prints milliseconds (medians over blocks of calls that take turns). Ours is
trained: a forecaster whose networks found nothing leaves them out, and takes half the time. Theirs is not: it takes as
long.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

HORIZON, CONTEXT, BAR, IMPORT_BAR = 12, 60, 0.25, 1.15


def panel(series: int = 6, rows: int = 120) -> pd.DataFrame:
    """Noisy yearly waves, one row a month."""
    rng = np.random.default_rng(0)
    months = pd.date_range("2010-01-01", periods=rows, freq="MS")
    wave = 10 * np.sin(2 * np.pi * np.arange(rows) / 12)
    parts = [
        pd.DataFrame({"unique_id": f"s{i}", "ds": months, "y": 50 + wave + rng.standard_normal(rows)})
        for i in range(series)
    ]
    return pd.concat(parts, ignore_index=True)


def milliseconds(calls: dict[str, Callable[[], Any]], rounds: int, block: int = 5) -> dict[str, float]:
    """Median of each. Blocks of calls take turns, so that a busy machine slows all of them alike; the first call of a
    block, with another's data in the caches, is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            call()
            for _ in range(block):
                started = time.perf_counter()
                call()
                taken[name].append(time.perf_counter() - started)
    return {name: 1000 * statistics.median(times) for name, times in taken.items()}


def ours(frame: pd.DataFrame) -> Callable[[], Any]:
    from xlstm_forecast import XLSTMForecaster

    model = XLSTMForecaster(horizon=HORIZON, input_length=CONTEXT).fit(frame, verbose=False)
    print("ours is the average of", ", ".join(f"{name} {weight:.2f}" for name, weight in model.weights_.items()))
    print(f"with {len(model.model_.models)} networks and {model.model_.share:.2f} of their correction\n")
    return lambda: model.predict(frame)


def theirs(frame: pd.DataFrame, name: str) -> Callable[[], Any]:
    """Their model, not trained, forecasting the last rows of the frame: their predict needs the rows to be there."""
    import pytorch_forecasting as pf

    for logger in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    data = frame.assign(step=frame.groupby("unique_id").cumcount())
    training = pf.TimeSeriesDataSet(
        data,
        time_idx="step",
        target="y",
        group_ids=["unique_id"],
        max_encoder_length=CONTEXT,
        max_prediction_length=HORIZON,
        time_varying_unknown_reals=["y"],
    )
    model = getattr(pf, name).from_dataset(training)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return lambda: model.predict(data, trainer_kwargs=dict(quiet))


def import_seconds(code: str, repeats: int) -> float:
    """Median wall time of a fresh Python that runs `code`, without the start of Python itself."""
    timed = f"import time; start = time.perf_counter(); {code}; print(time.perf_counter() - start)"
    runs = [
        subprocess.run([sys.executable, "-c", timed], capture_output=True, text=True, check=True)
        for _ in range(repeats)
    ]
    return statistics.median(float(run.stdout) for run in runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument(
        "--models", nargs="+", default=["TemporalFusionTransformer", "DeepAR", "NHiTS", "RecurrentNetwork"]
    )
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    frame = panel()
    calls = {"xlstm_forecast": ours(frame)} | {name: theirs(frame, name) for name in arguments.models}
    rows = list(milliseconds(calls, arguments.rounds).items())
    print(f"predict, 6 series x 120 rows, horizon {HORIZON}, context {CONTEXT}, on the CPU")
    print(f"{'':32}{'ms':>10}{'ratio':>10}")
    for name, taken in rows:
        print(f"{name:32}{taken:10.1f}{rows[0][1] / taken:10.3f}")
    fastest = min(taken for _, taken in rows[1:])
    print(f"ours / their fastest = {rows[0][1] / fastest:.3f} (bar: at most {BAR})\n")
    torch, package, estimator = (
        import_seconds(code, 5)
        for code in ("import torch", "import xlstm_forecast", "from xlstm_forecast import XLSTMForecaster")
    )
    print(f"import torch {torch:.2f} s, xlstm_forecast {package:.2f} s, XLSTMForecaster {estimator:.2f} s")
    print(f"xlstm_forecast / torch = {package / torch:.2f} (bar: at most {IMPORT_BAR})")


if __name__ == "__main__":
    main()
