"""sLSTM over whole sequences on compiled CPU kernels, as one node of the graph; tasks are spread over threads."""

from __future__ import annotations

import copy
import functools
import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .once import once
from .projection import headwise
from .reference import SLSTMState, slstm_zero_state
from .threads import Kernel, Numbers, Tasks, spread

SPAN = 8  # steps that are projected, and whose outer products are done, together
SLOTS = 6  # numbers that forward keeps per step and unit
PIECE = 1 << 24  # bytes per allocation: the C library recycles these, see `_keep_memory`, and maps larger ones anew
LARGEST = (1 << 25) - (1 << 16)  # bytes of a block that it can be made to recycle
_compiling = threading.RLock()
if hasattr(os, "register_at_fork"):  # a child of a process that is just compiling would wait for its locks for ever
    os.register_at_fork(
        before=_compiling.acquire, after_in_parent=_compiling.release, after_in_child=_compiling.release
    )


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
    if not record and mask is None and source[0].shape[1] == 1:
        return _step(source, R, b, state)
    hidden, *last = _Recurrence.apply(record, mask, *inputs)
    return (hidden if mask is None else hidden.masked_fill(~mask[:, :, None, None], 0)), SLSTMState(*last)


def _step(source: tuple[Tensor, ...], R: Tensor, b: Tensor, state: SLSTMState) -> tuple[Tensor, SLSTMState]:
    """One step, gradients off: one call of a kernel for all rows and heads."""
    x, W, u = source[0], *(*source[1:], None, None)[:2]
    given = (innermost(x, 2), None, None) if W is None else (None, innermost(x, 1), u if u is None else innermost(u, 1))
    W = None if W is None else W.contiguous()
    R, b, *old = (part.contiguous() for part in (R, b, *state))
    out, *new = (torch.empty_like(part) for part in (old[0], *old))
    batch, heads, dim = out.shape
    inner, room, size = (0, 5, R.element_size()) if W is None else (x.shape[3], 9, R.element_size())
    scratch = R.new_empty(room * batch * dim + 1)
    streams = (
        (0, 0, 0) if part is None else (part.data_ptr(), part.stride(0) * size, part.stride(2) * size) for part in given
    )
    weights = _pointers(W, R, b)
    run = kernel("step_slstm", kind_of(R.dtype, dim)).run
    run(*streams, weights[0], inner, *weights[1:], *_pointers(*old, *new, out, scratch), heads, dim, batch)
    return out[:, None], SLSTMState(*new)


def kind_of(dtype: torch.dtype, dim: int) -> str:
    """The vectors to use: as wide as the CPU's, and no wider than the head."""
    if dtype == torch.float64:
        return "f64x8"
    wide = dim % 16 == 0 and torch.backends.cpu.get_cpu_capability() == "AVX512"
    return "f32x16" if wide else "f32x8"


def lanes_of(kind: str) -> int:
    return int(kind.split("x")[1])


def kernel(name: str, kind: str) -> Kernel:
    """The compiled kernel of that name; compiled, or loaded from the cache, by the first call."""
    with _compiling:
        return _compiled(name, kind)


@functools.cache
def _compiled(name: str, kind: str) -> Kernel:
    from . import blocks, cpu, cpu_mixer, cpu_mlstm, cpu_product, cpu_step

    _keep_memory()
    homes = {"slstm": cpu, "mlstm": cpu_mlstm, "mixer": cpu_mixer, "product": cpu_product, "step": cpu_step}
    return blocks.compiled(getattr(homes[name.split("_")[0]], name), kind)


@functools.cache
def _keep_memory() -> None:
    """Have the C library keep what is freed: states and records of a few megabytes come and go at every call.

    glibc gives freed memory at the end of its heap back to the system, and has it mapped page by page again, until a
    block of half that size or more has been freed once. This is such a block; it is never touched.
    """
    torch.empty(LARGEST, dtype=torch.uint8)


def _tasks(batch: int, heads: int, dim: int, steps: int) -> Tasks:
    """Rows enough to use the head's matrix well, few enough for states and matrix to share a cache; over few steps, few
    tasks. The cut does not depend on the number of threads, so neither do the results."""
    return Tasks(batch, min(batch, 128 if steps < 8 else 16 if dim <= 16 else 8), heads)


