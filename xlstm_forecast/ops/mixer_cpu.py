"""The whole mLSTM layer on compiled CPU kernels, as one node of the graph; groups of batch rows share memory."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .mlstm_cpu import chunk_length
from .once import once
from .product_cpu import Factor, add_outer
from .reference import MLSTMState
from .slstm_cpu import Pieces, kernel, kind_of, lanes_of
from .step_cpu import BLOCK, EPS, NORM_EPS, TAPS, MixerWeights
from .threads import Numbers, Tasks, spread

GROUP = 1 << 23  # bytes of an up-projection that are worked on at a time: they stay in cache, and memory is recycled
TASKS = 8  # per group, each with sums of its own


@dataclass
class Shape:
    """Sizes of one call, and what follows from them for the kernels' memory, in numbers."""

    batch: int
    steps: int
    heads: int
    dim: int
    kind: str
    eps: float
    norm_eps: float

    @functools.cached_property
    def inner(self) -> int:
        return self.heads * self.dim

    @functools.cached_property
    def lanes(self) -> int:
        return lanes_of(self.kind)

    @functools.cached_property
    def length(self) -> int:
        """Steps in a chunk."""
        return chunk_length(self.steps, self.dim, self.lanes)

    @functools.cached_property
    def width(self) -> int:
        """Gates, filled up to whole vectors."""
        return -(-2 * self.heads // self.lanes) * self.lanes

    @functools.cached_property
    def states(self) -> tuple[tuple[int, ...], ...]:
        """Sizes of the convolution's state, C, n and m."""
        rows = self.batch, self.heads
        return (self.batch, TAPS - 1, self.inner), (*rows, self.dim, self.dim), (*rows, self.dim), rows

    @functools.cached_property
    def record(self) -> int:
        """What backward needs of one row, see `cpu_mixer._record_at`."""
        chunks = -(-self.steps // self.length)
        states = self.heads * ((chunks + 1) * self.dim * (self.dim + 1) + 2 * self.steps + 1)
        return states + chunks * self.length * (self.inner + self.width)

    @property
    def sizes(self) -> tuple[int, ...]:
        """What the kernels take of it."""
        return self.steps, self.heads, self.dim, self.length, self.width

    def scratch(self, tiles: int) -> int:
        """Room of a task with so many tiles."""
        length, dim = self.length, self.dim
        room = length * (4 * dim + 3 * length + 12) + dim * dim
        return tiles * length * self.inner + 6 * self.inner + 2 * length * self.width + self.heads + room + 64

    def groups(self, size: int) -> list[tuple[int, int]]:
        """(first row, rows) of every group; size: bytes of a number."""
        most = max(TASKS, GROUP // (2 * self.inner * self.steps * size))
        rows = -(-self.batch // -(-self.batch // most))  # even groups, so that no thread waits for the last
        return [(row, min(rows, self.batch - row)) for row in range(0, self.batch, rows)]

    def tasks(self, rows: int) -> Tasks:
        """Those of a group."""
        return Tasks(rows, -(-rows // TASKS))


def serves(x: Tensor, weights: MixerWeights, heads: int) -> bool:
    """Whether the kernels can do it: one dtype of theirs, no autocast, vectors that fill the heads."""
    inner = len(weights.skip)
    plain = x.dtype in (torch.float32, torch.float64) and all(w.dtype == x.dtype for w in weights) and x.numel() > 0
    fits = weights.conv.shape[2] == TAPS and weights.value.shape[2] == BLOCK and inner // heads % 8 == 0
    return plain and fits and not torch.is_autocast_enabled("cpu")


def mixer(
    x: Tensor,
    weights: MixerWeights,
    past: Tensor | None,
    state: MLSTMState | None,
    *,
    heads: int,
    mask: Tensor | None = None,
    eps: float = EPS,
    norm_eps: float = NORM_EPS,
) -> tuple[Tensor, Tensor, MLSTMState]:
    """x (B, T, D) -> y (B, T, D), the convolution's next state (B, 3, I), the recurrence's next state.

    past: the convolution's state, None: zeros. mask: (B, T) bool, the valid steps first.
    """
    inner = len(weights.skip)
    dim = inner // heads
    batch, steps, _ = x.shape
    shape = Shape(batch, steps, heads, dim, kind_of(x.dtype, dim), eps, norm_eps)
    parts = (None,) * 4 if state is None else (past, *state)
    inputs = (x, *weights, *(part if part is None else part.to(x.dtype) for part in parts))
    record = torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in inputs)
    y, conv, *last = _Mixer.apply(record, shape, mask, *inputs)
    return y, conv, MLSTMState(*last)


def pack(weights: MixerWeights, shape: Shape, back: bool) -> Tensor:
    """The weights in the order and layout of the kernels; back: and turned, for backward.

    k is mapped to k / sqrt(dim), which is what the recurrence takes; the gates' weights make up for it.
    """
    root = shape.dim**0.5
    maps = torch.cat([weights.query_key, weights.value])
    maps[1] /= root
    gates = weights.gates.unflatten(1, (3, -1)).clone()
    gates[:, 1] *= root
    gates = gates.flatten(1)
    more = shape.width - 2 * shape.heads
    parts = [weights.conv[:, 0].T, weights.conv_bias, maps.permute(0, 2, 1, 3), weights.norm + 1, weights.skip]
    parts += [F.pad(part, (0, more)) if more else part for part in (gates.T, weights.gates_bias)]
    parts += [maps.permute(0, 3, 1, 2), gates] if back else []
    return torch.cat([part.reshape(-1) for part in parts])


def unpack(sums: Tensor, shape: Shape) -> tuple[Tensor, ...]:
    """Gradients of the weights between up and down from the kernels' sums, laid out as `pack` does."""
    inner, width, root = shape.inner, shape.width, shape.dim**0.5
    conv, maps, norm, gates, bias = sums.split([5 * inner, 12 * inner, 2 * inner, 3 * inner * width, width])
    conv, norm = conv.view(5, inner), norm.view(2, inner)
    maps = maps.view(3, BLOCK, -1, BLOCK).transpose(1, 2)
    gates = gates.view(3, inner, width)[..., : 2 * shape.heads].permute(2, 0, 1)
    query_key, gates = maps[:2].clone(), gates.clone()
    query_key[1] /= root
    gates[:, 1] *= root
    return (
        conv[:4].T[:, None], conv[4], query_key, maps[2:], gates.flatten(1), bias[: 2 * shape.heads], norm[0], norm[1]
    )  # fmt: skip


def _next_past(past: Tensor, a: Tensor, mask: Tensor | None) -> Tensor:
    """The last three inputs of the convolution, up to each row's last valid step."""
    steps = a.shape[1]
    if mask is None:
        recent = a[:, -(TAPS - 1) :]
        return recent.clone() if steps >= TAPS - 1 else torch.cat([past[:, steps:], recent], 1)
    place = mask.sum(1)[:, None] + torch.arange(TAPS - 1)
    index = place[..., None].expand(-1, -1, a.shape[2])
    old, new = past.gather(1, index.clamp(max=TAPS - 2)), a.gather(1, (index - TAPS + 1).clamp(min=0))
    return torch.where(index < TAPS - 1, old, new)


def _next_past_back(grad: Tensor, da: Tensor, dpast: Tensor, mask: Tensor | None) -> None:
    """Add the gradient of `_next_past`'s result to those of its arguments."""
    steps = da.shape[1]
    if mask is None:
        kept = max(0, TAPS - 1 - steps)
        da[:, steps - (TAPS - 1 - kept) :] += grad[:, kept:]
        dpast[:, TAPS - 1 - kept :] += grad[:, :kept]
        return
    place = mask.sum(1)[:, None] + torch.arange(TAPS - 1)
    index = place[..., None].expand(-1, -1, da.shape[2])
    old = index < TAPS - 1
    dpast.scatter_add_(1, index.clamp(max=TAPS - 2), grad.where(old, 0))
    da.scatter_add_(1, (index - TAPS + 1).clamp(min=0), grad.where(~old, 0))


class _Mixer(torch.autograd.Function):
    """From x, the weights, the convolution's state and C, n, m to y and the next states."""

    @staticmethod
    def forward(ctx: Any, record: bool, shape: Shape, mask: Any, *inputs: Any) -> tuple[Tensor, ...]:
        x, weights, state = inputs[0], MixerWeights(*inputs[1:11]), inputs[11:]
        mask = None if mask is None else mask.contiguous()
        past, C, n, m = (
            x.new_zeros(size) if part is None else part.clone(memory_format=torch.contiguous_format)
            for part, size in zip(state, shape.states, strict=True)
        )
        packed, conv = pack(weights, shape, record), torch.empty_like(past)
        y, kept = x.new_empty(shape.batch * shape.steps, weights.down.shape[0]), []
        by_up, by_down = Factor(weights.up.t()), Factor(weights.down.t())
        for first, rows in shape.groups(x.element_size()):
            part = slice(first, first + rows)
            up = x.new_empty(rows, shape.steps, 2 * shape.inner)
            by_up.multiply(x[part].reshape(rows * shape.steps, -1), up.view(rows * shape.steps, -1))
            z, notes = _run_forward(shape, up, past, packed, (C, n, m), mask, first, record)
            by_down.multiply(z, y[first * shape.steps : (first + rows) * shape.steps])
            conv[part] = _next_past(past[part], up[..., : shape.inner], None if mask is None else mask[part])
            if notes is not None:
                kept.append((up, notes))
        ctx.set_materialize_grads(False)
        if record:
            ctx.shape, ctx.layouts = shape, [(len(notes.memory), notes.layout()) for _, notes in kept]
            memory = [part for up, notes in kept for part in (up, *notes.memory)]
            ctx.save_for_backward(x, *weights, past, packed, mask, *memory)
        return y.view(shape.batch, shape.steps, -1), conv, C, n, m

    @staticmethod
    @once
    def backward(ctx: Any, dy: Any, dconv: Any, *dstate: Any) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)  # read once: a checkpoint gives them once
        x, *weights, past, packed, mask = itertools.islice(saved, len(MixerWeights._fields) + 4)
        kept = [(next(saved), layout.over([next(saved) for _ in range(count)])) for count, layout in ctx.layouts]
        shape, up_weight, down_weight = ctx.shape, weights[0], weights[-1]
        dy = x.new_zeros(x.shape) if dy is None else dy
        like = past.new_empty(0)
        dstates = tuple(
            like.new_zeros(size) if grad is None else grad.clone(memory_format=torch.contiguous_format)
            for grad, size in zip(dstate, shape.states[1:], strict=True)
        )
        sums = like.new_zeros(TASKS, (19 + 3 * shape.width) * shape.inner + shape.width)
        dx = x.new_empty(shape.batch * shape.steps, x.shape[2])
        by_up, by_down = Factor(up_weight), Factor(down_weight)
        dup, ddown, dpast = (past.new_zeros(part.shape) for part in (up_weight, down_weight, past))
        wanted = any(ctx.needs_input_grad[15:])
        for (first, count), (up, notes) in zip(shape.groups(x.element_size()), kept, strict=True):
            part = slice(first, first + count)
            grad = dy[part].reshape(count * shape.steps, -1)
            dz = x.new_empty(len(grad), shape.inner)
            by_down.multiply(grad, dz)
            z, da, edge = _run_backward(shape, up, past, packed, dz, notes, dstates, sums, mask, first, wanted)
            for lag in range(1, TAPS if ctx.needs_input_grad[14] else 1):  # what the first steps saw of the past
                tap = weights[1][:, 0, TAPS - 1 - lag]
                dpast[part, TAPS - 1 - lag :] += edge[:, :lag] * tap
            if dconv is not None:
                part_mask = None if mask is None else mask[part]
                _next_past_back(dconv[part], da[..., : shape.inner], dpast[part], part_mask)
            da = da.view(count * shape.steps, -1)
            add_outer(ddown, grad, z)
            add_outer(dup, da, x[part].reshape(count * shape.steps, -1))
            by_up.multiply(da, dx[first * shape.steps : (first + count) * shape.steps])
        between = unpack(sums.sum(0), shape)
        grads = (None, None, None, dx.view(x.shape), dup, *between, ddown, dpast, *dstates)
        return tuple(grad if want else None for grad, want in zip(grads, ctx.needs_input_grad, strict=True))


def _run_forward(
    shape: Shape, up: Tensor, past: Tensor, packed: Tensor, state: tuple[Tensor, ...], mask: Any, first: int,
    record: bool,
) -> tuple[Tensor, Pieces | None]:  # fmt: skip
    """Run the kernel over one group of rows; z as (rows steps, I)."""
    rows = len(up)
    tasks = shape.tasks(rows)
    z = up.new_empty(rows, shape.steps, shape.inner)
    notes = Pieces(up, tasks.count, tasks.tile * shape.record) if record else None
    scratch = Pieces(up, tasks.count, shape.scratch(6))
    streams, whole = _streams(up, z), _whole(first, past, *state, mask)

    def given(number: Numbers, _: Numbers, row: Numbers, count: Numbers) -> tuple[Any, ...]:
        at_up, at_z = _rows(streams, row)
        at_past, *at_state, at_mask = (_at(place, row) for place in whole)
        return (
            at_up, at_past, at_z, packed.data_ptr(), *at_state, 0 if notes is None else notes.at(number), at_mask,
            scratch.at(number), *shape.sizes, count, shape.eps, shape.norm_eps,
        )  # fmt: skip

    operations = rows * shape.steps * shape.inner * 4 * (shape.length + shape.dim)
    spread(kernel("mixer_forward", shape.kind), given, tasks, operations)
    return z.view(rows * shape.steps, shape.inner), notes


def _run_backward(
    shape: Shape, up: Tensor, past: Tensor, packed: Tensor, dz: Tensor, notes: Pieces, dstates: tuple[Tensor, ...],
    sums: Tensor, mask: Any, first: int, wanted: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Run the kernel over one group of rows: z again, gradients of the up-projection and of the first convolved."""
    rows = len(up)
    tasks = shape.tasks(rows)
    z, da = up.new_empty(rows, shape.steps, shape.inner), torch.empty_like(up)
    edge = up.new_empty(rows, TAPS - 1, shape.inner)
    scratch = Pieces(up, tasks.count, shape.scratch(11))
    streams, whole = _streams(up, dz.view(z.shape), z, da), _whole(first, past, *dstates, mask)
    at_sums, at_edge = _whole(0, sums, edge)

    def given(number: Numbers, _: Numbers, row: Numbers, count: Numbers) -> tuple[Any, ...]:
        at_past, *at_dstates, at_mask = (_at(place, row) for place in whole)
        at_up, *others = _rows(streams, row)
        return (
            at_up, at_past, *others, packed.data_ptr(), _at(at_sums, number), *at_dstates, _at(at_edge, row),
            notes.at(number), at_mask, scratch.at(number), *shape.sizes, count, int(wanted), shape.eps, shape.norm_eps,
        )  # fmt: skip

    operations = 3 * rows * shape.steps * shape.inner * 4 * (shape.length + shape.dim)
    spread(kernel("mixer_backward", shape.kind), given, tasks, operations)
    return z.view(rows * shape.steps, shape.inner), da, edge


def _streams(*tensors: Tensor) -> list[tuple[int, int, int]]:
    """Address, bytes per row and bytes per step of (rows, steps, ...) tensors."""
    return [(x.data_ptr(), x.stride(0) * x.element_size(), x.stride(1) * x.element_size()) for x in tensors]


def _rows(streams: list[tuple[int, int, int]], row: Numbers) -> list[tuple[Numbers, int, int]]:
    """The streams from a row on."""
    return [(at + row * apart, apart, step) for at, apart, step in streams]


def _whole(first: int, *tensors: Tensor | None) -> list[tuple[int, int]]:
    """Address of row `first` and bytes per row; no tensor: zeros."""
    sizes = [(0, 0) if x is None else (x.data_ptr(), x.stride(0) * x.element_size()) for x in tensors]
    return [(at + first * apart, apart) for at, apart in sizes]


def _at(place: tuple[int, int], row: Numbers) -> Numbers:
    return place[0] + row * place[1]
