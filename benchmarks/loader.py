"""Loading: ours beside pytorch-forecasting's, in one run.

    python -m benchmarks.loader                         every part; 1e8 rows take minutes and about 12 GB of disk
    python -m benchmarks.loader --parts windows build --rows 1000000

Parts: `windows` (windows per second), `build` (seconds and memory from a frame), `files` (a panel larger than memory),
`step` (how long a training step waits for data). Building runs in processes of their own, so that peaks are clean.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from xlstm_forecast.data import Loader, Panel, Roles, Sampler, Windows, open_panel, stored_panel, to_panel

CONTEXT, HORIZON = 96, 24
ROLES = Roles(past=("u",), future=("a", "b", "c"), categorical=("c",))
MIB = 2**20


def frame(rows: int, length: int = 1000, first: int = 0, seed: int = 0) -> pd.DataFrame:
    """Series of 1000 steps with string ids, one target, three reals and one categorical."""
    rng = np.random.default_rng(seed)
    series = rows // length
    columns = {
        "unique_id": np.repeat([f"series_{i:07d}" for i in range(first, first + series)], length),
        "ds": np.tile(np.arange(length), series),
        **{name: rng.random(rows) for name in ("y", "a", "b", "u")},
        "c": np.array(["red", "green", "blue", "grey"])[rng.integers(0, 4, rows)],
    }
    return pd.DataFrame(columns)


def data_set(df: pd.DataFrame) -> Any:
    """The same columns as pytorch-forecasting's data set."""
    from pytorch_forecasting import TimeSeriesDataSet

    return TimeSeriesDataSet(
        df,
        time_idx="ds",
        target="y",
        group_ids=["unique_id"],
        max_encoder_length=CONTEXT,
        max_prediction_length=HORIZON,
        time_varying_known_reals=["a", "b"],
        time_varying_known_categoricals=["c"],
        time_varying_unknown_reals=["y", "u"],
    )


def rate(batches: Callable[[], Iterable[Any]], size: Callable[[Any], int], seconds: float = 2.0) -> float:
    """The best windows per second of three stretches."""
    best = 0.0
    for _ in range(3):
        stream = _endless(batches)
        next(stream)
        seen, begin = 0, time.perf_counter()
        while (spent := time.perf_counter() - begin) < seconds / 3:
            seen += size(next(stream))
        best = max(best, seen / spent)
    return best


def _endless(batches: Callable[[], Iterable[Any]]) -> Iterator[Any]:
    while True:
        yield from batches()


def bare_gather(panel: Panel, size: int) -> Iterator[list[torch.Tensor]]:
    """The same windows and columns by plain indexing: nothing is scaled, masked or named."""
    columns = [torch.from_numpy(x) for x in (panel.target, panel.known, panel.past, panel.known_categories)]
    steps, span = torch.arange(CONTEXT + HORIZON), CONTEXT + HORIZON
    first = torch.cat(
        [torch.arange(a, b - span + 1) for a, b in zip(panel.offsets[:-1], panel.offsets[1:], strict=True)]
    )
    for numbers in torch.randperm(len(first), generator=torch.Generator().manual_seed(0)).split(size):
        rows = first[numbers][:, None] + steps
        yield [column[rows] for column in columns]


def windows_part(quick: bool) -> None:
    from xlstm_forecast.adapters.pytorch_forecasting import accelerate

    df = frame(100_000)
    theirs = data_set(df)
    fast = accelerate(theirs)
    panel = to_panel(df, ROLES)
    windows = Windows(panel, CONTEXT, HORIZON)
    seconds = 1.0 if quick else 6.0
    print(f"windows per second, 100 series x 1000 steps, context {CONTEXT}, horizon {HORIZON}, no workers")
    print(f"{'batch':>6} {'theirs':>9} {'same dict':>10} {'times':>6} | {'bare gather':>12} {'Batch':>10} {'ratio':>6}")
    for size in (64, 256):
        own = rate(partial(theirs.to_dataloader, train=True, batch_size=size), _samples, seconds)
        same = rate(partial(fast.to_dataloader, train=True, batch_size=size), _samples, seconds)
        bare = rate(partial(bare_gather, panel, size), lambda b: len(b[0]), seconds)
        ours = rate(partial(Loader, Sampler(windows, size)), lambda b: len(b[0]), seconds)
        print(
            f"{size:>6} {own:>9.0f} {same:>10.0f} {same / own:>6.1f} | {bare:>12.0f} {ours:>10.0f} {ours / bare:>6.2f}"
        )


