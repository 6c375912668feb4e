"""Series that come with statsmodels and sktime, beside seasonal naive, the ridge and classical models: no data folder.

    python benchmarks/library.py --model default --against linear
    python benchmarks/library.py --model ets                       # exponential smoothing, again at every window
    python benchmarks/library.py --model default --cuts             # their last 30, 60 and 120 values instead

28 sets, most of one short series, as a first try of the package looks; see `library_sets`.
"""

from __future__ import annotations

import argparse

from library_sets import library_tasks
from runner import add_arguments, chosen, report, run_all

QUICK = ("airline", "lynx", "macro", "copper", "elec_equip", "fertility", "airline@60", "macro@60", "nowcast@60")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_arguments(parser, "library.csv")
    parser.add_argument("--cuts", action="store_true", help="score the cut-down versions, and only those")
    args = parser.parse_args()
    tasks = {name: build for name, build in library_tasks().items() if ("@" in name) == args.cuts}
    report(run_all(chosen(tasks, args, QUICK), args), args)


if __name__ == "__main__":
    main()
