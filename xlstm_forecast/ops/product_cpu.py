"""Products of large matrices for the compiled layers, into given memory; tasks are spread over threads.

They use the kernels' own product where its vectors are the CPU's, else torch's.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .projection import product
from .slstm_cpu import innermost, kernel, kind_of, lanes_of
from .threads import spread

PANEL = {16: 64, 8: 32}  # columns of the second factor side by side, at most, by the vectors' lanes
SPAN = 128  # of its rows, that fit the nearest cache
BLOCK = 64  # rows of the first factor that are multiplied by them
TASK = 256  # rows per task
OUTER_ROWS = 64  # rows per task of an outer product
OUTER_SPAN = 64  # steps of an outer product
FULL = {"AVX512": ("f32x16", "f64x8"), "AVX2": ("f32x8",)}  # by torch's name for the CPU: vectors that fill registers
STEP = 4  # rows, and terms of a sum, that the kernel takes at once


def _kind(width: int, dtype: torch.dtype) -> str | None:
    """The vectors for results of that width; None where torch's product is the one to take."""
    kind = kind_of(dtype, width)
    whole = kind in FULL.get(torch.backends.cpu.get_cpu_capability(), ())
    return kind if whole and width % lanes_of(kind) == 0 else None


class Factor:
    """The right-hand side B (K, N) of products A B, in the layout of the kernel."""

    def __init__(self, matrix: Tensor):
        inner, width = matrix.shape
        self.matrix, self.kind = matrix, _kind(width, matrix.dtype) if inner % STEP == 0 else None
        if self.kind is not None:
            self.panel = math.gcd(width, PANEL[lanes_of(self.kind)])
            self.panels = matrix.reshape(inner, width // self.panel, self.panel).transpose(0, 1).contiguous()

    def multiply(self, a: Tensor, to: Tensor) -> None:
        """to (M, N) = a B, for a (M, K)."""
        whole = len(a) // STEP * STEP if self.kind is not None else 0
        if whole < len(a):
            to[whole:] = product(a[whole:], self.matrix.t())
        if self.kind is None or not whole:
            return
        a, size = innermost(a, 1), a.element_size()
        run, (inner, width) = kernel("product_panels", self.kind), self.matrix.shape

        def task(first: int) -> None:
            run(
                a.data_ptr() + first * a.stride(0) * size, a.stride(0) * size, self.panels.data_ptr(), inner,
                to.data_ptr() + first * width * size, width * size, min(TASK, whole - first), width, self.panel,
                BLOCK, SPAN,
            )  # fmt: skip

        spread(task, [(first,) for first in range(0, whole, TASK)], whole * inner * width)


def add_outer(to: Tensor, a: Tensor, b: Tensor) -> None:
    """to (M, N) += a^T b, for a (T, M) and b (T, N)."""
    (steps, rows), width = a.shape, b.shape[1]
    kind = _kind(width, b.dtype)
    whole = 0 if kind is None or rows % STEP else steps // STEP * STEP
    if whole < steps:
        to += product(a[whole:].t(), b[whole:].t())
    if kind is None or not whole:
        return
    a, b, size = innermost(a, 1), innermost(b, 1), b.element_size()
    run = kernel("product_outer", kind)

    def task(first: int) -> None:
        run(
            a.data_ptr() + first * size, a.stride(0) * size, b.data_ptr(), b.stride(0) * size, whole,
            to.data_ptr() + first * width * size, width * size, min(OUTER_ROWS, rows - first), width * size, OUTER_SPAN,
        )  # fmt: skip

    spread(task, [(first,) for first in range(0, rows, OUTER_ROWS)], steps * rows * width)
