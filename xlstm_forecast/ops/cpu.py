"""Compiled sLSTM kernels, imported when one is first asked for.

A kernel runs one task (some batch rows of one head) over the whole sequence and is called without the interpreter lock,
so that the caller can spread tasks over threads of its own.
"""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir
from numba import njit
from numba.core import cgutils

from .blocks import Stream, block, byte_at, bytes_of, product, vector_bytes
from .simd import I64, Simd, Value

SLOTS = 6  # kept per step and unit for backward: signed decay, 1 - sigmoid(f), z, o, c, n


def _emit_forward(
    simd: Simd,
    gates: Any,
    gates_row: Any,
    R: Any,
    bias: Any,
    old_h: Any,
    c: Any,
    n: Any,
    m: Any,
    new_h: Any,
    out: Any,
    out_row: Any,
    kept: Any,
    dim: Any,
    *,
    rows: int,
    split: int,
) -> None:
    """One step of some rows and one vector of units: product with R, gates, new states (eq. 8 to 17).

    Addresses are those of the first row, at the units; old_h at the row's first unit.
    """
    row = simd.builder.mul(dim, ir.Constant(I64, simd.size))
    start: list[list[Value | None]] = [
        [simd.load(simd.at(gates, (r, gates_row), (g, row))) + simd.load(simd.at(bias, (g, row))) for g in range(4)]
        for r in range(rows)
    ]
    line = simd.builder.mul(row, ir.Constant(I64, 4))
    pre = product(simd, start, dim, old_h, row, simd.size, R, row, line, split)
    for r, (i, f, z, o) in enumerate(pre):
        here = simd.at(c, (r, row)), simd.at(n, (r, row)), simd.at(m, (r, row))
        old_c, old_n, old_m = (simd.load(x) for x in here)
        e = simd.exp(simd.negative_abs(f))
        log_f = old_m + (simd.pick("<", f, 0.0, f, 0.0) - simd.log1p(e))
        log_f = simd.pick("==", old_n, 0.0, -math.inf, log_f)  # fresh: nothing to forget
        lead = i - log_f
        less = simd.exp(simd.negative_abs(lead))
        less = simd.pick("==", old_n, 0.0, 0.0, less)
        new_m = simd.pick(">=", lead, 0.0, i, log_f)
        take, keep = simd.pick(">=", lead, 0.0, 1.0, less), simd.pick(">=", lead, 0.0, less, 1.0)
        z = simd.tanh(z)
        e_o = simd.exp(simd.negative_abs(o))
        o = simd.pick(">=", o, 0.0, 1.0, e_o) / (e_o + 1.0)
        new_c, new_n = keep * old_c + take * z, keep * old_n + take
        h = o * new_c / new_n
        for value, address in zip((new_c, new_n, new_m), here, strict=True):
            simd.store(value, address)
        simd.store(h, simd.at(new_h, (r, row)))
        simd.store(h, simd.at(out, (r, out_row)))
        with simd.builder.if_then(simd.builder.icmp_signed("!=", kept, ir.Constant(I64, 0))):
            forgot = simd.pick(">=", f, 0.0, e, 1.0) / (e + 1.0)
            for slot, value in enumerate((simd.flip_sign(less, lead), forgot, z, o, new_c, new_n)):
                simd.store(value, simd.at(kept, (r * SLOTS + slot, row)))


def _emit_hold(simd: Simd, old_h: Any, c: Any, n: Any, new_h: Any, out: Any, kept: Any, dim: Any) -> None:
    """A masked step of one row and one vector of units: everything stays."""
    row = simd.builder.mul(dim, ir.Constant(I64, simd.size))
    h = simd.load(old_h)
    simd.store(h, new_h)
    simd.store(h, out)
    with simd.builder.if_then(simd.builder.icmp_signed("!=", kept, ir.Constant(I64, 0))):
        simd.store(simd.load(c), simd.at(kept, (4, row)))
        simd.store(simd.load(n), simd.at(kept, (5, row)))


