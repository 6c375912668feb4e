"""Compiled mLSTM kernels in chunkwise form, imported when one is first asked for.

A kernel runs one task (some batch rows of one head) chunk by chunk; a chunk's matrices stay in cache. Letters as in
`chunkwise`: within a chunk b is the running sum of log f, `lead` b - m, `source` i - b, so that step s weighs
exp(lead_t + source_s) at step t; `inter` is the weight of the chunk's start state, `w` that of a step in its end state.
"""

from __future__ import annotations

import math
from typing import Any

from numba import njit
from numba.core import cgutils

from .blocks import Stream, block, bytes_of, number_at, put_number, vector_bytes
from .cpu_rows import (
    ALL,
    LOWER,
    TRIANGLE,
    UPPER,
    add,
    clear,
    dot,
    exp,
    filled,
    log_sigmoid,
    matmul,
    over_row,
    scale,
    turn,
)
from .simd import I64, Simd, Value


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

    over_row(simd, size, body)


def _emit_inverses(simd: Simd, den: Any, m: Any, to: Any, slope: Any, eps: Any, size: Any) -> None:
    """to = 1 / (max(|den|, exp(-m)) + eps), both sides times exp(min(m, 0)), see `reference.normalise`; slope = how the
    larger of the two grows with den, times -1: 1, 0 or -1."""
    small = simd.spread(eps)

    def body(at: Any) -> None:
        x, peak = simd.load(simd.at(den, at)), simd.load(simd.at(m, at))
        unit, floor = (
            simd.exp(simd.pick("<", peak, 0.0, peak, 0.0)),
            simd.exp(simd.pick("<", peak, 0.0, 0.0, 0.0 - peak)),
        )
        reach = simd.abs(x) * unit
        simd.store(unit / (simd.pick(">", reach, floor, reach, floor) + small * unit), simd.at(to, at))
        simd.store(simd.pick(">", reach, floor, simd.pick("<", x, 0.0, 1.0, -1.0), 0.0), simd.at(slope, at))

    over_row(simd, size, body)


def _emit_forgotten(simd: Simd, log_f: Any, to: Any, size: Any) -> None:
    """to = 1 - f, the slope of log sigmoid."""
    over_row(simd, size, lambda at: simd.store(0.0 - simd.expm1(simd.load(simd.at(log_f, at))), simd.at(to, at)))


def _emit_gradient(simd: Simd, row: Any, extra: Any, weights: Any, size: Any) -> None:
    """row = (row + extra) * weights."""
    more = simd.spread(extra)
    over_row(
        simd,
        size,
        lambda at: simd.store((simd.load(simd.at(row, at)) + more) * simd.load(simd.at(weights, at)), simd.at(row, at)),
    )


_recur_four = block(_emit_recur, columns=4)
_recur_one = block(_emit_recur, columns=1)
_weigh = block(_emit_weigh)
_gradient = block(_emit_gradient)
_inverses = block(_emit_inverses)
_forgotten = block(_emit_forgotten)


@njit
def _fetch(kind: Any, stream: Stream, r: int, t: int, count: int, length: int, factor: int, to: int, size: int) -> None:
    """Rows t to t + count of a stream times a factor, zeros behind them up to `length` rows."""
    for s in range(count):
        scale(kind, (stream[0] + r * stream[1] + (t + s) * stream[2], to + s * size, factor, size))
    clear(kind, (to + count * size, (length - count) * size))


@njit
def _gates(kind: Any, i: int, f: int, m: float, count: int, length: int, rows: int) -> tuple[float, float]:
    """The weights of one chunk from its gates: fills `rows` (order, source, lead, inter, w, m, ones, log f; length
    numbers each) and returns the weight of the start state in the end state, and the stabiliser at the end."""
    number = bytes_of(kind)
    line = length * number
    for t in range(length):
        put_number(kind, rows + 7 * line + t * number, number_at(kind, f + t * number) if t < count else 0.0)
    log_sigmoid(kind, (rows + 7 * line, rows + 7 * line, line))
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
    exp(kind, (rows + 3 * line, 2 * line))
    return math.exp(b + start - m), m


