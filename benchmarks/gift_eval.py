"""GIFT-Eval, the 16 configurations that can be rebuilt exactly, beside the published scores.

    python benchmarks/gift_eval.py --model linear                    # closed-form backbone, minutes
    python benchmarks/gift_eval.py --model default --seeds 0 1       # XLSTMForecaster with nothing else set
    python benchmarks/gift_eval.py --model linear --shift 0.333      # test windows moved back, everything after removed

Every (configuration, model, seed) is one line of the csv; lines that are there are not run again. The seasonal naive
has to reproduce the published table before anything else is scored. `--poison` replaces every value from the first
test window on by noise while fitting and selecting, which must change nothing.
"""

from __future__ import annotations

import argparse

import pandas as pd
from anchors import seasonal_naive
from runner import add_arguments, chosen, report, run_all
from sets import aggregate, data_argument, data_folder, gift_tasks, window_scores

QUICK = ("ett1/15T/short", "ett1/D/short", "ett1/W/short", "hospital/M/short", "us_births/W/short", "m4_weekly/W/short")
BESIDE = ("xLSTM-Mixer", "TiRex", "PatchTST")


def check_naive(tasks: dict, published: pd.DataFrame) -> None:
    """SystemExit where our seasonal naive differs from the published one in the fifth decimal."""
    official = published[published.model == "seasonal_naive"].set_index("config")
    for name, build in tasks.items():
        task = build()
        ours = aggregate(window_scores(task, seasonal_naive(task)))
        for metric in ("MASE", "CRPS"):
            if abs(ours[metric] - official.loc[name, metric]) > 6e-6:
                beside = official.loc[name, metric]
                raise SystemExit(f"{name}: seasonal naive {metric} {ours[metric]:.6f}, published {beside:.6f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    data_argument(parser)
    add_arguments(parser, "gift_eval.csv")
    parser.add_argument("--published", help="csv with columns model, config, MASE, CRPS (default: beside the data)")
    args = parser.parse_args()
    folder = data_folder(args.data)
    published = pd.read_csv(args.published or folder.parent / "anchors" / "gift_eval_published.csv")
    tasks = chosen(gift_tasks(folder), args, QUICK)
    if not args.shift:
        check_naive(tasks, published)
    rows = run_all(tasks, args)
    beside = published[published.model.isin(BESIDE) & published.config.isin(list(tasks))]
    report(rows, args, None if args.shift else beside)


if __name__ == "__main__":
    main()
