"""Speed of the recurrent cells and layers beside `torch.nn.LSTM(D, D)` in the same run.

python -m benchmarks.cells                  times and ratios for 1 and 2 threads, step mode, peak memory
python -m benchmarks.cells --parts times    one part alone (times, step, memory); --sizes 0 2 picks sizes by number

Runs are interleaved: in every round each contender runs once, in turn, so that a busy machine slows all of them alike.
A number is the median over rounds, a ratio that of the medians, `best` the ratio of the two minima; one slower than a
second per run is run in fewer rounds. With --cpu-time the clock is the process's own CPU time, which other programs
disturb less; it means something for one thread only.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

SIZES = [(32, 96, 128, 4), (32, 512, 128, 4), (128, 96, 64, 4), (1, 512, 64, 4), (256, 16, 256, 4)]  # B, T, D, heads
MEMORY_STEPS = (512, 2048, 8192)
BASE = "nn.LSTM"
Contenders = dict[str, tuple[Callable[[Tensor], Tensor], Sequence[Tensor]]]


def official(kind: str, steps: int, dim: int, heads: int) -> nn.Module:
    """A layer of the package xlstm 2, which runs on a CPU as "vanilla" (sLSTM) and in parallel form (mLSTM)."""
    from xlstm.blocks.mlstm.layer import mLSTMLayer, mLSTMLayerConfig
    from xlstm.blocks.slstm.layer import sLSTMLayer, sLSTMLayerConfig

    layer: Any
    if kind == "sLSTM":
        config = sLSTMLayerConfig(embedding_dim=dim, num_heads=heads, backend="vanilla", dtype="float32")
        layer = sLSTMLayer(config)
    else:
        layer = mLSTMLayer(mLSTMLayerConfig(embedding_dim=dim, num_heads=heads, context_length=steps))
    layer.reset_parameters()
    return layer


def contenders(steps: int, dim: int, heads: int) -> dict[str, Callable[[], nn.Module]]:
    """How to build every layer that maps (B, T, D) to (B, T, D)."""
    from pytorch_forecasting.layers._recurrent._mlstm.layer import mLSTMLayer as TheirMLSTM
    from pytorch_forecasting.layers._recurrent._slstm.layer import sLSTMLayer as TheirSLSTM

    from xlstm_forecast.layers import MLSTMMixer, SLSTMMixer, mLSTM, sLSTM, sLSTMLayer

    return {
        BASE: lambda: nn.LSTM(dim, dim, batch_first=True),
        "sLSTM head-wise": lambda: sLSTM(dim, dim, num_heads=heads, projection="headwise", batch_first=True),
        "sLSTM dense": lambda: sLSTM(dim, dim, num_heads=heads, projection="dense", batch_first=True),
        "sLSTM layer": lambda: SLSTMMixer(dim, heads),
        "mLSTM wrapper": lambda: mLSTM(dim, dim, num_heads=heads, batch_first=True),
        "mLSTM layer": lambda: MLSTMMixer(dim, heads),
        "coupled layer": lambda: TimeFirst(sLSTMLayer(dim, dim)),
        "official sLSTM layer": lambda: official("sLSTM", steps, dim, heads),
        "official mLSTM layer": lambda: official("mLSTM", steps, dim, heads),
        "p-f sLSTM layer": lambda: TimeFirst(TheirSLSTM(dim, dim)),
        "p-f mLSTM layer": lambda: TimeFirst(TheirMLSTM(dim, dim, 1)),
    }


class TimeFirst(nn.Module):
    """A layer on (T, B, D) for (B, T, D)."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.transpose(0, 1))[0].transpose(0, 1)


