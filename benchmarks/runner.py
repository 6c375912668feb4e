"""Run models over tasks: resumable csv, anchors beside every score, one table at the end."""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anchors import ridge, seasonal_naive
from classical import classical
from numpy.typing import NDArray
from sets import LEVELS, Array, Task, aggregate, bootstrap_ratio, window_scores

METRICS = ("MASE", "CRPS")
Model = Callable[[Task, int], tuple[Array, float]]  # task, seed -> quantiles (n, H, 9), seconds of fit


def add_arguments(parser: argparse.ArgumentParser, csv: str) -> None:
    """What all benchmark scripts share."""
    parser.add_argument("--model", default="linear", help="seasonal_naive, ridge, linear, ets, theta, or a preset")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("results") / csv, help="csv, one line per run; resumed")
    parser.add_argument("--only", nargs="+", help="configurations whose name holds one of these words")
    parser.add_argument("--quick", action="store_true", help="a subset that takes minutes")
    parser.add_argument(
        "--shift", type=float, default=0.0, help="move the test windows back by this share of their span"
    )
    parser.add_argument("--against", help="another model: the ratio to it too, with its interval")
    parser.add_argument("--poison", action="store_true", help="fit with noise in place of everything not to be seen")


def linear(task: Task, seed: int) -> tuple[Array, float]:
    """The closed-form backbone on the arrays themselves."""
    from xlstm_forecast.backbone import Backbone, BackboneConfig

    start = time.perf_counter()
    values, offsets = task.training().flat()
    fitted = Backbone(BackboneConfig(horizon=task.horizon, freq=task.freq)).fit(values, offsets, task.starts)
    seconds = time.perf_counter() - start
    index, origin = task.origins()
    return fitted.forecast(*task.flat(), index, origin, LEVELS, starts=task.starts), seconds


def frame_of(task: Task) -> pd.DataFrame:
    """The task as a user would bring it: one row per series and time, dates invented where there are none."""
    parts = []
    for i, series in enumerate(task.series):
        first = "2000-01-01" if task.starts is None else task.starts[i]
        stamps = pd.date_range(pd.Timestamp(first), periods=len(series), freq=task.freq)
        parts.append(pd.DataFrame({"unique_id": i, "ds": stamps, "y": series}))
    return pd.concat(parts, ignore_index=True)


def estimator(**arguments: Any) -> Model:
    """`XLSTMForecaster` fitted once on what precedes the test windows, then rolled over them."""

    def run(task: Task, seed: int) -> tuple[Array, float]:
        from xlstm_forecast import XLSTMForecaster

        start = time.perf_counter()
        forecaster = XLSTMForecaster(horizon=task.horizon, quantiles=tuple(LEVELS), seed=seed, **arguments)
        frame = frame_of(task)
        rank = frame.groupby("unique_id").cumcount().to_numpy()
        forecaster.fit(frame[rank < task.cutoffs()[frame["unique_id"].to_numpy()]], verbose=False)
        seconds = time.perf_counter() - start
        panel = forecaster._to_panel(frame)
        index, origin = task.origins()
        return np.asarray(forecaster._forecast(panel, index, origin, tuple(LEVELS)))[:, :, 0], seconds

    return run


def models() -> dict[str, Model]:
    """Models by name; presets of the estimator under their own names."""
    table: dict[str, Model] = {
        "seasonal_naive": lambda task, seed: (seasonal_naive(task), 0.0),
        "ridge": lambda task, seed: (ridge(task), 0.0),
        "linear": linear,
        "linear-estimator": estimator(model="linear"),
        "ets": classical("ets"),
        "theta": classical("theta"),
    }
    return table | {preset: estimator(presets=preset) for preset in ("fast", "default", "best")}


def poisoned(task: Task, seed: int = 0) -> Task:
    """The task with noise from the first test window on."""
    rng = np.random.default_rng(seed)
    series = []
    for s, cut in zip(task.series, task.cutoffs(), strict=True):
        noise = 1e3 * rng.standard_normal(len(s) - cut) * (np.nanstd(s[:cut]) + 1)
        series.append(np.concatenate([s[:cut], noise]))
    return Task(**{**task.__dict__, "series": series})


