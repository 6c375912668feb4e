"""Sequence operations: stateless functions on tensors. `slstm` and `mlstm` pick a backend; `reference` is the truth.

Backends of both: "auto" (the fastest that fits device, dtype and size), "reference" (step by step), "torch" (any
device), "cpu" (compiled by numba, float32 and float64). sLSTM also: "flashrnn" (the optional package). mLSTM also:
"parallel" (the whole sequence as one chunk: O(T^2) memory).
What a backend cannot run (another device, a dtype without kernel, tracing, torch.func, forward-mode derivatives) torch
operations compute, with the same result. Half precision, autocast's for example, is computed in float32: outputs come
back in the inputs' dtype, states in float32.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from . import chunkwise, eager, flash, mixer_cpu, mlstm_cpu, reference, slstm_cpu, step_cpu
from .mixer_cpu import MixerWeights
from .projection import headwise, linear
from .reference import MLSTMState, SLSTMState
from .step_cpu import BLOCK, NORM_EPS, TAPS, MLSTMStepWeights, SLSTMStepWeights
from .tracing import traced

__all__ = [
    "MLSTM_BACKENDS",
    "NORM_EPS",
    "SLSTM_BACKENDS",
    "TAPS",
    "MLSTMState",
    "MLSTMStepWeights",
    "MixerWeights",
    "SLSTMState",
    "SLSTMStepWeights",
    "available_backends",
    "check_backend",
    "headwise",
    "linear",
    "mixer",
    "mixer_serves",
    "mlstm",
    "mlstm_step",
    "slstm",
    "slstm_headwise",
    "slstm_step",
    "step_serves",
]

SLSTM_BACKENDS: dict[str, Any] = {
    "reference": reference.slstm,
    "torch": eager.slstm,
    "cpu": slstm_cpu.slstm,
    "flashrnn": flash.slstm,
}
MLSTM_BACKENDS: dict[str, Any] = {
    "reference": reference.mlstm,
    "torch": chunkwise.mlstm,
    "cpu": mlstm_cpu.mlstm,
    "parallel": chunkwise.mlstm_parallel,
}


def available_backends(op: str) -> tuple[str, ...]:
    """Names of the backends of "slstm" or "mlstm" that run on this machine, "auto" left out."""
    names = {"slstm": SLSTM_BACKENDS, "mlstm": MLSTM_BACKENDS}[op]
    missing = {name for name, serves in (("cpu", _numba_serves), ("flashrnn", flash.installed)) if not serves()}
    return tuple(name for name in names if name not in missing)


def check_backend(name: str, *ops: str) -> None:
    """Raise ValueError for a name that is no backend of "slstm" or "mlstm", whichever are given."""
    tables = {"slstm": SLSTM_BACKENDS, "mlstm": MLSTM_BACKENDS}
    _named({key: None for op in ops for key in tables[op]}, name)


def slstm(
    gates: Tensor,
    R: Tensor,
    b: Tensor,
    state: SLSTMState | None = None,
    *,
    mask: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, SLSTMState]:
    """sLSTM over a sequence: see `reference.slstm` for shapes.

    Raises ValueError for an unknown backend and for a tensor whose shape or device does not fit the others.
    """
    op = _named(SLSTM_BACKENDS, backend)
    batch, steps, heads, _, dim = _sizes("gates", gates, "(B, T, N, 4, DH)")
    _check({"gates": gates, "R": R, "b": b}, [(batch, steps, heads, 4, dim), (heads, dim, 4, dim), (heads, 4, dim)])
    _check_rest(gates, state, [(batch, heads, dim)] * 4, mask, (batch, steps))
    if traced():
        op = reference.slstm  # a plain loop, which tracing unrolls
    elif backend in ("auto", "cpu"):
        op = slstm_cpu.slstm if _compiled_serves(gates) else eager.slstm
    return _run(op, (gates, R, b), state, mask=mask)


def slstm_headwise(
    x: Tensor,
    W: Tensor,
    R: Tensor,
    b: Tensor,
    state: SLSTMState | None = None,
    *,
    u: Tensor | None = None,
    mask: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, SLSTMState]:
    """Head-wise input projection and sLSTM in one: equal to `slstm(headwise(x, W), R, b, ...)`, and faster.

    x: (B, T, N, DI). W: (N, DI, 4, DH), from the inputs of a head to its gates i, f, z, o. u: as x, read by the gates i
    and f in its place (the paper's layer puts a convolution there). Raises as `slstm` does.
    """
    _named(SLSTM_BACKENDS, backend)
    batch, steps, heads, inner = _sizes("x", x, "(B, T, N, DI)")
    dim = b.shape[-1]
    shapes = [(heads, inner, 4, dim), (heads, dim, 4, dim), (heads, 4, dim), (batch, steps, heads, inner)]
    _check({"x": x, "W": W, "R": R, "b": b, "u": u}, [tuple(x.shape), *shapes])
    _check_rest(x, state, [(batch, heads, dim)] * 4, mask, (batch, steps))
    if backend in ("auto", "cpu") and _compiled_serves(x):
        return _run(slstm_cpu.slstm_headwise, (x, W, R, b, u), state, mask=mask)
    h, last = slstm(headwise(x, W, u), R, b, state, mask=mask, backend=backend)
    return h.to(x.dtype), last  # of gates that autocast made smaller, too


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
    backend: str = "auto",
) -> tuple[Tensor, MLSTMState]:
    """mLSTM over a sequence: see `reference.mlstm` for shapes. Raises as `slstm` does."""
    op = _named(MLSTM_BACKENDS, backend)
    batch, heads, steps, dk = _sizes("q", q, "(B, N, T, DK)")
    dv, rows = v.shape[-1], (batch, heads, steps)
    _check({"q": q, "k": k, "v": v, "i": i, "f": f}, [(*rows, dk), (*rows, dk), (*rows, dv), rows, rows])
    _check_rest(q, state, [(batch, heads, dk, dv), (batch, heads, dk), (batch, heads)], mask, (batch, steps))
    if backend in ("auto", "cpu"):
        op = mlstm_cpu.mlstm if _compiled_serves(q) else reference.mlstm if q.shape[2] == 1 else chunkwise.mlstm
    return _run(op, (q, k, v, i, f), state, mask=mask, eps=eps)


def mixer_serves(x: Tensor, weights: MixerWeights, heads: int, backend: str = "auto") -> bool:
    """Whether `mixer` can compute this layer; where it cannot, the layer is put together from torch operations."""
    return backend in ("auto", "cpu") and _compiled_serves(x) and mixer_cpu.serves(x, weights, heads)


def mixer(
    x: Tensor,
    weights: MixerWeights,
    past: Tensor | None = None,
    state: MLSTMState | None = None,
    *,
    heads: int,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, MLSTMState]:
    """The mLSTM layer with its projections, as `layers.MLSTMMixer` describes it, in one: (B, T, D) -> y, past, state.

    past: the convolution's last three inputs (B, 3, I). Raises as `slstm` does.
    """
    batch, steps, _ = _sizes("x", x, "(B, T, D)")
    inner = len(weights.skip)
    dim = inner // heads
    _check({"x": x, "past": past, **weights._asdict()}, _mixer_shapes(weights, batch, steps, heads))
    _check_rest(x, state, [(batch, heads, dim, dim), (batch, heads, dim), (batch, heads)], mask, (batch, steps))
    return mixer_cpu.mixer(x, weights, past, state, heads=heads, mask=mask)


def step_serves(x: Tensor, weights: tuple[Tensor, ...], state: Any, dim: int, backend: str = "auto") -> bool:
    """Whether the compiled `*_step` can compute this step of x (B, 1, D); dim: size of a head, state: all parts.

    Without gradients, on a CPU, for heads that fill vectors; else the layer is put together from other operations.
    """
    return backend in ("auto", "cpu") and _compiled_serves(x) and step_cpu.serves(x, weights, state, dim)


def mixer_step(
    x: Tensor, weights: MixerWeights, past: Tensor, state: MLSTMState, *, heads: int
) -> tuple[Tensor, Tensor, MLSTMState]:
    """One step of `mixer` without gradients: x (B, 1, D) -> y (B, 1, D), past, state. Raises as `slstm`."""
    batch, inner = x.shape[0], len(weights.skip)
    dim = inner // heads
    if weights.down.shape[0] != x.shape[2]:  # the kernel of a step knows one width
        return mixer(x, weights, past, state, heads=heads)
    _check({"x": x, "past": past, **weights._asdict()}, _mixer_shapes(weights, batch, 1, heads))
    _check_rest(x, state, [(batch, heads, dim, dim), (batch, heads, dim), (batch, heads)], None, (batch, 1))
    return step_cpu.mixer(x, weights, past, state, heads)


def mlstm_step(x: Tensor, weights: MLSTMStepWeights, state: MLSTMState, *, heads: int) -> tuple[Tensor, MLSTMState]:
    """One step of projections, mLSTM and per-head norm in one: x (B, 1, D) -> y (B, 1, H), state. Raises as `slstm`."""
    batch, inner = x.shape[0], len(weights.norm)
    dim = inner // heads
    given = {"x": x, **weights._asdict()}
    _check(given, [(batch, 1, x.shape[2]), (3 * inner, x.shape[2]), (2 * heads, x.shape[2]), (2 * heads,), (inner,)])
    _check_rest(x, state, [(batch, heads, dim, dim), (batch, heads, dim), (batch, heads)], None, (batch, 1))
    return step_cpu.mlstm(x, weights, state, heads)


def slstm_step(
    x: Tensor, weights: SLSTMStepWeights, past: Tensor, state: SLSTMState
) -> tuple[Tensor, Tensor, SLSTMState]:
    """One step of the sLSTM layer (convolution, head-wise gates, recurrence, norm): x (B, 1, D) -> y, past, state.

    past: the convolution's last inputs (B, 3, D). Raises as `slstm`.
    """
    batch, width = x.shape[0], x.shape[2]
    heads, dim = weights.R.shape[:2]
    given = {"x": x, "past": past, **weights._asdict()}
    matrix = (heads, width // heads, 4, dim)
    _check(
        given,
        [(batch, 1, heads * dim), (batch, TAPS - 1, width), (width, 1, TAPS), (width,), matrix, matrix,
         (heads, 4, dim), (width,)],
    )  # fmt: skip
    _check_rest(x, state, [(batch, heads, dim)] * 4, None, (batch, 1))
    return step_cpu.slstm(x, weights, past, state)


def _mixer_shapes(weights: MixerWeights, batch: int, steps: int, heads: int) -> list[tuple[int, ...]]:
    """Of x, the convolution's state and the parameters, by the widths of the up-projection, the skip and the output."""
    inner, width, blocks = len(weights.skip), weights.up.shape[1], (len(weights.skip) // BLOCK, BLOCK, BLOCK)
    return [
        (batch, steps, width), (batch, TAPS - 1, inner), (2 * inner, width), (inner, 1, TAPS), (inner,), (2, *blocks),
        (1, *blocks), (2 * heads, 3 * inner), (2 * heads,), (inner,), (inner,), (weights.down.shape[0], inner),
    ]  # fmt: skip


def _named(backends: dict[str, Any], name: str) -> Any:
    if name != "auto" and name not in backends:
        raise ValueError(f"backend must be one of {['auto', *backends]}, found {name!r}")
    return backends.get(name)


def _sizes(name: str, x: Tensor, form: str) -> tuple[int, ...]:
    if x.ndim != form.count(",") + 1 or 0 in x.shape:
        raise ValueError(f"{name} must be {form} and not empty, found shape {tuple(x.shape)}")
    return tuple(x.shape)


def _check(given: dict[str, Tensor | None], shapes: list[tuple[int, ...]]) -> None:
    """Raise where a tensor does not fit: compiled kernels read memory by these sizes."""
    device = next(iter(given.values())).device  # type: ignore[union-attr]
    for (name, x), shape in zip(given.items(), shapes, strict=True):
        if x is not None:
            _check_one(name, x, shape, device)


def _check_one(name: str, x: Tensor, shape: tuple[int, ...], device: torch.device) -> None:
    if x.shape != shape or x.device != device:
        raise ValueError(f"{name} must be {shape} on {device}, found {tuple(x.shape)} on {x.device}")


def _check_rest(
    like: Tensor, state: Any, shapes: list[tuple[int, ...]], mask: Tensor | None, mask_shape: tuple[int, ...]
) -> None:
    if state is not None:
        for name, x, shape in zip(state._fields, state, shapes, strict=True):
            _check_one(f"state.{name}", x, shape, like.device)
    if mask is not None:
        _check_one("mask", mask, mask_shape, like.device)
        if mask.dtype != torch.bool:
            raise TypeError(f"mask must be bool, true where a step exists, found {mask.dtype}")


def _compiled_serves(x: Tensor) -> bool:
    """Whether x holds numbers of this process' memory, read by no tracer or mode that sees torch's operations alone."""
    if type(x) not in (Tensor, nn.Parameter) or x.device.type != "cpu" or traced():
        return False
    return not torch._C._len_torch_dispatch_stack() and _numba_serves()


@functools.cache
def _numba_serves() -> bool:
    """Whether the compiled kernels can be had; says so once where they cannot."""
    try:
        from . import blocks
    except ImportError as error:
        warnings.warn(
            f"numba cannot be imported ({error}): the recurrences run on their slower torch path",
            RuntimeWarning,
            stacklevel=3,
        )
        return False
    return blocks.ENABLED


def _run(op: Any, inputs: tuple[Tensor | None, ...], state: Any, **options: Any) -> Any:
    """Call `op` in the inputs' common dtype, float32 for half types, with autocast off."""
    given = [x for x in inputs if x is not None]
    first = given[0]
    kinds = {x.dtype for x in given}
    common = functools.reduce(torch.promote_types, kinds)
    common = torch.float32 if common in (torch.float16, torch.bfloat16) else common
    if not all(kind.is_floating_point for kind in kinds):
        raise TypeError(f"inputs must be floating point, found {', '.join(sorted(map(str, kinds)))}")
    if kinds != {common} or (state is not None and any(x.dtype != common for x in state)):
        inputs = tuple(None if x is None else x.to(common) for x in inputs)
        state = None if state is None else type(state)(*(x.to(common) for x in state))
    if first.device.type != "meta" and torch.is_autocast_enabled(first.device.type):
        with torch.autocast(first.device.type, enabled=False):
            h, last = op(*inputs, state, **options)
    else:
        h, last = op(*inputs, state, **options)
    return h.to(first.dtype), last
