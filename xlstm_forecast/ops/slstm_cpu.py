"""sLSTM over whole sequences on compiled CPU kernels, as one node of the graph; tasks are spread over threads."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .reference import SLSTMState, slstm_zero_state
from .threads import spread

SPAN = 8  # steps whose outer products for R's gradient are done together


def slstm(
    gates: Tensor, R: Tensor, b: Tensor, state: SLSTMState | None = None, *, mask: Tensor | None = None
) -> tuple[Tensor, SLSTMState]:
    """sLSTM over a sequence; shapes and meaning as in `reference.slstm`. float32 or float64 on the CPU."""
    dim = R.shape[1]
    pad = -dim % 8
    if pad:  # units that stay 0 fill the vectors
        gates, b, R = (F.pad(x, (0, pad)) for x in (gates, b, F.pad(R, (0, 0, 0, 0, 0, pad))))
        state = None if state is None else SLSTMState(*(F.pad(x, (0, pad)) for x in state))
    state = slstm_zero_state(gates) if state is None else state
    hidden, *last = _Recurrence.apply(gates, R, b, *state, mask)
    if mask is not None:
        hidden = hidden.masked_fill(~mask[:, :, None, None], 0)
    return (hidden[..., :dim], SLSTMState(*(x[..., :dim] for x in last))) if pad else (hidden, SLSTMState(*last))


@functools.cache
def _kernel(name: str, kind: str) -> Callable[..., None]:
    from . import cpu

    return cpu.compiled(getattr(cpu, name), kind)


def kind_of(dtype: torch.dtype, dim: int) -> str:
    """The vectors to use: as wide as the CPU's, and no wider than the head."""
    if dtype == torch.float64:
        return "f64x8"
    wide = dim % 16 == 0 and torch.backends.cpu.get_cpu_capability() == "AVX512"
    return "f32x16" if wide else "f32x8"


def _tile(batch: int, dim: int) -> int:
    """Batch rows per task: enough to use the head's matrix well, few enough for states and matrix to share a cache."""
    return min(batch, 16 if dim <= 16 else 8)


def _tasks(batch: int, heads: int, dim: int) -> list[tuple[int, int, int]]:
    """(head, first row, rows) of every task."""
    tile = _tile(batch, dim)
    return [(head, row, min(tile, batch - row)) for row in range(0, batch, tile) for head in range(heads)]


def _innermost(x: Tensor, count: int) -> Tensor:
    """x with its last `count` dimensions contiguous."""
    expected = 1
    for size, stride in zip(reversed(x.shape[-count:]), reversed(x.stride()[-count:]), strict=True):
        if stride != expected and size != 1:
            return x.contiguous()
        expected *= size
    return x


class _Recurrence(torch.autograd.Function):
    """Outputs are the carried h of every step (masked steps repeat it) and the last state."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, R: Tensor, b: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        batch, steps, heads, _, dim = gates.shape
        gates, R, b = _innermost(gates, 2), R.contiguous(), b.contiguous()
        mask = None if rest[4] is None else rest[4].contiguous()
        work = gates.new_empty(5, heads, batch, dim)
        torch.stack([x.transpose(0, 1) for x in rest[:4]], out=work[:4])
        start = work[:4].clone()
        hidden = gates.new_empty(batch, steps, heads, dim)
        needed = any(ctx.needs_input_grad)
        kept = gates.new_empty(batch * heads * steps * 6 * dim) if needed else None
        size = gates.element_size()
        sb, st, sn = (gates.stride(k) * size for k in (0, 1, 2))
        row = dim * size
        plane = heads * batch * row
        base, at_gates, at_R, at_b, at_out = (x.data_ptr() for x in (work, gates, R, b, hidden))
        run = _kernel("slstm_forward", kind_of(gates.dtype, dim))
        at_kept = 0 if kept is None else kept.data_ptr()
        at_mask = 0 if mask is None else mask.data_ptr()

        def task(head: int, first: int, rows: int) -> None:
            at = base + (head * batch + first) * row
            run(
                "", at_gates + first * sb + head * sn, sb, st, at_R + head * 4 * dim * row, at_b + head * 4 * row,
                at, at + 4 * plane, at + plane, at + 2 * plane, at + 3 * plane,
                at_out + (first * steps * heads + head) * row, steps * heads * row, heads * row,
                at_kept and at_kept + (head * batch + first) * steps * 6 * row,
                at_mask and at_mask + first * steps, steps, dim, rows,
            )  # fmt: skip

        spread(task, _tasks(batch, heads, dim), batch * steps * heads * dim * (dim + 32))
        ctx.set_materialize_grads(False)
        if needed:
            ctx.save_for_backward(R, hidden, kept, start, work[1:3], mask)
        ends = work[[4 if steps % 2 else 0, 1, 2, 3]].transpose(1, 2)
        return hidden, *ends.contiguous().unbind(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor, *dstate: Tensor) -> tuple[Tensor | None, ...]:
        R, hidden, kept, start, ends, mask = ctx.saved_tensors
        batch, steps, heads, dim = hidden.shape
        dout = hidden.new_zeros(()).expand_as(hidden) if dout is None else dout
        dout = _innermost(dout, 1)
        dgates = hidden.new_empty(batch, steps, heads, 4, dim)
        tasks = _tasks(batch, heads, dim)
        work = hidden.new_zeros(4, heads, batch, dim)
        for slot, x in zip(work, dstate, strict=True):
            if x is not None:
                slot.copy_(x.transpose(0, 1))
        beyond = any(x is not None for x in dstate[1:])
        if beyond:  # what moves m_T alone, c exp(m) and n exp(m) held
            work[3] -= ends[0] * work[1] + ends[1] * work[2]
        size = hidden.element_size()
        row = dim * size
        plane = heads * batch * row
        back = R.permute(0, 2, 3, 1).contiguous()
        sums = hidden.new_zeros(len(tasks), dim + 1, 4, dim)
        sb, st = dout.stride(0) * size, dout.stride(1) * size
        base, begin, at_hidden, at_dout, at_back, at_dgates, at_sums, at_kept = (
            x.data_ptr() for x in (work, start, hidden, dout, back, dgates, sums, kept)
        )
        at_mask = 0 if mask is None else mask.data_ptr()
        run = _kernel("slstm_backward", kind_of(hidden.dtype, dim))
        head_out, head_gates = dout.stride(2) * size, 4 * row

        def task(index: int, head: int, first: int, rows: int) -> None:
            at, origin = base + (head * batch + first) * row, begin + (head * batch + first) * row
            to = at_sums + index * (dim + 1) * 4 * row
            run(
                "", at_kept + (head * batch + first) * steps * 6 * row, origin + plane, origin + 2 * plane, origin,
                at_hidden + (first * steps * heads + head) * row, steps * heads * row, heads * row,
                at_dout + first * sb + head * head_out, sb, st, at, at + plane, at + 2 * plane, at + 3 * plane if beyond else 0,
                at_back + head * 4 * dim * row,
                at_dgates + (first * steps * heads + head) * head_gates, steps * heads * head_gates, heads * head_gates,
                to, to + 4 * dim * row, at_mask and at_mask + first * steps, steps, dim, rows, SPAN,
            )  # fmt: skip

        spread(task, [(k, *x) for k, x in enumerate(tasks)], batch * steps * heads * dim * (2 * dim + 32))
        total = sums.view(-1, heads, dim + 1, 4, dim).sum(0)
        starts = work.transpose(1, 2)
        dm = work[3] + start[1] * work[1] + start[2] * work[2]
        return dgates, total[:, :dim], total[:, dim], starts[0], starts[1], starts[2], dm.transpose(0, 1), None
