"""Compiled mLSTM kernels in chunkwise form, imported when one is first asked for.

A kernel runs one task (some batch rows of one head) chunk by chunk; a chunk's matrices stay in cache. Letters as in
`chunkwise`: within a chunk b is the running sum of log f, `lead` b - m, `source` i - b, so that step s weighs
exp(lead_t + source_s) at step t; `inter` is the weight of the chunk's start state, `w` that of a step in its end state.
"""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils

from .blocks import Stream, block, bytes_of, intrinsic, number_at, product, put_number, vector_bytes
from .simd import I64, Simd, Value, width

ALL, LOWER, UPPER, TRIANGLE = 0, 1, 2, 3  # A whole; A lower or upper triangular; only the lower triangle is wanted


def _emit_matmul(
    simd: Simd, a: Any, a_row: Any, a_step: Any, b: Any, b_step: Any, count: Any, to: Any, to_row: Any, *, columns: int,
    split: int,
) -> None:  # fmt: skip
    """to += A B for four rows."""
    beside = simd.size * simd.lanes
    places = [[simd.at(to, (r, to_row), (column, beside)) for column in range(columns)] for r in range(4)]
    start: list[list[Value | None]] = [[simd.load(x) for x in row] for row in places]
    total = product(simd, start, count, a, a_row, a_step, b, beside, b_step, split)
    for r in range(4):
        for column in range(columns):
            simd.store(total[r][column], places[r][column])


def _over_row(simd: Simd, size: Any, body: Any) -> None:
    """body(byte offset) for every vector of a row."""
    step = ir.Constant(I64, simd.size * simd.lanes)
    with cgutils.for_range(simd.builder, simd.builder.udiv(size, step), intp=I64) as loop:
        body(simd.builder.mul(loop.index, step))


def _emit_scale(simd: Simd, source: Any, to: Any, factor: Any, size: Any) -> None:
    """to = factor * source over a row; factor: address of a number."""
    scale = simd.spread(factor)
    _over_row(simd, size, lambda at: simd.store(simd.load(simd.at(source, at)) * scale, simd.at(to, at)))


def _emit_add(simd: Simd, source: Any, to: Any, factor: Any, size: Any) -> None:
    """to += factor * source over a row."""
    scale = simd.spread(factor)
    _over_row(
        simd,
        size,
        lambda at: simd.store(simd.load(simd.at(to, at)) + simd.load(simd.at(source, at)) * scale, simd.at(to, at)),
    )


def _emit_clear(simd: Simd, row: Any, size: Any) -> None:
    """row = 0."""
    _over_row(simd, size, lambda at: simd.store(0.0, simd.at(row, at)))


def _emit_turn(simd: Simd, source: Any, source_row: Any, to: Any, to_row: Any) -> None:
    """to = the transpose of a square of as many rows as lanes: in each stage, rows a power of 2 apart trade lanes."""
    rows = [simd.load(simd.at(source, (r, source_row))).value for r in range(simd.lanes)]
    step = 1
    while step < simd.lanes:
        upper = [k if k & step == 0 else simd.lanes + k - step for k in range(simd.lanes)]
        lower = [k + step if k & step == 0 else simd.lanes + k for k in range(simd.lanes)]
        masks = [ir.Constant(ir.VectorType(ir.IntType(32), simd.lanes), order) for order in (upper, lower)]
        for r in range(simd.lanes):
            if r & step == 0:
                pair = rows[r], rows[r + step]
                rows[r], rows[r + step] = (simd.builder.shuffle_vector(*pair, mask) for mask in masks)
        step *= 2
    for r, row in enumerate(rows):
        simd.store(Value(simd, row), simd.at(to, (r, to_row)))


def _emit_exp(simd: Simd, row: Any, size: Any) -> None:
    """row = exp(row), row <= 0."""
    _over_row(simd, size, lambda at: simd.store(simd.exp(simd.load(simd.at(row, at))), simd.at(row, at)))


def _emit_log_sigmoid(simd: Simd, source: Any, to: Any, size: Any) -> None:
    """to = log sigmoid of a row."""

    def body(at: Any) -> None:
        x = simd.load(simd.at(source, at))
        simd.store(simd.pick("<", x, 0.0, x, 0.0) - simd.log1p(simd.exp(simd.negative_abs(x))), simd.at(to, at))

    _over_row(simd, size, body)


