"""mLSTM in chunkwise form: parallel within chunks, recurrent between them; memory linear in T.

Source: the chunkwise form of Beck et al. 2025 (arXiv 2503.13427), with the normaliser's gradient in full. Letters: L
steps in a chunk, J chunks, X = batch times heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .reference import MLSTMState, mlstm_zero_state, normalise


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
    chunk: int = 0,
) -> tuple[Tensor, MLSTMState]:
    """mLSTM over a sequence; shapes and meaning as in `reference.mlstm`. chunk: steps per chunk, 0 picks it."""
    batch, heads, steps, _ = q.shape
    state = mlstm_zero_state(q, v) if state is None else state
    if mask is not None:  # a masked step forgets nothing and takes nothing in
        q, k, v = (x.masked_fill(~mask[:, None, :, None], 0) for x in (q, k, v))
        f, i = f.masked_fill(~mask[:, None], torch.inf), i.masked_fill(~mask[:, None], -torch.inf)
    log_f = F.logsigmoid(f)
    length = chunk or chunk_length(steps, q.shape[-1])
    pad = -steps % length
    q, k, v = (_chunks(x, length, pad) for x in (q, k, v))
    log_f = _chunks(log_f[..., None], length, pad)[..., 0]
    i = _chunks(i[..., None], length, pad, -torch.inf)[..., 0]
    h, last = _chunked(q * q.shape[-1] ** -0.5, k, v, i, log_f, MLSTMState(*(x.flatten(0, 1) for x in state)), eps)
    h = h.reshape(batch, heads, -1, h.shape[-1])[:, :, :steps]
    if mask is not None:
        h = h.masked_fill(~mask[:, None, :, None], 0)
    return h, MLSTMState(*(x.unflatten(0, (batch, heads)) for x in last))


def mlstm_parallel(
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
    """The parallel form: the whole sequence as one chunk, O(T^2) memory."""
    return mlstm(q, k, v, i, f, state, mask=mask, eps=eps, chunk=q.shape[2])


def chunk_length(steps: int, dim: int) -> int:
    """Steps per chunk: near the head size, where the work within chunks and between them balances."""
    return min(steps, 64 if dim >= 64 else 32)


def _chunks(x: Tensor, length: int, pad: int, value: float = 0.0) -> Tensor:
    """(B, N, T, ...) padded at the end, to (X, J, L, ...)."""
    x = F.pad(x, (0, 0, 0, pad), value=value) if pad else x
    return x.reshape(x.shape[0] * x.shape[1], -1, length, x.shape[-1])


def _chunked(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, log_f: Tensor, state: MLSTMState, eps: float
) -> tuple[Tensor, MLSTMState]:
    """The form itself. q, k, v: (X, J, L, D), q scaled; i, log_f: (X, J, L). The state's k is scaled, as q is here."""
    length = q.shape[2]
    b = log_f.cumsum(-1)
    total = b[..., -1]
    source = i - b  # log weight of step s, seen from step t of its chunk: b_t + source_s
    peak = source.cummax(-1).values
    ends = total + peak[..., -1]
    C, n, m = state[0], state[1], state[2]
    stabilisers = [m]
    for g, a in zip(total.unbind(1), ends.unbind(1), strict=True):
        stabilisers.append(torch.maximum(g + stabilisers[-1], a))
    m_all = torch.stack(stabilisers, 1)
    before, after = m_all[:, :-1], m_all[:, 1:]
    weight = torch.exp(total[..., None] + source - after[..., None])
    carry = torch.exp(total + before - after)
    scaled = k * (weight * k.shape[-1] ** -0.5)[..., None]
    added = scaled.transpose(-1, -2) @ v
    sums = scaled.sum(2)
    matrices, vectors = [C], [n]
    for keep, dC, dn in zip(carry.unbind(1), added.unbind(1), sums.unbind(1), strict=True):
        matrices.append(torch.addcmul(dC, keep[:, None, None], matrices[-1]))
        vectors.append(torch.addcmul(dn, keep[:, None], vectors[-1]))
    C, n = torch.stack(matrices[:-1], 1), torch.stack(vectors[:-1], 1)
    mu = b + torch.maximum(before[..., None], peak)
    causal = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    log_d = ((b - mu)[..., None] + source[..., None, :]).masked_fill(~causal, -torch.inf)
    scores = (q @ k.transpose(-1, -2)) * torch.exp(log_d)
    inter = torch.exp(b + before[..., None] - mu)[..., None] * (q * q.shape[-1] ** 0.5)
    h = scores @ v + inter @ C
    qn = scores.sum(-1) + (inter @ n[..., None])[..., 0]
    return normalise(h, qn, mu, eps), MLSTMState(matrices[-1], vectors[-1], stabilisers[-1])
