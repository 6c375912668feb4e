"""Compiled kernels of one step, without a record for backward: imported when one is first asked for."""

from __future__ import annotations

from typing import Any

from numba import njit

from .blocks import Stream, bytes_of, number_at, put_number, vector_bytes
from .cpu import slstm_forward
from .cpu_front import TAPS, conv_step, front_step
from .cpu_mixer import back, norm
from .cpu_mlstm import one_step
from .cpu_rows import clear, dot, matmul_narrow, matmul_two, scale, turn

_slstm = njit(slstm_forward)


@njit
def _copy(kind: Any, source: int, to: int, size: int, one: int) -> None:
    scale(kind, (source, to, one, size))


@njit
def _product(
    kind: Any, x: int, rows: int, inner: int, weight: int, width: int, to: int, turned: bool, room: int
) -> None:  # fmt: skip
    """to (rows, width) = x (rows, inner) W^T, for W (width, inner) as torch holds it; a vector's lanes divide both.

    turned: rows stand in the lanes of vectors, which divide their number, so that W is read as it lies, and no sum
    depends on how many rows there are; else each number is a product of two rows, the better way for very few.
    room: (inner + width) numbers for every row.
    """
    number = bytes_of(kind)
    if not turned:
        for r in range(rows):
            for column in range(width):
                total = dot(kind, x + r * inner * number, weight + column * inner * number, inner * number)
                put_number(kind, to + (r * width + column) * number, total)
        return
    tall, line = room + inner * rows * number, rows * number
    turn(kind, x, rows, inner, room)
    clear(kind, (tall, width * line))
    column, wide = 0, vector_bytes(kind)
    while column < line:
        pair = column + 2 * wide <= line
        for r in range(0, width, 4):
            arguments = (
                weight + r * inner * number, inner * number, number, room + column, line, inner,
                tall + r * line + column, line,
            )  # fmt: skip
            if pair:
                matmul_two(kind, arguments)
            else:
                matmul_narrow(kind, arguments)
        column += 2 * wide if pair else wide
    turn(kind, tall, width, rows, to)