def _samples(batch: Any) -> int:
    return len(batch[0]["groups"])


def resident(kind: str = "VmRSS") -> int:
    """Bytes of this process' memory: VmRSS, RssAnon."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(kind):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {kind}")


class Peak:
    """The largest memory of this process while the block runs."""

    def __init__(self, kind: str = "VmRSS"):
        self.kind, self.bytes, self._stop = kind, 0, threading.Event()

    def _watch(self) -> None:
        while not self._stop.is_set():
            self.bytes = max(self.bytes, resident(self.kind))
            time.sleep(0.002)

    def __enter__(self) -> Peak:
        self.start = resident(self.kind)
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        self._thread.join()
        self.bytes = max(self.bytes, resident(self.kind))


def build_once(which: str, rows: int, pipe: Any) -> None:
    """In a process of its own: seconds and peak bytes beyond the frame."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    build: Callable[[pd.DataFrame], Any] = data_set if which == "theirs" else lambda d: to_panel(d, ROLES)
    build(frame(2000))  # imports and compilation are not what is measured
    df = frame(rows)
    with Peak() as peak:
        begin = time.perf_counter()
        build(df)
        spent = time.perf_counter() - begin
    pipe.send((spent, peak.bytes - peak.start))


def in_process(target: Callable[..., None], *arguments: Any) -> Any:
    """What the target sends, from a fresh process."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=target, args=(*arguments, there))
    process.start()
    there.close()
    try:
        return here.recv()
    finally:
        process.join()


def build_part(sizes: list[int]) -> None:
    print("building from a frame: string ids, 1 target, 3 reals, 1 categorical")
    print(
        f"{'rows':>10} {'theirs':>9} {'ours':>8} {'times':>6} | {'their MiB':>10} {'our MiB':>9} {'of the numbers':>15}"
    )
    for rows in sizes:
        (slow, much), (quick, little) = (in_process(build_once, which, rows) for which in ("theirs", "ours"))
        share = little / (rows * 4 * 8)
        print(
            f"{rows:>10} {slow:>8.2f}s {quick:>7.2f}s {slow / quick:>6.1f} | {much / MIB:>10.0f} {little / MIB:>9.0f} "
            f"{share:>14.2f}x"
        )


def write_files(folder: Path, rows: int) -> None:
    """Parquet files of a million rows, their series in no order."""
    folder.mkdir()
    each, files = min(rows, 1_000_000), max(1, rows // 1_000_000)
    for number in np.random.default_rng(0).permutation(files).tolist():
        part = frame(each, first=number * (each // 1000), seed=number)
        part.to_parquet(folder / f"part-{number:05d}.parquet", index=False)


def convert_once(folder: str, pipe: Any) -> None:
    """In a process of its own: convert, index, load some windows; seconds, windows, peak anonymous memory."""
    torch.set_num_threads(1)
    path = Path(folder)
    with Peak("RssAnon") as peak:
        begin = time.perf_counter()
        panel = stored_panel(path / "in", ROLES, path / "cache")
        spent = time.perf_counter() - begin
        windows = Windows(panel, CONTEXT, HORIZON)
        indexed = time.perf_counter() - begin - spent
        rate(lambda: Loader(Sampler(windows, 256), steps=500), lambda b: len(b[0]), 6.0)
    pipe.send((spent, indexed, peak.bytes, len(windows)))


def load_once(folder: str, pipe: Any) -> None:
    """In a process of its own: windows per second from the map, once cached, and from the same columns in memory."""
    torch.set_num_threads(1)
    mapped = open_panel(next(Path(folder, "cache").iterdir()))
    names = ("target", "known", "past", "known_categories", "past_categories")
    copied = replace(mapped, **{name: np.array(getattr(mapped, name)) for name in names})
    for name in names:  # touched once: the map is cached
        column = getattr(mapped, name)
        for a in range(0, len(column), 1 << 20):
            column[a : a + (1 << 20)].sum()
    both = [Windows(panel, CONTEXT, HORIZON) for panel in (mapped, copied)]
    rates = np.zeros(2)
    for _ in range(3):  # in turns, so that other work on the machine meets both
        now = [rate(partial(Loader, Sampler(w, 256), steps=500), lambda b: len(b[0]), 4.0) for w in both]
        rates = np.maximum(rates, now)
    pipe.send(tuple(rates.tolist()))


def files_part(rows: int, folder: str | None) -> None:
    place = Path(tempfile.mkdtemp(dir=folder))
    try:
        free = shutil.disk_usage(place).free
        need = rows * 70
        if free < 1.5 * need:
            print(f"files: skipped; {rows} rows need {1.5 * need / 1e9:.0f} GB of disk, {free / 1e9:.0f} GB are free")
            return
        begin = time.perf_counter()
        write_files(place / "in", rows)
        spent = time.perf_counter() - begin
        print(f"{rows} rows in Parquet files, {_size(place / 'in') / 1e9:.1f} GB, written in {spent:.0f} s")
        spent, indexed, anonymous, count = in_process(convert_once, str(place))
        print(
            f"converted in {spent:.0f} s ({rows / spent / 1e6:.1f} million rows/s), "
            f"{count} windows indexed in {indexed:.1f} s"
        )
        size = _size(place / "cache") / 1e9
        print(f"peak anonymous memory {anonymous / 2**30:.2f} GiB; columns on disk {size:.1f} GB")
        mapped, plain = in_process(load_once, str(place))
        print(f"windows per second, batch 256: mapped {mapped:.0f}, in memory {plain:.0f}, ratio {mapped / plain:.2f}")
    finally:
        shutil.rmtree(place)


def _size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def step_part() -> None:
    """The share of a training step of the default model that passes between two batches."""
    from xlstm_forecast import XLSTMForecaster
    from xlstm_forecast.data.loader import Loader as Watched

    waiting: list[float] = []
    original = Watched.__iter__

    def timed(self: Any) -> Iterator[Any]:
        stream = original(self)
        while True:
            begin = time.perf_counter()
            item = next(stream, None)
            waiting.append(time.perf_counter() - begin)
            if item is None:
                return
            yield item

    Watched.__iter__ = timed  # type: ignore[method-assign]
    try:
        df = frame(100_000)[["unique_id", "ds", "y"]]
        begin = time.perf_counter()
        XLSTMForecaster(horizon=HORIZON, max_steps=100, seed=0).fit(df, verbose=False)
        spent = time.perf_counter() - begin
    finally:
        Watched.__iter__ = original  # type: ignore[method-assign]
    total = sum(waiting)
    print(
        f"fit of the default model: {spent:.1f} s, {len(waiting)} batches, "
        f"waiting for data {total:.2f} s: {total / spent:.1%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["windows", "build", "step", "files"])
    parser.add_argument("--rows", nargs="+", type=float, default=[1e6, 1e7], help="sizes of `build`")
    parser.add_argument("--file-rows", type=float, default=1e8, help="size of `files`")
    parser.add_argument("--folder", help="where `files` writes; removed afterwards")
    parser.add_argument("--quick", action="store_true", help="short measurements")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(
        json.dumps({"torch": torch.__version__, "cores": os.cpu_count(), "load": os.getloadavg()[0]}), file=sys.stderr
    )
    sizes = [int(r) for r in options.rows]
    for part in options.parts:
        if part == "windows":
            windows_part(options.quick)
        elif part == "build":
            build_part(sizes)
        elif part == "step":
            step_part()
        elif part == "files":
            files_part(int(options.file_rows), options.folder)
        else:
            parser.error(f"no part {part!r}; there are windows, build, step, files")


if __name__ == "__main__":
    main()
