"""The mLSTM mixers (arXiv 2405.04517, section 2.3; xLSTM-7B, arXiv 2503.13427): a matrix memory per head."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from .. import ops
from ..ops import MLSTMState
from ..ops.states import kept
from . import initial
from .masks import Steps, chosen
from .parts import BlockLinear, CausalConv, HeadNorm, as_built, few, idle, linear, round_up, single

_COMPILED = ("norm", "up", "conv", "query_key", "value", "gates", "down")


@kept
class MLSTMMixerState(NamedTuple):
    """State of `MLSTMMixer`: the last inputs of its convolution (B, K - 1, Di) and its recurrence's C, n, m."""

    conv: Tensor
    cell: MLSTMState


def recur(
    q: Tensor, k: Tensor, v: Tensor, gates: Tensor, state: MLSTMState | None, mask: Tensor | None, backend: str
) -> tuple[Tensor, MLSTMState]:
    """The recurrence on layer layout. q, k, v: (B, T, N, DH) each; gates: (B, T, 2, N), i then f. -> (B, T, N, DH)."""
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    i, f = gates.permute(2, 0, 3, 1).unbind(0)
    h, state = ops.mlstm(q, k, v, i, f, state, mask=mask, backend=backend)
    return h.transpose(1, 2), state


def gate_bias(num_heads: int, input_bias: float | None, generator: Generator | None) -> Tensor:
    """Bias of the input gates (N(0, 0.1^2) where `input_bias` is None) and forget gates (3 to 6): (2, N)."""
    bias = torch.empty(2, num_heads)
    if input_bias is None:
        nn.init.normal_(bias[0], std=0.1, generator=generator)
    else:
        bias[0] = input_bias
    bias[1] = torch.linspace(3, 6, num_heads)
    return bias