def _emit_recur(
    simd: Simd, old: Any, C: Any, q: Any, k: Any, v: Any, forget: Any, take: Any, to: Any, dk: Any, size: Any, *,
    columns: int,
) -> None:  # fmt: skip
    """C = forget old + take k v and to = q C for a few vectors of columns, in one pass over the memory."""
    builder, wide = simd.builder, simd.size * simd.lanes
    keep, gain = simd.spread(forget), simd.spread(take)
    fresh = [simd.load(simd.at(v, (column, wide))) * gain for column in range(columns)]
    sums = [cgutils.alloca_once_value(builder, simd.lift(0.0).value) for _ in range(columns)]
    with cgutils.for_range(builder, dk, intp=I64) as loop:
        here = (loop.index, simd.size)
        key, query = simd.spread(simd.at(k, here)), simd.spread(simd.at(q, here))
        for column in range(columns):
            memory = simd.load(simd.at(old, (loop.index, size), (column, wide))) * keep + fresh[column] * key
            simd.store(memory, simd.at(C, (loop.index, size), (column, wide)))
            builder.store((Value(simd, builder.load(sums[column])) + memory * query).value, sums[column])
    for column in range(columns):
        simd.store(Value(simd, builder.load(sums[column])), simd.at(to, (column, wide)))


def _emit_weigh(
    simd: Simd, scores: Any, source: Any, order: Any, lead: Any, step: Any, weights: Any, to: Any, size: Any
) -> None:
    """weights = exp(lead + source) where order <= step, else 0; to = scores * weights."""
    start, now = simd.spread(lead), simd.spread(step)

    def body(at: Any) -> None:
        weight = simd.exp(simd.load(simd.at(source, at)) + start)
        weight = simd.pick("<=", simd.load(simd.at(order, at)), now, weight, 0.0)
        simd.store(weight, simd.at(weights, at))
        simd.store(simd.load(simd.at(scores, at)) * weight, simd.at(to, at))

    _over_row(simd, size, body)


def _emit_gradient(simd: Simd, row: Any, extra: Any, weights: Any, size: Any) -> None:
    """row = (row + extra) * weights."""
    more = simd.spread(extra)
    _over_row(
        simd,
        size,
        lambda at: simd.store((simd.load(simd.at(row, at)) + more) * simd.load(simd.at(weights, at)), simd.at(row, at)),
    )


_matmul_one = block(_emit_matmul, columns=1, split=4)
_matmul_two = block(_emit_matmul, columns=2, split=2)
_matmul_four = block(_emit_matmul, columns=4, split=1)
_scale = block(_emit_scale)
_add = block(_emit_add)
_exp = block(_emit_exp)
_clear = block(_emit_clear)
_turn_square = block(_emit_turn)
_recur_four = block(_emit_recur, columns=4)
_recur_one = block(_emit_recur, columns=1)
_log_sigmoid = block(_emit_log_sigmoid)
_weigh = block(_emit_weigh)
_gradient = block(_emit_gradient)


@intrinsic(prefer_literal=True)
def _dot(typingctx: Any, kind: Any, a: Any, b: Any, size: Any) -> Any:
    """Sum over a row of a * b."""
    result = types.float32 if width(kind.literal_value)[0] == 32 else types.float64

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        simd = Simd(builder, kind.literal_value)
        total = cgutils.alloca_once_value(builder, simd.lift(0.0).value)

        def body(at: Any) -> None:
            more = simd.load(simd.at(args[1], at)) * simd.load(simd.at(args[2], at))
            builder.store((Value(simd, builder.load(total)) + more).value, total)

        _over_row(simd, args[3], body)
        lanes = [builder.extract_element(builder.load(total), ir.Constant(I64, k)) for k in range(simd.lanes)]
        while len(lanes) > 1:
            lanes = [builder.fadd(x, y) for x, y in zip(lanes[::2], lanes[1::2], strict=True)]
        return lanes[0]

    return result(kind, types.int64, types.int64, types.int64), generate


