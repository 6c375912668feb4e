"""The sLSTM mixer (arXiv 2405.04517, section 2.2 and appendix): scalar memories that mix within a head."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from .. import ops
from ..ops import SLSTMState
from ..ops.states import kept
from . import initial
from .masks import Steps, chosen
from .parts import CausalConv, HeadNorm, HeadNormCPU, as_built, idle, plain, single

PROJECTIONS = ("headwise", "dense")
_COMPILED = ("cell", "conv", "norm", "dropout")


@kept
class SLSTMMixerState(NamedTuple):
    """State of `SLSTMMixer`: the last inputs of its convolution (B, K - 1, D) and its recurrence's (B, N, DH) each."""

    conv: Tensor
    cell: SLSTMState


class SLSTMRecurrence(nn.Module):
    """Input projections and recurrence of an sLSTM: (B, T, d_in), state -> (B, T, N, DH), state.

    projection "headwise" maps each head's share of the input to its gates, "dense" maps all of it to all gates.
    depth is the place of the block in its stack, 0 to 1, which sets the forget bias (a power law from 5 to -7).
    """

    def __init__(
        self,
        d_in: int,
        d_hidden: int,
        num_heads: int,
        *,
        projection: str = "headwise",
        depth: float = 0.0,
        backend: str = "auto",
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        if projection not in PROJECTIONS:
            raise ValueError(f"projection={projection!r} is unknown; choose from {', '.join(PROJECTIONS)}")
        for name, size in (("hidden size", d_hidden), ("input size", d_in if projection == "headwise" else num_heads)):
            if num_heads < 1 or size % num_heads:
                raise ValueError(f"num_heads={num_heads} must divide the {name}, which is {size}")
        ops.check_backend(backend, "slstm")
        self.backend = backend
        head_dim = d_hidden // num_heads
        self.projection = projection
        if projection == "headwise":
            self.weight = nn.Parameter(torch.empty(num_heads, d_in // num_heads, 4, head_dim))
        else:
            self.weight = nn.Parameter(torch.empty(num_heads, 4, head_dim, d_in))
        self.recurrent = nn.Parameter(torch.zeros(num_heads, head_dim, 4, head_dim))
        self.bias = nn.Parameter(torch.zeros(num_heads, 4, head_dim))
        initial.small(self.weight, d_in, generator)
        with torch.no_grad():
            self.bias[:, 1] = initial.powerlaw_forget_bias(head_dim, depth)

    def forward(
        self, x: Tensor, state: SLSTMState | None, mask: Tensor | None, u: Tensor | None = None
    ) -> tuple[Tensor, SLSTMState]:
        """u, where given, feeds the input and forget gates in the place of x (the paper's convolved input)."""
        if self.projection == "headwise":
            heads = self.weight.shape[:2]
            x, u = x.unflatten(-1, heads), None if u is None else u.unflatten(-1, heads)
            cell = (self.weight, self.recurrent, self.bias)
            return ops.slstm_headwise(x, *cell, state, u=u, mask=mask, backend=self.backend)
        if u is None:
            gates = self._dense(x, self.weight)
        else:
            w_if, w_zo = self.weight.chunk(2, 1)
            gates = torch.cat([self._dense(u, w_if), self._dense(x, w_zo)], -2)
        return ops.slstm(gates, self.recurrent, self.bias, state, mask=mask, backend=self.backend)

    @staticmethod
    def _dense(x: Tensor, weight: Tensor) -> Tensor:
        """(B, T, d_in), (N, gates, DH, d_in) -> (B, T, N, gates, DH)."""
        return ops.linear(x, weight.reshape(-1, x.shape[-1])).view(*x.shape[:2], *weight.shape[:3])


class SLSTMMixer(nn.Module):
    """sLSTM layer of the paper's block: convolution, gates, recurrence, dropout, per-head norm.

    (B, T, D), state, mask (B, T) with the valid steps first -> (B, T, D), state. conv_kernel 0: no convolution.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int = 4,
        *,
        conv_kernel: int = 4,
        projection: str = "headwise",
        dropout: float = 0.0,
        depth: float = 0.0,
        backend: str = "auto",
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        self.cell = SLSTMRecurrence(
            d_model, d_model, num_heads, projection=projection, depth=depth, backend=backend, generator=generator
        )
        self.conv = CausalConv(d_model, conv_kernel, generator) if conv_kernel else None
        self.dropout = nn.Dropout(dropout)
        norm = HeadNormCPU if backend in ("auto", "cpu") else HeadNorm
        self.norm = norm(num_heads, d_model // num_heads)

    def forward(
        self, x: Tensor, state: SLSTMMixerState | None = None, mask: Tensor | None = None, steps: Steps = None
    ) -> tuple[Tensor, SLSTMMixerState]:
        if state is not None and single(x, mask) and (weights := self._step_weights(x, state)) is not None:
            y, past, after = ops.slstm_step(x, weights, state.conv, state.cell)
            return chosen(y, steps), SLSTMMixerState(past, after)
        u, conv = None, x.new_zeros(x.shape[0], 0, x.shape[2])
        if self.conv is not None:
            u, conv = self.conv(x, None if state is None else state.conv, mask)
            u = F.silu(u)
        h, cell = self.cell(x, None if state is None else state.cell, mask, u)
        return self.norm(self.dropout(chosen(h, steps))), SLSTMMixerState(conv, cell)

    def _step_weights(self, x: Tensor, state: SLSTMMixerState) -> ops.SLSTMStepWeights | None:
        """All parameters; None for what the kernel of a single step does not know."""
        parts: list[Any] = [self._modules.get(name) for name in _COMPILED]  # attributes of a module are slow to find
        cell, conv, norm, dropout = parts
        if type(cell) is not SLSTMRecurrence or cell.projection != "headwise" or not plain(cell):
            return None
        if not as_built(norm, conv) or not idle(dropout):
            return None
        own, taps, scale = (part._parameters for part in parts[:3])
        weights = ops.SLSTMStepWeights(
            taps["weight"], taps["bias"], own["weight"], own["recurrent"], own["bias"], scale["weight"]
        )
        if weights.conv.shape[2] != ops.TAPS:
            return None
        serves = ops.step_serves(x, weights, (state.conv, *state.cell), norm.head_dim, cell.backend)
        return weights if serves else None