def innermost(x: Tensor, count: int) -> Tensor:
    """x with its last `count` dimensions contiguous."""
    expected = 1
    for size, stride in zip(reversed(x.shape[-count:]), reversed(x.stride()[-count:]), strict=True):
        if stride != expected and size != 1:
            return x.contiguous()
        expected *= size
    return x


class Strided:
    """Where a (B, T, N, ...) tensor keeps the parts of tasks, in the form that the kernels take."""

    def __init__(self, x: Tensor | None):
        self.address = 0 if x is None else x.data_ptr()
        self.row, self.step, self.head = (0, 0, 0) if x is None else (x.stride(k) * x.element_size() for k in range(3))

    def at(self, head: Numbers, row: Numbers) -> tuple[Numbers, int, int]:
        return self.address and self.address + head * self.head + row * self.row, self.row, self.step


class _Room:
    """Memory of a few steps of gates for every task, in the form of a stream."""

    def __init__(self, like: Tensor, tasks: int, rows: int, dim: int):
        self.memory = like.new_empty(tasks, rows, SPAN, 4 * dim)
        self.step = 4 * dim * like.element_size()

    def at(self, number: Numbers) -> tuple[Numbers, int, int]:
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
        self._adopt([like.new_empty(min(self.each, tasks - k), size) for k in range(0, tasks, self.each)])

    def _adopt(self, memory: Sequence[Tensor]) -> Pieces:
        self.memory = memory
        self.starts = [x.data_ptr() for x in memory]
        return self

    def layout(self) -> Pieces:
        """What is left without the memory, which the graph saves: see `over`."""
        bare = copy.copy(self)
        bare.memory, bare.starts = [], []
        return bare

    def over(self, memory: Sequence[Tensor]) -> Pieces:
        """This layout over the saved memory, or over what was computed again in its place."""
        return copy.copy(self)._adopt(memory)

    def at(self, number: Numbers) -> Numbers:
        piece = number // self.each
        start = self.starts[piece] if isinstance(piece, int) else np.array(self.starts)[piece]
        return start + number % self.each * self.step


class _Recurrence(torch.autograd.Function):
    """From gates, or from (x, W) or (x, W, u), to the carried h of every step (masked steps repeat it) and the last
    state."""

    @staticmethod
    def forward(ctx: Any, record: bool, mask: Any, R: Any, b: Any, *rest: Any) -> tuple[Tensor, ...]:
        state, (source, W, u) = rest[:4], (*rest[4:], None, None)[:3]
        batch, steps, heads = source.shape[:3]
        dim, inner = R.shape[1], 0 if W is None else source.shape[3]
        R, b, mask, W = (y if y is None else y.contiguous() for y in (R, b, mask, W))
        x, u = (None if W is None or y is None else innermost(y, 1) for y in (source, u))
        gates = innermost(source, 2) if W is None else None
        work = R.new_empty(5, heads, batch, dim)
        torch.stack([s.transpose(0, 1) for s in state], out=work[:4])
        start = work[:3].clone() if record else None
        hidden = R.new_empty(batch, steps, heads, dim)
        tasks = _tasks(batch, heads, dim, steps)
        kept = Pieces(R, tasks.count, tasks.tile * steps * SLOTS * dim) if record else None
        room = None if W is None else _Room(R, tasks.count, tasks.tile, dim)
        row = dim * R.element_size()
        at = [Strided(y) for y in (gates, x, u, hidden)]
        at_R, at_b, at_work, at_mask, at_W = _pointers(R, b, work, mask, W)

        def given(number: Numbers, head: Numbers, first: Numbers, rows: Numbers) -> tuple[Any, ...]:
            return (
                at[0].at(head, first) if room is None else room.at(number), at[1].at(head, first),
                at[2].at(head, first), at_W + head * inner * 4 * row, inner, at_R + head * 4 * dim * row,
                at_b + head * 4 * row, at_work + (head * batch + first) * row, heads * batch * row,
                at[3].at(head, first), 0 if kept is None else kept.at(number),
                at_mask and at_mask + first * steps, steps, dim, rows, SPAN,
            )  # fmt: skip

        operations = batch * steps * heads * dim * (dim + inner + 32)
        spread(kernel("slstm_forward", kind_of(R.dtype, dim)), given, tasks, operations)
        ctx.set_materialize_grads(False)
        if kept is not None:
            ctx.kept = kept.layout()
            ctx.save_for_backward(R, hidden, start, work[1:3], mask, x, u, W, *kept.memory)
        ends = (work[slot].transpose(0, 1) for slot in (4 if steps % 2 else 0, 1, 2, 3))
        return hidden, *(end.clone(memory_format=torch.contiguous_format) for end in ends)

    @staticmethod
    @once
    def backward(ctx: Any, dout: Tensor | None, *dstate: Tensor | None) -> tuple[Tensor | None, ...]:
        R, hidden, start, ends, mask, x, u, W, *memory = ctx.saved_tensors
        kept = ctx.kept.over(memory)
        work = _end_gradients(hidden, dstate, ends)
        beyond = any(grad is not None for grad in dstate[1:])
        sums, dgates, dx, du = _propagate(kept, R, hidden, start, mask, x, u, W, dout, work, beyond)
        dim = R.shape[1]
        work[3] += start[1] * work[1] + start[2] * work[2]
        grads = (None, None, sums[:, :dim], sums[:, dim], *work.transpose(1, 2))
        if W is None:
            return *grads, dgates
        return (*grads, dx, sums[:, dim + 1 :]) if u is None else (*grads, dx, sums[:, dim + 1 :], du)