@njit
def _matmul(
    kind: Any, shape: int, rows: int, a: int, a_row: int, a_step: int, b: int, b_step: int, count: int, to: int,
    to_row: int, size: int,
) -> None:  # fmt: skip
    """to += A B for `rows` rows, a multiple of 4. size: bytes of a row of B. shape: what is 0 or unwanted."""
    wide, number = vector_bytes(kind), bytes_of(kind)
    column = 0
    while column < size:
        left = (size - column) // wide
        take = 4 if left >= 4 else 2 if left >= 2 else 1
        first = 0
        if shape == TRIANGLE:
            first = column // number // 4 * 4
        for r in range(first, rows, 4):
            start = r if shape == UPPER else 0
            some = min(count, r + 4) if shape == LOWER else count - start
            arguments = (
                a + r * a_row + start * a_step, a_row, a_step, b + column + start * b_step, b_step, some,
                to + r * to_row + column, to_row,
            )  # fmt: skip
            if take == 4:
                _matmul_four(kind, arguments)
            elif take == 2:
                _matmul_two(kind, arguments)
            else:
                _matmul_one(kind, arguments)
        column += take * wide


@njit
def _turn(kind: Any, source: int, rows: int, columns: int, to: int) -> None:
    """to (columns, rows) = the transpose of source (rows, columns), both multiples of the lanes."""
    number, wide = bytes_of(kind), vector_bytes(kind)
    lanes = wide // number
    for r in range(0, rows, lanes):
        for column in range(0, columns, lanes):
            place = source + (r * columns + column) * number
            _turn_square(kind, (place, columns * number, to + (column * rows + r) * number, rows * number))


@njit
def _fetch(kind: Any, stream: Stream, r: int, t: int, count: int, length: int, factor: int, to: int, size: int) -> None:
    """Rows t to t + count of a stream times a factor, zeros behind them up to `length` rows."""
    for s in range(count):
        _scale(kind, (stream[0] + r * stream[1] + (t + s) * stream[2], to + s * size, factor, size))
    _clear(kind, (to + count * size, (length - count) * size))


@njit
def _gates(kind: Any, i: int, f: int, m: float, count: int, length: int, rows: int) -> tuple[float, float]:
    """The weights of one chunk from its gates: fills `rows` (order, source, lead, inter, w, m, ones, log f; length
    numbers each) and returns the weight of the start state in the end state, and the stabiliser at the end."""
    number = bytes_of(kind)
    line = length * number
    for t in range(length):
        put_number(kind, rows + 7 * line + t * number, number_at(kind, f + t * number) if t < count else 0.0)
    _log_sigmoid(kind, (rows + 7 * line, rows + 7 * line, line))
    start, b = m, 0.0
    for t in range(length):
        at = rows + t * number
        gate = -math.inf
        if t < count:
            log_f = number_at(kind, at + 7 * line)
            b += log_f
            gate = number_at(kind, i + t * number)
            m = max(log_f + m, gate)
        put_number(kind, at, t)
        put_number(kind, at + line, gate - b)
        put_number(kind, at + 2 * line, b - m)
        put_number(kind, at + 3 * line, b + start - m)
        put_number(kind, at + 5 * line, m)
        put_number(kind, at + 6 * line, 1.0)
    for t in range(length):
        at = rows + t * number
        put_number(kind, at + 4 * line, number_at(kind, at + line) + (b - m))
    _exp(kind, (rows + 3 * line, 2 * line))
    return math.exp(b + start - m), m


@njit
def _weights(
    kind: Any, q: int, turned: int, dk: int, length: int, rows: int, scores: int, weights: int, p: int
) -> None:
    """weights (L, L) and p = (q k^T) * weights; turned: k as (dk, L)."""
    number = bytes_of(kind)
    line = length * number
    _clear(kind, (scores, length * line))
    _matmul(kind, TRIANGLE, length, q, dk * number, number, turned, line, dk, scores, line, line)
    for t in range(length):
        at = t * number
        row = t * line
        _weigh(kind, (scores + row, rows + line, rows, rows + 2 * line + at, rows + at, weights + row, p + row, line))


