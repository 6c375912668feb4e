"""Calls of a kernel, spread over threads: as many as torch uses, safe for any number of callers.

Where torch brings its own OpenMP library (Linux), the tasks run on the very threads that torch computes with. They wait
for work in a busy loop, so threads beside them would fight them for the cores. Elsewhere, and in a forked child, whose
parent keeps that library's threads, a pool of Python threads does the work.
"""

from __future__ import annotations

import ctypes
import functools
import os
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import xlstm_forecast

ALONE = 16  # tasks up to which one thread makes plain calls: a table takes longer to lay out
FEW = 8  # tasks up to which a table is laid out task by task
SMALL = 8_000_000  # operations under which a second thread costs more than it brings
_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}
Numbers = Any  # an integer, or an array of them
Given = Callable[[Numbers, Numbers, Numbers, Numbers], tuple[Any, ...]]
_worker = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Kernel(NamedTuple):
    """Machine code that is called for many tasks, by one thread or by several."""

    run: Callable[..., None]  # from Python, once
    layout: str  # a letter for each argument: i(nteger), f(loat) or s(tream), three integers
    address: int  # for `work`
    work: int  # address of a C function that takes a desk, see `spread`, and calls until no row is left
    code: Any  # what keeps the machine code alive


class Tasks:
    """Batch rows in tiles, by heads: what one call of a kernel does each."""

    def __init__(self, batch: int, tile: int, heads: int = 1):
        self.batch, self.tile, self.heads = batch, tile, heads
        self.count = heads * -(-batch // tile)

    def __iter__(self) -> Iterator[tuple[int, int, int, int]]:
        """Number, head, first row and rows of every task."""
        for number in range(self.count):
            first = number // self.heads * self.tile
            yield number, number % self.heads, first, min(self.tile, self.batch - first)

    def columns(self) -> tuple[Any, ...]:
        """The same as four arrays."""
        number = np.arange(self.count, dtype=np.int64)  # addresses are made of them
        first = number // self.heads * self.tile
        return number, number % self.heads, first, np.minimum(self.tile, self.batch - first)


def spread(kernel: Kernel, given: Given, tasks: Tasks, operations: int) -> None:
    """Call the kernel for every task, in this thread and in up to torch.get_num_threads() - 1 others.

    given(number, head, first row, rows): its arguments, where each of the four is one integer or an array of many.
    Threads take the next call when they are free; none of torch's enters the interpreter. A call that fails raises: the
    kernel's own error where this thread alone has few, else RuntimeError, after all have ended.
    """
    threads = torch.get_num_threads()
    helpers = min(threads, tasks.count, 1 + operations // SMALL)
    if helpers == 1 and tasks.count <= ALONE:
        for task in tasks:
            kernel.run(*given(*task))
        return
    table = _table(kernel.layout.replace("s", "iii"), given, tasks)
    items = (0, tasks.count, _address(table), table.strides[0], kernel.address, 0)  # next row, ..., failed
    desk = np.array(items, np.int64)
    parallel = openmp() if helpers > 1 else None
    if parallel is not None:
        parallel(kernel.work, _address(desk), threads, 0)
    else:
        _in_pool(_worker(kernel.work), desk, helpers)
    if desk[5]:
        raise RuntimeError("a compiled kernel of the recurrences failed: please report the sizes and the dtype")


def _table(letters: str, given: Given, tasks: Tasks) -> Any:
    """A row of arguments for each task, eight bytes each; few are packed one by one, many by columns."""
    if tasks.count <= FEW:
        form = letters.replace("i", "q").replace("f", "d") * tasks.count
        numbers = [x for task in tasks for x in _flat(given(*task))]
        return np.frombuffer(struct.pack(f"={form}", *numbers), np.int64).reshape(tasks.count, len(letters))
    table = np.empty((tasks.count, len(letters)), np.int64)
    floats = table.view(np.float64)
    for place, (letter, column) in enumerate(zip(letters, _flat(given(*tasks.columns())), strict=True)):
        (floats if letter == "f" else table)[:, place] = column
    return table


def _flat(arguments: tuple[Any, ...]) -> Iterator[Any]:
    for part in arguments:
        yield from part if isinstance(part, tuple) else (part,)


def _address(array: Any) -> int:
    return int(array.__array_interface__["data"][0])


@functools.cache
def _library() -> Any:
    """`GOMP_parallel` of the OpenMP library in torch's own folder, or None."""
    if not sys.platform.startswith("linux"):
        return None
    for path in sorted(Path(torch.__file__).with_name("lib").glob("libgomp*.so*")):
        try:
            parallel = ctypes.CDLL(str(path)).GOMP_parallel
        except (OSError, AttributeError):
            continue
        parallel.restype = None
        parallel.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        return parallel
    return None


def openmp() -> Any:
    """How to run a function in all threads of torch's team; None where Python threads do the work."""
    return _library() if os.getpid() == xlstm_forecast.PROCESS else None


def _in_pool(work: Callable[[int], None], desk: Any, count: int) -> None:
    """Have this thread and count - 1 of the pool's work at a desk.

    However it ends, and be it by Ctrl-C, no thread is at work when it has: what they write to may be freed then.
    """
    others: list[Future[None]] = []
    try:
        for _ in range(count - 1):
            others.append(_pool(count - 1).submit(lambda: work(_address(desk))))  # keeps the desk
        work(_address(desk))
    finally:
        desk[0] = desk[1]  # nothing is left for one that comes late
        _end(others)
    for other in others:
        if not other.cancelled():
            other.result()


def _end(others: Sequence[Future[None]]) -> None:
    """Cancel what has not begun and wait for the rest; an interruption meanwhile is raised afterwards."""
    begun = [other for other in others if not other.cancel()]
    interruption: BaseException | None = None
    while True:
        try:
            wait(begun)
            break
        except BaseException as error:
            interruption = error
    if interruption is not None:
        raise interruption


def _pool(size: int) -> ThreadPoolExecutor:
    """This process's pool of `size` threads; a forked child gets its own, since threads do not survive a fork."""
    key = (os.getpid(), size)
    pool = _pools.get(key)
    return pool or _pools.setdefault(key, ThreadPoolExecutor(size, thread_name_prefix="xlstm_forecast"))
