"""Compiled kernels of the whole mLSTM layer between its up- and down-projection, imported when one is first asked for.

A kernel takes batch rows chunk by chunk of time, so that all that a chunk needs stays in cache: causal convolution,
SiLU, the maps of blocks of four features to q, k, v, the gates, the recurrence of `cpu_mlstm`, per-head norm, skip and
output gate. Backward computes all of that again but the recurrence's outputs and states at chunk starts.

Tiles are (heads, length, dim): a chunk's u, q, k or v. k is scaled by its maps, see `mixer_cpu.pack`. Letters as in
`xlstm_forecast.layers.mlstm`: a, g are the halves of the up-projection, u = SiLU(conv(a)).
"""

from __future__ import annotations

import math
from typing import Any

from numba import njit
from numba.core import cgutils

from .blocks import Stream, block, byte_at, bytes_of, number_at, put_number, vector_bytes
from .cpu_front import TAPS, at_once, front, front_back, side_by_side
from .cpu_mlstm import backward_chunk, backward_room, forward_chunk, forward_room, growth, keep_state
from .cpu_rows import ALL, add, clear, matmul, over_row, scale, turn
from .simd import Simd, Value


def _moments(simd: Simd, h: Any, size: Any, constants: Any) -> tuple[Value, Value, Value]:
    """Mean and inverse deviation of a row, and 1 / its length; constants: that number and the norm's epsilon."""
    builder = simd.builder
    part, eps = simd.spread(constants), simd.spread(simd.at(constants, simd.size))
    slot = cgutils.alloca_once(builder, simd.vector)

    def total(term: Any) -> Value:
        builder.store(simd.lift(0.0).value, slot)
        over_row(
            simd,
            size,
            lambda at: builder.store((Value(simd, builder.load(slot)) + term(simd.load(simd.at(h, at)))).value, slot),
        )
        return simd.total(Value(simd, builder.load(slot))) * part

    mean = total(lambda x: x)
    return mean, 1.0 / simd.sqrt(total(lambda x: (x - mean) * (x - mean)) + eps), part


def _emit_back(
    simd: Simd, h: Any, u: Any, g: Any, weight: Any, skip: Any, z: Any, size: Any, constants: Any, g_next: Any,
    z_next: Any, *, times: int,
) -> None:  # fmt: skip
    """z = (norm(h) weight + skip u) SiLU(g) for one head at one step; g_next, z_next: the rows to come."""
    simd = simd.times(times)
    mean, inverse, _ = _moments(simd, h, size, constants)

    def body(at: Any) -> None:
        simd.prefetch(simd.at(g_next, at))
        simd.prefetch(simd.at(z_next, at), 1)
        gate = simd.load(simd.at(g, at))
        y = (simd.load(simd.at(h, at)) - mean) * inverse * simd.load(simd.at(weight, at))
        y = y + simd.load(simd.at(skip, at)) * simd.load(simd.at(u, at))
        simd.store(y * gate * simd.sigmoid(gate), simd.at(z, at))

    over_row(simd, size, body)


def _emit_norm(simd: Simd, h: Any, weight: Any, size: Any, constants: Any) -> None:
    """h = norm(h) (1 + weight) for one head at one step."""
    mean, inverse, _ = _moments(simd, h, size, constants)

    def body(at: Any) -> None:
        y = (simd.load(simd.at(h, at)) - mean) * inverse
        simd.store(y * simd.load(simd.at(weight, at)) + y, simd.at(h, at))

    over_row(simd, size, body)


