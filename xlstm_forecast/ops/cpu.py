"""Compiled CPU kernels: the only home of numba, imported when a kernel is first asked for.

A kernel runs one task (some batch rows of one head) over the whole sequence and is called without the interpreter lock,
so that the caller can spread tasks over threads of its own. The inner blocks are written with `_Simd`, which emits
vector instructions for one kind ("f32x16": float32, 16 lanes) and compiles for any CPU that LLVM knows. Arguments are
addresses, byte strides and counts: no array object is built per call.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

SLOTS = 6  # kept per step and unit for backward: signed decay, 1 - sigmoid(f), z, o, c, n
ENABLED = not numba.config.DISABLE_JIT
_I64 = ir.IntType(64)


class _Value:
    """A vector in a block being built: arithmetic on it emits instructions, fused where the CPU can."""

    def __init__(self, simd: _Simd, value: Any):
        self.simd, self.value = simd, value

    def _binary(self, op: str, left: Any, right: Any) -> _Value:
        left, right = self.simd.lift(left), self.simd.lift(right)
        return _Value(self.simd, getattr(self.simd.builder, op)(left.value, right.value, flags=("contract",)))

    def __add__(self, other: Any) -> _Value:
        return self._binary("fadd", self, other)

    def __sub__(self, other: Any) -> _Value:
        return self._binary("fsub", self, other)

    def __rsub__(self, other: Any) -> _Value:
        return self._binary("fsub", other, self)

    def __mul__(self, other: Any) -> _Value:
        return self._binary("fmul", self, other)

    def __truediv__(self, other: Any) -> _Value:
        return self._binary("fdiv", self, other)

    def __rtruediv__(self, other: Any) -> _Value:
        return self._binary("fdiv", other, self)

    __radd__, __rmul__ = __add__, __mul__


class _Simd:
    """Emits vector code of one kind. NaN goes through every operation; nothing here assumes finite numbers."""

    def __init__(self, builder: Any, kind: str):
        self.builder = builder
        self.bits, self.lanes = _width(kind)
        self.size = self.bits // 8
        self.scalar = ir.FloatType() if self.bits == 32 else ir.DoubleType()
        self.integer = ir.VectorType(ir.IntType(self.bits), self.lanes)
        self.vector = ir.VectorType(self.scalar, self.lanes)
        self.mantissa = 23 if self.bits == 32 else 52

    def lift(self, x: Any) -> _Value:
        return x if isinstance(x, _Value) else _Value(self, ir.Constant(self.vector, [float(x)] * self.lanes))

    def _integers(self, x: int) -> Any:
        return ir.Constant(self.integer, [x] * self.lanes)

    def _pointer(self, address: Any, kind: Any) -> Any:
        return self.builder.inttoptr(address, kind.as_pointer())

    def load(self, address: Any) -> _Value:
        return _Value(self, self.builder.load(self._pointer(address, self.vector), align=self.size))

    def store(self, value: Any, address: Any) -> None:
        self.builder.store(self.lift(value).value, self._pointer(address, self.vector), align=self.size)

    def spread(self, address: Any) -> _Value:
        """One number from memory in all lanes."""
        one = self.builder.load(self._pointer(address, self.scalar), align=self.size)
        single = self.builder.insert_element(
            ir.Constant(self.vector, ir.Undefined), one, ir.Constant(ir.IntType(32), 0)
        )
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return _Value(self, self.builder.shuffle_vector(single, single, zeros))

    def at(self, address: Any, *steps: Any) -> Any:
        """address + sum of steps: each a byte count, or a pair (count, byte stride), known now or at run time."""
        for step in steps:
            count, stride = step if isinstance(step, tuple) else (step, 1)
            if isinstance(count, int) and count == 0:
                continue
            stride = ir.Constant(_I64, stride) if isinstance(stride, int) else stride
            count = ir.Constant(_I64, count) if isinstance(count, int) else count
            address = self.builder.add(address, self.builder.mul(count, stride))
        return address

    def pick(self, op: str, left: Any, right: Any, yes: Any, no: Any) -> _Value:
        """yes where `left op right`, else no (no where either is NaN)."""
        left, right, yes, no = (self.lift(x).value for x in (left, right, yes, no))
        return _Value(self, self.builder.select(self.builder.fcmp_ordered(op, left, right), yes, no))

    def pick_sign(self, x: _Value, yes: Any, no: Any) -> _Value:
        """yes where the sign bit of x is set, else no."""
        negative = self.builder.icmp_signed("<", self._as_int(x), self._integers(0))
        return _Value(self, self.builder.select(negative, self.lift(yes).value, self.lift(no).value))

    def _as_int(self, x: _Value) -> Any:
        return self.builder.bitcast(x.value, self.integer)

    def _as_float(self, value: Any) -> _Value:
        return _Value(self, self.builder.bitcast(value, self.vector))

    def _sign_mask(self, x: _Value, op: str, mask: int) -> Any:
        return getattr(self.builder, op)(self._as_int(x), self._integers(mask))

    def negative_abs(self, x: _Value) -> _Value:
        return self._as_float(self._sign_mask(x, "or_", 1 << (self.bits - 1)))

    def abs(self, x: _Value) -> _Value:
        return self._as_float(self._sign_mask(x, "and_", (1 << (self.bits - 1)) - 1))

    def flip_sign(self, x: _Value, by: _Value) -> _Value:
        """x with its sign changed where `by` has the sign bit set."""
        return self._as_float(self.builder.xor(self._as_int(x), self._sign_mask(by, "and_", 1 << (self.bits - 1))))

    def _reduced(self, x: _Value) -> tuple[_Value, Any]:
        """exp(r) - 1 and the bits of 2^k for x = k ln 2 + r at or under 0; below the range's end x counts as the end."""
        end, magic = (-87.0, 1.5 * 2.0**23) if self.bits == 32 else (-708.0, 1.5 * 2.0**52)
        high, low = (0.693359375, -2.12194440e-4) if self.bits == 32 else (0.693145751953125, 1.42860682030941723212e-6)
        x = self.pick("<", x, end, end, x)
        shifted = x * (1 / math.log(2)) + magic
        k = shifted - magic
        r = (x - k * high) - k * low
        series = self.series(r, [1 / math.factorial(j) for j in range(1, 8 if self.bits == 32 else 14)])
        return r * series, self.builder.shl(self._as_int(shifted), self._integers(self.mantissa))

    def series(self, x: _Value, terms: list[float]) -> _Value:
        total = self.lift(terms[-1])
        for term in terms[-2::-1]:
            total = total * x + term
        return total

    def exp(self, x: _Value) -> _Value:
        """exp(x) for x <= 0, about 1 ulp; the smallest normal number stands for anything below it."""
        part, power = self._reduced(x)
        return self._as_float(self.builder.add(self._as_int(part + 1.0), power))

    def expm1(self, x: _Value) -> _Value:
        """exp(x) - 1 for x <= 0, without cancellation near 0."""
        part, power = self._reduced(x)
        scale = self._as_float(self.builder.add(self._as_int(self.lift(1.0)), power))
        return part * scale + (scale - 1.0)

    def log1p(self, x: _Value) -> _Value:
        """log(1 + x) for x in [0, 1], by 2 atanh(x / (2 + x))."""
        s = x / (x + 2.0)
        terms = [2 / (2 * j + 1) for j in range(8 if self.bits == 32 else 17)]
        return s * self.series(s * s, terms)

    def tanh(self, x: _Value) -> _Value:
        e = self.expm1(self.negative_abs(x) * 2.0)
        return self.flip_sign((0.0 - e) / (e + 2.0), x)