def _emit_backward(
    simd: Simd,
    kept: Any,
    kept_row: Any,
    old_c: Any,
    old_n: Any,
    old_row: Any,
    dout: Any,
    dout_row: Any,
    dh: Any,
    dc: Any,
    dn: Any,
    ratio: Any,
    dgates: Any,
    dgates_row: Any,
    db: Any,
    dim: Any,
    *,
    rows: int,
) -> None:
    """Gradients of one step of some rows and one vector of units, from what forward kept.

    h depends on c exp(m) and n exp(m) only, so m counts as constant on their way. What a loss on the last state sends
    into m itself (`ratio`, an address or 0) goes to the gate that set m: the input gate, or the forget gate and
    m_{t-1}.
    """
    builder = simd.builder
    row = builder.mul(dim, ir.Constant(I64, simd.size))
    sums = [simd.load(simd.at(db, (g, row))) for g in range(4)]
    for r in range(rows):
        signed, forgot, z, o, c, n = (simd.load(simd.at(kept, (r, kept_row), (slot, row))) for slot in range(SLOTS))
        before_c, before_n = simd.load(simd.at(old_c, (r, old_row))), simd.load(simd.at(old_n, (r, old_row)))
        at_dc, at_dn = simd.at(dc, (r, row)), simd.at(dn, (r, row))
        total = simd.load(simd.at(dout, (r, dout_row))) + simd.load(simd.at(dh, (r, row)))
        less, inverse = simd.abs(signed), 1.0 / n
        take, keep = simd.pick_sign(signed, less, 1.0), simd.pick_sign(signed, 1.0, less)
        share = o * inverse
        value = c * share
        grad_c = simd.load(at_dc) + total * share
        grad_n = simd.load(at_dn) - total * value * inverse
        lost = keep * (grad_c * before_c + grad_n * before_n)
        gained = take * (grad_c * z + grad_n)
        moved_i, moved_f = (cgutils.alloca_once_value(builder, simd.lift(0.0).value) for _ in range(2))
        with builder.if_then(builder.icmp_signed("!=", ratio, ir.Constant(I64, 0))):
            at_ratio = simd.at(ratio, (r, row))
            moving = simd.load(at_ratio)
            passed = simd.pick_sign(signed, moving, 0.0)
            builder.store(simd.pick_sign(signed, 0.0, moving).value, moved_i)
            builder.store(passed.value, moved_f)
            simd.store(passed, at_ratio)
        d = (
            gained + Value(simd, builder.load(moved_i)),
            (lost + Value(simd, builder.load(moved_f))) * forgot,
            grad_c * take * (1.0 - z * z),
            total * value * (1.0 - o),
        )
        simd.store(keep * grad_c, at_dc)
        simd.store(keep * grad_n, at_dn)
        for g in range(4):
            simd.store(d[g], simd.at(dgates, (r, dgates_row), (g, row)))
            sums[g] = sums[g] + d[g]
    for g in range(4):
        simd.store(sums[g], simd.at(db, (g, row)))


def _emit_clear(simd: Simd, address: Any, stride: Any) -> None:
    """Zeros to four vectors, for the gates of a masked step."""
    for g in range(4):
        simd.store(0.0, simd.at(address, (g, stride)))


def _emit_product(
    simd: Simd,
    a: Any,
    a_row: Any,
    b: Any,
    b_step: Any,
    count: Any,
    to: Any,
    to_row: Any,
    *,
    rows: int,
    columns: int,
    split: int,
) -> None:
    """to = A B; A's numbers side by side in a row, B's vectors side by side."""
    beside = simd.size * simd.lanes
    total = product(simd, [[None] * columns] * rows, count, a, a_row, simd.size, b, beside, b_step, split)
    for r in range(rows):
        for column in range(columns):
            simd.store(total[r][column], simd.at(to, (r, to_row), (column, beside)))


