"""sLSTM over whole sequences on compiled CPU kernels, as one node of the graph; tasks are spread over threads."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .projection import headwise
from .reference import SLSTMState, slstm_zero_state
from .threads import spread

SPAN = 8  # steps that are projected, and whose outer products are done, together
SLOTS = 6  # numbers that forward keeps per step and unit
PIECE = 1 << 24  # bytes per allocation: the C library recycles these, and maps larger ones anew, page by page
_compiling = threading.Lock()


def slstm(
    gates: Tensor, R: Tensor, b: Tensor, state: SLSTMState | None = None, *, mask: Tensor | None = None
) -> tuple[Tensor, SLSTMState]:
    """sLSTM over a sequence; shapes and meaning as in `reference.slstm`. float32 or float64 on the CPU."""
    dim = R.shape[1]
    pad = -dim % 8
    if pad:  # units that stay 0 fill the vectors
        gates, b, R = (F.pad(x, (0, pad)) for x in (gates, b, F.pad(R, (0, 0, 0, 0, 0, pad))))
        state = None if state is None else SLSTMState(*(F.pad(x, (0, pad)) for x in state))
    hidden, last = _run((gates,), R, b, slstm_zero_state(gates) if state is None else state, mask)
    return (hidden[..., :dim], SLSTMState(*(x[..., :dim] for x in last))) if pad else (hidden, last)


def slstm_headwise(
    x: Tensor,
    W: Tensor,
    R: Tensor,
    b: Tensor,
    u: Tensor | None = None,
    state: SLSTMState | None = None,
    *,
    mask: Tensor | None = None,
) -> tuple[Tensor, SLSTMState]:
    """Projection and recurrence fused; shapes as in `ops.slstm_headwise`. Sizes that fill no vectors go unfused."""
    lanes = lanes_of(kind_of(x.dtype, R.shape[1]))
    if R.shape[1] % lanes or x.shape[3] % lanes:
        return slstm(headwise(x, W, u), R, b, state, mask=mask)
    if mask is not None:
        blank = ~mask[:, :, None, None]
        x, u = x.masked_fill(blank, 0), None if u is None else u.masked_fill(blank, 0)
    if state is None:
        state = SLSTMState(*(x.new_zeros(x.shape[0], x.shape[2], R.shape[1]) for _ in range(4)))
    return _run((x, W) if u is None else (x, W, u), R, b, state, mask)


def _run(
    source: tuple[Tensor, ...], R: Tensor, b: Tensor, state: SLSTMState, mask: Tensor | None
) -> tuple[Tensor, SLSTMState]:
    inputs = (R, b, *state, *source)
    record = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    hidden, *last = _Recurrence.apply(record, mask, *inputs)
    return (hidden if mask is None else hidden.masked_fill(~mask[:, :, None, None], 0)), SLSTMState(*last)


def kind_of(dtype: torch.dtype, dim: int) -> str:
    """The vectors to use: as wide as the CPU's, and no wider than the head."""
    if dtype == torch.float64:
        return "f64x8"
    wide = dim % 16 == 0 and torch.backends.cpu.get_cpu_capability() == "AVX512"
    return "f32x16" if wide else "f32x8"


def lanes_of(kind: str) -> int:
    return int(kind.split("x")[1])


def kernel(name: str, kind: str) -> Callable[..., None]:
    """The compiled kernel of that name; compiled, or loaded from the cache, by the first call."""
    with _compiling:
        return _compiled(name, kind)


@functools.cache
def _compiled(name: str, kind: str) -> Callable[..., None]:
    from . import blocks, cpu, cpu_mlstm

    home = cpu if name.startswith("slstm") else cpu_mlstm
    return functools.partial(blocks.compiled(getattr(home, name), kind), "")


def _tasks(batch: int, heads: int, dim: int) -> list[tuple[int, int, int, int]]:
    """(number, head, first row, rows) of every task: rows enough to use the head's matrix well, few enough for states
    and matrix to share a cache; the cut does not depend on the number of threads, so neither do the results."""
    tile = min(batch, 16 if dim <= 16 else 8)
    cuts = [(head, row, min(tile, batch - row)) for row in range(0, batch, tile) for head in range(heads)]
    return [(number, *cut) for number, cut in enumerate(cuts)]


