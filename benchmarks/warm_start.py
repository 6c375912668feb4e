"""Does training go on from a fitted network? Half of a set's series from scratch, or from the other half's network.

    python benchmarks/warm_start.py --data DIR --seeds 0 1

MASE / CRPS relative to seasonal naive on the test windows of the second half: trained from scratch with all steps and
with a quarter of them, and with a quarter from the network that was fitted to the first half. The network stands alone
(no backbone, no pre-trained network), so that nothing else can make up for it.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import numpy as np
from anchors import seasonal_naive
from runner import METRICS, frame_of
from sets import LEVELS, Array, Task, aggregate, breadth_tasks, data_argument, data_folder, window_scores

from xlstm_forecast import XLSTMForecaster

STEPS = 600


def half(task: Task, which: int) -> Task:
    """Every other series of the task."""
    starts = None if task.starts is None else task.starts[which::2]
    return replace(task, series=task.series[which::2], starts=starts)


def fit(task: Task, forecaster: Any, **options: Any) -> Any:
    """The forecaster, fitted on what precedes the task's test windows."""
    frame = frame_of(task)
    rank = frame.groupby("unique_id").cumcount().to_numpy()
    return forecaster.fit(frame[rank < task.cutoffs()[frame["unique_id"].to_numpy()]], verbose=False, **options)


def ratios(task: Task, forecaster: Any) -> Array:
    """MASE and CRPS on the test windows, relative to seasonal naive."""
    panel = forecaster._to_panel(frame_of(task))
    quantiles = np.asarray(forecaster._forecast(panel, *task.origins(), tuple(LEVELS)))[:, :, 0]
    ours, naive = (aggregate(window_scores(task, q)) for q in (quantiles, seasonal_naive(task)))
    return np.array([ours[m] / naive[m] for m in METRICS])


def compare(task: Task, seed: int) -> dict[str, Array]:
    """Scores of the three ways to train."""
    first, second = half(task, 0), half(task, 1)

    def new(steps: int) -> Any:
        return XLSTMForecaster(
            horizon=task.horizon, quantiles=tuple(LEVELS), backbone=False, pretrained=False, max_steps=steps, seed=seed
        )

    found = {f"scratch, {steps} steps": ratios(second, fit(second, new(steps))) for steps in (STEPS, STEPS // 4)}
    related = fit(first, new(STEPS))
    related.set_params(max_steps=STEPS // 4)
    found[f"warm start, {STEPS // 4} steps"] = ratios(second, fit(second, related, warm_start=True))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data_argument(parser)
    parser.add_argument("--sets", nargs="+", default=["m3_monthly", "traffic_weekly", "nn5_daily", "vehicle_trips"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    args = parser.parse_args()
    tasks = breadth_tasks(data_folder(args.data))
    told = False
    for name in args.sets:
        task = tasks[name]()
        assert task is not None
        runs = [compare(task, seed) for seed in args.seeds]
        if not told:
            print("| set | " + " | ".join(runs[0]) + " |\n" + "|---" * (1 + len(runs[0])) + "|")
            told = True
        means = [np.mean([run[way] for run in runs], 0) for way in runs[0]]
        print(f"| {name} | " + " | ".join(f"{a:.3f}/{b:.3f}" for a, b in means) + " |", flush=True)


if __name__ == "__main__":
    main()
