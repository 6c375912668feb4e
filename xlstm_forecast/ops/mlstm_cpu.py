"""mLSTM over whole sequences on compiled CPU kernels, as one node of the graph; tasks are spread over threads."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .once import once
from .reference import MLSTMState, mlstm_zero_state
from .slstm_cpu import Pieces, Strided, innermost, kernel, kind_of, lanes_of
from .threads import Numbers, Tasks, spread

FEW = 8  # steps up to which the recurrent form is the faster one


def mlstm(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    state: MLSTMState | None = None,
    *,
    mask: Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, MLSTMState]:
    """mLSTM over a sequence; shapes and meaning as in `reference.mlstm`. float32 or float64 on the CPU."""
    state = mlstm_zero_state(q, v) if state is None else state
    if mask is not None:  # a masked step forgets nothing and takes nothing in
        blank = ~mask[:, None, :]
        q, k, v = (x.masked_fill(blank[..., None], 0) for x in (q, k, v))
        f, i = f.masked_fill(blank, torch.inf), i.masked_fill(blank, -torch.inf)
    dk, dv = q.shape[-1], v.shape[-1]
    more_k, more_v = -dk % 8, -dv % 8
    if more_k or more_v:  # units that stay 0 fill the vectors
        grow = ((dk + more_k) / dk) ** 0.5  # the kernel scales k by the padded size
        q, k, v = F.pad(q, (0, more_k)), F.pad(k * grow, (0, more_k)), F.pad(v, (0, more_v))
        state = MLSTMState(F.pad(state.C, (0, more_v, 0, more_k)), F.pad(state.n, (0, more_k)), state.m)
    inputs = (q, k, v, i, f, *state)
    record = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    h, *last = _Recurrence.apply(record, eps, *inputs) if record or q.shape[2] > FEW else _steps(eps, *inputs)
    end = MLSTMState(*last)
    if more_k or more_v:
        h, end = h[..., :dv], MLSTMState(end.C[..., :dk, :dv], end.n[..., :dk], end.m)
    return (h if mask is None else h.masked_fill(blank[..., None], 0)), end


def chunk_length(steps: int, dim: int, lanes: int) -> int:
    """Steps per chunk: a multiple of the lanes, near the head size, where work within and between chunks balances."""
    chunks = -(-steps // (64 if dim > 32 else 32))
    return lanes * -(-steps // (lanes * chunks))


def _tasks(batch: int, heads: int) -> Tasks:
    return Tasks(batch, max(1, min(8, batch * heads // 16)), heads)


def _streams(*tensors: Tensor) -> list[Strided]:
    """As (row, step, head) strides: dimensions (B, N, T, ...), or (B, N) for what has no steps."""
    return [Strided(x.transpose(1, 2) if x.ndim > 2 else x[:, None]) for x in tensors]


def _steps(eps: float, *inputs: Tensor) -> tuple[Tensor, ...]:
    """A few steps in recurrent form, gradients off: all rows and heads are one task."""
    q, k, v = (innermost(x, 1) for x in inputs[:3])
    i, f = inputs[3:5]
    if i.stride(1) != f.stride(1):
        i, f = i.contiguous(), f.contiguous()
    batch, heads, steps, dk = q.shape
    dv = v.shape[-1]
    old = [x.contiguous() for x in inputs[5:]]
    new = [torch.empty_like(x) for x in old]
    h, scratch = q.new_empty(batch, steps, heads, dv).transpose(1, 2), q.new_empty(2)
    size = q.element_size()
    given = (q, k, v, i, f, h)
    streams = [(x.data_ptr(), x.stride(0) * size, x.stride(2) * size) for x in given]
    turns = [x.stride(1) * size for x in given]
    run = kernel("mlstm_steps", kind_of(q.dtype, dk | dv)).run
    run(
        *streams, tuple(turns[:3]), turns[3], turns[5], *(x.data_ptr() for x in (*old, *new)), scratch.data_ptr(),
        steps, dk, dv, batch, heads, eps,
    )  # fmt: skip
    return h, *new


class _Recurrence(torch.autograd.Function):
    """From q, k, v, i, f and the state to h and the last state."""

    @staticmethod
    def forward(ctx: Any, record: bool, eps: float, *inputs: Tensor) -> tuple[Tensor, ...]:
        q, k, v = (innermost(x, 1) for x in inputs[:3])
        i, f = (x.contiguous() for x in inputs[3:5])
        batch, heads, steps, dk = q.shape
        dv = v.shape[-1]
        C, n, m = (x.clone(memory_format=torch.contiguous_format) for x in inputs[5:])
        h = q.new_empty(batch, steps, heads, dv).transpose(1, 2)
        kind = kind_of(q.dtype, dk | dv)
        length = chunk_length(steps, max(dk, dv), lanes_of(kind))
        chunks, tasks = -(-steps // length), _tasks(batch, heads)
        kept = Pieces(q, tasks.count, tasks.tile * (chunks + 1) * dk * (dv + 1)) if record else None
        marks = Pieces(q, tasks.count, tasks.tile * (2 * steps + 1)) if record else None
        room = length * (3 * dk + 2 * dv + 3 * length + 8) + 8
        scratch = Pieces(q, tasks.count, room)
        at = _streams(q, k, v, i, f, h, C.flatten(2), n, m)
        at[6:8] = Strided(C[:, None]), Strided(n[:, None])

        def given(number: Numbers, head: Numbers, first: Numbers, rows: Numbers) -> tuple[Any, ...]:
            return (
                *(stream.at(head, first) for stream in at), 0 if kept is None else kept.at(number),
                0 if marks is None else marks.at(number), scratch.at(number), steps, dk, dv, length, rows, eps,
            )  # fmt: skip

        operations = batch * heads * steps * (dk + dv) * (length + dk)
        spread(kernel("mlstm_forward", kind), given, tasks, operations)
        ctx.set_materialize_grads(False)
        if kept is not None and marks is not None:
            ctx.kept, ctx.marks, ctx.eps, ctx.length, ctx.kind = kept.layout(), marks.layout(), eps, length, kind
            ctx.pieces = len(kept.memory)
            ctx.save_for_backward(q, k, v, i, f, h, *kept.memory, *marks.memory)
        return h, C, n, m

    @staticmethod
    @once
    def backward(ctx: Any, dh: Tensor | None, *dstate: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, v, i, f, h, *memory = ctx.saved_tensors
        kept, marks = ctx.kept.over(memory[: ctx.pieces]), ctx.marks.over(memory[ctx.pieces :])
        batch, heads, steps, dk = q.shape
        dv, length = v.shape[-1], ctx.length
        dh = h.new_zeros(()).expand_as(h) if dh is None else dh
        dh = innermost(dh, 1)
        shapes = (batch, heads, dk, dv), (batch, heads, dk), (batch, heads)
        dC, dn, dm = (
            q.new_zeros(shape) if x is None else x.clone(memory_format=torch.contiguous_format)
            for x, shape in zip(dstate, shapes, strict=True)
        )
        dq, dkey, dvalue = (x.new_empty(batch, steps, heads, x.shape[-1]).transpose(1, 2) for x in (q, k, v))
        di, df = torch.empty_like(i), torch.empty_like(i)
        tasks = _tasks(batch, heads)
        room = length * (4 * dk + 3 * dv + max(dk, dv) + 3 * length + 10) + dk * dv + 8
        scratch = Pieces(q, tasks.count, room)
        at = _streams(q, k, v, i, f, h, dh)
        at += [Strided(x[:, None]) for x in (dC, dn, dm)] + _streams(dq, dkey, dvalue, di, df)
        wanted = int(any(ctx.needs_input_grad[7:]))  # gradients of the start state

        def given(number: Numbers, head: Numbers, first: Numbers, rows: Numbers) -> tuple[Any, ...]:
            return (
                *(stream.at(head, first) for stream in at), kept.at(number), marks.at(number), scratch.at(number),
                steps, dk, dv, length, rows, wanted, ctx.eps,
            )  # fmt: skip

        operations = 3 * batch * heads * steps * (dk + dv) * (length + dk)
        spread(kernel("mlstm_backward", ctx.kind), given, tasks, operations)
        return None, None, dq, dkey, dvalue, di, df, dC, dn, dm