def _emit_outer(
    simd: Simd,
    a: Any,
    a_step: Any,
    a_line: Any,
    b: Any,
    b_step: Any,
    b_line: Any,
    b_column: Any,
    steps: Any,
    lines: Any,
    to: Any,
    to_row: Any,
    to_column: Any,
    *,
    rows: int,
    columns: int,
) -> None:
    """to += A^T B over `lines` batch rows of `steps` time steps each."""
    builder = simd.builder
    sums = [[cgutils.alloca_once(builder, simd.vector) for _ in range(columns)] for _ in range(rows)]
    places = [[simd.at(to, (r, to_row), (g, to_column)) for g in range(columns)] for r in range(rows)]
    for r in range(rows):
        for g in range(columns):
            builder.store(simd.load(places[r][g]).value, sums[r][g])
    with cgutils.for_range(builder, lines, intp=I64) as line:
        start: list[list[Value | None]] = [[Value(simd, builder.load(x)) for x in row] for row in sums]
        left, right = simd.at(a, (line.index, a_line)), simd.at(b, (line.index, b_line))
        total = product(simd, start, steps, left, ir.Constant(I64, simd.size), a_step, right, b_column, b_step, 1)
        for r in range(rows):
            for g in range(columns):
                builder.store(total[r][g].value, sums[r][g])
    for r in range(rows):
        for g in range(columns):
            simd.store(Value(simd, builder.load(sums[r][g])), places[r][g])


_forward_four = block(_emit_forward, rows=4, split=1)
_forward_one = block(_emit_forward, rows=1, split=2)
_hold = block(_emit_hold)
_backward_four = block(_emit_backward, rows=4)
_backward_one = block(_emit_backward, rows=1)
_clear = block(_emit_clear)
_product_four_two = block(_emit_product, rows=4, columns=2, split=2)
_product_four_one = block(_emit_product, rows=4, columns=1, split=4)
_product_one_two = block(_emit_product, rows=1, columns=2, split=4)
_product_one_one = block(_emit_product, rows=1, columns=1, split=8)
_outer_four = block(_emit_outer, rows=4, columns=4)
_outer_two = block(_emit_outer, rows=4, columns=2)


@njit
def _rows_at(mask: int, r: int, rows: int, steps: int, t: int) -> int:
    """Batch rows from r that can be done at once at step t: 4, or 1; 0 where row r is masked."""
    count = 4 if r + 4 <= rows else 1
    if mask == 0:
        return count
    for q in range(count):
        if byte_at(mask + (r + q) * steps + t) == 0:
            return 0 if q == 0 else 1
    return count


@njit
def _multiply(
    kind: Any, count: int, a: int, a_row: int, b: int, line: int, inner: int, to: int, to_row: int, size: int
) -> None:
    """to = A B for `count` (4 or 1) rows: A (count, inner), B (inner, `size` bytes every `line` bytes)."""
    wide = vector_bytes(kind)
    column = 0
    while column < size:
        two = column + 2 * wide <= size
        if count == 4 and two:
            _product_four_two(kind, (a, a_row, b + column, line, inner, to + column, to_row))
        elif count == 4:
            _product_four_one(kind, (a, a_row, b + column, line, inner, to + column, to_row))
        elif two:
            _product_one_two(kind, (a, a_row, b + column, line, inner, to + column, to_row))
        else:
            _product_one_one(kind, (a, a_row, b + column, line, inner, to + column, to_row))
        column += 2 * wide if two else wide


@njit
def _multiply_steps(
    kind: Any, a: Stream, b: int, line: int, inner: int, to: Stream, size: int, rows: int, steps: int
) -> None:
    """to = A B for all rows and the first `steps` steps of two streams."""
    for r in range(rows):
        t = 0
        while t < steps:
            count = 4 if t + 4 <= steps else 1
            _multiply(
                kind,
                count,
                a[0] + r * a[1] + t * a[2],
                a[2],
                b,
                line,
                inner,
                to[0] + r * to[1] + t * to[2],
                to[2],
                size,
            )
            t += count


@njit
def _shifted(stream: Stream, steps: int) -> Stream:
    return stream[0] + steps * stream[2], stream[1], stream[2]