def output(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    def call(x: Tensor) -> Tensor:
        y = layer(x)
        return y[0] if isinstance(y, tuple) else y

    return call


def cells(batch: int, steps: int, dim: int, heads: int) -> Contenders:
    """The recurrences alone, their inputs given: (B, T, N, ...) as a layer's projection leaves them."""
    from xlstm_forecast import ops

    head = dim // heads
    gates = torch.randn(batch, steps, heads, 4, head, requires_grad=True)
    R = (torch.randn(heads, head, 4, head) / head**0.5).requires_grad_()
    b = torch.zeros(heads, 4, head, requires_grad=True)
    q, k, v = (torch.randn(batch, heads, steps, head, requires_grad=True) for _ in range(3))
    i, f = (torch.randn(batch, heads, steps, requires_grad=True) for _ in range(2))
    return {
        "sLSTM cell": (lambda x: ops.slstm(gates, R, b)[0].flatten(2), (gates, R, b)),
        "mLSTM cell": (lambda x: ops.mlstm(q, k, v, i, f)[0].transpose(1, 2).flatten(2), (q, k, v, i, f)),
    }


def measure(runs: dict[str, Callable[[], Any]], rounds: int, seconds: float, clock: Callable[[], float]) -> Any:
    """Seconds of every run of each, interleaved; a contender whose time is used up sits out."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            if turn > 1 and sum(taken[name]) > seconds:
                continue
            start = clock()
            run()
            taken[name].append(clock() - start)
    return {name: times[1:] or times for name, times in taken.items()}


def report(title: str, taken: dict[str, list[float]]) -> None:
    median = {name: statistics.median(times) for name, times in taken.items()}
    for name, times in taken.items():
        best = min(times) / min(taken[BASE])
        print(
            f"{title:34} {name:22} {1e3 * median[name]:9.2f} ms  {median[name] / median[BASE]:7.2f} x  "
            f"best {best:7.2f} x  rounds {len(times)}",
            flush=True,
        )


def times(size: tuple[int, int, int, int], options: argparse.Namespace) -> None:
    """Forward, and forward with backward, of all contenders at one size."""
    batch, steps, dim, heads = size
    x, grad = torch.randn(batch, steps, dim, requires_grad=True), torch.randn(batch, steps, dim)
    calls: Contenders = {}
    for name, build in contenders(steps, dim, heads).items():
        if options.ours and name.split()[0] in ("official", "p-f"):
            continue
        layer = build()
        calls[name] = (output(layer), (x, *layer.parameters()))
    calls |= cells(*size)
    clock = time.process_time if options.cpu_time else time.perf_counter

    def forward(name: str) -> Callable[[], None]:
        def run() -> None:
            with torch.no_grad():
                calls[name][0](x)

        return run

    def both(name: str) -> Callable[[], None]:
        call, leaves = calls[name]
        return lambda: torch.autograd.grad(call(x), leaves, grad, allow_unused=True)

    for title, make in (("forward", forward), ("forward + backward", both)):
        taken = measure({name: make(name) for name in calls}, options.rounds, options.seconds, clock)
        report(f"{options.now} thread {title} {size}", taken)


def step(batch: int, dim: int, heads: int, options: argparse.Namespace) -> None:
    """One step with a state that is carried on, as in streaming, gradients off: a thousand of them as one run."""
    built = contenders(1, dim, heads)
    names = [BASE, "sLSTM head-wise", "sLSTM dense", "sLSTM layer", "mLSTM wrapper", "mLSTM layer"]
    x = torch.randn(batch, 1, dim)
    runs = {}
    for name in names:
        layer = built[name]()
        with torch.no_grad():
            _, state = layer(x)

        def run(layer: nn.Module = layer, state: Any = state) -> None:
            with torch.no_grad():
                for _ in range(1000):
                    _, state = layer(x, state)

        runs[name] = run
    taken = measure(runs, options.rounds, options.seconds, time.perf_counter)
    report(f"{options.now} thread 1000 steps, B {batch} D {dim}", taken)


def memory(options: argparse.Namespace) -> None:
    """Peak memory of forward and backward above the process's size before, each in a process of its own."""
    names = [BASE, "sLSTM head-wise", "sLSTM dense", "sLSTM layer", "mLSTM wrapper", "mLSTM layer", "coupled layer"]
    names += [] if options.ours else ["official sLSTM layer", "official mLSTM layer"]
    for name in names:
        row = []
        for steps in MEMORY_STEPS:
            if name.startswith("official") and steps > 2048:  # hours, or tens of gigabytes
                row.append("not run")
                continue
            command = [sys.executable, "-m", "benchmarks.cells", "--peak", name, "--steps", str(steps)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            row.append(f"{float(done.stdout):8.0f} MB")
        print(f"peak memory, B 4 D 128, T {MEMORY_STEPS}   {name:22} {'  '.join(row)}", flush=True)


def peak(name: str, steps: int) -> None:
    layer = contenders(steps, 128, 4)[name]()
    call = output(layer)
    call(torch.randn(4, 8, 128, requires_grad=True)).sum().backward()  # kernels loaded, threads running
    x = torch.randn(4, steps, 128, requires_grad=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    call(x).sum().backward()
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--parts", nargs="+", choices=["times", "step", "memory"], default=["times", "step", "memory"])
    parser.add_argument("--sizes", type=int, nargs="+", default=list(range(len(SIZES))), help="numbers of sizes")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--seconds", type=float, default=15.0, help="time for one contender at one size")
    parser.add_argument("--ours", action="store_true", help="leave the other packages out")
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        peak(options.peak, options.steps)
        return
    for options.now in list(options.threads):  # noqa: B020
        torch.set_num_threads(options.now)
        for number in options.sizes if "times" in options.parts else []:
            times(SIZES[number], options)
        if "step" in options.parts:
            for batch in (1, 32):
                step(batch, 128, 4, options)
    if "memory" in options.parts:
        memory(options)


if __name__ == "__main__":
    main()
