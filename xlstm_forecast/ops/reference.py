"""The paper's recurrences, written step by step in plain torch: the truth that every other backend is compared with.

Source: Beck et al. 2024, arXiv 2405.04517, sections 2.2 (sLSTM) and 2.3 (mLSTM), in the stabilised form of its
appendix A. Nothing here is fast. States go in and come out; no function keeps anything.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .states import kept


@kept
class SLSTMState(NamedTuple):
    """State of the sLSTM recurrence, four tensors of (B, N, DH): hidden, cell, normaliser, stabiliser."""

    h: Tensor
    c: Tensor
    n: Tensor
    m: Tensor


@kept
class MLSTMState(NamedTuple):
    """State of the mLSTM recurrence: matrix memory (B, N, DK, DV), normaliser (B, N, DK), stabiliser (B, N)."""

    C: Tensor
    n: Tensor
    m: Tensor


def slstm_zero_state(gates: Tensor) -> SLSTMState:
    """The start state for gates of (B, T, N, 4, DH); n = 0 marks it as fresh."""
    batch, _, heads, _, dim = gates.shape
    return SLSTMState(*(gates.new_zeros(batch, heads, dim) for _ in range(4)))


def mlstm_zero_state(q: Tensor, v: Tensor) -> MLSTMState:
    """The start state for q of (B, N, T, DK) and v of (B, N, T, DV)."""
    batch, heads, _, dk = q.shape
    return MLSTMState(
        q.new_zeros(batch, heads, dk, v.shape[-1]), q.new_zeros(batch, heads, dk), q.new_zeros(batch, heads)
    )


def slstm_step(pre: Tensor, state: SLSTMState) -> SLSTMState:
    """One sLSTM step (eq. 8 to 17, forget gate sigmoid) from complete pre-activations.

    pre: (B, N, 4, DH), gates in the order i, f, z, o, recurrent part and bias included.
    The fresh rule holds per element: where n is 0 the stabiliser starts at the input gate.
    """
    i, f, z, o = pre.unbind(-2)
    _, c, n, m = state
    log_f = m + F.logsigmoid(f)
    m_new = torch.where(n == 0, i, torch.maximum(i, log_f))
    i = torch.exp(i - m_new)
    f = torch.exp((log_f - m_new).masked_fill(n == 0, -torch.inf))  # fresh: nothing to forget, and exp stays finite
    c = f * c + i * torch.tanh(z)
    n = f * n + i
    return SLSTMState(torch.sigmoid(o) * c / n, c, n, m_new)


def slstm(
    gates: Tensor, R: Tensor, b: Tensor, state: SLSTMState | None = None, *, mask: Tensor | None = None
) -> tuple[Tensor, SLSTMState]:
    """sLSTM over a sequence.

    gates: (B, T, N, 4, DH) input part of the pre-activations, order i, f, z, o. R: (N, DH, 4, DH), from h_{t-1} of a
    head (second dimension) to its gates. b: (N, 4, DH). mask: (B, T) bool; a false step leaves the state as it is and
    gives output 0. Returns the outputs h (B, T, N, DH) and the state after the last step.
    """
    state = slstm_zero_state(gates) if state is None else state
    if mask is not None:  # what padding holds, NaN even, reaches neither values nor gradients
        gates = gates.masked_fill(~mask[:, :, None, None, None], 0)
    outputs = []
    for t, gate in enumerate(gates.unbind(1)):
        pre = gate + torch.einsum("bnd,ndge->bnge", state.h, R) + b
        new = slstm_step(pre, state)
        if mask is not None:
            keep = mask[:, t, None, None]
            outputs.append(torch.where(keep, new.h, torch.zeros_like(new.h)))
            state = SLSTMState(*(torch.where(keep, a, z) for a, z in zip(new, state, strict=True)))
        else:
            outputs.append(new.h)
            state = new
    return torch.stack(outputs, 1), state


def mlstm_step(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, state: MLSTMState, eps: float = 1e-6
) -> tuple[Tensor, MLSTMState]:
    """One mLSTM step (eq. 19 to 27). q, k: (B, N, DK); v: (B, N, DV); i, f: (B, N) pre-activations. h: (B, N, DV).

    The denominator max(|q n|, exp(-m)) + eps is formed in units of exp(-m) where m is negative, so that neither it nor
    its gradient overflows at gates near -120.
    """
    C, n, m = state
    k = k * k.shape[-1] ** -0.5
    log_f = F.logsigmoid(f) + m
    m_new = torch.maximum(log_f, i)
    f, i = torch.exp(log_f - m_new), torch.exp(i - m_new)
    C = f[..., None, None] * C + i[..., None, None] * (k[..., :, None] * v[..., None, :])
    n = f[..., None] * n + i[..., None] * k
    numerator = torch.einsum("bnk,bnkv->bnv", q, C)
    qn = torch.einsum("bnk,bnk->bn", q, n)
    h = normalise(numerator, qn, m_new, eps)
    return h, MLSTMState(C, n, m_new)


def normalise(numerator: Tensor, qn: Tensor, m: Tensor, eps: float) -> Tensor:
    """numerator / (max(|qn|, exp(-m)) + eps), finite in value and gradient for every m.

    numerator: (..., DV); qn, m: (...). Both sides are multiplied by s = exp(min(m, 0)), at most 1:
    max(|qn| s, exp(-max(m, 0))) + eps s; s itself underflows to 0 only where the result is 0 too.
    """
    scale = torch.exp(m.clamp(max=0))
    floor = torch.exp(-m.clamp(min=0))
    return numerator * (scale / (torch.maximum(qn.abs() * scale, floor) + eps * scale))[..., None]


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
    """mLSTM over a sequence, recurrent form.

    q, k: (B, N, T, DK); v: (B, N, T, DV); i, f: (B, N, T) pre-activations. mask: (B, T) bool; a false step leaves the
    state as it is and gives output 0. Returns h (B, N, T, DV) and the state after the last step.
    """
    state = mlstm_zero_state(q, v) if state is None else state
    if mask is not None:  # what padding holds, NaN even, reaches neither values nor gradients
        q, k, v = (x.masked_fill(~mask[:, None, :, None], 0) for x in (q, k, v))
        i, f = (x.masked_fill(~mask[:, None], 0) for x in (i, f))
    outputs = []
    for t, step in enumerate(zip(q.unbind(2), k.unbind(2), v.unbind(2), i.unbind(2), f.unbind(2), strict=True)):
        h, new = mlstm_step(*step, state, eps)
        if mask is not None:
            keep = mask[:, t, None]
            h = torch.where(keep[..., None], h, torch.zeros_like(h))
            new = MLSTMState(
                torch.where(keep[..., None, None], new.C, state.C),
                torch.where(keep[..., None], new.n, state.n),
                torch.where(keep, new.m, state.m),
            )
        outputs.append(h)
        state = new
    return torch.stack(outputs, 2), state


def mlstm_parallel(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, *, eps: float = 1e-6) -> Tensor:
    """mLSTM in parallel form from a zero state: O(T^2) memory, a check of the recurrent one (differs in eps only)."""
    steps = q.shape[2]
    log_f = F.logsigmoid(f).cumsum(-1)
    log_d = log_f[..., :, None] - log_f[..., None, :] + i[..., None, :]
    log_d = log_d.masked_fill(torch.ones(steps, steps, dtype=torch.bool, device=q.device).triu(1), -torch.inf)
    m = log_d.amax(-1)
    scores = torch.einsum("bntd,bnsd->bnts", q, k * k.shape[-1] ** -0.5) * torch.exp(log_d - m[..., None])
    return normalise(torch.einsum("bnts,bnsv->bntv", scores, v), scores.sum(-1), m, eps)
