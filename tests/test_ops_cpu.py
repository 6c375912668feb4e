"""The compiled kernels under threads, forks, other processes and unusable cache folders."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.data import DataLoader, Dataset

from xlstm_forecast import mLSTM, ops, sLSTM
from xlstm_forecast.layers import MLSTMMixer
from xlstm_forecast.ops import mixer_cpu, mlstm_cpu, product_cpu, slstm_cpu, step_cpu, threads

cpu = pytest.importorskip("xlstm_forecast.ops.cpu")
blocks = pytest.importorskip("xlstm_forecast.ops.blocks")
Stream = Any  # three integers, as in `blocks`


def run(seed: int, batch: int = 20, steps: int = 30) -> list[Tensor]:
    """Outputs and gradients of one random problem for either op, cut into several tasks."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).requires_grad_()

    gates, R, b = draw(batch, steps, 2, 4, 16), draw(2, 16, 4, 16), draw(2, 4, 16)
    h, state = ops.slstm(gates, R, b, backend="cpu")
    q, k, v = (draw(batch, 2, steps, 16) for _ in range(3))
    i, f = draw(batch, 2, steps), draw(batch, 2, steps)
    y, memory = ops.mlstm(q, k, v, i, f, backend="cpu")
    loss = h.square().sum() + state.m.sum() + y.square().sum() + memory.C.sum()
    return [h.detach(), y.detach(), *torch.autograd.grad(loss, (gates, R, b, q, k, v, i, f))]


def watched(work: Callable[[], Any]) -> threads.Kernel:
    """A stand-in for a kernel: the threads that call it take every task in turn, and run `work` for each."""
    lock = threading.Lock()

    def serve(desk: int) -> None:
        words = (ctypes.c_int64 * 6).from_address(desk)
        while True:
            with lock:
                number, words[0] = words[0], words[0] + 1
            if number >= words[1]:
                return
            work()

    pointer = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(serve)
    address = ctypes.cast(pointer, ctypes.c_void_p).value or 0
    return threads.Kernel(lambda *given: None, "i", 0, address, pointer)


def callers(tasks: int = 6) -> set[int]:
    """The system's numbers of the threads that take part in a call of `spread`."""
    seen: set[int] = set()

    def work() -> None:
        time.sleep(0.02)
        seen.add(threading.get_native_id())

    threads.spread(watched(work), lambda number, *_: (number,), threads.Tasks(tasks, 1), 10**9)
    return seen


def weigh(kind: Any, to: int, parts: Stream, factor: float, divisor: int) -> None:
    """A kernel with arguments of every sort, which fails where the divisor is 0."""
    blocks.put_number(kind, to, factor * (parts[0] + 10 * parts[1] + 100 * parts[2]) / divisor)


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(left, right, strict=True))


