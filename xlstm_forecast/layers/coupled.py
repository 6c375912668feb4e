"""The coupled-gate cell that pytorch-forecasting calls sLSTM, under its names and with its state dict.

It is not the paper's sLSTM. Its input and forget gates are softmaxes over the hidden units, made to add up to 1 per
unit; it has neither the paper's normaliser and stabiliser states nor its heads; and it norms its memory at each step.
Source of the contract: sktime/pytorch-forecasting, layers/_recurrent/_slstm (MIT).
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Generator, Tensor, nn

from ..ops.states import kept
from . import initial
from .masks import Steps, chosen
from .parts import Linear, linear, positive


@kept
class CoupledState(NamedTuple):
    """State of the coupled-gate cell: hidden and memory, (B, H) each."""

    h: Tensor
    c: Tensor


class sLSTMCell(nn.Module):
    """Coupled-gate LSTM cell: gates centred, exponentiated and renormalised over the hidden units.

    Takes pytorch-forecasting's weights and gives its numbers. Other than there, layer norms start at scale 1 and
    shift 0. `sLSTM` is the paper's cell.

    >>> cell = sLSTMCell(input_size=3, hidden_size=8)
    >>> h, c = cell(torch.zeros(2, 3), *cell.init_hidden(2))
    >>> h.shape
    torch.Size([2, 8])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        dropout: float = 0.0,
        use_layer_norm: bool = True,
        *,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        positive(input_size=input_size, hidden_size=hidden_size)
        self.input_size, self.hidden_size = input_size, hidden_size
        self.dropout, self.use_layer_norm = dropout, use_layer_norm
        self.eps = 1e-6
        self.input_weights = linear(input_size, 4 * hidden_size, bias=True)
        self.hidden_weights = linear(hidden_size, 4 * hidden_size, bias=True)
        if use_layer_norm:
            self.ln_cell = nn.LayerNorm(hidden_size)
            self.ln_hidden = nn.LayerNorm(hidden_size)
            self.ln_input = nn.LayerNorm(4 * hidden_size)
            self.ln_hidden_update = nn.LayerNorm(4 * hidden_size)
        self.dropout_layer = nn.Dropout(dropout)
        self.reset_parameters(generator)

    def reset_parameters(self, generator: Generator | None = None) -> None:
        """Linear maps from U(-1/sqrt(hidden_size), 1/sqrt(hidden_size)); layer norms to scale 1 and shift 0."""
        for module in self.children():
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            for parameter in module.parameters() if isinstance(module, nn.Linear) else ():
                initial.uniform(parameter, self.hidden_size**-0.5, generator)

    def normalized_exp_gate(self, pre_gate: Tensor) -> Tensor:
        """exp of the centred gate, clamped to +-5, over its sum across the last dimension (the hidden units)."""
        exp = torch.exp((pre_gate - pre_gate.mean(-1, keepdim=True)).clamp(-5.0, 5.0))
        return exp / (exp.sum(-1, keepdim=True) + self.eps)

    def project(self, x: Tensor) -> Tensor:
        """The input's share of the gates, for any leading dimensions: (..., input_size) -> (..., 4 * hidden_size)."""
        gates = self.input_weights(self.dropout_layer(x))
        return self.ln_input(gates) if self.use_layer_norm else gates

    def recur(self, gates_x: Tensor, h_prev: Tensor, c_prev: Tensor) -> tuple[Tensor, Tensor]:
        """One step from the input's share of the gates (B, 4 * hidden_size)."""
        gates_h = self.hidden_weights(self.dropout_layer(h_prev))
        if self.use_layer_norm:
            gates_h = self.ln_hidden_update(gates_h)
        gates = (gates_x + gates_h).unflatten(-1, (4, self.hidden_size))
        coupled, candidate, output = gates.split([2, 1, 1], -2)
        shares = self.normalized_exp_gate(coupled)
        i, f = (shares / (shares.sum(-2, keepdim=True) + self.eps)).unbind(-2)
        c = f * c_prev + i * torch.tanh(candidate.squeeze(-2))
        if self.use_layer_norm:
            c = self.ln_cell(c)
        out = torch.tanh(c)
        if self.use_layer_norm:
            out = self.ln_hidden(out)
        return torch.sigmoid(output.squeeze(-2)) * out, c

    def forward(self, x: Tensor, h_prev: Tensor, c_prev: Tensor) -> tuple[Tensor, Tensor]:
        """One step: x (B, input_size), h_prev and c_prev (B, hidden_size) -> new h and c (B, hidden_size)."""
        if x.shape[-1] != self.input_size:
            raise ValueError(f"x has {x.shape[-1]} features, the cell takes {self.input_size}")
        _check_shapes((*x.shape[:-1], self.hidden_size), h_prev=h_prev, c_prev=c_prev)
        return self.recur(self.project(x), h_prev, c_prev)

    def init_hidden(self, batch_size: int, device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
        """Zero h and c, (batch_size, hidden_size) each, on the cell's device unless another is named."""
        weight = self.input_weights.weight
        zero = torch.zeros(batch_size, self.hidden_size, device=device or weight.device, dtype=weight.dtype)
        return zero, zero.clone()


class sLSTMLayer(nn.Module):
    """Stacked coupled-gate cells with residuals, on (T, B, features), under pytorch-forecasting's names.

    As there, the sum of a cell's output and the residual, normed, is what the cell reads as h at its next step. Other
    than there, states are not detached (`detach_state` does that) and the caller's lists are left alone.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        dropout: float = 0.0,
        use_layer_norm: bool = True,
        use_residual: bool = True,
    ) -> None:
        super().__init__()
        positive(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.dropout, self.use_layer_norm, self.use_residual = dropout, use_layer_norm, use_residual
        project = use_residual and input_size != hidden_size
        self.input_projection = Linear(input_size, hidden_size, bias=False) if project else None
        sizes = [input_size] + [hidden_size] * (num_layers - 1)
        self.cells = nn.ModuleList(sLSTMCell(size, hidden_size, dropout, use_layer_norm) for size in sizes)
        if use_layer_norm:
            self.layer_norm_layers = nn.ModuleList(nn.LayerNorm(hidden_size) for _ in range(num_layers))

    def forward(
        self, x: Tensor, h: list[Tensor] | None = None, c: list[Tensor] | None = None
    ) -> tuple[Tensor, tuple[list[Tensor], list[Tensor]]]:
        """x (T, B, input_size) -> h of the last layer at every step (T, B, hidden_size), and each layer's last h, c.

        h, c: one (B, hidden_size) tensor per layer; both or neither, ValueError otherwise.
        """
        if (h is None) != (c is None):
            raise ValueError("give both h and c or neither: one without the other is no state")
        if x.ndim != 3 or not len(x) or x.shape[-1] != self.input_size:
            raise ValueError(f"x must be (T, B, {self.input_size}) with T at least 1, got {tuple(x.shape)}")
        if h is None or c is None:
            h, c = self.init_hidden(x.shape[1], x.device)
        h, c = list(h), list(c)
        shape = (x.shape[1], self.hidden_size)
        for name, parts in (("h", h), ("c", c)):
            if len(parts) != self.num_layers or any(part.shape != shape for part in parts):
                found = [tuple(part.shape) for part in parts]
                raise ValueError(f"{name} must be {self.num_layers} tensors of shape {tuple(shape)}, got {found}")
        for layer, module in enumerate(self.cells):
            cell = cast(sLSTMCell, module)
            norm = self.layer_norm_layers[layer] if self.use_layer_norm else None
            residual = self._residual(x, layer)
            outputs, hidden, memory = [], h[layer], c[layer]
            for gates, skip in zip(cell.project(x).unbind(0), residual, strict=True):
                hidden, memory = cell.recur(gates, hidden, memory)
                hidden = hidden if skip is None else hidden + skip
                hidden = hidden if norm is None else norm(hidden)
                outputs.append(hidden)
            h[layer], c[layer] = hidden, memory
            x = torch.stack(outputs)
        return x, (h, c)

    def _residual(self, x: Tensor, layer: int) -> tuple[Tensor, ...] | tuple[None, ...]:
        if not self.use_residual:
            return (None,) * len(x)
        return (self.input_projection(x) if layer == 0 and self.input_projection is not None else x).unbind(0)

    def init_hidden(
        self, batch_size: int, device: torch.device | str | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Zero states of every layer: two lists of (batch_size, hidden_size)."""
        h, c = zip(*(cast(sLSTMCell, cell).init_hidden(batch_size, device) for cell in self.cells), strict=True)
        return list(h), list(c)


def _check_shapes(shape: tuple[int, ...], **state: Tensor) -> None:
    """Raise ValueError for a part of a state that is of another shape."""
    for name, part in state.items():
        if part.shape != shape:
            raise ValueError(f"{name} must be of shape {tuple(shape)}, got {tuple(part.shape)}")


class CoupledMixer(nn.Module):
    """The coupled-gate cell as a mixer: (B, T, D), state, mask (B, T) -> (B, T, D), state."""

    def __init__(self, d_model: int, *, dropout: float = 0.0, generator: Generator | None = None) -> None:
        super().__init__()
        self.cell = sLSTMCell(d_model, d_model, dropout, generator=generator)

    def forward(
        self, x: Tensor, state: CoupledState | None = None, mask: Tensor | None = None, steps: Steps = None
    ) -> tuple[Tensor, CoupledState]:
        h, c = self.cell.init_hidden(x.shape[0], x.device) if state is None else state
        _check_shapes((x.shape[0], self.cell.hidden_size), h=h, c=c)
        outputs = []
        keeps = (None,) * x.shape[1] if mask is None else mask[..., None].unbind(1)
        for gates, keep in zip(self.cell.project(x).unbind(1), keeps, strict=True):
            new_h, new_c = self.cell.recur(gates, h, c)
            if keep is None:
                h, c = new_h, new_c
            else:
                h, c = torch.where(keep, new_h, h), torch.where(keep, new_c, c)
                new_h = torch.where(keep, new_h, 0)
            outputs.append(new_h)
        return chosen(torch.stack(outputs, 1), steps), CoupledState(h, c)