def _emit_back_back(
    simd: Simd, dz: Any, h: Any, u: Any, g: Any, weight: Any, skip: Any, z: Any, dh: Any, du: Any, dg: Any,
    dweight: Any, dskip: Any, size: Any, constants: Any, line: Any, g_line: Any, *, times: int,
) -> None:  # fmt: skip
    """Gradients of `_emit_back`, and z again. dweight, dskip: sums; line, g_line: bytes to the next step of dz, h, z,
    and of g, dg."""
    streams = (dz, line, 0), (h, line, 0), (g, g_line, 0), (z, line, 1), (dg, g_line, 1)
    simd, builder = simd.times(times), simd.builder
    mean, inverse, part = _moments(simd, h, size, constants)
    straight, along = (cgutils.alloca_once(builder, simd.vector) for _ in range(2))
    for slot in (straight, along):
        builder.store(simd.lift(0.0).value, slot)

    def first(at: Any) -> None:
        for stream, beyond, write in streams:
            simd.prefetch(simd.at(stream, at, beyond), write)
        grad, gate, here = (simd.load(simd.at(x, at)) for x in (dz, g, u))
        scales, skips = simd.load(simd.at(weight, at)), simd.load(simd.at(skip, at))
        unit = (simd.load(simd.at(h, at)) - mean) * inverse
        y, sigmoid = unit * scales + skips * here, simd.sigmoid(gate)
        simd.store(y * gate * sigmoid, simd.at(z, at))
        simd.store(grad * y * sigmoid * (1.0 + gate * (1.0 - sigmoid)), simd.at(dg, at))
        dy = grad * gate * sigmoid
        simd.store(dy * skips, simd.at(du, at))
        for sums, value in ((dskip, dy * here), (dweight, dy * unit)):
            simd.store(simd.load(simd.at(sums, at)) + value, simd.at(sums, at))
        dy = dy * scales
        simd.store(dy, simd.at(dh, at))
        for slot, value in ((straight, dy), (along, dy * unit)):
            builder.store((Value(simd, builder.load(slot)) + value).value, slot)

    over_row(simd, size, first)
    constant = simd.total(Value(simd, builder.load(straight))) * part
    slope = simd.total(Value(simd, builder.load(along))) * part * inverse

    def second(at: Any) -> None:
        centred = simd.load(simd.at(h, at)) - mean
        simd.store((simd.load(simd.at(dh, at)) - constant - centred * slope) * inverse, simd.at(dh, at))

    over_row(simd, size, second)


back = side_by_side(_emit_back)
norm = block(_emit_norm)
_back_back = side_by_side(_emit_back_back)


@njit
def _weights_at(kind: Any, weights: int, heads: int, dim: int, width: int) -> tuple[int, ...]:
    """Where `mixer_cpu.pack` puts convolution, maps, norm with skip, gates, their bias, turned maps, turned gates."""
    line = heads * dim * bytes_of(kind)
    norm = weights + 17 * line
    gates = norm + 2 * line
    bias = gates + 3 * line * width
    back = bias + width * bytes_of(kind)
    return weights, weights + 5 * line, norm, gates, bias, back, back + 12 * line


@njit
def _lay(
    kind: Any, a: Stream, past: int, t: int, to: int, heads: int, dim: int, count: int, length: int, one: int
) -> None:
    """A chunk of a with the three steps before it, side by side: (heads, 3 + length, dim). a: at time 0."""
    row = dim * bytes_of(kind)
    for s in range(count + TAPS - 1):
        time = t + s - TAPS + 1
        source = a[0] + time * a[2] if time >= 0 else past + (time + TAPS - 1) * heads * row
        for head in range(heads):
            scale(kind, (source + head * row, to + (head * (length + TAPS - 1) + s) * row, one, row))


@njit
def _prepare(
    kind: Any, laid: int, weights: tuple[int, ...], tiles: tuple[int, ...], mask: int, heads: int, dim: int, count: int,
    length: int,
) -> None:  # fmt: skip
    """Fill a chunk's tiles u, q, k, v; q, k and v are 0 at masked steps and behind the chunk. laid: see `_lay`."""
    row = dim * bytes_of(kind)
    line = heads * row
    conv, maps = weights[0], weights[1]
    u, q, k, v = tiles
    for head in range(heads):
        tile, source = head * length * row, laid + head * (length + TAPS - 1) * row
        for unit in range(0, row, at_once(kind, row)):
            at, to = head * row + unit, tile + unit
            front(kind, row, (source + unit, line, conv + at, maps + at, u + to, q + to, k + to, v + to, row, count))
        for part in (q, k, v):
            clear(kind, (part + tile + count * row, (length - count) * row))
            if mask:
                _blank(kind, part + tile, row, mask, count)


@njit
def _blank(kind: Any, rows: int, row: int, mask: int, count: int) -> None:
    """Zeros to the rows of masked steps."""
    for s in range(count):
        if byte_at(mask + s) == 0:
            clear(kind, (rows + s * row, row))


