"""Products of large matrices for the compiled layers, into given memory; tasks are spread over threads.

They use the kernels' own product where its vectors are the CPU's, else torch's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .projection import product
from .slstm_cpu import innermost, kernel, kind_of, lanes_of
from .threads import Numbers, Tasks, spread

# By vectors: columns of the second factor side by side, at most, and its rows, that fit the nearest cache.
PANELS = {"f32x16": (64, 128), "f64x8": (32, 128), "f32x8": (24, 256)}
BLOCK = 64  # rows of the first factor that are multiplied by them
TASK = 256  # rows per task
OUTER_ROWS = 512  # rows per task of an outer product, at most
OUTER_SPAN = 128  # steps of an outer product that are laid side by side
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
            (self.panel, self.span), size = PANELS[self.kind], matrix.element_size()
            self.panels, (row, column) = matrix.new_empty(inner * width), matrix.stride()
            lay = kernel("product_lay", self.kind).run
            lay(matrix.data_ptr(), row * size, column * size, inner, width, self.panel, self.panels.data_ptr())

    def multiply(self, a: Tensor, to: Tensor) -> None:
        """to (M, N) = a B, for a (M, K)."""
        whole = len(a) // STEP * STEP if self.kind is not None else 0
        if whole < len(a):
            to[whole:] = product(a[whole:], self.matrix.t())
        if self.kind is None or not whole:
            return
        a, size = innermost(a, 1), a.element_size()
        inner, width = self.matrix.shape

        def given(number: Numbers, _: Numbers, first: Numbers, rows: Numbers) -> tuple[Any, ...]:
            return (
                a.data_ptr() + first * a.stride(0) * size, a.stride(0) * size, self.panels.data_ptr(), inner,
                to.data_ptr() + first * width * size, width * size, rows, width, self.panel, BLOCK, self.span,
            )  # fmt: skip

        spread(kernel("product_panels", self.kind), given, Tasks(whole, TASK), whole * inner * width)


def add_outer(to: Tensor, a: Tensor, b: Tensor) -> None:
    """to (M, N) += a^T b, for a (T, M) and b (T, N)."""
    (steps, rows), width = a.shape, b.shape[1]
    kind = _kind(width, b.dtype)
    lanes = 1 if kind is None else lanes_of(kind)
    whole = 0 if kind is None or rows % lanes else steps // STEP * STEP
    if whole < steps:
        to += product(a[whole:].t(), b[whole:].t())
    if kind is None or not whole:
        return
    a, b, size = innermost(a, 1), innermost(b, 1), b.element_size()
    one = b.new_ones(1)
    some = -(-min(OUTER_ROWS, -(-rows // torch.get_num_threads())) // lanes) * lanes
    tasks = Tasks(rows, some)
    spare = b.new_empty(tasks.count, OUTER_SPAN * (width + some))

    def given(number: Numbers, _: Numbers, first: Numbers, count: Numbers) -> tuple[Any, ...]:
        return (
            a.data_ptr() + first * size, a.stride(0) * size, b.data_ptr(), b.stride(0) * size, whole,
            to.data_ptr() + first * width * size, width * size, count, width * size, OUTER_SPAN, PANELS[kind][0] * size,
            spare.data_ptr() + number * (spare.stride(0) * size), one.data_ptr(),
        )  # fmt: skip

    spread(kernel("product_outer", kind), given, tasks, steps * rows * width)