def _end_gradients(hidden: Tensor, dstate: tuple[Tensor | None, ...], ends: Tensor) -> Tensor:
    """Gradients of the last h, c, n, and of m alone with c exp(m) and n exp(m) held: (4, N, B, DH)."""
    batch, _, heads, dim = hidden.shape
    work = hidden.new_zeros(4, heads, batch, dim)
    for slot, grad in zip(work, dstate, strict=True):
        if grad is not None:
            slot.copy_(grad.transpose(0, 1))
    work[3] -= ends[0] * work[1] + ends[1] * work[2]
    return work


def _propagate(
    kept: Pieces,
    R: Tensor,
    hidden: Tensor,
    start: Tensor,
    mask: Tensor | None,
    x: Tensor | None,
    u: Tensor | None,
    W: Tensor | None,
    dout: Tensor | None,
    work: Tensor,
    beyond: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Run the backward kernel: gradients of R, b, W as (N, DH + 1 + DI, 4, DH), and of gates, or of x and u."""
    batch, steps, heads, dim = hidden.shape
    inner = 0 if x is None else x.shape[3]
    row = dim * hidden.element_size()
    dout = innermost(hidden.new_zeros(()).expand_as(hidden) if dout is None else dout, 1)
    back = R.permute(0, 2, 3, 1).contiguous()
    turned = None if W is None else W.permute(0, 2, 3, 1).contiguous()
    tasks = _tasks(batch, heads, dim, steps)
    sums = hidden.new_zeros(tasks.count, dim + 1 + inner, 4, dim)
    room = None if W is None else _Room(R, tasks.count, tasks.tile, dim)
    dgates = hidden.new_empty(batch, steps, heads, 4, dim) if W is None else None
    dx, du = (None if y is None else torch.empty_like(y, memory_format=torch.contiguous_format) for y in (x, u))
    at = [Strided(y) for y in (hidden, dout, dgates, x, u, dx, du)]
    at_start, at_work, at_back, at_sums, at_mask, at_W = _pointers(start, work, back, sums, mask, turned)

    def given(number: Numbers, head: Numbers, first: Numbers, rows: Numbers) -> tuple[Any, ...]:
        place, dR = (head * batch + first) * row, at_sums + number * (dim + 1 + inner) * 4 * row
        return (
            kept.at(number), at_start + place, at[0].at(head, first), at[1].at(head, first), at_work + place,
            heads * batch * row, int(beyond), at_back + head * 4 * dim * row,
            at[2].at(head, first) if room is None else room.at(number), dR, dR + 4 * dim * row,
            *(stream.at(head, first) for stream in at[3:]), at_W + head * inner * 4 * row, dR + (dim + 1) * 4 * row,
            inner, at_mask and at_mask + first * steps, steps, dim, rows, SPAN,
        )  # fmt: skip

    operations = batch * steps * heads * dim * 2 * (dim + inner + 16)
    spread(kernel("slstm_backward", kind_of(R.dtype, dim)), given, tasks, operations)
    return sums.view(-1, heads, dim + 1 + inner, 4, dim).sum(0), dgates, dx, du


def _pointers(*tensors: Tensor | None) -> list[int]:
    return [0 if x is None else x.data_ptr() for x in tensors]