class MLSTMMixer(nn.Module):
    """mLSTM within its up-projection, the core of the paper's pre-up-projection block.

    (B, T, D), state, mask (B, T) with the valid steps first -> (B, T, D), state. Queries, keys and values are mapped
    in blocks of 4 features, the former two from the convolved input; conv_kernel 0: no convolution.
    On a CPU the whole layer is one compiled operation; elsewhere, and for what has no kernel, `_composed` computes it.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int = 4,
        *,
        conv_kernel: int = 4,
        expansion: float = 2.0,
        dropout: float = 0.0,
        num_blocks: int = 1,
        backend: str = "auto",
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        inner = round_up(expansion * d_model)
        if num_heads < 1 or inner % num_heads:
            raise ValueError(f"num_heads={num_heads} must divide the inner width of the mLSTM, which is {inner}")
        self.num_heads, self.backend = num_heads, backend
        self.up = linear(d_model, 2 * inner)
        self.conv = CausalConv(inner, conv_kernel, generator) if conv_kernel else None
        self.query_key, self.value = BlockLinear(inner, 4, maps=2), BlockLinear(inner, 4)
        self.gates = linear(3 * inner, 2 * num_heads, bias=True)
        self.norm = HeadNorm(num_heads, inner // num_heads)
        self.skip = nn.Parameter(torch.ones(inner))
        self.down = linear(inner, d_model)
        self.dropout = nn.Dropout(dropout)
        for layer in (self.up, self.query_key, self.value):
            initial.small(layer.weight, d_model, generator)
        initial.wang(self.down.weight, d_model, num_blocks, generator)
        nn.init.zeros_(self.gates.weight)
        with torch.no_grad():
            self.gates.bias.copy_(gate_bias(num_heads, None, generator).flatten())

    def forward(
        self, x: Tensor, state: MLSTMMixerState | None = None, mask: Tensor | None = None, steps: Steps = None
    ) -> tuple[Tensor, MLSTMMixerState]:
        weights = self._weights()
        if weights is not None and state is not None and single(x, mask) and self._steps(x, weights, state):
            y, conv, after = ops.mixer_step(x, weights, state.conv, state.cell, heads=self.num_heads)
            return chosen(y, steps), MLSTMMixerState(conv, after)
        if weights is None or not ops.mixer_serves(x, weights, self.num_heads, self.backend):
            return self._composed(x, state, mask, steps)
        past, cell = (None, None) if state is None else state
        y, past, cell = ops.mixer(x, weights, past, cell, heads=self.num_heads, mask=mask)
        return self.dropout(chosen(y, steps)), MLSTMMixerState(past, cell)

    def _steps(self, x: Tensor, weights: ops.MixerWeights, state: MLSTMMixerState) -> bool:
        """Whether the kernel of a single step can compute it."""
        known = weights.conv.shape[2] == ops.TAPS and idle(self._modules.get("dropout"))
        return known and ops.step_serves(x, weights, (state.conv, *state.cell), self.norm.head_dim, self.backend)

    def _weights(self) -> ops.MixerWeights | None:
        """All parameters; None where there is no convolution, or where a part was replaced, changed or is watched."""
        parts = [self._modules.get(name) for name in _COMPILED]  # attributes of a module are slow to find
        if not as_built(*parts):
            return None
        norm, up, conv, query_key, value, gates, down = (part._parameters for part in parts)  # type: ignore[union-attr]
        given = up["weight"], conv["weight"], conv["bias"], query_key["weight"], value["weight"], gates["weight"]
        return ops.MixerWeights(*given, gates["bias"], norm["weight"], self.skip, down["weight"])  # type: ignore[arg-type]

    def _composed(
        self, x: Tensor, state: MLSTMMixerState | None, mask: Tensor | None, steps: Steps = None
    ) -> tuple[Tensor, MLSTMMixerState]:
        a, g = self.up(x).chunk(2, -1)
        u, conv = a, a.new_zeros(a.shape[0], 0, a.shape[2])
        if self.conv is not None:
            u, conv = self.conv(a, None if state is None else state.conv, mask)
            u = F.silu(u)
        qkv = self.query_key(u) + self.value(a)
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)) for part in qkv)
        gates = self._gates(u, a, qkv).unflatten(-1, (2, self.num_heads))
        h, cell = recur(q, k, v, gates, None if state is None else state.cell, mask, self.backend)
        h, u, g = (chosen(part, steps) for part in (h, u, g))
        h = self.norm(h) + self.skip * u
        return self.dropout(self.down(h * F.silu(g))), MLSTMMixerState(conv, cell)

    def _gates(self, u: Tensor, a: Tensor, qkv: tuple[Tensor, ...]) -> Tensor:
        """Gates from [q; k; v]: (B, T, 2 N). Over many steps their maps are folded into those of q, k and v."""
        if few(u):
            return self.gates(torch.cat(qkv, -1))
        after = self.gates.weight.unflatten(1, (3, -1))
        value = F.linear(a, self.value.fold(after[:, 2:]))
        return F.linear(u, self.query_key.fold(after[:, :2]), self.gates.bias) + value


class LargeMLSTMMixer(nn.Module):
    """mLSTM of xLSTM-7B: plain projections (queries and keys half as wide), soft-capped gates, output gate.

    (B, T, D), state, mask (B, T) with the valid steps first -> (B, T, D), state.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int = 4,
        *,
        qk_factor: float = 0.5,
        gate_cap: float = 15.0,
        dropout: float = 0.0,
        num_blocks: int = 1,
        backend: str = "auto",
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        d_qk = int(qk_factor * d_model)
        for name, size in (("d_model", d_model), ("width of queries and keys", d_qk)):
            if num_heads < 1 or not size or size % num_heads:
                raise ValueError(f"num_heads={num_heads} must divide the {name}, which is {size}")
        self.num_heads, self.gate_cap, self.backend = num_heads, gate_cap, backend
        self.widths = [d_qk, d_qk, d_model, d_model]
        self.qkvo = linear(d_model, sum(self.widths))
        self.gates = linear(d_model, 2 * num_heads, bias=True)
        self.norm = HeadNorm(num_heads, d_model // num_heads, eps=1e-6, offset=0.0)
        self.out = linear(d_model, d_model)
        self.dropout = nn.Dropout(dropout)
        initial.small(self.qkvo.weight, d_model, generator)
        initial.wang(self.out.weight, d_model, num_blocks, generator)
        nn.init.zeros_(self.gates.weight)
        with torch.no_grad():
            self.gates.bias.copy_(gate_bias(num_heads, -10.0, generator).flatten())

    def forward(
        self, x: Tensor, state: MLSTMState | None = None, mask: Tensor | None = None, steps: Steps = None
    ) -> tuple[Tensor, MLSTMState]:
        *qkv, o = self.qkvo(x).split(self.widths, -1)
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)) for part in qkv)
        gates = self.gate_cap * torch.tanh(self.gates(x).unflatten(-1, (2, self.num_heads)) / self.gate_cap)
        h, state = recur(q, k, v, gates, state, mask, self.backend)
        h, o = chosen(h, steps), chosen(o, steps)
        return self.dropout(self.out(torch.sigmoid(o) * self.norm(h))), state