@pytest.fixture(params=["torch's team", "a pool"])
def two_threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Two threads, of torch's OpenMP library where it is there, and of Python's."""
    if request.param == "a pool":
        monkeypatch.setattr(threads, "openmp", lambda: None)
    elif threads.openmp() is None:
        pytest.skip("torch brings no OpenMP library of its own here")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setattr(threads, "SMALL", 1)
    yield
    torch.set_num_threads(before)


def test_the_number_of_threads_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "SMALL", 1)
    before, results = torch.get_num_threads(), []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        results.append(run(0))
    torch.set_num_threads(before)
    assert same(results[0], results[1])
    assert same(results[0], results[2])


@pytest.mark.usefixtures("two_threads")
def test_work_is_done_by_other_threads_too() -> None:
    assert len(callers()) == 2
    assert len(callers(tasks=40)) == 2


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("operations", [0, 10**9], ids=["one thread", "two threads"])
@pytest.mark.parametrize("tiles", [1, 2, 11], ids=["one task", "few tasks", "many tasks"])
def test_every_task_gets_its_own_arguments_and_failures_arrive(tiles: int, operations: int) -> None:
    kernel, heads = blocks.compiled(weigh, "f64x8"), 2 if tiles > 1 else 1
    tasks = threads.Tasks(3 * tiles - (tiles > 1), 3, heads)  # the last tile is short
    out = torch.zeros(tasks.count, dtype=torch.float64)
    fails = tasks.count  # the number of a task that fails

    def given(number: Any, head: Any, first: Any, rows: Any) -> tuple[Any, ...]:
        return out.data_ptr() + 8 * number, (first, head, 7), 0.5, rows * (number != fails)

    threads.spread(kernel, given, tasks, operations)
    expected = [0.5 * (first + 10 * head + 700) / rows for _, head, first, rows in tasks]
    assert out.tolist() == expected
    assert tasks.count == tiles * heads
    assert len({*expected}) == tasks.count
    fails = tasks.count - 1
    plain = tasks.count == 1 or (tasks.count <= threads.ALONE and not operations)
    with pytest.raises(ZeroDivisionError if plain else RuntimeError):
        threads.spread(kernel, given, tasks, operations)


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments that are worked out one by one and by columns are compared at every call; names of kernels called."""
    called = []

    def spread(kernel: threads.Kernel, given: Any, tasks: threads.Tasks, operations: int) -> None:
        code = kernel.code[0].fndesc
        columns = dict(zip(code.args[1:], given(*tasks.columns()), strict=True))
        rows = [dict(zip(code.args[1:], given(*task), strict=True)) for task in tasks]
        for name, column in columns.items():
            first = column[0] if isinstance(column, tuple) else column
            assert [np.ravel(row[name])[0] for row in rows] == np.broadcast_to(first, tasks.count).tolist(), name
        for name in {"scratch", "spare", "record", "kept", "marks", "sums"} & {*columns}:
            places = [row[name] for row in rows]
            assert len({*places}) == len(places) or not any(places), f"tasks share {name}"
        called.append(code.qualname.rsplit("_", 1)[0])
        threads.spread(kernel, given, tasks, operations)

    for module in (slstm_cpu, mlstm_cpu, mixer_cpu, product_cpu, step_cpu):
        monkeypatch.setattr(module, "spread", spread)
    return called


def test_arguments_one_by_one_are_those_by_columns_and_no_tasks_share_memory(
    checked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run(4)
    monkeypatch.setattr(slstm_cpu, "PIECE", 1 << 14)  # many pieces of memory
    assert same(plain, run(4))
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    layers: list[Any] = [MLSTMMixer(64, 2), mLSTM(64, 64, num_heads=2, batch_first=True)]
    layers.append(sLSTM(64, 64, num_heads=2, projection="headwise", batch_first=True))
    try:
        for layer in layers:
            y, state = layer(torch.randn(70, 40, 64))
            y.square().sum().backward()
            with torch.no_grad():
                layer(torch.randn(70, 1, 64), state)
    finally:
        torch.set_num_threads(before)
    sequences = {f"{name}_{way}" for name in ("slstm", "mlstm", "mixer") for way in ("forward", "backward")}
    assert sequences | {"step_mixer", "step_mlstm"} <= {*checked}


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() not in ("AVX512", "AVX2"), reason="products are torch's")
def test_products_give_their_tasks_memory_of_their_own(checked: list[str]) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        y, _ = MLSTMMixer(128, 2)(torch.randn(70, 40, 128))
        y.square().sum().backward()
    finally:
        torch.set_num_threads(before)
    assert {"product_panels", "product_outer"} <= {*checked}


