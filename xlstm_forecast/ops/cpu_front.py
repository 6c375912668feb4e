"""What the kernels of the mLSTM layer do before its recurrence: causal convolution, SiLU and the maps to q, k and v.

Vectors of features, step by step of a chunk; letters and layouts as in `cpu_mixer`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit
from numba.core import cgutils

from .blocks import block, vector_bytes
from .simd import I64, Simd, Value

TAPS = 4  # of the convolution


def _window(simd: Simd, a: Any, row: Any, step: Any) -> list[Value]:
    """The inputs of the convolution at a step, newest first; a: the input three steps before step 0."""
    return [simd.load(simd.at(a, (step, row), (TAPS - 1 - lag, row))) for lag in range(TAPS)]


def _convolved(simd: Simd, x: list[Value], conv: Any, line: Any) -> Value:
    """The convolution of a window; conv: taps, oldest first, and bias, `line` bytes apart."""
    c = simd.load(simd.at(conv, (TAPS, line)))
    for lag in range(TAPS):
        c = x[lag] * simd.load(simd.at(conv, (TAPS - 1 - lag, line))) + c
    return c


def _mixed(simd: Simd, x: list[Value], weights: list[Value]) -> Value:
    """x mapped within blocks of four: x as `_shares` gives it."""
    return x[0] * weights[0] + x[1] * weights[1] + x[2] * weights[2] + x[3] * weights[3]


def _shares(simd: Simd, x: Value) -> list[Value]:
    """For each place in a block of four: that place's number in all lanes of its block."""
    return [simd.pickup(x, [lane // 4 * 4 + place for lane in range(simd.lanes)]) for place in range(4)]


def _maps_at(simd: Simd, maps: Any, line: Any) -> list[list[Value]]:
    """The maps to q, k and v, `line` bytes from one of a block's four inputs to the next."""
    return [[simd.load(simd.at(maps, (4 * part + d, line))) for d in range(4)] for part in range(3)]


def _to_tiles(simd: Simd, x: list[Value], conv: Any, line: Any, W: list[list[Value]]) -> tuple[Value, ...]:
    """u, q, k, v of a window."""
    c = _convolved(simd, x, conv, line)
    c = c * simd.sigmoid(c)
    shares = _shares(simd, c)
    return c, _mixed(simd, shares, W[0]), _mixed(simd, shares, W[1]), _mixed(simd, _shares(simd, x[0]), W[2])


def _emit_front(
    simd: Simd, a: Any, line: Any, conv: Any, maps: Any, u: Any, q: Any, k: Any, v: Any, row: Any, count: Any, *,
    times: int,
) -> None:  # fmt: skip
    """u, q, k, v of one or two vectors of features over a chunk; a: three steps before it."""
    simd = simd.times(times)
    W = _maps_at(simd, maps, line)
    with cgutils.for_range(simd.builder, count, intp=I64) as loop:
        values = _to_tiles(simd, _window(simd, a, row, loop.index), conv, line, W)
        for value, to in zip(values, (u, q, k, v), strict=True):
            simd.store(value, simd.at(to, (loop.index, row)))


def _before(simd: Simd, a: Any, past: Any, line: Any) -> list[Value]:
    """The window of one step: a, and the three inputs before, oldest first, `line` bytes apart."""
    return [simd.load(a)] + [simd.load(simd.at(past, (TAPS - 1 - lag, line))) for lag in range(1, TAPS)]


def _emit_front_step(
    simd: Simd, a: Any, past: Any, line: Any, conv: Any, maps: Any, u: Any, q: Any, k: Any, v: Any
) -> None:
    """u, q, k, v at one step, one vector of features."""
    values = _to_tiles(simd, _before(simd, a, past, line), conv, line, _maps_at(simd, maps, line))
    for value, to in zip(values, (u, q, k, v), strict=True):
        simd.store(value, to)


def _emit_front_back(
    simd: Simd, a: Any, line: Any, conv: Any, back: Any, du: Any, dq: Any, dk: Any, dv: Any, row: Any, count: Any,
    dc: Any, dconv: Any, dmaps: Any, *, times: int,
) -> None:  # fmt: skip
    """Gradients of one or two vectors of features over a chunk, last step first; that of a takes the place of dv.

    a: three steps before the chunk. back: the transposed maps. dc: gradient of the convolution's result, read at up to
    three steps behind the chunk. dconv, dmaps: sums, laid out as conv and maps.
    """
    simd, builder = simd.times(times), simd.builder
    taps = [simd.load(simd.at(conv, (j, line))) for j in range(TAPS)]
    turned = _maps_at(simd, back, line)
    places = [simd.at(dconv, (j, line)) for j in range(TAPS + 1)] + [simd.at(dmaps, (j, line)) for j in range(12)]
    sums = [cgutils.alloca_once(builder, simd.vector) for _ in places]
    for slot, place in zip(sums, places, strict=True):
        builder.store(simd.load(place).value, slot)
    with cgutils.for_range(builder, count, intp=I64) as loop:
        s = builder.sub(builder.sub(count, ir.Constant(I64, 1)), loop.index)
        x = _window(simd, a, row, s)
        c = _convolved(simd, x, conv, line)
        sigmoid = simd.sigmoid(c)
        u = c * sigmoid
        grads = [simd.load(simd.at(part, (s, row))) for part in (dq, dk, dv)]
        grad_u = simd.load(simd.at(du, (s, row)))
        grad_u = grad_u + _mixed(simd, _shares(simd, grads[0]), turned[0])
        grad_u = grad_u + _mixed(simd, _shares(simd, grads[1]), turned[1])
        grad_c = grad_u * (sigmoid + u * (1.0 - sigmoid))
        simd.store(grad_c, simd.at(dc, (s, row)))
        grad_a = _mixed(simd, _shares(simd, grads[2]), turned[2]) + grad_c * taps[TAPS - 1]
        for lag in range(1, TAPS):
            grad_a = grad_a + simd.load(simd.at(dc, (s, row), (lag, row))) * taps[TAPS - 1 - lag]
        simd.store(grad_a, simd.at(dv, (s, row)))
        more = [grad_c * x[TAPS - 1 - j] for j in range(TAPS)] + [grad_c]
        from_u, from_a = _shares(simd, u), _shares(simd, x[0])
        more += [from_u[d] * grads[part] for part in range(2) for d in range(4)] + [
            share * grads[2] for share in from_a
        ]
        for slot, value in zip(sums, more, strict=True):
            builder.store((Value(simd, builder.load(slot)) + value).value, slot)
    for slot, place in zip(sums, places, strict=True):
        simd.store(Value(simd, builder.load(slot)), place)


def _emit_conv(simd: Simd, a: Any, past: Any, line: Any, conv: Any, u: Any) -> None:
    """u = SiLU of the convolution at one step, one vector of features; past: the three inputs before, oldest first."""
    c = _convolved(simd, _before(simd, a, past, line), conv, line)
    simd.store(c * simd.sigmoid(c), u)


@njit
def at_once(kind: Any, row: int) -> int:
    """Bytes of a row that are worked on side by side: a cache line of 64 bytes, so that it comes once where a pass goes
    over a chunk, in two vectors where one is shorter."""
    wide = vector_bytes(kind)
    return 2 * wide if wide < 64 and row % (2 * wide) == 0 else wide


def side_by_side(emit: Callable[..., None]) -> Any:
    """The block of `emit(simd, ..., times=)` for as much of a row as `at_once` says: run(kind, row, arguments)."""
    one, two = block(emit, times=1), block(emit, times=2)

    @njit
    def run(kind: Any, row: int, arguments: tuple[int, ...]) -> None:
        if at_once(kind, row) > vector_bytes(kind):
            two(kind, arguments)
        else:
            one(kind, arguments)

    return run


front = side_by_side(_emit_front)
front_back = side_by_side(_emit_front_back)
front_step = block(_emit_front_step)
conv_step = block(_emit_conv)