@njit
def _inverse(kind: Any, den: float, m: float, eps: float) -> tuple[float, bool]:
    """1 / (max(|den|, exp(-m)) + eps), and whether |den| is the larger; both sides times exp(min(m, 0)), see
    `reference.normalise`."""
    scale, floor = math.exp(min(m, 0.0)), math.exp(-max(m, 0.0))
    return scale / (max(abs(den) * scale, floor) + eps * scale), abs(den) * scale > floor


def mlstm_forward(
    kind: Any, q: Stream, k: Stream, v: Stream, i: Stream, f: Stream, h: Stream, C: Stream, n: Stream, m: Stream,
    kept: int, marks: int, scratch: int, steps: int, dk: int, dv: int, length: int, rows: int, eps: float,
) -> None:  # fmt: skip
    """One task of the forward pass: `rows` batch rows of one head.

    C, n, m: the start state, left at the last step. length: steps per chunk, a multiple of the vectors' lanes. kept:
    (rows, chunks + 1, dk, dv + 1), C and n at every chunk's start and at the end, or 0; marks: (rows, 2 steps + 1), m
    from the start on and the denominators.
    """
    number = bytes_of(kind)
    key, value, line = dk * number, dv * number, length * number
    chunks = (steps + length - 1) // length
    Q = scratch
    K, V, T = Q + length * key, Q + 2 * length * key, Q + 2 * length * key + length * value
    S = T + length * key
    P, H = S + 2 * length * line, S + 3 * length * line
    gates = H + length * value
    factors = gates + 8 * line
    put_number(kind, factors, 1.0)
    put_number(kind, factors + number, 1.0 / math.sqrt(dk))
    for r in range(rows):
        at_C, at_n, at_m = C[0] + r * C[1], n[0] + r * n[1], m[0] + r * m[1]
        store = kept + r * (chunks + 1) * (dk * value + key)
        mark = marks + r * (2 * steps + 1) * number
        now = float(number_at(kind, at_m))
        if kept:
            put_number(kind, mark, now)
        for chunk in range(chunks):
            t = chunk * length
            count = min(length, steps - t)
            if kept:
                _scale(kind, (at_C, store, factors, dk * value))
                _scale(kind, (at_n, store + dk * value, factors, key))
                store += dk * value + key
            _fetch(kind, q, r, t, count, length, factors, Q, key)
            _fetch(kind, k, r, t, count, length, factors + number, K, key)
            _fetch(kind, v, r, t, count, length, factors, V, value)
            keep, now = _gates(
                kind, i[0] + r * i[1] + t * number, f[0] + r * f[1] + t * number, now, count, length, gates
            )
            _turn(kind, K, length, dk, T)
            _weights(kind, Q, T, dk, length, gates, S, S + length * line, P)
            _clear(kind, (H, length * value))
            for s in range(length):
                _scale(kind, (Q + s * key, Q + s * key, gates + 3 * line + s * number, key))
                _scale(kind, (K + s * key, K + s * key, gates + 4 * line + s * number, key))
            _matmul(kind, LOWER, length, P, line, number, V, value, length, H, value, value)
            _matmul(kind, ALL, length, Q, key, number, at_C, value, dk, H, value, value)
            for s in range(count):
                den = _dot(kind, Q + s * key, at_n, key) + _dot(kind, P + s * line, gates + 6 * line, line)
                stabiliser = number_at(kind, gates + 5 * line + s * number)
                put_number(kind, factors + 2 * number, _inverse(kind, den, stabiliser, eps)[0])
                _scale(kind, (H + s * value, h[0] + r * h[1] + (t + s) * h[2], factors + 2 * number, value))
                if kept:
                    put_number(kind, mark + (t + s + 1) * number, stabiliser)
                    put_number(kind, mark + (steps + 1 + t + s) * number, den)
            put_number(kind, factors + 2 * number, keep)
            _scale(kind, (at_C, at_C, factors + 2 * number, dk * value))
            _scale(kind, (at_n, at_n, factors + 2 * number, key))
            _matmul(kind, ALL, dk, K, number, key, V, value, length, at_C, value, value)
            for s in range(count):
                _add(kind, (K + s * key, at_n, factors, key))
        put_number(kind, at_m, now)
        if kept:
            _scale(kind, (at_C, store, factors, dk * value))
            _scale(kind, (at_n, store + dk * value, factors, key))