@njit
def _lay_out(kind: Any, conv: int, bias: int, query_key: int, value: int, norm: int, to: int, inner: int) -> None:
    """The parameters that `front_step` and `back` read, from torch's layout to lines: convolution, maps, norm."""
    number = bytes_of(kind)
    line = inner * number
    for c in range(inner):
        here = to + c * number
        for j in range(TAPS):
            put_number(kind, here + j * line, number_at(kind, conv + (c * TAPS + j) * number))
        put_number(kind, here + TAPS * line, number_at(kind, bias + c * number))
        for part in range(3):
            source = value if part == 2 else query_key + part * 4 * line
            for d in range(4):
                weight = number_at(kind, source + (c // 4 * 16 + d * 4 + c % 4) * number)
                put_number(kind, here + (TAPS + 1 + 4 * part + d) * line, weight)
        put_number(kind, here + 17 * line, number_at(kind, norm + c * number) + 1.0)


@njit
def _row(
    kind: Any, here: int, before: int, after: int, gates: int, gates_bias: int, skip: int, old: tuple[int, int, int],
    new: tuple[int, int, int], z: int, lines: int, heads: int, dim: int, eps: float,
) -> None:  # fmt: skip
    """One row's step; here: its a, then g. lines: what `_lay_out` wrote, then room for six lines and the gates."""
    number = bytes_of(kind)
    row, line = dim * number, heads * dim * number
    u = lines + 18 * line
    q, h, pre = u + line, u + 4 * line, u + 5 * line
    factors = pre + 2 * heads * number
    for at in range(0, line, vector_bytes(kind)):
        front_step(
            kind,
            (here + at, before + at, line, lines + at, lines + (TAPS + 1) * line + at, u + at, q + at, q + line + at,
             q + 2 * line + at),
        )  # fmt: skip
    constants = lines - vector_bytes(kind)
    one = constants + 2 * number
    _copy(kind, before + line, after, 2 * line, one)
    _copy(kind, here, after + 2 * line, line, one)
    for gate in range(2 * heads):
        sums = dot(kind, gates + gate * 3 * line, q, 3 * line)
        put_number(kind, pre + gate * number, sums + number_at(kind, gates_bias + gate * number))
    for head in range(heads):
        at = head * row
        one_step(
            kind, q + at, q + line + at, q + 2 * line + at, float(number_at(kind, pre + head * number)),
            float(number_at(kind, pre + (heads + head) * number)), h + at, old[0] + head * dim * row, old[1] + at,
            old[2] + head * number, new[0] + head * dim * row, new[1] + at, new[2] + head * number, factors, dim, dim,
            eps,
        )  # fmt: skip
        g, out = here + line + at, z + at
        back(kind, row, (h + at, u + at, g, lines + 17 * line + at, skip + at, out, row, constants, g, out))


def step_mixer(
    kind: Any, x: int, up: int, conv: int, conv_bias: int, query_key: int, value: int, gates: int, gates_bias: int,
    norm: int, skip: int, down: int, past: int, old_C: int, old_n: int, old_m: int, next_past: int, C: int, n: int,
    m: int, y: int, scratch: int, width: int, heads: int, dim: int, rows: int, room: int, eps: float,
    norm_eps: float,
) -> None:  # fmt: skip
    """One step of `rows` batch rows, without a record for backward; parameters as torch holds them.

    From x (rows, width), past, old C, n, m to the next ones, and y (rows, width). room: rows that there is scratch for,
    a multiple of the lanes, or `rows` where they are very few; scratch: as `step_cpu.mixer` has it.
    """
    number, inner = bytes_of(kind), heads * dim
    line, wide = inner * number, width * number
    put_number(kind, scratch, 1.0 / dim)
    put_number(kind, scratch + number, norm_eps)
    put_number(kind, scratch + 2 * number, 1.0)
    one, turned = scratch + 2 * number, room * number % vector_bytes(kind) == 0
    lines = scratch + vector_bytes(kind)
    outer = lines + 24 * line + (2 * heads + 16) * number  # x, later y
    a = outer + room * wide
    z = a + 2 * room * line
    more = z + room * line
    _copy(kind, x, outer, rows * wide, one)
    clear(kind, (outer + rows * wide, (room - rows) * wide))
    clear(kind, (z + rows * line, (room - rows) * line))
    _product(kind, outer, room, width, up, 2 * inner, a, turned, more)
    _lay_out(kind, conv, conv_bias, query_key, value, norm, lines, inner)
    for r in range(rows):
        place = r * heads * number
        _row(
            kind, a + 2 * r * line, past + r * (TAPS - 1) * line, next_past + r * (TAPS - 1) * line, gates, gates_bias,
            skip, (old_C + dim * r * line, old_n + r * line, old_m + place),
            (C + dim * r * line, n + r * line, m + place), z + r * line, lines, heads, dim, eps,
        )  # fmt: skip
    _product(kind, z, room, inner, down, width, outer, turned, more)
    _copy(kind, outer, y, rows * wide, one)


def step_mlstm(
    kind: Any, x: int, qkv: int, gates: int, gates_bias: int, scale_of: int, old_C: int, old_n: int, old_m: int, C: int,
    n: int, m: int, y: int, scratch: int, width: int, heads: int, dim: int, rows: int, room: int, eps: float,
    norm_eps: float,
) -> None:  # fmt: skip
    """One step of projections, recurrence and per-head norm of an mLSTM, without a record for backward.

    From x (rows, width), old C, n, m to the next ones, and y (rows, heads, dim); weights as torch holds them. room: as
    in `step_mixer`; scratch: 64 numbers and room (2 width + 6 heads dim).
    """
    number, inner = bytes_of(kind), heads * dim
    line, wide, row = inner * number, width * number, dim * number
    one, factors = scratch + 2 * number, scratch + 3 * number
    put_number(kind, scratch, 1.0 / dim)
    put_number(kind, scratch + number, norm_eps)
    put_number(kind, one, 1.0)
    outer = scratch + vector_bytes(kind)
    a = outer + room * wide
    _copy(kind, x, outer, rows * wide, one)
    clear(kind, (outer + rows * wide, (room - rows) * wide))
    turned = room * number % vector_bytes(kind) == 0
    _product(kind, outer, room, width, qkv, 3 * inner, a, turned, a + 3 * room * line)
    for r in range(rows):
        own, here = outer + r * wide, a + 3 * r * line
        for head in range(heads):
            at, place = head * row, r * heads + head
            i = dot(kind, gates + head * wide, own, wide) + number_at(kind, gates_bias + head * number)
            f = dot(kind, gates + (heads + head) * wide, own, wide)
            f += number_at(kind, gates_bias + (heads + head) * number)
            square, flat, h = place * dim * row, place * row, y + place * row
            one_step(
                kind, here + at, here + line + at, here + 2 * line + at, float(i), float(f), h, old_C + square,
                old_n + flat, old_m + place * number, C + square, n + flat, m + place * number, factors, dim, dim, eps,
            )  # fmt: skip
            norm(kind, (h, scale_of + at, row, scratch))


def step_slstm(
    kind: Any, gates: Stream, x: Stream, u: Stream, W: int, inner: int, R: int, bias: int, old_h: int, old_c: int,
    old_n: int, old_m: int, h: int, c: int, n: int, m: int, out: int, scratch: int, heads: int, dim: int, rows: int,
) -> None:  # fmt: skip
    """One step of all heads of an sLSTM: what `cpu.slstm_forward` does for one head, from the old state to the new one.

    gates, x, u: as there, at the first row and head, with bytes from head to head in the place of those between steps;
    states and out: (rows, heads, dim). scratch: 5 planes (rows, dim), where x has an address the gates (rows, 4, dim),
    and a number.
    """
    row, plane = dim * bytes_of(kind), rows * dim * bytes_of(kind)
    room = scratch + 5 * plane
    one = room + (4 * plane if x[0] != 0 else 0)
    put_number(kind, one, 1.0)
    for head in range(heads):
        at = head * row
        for r in range(rows):
            place = r * heads * row + at
            for part, state in enumerate((old_h, old_c, old_n, old_m)):
                _copy(kind, state + place, scratch + part * plane + r * row, row, one)
        own = (gates[0] + head * gates[2], gates[1], 0) if x[0] == 0 else (room, 4 * row, 0)
        of_x = (x[0] and x[0] + head * x[2], x[1], 0)
        of_u = (u[0] and u[0] + head * u[2], u[1], 0)
        _slstm(
            kind, own, of_x, of_u, W + head * inner * 4 * row, inner, R + head * dim * 4 * row, bias + head * 4 * row,
            scratch, plane, (out + at, heads * row, 0), 0, 0, 1, dim, rows, 1,
        )  # fmt: skip
        for r in range(rows):
            place = r * heads * row + at
            for part, state in ((4, h), (1, c), (2, n), (3, m)):
                _copy(kind, scratch + part * plane + r * row, state + place, row, one)


_step_slstm = njit(step_slstm)


@njit
def _convolve(
    kind: Any, x: int, past: int, conv: int, bias: int, next_past: int, u: int, lines: int, rows: int, width: int,
    one: int,
) -> None:  # fmt: skip
    """u (rows, width) = SiLU of the causal convolution of the last inputs (rows, 3, width) and x, and the next inputs.

    lines: room for (5, width): the taps and the bias, a line each.
    """
    number = bytes_of(kind)
    line = width * number
    for c in range(width):
        for j in range(TAPS):
            put_number(kind, lines + j * line + c * number, number_at(kind, conv + (c * TAPS + j) * number))
    _copy(kind, bias, lines + TAPS * line, line, one)
    for r in range(rows):
        before, after = past + r * (TAPS - 1) * line, next_past + r * (TAPS - 1) * line
        for at in range(0, line, vector_bytes(kind)):
            conv_step(kind, (x + r * line + at, before + at, line, lines + at, u + r * line + at))
        _copy(kind, before + line, after, 2 * line, one)
        _copy(kind, x + r * line, after + 2 * line, line, one)


def step_slstm_layer(
    kind: Any, x: int, past: int, conv: int, conv_bias: int, W: int, R: int, bias: int, scale_of: int, old_h: int,
    old_c: int, old_n: int, old_m: int, next_past: int, h: int, c: int, n: int, m: int, y: int, scratch: int,
    inner: int, heads: int, dim: int, rows: int, norm_eps: float,
) -> None:  # fmt: skip
    """One step of an sLSTM layer: convolution, head-wise projection, recurrence, per-head norm.

    x: (rows, heads, inner), which are as many numbers a row as the output y (rows, heads, dim) has. scratch:
    64 numbers, 6 lines (heads inner), and what `step_slstm` needs.
    """
    number = bytes_of(kind)
    row, wide = dim * number, heads * inner * number
    put_number(kind, scratch, 1.0 / dim)
    put_number(kind, scratch + number, norm_eps)
    put_number(kind, scratch + 2 * number, 1.0)
    lines = scratch + vector_bytes(kind)
    u = lines + (TAPS + 1) * wide
    _convolve(kind, x, past, conv, conv_bias, next_past, u, lines, rows, heads * inner, scratch + 2 * number)
    of_x, of_u = (x, wide, inner * number), (u, wide, inner * number)
    _step_slstm(
        kind, (0, 0, 0), of_x, of_u, W, inner, R, bias, old_h, old_c, old_n, old_m, h, c, n, m, y, u + rows * wide,
        heads, dim, rows,
    )  # fmt: skip
    for place in range(rows * heads):
        norm(kind, (y + place * row, scale_of + place % heads * row, row, scratch))