def _width(kind: str) -> tuple[int, int]:
    bits, lanes = kind[1:].split("x")
    return int(bits), int(lanes)


def _block(emit: Callable[..., None], **fixed: int) -> Any:
    """Make an intrinsic of `emit(simd, *arguments, **fixed)`, called as block(kind, (arguments)) with 64-bit integers."""

    @intrinsic(prefer_literal=True)
    def block(typingctx: Any, kind: Any, arguments: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            values = cgutils.unpack_tuple(builder, args[1])
            given = [context.cast(builder, x, t, types.int64) for x, t in zip(values, arguments.types, strict=True)]
            emit(_Simd(builder, kind.literal_value), *given, **fixed)
            return context.get_dummy_value()

        return types.void(kind, arguments), generate

    return block


@intrinsic(prefer_literal=True)
def _bytes(typingctx: Any, kind: Any) -> Any:
    """Bytes of one number of the kind."""
    size = _width(kind.literal_value)[0] // 8
    return types.int64(kind), lambda context, builder, signature, args: ir.Constant(_I64, size)


@intrinsic(prefer_literal=True)
def _vector_bytes(typingctx: Any, kind: Any) -> Any:
    """Bytes of one vector of the kind."""
    bits, lanes = _width(kind.literal_value)
    return types.int64(kind), lambda context, builder, signature, args: ir.Constant(_I64, bits // 8 * lanes)


@intrinsic
def _byte(typingctx: Any, address: Any) -> Any:
    """The byte at an address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = builder.load(builder.inttoptr(args[0], ir.IntType(8).as_pointer()), align=1)
        return builder.zext(value, _I64)

    return types.int64(types.int64), generate


def _product(
    simd: _Simd,
    start: list[list[_Value | None]],
    count: Any,
    a: Any,
    a_row: Any,
    a_step: Any,
    b: Any,
    b_column: Any,
    b_step: Any,
    split: int,
) -> list[list[_Value]]:
    """start + A B for a few rows and vectors of columns held in registers.

    A's numbers lie at a + row * a_row + k * a_step, B's vectors at b + column * b_column + k * b_step, k < count, a
    multiple of `split`; with few accumulators, `split` of them per result hide the latency of the multiply-add.
    """
    builder, rows, columns = simd.builder, len(start), len(start[0])
    sums = [
        [[cgutils.alloca_once(builder, simd.vector) for _ in range(columns)] for _ in range(rows)] for _ in range(split)
    ]
    for part in range(split):
        for row in range(rows):
            for column in range(columns):
                first = start[row][column] if part == 0 else None
                builder.store(simd.lift(0.0 if first is None else first).value, sums[part][row][column])
    trips = builder.udiv(count, ir.Constant(_I64, split)) if split > 1 else count
    with cgutils.for_range(builder, trips, intp=_I64) as loop:
        for part in range(split):
            k = builder.add(builder.mul(loop.index, ir.Constant(_I64, split)), ir.Constant(_I64, part))
            line = simd.at(b, (k, b_step))
            right = [simd.load(simd.at(line, (column, b_column))) for column in range(columns)]
            for row in range(rows):
                left = simd.spread(simd.at(a, (row, a_row), (k, a_step)))
                for column in range(columns):
                    slot = sums[part][row][column]
                    builder.store((_Value(simd, builder.load(slot)) + left * right[column]).value, slot)
    total = [[_Value(simd, builder.load(x)) for x in row] for row in sums[0]]
    for part in range(1, split):
        total = [
            [x + _Value(simd, builder.load(y)) for x, y in zip(row, more, strict=True)]
            for row, more in zip(total, sums[part], strict=True)
        ]
    return total


def _emit_forward(
    simd: _Simd,
    gates: Any,
    gates_row: Any,
    R: Any,
    bias: Any,
    old_h: Any,
    unit: Any,
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

    Addresses are those of the first row, at the units; old_h at the row's first unit. unit: byte offset of the units.
    """
    row = simd.builder.mul(dim, ir.Constant(_I64, simd.size))
    start: list[list[_Value | None]] = [
        [simd.load(simd.at(gates, (r, gates_row), (g, row))) + simd.load(simd.at(bias, (g, row))) for g in range(4)]
        for r in range(rows)
    ]
    line = simd.builder.mul(row, ir.Constant(_I64, 4))
    pre = _product(simd, start, dim, old_h, row, simd.size, R, row, line, split)
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
        with simd.builder.if_then(simd.builder.icmp_signed("!=", kept, ir.Constant(_I64, 0))):
            forgot = simd.pick(">=", f, 0.0, e, 1.0) / (e + 1.0)
            for slot, value in enumerate((simd.flip_sign(less, lead), forgot, z, o, new_c, new_n)):
                simd.store(value, simd.at(kept, (r * SLOTS + slot, row)))


def _emit_hold(simd: _Simd, old_h: Any, c: Any, n: Any, new_h: Any, out: Any, kept: Any, dim: Any) -> None:
    """A masked step of one row and one vector of units: everything stays."""
    row = simd.builder.mul(dim, ir.Constant(_I64, simd.size))
    h = simd.load(old_h)
    simd.store(h, new_h)
    simd.store(h, out)
    with simd.builder.if_then(simd.builder.icmp_signed("!=", kept, ir.Constant(_I64, 0))):
        simd.store(simd.load(c), simd.at(kept, (4, row)))
        simd.store(simd.load(n), simd.at(kept, (5, row)))


def _emit_backward(
    simd: _Simd,
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

    h depends on c exp(m) and n exp(m) only, so m counts as constant on their way; what a loss on the last state sends
    into m itself (`ratio`, an address or 0) goes to the gate that set m: the input gate, or the forget gate and m_{t-1}.
    """
    builder = simd.builder
    row = builder.mul(dim, ir.Constant(_I64, simd.size))
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
        with builder.if_then(builder.icmp_signed("!=", ratio, ir.Constant(_I64, 0))):
            at_ratio = simd.at(ratio, (r, row))
            moving = simd.load(at_ratio)
            passed = simd.pick_sign(signed, moving, 0.0)
            builder.store(simd.pick_sign(signed, 0.0, moving).value, moved_i)
            builder.store(passed.value, moved_f)
            simd.store(passed, at_ratio)
        d = (
            gained + _Value(simd, builder.load(moved_i)),
            (lost + _Value(simd, builder.load(moved_f))) * forgot,
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


def _emit_clear(simd: _Simd, address: Any, stride: Any) -> None:
    """Zeros to four vectors, for the gates of a masked step."""
    for g in range(4):
        simd.store(0.0, simd.at(address, (g, stride)))


def _emit_product(
    simd: _Simd,
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
    width = simd.size * simd.lanes
    total = _product(simd, [[None] * columns] * rows, count, a, a_row, simd.size, b, width, b_step, split)
    for r in range(rows):
        for column in range(columns):
            simd.store(total[r][column], simd.at(to, (r, to_row), (column, width)))


def _emit_outer(
    simd: _Simd,
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
    with cgutils.for_range(builder, lines, intp=_I64) as line:
        start: list[list[_Value | None]] = [[_Value(simd, builder.load(x)) for x in row] for row in sums]
        left, right = simd.at(a, (line.index, a_line)), simd.at(b, (line.index, b_line))
        total = _product(simd, start, steps, left, ir.Constant(_I64, simd.size), a_step, right, b_column, b_step, 1)
        for r in range(rows):
            for g in range(columns):
                builder.store(total[r][g].value, sums[r][g])
    for r in range(rows):
        for g in range(columns):
            simd.store(_Value(simd, builder.load(sums[r][g])), places[r][g])


_forward_four = _block(_emit_forward, rows=4, split=1)
_forward_one = _block(_emit_forward, rows=1, split=2)
_hold = _block(_emit_hold)
_backward_four = _block(_emit_backward, rows=4)
_backward_one = _block(_emit_backward, rows=1)
_clear = _block(_emit_clear)
_back_four_wide = _block(_emit_product, rows=4, columns=2, split=2)
_back_four = _block(_emit_product, rows=4, columns=1, split=4)
_back_one_wide = _block(_emit_product, rows=1, columns=2, split=4)
_back_one = _block(_emit_product, rows=1, columns=1, split=8)
_outer = _block(_emit_outer, rows=4, columns=4)


def slstm_forward(
    kind: Any,
    gates: int,
    gates_row: int,
    gates_step: int,
    R: int,
    bias: int,
    h_even: int,
    h_odd: int,
    c: int,
    n: int,
    m: int,
    out: int,
    out_row: int,
    out_step: int,
    kept: int,
    mask: int,
    steps: int,
    dim: int,
    rows: int,
) -> None:
    """One task of the forward pass: `rows` batch rows of one head over all steps.

    h_even holds h_0 at start; c, n, m hold the start state and are left at the last one, h_T in h_even or h_odd by the
    parity of T; each (rows, dim). kept: (steps, rows, SLOTS, dim) or 0. mask: (rows, steps) bytes or 0.
    """
    row, width = dim * _bytes(kind), _vector_bytes(kind)
    old, new = h_even, h_odd
    for t in range(steps):
        for unit in range(0, row, width):
            r = 0
            while r < rows:
                count = 4 if r + 4 <= rows else 1
                whole = True
                if mask != 0:
                    for q in range(count):
                        whole = whole and _byte(mask + (r + q) * steps + t) != 0
                if not whole:
                    count = 1
                    whole = _byte(mask + r * steps + t) != 0
                at = r * row + unit
                save = 0 if kept == 0 else kept + (t * rows + r) * row * SLOTS + unit
                pre = gates + r * gates_row + t * gates_step + unit
                to = out + r * out_row + t * out_step + unit
                if not whole:
                    _hold(kind, (old + at, c + at, n + at, new + at, to, save, dim))
                elif count == 4:
                    _forward_four(
                        kind,
                        (pre, gates_row, R + unit, bias + unit, old + r * row, unit, c + at, n + at, m + at, new + at,
                         to, out_row, save, dim),
                    )  # fmt: skip
                else:
                    _forward_one(
                        kind,
                        (pre, gates_row, R + unit, bias + unit, old + r * row, unit, c + at, n + at, m + at, new + at,
                         to, out_row, save, dim),
                    )  # fmt: skip
                r += count
        old, new = new, old


def slstm_backward(
    kind: Any,
    kept: int,
    c: int,
    n: int,
    first_h: int,
    hidden: int,
    hidden_row: int,
    hidden_step: int,
    dout: int,
    dout_row: int,
    dout_step: int,
    dh: int,
    dc: int,
    dn: int,
    ratio: int,
    back: int,
    dgates: int,
    dgates_row: int,
    dgates_step: int,
    dR: int,
    db: int,
    mask: int,
    steps: int,
    dim: int,
    rows: int,
    span: int,
) -> None:
    """One task of the backward pass; the layouts are those of `slstm_forward`, hidden is its out.

    c, n, first_h: the start state. dh, dc, dn, ratio (or 0): gradients at the last state, left at the start state.
    back: R as (4 dim, dim). dR, db: this task's sums, zero at start. span: steps whose outer products are done together.
    """
    row, width = dim * _bytes(kind), _vector_bytes(kind)
    line = row * SLOTS
    end = steps
    for t in range(steps - 1, -1, -1):
        for unit in range(0, row, width):
            r = 0
            while r < rows:
                count = 4 if r + 4 <= rows else 1
                whole = True
                if mask != 0:
                    for q in range(count):
                        whole = whole and _byte(mask + (r + q) * steps + t) != 0
                if not whole:
                    count = 1
                    whole = _byte(mask + r * steps + t) != 0
                at = r * row + unit
                save = kept + (t * rows + r) * line + unit
                old_c, old_n, old_row = save - rows * line + 4 * row, save - rows * line + 5 * row, line
                if t == 0:
                    old_c, old_n, old_row = c + at, n + at, row
                grad = dout + r * dout_row + t * dout_step + unit
                to = dgates + r * dgates_row + t * dgates_step + unit
                tail = 0 if ratio == 0 else ratio + at
                if not whole:
                    _clear(kind, (to, row))
                elif count == 4:
                    _backward_four(
                        kind,
                        (save, line, old_c, old_n, old_row, grad, dout_row, dh + at, dc + at, dn + at, tail, to,
                         dgates_row, db + unit, dim),
                    )  # fmt: skip
                else:
                    _backward_one(
                        kind,
                        (save, line, old_c, old_n, old_row, grad, dout_row, dh + at, dc + at, dn + at, tail, to,
                         dgates_row, db + unit, dim),
                    )  # fmt: skip
                r += count
        r = 0
        while r < rows:
            count = 4 if r + 4 <= rows else 1
            whole = True
            if mask != 0:
                for q in range(count):
                    whole = whole and _byte(mask + (r + q) * steps + t) != 0
            if not whole:
                count = 1
                whole = _byte(mask + r * steps + t) != 0
            if whole:
                source = dgates + r * dgates_row + t * dgates_step
                unit = 0
                while unit < row:
                    wide = unit + 2 * width <= row
                    to = dh + r * row + unit
                    if count == 4 and wide:
                        _back_four_wide(kind, (source, dgates_row, back + unit, row, 4 * dim, to, row))
                    elif count == 4:
                        _back_four(kind, (source, dgates_row, back + unit, row, 4 * dim, to, row))
                    elif wide:
                        _back_one_wide(kind, (source, dgates_row, back + unit, row, 4 * dim, to, row))
                    else:
                        _back_one(kind, (source, dgates_row, back + unit, row, 4 * dim, to, row))
                    unit += 2 * width if wide else width
            r += count
        if t % span == 0:
            start = max(t, 1)
            for unit in range(0, row, width):
                for k in range(0, dim, 4):
                    to = dR + k * 4 * row + unit
                    off = k * _bytes(kind)
                    if end > start:
                        _outer(
                            kind,
                            (hidden + (start - 1) * hidden_step + off, hidden_step, hidden_row,
                             dgates + start * dgates_step + unit, dgates_step, dgates_row, row, end - start, rows,
                             to, 4 * row, row),
                        )  # fmt: skip
                    if t == 0:
                        _outer(
                            kind,
                            (first_h + off, row, row, dgates + unit, dgates_step, dgates_row, row, 1, rows,
                             to, 4 * row, row),
                        )  # fmt: skip
            end = t


def compiled(function: Any, kind: str) -> Callable[..., None]:
    """The machine code of one kernel for one kind, from the cache on disk where there is one."""
    count = function.__code__.co_argcount - 1
    signature = (types.literal(kind), *[types.int64] * count)
    try:
        return numba.njit(function, nogil=True, cache=True, error_model="numpy").compile(signature)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):  # no place or room for the cache, or a torn file
        return numba.njit(function, nogil=True, error_model="numpy").compile(signature)
