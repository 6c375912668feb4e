"""Mixers to compare the xLSTM with, under the same contract: torch's LSTM and GRU, causal attention, linear maps."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ..ops.states import kept
from . import initial
from .masks import Steps, chosen
from .parts import CausalConv, linear


@kept
class RNNState(NamedTuple):
    """State of torch's LSTM (h, c) or GRU (h alone, c of width 0), each (B, D)."""

    h: Tensor
    c: Tensor


class TorchRNN(nn.Module):
    """`torch.nn.LSTM` or `torch.nn.GRU` as a mixer. kind: "lstm" or "gru".

    (B, T, D), state, mask (B, T) with the valid steps first -> (B, T, D), state.
    """

    def __init__(
        self, d_model: int, *, kind: str = "lstm", dropout: float = 0.0, generator: Generator | None = None
    ) -> None:
        super().__init__()
        module = {"lstm": nn.LSTM, "gru": nn.GRU}[kind]
        self.rnn = initial.unset(module(d_model, d_model, batch_first=True, device="meta"))
        self.dropout = nn.Dropout(dropout)
        for parameter in self.rnn.parameters():
            initial.uniform(parameter, d_model**-0.5, generator)

    def forward(
        self, x: Tensor, state: RNNState | None = None, mask: Tensor | None = None, steps: Steps = None
    ) -> tuple[Tensor, RNNState]:
        start = None if state is None else self._own(state)
        if x.device.type == "cpu":  # oneDNN has no bf16 LSTM on CPUs without AVX-512: autocast stays out of it there
            with torch.autocast("cpu", enabled=False):
                return self._forward(x.to(self.rnn.weight_ih_l0.dtype), start, state, mask, steps)
        return self._forward(x, start, state, mask, steps)

    def _forward(
        self, x: Tensor, start: object, state: RNNState | None, mask: Tensor | None, steps: Steps
    ) -> tuple[Tensor, RNNState]:
        if mask is None:
            y, end = self.rnn(x, start)
            return self.dropout(chosen(y, steps)), self._common(x, end)
        length = mask.sum(1)  # packing wants a length of 1 at least: rows without a valid step keep their state
        packed = pack_padded_sequence(x, length.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False)
        out, end = self.rnn(packed, start)
        y, _ = pad_packed_sequence(out, batch_first=True, total_length=x.shape[1])
        final = self._common(x, end)
        before = RNNState(*(torch.zeros_like(part) for part in final)) if state is None else state
        live = (length > 0)[:, None]
        final = RNNState(*(torch.where(live, new, old) for new, old in zip(final, before, strict=True)))
        return self.dropout(chosen(torch.where(mask[..., None], y, 0), steps)), final

    def _own(self, state: RNNState) -> tuple[Tensor, Tensor] | Tensor:
        """Our state as the torch module takes it: (1, B, D), a pair for the LSTM."""
        return tuple(part[None] for part in state) if isinstance(self.rnn, nn.LSTM) else state.h[None]  # type: ignore[return-value]

    def _common(self, x: Tensor, end: tuple[Tensor, Tensor] | Tensor) -> RNNState:
        if isinstance(end, Tensor):
            return RNNState(end[0], x.new_zeros(x.shape[0], 0))
        return RNNState(end[0][0], end[1][0])


@kept
class AttentionState(NamedTuple):
    """Keys and values so far, (B, S, N, DH) each, keys rotated to their positions; which of them exist, (B, S) bool."""

    key: Tensor
    value: Tensor
    valid: Tensor


def rotate(x: Tensor, position: Tensor) -> Tensor:
    """Rotary position embedding (Su et al. 2021). x: (B, T, N, DH), position: (B, T)."""
    half = x.shape[-1] // 2
    frequency = 10000.0 ** (-torch.arange(half, device=x.device, dtype=torch.float32) / max(half, 1))
    angle = (position[..., None] * frequency)[:, :, None]
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b, rest = x.split([half, half, x.shape[-1] - 2 * half], -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos, rest], -1)


class CausalAttention(nn.Module):
    """Causal multi-head attention with rotary positions; its state is the cache of keys and values.

    (B, T, D), state, mask (B, T) with the valid steps first -> (B, T, D), state.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int = 4,
        *,
        dropout: float = 0.0,
        num_blocks: int = 1,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        if num_heads < 1 or d_model % num_heads:
            raise ValueError(f"num_heads={num_heads} must divide d_model, which is {d_model}")
        self.num_heads = num_heads
        self.qkv = linear(d_model, 3 * d_model)
        self.out = linear(d_model, d_model)
        self.dropout = nn.Dropout(dropout)
        initial.small(self.qkv.weight, d_model, generator)
        initial.wang(self.out.weight, d_model, num_blocks, generator)

    def forward(
        self, x: Tensor, state: AttentionState | None = None, mask: Tensor | None = None, steps: Steps = None
    ) -> tuple[Tensor, AttentionState]:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        valid = x.new_ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
        position = torch.arange(x.shape[1], device=x.device)[None]
        if state is not None:
            position = position + state.valid.sum(1, keepdim=True)
        q, k = rotate(q, position), rotate(k, position)
        if state is not None:
            k, v = torch.cat([state.key, k], 1), torch.cat([state.value, v], 1)
            valid = torch.cat([state.valid, valid], 1)
        else:
            v = v.clone()  # a view would keep the queries and keys with the state
        end = AttentionState(k, v, valid)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        if state is None and mask is None:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            causal = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=x.device)
            own = causal.triu(k.shape[2] - q.shape[2]).tril(k.shape[2] - q.shape[2])
            seen = causal.tril(k.shape[2] - q.shape[2]) & valid[:, None] | own  # own key: no row without any
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None])
        y = chosen(y.transpose(1, 2).flatten(-2), steps)
        return self.dropout(self.out(y)), end


class LinearMap(nn.Module):
    """A linear map of the last `reach` steps, with coefficients of its own for each feature; its state is these steps.

    (B, T, D), state (B, reach - 1, D), mask (B, T) with the valid steps first -> (B, T, D), state.
    """

    def __init__(
        self,
        d_model: int,
        *,
        reach: int = 80,
        dropout: float = 0.0,
        num_blocks: int = 1,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        self.over_time = CausalConv(d_model, reach, generator)
        self.out = linear(d_model, d_model)
        self.dropout = nn.Dropout(dropout)
        initial.wang(self.out.weight, d_model, num_blocks, generator)

    def forward(
        self, x: Tensor, state: Tensor | None = None, mask: Tensor | None = None, steps: Steps = None
    ) -> tuple[Tensor, Tensor]:
        y, end = self.over_time(x, state, mask)
        return self.dropout(self.out(chosen(y, steps))), end
