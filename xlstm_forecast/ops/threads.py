"""Tasks that leave the interpreter lock, spread over threads: as many as torch uses, safe for any number of callers."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

SMALL = 400_000  # operations under which a second thread costs more than it brings
_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def spread(task: Callable[..., None], arguments: Sequence[tuple[Any, ...]], operations: int) -> None:
    """Call task(*x) for every x of `arguments`, in this thread and in up to torch.get_num_threads() - 1 others.

    Each thread takes the next task when it is free. The first exception is raised here, after all threads have ended.
    """
    count = min(torch.get_num_threads(), len(arguments), 1 + operations // SMALL)
    if count <= 1:
        for x in arguments:
            task(*x)
        return
    numbers = itertools.count()

    def work() -> None:
        while (number := next(numbers)) < len(arguments):
            task(*arguments[number])

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