def chosen(
    tasks: Mapping[str, Callable[[], Task | None]], args: argparse.Namespace, quick: Sequence[str]
) -> dict[str, Callable[[], Task | None]]:
    """The tasks that `--quick` and `--only` leave. quick: names of the former."""
    left = dict(tasks)
    if args.quick:
        left = {name: build for name, build in left.items() if name in quick}
    if args.only:
        left = {name: build for name, build in left.items() if any(word in name for word in args.only)}
    return left


def report(rows: pd.DataFrame, args: argparse.Namespace, beside: pd.DataFrame | None = None) -> None:
    """Print the table, and the comparison that `--against` asks for."""
    print(table(rows, beside))
    if args.against:
        print(against(rows, args.model, args.against))


def run_all(tasks: Mapping[str, Callable[[], Task | None]], args: argparse.Namespace) -> pd.DataFrame:
    """Score every task with the anchors and the model; append to the csv as it goes and return all its lines."""
    args.out.parent.mkdir(parents=True, exist_ok=True)
    done = pd.read_csv(args.out) if args.out.exists() else pd.DataFrame(columns=["config", "model", "seed"])
    shift = float(getattr(args, "shift", 0.0))  # where set: windows to develop on, everything after them removed
    for name, build in tasks.items():
        label = f"{name}<{shift:.2f}" if shift else name
        wanted = [("seasonal_naive", 0), ("ridge", 0), *((args.model, s) for s in args.seeds)]
        wanted = list(dict.fromkeys(wanted))
        have = (
            set(zip(done.model, done.seed, strict=True))
            if not len(done)
            else set(done[done.config == label][["model", "seed"]].itertuples(index=False, name=None))
        )
        missing = [w for w in wanted if w not in have]
        task = build() if missing or args.poison else None
        if task is None:
            continue
        task = task.moved_back(shift) if shift else task
        naive = window_scores(task, seasonal_naive(task))
        other = window_scores(task, models()[args.against](task, 0)[0]) if args.against else None
        for model, seed in missing:
            row = {"config": label, "model": model, "seed": seed, **score(task, model, seed, naive, other)}
            done = pd.concat([done, pd.DataFrame([row])], ignore_index=True)
            done.to_csv(args.out, index=False)
            print(line(row), flush=True)
        if args.poison:
            check_poison(task, args.model)
    names = [f"{n}<{shift:.2f}" if shift else n for n in tasks]
    return done[done.config.isin(names) & done.model.isin(["seasonal_naive", "ridge", args.model])]


def score(task: Task, model: str, seed: int, naive: pd.DataFrame, other: pd.DataFrame | None) -> dict[str, float]:
    """One line: absolute scores, ratios to seasonal naive with their interval, coverage, seconds, peak memory.

    other: window scores of another model; the ratios to it are the columns whose names end in `_against`.
    """
    start = time.perf_counter()
    quantiles, fit_seconds = models()[model](task, seed)
    total = time.perf_counter() - start
    scores = window_scores(task, quantiles)
    ours, base = aggregate(scores), aggregate(naive)
    ratios = {f"{m}_ratio": ours[m] / base[m] for m in METRICS}
    interval = bootstrap_ratio(scores, naive) if model != "seasonal_naive" else {}
    if other is not None:
        there = aggregate(other)
        interval |= {f"{m}_ratio_against": ours[m] / there[m] for m in METRICS}
        interval |= {f"{k}_against": v for k, v in bootstrap_ratio(scores, other).items()}
    return {**ours, **ratios, **interval, "fit_seconds": fit_seconds, "seconds": total, "peak_MiB": peak_memory()}


def peak_memory() -> float:
    """Peak memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def check_poison(task: Task, model: str) -> None:
    """SystemExit where the first test window's forecast changes when everything from it on is replaced by noise."""
    clean, spoilt = (models()[model](t, 0)[0][:: task.windows] for t in (task, poisoned(task)))
    if not np.array_equal(clean, spoilt):
        raise SystemExit(f"{task.name}: {model} reads values that it may not see")