def mlstm_steps(
    kind: Any, q: Stream, k: Stream, v: Stream, i: Stream, f: Stream, h: Stream, old_C: Stream, old_n: Stream,
    old_m: Stream, C: Stream, n: Stream, m: Stream, scratch: int, steps: int, dk: int, dv: int, rows: int, eps: float,
) -> None:  # fmt: skip
    """The recurrent form, without a record for backward: best where steps are few. From the old state to C, n, m."""
    number = bytes_of(kind)
    wide, size, keep, take = vector_bytes(kind), dv * number, scratch, scratch + number
    for r in range(rows):
        before_C, before_n, before_m = old_C[0] + r * old_C[1], old_n[0] + r * old_n[1], old_m[0] + r * old_m[1]
        at_C, at_n, at_m = C[0] + r * C[1], n[0] + r * n[1], m[0] + r * m[1]
        for t in range(steps):
            gate = float(number_at(kind, i[0] + r * i[1] + t * i[2]))
            pre = float(number_at(kind, f[0] + r * f[1] + t * f[2]))
            lasting = float(number_at(kind, before_m)) + min(pre, 0.0) - math.log1p(math.exp(-abs(pre)))
            new = max(lasting, gate)
            put_number(kind, keep, math.exp(lasting - new))
            put_number(kind, take, math.exp(gate - new) / math.sqrt(dk))
            put_number(kind, at_m, new)
            key, query = k[0] + r * k[1] + t * k[2], q[0] + r * q[1] + t * q[2]
            value, to = v[0] + r * v[1] + t * v[2], h[0] + r * h[1] + t * h[2]
            column = 0
            while column < size:
                arguments = (
                    before_C + column, at_C + column, query, key, value + column, keep, take, to + column, dk, size,
                )  # fmt: skip
                if column + 4 * wide <= size:
                    _recur_four(kind, arguments)
                    column += 4 * wide
                else:
                    _recur_one(kind, arguments)
                    column += wide
            _scale(kind, (before_n, at_n, keep, dk * number))
            _add(kind, (key, at_n, take, dk * number))
            den = _dot(kind, query, at_n, dk * number)
            put_number(kind, keep, _inverse(kind, den, number_at(kind, at_m), eps)[0])
            _scale(kind, (to, to, keep, size))
            before_C, before_n, before_m = at_C, at_n, at_m


@njit
def _chunk_room(kind: Any, scratch: int, dk: int, dv: int, length: int) -> tuple[int, ...]:
    """Where backward keeps a chunk's q, k, v, spare rows, three squares (gradient of the scores, weights, weighted
    scores), gradient of the numerators, gradients of q, k, v, a turned state, gates, sums and three numbers."""
    number = bytes_of(kind)
    key, value, line = length * dk * number, length * dv * number, length * number
    k, v, spare = scratch + key, scratch + 2 * key, scratch + 2 * key + value
    S = spare + max(key, value)
    square = length * line
    G = S + 3 * square
    dq, dkey, dvalue = G + value, G + value + key, G + value + 2 * key
    turned = dvalue + value
    gates = turned + dk * dv * number
    sums = gates + 8 * line  # per step: gradient of the denominator, and that of m alone by eps
    return (
        scratch, k, v, spare, S, S + square, S + 2 * square, G, dq, dkey, dvalue, turned, gates, sums, sums + 2 * line
    )  # fmt: skip


@njit
def _grade_outputs(
    kind: Any, room: tuple[int, ...], h: Stream, dh: Stream, r: int, t: int, den: int, dv: int, count: int, length: int,
    eps: float,
) -> None:  # fmt: skip
    """Gradients of a chunk's numerators, denominators and, by eps, of m alone."""
    number = bytes_of(kind)
    value, line = dv * number, length * number
    G, gates, sums, slot = room[7], room[12], room[13], room[14] + 2 * number
    _clear(kind, (sums, line))
    for s in range(count):
        grad = dh[0] + r * dh[1] + (t + s) * dh[2]
        below = number_at(kind, den + s * number)
        inverse, inside = _inverse(kind, below, number_at(kind, gates + 5 * line + s * number), eps)
        slope = _dot(kind, grad, h[0] + r * h[1] + (t + s) * h[2], value) * inverse
        put_number(kind, sums + s * number, -math.copysign(slope, slope * below) if inside else 0.0)
        put_number(kind, sums + line + s * number, -slope * eps)
        put_number(kind, slot, inverse)
        _scale(kind, (grad, G + s * value, slot, value))
    _clear(kind, (G + count * value, (length - count) * value))