@njit
def _forward_step(
    kind: Any, pre: Stream, R: int, bias: int, state: int, plane: int, odd: int, out: Stream, kept: int, mask: int,
    steps: int, dim: int, rows: int, t: int,
) -> None:  # fmt: skip
    """One step of all rows. pre, out, kept: at this step."""
    row = dim * bytes_of(kind)
    old, new = (state + 4 * plane, state) if odd else (state, state + 4 * plane)
    c, n, m = state + plane, state + 2 * plane, state + 3 * plane
    for unit in range(0, row, vector_bytes(kind)):
        r = 0
        while r < rows:
            count = _rows_at(mask, r, rows, steps, t)
            at = r * row + unit
            save = 0 if kept == 0 else kept + r * row * SLOTS + unit
            to = out[0] + r * out[1] + unit
            gates = pre[0] + r * pre[1] + unit
            if count == 0:
                _hold(kind, (old + at, c + at, n + at, new + at, to, save, dim))
            elif count == 4:
                _forward_four(
                    kind,
                    (gates, pre[1], R + unit, bias + unit, old + r * row, c + at, n + at, m + at, new + at, to, out[1],
                     save, dim),
                )  # fmt: skip
            else:
                _forward_one(
                    kind,
                    (gates, pre[1], R + unit, bias + unit, old + r * row, c + at, n + at, m + at, new + at, to, out[1],
                     save, dim),
                )  # fmt: skip
            r += max(count, 1)


def slstm_forward(
    kind: Any, gates: Stream, x: Stream, u: Stream, W: int, inner: int, R: int, bias: int, state: int,
    plane: int, out: Stream, kept: int, mask: int, steps: int, dim: int, rows: int, span: int,
) -> None:  # fmt: skip
    """One task of the forward pass: `rows` batch rows of one head over all steps.

    gates: the input part of the pre-activations; where x has an address, room for `span` steps of it, computed here
    from x with W (inner, 4 dim); where u has one too, the gates i and f are computed from u. state: h, c, n, m at
    start and room for one more h, `plane` bytes apart, (rows, dim) each; left at the last step, h in the fifth if T is
    odd. kept: (steps, rows, SLOTS, dim) or 0. mask: (rows, steps) bytes or 0.
    """
    row = dim * bytes_of(kind)
    for t in range(steps):
        pre = _shifted(gates, t if x[0] == 0 else t % span)
        if x[0] != 0 and t % span == 0:
            count = min(span, steps - t)
            last = pre[0] + 2 * row, pre[1], pre[2]
            if u[0] == 0:
                _multiply_steps(kind, _shifted(x, t), W, 4 * row, inner, pre, 4 * row, rows, count)
            else:
                _multiply_steps(kind, _shifted(u, t), W, 4 * row, inner, pre, 2 * row, rows, count)
                _multiply_steps(kind, _shifted(x, t), W + 2 * row, 4 * row, inner, last, 2 * row, rows, count)
        save = 0 if kept == 0 else kept + t * rows * row * SLOTS
        _forward_step(kind, pre, R, bias, state, plane, t % 2, _shifted(out, t), save, mask, steps, dim, rows, t)


@njit
def _backward_step(
    kind: Any, kept: int, old_c: int, old_n: int, old_row: int, dout: Stream, grads: int, plane: int, beyond: int,
    back: int, dgates: Stream, db: int, mask: int, steps: int, dim: int, rows: int, t: int,
) -> None:  # fmt: skip
    """One step of all rows: gradients of its gates, then of h_{t-1}. kept, dout, dgates: at this step."""
    row = dim * bytes_of(kind)
    line = row * SLOTS
    dc, dn, ratio = grads + plane, grads + 2 * plane, grads + 3 * plane
    for unit in range(0, row, vector_bytes(kind)):
        r = 0
        while r < rows:
            count = _rows_at(mask, r, rows, steps, t)
            at = r * row + unit
            arguments = (
                kept + r * line + unit, line, old_c + r * old_row + unit, old_n + r * old_row + unit, old_row,
                dout[0] + r * dout[1] + unit, dout[1], grads + at, dc + at, dn + at, ratio + at if beyond else 0,
                dgates[0] + r * dgates[1] + unit, dgates[1], db + unit, dim,
            )  # fmt: skip
            if count == 0:
                _clear(kind, (dgates[0] + r * dgates[1] + unit, row))
            elif count == 4:
                _backward_four(kind, arguments)
            else:
                _backward_one(kind, arguments)
            r += max(count, 1)
    r = 0
    while r < rows:
        count = _rows_at(mask, r, rows, steps, t)
        if count:  # a masked row hands its dh on as it is
            _multiply(kind, count, dgates[0] + r * dgates[1], dgates[1], back, row, 4 * dim, grads + r * row, row, row)
        r += max(count, 1)


