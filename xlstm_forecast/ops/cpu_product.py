"""Compiled kernels of large matrix products into given memory, imported when one is first asked for."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit
from numba.core import cgutils

from .blocks import block, bytes_of, number_at, put_number, vector_bytes
from .cpu_rows import ALL, matmul, multiply, scale
from .simd import I64, Simd


def _emit_deal(simd: Simd, source: Any, to: Any, apart: Any, size: Any) -> None:
    """Vectors of a row to places `apart` bytes apart."""
    wide = ir.Constant(I64, simd.size * simd.lanes)
    with cgutils.for_range(simd.builder, simd.builder.udiv(size, wide), intp=I64) as loop:
        simd.store(simd.load(simd.at(source, (loop.index, wide))), simd.at(to, (loop.index, apart)))


_deal = block(_emit_deal)


@njit
def _panel(left: int, panel: int, vector: int) -> int:
    """Bytes of the next panel where so many are left: one vector alone is none, its sums would wait for each other."""
    return min(left, panel - vector if left == panel + vector else panel)


@njit
def _move(kind: Any, source: int, to: int) -> None:
    put_number(kind, to, number_at(kind, source))


def product_lay(
    kind: Any, b: int, b_row: int, b_column: int, inner: int, columns: int, panel: int, panels: int
) -> None:  # fmt: skip
    """B (inner, columns), of any strides, in panels, as `product_panels` takes it."""
    number, vector = bytes_of(kind), vector_bytes(kind)
    column, end = 0, columns * number
    while column < end:
        size = _panel(end - column, panel * number, vector)
        source, to = b + column // number * b_column, panels + column * inner
        if b_row < b_column:  # along the source, whichever way that is
            for c in range(size // number):
                for k in range(inner):
                    _move(kind, source + c * b_column + k * b_row, to + c * number + k * size)
        else:
            for k in range(inner):
                for c in range(size // number):
                    _move(kind, source + c * b_column + k * b_row, to + c * number + k * size)
        column += size


def product_panels(
    kind: Any, a: int, a_row: int, panels: int, inner: int, to: int, to_row: int, rows: int, columns: int, panel: int,
    most: int, span: int,
) -> None:  # fmt: skip
    """to (rows, columns) = A B; rows: a multiple of 4.

    B lies in panels of `panel` columns, the last of what is left (see `_panel`), each (inner, its columns), of which
    `span` rows fit the nearest cache beside `most` rows of A.
    """
    number, vector = bytes_of(kind), vector_bytes(kind)
    for t in range(0, rows, most):
        some = min(most, rows - t)
        for k in range(0, inner, span):
            count, left, column = min(span, inner - k), a + t * a_row + k * number, 0
            while column < columns * number:
                size = _panel(columns * number - column, panel * number, vector)
                right, here = panels + column * inner + k * size, to + t * to_row + column
                column += size
                if k == 0:
                    multiply(kind, some, left, a_row, right, size, count, here, to_row, size)
                else:
                    matmul(kind, ALL, some, left, a_row, number, right, size, count, here, to_row, size)


def product_outer(
    kind: Any, a: int, a_step: int, b: int, b_step: int, count: int, to: int, to_row: int, rows: int, size: int,
    span: int, panel: int, spare: int, one: int,
) -> None:  # fmt: skip
    """to += A^T B, for `rows` columns of A, a multiple of the lanes; size: bytes of a row of B.

    `span` steps of A, one vector beside the other, and of B, in panels of so many bytes, are laid side by side in
    `spare` first: rows that are a power of two apart push each other out of the cache. one: address of a 1.
    """
    number, vector = bytes_of(kind), vector_bytes(kind)
    line, left = rows * number, spare + span * size
    for t in range(0, count, span):
        some = min(span, count - t)
        for s in range(some):
            _deal(kind, (a + (t + s) * a_step, left + s * vector, span * vector, line))
            column = 0
            while column < size:
                wide = _panel(size - column, panel, vector)
                scale(kind, (b + (t + s) * b_step + column, spare + column * span + s * wide, one, wide))
                column += wide
        column = 0
        while column < size:
            wide = _panel(size - column, panel, vector)
            for row in range(0, line, vector):
                matmul(
                    kind, ALL, vector // number, left + row * span, number, vector, spare + column * span, wide, some,
                    to + row // number * to_row + column, to_row, wide,
                )  # fmt: skip
            column += wide
