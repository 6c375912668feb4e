"""Tasks that leave the interpreter lock, spread over threads: as many as torch uses, safe for any number of callers.

Where torch brings its own OpenMP library (Linux), the tasks run on the very threads that torch computes with. They wait
for work in a busy loop, so threads beside them would fight them for the cores. Elsewhere, and in a forked child, whose
parent keeps that library's threads, a pool of Python threads does the work.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

import xlstm_forecast

SMALL = 8_000_000  # operations under which a second thread costs more than it brings
_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}
_callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def spread(task: Callable[..., None], arguments: Sequence[tuple[Any, ...]], operations: int) -> None:
    """Call task(*x) for every x of `arguments`, in this thread and in up to torch.get_num_threads() - 1 others.

    Each thread takes the next task when it is free. The first exception is raised here, after all threads have ended.
    """
    threads = torch.get_num_threads()
    count = min(threads, len(arguments), 1 + operations // SMALL)
    if count <= 1:
        for x in arguments:
            task(*x)
        return
    numbers = itertools.count()

    def work() -> None:
        while (number := next(numbers)) < len(arguments):
            task(*arguments[number])

    parallel = openmp()
    if parallel is None:
        _in_pool(work, count)
    else:
        _in_team(parallel, work, threads)


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
        parallel.argtypes = (_callback, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        return parallel
    return None


def openmp() -> Any:
    """How to run a function in all threads of torch's team; None where Python threads do the work."""
    return _library() if os.getpid() == xlstm_forecast.PROCESS else None


def _in_team(parallel: Any, work: Callable[[], None], threads: int) -> None:
    """Run `work` in each thread of a team of as many as torch's own, which libgomp keeps from region to region."""
    failed: list[BaseException] = []

    def guarded(_: Any) -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    parallel(_callback(guarded), None, threads, 0)
    if failed:
        raise failed[0]


def _in_pool(work: Callable[[], None], count: int) -> None:
    """Run `work` in this thread and in count - 1 of the pool's."""
    others = [_pool(count - 1).submit(work) for _ in range(count - 1)]
    try:
        work()
    finally:
        for other in others:
            other.cancel()
    for other in others:
        if not other.cancelled():
            other.result()


def _pool(size: int) -> ThreadPoolExecutor:
    """This process's pool of `size` threads; a forked child gets its own, since threads do not survive a fork."""
    key = (os.getpid(), size)
    pool = _pools.get(key)
    return pool or _pools.setdefault(key, ThreadPoolExecutor(size, thread_name_prefix="xlstm_forecast"))
