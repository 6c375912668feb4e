"""Sequence operations: stateless functions on tensors. `slstm` and `mlstm` pick a backend; `reference` is the truth.

Backends of both: "auto" (the fastest that fits device, dtype and size), "reference" (step by step), "torch" (any device).
sLSTM also: "flashrnn" (the optional package). mLSTM also: "parallel" (O(T^2) memory, a check of the others).
Half precision inputs, autocast's for example, are computed in float32; outputs come back in the inputs' dtype and states
in float32. Under torch.compile and torch.export "auto" is plain torch operations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import chunkwise, eager, reference
from .reference import MLSTMState, SLSTMState

__all__ = ["MLSTM_BACKENDS", "SLSTM_BACKENDS", "MLSTMState", "SLSTMState", "available_backends", "mlstm", "slstm"]

SLSTM_BACKENDS: dict[str, Callable[..., tuple[Tensor, SLSTMState]]] = {
    "reference": reference.slstm,
    "torch": eager.slstm,
}
MLSTM_BACKENDS: dict[str, Callable[..., tuple[Tensor, MLSTMState]]] = {
    "reference": reference.mlstm,
    "torch": chunkwise.mlstm,
}


def available_backends(op: str) -> tuple[str, ...]:
    """Names of the backends of "slstm" or "mlstm" that run on this machine, "auto" left out."""
    return tuple({"slstm": SLSTM_BACKENDS, "mlstm": MLSTM_BACKENDS}[op])


def slstm(
    gates: Tensor,
    R: Tensor,
    b: Tensor,
    state: SLSTMState | None = None,
    *,
    mask: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, SLSTMState]:
    """sLSTM over a sequence: see `reference.slstm` for shapes. Raises ValueError for an unknown backend."""
    if backend == "auto":
        backend = "reference" if torch.compiler.is_compiling() else "torch"
    return _run(_named(SLSTM_BACKENDS, backend), (gates, R, b), state, mask=mask)


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
    """mLSTM over a sequence: see `reference.mlstm` for shapes. Raises ValueError for an unknown backend."""
    if backend == "auto":
        backend = "reference" if q.shape[2] == 1 else "torch"
    return _run(_named(MLSTM_BACKENDS, backend), (q, k, v, i, f), state, mask=mask, eps=eps)


def _named(backends: dict[str, Any], name: str) -> Callable[..., Any]:
    if name not in backends:
        raise ValueError(f"backend must be one of {['auto', *backends]}, found {name!r}")
    return backends[name]


def _run(op: Callable[..., Any], inputs: tuple[Tensor, ...], state: Any, **options: Any) -> Any:
    """Call `op` in the inputs' common dtype, float32 for half types, with autocast off."""
    given = inputs[0].dtype
    common = given
    for x in inputs[1:]:
        common = torch.promote_types(common, x.dtype)
    common = torch.float32 if common in (torch.float16, torch.bfloat16) else common
    inputs = tuple(x.to(common) for x in inputs)
    state = None if state is None else type(state)(*(x.to(common) for x in state))
    with torch.autocast(inputs[0].device.type, enabled=False):
        h, last = op(*inputs, state, **options)
    return h.to(given), last
