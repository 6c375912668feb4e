"""Sequence operations: stateless functions on tensors. `slstm` and `mlstm` pick a backend; `reference` is the truth."""

from __future__ import annotations

from torch import Tensor

from . import reference
from .reference import MLSTMState, SLSTMState

__all__ = ["MLSTMState", "SLSTMState", "mlstm", "slstm"]


def slstm(
    gates: Tensor,
    R: Tensor,
    b: Tensor,
    state: SLSTMState | None = None,
    *,
    mask: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, SLSTMState]:
    """sLSTM over a sequence: see `reference.slstm` for shapes."""
    return reference.slstm(gates, R, b, state, mask=mask)


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
    """mLSTM over a sequence: see `reference.mlstm` for shapes."""
    return reference.mlstm(q, k, v, i, f, state, mask=mask, eps=eps)
