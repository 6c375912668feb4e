"""Recurrences run in float32 at least, also under autocast: their states add up over thousands of steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def full_precision(x: Tensor) -> Iterator[torch.dtype]:
    """Switch autocast off and name the dtype to compute in: x's own, or float32 where that is narrower."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    if not torch.is_autocast_enabled(x.device.type):
        yield dtype
    else:
        with torch.autocast(x.device.type, enabled=False):
            yield dtype
