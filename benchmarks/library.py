"""Series that come with statsmodels and sktime, beside seasonal naive, the ridge and classical models: no data folder.

    python benchmarks/library.py --model default --against linear
    python benchmarks/library.py --model ets                       # exponential smoothing, again at every window
    python benchmarks/library.py --model default --cuts             # their last 30, 60 and 120 values instead

28 sets, most of one short series, as a first try of the package looks; see `library_sets`.
"""

from __future__ import annotations

import argparse

from library_sets import library_tasks
from runner import add_arguments, against, run_all, table

QUICK = ("airline", "lynx", "macro", "copper", "elec_equip", "fertility")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_arguments(parser, "library.csv")
    parser.add_argument("--cuts", action="store_true", help="score the cut-down versions, and only those")
    args = parser.parse_args()
    tasks = {name: build for name, build in library_tasks().items() if ("@" in name) == args.cuts}
    if args.quick:
        tasks = {n: b for n, b in tasks.items() if n.split("@")[0] in QUICK}
    if args.only:
        tasks = {n: b for n, b in tasks.items() if any(word in n for word in args.only)}
    rows = run_all(tasks, args)
    print(table(rows, None))
    if args.against:
        print(against(rows, args.model, args.against))


if __name__ == "__main__":
    main()
