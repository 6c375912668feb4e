"""What torch keeps for the whole process, and how a call neither depends on it nor changes it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def undisturbed() -> Iterator[None]:
    """Whatever the caller has set: float32 as default dtype, gradients at hand, torch's random numbers left alone.

    As a decorator: `@undisturbed()`. Where the default is another, the caller's other threads see float32 meanwhile.
    """
    before = torch.get_default_dtype()
    with torch.random.fork_rng(devices=()), torch.inference_mode(False):
        if before == torch.float32:
            yield
            return
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(before)