@njit
def _gate(
    kind: Any, weights: tuple[int, ...], tiles: tuple[int, ...], spare: int, to: int, mask: int, heads: int, dim: int,
    count: int, length: int, width: int, one: int,
) -> None:  # fmt: skip
    """Pre-activations of a chunk's gates, (width, length) at `to`: those of i, then those of f, then fill."""
    number = bytes_of(kind)
    row, wide, line = dim * number, width * number, length * number
    for s in range(length):
        scale(kind, (weights[4], spare + s * wide, one, wide))
    for part in range(3):
        for head in range(heads):
            after = weights[3] + (part * heads + head) * dim * wide
            tile = tiles[part + 1] + head * length * row
            matmul(kind, ALL, length, tile, row, number, after, wide, dim, spare, wide, wide)
    turn(kind, spare, length, width, to)
    if mask:  # a masked step forgets nothing and takes nothing in
        for s in range(count):
            if byte_at(mask + s) == 0:
                for head in range(heads):
                    put_number(kind, to + head * line + s * number, -math.inf)
                    put_number(kind, to + (heads + head) * line + s * number, math.inf)


@njit
def _record_at(kind: Any, record: int, steps: int, heads: int, dim: int, length: int, width: int) -> tuple[int, ...]:
    """Where a row's record keeps for each head its states at chunk starts, and m with the denominators; for each chunk
    the recurrence's outputs (length, heads dim) and the gates; where the next record starts. See `mixer_cpu.Shape`."""
    number = bytes_of(kind)
    chunks = (steps + length - 1) // length
    marks = record + heads * (chunks + 1) * dim * (dim + 1) * number
    hidden = marks + heads * (2 * steps + 1) * number
    gates = hidden + chunks * heads * dim * length * number
    return record, marks, hidden, gates, gates + chunks * width * length * number


@njit
def _norms(kind: Any, to: int, dim: int, norm_eps: float) -> int:
    """What `_moments` takes, put at `to`; where the next thing may stand."""
    put_number(kind, to, 1.0 / dim)
    put_number(kind, to + bytes_of(kind), norm_eps)
    return to + vector_bytes(kind)


@njit
def _backward_places(scratch: int, tile: int, line: int, gate: int, ratio: int) -> tuple[Any, ...]:
    """Where backward keeps a chunk's tiles u, q, k, v; gradients of h, u, of q, k, v, of the convolution; `_lay`'s
    copy; gates; what is left for m, of `ratio` bytes; the norm's constants."""
    tiles = scratch, scratch + tile, scratch + 2 * tile, scratch + 3 * tile
    grads = scratch + 6 * tile, scratch + 7 * tile, scratch + 8 * tile
    dc = scratch + 9 * tile
    laid = dc + tile + (TAPS - 1) * line
    turned = laid + tile + (TAPS - 1) * line
    ratios = turned + 2 * gate
    return tiles, scratch + 4 * tile, scratch + 5 * tile, grads, dc, laid, turned, ratios, ratios + ratio


