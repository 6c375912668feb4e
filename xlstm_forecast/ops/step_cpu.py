"""One step of whole layers without gradients: projections, recurrence and norm as one call of a compiled kernel.

In step mode starting operations costs more than running them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .reference import MLSTMState, SLSTMState
from .slstm_cpu import kernel, kind_of, lanes_of
from .threads import Numbers, Tasks, spread

TAPS = 4  # of the convolution, the one size that has kernels
BLOCK = 4  # features that the mLSTM layer's maps to q, k and v mix, likewise
EPS, NORM_EPS = 1e-6, 1e-5  # of the mLSTM's denominator, of the per-head norm
FEW = 4  # rows under which a step does not put rows side by side in vectors


class MixerWeights(NamedTuple):
    """Parameters of the mLSTM layer: D features, I inner ones, N heads."""

    up: Tensor  # (2 I, D), a then g
    conv: Tensor  # (I, 1, 4)
    conv_bias: Tensor  # (I,)
    query_key: Tensor  # (2, I / 4, 4, 4), from the third dimension to the fourth
    value: Tensor  # (1, I / 4, 4, 4)
    gates: Tensor  # (2 N, 3 I), i then f, of q, k, v
    gates_bias: Tensor  # (2 N,)
    norm: Tensor  # (I,), scale less 1
    skip: Tensor  # (I,)
    down: Tensor  # (D, I)


class MLSTMStepWeights(NamedTuple):
    """Parameters of projections, recurrence and norm: D inputs, H = N DH outputs."""

    qkv: Tensor  # (3 H, D)
    gates: Tensor  # (2 N, D), i then f
    gates_bias: Tensor  # (2 N,)
    norm: Tensor  # (H,), scale less 1


class SLSTMStepWeights(NamedTuple):
    """Parameters of the sLSTM layer: D features in N heads of DH."""

    conv: Tensor  # (D, 1, 4)
    conv_bias: Tensor  # (D,)
    W: Tensor  # (N, DH, 4, DH), from a head's inputs to its gates
    R: Tensor  # (N, DH, 4, DH)
    b: Tensor  # (N, 4, DH)
    norm: Tensor  # (D,), scale less 1


def serves(x: Tensor, weights: tuple[Tensor, ...], state: Any, dim: int) -> bool:
    """Whether the kernels can do it: one step of x (B, 1, D) without gradients, one dtype of theirs, whole vectors."""
    if x.ndim != 3 or x.shape[1] != 1 or torch.is_grad_enabled() or x.dtype not in (torch.float32, torch.float64):
        return False
    if dim % 8 or x.numel() == 0 or torch.is_autocast_enabled("cpu"):
        return False
    lanes = lanes_of(kind_of(x.dtype, dim))
    return x.shape[2] % lanes == 0 and all(part.dtype == x.dtype for part in (*weights, *state))


def mixer(
    x: Tensor, weights: MixerWeights, past: Tensor, state: MLSTMState, heads: int
) -> tuple[Tensor, Tensor, MLSTMState]:
    """x (B, 1, D), the convolution's last inputs (B, 3, I) -> y (B, 1, D), the next of them, state."""
    width, inner = x.shape[2], len(weights.skip)
    dim = inner // heads
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    room, work = (24 * inner + 2 * heads + 80, 2 * width + 5 * inner), inner * (4 * dim + 6 * width)
    sizes = width, heads, dim, EPS, NORM_EPS
    after, *end = by_rows("step_mixer", x, weights, (past, *state), y, sizes, room, work)
    return y, after, MLSTMState(*end)


def mlstm(x: Tensor, weights: MLSTMStepWeights, state: MLSTMState, heads: int) -> tuple[Tensor, MLSTMState]:
    """x (B, 1, D) -> y (B, 1, H), state."""
    width, inner = x.shape[2], len(weights.norm)
    dim = inner // heads
    y = x.new_empty(x.shape[0], 1, inner)
    work = inner * (4 * dim + 3 * width)
    end = by_rows(
        "step_mlstm", x, weights, state, y, (width, heads, dim, EPS, NORM_EPS), (64, 2 * width + 6 * inner), work
    )
    return y, MLSTMState(*end)


def by_rows(
    name: str,
    x: Tensor,
    weights: tuple[Tensor, ...],
    state: tuple[Tensor, ...],
    y: Tensor,
    sizes: tuple[int, int, int, float, float],
    room: tuple[int, int],
    work: int,
) -> list[Tensor]:
    """Run the kernel of that name on shares of the batch rows, from x and the state to y and the next state's parts.

    sizes: of the input, heads, of a head, and both epsilons. room: numbers of scratch, and more for each row. work:
    operations for a row. x, y and the state's parts have the batch as their first dimension.
    """
    width, heads, dim, eps, norm_eps = sizes
    batch, kind = x.shape[0], kind_of(x.dtype, dim)
    x, *old = (part.contiguous() for part in (x, *state))
    new = [torch.empty_like(part) for part in old]
    tasks = Tasks(batch, batch if batch < FEW else _share(batch, lanes_of(kind)))
    scratch = x.new_empty(tasks.count, room[0] + tasks.tile * room[1])
    streams = [(part.data_ptr(), part.numel() // batch * part.element_size()) for part in (x, *old, *new, y)]
    parameters = [part.contiguous() for part in weights]
    pointers = [part.data_ptr() for part in parameters]
    own, apart = scratch.data_ptr(), scratch.stride(0) * scratch.element_size()

    def given(number: Numbers, _: Numbers, first: Numbers, rows: Numbers) -> tuple[Any, ...]:
        at_x, *rest = (place + first * step for place, step in streams)
        return (at_x, *pointers, *rest, own + number * apart, width, heads, dim, rows, tasks.tile, eps, norm_eps)

    spread(kernel(name, kind), given, tasks, batch * work)
    return new


def slstm(x: Tensor, weights: SLSTMStepWeights, past: Tensor, state: SLSTMState) -> tuple[Tensor, Tensor, SLSTMState]:
    """x (B, 1, D), the convolution's last inputs (B, 3, D) and state (B, N, DH) -> y (B, 1, D), the next of both."""
    batch, _, width = x.shape
    heads, inner, _, dim = weights.W.shape
    x, *old = (part.contiguous() for part in (x, past, *state))
    y, *new = (torch.empty_like(part) for part in (x, *old))
    parameters = [part.contiguous() for part in weights]
    scratch = x.new_empty(64 + 5 * width + batch * (width + 9 * dim) + 1)
    pointers = [part.data_ptr() for part in (x, old[0], *parameters, *old[1:], *new, y, scratch)]
    kernel("step_slstm_layer", kind_of(x.dtype, dim)).run(*pointers, inner, heads, dim, batch, NORM_EPS)
    return y, new[0], SLSTMState(*new[1:])


def _share(batch: int, lanes: int) -> int:
    """Rows of a task: an equal share for each thread, in whole vectors."""
    rows = -(-batch // torch.get_num_threads())
    return -(-rows // lanes) * lanes