def fails(row: Mapping[str, Any], metric: str) -> bool:
    """Whether a ratio counts as worse than seasonal naive."""
    ratio = row[f"{metric}_ratio"]
    return bool(ratio > 1.10 or (ratio > 1.02 and row.get(f"{metric}_low", 0.0) > 1.0))


def against(rows: pd.DataFrame, model: str, name: str) -> str:
    """How a model compares with another: geometric means, and the sets where either is better beyond the interval."""
    mean = rows[rows.model == model].groupby("config", sort=False).mean(numeric_only=True)
    out = []
    for m in METRICS:
        ratio = mean[f"{m}_ratio_against"]
        better, worse = mean.index[mean[f"{m}_high_against"] < 1], mean.index[mean[f"{m}_low_against"] > 1]
        out.append(
            f"{m}: {model} is {np.exp(np.log(ratio).mean()):.3f} of {name}; better beyond the 95 % interval on "
            f"{len(better)} of {len(mean)}, worse on {len(worse)}"
            + "".join(f"; {c} {ratio[c]:.3f} ({mean.loc[c, f'{m}_low_against']:.3f} up)" for c in worse)
        )
    return "\n".join(out)


def line(row: Mapping[str, Any]) -> str:
    """One run for the log."""
    ratios = "  ".join(f"{m} {row[f'{m}_ratio']:.3f}{'!' if fails(row, m) else ' '}" for m in METRICS)
    run = f"{row['config']:26s} {row['model']:16s} seed {row['seed']}"
    return f"{run}  {ratios}  cover {row['cover80']:.2f}  {row['seconds']:.1f} s"


def table(rows: pd.DataFrame, beside: pd.DataFrame | None) -> str:
    """Markdown: ratios to seasonal naive per configuration (mean over seeds), geometric means last."""
    scored = rows[rows.model != "seasonal_naive"]
    columns = ["MASE_ratio", "CRPS_ratio", "cover80", "seconds", "peak_MiB"]
    mean = scored.groupby(["config", "model"], sort=False)[columns].mean()
    names = list(dict.fromkeys(scored.model))
    out = ["| configuration | " + " | ".join(names) + " | cover 80 % | seconds | peak MiB |"]
    out[0] += "".join(f" {m} |" for m in _beside_names(beside))
    out.append("|" + "---|" * (len(names) + 4 + len(_beside_names(beside))))
    naive = rows[rows.model == "seasonal_naive"].set_index("config")
    logs: dict[str, list[NDArray[np.float64]]] = {n: [] for n in names}
    for config in dict.fromkeys(scored.config):
        cells = []
        for name in names:
            there = (config, name) in mean.index
            pair = mean.loc[(config, name), columns[:2]].to_numpy() if there else np.full(2, np.nan)
            logs[name].append(np.log(pair.astype(float)))
            cells.append(f"{pair[0]:.3f}/{pair[1]:.3f}")
        last = mean.loc[(config, names[-1])] if (config, names[-1]) in mean.index else mean.loc[(config, names[0])]
        cells += [f"{last.cover80:.2f}", f"{last.seconds:.0f}", f"{last.peak_MiB:.0f}"]
        cells += _beside_cells(beside, config, naive)
        out.append(f"| {config} | " + " | ".join(cells) + " |")
    total = ["/".join(f"{v:.3f}" for v in np.exp(np.nanmean(logs[n], 0))) for n in names]
    seconds = mean.xs(names[-1], level="model").seconds.sum()
    out.append(f"| **geometric mean** | {' | '.join(total)} | | {seconds:.0f} | |" + " |" * len(_beside_names(beside)))
    return "\n".join(out)


def _beside_names(beside: pd.DataFrame | None) -> list[str]:
    return [] if beside is None else sorted(beside.model.unique())


def _beside_cells(beside: pd.DataFrame | None, config: str, naive: pd.DataFrame) -> list[str]:
    cells = []
    for model in _beside_names(beside):
        row = beside[(beside.model == model) & (beside.config == config)]  # type: ignore[index]
        ok = len(row) and config in naive.index
        cells.append("/".join(f"{row.iloc[0][m] / naive.loc[config, m]:.3f}" for m in METRICS) if ok else "")
    return cells
