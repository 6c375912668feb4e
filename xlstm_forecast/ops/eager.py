"""sLSTM over a sequence in torch operations with an analytic backward: any device, no compiler, linear in T.

The step loop works on tensors of (N, B, ...), so that all heads share one batched matrix product per step, and keeps
activated gates instead of pre-activations, so that backward needs no transcendental function.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

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
        h, c, n, m = (x.transpose(0, 1).contiguous() for x in rest)
        batch, steps, heads, _, dim = gates.shape
        keep = None if mask is None else mask.t()[:, None, :, None]  # (T, 1, B, 1), used step by step
        weight = R.reshape(heads, dim, 4 * dim)
        pre_all = (gates + b).permute(1, 2, 0, 3, 4).reshape(steps, heads, batch, 4 * dim)
        tape, outputs = [], []
        for t, inputs in enumerate(pre_all.unbind(0)):
            kept = None if keep is None else keep[t]
            pre = torch.baddbmm(inputs, h, weight).view(heads, batch, 4, dim)
            new, taped = _step(pre, SLSTMState(h, c, n, m), kept)
            if record:
                tape.append(taped)
            outputs.append(h)
            h, c, n, m = new
        previous = torch.stack(outputs)  # h_{t-1} of every step
        states = torch.cat([previous[1:], h[None]])
        out = states if keep is None else states.masked_fill(~keep, 0)
        if record:
            ctx.save_for_backward(weight, previous, *(x.transpose(0, 1).contiguous() for x in rest), keep)
            ctx.tape = tape
        ends = tuple(x.transpose(0, 1).contiguous() for x in (h, c, n, m))
        return out.permute(2, 0, 1, 3).contiguous(), *ends

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor, *dstate: Tensor) -> tuple[Tensor | None, ...]:
        weight, previous, _, c, n, _, keep = ctx.saved_tensors
        steps, heads, batch, dim = previous.shape
        dh, dc, dn, dm = (x.transpose(0, 1) for x in dstate)
        last = ctx.tape[-1]
        ratio = dm - last.c * dc - last.n * dn  # what moves m_T alone, C = c exp(m) and N = n exp(m) held
        back, dgates = weight.transpose(1, 2), []
        for t in range(steps - 1, -1, -1):
            record = ctx.tape[t]
            old_c, old_n = (ctx.tape[t - 1].c, ctx.tape[t - 1].n) if t else (c, n)
            kept = None if keep is None else keep[t]
            dy = dout[:, t].transpose(0, 1)
            total = dh + (dy if kept is None else dy.masked_fill(~kept, 0))
            dpre, dc, dn, ratio = _step_back(total, dc, dn, ratio, record, old_c, old_n, kept)
            dgates.append(dpre)
            carried = torch.bmm(dpre.view(heads, batch, 4 * dim), back)
            dh = carried if kept is None else torch.where(kept, carried, total)
        every = torch.stack(dgates[::-1])  # (T, N, B, 4, DH)
        flat = every.permute(1, 0, 2, 3, 4).reshape(heads, steps * batch, 4 * dim)
        dR = torch.bmm(previous.permute(1, 3, 0, 2).reshape(heads, dim, steps * batch), flat)
        db = flat.sum(1).view(heads, 4, dim)
        starts = (x.transpose(0, 1) for x in (dh, dc, dn, ratio + c * dc + n * dn))
        return None, None, every.permute(2, 0, 1, 3, 4), dR.view(heads, dim, 4, dim), db, *starts


class _Record(NamedTuple):
    """What backward needs of one step: activated gates, 1 - sigmoid(f), and the new c and n; each (N, B, DH)."""

    i: Tensor
    f: Tensor
    z: Tensor
    o: Tensor
    forgot: Tensor
    won: Tensor
    c: Tensor
    n: Tensor


def _step(pre: Tensor, state: SLSTMState, kept: Tensor | None) -> tuple[SLSTMState, _Record]:
    """One step from pre-activations (N, B, 4, DH); `kept` (1, B, 1) marks the rows that move."""
    i, f, z, o = pre.unbind(2)
    _, c, n, m = state
    log_f = torch.where(n == 0, -torch.inf, m + F.logsigmoid(f))  # fresh: nothing to forget
    won = i >= log_f
    m_new = torch.maximum(i, log_f)
    forgot = torch.sigmoid(-f)
    i, f, z, o = torch.exp(i - m_new), torch.exp(log_f - m_new), torch.tanh(z), torch.sigmoid(o)
    if kept is not None:  # a masked step forgets nothing and takes nothing in, whatever its gates hold
        i, f = i.masked_fill(~kept, 0), f.masked_fill(~kept, 1)
        z, o, forgot = (x.masked_fill(~kept, 0) for x in (z, o, forgot))
        won, m_new = won & kept, torch.where(kept, m_new, m)
    c_new = f * c + i * z
    n_new = f * n + i
    h = o * c_new / n_new
    if kept is not None:
        h = torch.where(kept, h, state.h)
    return SLSTMState(h, c_new, n_new, m_new), _Record(i, f, z, o, forgot, won, c_new, n_new)


def _step_back(
    dh: Tensor, dc: Tensor, dn: Tensor, ratio: Tensor, step: _Record, c: Tensor, n: Tensor, kept: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradient of one step: those of the pre-activations (N, B, 4, DH), c_{t-1}, n_{t-1} and of m_{t-1} alone.

    h depends on c exp(m) and n exp(m) only, so m counts as constant on their way; what a loss on the last state sends
    into m itself (`ratio`) goes to the gate that set m: the input gate, or the forget gate and m_{t-1}.
    """
    n_new = step.n if kept is None else step.n.masked_fill(~kept, 1)  # a masked step has o = 0, and perhaps n = 0
    share = step.o / n_new
    value = step.c * share
    dc = dc + dh * share
    dn = dn - dh * value / n_new
    taken, passed = ratio * step.won, ratio * ~step.won
    di = step.i * (dc * step.z + dn) + taken
    df = (step.f * (dc * c + dn * n) + passed) * step.forgot
    dz = dc * step.i * (1 - step.z * step.z)
    do = dh * value * (1 - step.o)
    return torch.stack((di, df, dz, do), 2), step.f * dc, step.f * dn, passed