def innermost(x: Tensor, count: int) -> Tensor:
    """x with its last `count` dimensions contiguous."""
    expected = 1
    for size, stride in zip(reversed(x.shape[-count:]), reversed(x.stride()[-count:]), strict=True):
        if stride != expected and size != 1:
            return x.contiguous()
        expected *= size
    return x


class Strided:
    """Where a (B, T, N, ...) tensor keeps each task's part, in the form that the kernels take."""

    def __init__(self, x: Tensor | None):
        self.address = 0 if x is None else x.data_ptr()
        self.row, self.step, self.head = (0, 0, 0) if x is None else (x.stride(k) * x.element_size() for k in range(3))

    def at(self, head: int, row: int) -> tuple[int, int, int]:
        return self.address and self.address + head * self.head + row * self.row, self.row, self.step


class _Room:
    """Memory of a few steps of gates for every task, in the form of a stream."""

    def __init__(self, like: Tensor, tasks: int, rows: int, dim: int):
        self.memory = like.new_empty(tasks, rows, SPAN, 4 * dim)
        self.step = 4 * dim * like.element_size()

    def at(self, number: int) -> tuple[int, int, int]:
        return (
            self.memory.data_ptr() + number * self.memory.stride(0) * self.memory.element_size(),
            SPAN * self.step,
            self.step,
        )