@njit
def _add_outer(
    kind: Any, a: Stream, inner: int, b: Stream, to: int, gates: int, dim: int, steps: int, rows: int
) -> None:
    """to (inner, 4, dim) += A^T B over the first `steps` steps of all rows, for all gates or 2 of them."""
    row, size = dim * bytes_of(kind), bytes_of(kind)
    for unit in range(0, row, vector_bytes(kind)):
        for k in range(0, inner, 4):
            arguments = (
                a[0] + k * size, a[2], a[1], b[0] + unit, b[2], b[1], row, steps, rows, to + k * 4 * row + unit,
                4 * row, row,
            )  # fmt: skip
            if gates == 4:
                _outer_four(kind, arguments)
            else:
                _outer_two(kind, arguments)


def slstm_backward(
    kind: Any, kept: int, start: int, hidden: Stream, dout: Stream, grads: int, plane: int, beyond: int, back: int,
    dgates: Stream, dR: int, db: int, x: Stream, u: Stream, dx: Stream, du: Stream, W: int, dW: int,
    inner: int, mask: int, steps: int, dim: int, rows: int, span: int,
) -> None:  # fmt: skip
    """One task of the backward pass; kept, mask, x, u, inner as in `slstm_forward`, hidden is its out.

    start: h, c, n at start, `plane` bytes apart. grads: gradients of the last h, c, n and of m alone (read where
    `beyond`), left at the start state. back: R as (4 dim, dim). dgates: all steps, or room for `span` where x has an
    address; dx (and du) are then written, W is (4 dim, inner). dR, db, dW: sums, zero at start.
    """
    row = dim * bytes_of(kind)
    line = rows * row * SLOTS
    for t in range(steps - 1, -1, -1):
        first = t - t % span
        here = _shifted(dgates, t if x[0] == 0 else t - first)
        save = kept + t * line
        old_c, old_n, old_row = save - line + 4 * row, save - line + 5 * row, row * SLOTS
        if t == 0:
            old_c, old_n, old_row = start + plane, start + 2 * plane, row
        _backward_step(
            kind, save, old_c, old_n, old_row, _shifted(dout, t), grads, plane, beyond, back, here, db, mask, steps,
            dim, rows, t,
        )  # fmt: skip
        if t != first:
            continue
        count = min(span, steps - t)
        if t == 0:
            _add_outer(kind, (start, row, row), dim, here, dR, 4, dim, 1, rows)
            _add_outer(kind, hidden, dim, _shifted(here, 1), dR, 4, dim, count - 1, rows)
        else:
            _add_outer(kind, _shifted(hidden, t - 1), dim, here, dR, 4, dim, count, rows)
        if x[0] != 0:
            last = here[0] + 2 * row, here[1], here[2]
            size, half = inner * bytes_of(kind), 2 * dim * inner * bytes_of(kind)
            if u[0] == 0:
                _multiply_steps(kind, here, W, size, 4 * dim, _shifted(dx, t), size, rows, count)
                _add_outer(kind, _shifted(x, t), inner, here, dW, 4, dim, count, rows)
            else:
                _multiply_steps(kind, here, W, size, 2 * dim, _shifted(du, t), size, rows, count)
                _multiply_steps(kind, last, W + half, size, 2 * dim, _shifted(dx, t), size, rows, count)
                _add_outer(kind, _shifted(u, t), inner, here, dW, 2, dim, count, rows)
                _add_outer(kind, _shifted(x, t), inner, last, dW + 2 * row, 2, dim, count, rows)