@njit
def _grade_within(kind: Any, room: tuple[int, ...], dk: int, dv: int, length: int) -> None:
    """Gradients of q, k and v by what a chunk's steps read of each other."""
    number = bytes_of(kind)
    key, value, line = dk * number, dv * number, length * number
    Q, K, V, spare, S, W, P, G, DQ, DK, DV = room[:11]
    sums = room[13]
    _turn(kind, V, length, dv, spare)
    _clear(kind, (S, length * line))
    _matmul(kind, TRIANGLE, length, G, value, number, spare, line, dv, S, line, line)
    for s in range(length):
        _gradient(kind, (S + s * line, sums + s * number, W + s * line, line))
    _clear(kind, (DQ, 2 * length * key + length * value))
    _matmul(kind, LOWER, length, S, line, number, K, key, length, DQ, key, key)
    _matmul(kind, UPPER, length, S, number, line, Q, key, length, DK, key, key)
    _matmul(kind, UPPER, length, P, number, line, G, value, length, DV, value, value)


@njit
def _grade_between(
    kind: Any, room: tuple[int, ...], begin: int, dC: int, dn: int, keep: float, dk: int, dv: int, length: int
) -> None:
    """Gradients of k and v by the end state, of q by the start state `begin`, and of that state in place of dC, dn."""
    number = bytes_of(kind)
    key, value, line = dk * number, dv * number, length * number
    Q, K, V, spare, _, _, _, G, DQ, DK, DV, turned, gates, sums, factors = room
    slot = factors + 2 * number
    _turn(kind, dC, dk, dv, turned)
    for s in range(length):
        weight = gates + 4 * line + s * number
        _scale(kind, (V + s * value, spare + s * value, weight, value))
        _add(kind, (dn, DK + s * key, weight, key))
    _matmul(kind, ALL, length, spare, value, number, turned, key, dv, DK, key, key)
    for s in range(length):
        _scale(kind, (K + s * key, spare + s * key, gates + 4 * line + s * number, key))
    _matmul(kind, ALL, length, spare, key, number, dC, value, dk, DV, value, value)
    _turn(kind, begin, dk, dv, turned)
    for s in range(length):
        inter = gates + 3 * line + s * number
        _scale(kind, (G + s * value, spare + s * value, inter, value))
        put_number(kind, sums + s * number, number_at(kind, inter) * number_at(kind, sums + s * number))
        _add(kind, (begin + dk * value, DQ + s * key, sums + s * number, key))
    _matmul(kind, ALL, length, spare, value, number, turned, key, dv, DQ, key, key)
    put_number(kind, slot, keep)
    _scale(kind, (dC, dC, slot, dk * value))
    _scale(kind, (dn, dn, slot, key))
    _matmul(kind, ALL, dk, Q, number, key, spare, value, length, dC, value, value)
    for s in range(length):
        _add(kind, (Q + s * key, dn, sums + s * number, key))


@njit
def _put_rows(kind: Any, source: int, to: Stream, r: int, t: int, count: int, factor: int, size: int) -> None:
    """Rows t to t + count of a stream = a factor times those at source."""
    for s in range(count):
        _scale(kind, (source + s * size, to[0] + r * to[1] + (t + s) * to[2], factor, size))