def test_no_thread_of_the_pool_is_at_work_after_an_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "openmp", lambda: None)
    monkeypatch.setattr(threads, "SMALL", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    busy: set[int] = set()

    def work() -> None:
        busy.add(threading.get_ident())
        time.sleep(0.3)
        busy.discard(threading.get_ident())

    def interrupted(desk: int) -> None:
        while not busy:
            time.sleep(0.001)
        raise KeyboardInterrupt

    kernel = watched(work)
    real = threads._worker(kernel.work)
    here = threading.get_ident()
    monkeypatch.setattr(
        threads, "_worker", lambda _: lambda desk: (interrupted if threading.get_ident() == here else real)(desk)
    )
    try:
        with pytest.raises(KeyboardInterrupt):
            threads.spread(kernel, lambda number, *_: (number,), threads.Tasks(6, 1), 10**9)
        assert not busy
    finally:
        torch.set_num_threads(before)


def test_each_layout_and_kind_has_an_index_of_its_own_in_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Processes that add two to one index at the same time can give both the same file."""
    from numba import config

    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))
    first = blocks.compiled(weigh, "f64x8")
    blocks.compiled(weigh, "f32x8")
    names = sorted(path.name.split(".py")[0].rsplit("-", 1)[0] for path in tmp_path.rglob("*.nbi"))
    assert names == ["cpu_team.work_isfi", "test_ops_cpu.weigh_f32x8", "test_ops_cpu.weigh_f64x8"]
    work = next(tmp_path.rglob("cpu_team.work_isfi*.nbc"))
    work.write_bytes(next(tmp_path.rglob("*weigh_f32x8*.nbc")).read_bytes())  # as it was, and is repaired by compiling
    out = torch.zeros(2, dtype=torch.float64)
    again = blocks.compiled(weigh, "f64x8")
    assert again.work != first.work
    threads.spread(
        again, lambda number, *_: (out.data_ptr() + 8 * number, (1, 0, 0), 3.0, 1), threads.Tasks(2, 1), 10**9
    )
    assert out.tolist() == [3.0, 3.0]


@pytest.mark.usefixtures("two_threads")
def test_eight_threads_calling_at_once_get_what_each_gets_alone() -> None:
    alone = [run(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            together = list(pool.map(run, range(8)))
            assert all(same(x, y) for x, y in zip(alone, together, strict=True))


def test_torchs_own_threads_do_the_work() -> None:
    if threads.openmp() is None:
        pytest.skip("torch brings no OpenMP library of its own here")
    before = torch.get_num_threads()
    torch.set_num_threads(2)

    try:
        first = callers()
        torch.randn(4_000_000).exp().sum()  # a parallel region of torch's own between the two
        assert callers() == first
        assert len(first) == 2
        running = {int(name) for name in os.listdir("/proc/self/task")}
        assert first <= running
    finally:
        torch.set_num_threads(before)


def test_threads_of_a_fork_are_a_pools() -> None:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=lambda: queue.put(threads.openmp() is None), daemon=True)
    child.start()
    assert queue.get(timeout=60)
    child.join(timeout=60)


def _child(queue: Any) -> None:
    queue.put([x.numpy() for x in run(3)])
    queue.put(len(callers()))


@pytest.mark.usefixtures("two_threads")
def test_a_forked_child_computes_the_same() -> None:
    here = run(3)  # the parent's pool is running now
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_child, args=(queue,), daemon=True)
    child.start()
    try:
        there = [torch.from_numpy(x) for x in queue.get(timeout=60)]
        assert queue.get(timeout=60) == 2
        child.join(timeout=60)
        assert child.exitcode == 0
    finally:
        child.kill()
    assert same(here, there)


LAZY = """
import os
import torch
torch.set_num_threads(2)
torch.randn(600, 600) @ torch.randn(600, 600)  # its threads do not survive the fork
import xlstm_forecast
x = torch.zeros(8, 256, 64)
child = os.fork()
if child == 0:
    rnn = xlstm_forecast.sLSTM(64, 64, batch_first=True, projection="headwise")
    with torch.no_grad():
        os._exit(0 if rnn(x)[0].shape == (8, 256, 64) else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
COMPILING = """
import os
import threading
import time
import torch
from xlstm_forecast.ops import slstm_cpu
entered = threading.Event()
def compiles(*name):
    entered.set()
    time.sleep(1)
slstm_cpu._compiled = compiles
other = threading.Thread(target=lambda: slstm_cpu.kernel("slstm_forward", "f32x8"))
other.start()
entered.wait()
child = os.fork()
if child == 0:
    slstm_cpu.kernel("slstm_forward", "f32x8")
    os._exit(0)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def finishes(script: str) -> None:
    """Run it in a process of its own; what it forks goes with it."""
    process = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    try:
        assert process.wait(timeout=60) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("script", [LAZY, COMPILING], ids=["before the kernels are imported", "while one compiles"])
def test_a_child_forked_early_does_not_wait_for_ever(script: str) -> None:
    finishes(script)


COPIED = """
import torch
from xlstm_forecast import sLSTM
rnn = sLSTM(64, 64, projection="headwise").to(memory_format=torch.channels_last)
x = torch.randn(1, 4, 64)
with torch.no_grad():
    first = rnn(x)[0]  # loads the kernel between copying the weights and reading them
    torch.testing.assert_close(first, rnn(x)[0], rtol=0, atol=0)
"""


def test_copies_of_strided_weights_live_through_a_first_step() -> None:
    finishes(COPIED)


def test_tracers_and_tensors_without_memory_take_the_torch_path() -> None:
    layer, x = mLSTM(8, 32, batch_first=True), torch.randn(2, 6, 8)
    with torch.no_grad():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(layer, x, check_trace=False)
        torch.testing.assert_close(traced(x)[0], layer(x)[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(make_fx(lambda y: layer(y)[0])(x)(x), layer(x)[0], rtol=1e-4, atol=1e-5)
        with FakeTensorMode(allow_non_fake_inputs=True):
            assert layer(torch.randn(2, 6, 8))[0].shape == (2, 6, 32)


class _Problems(Dataset[Tensor]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        return run(index)[0]


@pytest.mark.usefixtures("two_threads")
def test_loader_workers_compute_the_same() -> None:
    alone = [run(seed)[0] for seed in range(4)]
    loaded = list(DataLoader(_Problems(), batch_size=None, num_workers=2, multiprocessing_context="fork"))
    assert same(alone, loaded)


@pytest.mark.usefixtures("two_threads")
def test_joblib_processes_compute_the_same() -> None:
    joblib = pytest.importorskip("joblib")
    there = joblib.Parallel(n_jobs=2)(joblib.delayed(run)(seed) for seed in range(2))
    assert all(same(run(seed), found) for seed, found in enumerate(there))


def _refuse(*args: Any, **kwargs: Any) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("fault", ["read-only", "full"])
def test_a_cache_folder_that_cannot_be_written_is_no_error(
    fault: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    from numba.core import caching, config

    if fault == "read-only":
        monkeypatch.setattr(caching._CacheLocator, "ensure_cache_path", _refuse)
    else:
        monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))
        monkeypatch.setattr(caching.IndexDataCacheFile, "save", _refuse)
    kernel = blocks.compiled(cpu.slstm_forward, "f32x8")
    dim, steps = 8, 3
    gates, R, bias = torch.randn(1, steps, 1, 4, dim), torch.randn(1, dim, 4, dim), torch.randn(1, 4, dim)
    state, out = torch.zeros(5, 1, dim), torch.empty(1, steps, 1, dim)
    stride = gates.stride(1) * 4
    nothing = (0, 0, 0)
    kernel.run(
        (gates.data_ptr(), 0, stride), nothing, nothing, 0, 0, R.data_ptr(), bias.data_ptr(), state.data_ptr(),
        dim * 4, (out.data_ptr(), 0, dim * 4), 0, 0, steps, dim, 1, 8,
    )  # fmt: skip
    torch.testing.assert_close(out, ops.slstm(gates, R, bias, backend="reference")[0], atol=1e-6, rtol=0)
    assert not os.listdir(tmp_path) or fault == "full"


def test_a_change_of_the_instruction_emitter_makes_old_machine_code_stale() -> None:
    """numba knows the age of the kernel file alone, so the kind carries a digest of what kernels are made of."""
    assert blocks.signature(cpu.slstm_forward, "f32x8")[0].literal_value.endswith(blocks.DIGEST)