@njit
def _weights(
    kind: Any, q: int, turned: int, dk: int, length: int, rows: int, scores: int, weights: int, p: int
) -> None:
    """weights (L, L) and p = (q k^T) * weights, up to `_until`; turned: k as (dk, L)."""
    number = bytes_of(kind)
    line = length * number
    clear(kind, (scores, length * line))
    matmul(kind, TRIANGLE, length, q, dk * number, number, turned, line, dk, scores, line, line)
    for t in range(length):
        at, row = t * number, t * line
        some = _until(kind, t)
        _weigh(kind, (scores + row, rows + line, rows, rows + 2 * line + at, rows + at, weights + row, p + row, some))


@njit
def _until(kind: Any, t: int) -> int:
    """Bytes of the vectors of a row up to place t, the last that is not 0."""
    wide = vector_bytes(kind)
    return (t * bytes_of(kind) // wide + 1) * wide


@njit
def _inverse(den: float, m: float, eps: float) -> float:
    """1 / (max(|den|, exp(-m)) + eps), both sides times exp(min(m, 0)), see `reference.normalise`."""
    unit, floor = math.exp(min(m, 0.0)), math.exp(-max(m, 0.0))
    return unit / (max(abs(den) * unit, floor) + eps * unit)


@njit
def keep_state(kind: Any, C: int, n: int, store: int, dk: int, dv: int, one: int) -> int:
    """Copy C and n to `store`; returns where the next copy goes."""
    number = bytes_of(kind)
    scale(kind, (C, store, one, dk * dv * number))
    scale(kind, (n, store + dk * dv * number, one, dk * number))
    return store + dk * (dv + 1) * number


@njit
def forward_room(kind: Any, scratch: int, dk: int, dv: int, length: int) -> tuple[int, ...]:
    """Where forward keeps a chunk's turned k, three squares (scores, weights, weighted scores), numerators, gates and
    factors (1, the scale of k, one to spare); the factors are set here."""
    number = bytes_of(kind)
    line = length * number
    S = scratch + dk * line
    H = S + 3 * length * line
    gates = H + dv * line
    factors = gates + 8 * line
    put_number(kind, factors, 1.0)
    put_number(kind, factors + number, 1.0 / math.sqrt(dk))
    return scratch, S, S + length * line, S + 2 * length * line, H, gates, factors


@njit
def forward_chunk(
    kind: Any, room: tuple[int, ...], Q: int, K: int, V: int, i: int, f: int, h: int, h_step: int, C: int, n: int,
    now: float, m: int, den: int, dk: int, dv: int, count: int, length: int, eps: float,
) -> float:  # fmt: skip
    """One chunk of one row and head: writes h, C, n and, where they have addresses, m and the denominators; returns m.

    Q, K (scaled), V: (length, dk or dv), zeros behind `count` rows; Q and K are overwritten.
    """
    number = bytes_of(kind)
    key, value, line = dk * number, dv * number, length * number
    turned, S, W, P, H, gates, factors = room
    keep, now = _gates(kind, i, f, now, count, length, gates)
    turn(kind, K, length, dk, turned)
    _weights(kind, Q, turned, dk, length, gates, S, W, P)
    clear(kind, (H, length * value))
    for s in range(length):
        scale(kind, (K + s * key, K + s * key, gates + 4 * line + s * number, key))
    matmul(kind, LOWER, length, P, line, number, V, value, length, H, value, value)
    started = filled(kind, C, dk * value) or filled(kind, n, key)
    if started:
        for s in range(length):
            scale(kind, (Q + s * key, Q + s * key, gates + 3 * line + s * number, key))
        matmul(kind, ALL, length, Q, key, number, C, value, dk, H, value, value)
    below, peak, inverse = gates + line, gates + 5 * line, gates + 2 * line
    for s in range(count):
        sums = dot(kind, P + s * line, gates + 6 * line, _until(kind, s))
        if started:
            sums += dot(kind, Q + s * key, n, key)
        put_number(kind, below + s * number, sums)
    put_number(kind, factors + 2 * number, eps)
    _inverses(kind, (below, peak, inverse, gates, factors + 2 * number, line))
    for s in range(count):
        scale(kind, (H + s * value, h + s * h_step, inverse + s * number, value))
        if m:
            put_number(kind, m + s * number, number_at(kind, peak + s * number))
            put_number(kind, den + s * number, number_at(kind, below + s * number))
    if started:
        put_number(kind, factors + 2 * number, keep)
        scale(kind, (C, C, factors + 2 * number, dk * value))
        scale(kind, (n, n, factors + 2 * number, key))
    matmul(kind, ALL, dk, K, number, key, V, value, length, C, value, value)
    for s in range(count):
        add(kind, (K + s * key, n, factors, key))
    return now


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
    key, value = dk * number, dv * number
    chunks = (steps + length - 1) // length
    Q, K, V = scratch, scratch + length * key, scratch + 2 * length * key
    room = forward_room(kind, V + length * value, dk, dv, length)
    one = room[6]
    for r in range(rows):
        at_C, at_n, at_m = C[0] + r * C[1], n[0] + r * n[1], m[0] + r * m[1]
        store = kept + r * (chunks + 1) * dk * (value + number)
        mark = marks + r * (2 * steps + 1) * number
        now = float(number_at(kind, at_m))
        if kept:
            put_number(kind, mark, now)
            store = keep_state(kind, at_C, at_n, store, dk, dv, one)
        for chunk in range(chunks):
            t = chunk * length
            count = min(length, steps - t)
            _fetch(kind, q, r, t, count, length, one, Q, key)
            _fetch(kind, k, r, t, count, length, one + number, K, key)
            _fetch(kind, v, r, t, count, length, one, V, value)
            now = forward_chunk(
                kind, room, Q, K, V, i[0] + r * i[1] + t * number, f[0] + r * f[1] + t * number,
                h[0] + r * h[1] + t * h[2], h[2], at_C, at_n, now, mark + (t + 1) * number if kept else 0,
                mark + (steps + 1 + t) * number, dk, dv, count, length, eps,
            )  # fmt: skip
            if kept:
                store = keep_state(kind, at_C, at_n, store, dk, dv, one)
        put_number(kind, at_m, now)


@njit
def one_step(
    kind: Any, q: int, k: int, v: int, gate: float, pre: float, h: int, old_C: int, old_n: int, old_m: int, C: int,
    n: int, m: int, factors: int, dk: int, dv: int, eps: float,
) -> None:  # fmt: skip
    """One step of one row and head from the old state to C, n, m; gate, pre: of i and f. factors: room for two."""
    number = bytes_of(kind)
    wide, size, keep, take = vector_bytes(kind), dv * number, factors, factors + number
    lasting = float(number_at(kind, old_m)) + min(pre, 0.0) - math.log1p(math.exp(-abs(pre)))
    new = max(lasting, gate)
    put_number(kind, keep, math.exp(lasting - new))
    put_number(kind, take, math.exp(gate - new) / math.sqrt(dk))
    put_number(kind, m, new)
    column = 0
    while column < size:
        arguments = old_C + column, C + column, q, k, v + column, keep, take, h + column, dk, size
        if column + 4 * wide <= size:
            _recur_four(kind, arguments)
            column += 4 * wide
        else:
            _recur_one(kind, arguments)
            column += wide
    scale(kind, (old_n, n, keep, dk * number))
    add(kind, (k, n, take, dk * number))
    den = dot(kind, q, n, dk * number)
    put_number(kind, keep, _inverse(den, number_at(kind, m), eps))
    scale(kind, (h, h, keep, size))


@njit
def _place(stream: Stream, turn: int, row: int, head: int) -> int:
    """Address of a row's head at the first step; turn: bytes from head to head."""
    return stream[0] + row * stream[1] + head * turn


def mlstm_steps(
    kind: Any, q: Stream, k: Stream, v: Stream, i: Stream, f: Stream, h: Stream, turns: Stream, gate_turn: int,
    h_turn: int, old_C: int, old_n: int, old_m: int, C: int, n: int, m: int, scratch: int, steps: int, dk: int,
    dv: int, rows: int, heads: int, eps: float,
) -> None:  # fmt: skip
    """The recurrent form, without a record for backward: best where steps are few. From the old state to C, n, m.

    turns: bytes from head to head of q, k and v; gate_turn: of i and f, h_turn: of h. States: (rows, heads, ...).
    """
    number = bytes_of(kind)
    for place in range(rows * heads):
        r, head = place // heads, place % heads
        at_q, at_k, at_v = _place(q, turns[0], r, head), _place(k, turns[1], r, head), _place(v, turns[2], r, head)
        at_i, at_f = _place(i, gate_turn, r, head), _place(f, gate_turn, r, head)
        at_h = _place(h, h_turn, r, head)
        square, line = place * dk * dv * number, place * dk * number
        before_C, before_n, before_m = old_C + square, old_n + line, old_m + place * number
        at_C, at_n, at_m = C + square, n + line, m + place * number
        for t in range(steps):
            one_step(
                kind, at_q + t * q[2], at_k + t * k[2], at_v + t * v[2], float(number_at(kind, at_i + t * i[2])),
                float(number_at(kind, at_f + t * f[2])), at_h + t * h[2], before_C, before_n, before_m, at_C, at_n,
                at_m, scratch, dk, dv, eps,
            )  # fmt: skip
            before_C, before_n, before_m = at_C, at_n, at_m


@njit
def backward_room(kind: Any, scratch: int, dk: int, dv: int, length: int) -> tuple[int, ...]:
    """Where backward keeps a chunk's spare rows, three squares (gradient of the scores, weights, weighted scores),
    gradient of the numerators, a turned state, gates, factors (1, the scale of k, one to spare; set here) and two sums
    per step: gradient of the denominator, and that of m alone by eps."""
    number = bytes_of(kind)
    line = length * number
    S = scratch + max(dk, dv) * line
    square = length * line
    G = S + 3 * square
    turned = G + dv * line
    gates = turned + dk * dv * number
    sums = gates + 8 * line
    factors = sums + 2 * line
    put_number(kind, factors, 1.0)
    put_number(kind, factors + number, 1.0 / math.sqrt(dk))
    return scratch, S, S + square, S + 2 * square, G, turned, gates, factors, sums


@njit
def growth(kind: Any, end: int, dC: int, dn: int, dk: int, dv: int) -> float:
    """How the loss grows with the log scale of a state: C and n at `end` times their gradients."""
    size = dk * bytes_of(kind)
    return float(dot(kind, end, dC, dv * size) + dot(kind, end + dv * size, dn, size))


@njit
def backward_chunk(
    kind: Any, room: tuple[int, ...], parts: tuple[int, ...], i: int, f: int, h: int, h_step: int, dh: int,
    dh_step: int, end: int, dC: int, dn: int, ratio: float, m: int, den: int, di: int, df: int, dk: int, dv: int,
    count: int, length: int, onward: bool, eps: float,
) -> float:  # fmt: skip
    """Gradients of one chunk of one row and head; returns what is left of `ratio` (see `mlstm_backward`).

    parts: q, k (scaled), v, zeros behind `count` rows, and room for their gradients. end: C and n at the chunk's end,
    those at its start before it. dC, dn: gradients of the end state; onward: left at the start state.
    """
    number = bytes_of(kind)
    key, value, line = dk * number, dv * number, length * number
    Q, K, _, DQ, DK, _ = parts
    spare, S, W, P, _, _, gates, _, sums = room
    keep, _ = _gates(kind, i, f, float(number_at(kind, m)), count, length, gates)
    turn(kind, K, length, dk, spare)
    _weights(kind, Q, spare, dk, length, gates, S, W, P)
    _grade_outputs(kind, room, h, h_step, dh, dh_step, den, dv, count, length, eps)
    _grade_within(kind, room, parts, dk, dv, length)
    whole = growth(kind, end, dC, dn, dk, dv)
    _grade_between(kind, room, parts, end - dk * (value + number), dC, dn, keep, dk, dv, length, onward)
    _forgotten(kind, (gates + 7 * line, gates, line))
    return _store_gates(
        kind, Q, DQ, K, DK, key, whole, ratio, sums + line, i, gates, gates + 7 * line, m, di, df, count
    )


@njit
def _grade_outputs(
    kind: Any, room: tuple[int, ...], h: int, h_step: int, dh: int, dh_step: int, den: int, dv: int, count: int,
    length: int, eps: float,
) -> None:  # fmt: skip
    """Gradients of a chunk's numerators, denominators and, by eps, of m alone."""
    number = bytes_of(kind)
    value, line = dv * number, length * number
    G, gates, sums = room[4], room[6], room[8]
    inverse, slot = gates + 2 * line, room[7] + 2 * number
    for s in range(length):
        put_number(kind, gates + line + s * number, number_at(kind, den + s * number) if s < count else 1.0)
    put_number(kind, slot, eps)
    _inverses(kind, (gates + line, gates + 5 * line, inverse, gates, slot, line))
    clear(kind, (sums, line))
    for s in range(count):
        at = s * number
        slope = dot(kind, dh + s * dh_step, h + s * h_step, value) * number_at(kind, inverse + at)
        put_number(kind, sums + at, slope * number_at(kind, gates + at))
        put_number(kind, sums + line + at, -slope * eps)
        scale(kind, (dh + s * dh_step, G + s * value, inverse + at, value))
    clear(kind, (G + count * value, (length - count) * value))


@njit
def _grade_within(kind: Any, room: tuple[int, ...], parts: tuple[int, ...], dk: int, dv: int, length: int) -> None:
    """Gradients of q, k and v by what a chunk's steps read of each other."""
    number = bytes_of(kind)
    key, value, line = dk * number, dv * number, length * number
    Q, K, V, DQ, DK, DV = parts
    spare, S, W, P, G, _, _, _, sums = room
    turn(kind, V, length, dv, spare)
    clear(kind, (S, length * line))
    matmul(kind, TRIANGLE, length, G, value, number, spare, line, dv, S, line, line)
    for s in range(length):
        _gradient(kind, (S + s * line, sums + s * number, W + s * line, _until(kind, s)))
    clear(kind, (DQ, length * key))
    clear(kind, (DK, length * key))
    clear(kind, (DV, length * value))
    matmul(kind, LOWER, length, S, line, number, K, key, length, DQ, key, key)
    matmul(kind, UPPER, length, S, number, line, Q, key, length, DK, key, key)
    matmul(kind, UPPER, length, P, number, line, G, value, length, DV, value, value)


@njit
def _grade_between(
    kind: Any, room: tuple[int, ...], parts: tuple[int, ...], begin: int, dC: int, dn: int, keep: float, dk: int,
    dv: int, length: int, onward: bool,
) -> None:  # fmt: skip
    """Gradients of k and v by the end state, of q by the start state `begin`, and of that state in place of dC, dn.

    What is multiplied by 0 is left out: an empty start state, gradients of an end state that nothing depends on.
    """
    number = bytes_of(kind)
    key, value, line = dk * number, dv * number, length * number
    gates, sums = room[6], room[8]
    ended = filled(kind, dC, dk * value) or filled(kind, dn, key)
    if ended:
        _grade_kept(kind, room, parts, dC, dn, dk, dv, length)
    started = filled(kind, begin, dk * (value + number))
    if not started and not onward:
        return
    Q, _, _, DQ, _, _ = parts
    spare, G, turned = room[0], room[4], room[5]
    for s in range(length):
        inter = gates + 3 * line + s * number
        scale(kind, (G + s * value, spare + s * value, inter, value))
        put_number(kind, sums + s * number, number_at(kind, inter) * number_at(kind, sums + s * number))
    if started:
        turn(kind, begin, dk, dv, turned)
        for s in range(length):
            add(kind, (begin + dk * value, DQ + s * key, sums + s * number, key))
        matmul(kind, ALL, length, spare, value, number, turned, key, dv, DQ, key, key)
    if onward:
        if ended:
            slot = room[7] + 2 * number
            put_number(kind, slot, keep)
            scale(kind, (dC, dC, slot, dk * value))
            scale(kind, (dn, dn, slot, key))
        matmul(kind, ALL, dk, Q, number, key, spare, value, length, dC, value, value)
        for s in range(length):
            add(kind, (Q + s * key, dn, sums + s * number, key))


@njit
def _grade_kept(
    kind: Any, room: tuple[int, ...], parts: tuple[int, ...], dC: int, dn: int, dk: int, dv: int, length: int
) -> None:
    """Gradients of k and v by a chunk's end state."""
    number = bytes_of(kind)
    key, value, line = dk * number, dv * number, length * number
    _, K, V, _, DK, DV = parts
    spare, turned, gates = room[0], room[5], room[6]
    turn(kind, dC, dk, dv, turned)
    for s in range(length):
        weight = gates + 4 * line + s * number
        scale(kind, (V + s * value, spare + s * value, weight, value))
        add(kind, (dn, DK + s * key, weight, key))
    matmul(kind, ALL, length, spare, value, number, turned, key, dv, DK, key, key)
    for s in range(length):
        scale(kind, (K + s * key, spare + s * key, gates + 4 * line + s * number, key))
    matmul(kind, ALL, length, spare, key, number, dC, value, dk, DV, value, value)


@njit
def _put_rows(kind: Any, source: int, to: Stream, r: int, t: int, count: int, factor: int, size: int) -> None:
    """Rows t to t + count of a stream = a factor times those at source."""
    for s in range(count):
        scale(kind, (source + s * size, to[0] + r * to[1] + (t + s) * to[2], factor, size))


def mlstm_backward(
    kind: Any, q: Stream, k: Stream, v: Stream, i: Stream, f: Stream, h: Stream, dh: Stream, dC: Stream, dn: Stream,
    dm: Stream, dq: Stream, dkey: Stream, dvalue: Stream, di: Stream, df: Stream, kept: int, marks: int, scratch: int,
    steps: int, dk: int, dv: int, length: int, rows: int, wanted: int, eps: float,
) -> None:  # fmt: skip
    """One task of the backward pass; layouts as in `mlstm_forward`.

    dC, dn, dm: gradients of the last state, left at the start state where those are wanted. h does not depend on m but
    for eps and a loss on the last state, so m counts as constant, and what those two send into m itself (`ratio`) goes
    to the gate that set it. i scales k and b scales q and 1 / k, hence their gradients are k dk and q dq - k dk.
    """
    number = bytes_of(kind)
    key, value, state = dk * number, dv * number, dk * (dv + 1) * number
    chunks = (steps + length - 1) // length
    Q, K, V = scratch, scratch + length * key, scratch + 2 * length * key
    DQ = V + length * value
    DK, DV = DQ + length * key, DQ + 2 * length * key
    room = backward_room(kind, DV + length * value, dk, dv, length)
    one = room[7]
    for r in range(rows):
        at_dC, at_dn, at_dm = dC[0] + r * dC[1], dn[0] + r * dn[1], dm[0] + r * dm[1]
        mark = marks + r * (2 * steps + 1) * number
        end = kept + (r * (chunks + 1) + chunks) * state
        ratio = number_at(kind, at_dm) - growth(kind, end, at_dC, at_dn, dk, dv)
        for chunk in range(chunks - 1, -1, -1):
            t = chunk * length
            count = min(length, steps - t)
            _fetch(kind, q, r, t, count, length, one, Q, key)
            _fetch(kind, k, r, t, count, length, one + number, K, key)
            _fetch(kind, v, r, t, count, length, one, V, value)
            ratio = backward_chunk(
                kind, room, (Q, K, V, DQ, DK, DV), i[0] + r * i[1] + t * number, f[0] + r * f[1] + t * number,
                h[0] + r * h[1] + t * h[2], h[2], dh[0] + r * dh[1] + t * dh[2], dh[2], end, at_dC, at_dn, ratio,
                mark + t * number, mark + (steps + 1 + t) * number, di[0] + r * di[1] + t * number,
                df[0] + r * df[1] + t * number, dk, dv, count, length, chunk > 0 or wanted != 0, eps,
            )  # fmt: skip
            end -= state
            _put_rows(kind, DQ, dq, r, t, count, one, key)
            _put_rows(kind, DK, dkey, r, t, count, one + number, key)
            _put_rows(kind, DV, dvalue, r, t, count, one, value)
        put_number(kind, at_dm, ratio + growth(kind, end, at_dC, at_dn, dk, dv))


@njit
def _store_gates(
    kind: Any, Q: int, DQ: int, K: int, DK: int, key: int, whole: float, ratio: float, lost: int, i: int,
    forgotten: int, log_f: int, m: int, di: int, df: int, count: int,
) -> float:  # fmt: skip
    """Gradients of a chunk's gates, from its last step to its first; returns what is left for m at its start.

    whole: how the loss grows with the log scale of the end state. lost: per step, the gradient of m alone by eps.
    """
    number = bytes_of(kind)
    for s in range(count - 1, -1, -1):
        at = s * number
        gained = dot(kind, K + s * key, DK + s * key, key)
        whole += dot(kind, Q + s * key, DQ + s * key, key) - gained
        ratio += number_at(kind, lost + at)
        forgot = number_at(kind, forgotten + at)
        if number_at(kind, i + at) >= number_at(kind, log_f + at) + number_at(kind, m + at):
            put_number(kind, di + at, gained + ratio)
            put_number(kind, df + at, whole * forgot)
            ratio = ratio * 0
        else:
            put_number(kind, di + at, gained)
            put_number(kind, df + at, (whole + ratio) * forgot)
    return ratio
