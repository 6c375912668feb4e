"""Breadth: many unlike sets and their cut-down versions, beside seasonal naive and the closed-form ridge.

    python benchmarks/breadth.py --model linear
    python benchmarks/breadth.py --model default --seeds 0 1 --only m3 tourism
    python benchmarks/breadth.py --model default --shift 1          # windows to develop on: before all test windows
    python benchmarks/breadth.py --model linear --held-out          # only once the recipe is frozen

A set fails where its 95 % interval (paired bootstrap over series and windows) excludes 1 and the ratio is above 1.02,
or where the ratio is above 1.10. The five sets in `sets.HELD_OUT` stay out unless `--held-out` asks for them alone.
"""

from __future__ import annotations

import argparse

from runner import add_arguments, chosen, report, run_all
from sets import HELD_OUT, breadth_tasks, data_argument, data_folder

QUICK = ("m3_monthly", "tourism_quarterly", "nn5_daily", "national_illness", "fred_md@120", "exchange_rate@400")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    data_argument(parser)
    add_arguments(parser, "breadth.csv")
    parser.add_argument("--held-out", action="store_true", help="score the sets that were put aside, and only those")
    args = parser.parse_args()
    tasks = {
        name: build
        for name, build in breadth_tasks(data_folder(args.data)).items()
        if (name.split("@")[0] in HELD_OUT) == args.held_out
    }
    report(run_all(chosen(tasks, args, QUICK), args), args)


if __name__ == "__main__":
    main()