class Pieces:
    """Memory of `size` numbers for every task, in allocations of moderate size."""

    def __init__(self, like: Tensor, tasks: int, size: int):
        self.step = size * like.element_size()
        self.each = max(1, PIECE // max(1, self.step))
        self.memory = [like.new_empty(min(self.each, tasks - k), size) for k in range(0, tasks, self.each)]
        self.starts = [x.data_ptr() for x in self.memory]

    def at(self, number: int) -> int:
        return self.starts[number // self.each] + number % self.each * self.step


class _Recurrence(torch.autograd.Function):
    """From gates, or from (x, W) or (x, W, u), to the carried h of every step (masked steps repeat it) and the last
    state."""

    @staticmethod
    def forward(ctx: Any, record: bool, mask: Tensor | None, R: Tensor, b: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        fused = len(rest) > 5
        batch, steps, heads = rest[4].shape[:3]
        dim, size = R.shape[1], R.element_size()
        R, b = R.contiguous(), b.contiguous()
        mask = None if mask is None else mask.contiguous()
        x, u, weights = None, None, None
        if fused:
            x = innermost(rest[4], 1)
            u = innermost(rest[6], 1) if len(rest) > 6 else x
            weights = torch.stack([rest[5][:, :, :2], rest[5][:, :, 2:]])
        gates = None if fused else innermost(rest[4], 2)
        work = R.new_empty(5, heads, batch, dim)
        torch.stack([s.transpose(0, 1) for s in rest[:4]], out=work[:4])
        start = work[:3].clone()
        hidden = R.new_empty(batch, steps, heads, dim)
        tasks = _tasks(batch, heads, dim)
        kept = Pieces(R, len(tasks), tasks[0][3] * steps * SLOTS * dim) if record else None
        room = _Room(R, len(tasks), tasks[0][3], dim) if fused else None
        run = kernel("slstm_forward", kind_of(R.dtype, dim))
        row, inner = dim * size, x.shape[3] if x is not None else 0
        at = _addresses(gates, x, u, hidden)
        at_R, at_b, at_work, at_mask, at_W = _pointers(R, b, work, mask, weights)

        def task(number: int, head: int, first: int, rows: int) -> None:
            place = head * batch + first
            W_u = at_W + head * inner * 2 * row
            run(
                at[0].at(head, first) if room is None else room.at(number), at[1].at(head, first),
                at[2].at(head, first), W_u, W_u + heads * inner * 2 * row, inner,
                at_R + head * 4 * dim * row, at_b + head * 4 * row, at_work + place * row, heads * batch * row,
                at[3].at(head, first), 0 if kept is None else kept.at(number),
                at_mask and at_mask + first * steps, steps, dim, rows, SPAN,
            )  # fmt: skip

        spread(task, tasks, batch * steps * heads * dim * (dim + inner + 32))
        ctx.set_materialize_grads(False)
        if record:
            ctx.kept = kept
            ctx.save_for_backward(R, hidden, start, work[1:3], mask, x, None if u is x else u, weights)
        ends = work[[4 if steps % 2 else 0, 1, 2, 3]].transpose(1, 2).contiguous()
        return hidden, *ends.unbind(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor | None, *dstate: Tensor | None) -> tuple[Tensor | None, ...]:
        R, hidden, start, ends, mask, x, u, weights = ctx.saved_tensors
        batch, steps, heads, dim = hidden.shape
        row = dim * hidden.element_size()
        fused, same = x is not None, u is None
        u = x if same else u
        inner = x.shape[3] if fused else 0
        dout = hidden.new_zeros(()).expand_as(hidden) if dout is None else dout
        dout = innermost(dout, 1)
        work = hidden.new_zeros(4, heads, batch, dim)
        for slot, grad in zip(work, dstate, strict=True):
            if grad is not None:
                slot.copy_(grad.transpose(0, 1))
        beyond = any(grad is not None for grad in dstate[1:])
        if beyond:  # what moves m_T alone, c exp(m) and n exp(m) held
            work[3] -= ends[0] * work[1] + ends[1] * work[2]
        back = R.permute(0, 2, 3, 1).contiguous()
        tasks = _tasks(batch, heads, dim)
        sums = hidden.new_zeros(len(tasks), dim + 1 + inner, 4, dim)
        room = _Room(R, len(tasks), tasks[0][3], dim) if fused else None
        dgates = None if fused else hidden.new_empty(batch, steps, heads, 4, dim)
        dx, du = (
            (torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(2)) if fused else (None, None)
        )
        turned = weights.flatten(3).transpose(2, 3).contiguous() if fused else None
        run = kernel("slstm_backward", kind_of(R.dtype, dim))
        at = _addresses(hidden, dout, dgates, x, u, dx, du)
        at_start, at_work, at_back, at_sums, at_mask, at_W = _pointers(start, work, back, sums, mask, turned)

        def task(number: int, head: int, first: int, rows: int) -> None:
            place = head * batch + first
            dR = at_sums + number * (dim + 1 + inner) * 4 * row
            W_u, dW = at_W + head * inner * 2 * row, dR + (dim + 1) * 4 * row
            run(
                ctx.kept.at(number), at_start + place * row, at[0].at(head, first),
                at[1].at(head, first), at_work + place * row, heads * batch * row, int(beyond),
                at_back + head * 4 * dim * row, at[2].at(head, first) if room is None else room.at(number),
                dR, dR + 4 * dim * row, *(stream.at(head, first) for stream in at[3:]),
                W_u, W_u + heads * inner * 2 * row, dW, dW + 2 * inner * row, inner,
                at_mask and at_mask + first * steps, steps, dim, rows, SPAN,
            )  # fmt: skip

        spread(task, tasks, batch * steps * heads * dim * 2 * (dim + inner + 16))
        total = sums.view(-1, heads, dim + 1 + inner, 4, dim).sum(0)
        work[3] += start[1] * work[1] + start[2] * work[2]
        grads = (None, None, total[:, :dim], total[:, dim], *work.transpose(1, 2))
        if dx is None or du is None:
            return *grads, dgates
        dW = total[:, dim + 1 :].reshape(heads, 2, inner, 2, dim).transpose(1, 2).reshape(heads, inner, 4, dim)
        return (*grads, dx.add_(du), dW) if same else (*grads, dx, dW, du)


def _addresses(*tensors: Tensor | None) -> list[Strided]:
    return [Strided(x) for x in tensors]


def _pointers(*tensors: Tensor | None) -> list[int]:
    return [0 if x is None else x.data_ptr() for x in tensors]
