"""Compiled kernels of large matrix products into given memory, imported when one is first asked for."""

from __future__ import annotations

from typing import Any

from .blocks import bytes_of
from .cpu_rows import ALL, matmul, multiply


def product_panels(
    kind: Any, a: int, a_row: int, panels: int, inner: int, to: int, to_row: int, rows: int, columns: int, panel: int,
    block: int, span: int,
) -> None:  # fmt: skip
    """to (rows, columns) = A B. B lies in panels of `panel` columns, each (inner, panel), of which `span` rows fit the
    nearest cache beside `block` rows of A; rows: a multiple of 4."""
    number = bytes_of(kind)
    for t in range(0, rows, block):
        some = min(block, rows - t)
        for k in range(0, inner, span):
            count, left = min(span, inner - k), a + t * a_row + k * number
            for column in range(0, columns, panel):
                right, here = panels + (column * inner + k * panel) * number, to + t * to_row + column * number
                if k == 0:
                    multiply(kind, some, left, a_row, right, panel * number, count, here, to_row, panel * number)
                else:
                    matmul(
                        kind, ALL, some, left, a_row, number, right, panel * number, count, here, to_row,
                        panel * number,
                    )  # fmt: skip


def product_outer(
    kind: Any, a: int, a_step: int, b: int, b_step: int, count: int, to: int, to_row: int, rows: int, size: int,
    span: int,
) -> None:  # fmt: skip
    """to += A^T B, for `rows` columns of A, a multiple of 4; size: bytes of a row of B; `span` steps at a time."""
    for t in range(0, count, span):
        some = min(span, count - t)
        matmul(
            kind, ALL, rows, a + t * a_step, bytes_of(kind), a_step, b + t * b_step, b_step, some, to, to_row, size
        )  # fmt: skip
