"""sLSTM over a sequence in torch operations with an analytic backward: any device, no compiler, linear in T.

The step loop works on tensors of (N, B, ...), so that all heads share one batched matrix product per step. Whatever
does not depend on the step before is computed for all steps at once, outside the loop: a device that starts each
operation by itself has few to start per step, 16 forward and 14 backward where no mask is given.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .once import once
from .reference import SLSTMState, slstm_zero_state


def slstm(
    gates: Tensor, R: Tensor, b: Tensor, state: SLSTMState | None = None, *, mask: Tensor | None = None
) -> tuple[Tensor, SLSTMState]:
    """sLSTM over a sequence; shapes and meaning as in `reference.slstm`."""
    state = slstm_zero_state(gates) if state is None else state
    record = torch.is_grad_enabled() and any(x.requires_grad for x in (gates, R, b, *state))
    h, *last = _Recurrence.apply(record, mask, gates, R, b, *state)
    return h, SLSTMState(*last)


class _Recurrence(torch.autograd.Function):
    """The whole sequence as one node of the graph."""

    @staticmethod
    def forward(
        ctx: Any, record: bool, mask: Tensor | None, gates: Tensor, R: Tensor, b: Tensor, *rest: Tensor
    ) -> tuple[Tensor, ...]:
        start = SLSTMState(*(x.transpose(0, 1).contiguous() for x in rest))
        batch, steps, heads, _, dim = gates.shape
        keep = None if mask is None else mask.t()[:, None, :, None]  # (T, 1, B, 1), used step by step
        weight = R.reshape(heads, dim, 4 * dim)
        pre_all = (gates + b).permute(1, 2, 0, 3, 4).reshape(steps, heads, batch, 4 * dim)
        state, tape, outputs = start, [], []
        for t, inputs in enumerate(pre_all.unbind(0)):
            kept = None if keep is None else keep[t]
            pre = torch.baddbmm(inputs, state.h, weight).view(heads, batch, 4, dim)
            outputs.append(state.h)
            state, taped = _step(pre, state, kept, fresh=t == 0 or kept is not None)
            if record:
                tape.append(taped)
        previous = torch.stack(outputs)  # h_{t-1} of every step
        states = torch.cat([previous[1:], state.h[None]])
        out = states if keep is None else states.masked_fill(~keep, 0)
        if record:
            record_of_all = (torch.stack(parts) for parts in zip(*tape, strict=True))
            ctx.save_for_backward(weight, previous, start.c, start.n, keep, *record_of_all)
        ctx.set_materialize_grads(False)
        ends = tuple(x.transpose(0, 1).contiguous() for x in state)
        return out.permute(2, 0, 1, 3).contiguous(), *ends

    @staticmethod
    @once
    def backward(ctx: Any, dout: Tensor | None, *dstate: Tensor | None) -> tuple[Tensor | None, ...]:
        weight, previous, c, n, keep, *taped = ctx.saved_tensors
        steps, heads, batch, dim = previous.shape
        dh, dc, dn, dm = (c.new_zeros(c.shape) if x is None else x.transpose(0, 1) for x in dstate)
        record = _Record(*taped)
        ratio = None  # what moves m_T alone, C = c exp(m) and N = n exp(m) held
        if any(x is not None for x in dstate[1:]):
            ratio = dm - record.c[-1] * dc - record.n[-1] * dn
        factors = _factors(record, c, n, keep)
        dy = None if dout is None else dout.permute(1, 2, 0, 3)
        if dy is not None and keep is not None:
            dy = dy.masked_fill(~keep, 0)
        back, dgates = weight.transpose(1, 2), []
        for t in range(steps - 1, -1, -1):
            kept = None if keep is None else keep[t]
            total = dh if dy is None else dh + dy[t]
            dpre, dc, dn, ratio = _step_back(total, dc, dn, ratio, _Factors(*(x[t] for x in factors)))
            dgates.append(dpre)
            carried = torch.bmm(dpre.view(heads, batch, 4 * dim), back)
            dh = carried if kept is None else torch.where(kept, carried, total)
        every = torch.stack(dgates[::-1])  # (T, N, B, 4, DH)
        flat = every.permute(1, 0, 2, 3, 4).reshape(heads, steps * batch, 4 * dim)
        dR = torch.bmm(previous.permute(1, 3, 0, 2).reshape(heads, dim, steps * batch), flat)
        db = flat.sum(1).view(heads, 4, dim)
        dm = c * dc + n * dn if ratio is None else ratio + c * dc + n * dn
        starts = (x.transpose(0, 1) for x in (dh, dc, dn, dm))
        return None, None, every.permute(2, 0, 1, 3, 4), dR.view(heads, dim, 4, dim), db, *starts


class _Record(NamedTuple):
    """What backward needs of every step: activated gates, f before that, whether i set m, the new c and n."""

    i: Tensor
    f: Tensor
    z: Tensor
    o: Tensor
    pre_f: Tensor
    won: Tensor
    c: Tensor
    n: Tensor


class _Factors(NamedTuple):
    """What the gradients of every step are multiplied by; each (T, N, B, DH)."""

    share: Tensor  # dh to dc
    minus: Tensor  # dh to dn
    out: Tensor  # dh to o before its sigmoid
    z: Tensor
    inner: Tensor  # dc to z before its tanh
    i: Tensor
    f: Tensor
    forget: Tensor  # f, and the share of f before its sigmoid
    c: Tensor  # of the step before
    n: Tensor
    won: Tensor
    stays: Tensor  # 1 - won
    lost: Tensor  # the share of f before its sigmoid, where f set m


def _step(pre: Tensor, state: SLSTMState, kept: Tensor | None, fresh: bool) -> tuple[SLSTMState, _Record]:
    """One step from pre-activations (N, B, 4, DH); `kept` (1, B, 1) marks the rows that move; fresh: whether the state
    may be that of a start, n = 0, where there is nothing to forget."""
    i, f, z, o = pre.unbind(2)
    pre_f = f
    _, c, n, m = state
    log_f = m + F.logsigmoid(f)
    if fresh:
        log_f = torch.where(n == 0, -torch.inf, log_f)
    won = i >= log_f
    m_new = torch.maximum(i, log_f)
    i, f, z, o = torch.exp(i - m_new), torch.exp(log_f - m_new), torch.tanh(z), torch.sigmoid(o)
    if kept is not None:  # a masked step forgets nothing and takes nothing in, whatever its gates hold
        i, f = i.masked_fill(~kept, 0), f.masked_fill(~kept, 1)
        z, o, pre_f = z.masked_fill(~kept, 0), o.masked_fill(~kept, 0), pre_f.masked_fill(~kept, torch.inf)
        won, m_new = won & kept, torch.where(kept, m_new, m)
    c_new = torch.addcmul(i * z, f, c)
    n_new = torch.addcmul(i, f, n)
    h = o * c_new / n_new
    if kept is not None:
        h = torch.where(kept, h, state.h)
    return SLSTMState(h, c_new, n_new, m_new), _Record(i, f, z, o, pre_f, won, c_new, n_new)


def _factors(record: _Record, c: Tensor, n: Tensor, keep: Tensor | None) -> _Factors:
    """The factors of all steps; c, n: before the first."""
    i, f, z, o, pre_f, won, c_new, n_new = record
    if keep is not None:
        n_new = n_new.masked_fill(~keep, 1)  # a masked step has o = 0, and perhaps n = 0
    share = o / n_new
    value = c_new * share
    forgot, stays = torch.sigmoid(-pre_f), (~won).to(i.dtype)
    return _Factors(
        share, value / -n_new, value * (1 - o), z, i * (1 - z * z), i, f, f * forgot,
        torch.cat([c[None], record.c[:-1]]), torch.cat([n[None], record.n[:-1]]), 1 - stays, stays,
        forgot * stays,
    )  # fmt: skip


def _step_back(
    dh: Tensor, dc: Tensor, dn: Tensor, ratio: Tensor | None, by: _Factors
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradient of one step: those of the pre-activations (N, B, 4, DH), c_{t-1}, n_{t-1} and of m_{t-1} alone.

    h depends on c exp(m) and n exp(m) only, so m counts as constant on their way; what a loss on the last state sends
    into m itself (`ratio`) goes to the gate that set m: the input gate, or the forget gate and m_{t-1}.
    """
    dc = torch.addcmul(dc, dh, by.share)
    dn = torch.addcmul(dn, dh, by.minus)
    di = by.i * torch.addcmul(dn, dc, by.z)
    df = by.forget * torch.addcmul(dc * by.c, dn, by.n)
    if ratio is not None:
        di = torch.addcmul(di, ratio, by.won)
        df = torch.addcmul(df, ratio, by.lost)
        ratio = ratio * by.stays
    return torch.stack((di, df, dc * by.inner, dh * by.out), 2), by.f * dc, by.f * dn, ratio