def mlstm_backward(
    kind: Any, q: Stream, k: Stream, v: Stream, i: Stream, f: Stream, h: Stream, dh: Stream, dC: Stream, dn: Stream,
    dm: Stream, dq: Stream, dkey: Stream, dvalue: Stream, di: Stream, df: Stream, kept: int, marks: int, scratch: int,
    steps: int, dk: int, dv: int, length: int, rows: int, eps: float,
) -> None:  # fmt: skip
    """One task of the backward pass; layouts as in `mlstm_forward`.

    dC, dn, dm: gradients of the last state, left at the start state. h does not depend on m but for eps and a loss on
    the last state, so m counts as constant, and what those two send into m itself (`ratio`) goes to the gate that set
    it. i scales k and b scales q and 1 / k, hence their gradients are k dk and q dq - k dk.
    """
    number = bytes_of(kind)
    key, value, line, state = dk * number, dv * number, length * number, dk * (dv + 1) * number
    chunks = (steps + length - 1) // length
    room = _chunk_room(kind, scratch, dk, dv, length)
    Q, K, V, spare, S, W, P, _, DQ, DK, DV, _, gates, sums, one = room
    scale = one + number
    put_number(kind, one, 1.0)
    put_number(kind, scale, 1.0 / math.sqrt(dk))
    for r in range(rows):
        at_dC, at_dn, at_dm = dC[0] + r * dC[1], dn[0] + r * dn[1], dm[0] + r * dm[1]
        mark = marks + r * (2 * steps + 1) * number
        end = kept + (r * (chunks + 1) + chunks) * state
        whole = _dot(kind, end, at_dC, dk * value) + _dot(kind, end + dk * value, at_dn, key)
        ratio = number_at(kind, at_dm) - whole
        for chunk in range(chunks - 1, -1, -1):
            t = chunk * length
            count = min(length, steps - t)
            _fetch(kind, q, r, t, count, length, one, Q, key)
            _fetch(kind, k, r, t, count, length, scale, K, key)
            _fetch(kind, v, r, t, count, length, one, V, value)
            at_i, at_f = i[0] + r * i[1] + t * number, f[0] + r * f[1] + t * number
            keep, _ = _gates(kind, at_i, at_f, float(number_at(kind, mark + t * number)), count, length, gates)
            _turn(kind, K, length, dk, spare)
            _weights(kind, Q, spare, dk, length, gates, S, W, P)
            _grade_outputs(kind, room, h, dh, r, t, mark + (steps + 1 + t) * number, dv, count, length, eps)
            _grade_within(kind, room, dk, dv, length)
            whole = _dot(kind, end, at_dC, dk * value) + _dot(kind, end + dk * value, at_dn, key)
            end -= state
            _grade_between(kind, room, end, at_dC, at_dn, keep, dk, dv, length)
            ratio = _store_gates(
                kind, Q, DQ, K, DK, key, whole, ratio, sums + line, at_i, gates + 7 * line, mark + t * number,
                di[0] + r * di[1] + t * number, df[0] + r * df[1] + t * number, count,
            )  # fmt: skip
            _put_rows(kind, DQ, dq, r, t, count, one, key)
            _put_rows(kind, DK, dkey, r, t, count, scale, key)
            _put_rows(kind, DV, dvalue, r, t, count, one, value)
        whole = _dot(kind, end, at_dC, dk * value) + _dot(kind, end + dk * value, at_dn, key)
        put_number(kind, at_dm, ratio + whole)


@njit
def _store_gates(
    kind: Any, Q: int, DQ: int, K: int, DK: int, key: int, whole: float, ratio: float, lost: int, i: int, log_f: int,
    m: int, di: int, df: int, count: int,
) -> float:  # fmt: skip
    """Gradients of a chunk's gates, from its last step to its first; returns what is left for m at its start.

    whole: how the loss grows with the log scale of the end state. lost: per step, the gradient of m alone by eps.
    """
    number = bytes_of(kind)
    for s in range(count - 1, -1, -1):
        at = s * number
        gained = _dot(kind, K + s * key, DK + s * key, key)
        whole += _dot(kind, Q + s * key, DQ + s * key, key) - gained
        ratio += number_at(kind, lost + at)
        forgot = -math.expm1(number_at(kind, log_f + at))  # 1 - sigmoid(f), the slope of log sigmoid
        if number_at(kind, i + at) >= number_at(kind, log_f + at) + number_at(kind, m + at):
            put_number(kind, di + at, gained + ratio)
            put_number(kind, df + at, whole * forgot)
            ratio = ratio * 0
        else:
            put_number(kind, di + at, gained)
            put_number(kind, df + at, (whole + ratio) * forgot)
    return ratio
