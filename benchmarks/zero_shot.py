"""The pre-trained network by itself, and averaged with the backbone, on the sets of breadth or GIFT-Eval.

    python benchmarks/zero_shot.py --shift 1                      # development windows: moved back by their whole span
    python benchmarks/zero_shot.py --weights a.safetensors b.safetensors --shift 1     # several networks side by side

Ratios of MASE / CRPS to seasonal naive, geometric means last. Nothing is fitted but the backbone beside it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from anchors import seasonal_naive
from runner import METRICS, linear
from sets import (
    HELD_OUT,
    LEVELS,
    Array,
    Task,
    aggregate,
    breadth_tasks,
    data_argument,
    data_folder,
    gift_tasks,
    window_scores,
)

from xlstm_forecast import pretrained
from xlstm_forecast.backbone import gather, seasons
from xlstm_forecast.pretrained.learning import read
from xlstm_forecast.pretrained.network import Network


def forecast(task: Task, network: Network | None) -> Array:
    """(n, H, 9) quantiles of the task's windows."""
    values, offsets = task.flat()
    history = gather(values, offsets, *task.origins(), pretrained.history(task.horizon))
    return np.asarray(pretrained.quantiles(history, seasons.table(task.freq), task.horizon, LEVELS, network))


def ratios(task: Task, members: dict[str, Array]) -> Array:
    """(members, 2) MASE and CRPS relative to seasonal naive."""
    base = aggregate(window_scores(task, seasonal_naive(task)))
    scores = [aggregate(window_scores(task, member)) for member in members.values()]
    return np.array([[score[m] / base[m] for m in METRICS] for score in scores])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data_argument(parser)
    parser.add_argument("--sets", choices=["breadth", "gift"], default="breadth")
    parser.add_argument("--shift", type=float, default=0.0, help="move the test windows back by this share")
    parser.add_argument("--weights", nargs="*", type=Path, help="files of other networks than the one that ships")
    args = parser.parse_args()
    folder = data_folder(args.data)
    networks = {path.stem: read(path) for path in args.weights} if args.weights else {"shipped": None}
    tasks: dict[str, Callable[[], Task | None]] = {**(gift_tasks if args.sets == "gift" else breadth_tasks)(folder)}
    logs = []
    for name, build in tasks.items():
        task = None if name.split("@")[0] in HELD_OUT else build()
        if task is None:
            continue
        task = task.moved_back(args.shift) if args.shift else task
        backbone = linear(task, 0)[0]
        members = {"backbone": backbone}
        for label, network in networks.items():
            members[label] = forecast(task, network)
            members[f"half {label}"] = (backbone + members[label]) / 2
        if not logs:
            print("| set | " + " | ".join(members) + " |\n" + "|---" * (1 + len(members)) + "|")
        found = ratios(task, members)
        logs.append(np.log(found))
        print(f"| {name} | " + " | ".join(f"{a:.3f}/{b:.3f}" for a, b in found) + " |", flush=True)
    print("| **all** | " + " | ".join(f"{a:.3f}/{b:.3f}" for a, b in np.exp(np.mean(logs, 0))) + " |")


if __name__ == "__main__":
    main()