def mixer_forward(
    kind: Any, a: Stream, past: int, z: Stream, packed: int, C: int, n: int, m: int, record: int, mask: int,
    scratch: int, steps: int, heads: int, dim: int, length: int, width: int, rows: int, eps: float, norm_eps: float,
) -> None:  # fmt: skip
    """One task of the forward pass: `rows` batch rows, all heads.

    a: the up-projection, g beside a. past: (rows, 3, heads dim), a before the first step. packed: see `mixer_cpu.pack`.
    C, n, m: the start state (rows, heads, ...), left at the last step. record: room for what backward needs of every
    row, or 0. mask: (rows, steps) bytes or 0. length: steps in a chunk; width: the gates; both multiples of the lanes.
    """
    number = bytes_of(kind)
    row, line, state = dim * number, heads * dim * number, dim * (dim + 1) * number
    tile, gate = length * line, width * length * number
    weights = _weights_at(kind, packed, heads, dim, width)
    tiles = scratch, scratch + tile, scratch + 2 * tile, scratch + 3 * tile
    hidden, pre = scratch + 4 * tile, scratch + 5 * tile
    laid = pre + 2 * gate
    constants = laid + tile + (TAPS - 1) * line
    room = forward_room(kind, _norms(kind, constants, dim, norm_eps), dim, dim, length)
    for r in range(rows):
        states, marks, kept_hidden, kept_pre, after = _record_at(kind, record, steps, heads, dim, length, width)
        here, to, at_mask = a[0] + r * a[1], z[0] + r * z[1], mask + r * steps if mask else 0
        for t in range(0, steps, length):
            count = min(length, steps - t)
            chunk_mask = at_mask + t if mask else 0
            if record:
                hidden, pre = kept_hidden + t // length * tile, kept_pre + t // length * gate
            _lay(kind, (here, 0, a[2]), past + r * (TAPS - 1) * line, t, laid, heads, dim, count, length, room[6])
            _prepare(kind, laid, weights, tiles, chunk_mask, heads, dim, count, length)
            _gate(kind, weights, tiles, laid - gate, pre, chunk_mask, heads, dim, count, length, width, room[6])
            for head in range(heads):
                own, place = head * length * row, r * heads + head
                mark = marks + (head * (2 * steps + 1) + t) * number if record else 0
                kept = states + (head * ((steps + length - 1) // length + 1) + t // length) * state if record else 0
                _forward_head(
                    kind, room, tiles[1] + own, tiles[2] + own, tiles[3] + own, pre + head * length * number,
                    pre + (heads + head) * length * number, hidden + head * row, line, C + place * dim * row,
                    n + place * row, m + place * number, mark, kept, t == 0, dim, count, length, steps, eps,
                )  # fmt: skip
            for s in range(count):  # rows of g and z in one piece
                for head in range(heads):
                    at, shift = (head * length + s) * row, head * row
                    g, out = here + (t + s) * a[2] + line + shift, to + (t + s) * z[2] + shift
                    back(
                        kind, row,
                        (hidden + s * line + shift, tiles[0] + at, g, weights[2] + shift, weights[2] + line + shift,
                         out, row, constants, g + a[2], out + z[2]),
                    )  # fmt: skip
        record = after if record else 0


@njit
def _forward_head(
    kind: Any, room: tuple[int, ...], Q: int, K: int, V: int, i: int, f: int, h: int, h_step: int, C: int, n: int,
    m: int, mark: int, kept: int, first: bool, dim: int, count: int, length: int, steps: int, eps: float,
) -> None:  # fmt: skip
    """The recurrence of one head over a chunk; the state after it goes to the record, before the first the start."""
    number = bytes_of(kind)
    now = float(number_at(kind, m))
    if kept:
        if first:
            put_number(kind, mark, now)
            keep_state(kind, C, n, kept, dim, dim, room[6])
        kept += dim * (dim + 1) * number
    now = forward_chunk(
        kind, room, Q, K, V, i, f, h, h_step, C, n, now, mark + number if mark else 0,
        mark + (steps + 1) * number, dim, dim, count, length, eps,
    )  # fmt: skip
    put_number(kind, m, now)
    if kept:
        keep_state(kind, C, n, kept, dim, dim, room[6])


@njit
def _back_heads(
    kind: Any, dz: int, dz_step: int, z: int, z_step: int, g: int, g_step: int, dg: int, dg_step: int, hidden: int,
    u: int, dh: int, du: int, norm: int, dnorm: int, mask: int, heads: int, dim: int, count: int, length: int,
    constants: int,
) -> None:  # fmt: skip
    """Backward of norm, skip and output gate over a chunk."""
    row = dim * bytes_of(kind)
    line = heads * row
    for s in range(count):
        for head in range(heads):
            shift, at = head * row, (head * length + s) * row
            _back_back(
                kind, row,
                (dz + s * dz_step + shift, hidden + s * line + shift, u + at, g + s * g_step + shift, norm + shift,
                 norm + line + shift, z + s * z_step + shift, dh + at, du + at, dg + s * dg_step + shift,
                 dnorm + shift, dnorm + line + shift, row, constants, line, g_step),
            )  # fmt: skip
    if mask:
        for head in range(heads):
            _blank(kind, dh + head * length * row, row, mask, count)


@njit
def _gate_back(
    kind: Any, weights: tuple[int, ...], tiles: tuple[int, ...], grads: tuple[int, ...], turned: int, pre: int,
    dgates: int, dbias: int, mask: int, heads: int, dim: int, count: int, length: int, width: int, one: int,
) -> None:  # fmt: skip
    """From the gradients of a chunk's gates (width, length) at `turned` to those of q, k, v, weights and bias."""
    number = bytes_of(kind)
    row, wide = dim * number, width * number
    turn(kind, turned, width, length, pre)
    if mask:
        _blank(kind, pre, wide, mask, count)
    for s in range(count):
        add(kind, (pre + s * wide, dbias, one, wide))
    for part in range(3):
        for head in range(heads):
            place, own = part * heads + head, head * length * row
            matmul(
                kind, ALL, length, pre, wide, number, weights[6] + place * row, 3 * heads * row, 2 * heads,
                grads[part] + own, row, row,
            )  # fmt: skip
            matmul(
                kind, ALL, dim, tiles[part + 1] + own, number, row, pre, wide, length, dgates + place * dim * wide,
                wide, wide,
            )  # fmt: skip


@njit
def _front_back_heads(
    kind: Any, laid: int, weights: tuple[int, ...], du: int, grads: tuple[int, ...], dc: int, da: int, da_step: int,
    dconv: int, heads: int, dim: int, count: int, length: int, one: int,
) -> None:  # fmt: skip
    """Backward of convolution, SiLU and maps over a chunk, last step first. laid: see `_lay`; dc: likewise, with the
    three steps behind the chunk."""
    row = dim * bytes_of(kind)
    line = heads * row
    for head in range(heads):
        more = head * (length + TAPS - 1) * row
        for unit in range(0, row, at_once(kind, row)):
            at, tile = head * row + unit, head * length * row + unit
            front_back(
                kind, row,
                (laid + more + unit, line, weights[0] + at, weights[5] + at, du + tile, grads[0] + tile,
                 grads[1] + tile, grads[2] + tile, row, count, dc + more + unit, dconv + at, dconv + 5 * line + at),
            )  # fmt: skip
    for s in range(count):
        for head in range(heads):
            scale(kind, (grads[2] + (head * length + s) * row, da + s * da_step + head * row, one, row))


@njit
def _pass_on(kind: Any, dc: int, to: int, apart: int, heads: int, row: int, length: int, one: int) -> None:
    """The first three steps of `dc` to lines of heads at `to`, or, where that is 0, behind the chunk before."""
    for head in range(heads):
        source = dc + head * (length + TAPS - 1) * row
        for s in range(TAPS - 1):
            place = to + s * apart + head * row if to else source + (length + s) * row
            scale(kind, (source + s * row, place, one, row))


@njit
def _clear_behind(kind: Any, dc: int, heads: int, row: int, count: int, length: int) -> None:
    """Zeros to the three steps behind the last chunk, of `count` steps."""
    for head in range(heads):
        clear(kind, (dc + (head * (length + TAPS - 1) + count) * row, (TAPS - 1) * row))


@njit
def _settle(
    kind: Any, source: int, to: int, sign: float, states: int, chunk: int, chunks: int, dC: int, dn: int, heads: int,
    dim: int,
) -> None:  # fmt: skip
    """to = source + sign * `growth` of the state at a chunk's start, for every head."""
    number = bytes_of(kind)
    for head in range(heads):
        state = states + (head * (chunks + 1) + chunk) * dim * (dim + 1) * number
        grown = growth(kind, state, dC + head * dim * dim * number, dn + head * dim * number, dim, dim)
        put_number(kind, to + head * number, number_at(kind, source + head * number) + sign * grown)


@njit
def _backward_heads(
    kind: Any, room: tuple[int, ...], tiles: tuple[int, ...], grads: tuple[int, ...], dh: int, pre: int, dpre: int,
    hidden: int, states: int, marks: int, dC: int, dn: int, ratios: int, chunk: int, chunks: int, heads: int, dim: int,
    count: int, length: int, steps: int, onward: bool, eps: float,
) -> None:  # fmt: skip
    """Backward of the recurrence over a chunk."""
    number = bytes_of(kind)
    row, state = dim * number, dim * (dim + 1) * number
    for head in range(heads):
        own, i, f = head * length * row, head * length * number, (heads + head) * length * number
        mark = marks + (head * (2 * steps + 1) + chunk * length) * number
        ratio = backward_chunk(
            kind, room,
            (tiles[1] + own, tiles[2] + own, tiles[3] + own, grads[0] + own, grads[1] + own, grads[2] + own),
            pre + i, pre + f, hidden + head * row, heads * row, dh + own, row,
            states + (head * (chunks + 1) + chunk + 1) * state, dC + head * dim * row, dn + head * row,
            float(number_at(kind, ratios + head * number)), mark, mark + (steps + 1) * number, dpre + i, dpre + f, dim,
            dim, count, length, onward, eps,
        )  # fmt: skip
        put_number(kind, ratios + head * number, ratio)


def mixer_backward(
    kind: Any, a: Stream, past: int, dz: Stream, z: Stream, da: Stream, packed: int, sums: int, dC: int, dn: int,
    dm: int, edge: int, record: int, mask: int, scratch: int, steps: int, heads: int, dim: int, length: int,
    width: int, rows: int, wanted: int, eps: float, norm_eps: float,
) -> None:  # fmt: skip
    """One task of the backward pass; layouts as in `mixer_forward`.

    z: computed again. da: gradient of a, and of g beside it. sums: gradients of convolution, maps, norm with skip,
    gates and bias are added here. dC, dn, dm: gradients of the last state, left at the start state where those are
    wanted. edge: gradients of the convolution's results at the first three steps, for those of `past`.
    """
    number = bytes_of(kind)
    row, line = dim * number, heads * dim * number
    tile, gate, chunks = length * line, width * length * number, (steps + length - 1) // length
    weights = _weights_at(kind, packed, heads, dim, width)
    added = _weights_at(kind, sums, heads, dim, width)
    tiles, dh, du, grads, dc, laid, turned, ratios, constants = _backward_places(
        scratch, tile, line, gate, heads * number
    )
    room = backward_room(kind, _norms(kind, constants, dim, norm_eps), dim, dim, length)
    for r in range(rows):
        states, marks, hidden, pre, after = _record_at(kind, record, steps, heads, dim, length, width)
        here, at_past, at_mask = a[0] + r * a[1], past + r * (TAPS - 1) * line, mask + r * steps if mask else 0
        at_dC, at_dn, at_dm = dC + r * heads * dim * row, dn + r * line, dm + r * heads * number
        _settle(kind, at_dm, ratios, -1.0, states, chunks, chunks, at_dC, at_dn, heads, dim)
        _clear_behind(kind, dc, heads, row, steps - (chunks - 1) * length, length)
        for chunk in range(chunks - 1, -1, -1):
            t = chunk * length
            count = min(length, steps - t)
            chunk_mask = at_mask + t if mask else 0
            _lay(kind, (here, 0, a[2]), at_past, t, laid, heads, dim, count, length, room[7])
            _prepare(kind, laid, weights, tiles, chunk_mask, heads, dim, count, length)
            _back_heads(
                kind, dz[0] + r * dz[1] + t * dz[2], dz[2], z[0] + r * z[1] + t * z[2], z[2], here + t * a[2] + line,
                a[2], da[0] + r * da[1] + t * da[2] + line, da[2], hidden + chunk * tile, tiles[0], dh, du,
                weights[2], added[2], chunk_mask, heads, dim, count, length, constants,
            )  # fmt: skip
            clear(kind, (turned, gate))
            _backward_heads(
                kind, room, tiles, grads, dh, pre + chunk * gate, turned, hidden + chunk * tile, states, marks, at_dC,
                at_dn, ratios, chunk, chunks, heads, dim, count, length, steps, chunk > 0 or wanted != 0, eps,
            )  # fmt: skip
            _gate_back(
                kind, weights, tiles, grads, turned, turned + gate, added[3], added[4], chunk_mask, heads, dim, count,
                length, width, room[7],
            )  # fmt: skip
            _front_back_heads(
                kind, laid, weights, du, grads, dc, da[0] + r * da[1] + t * da[2], da[2], added[0], heads, dim, count,
                length, room[7],
            )  # fmt: skip
            _pass_on(kind, dc, 0 if chunk else edge + r * (TAPS - 1) * line, line, heads, row, length, room[7])
        _settle(kind, ratios, at_dm, 1.0, states, 0, chunks, at_dC, at_dn, heads, dim)
        record = after
