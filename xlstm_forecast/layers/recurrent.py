"""`sLSTM` and `mLSTM`: stacked recurrent layers with the interface of `torch.nn.LSTM`.

A layer is an input projection and the recurrence (mLSTM: and its per-head norm); no convolution and no residual.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from .. import ops
from ..ops import MLSTMState, SLSTMState
from . import initial
from .masks import Packing, needed, reverse
from .mlstm import gate_bias, recur
from .parts import HeadNorm, as_built, linear, positive, single
from .slstm import SLSTMRecurrence

_COMPILED = ("norm", "qkv", "gates")


class _SLSTMDirection(nn.Module):
    """One layer and direction of `sLSTM`: (B, T, d_in) -> (B, T, H), state parts (B, H)."""

    state_type = SLSTMState

    def __init__(self, d_in: int, hidden: int, num_heads: int, **options: Any) -> None:
        super().__init__()
        self.cell = SLSTMRecurrence(d_in, hidden, num_heads, **options)
        self.num_heads = num_heads

    def forward(self, x: Tensor, state: SLSTMState | None, mask: Tensor | None) -> tuple[Tensor, SLSTMState]:
        if state is not None:
            shape = (x.shape[0], self.num_heads, -1)
            state = SLSTMState(*(part.reshape(shape) for part in state))
        h, state = self.cell(x, state, mask)
        return h.flatten(-2), SLSTMState(*(part.flatten(-2) for part in state))

    @staticmethod
    def state_shapes(hidden: int, num_heads: int) -> SLSTMState:
        """Shape of each part of the state, behind the batch dimension."""
        return SLSTMState(*((hidden,) for _ in range(4)))  # type: ignore[arg-type]


class _MLSTMDirection(nn.Module):
    """One layer and direction of `mLSTM`: (B, T, d_in) -> (B, T, H), C (B, N, DH, DH), n (B, N, DH), m (B, N)."""

    state_type = MLSTMState

    def __init__(
        self, d_in: int, hidden: int, num_heads: int, *, depth: float, backend: str, generator: Generator | None
    ) -> None:
        super().__init__()
        if num_heads < 1 or hidden % num_heads:
            raise ValueError(f"num_heads={num_heads} must divide the hidden size, which is {hidden}")
        ops.check_backend(backend, "mlstm")
        self.num_heads, self.backend = num_heads, backend
        self.qkv = linear(d_in, 3 * hidden)
        self.gates = linear(d_in, 2 * num_heads, bias=True)
        self.norm = HeadNorm(num_heads, hidden // num_heads)
        initial.small(self.qkv.weight, d_in, generator)
        nn.init.zeros_(self.gates.weight)
        with torch.no_grad():
            self.gates.bias.copy_(gate_bias(num_heads, None, generator).flatten())

    def forward(self, x: Tensor, state: MLSTMState | None, mask: Tensor | None) -> tuple[Tensor, MLSTMState]:
        if state is not None and single(x, mask) and (weights := self._step_weights(x, state)) is not None:
            return ops.mlstm_step(x, weights, state, heads=self.num_heads)
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.num_heads, -1).unbind(2)
        gates = self.gates(x).view(*x.shape[:2], 2, self.num_heads)
        h, state = recur(q, k, v, gates, state, mask, self.backend)
        y = self.norm(h)
        return (y if mask is None else torch.where(mask[..., None], y, 0)), state

    def _step_weights(self, x: Tensor, state: MLSTMState) -> ops.MLSTMStepWeights | None:
        """All parameters; None where a part was replaced, changed or is watched, and for what has no kernel."""
        parts: list[Any] = [self._modules.get(name) for name in _COMPILED]  # attributes of a module are slow to find
        if not as_built(*parts):
            return None
        norm, qkv, gates = (part._parameters for part in parts)
        weights = ops.MLSTMStepWeights(qkv["weight"], gates["weight"], gates["bias"], norm["weight"])
        return weights if ops.step_serves(x, weights, state, parts[0].head_dim, self.backend) else None

    @staticmethod
    def state_shapes(hidden: int, num_heads: int) -> MLSTMState:
        """Shape of each part of the state, behind the batch dimension."""
        dim = hidden // num_heads
        return MLSTMState((num_heads, dim, dim), (num_heads, dim), (num_heads,))  # type: ignore[arg-type]


class _Stacked(nn.Module):
    """What `sLSTM` and `mLSTM` share: layers, directions, layouts, packed and unbatched input, dropout in between."""

    def __init__(
        self,
        build: Callable[..., nn.Module],
        input_size: int,
        hidden_size: int,
        num_layers: int,
        num_heads: int,
        *,
        bidirectional: bool,
        batch_first: bool,
        dropout: float,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        **options: Any,
    ) -> None:
        super().__init__()
        positive(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers, num_heads=num_heads)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout} must be in [0, 1)")
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.num_heads, self.bidirectional, self.batch_first = num_heads, bidirectional, batch_first
        self.dropout = dropout
        ways = 1 + bidirectional
        self.directions = nn.ModuleList(
            build(
                input_size if layer == 0 else ways * hidden_size,
                hidden_size,
                num_heads,
                depth=layer / max(num_layers - 1, 1),
                **options,
            )
            for layer in range(num_layers)
            for _ in range(ways)
        )
        first: Any = self.directions[0]
        self._state_type, self._state_shapes = first.state_type, first.state_shapes(hidden_size, num_heads)
        self.to(device=device, dtype=dtype)

    def forward(
        self,
        x: Any,
        state: Any = None,
        *,
        mask: Tensor | None = None,
        lengths: Tensor | Sequence[int] | None = None,
    ) -> tuple[Any, Any]:
        """Run over a sequence.

        x: (T, B, input_size), with batch_first (B, T, input_size), unbatched (T, input_size), or a PackedSequence.
        state: as returned; None: start. mask: bool, laid out as x without its features, false on steps that do not
        exist; lengths: (B,), the same for padding at the end. Steps that do not exist give 0 and change no state.
        Returns the output, in x's own form with hidden_size (times 2 where bidirectional) features, and the state.
        """
        if isinstance(x, PackedSequence):
            return self._packed(x, state, mask, lengths)
        if x.ndim not in (2, 3) or x.shape[-1] != self.input_size:
            raise ValueError(f"x must have 2 or 3 dimensions, the last of {self.input_size}, got {tuple(x.shape)}")
        if 0 in x.shape:
            raise ValueError(f"x of shape {tuple(x.shape)} is empty: give one row and one step at least")
        if mask is not None:
            mask = _laid_out(mask, x)
        if x.ndim == 2:
            return self._unbatched(x, state, mask, lengths)
        if not self.batch_first:
            x, mask = x.transpose(0, 1), mask if mask is None else mask.transpose(0, 1)
        y, state = self._batch_first(x, state, _mask(x, mask, lengths))
        return (y if self.batch_first else y.transpose(0, 1)), state

    def _batch_first(self, x: Tensor, state: Any, mask: Tensor | None) -> tuple[Tensor, Any]:
        self._check(state, x.shape[0])
        mask = needed(mask, x)
        packing = None if mask is None else Packing.of(mask)
        if packing is not None:
            x, mask = packing.pack(x), packing.packed
        starts = [None] * len(self.directions) if state is None else self._split(state)
        states, outputs = [], []
        for place, direction in enumerate(self.directions):
            way = self.bidirectional and place % 2
            y, end = direction(reverse(x, mask) if way else x, starts[place], mask)
            states.append(end)
            outputs.append(reverse(y, mask) if way else y)
            if way or not self.bidirectional:  # the layer is complete
                x, outputs = (torch.cat(outputs, -1) if way else y), []
                if self.dropout and place < len(self.directions) - 1:
                    x = F.dropout(x, self.dropout, self.training)
        return (x if packing is None else packing.unpack(x)), self._joined(states)

    def _split(self, state: Any) -> list[Any]:
        """One state for each layer and direction."""
        return [self._state_type(*parts) for parts in zip(*(part.unbind(0) for part in state), strict=True)]

    def _joined(self, states: list[Any]) -> Any:
        """The inverse of `_split`."""
        if len(states) == 1:  # step mode: a view costs less than a copy
            return self._state_type(*(part.unsqueeze(0) for part in states[0]))
        return self._state_type(*(torch.stack(parts) for parts in zip(*states, strict=True)))

    def _unbatched(
        self, x: Tensor, state: Any, mask: Tensor | None, lengths: Tensor | Sequence[int] | None
    ) -> tuple[Tensor, Any]:
        if state is not None:
            self._check(state)
            state = type(state)(*(part.unsqueeze(1) for part in state))
        mask = None if mask is None else mask[None]
        y, state = self._batch_first(x[None], state, _mask(x[None], mask, lengths))
        return y[0], type(state)(*(part.squeeze(1) for part in state))

    def _packed(
        self, packed: PackedSequence, state: Any, mask: Tensor | None, lengths: Tensor | Sequence[int] | None
    ) -> tuple[PackedSequence, Any]:
        if mask is not None or lengths is not None:
            raise ValueError("a PackedSequence carries its own lengths: give neither mask nor lengths with it")
        if packed.data.ndim != 2 or packed.data.shape[1] != self.input_size:
            found = f"a PackedSequence of steps of shape {tuple(packed.data.shape[1:])}"
            raise ValueError(f"x must have input_size={self.input_size} features at each step, got {found}")
        x, lengths = pad_packed_sequence(packed, batch_first=True)
        y, state = self._batch_first(x, state, _mask(x, None, lengths))
        if packed.sorted_indices is not None:
            y, lengths = y[packed.sorted_indices], lengths[packed.sorted_indices.cpu()]
        data = pack_padded_sequence(y, lengths, batch_first=True).data
        return PackedSequence(data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices), state

    def _check(self, state: Any, *batch: int) -> None:
        """Refuse a state that does not belong to so many batch rows, or to an unbatched sequence."""
        if state is None:
            return
        if not isinstance(state, self._state_type):
            name, names = self._state_type.__name__, ", ".join(self._state_type._fields)
            raise TypeError(f"state must be a {name}({names}) as returned, got {type(state).__name__}")
        count = len(self.directions)
        for name, part, shape in zip(state._fields, state, self._state_shapes, strict=True):
            if part.shape != (count, *batch, *shape):
                raise ValueError(f"state.{name} must be of shape {(count, *batch, *shape)}, got {tuple(part.shape)}")

    def flatten_parameters(self) -> None:
        """Nothing to do; here because code written for `torch.nn.LSTM` calls it."""

    def extra_repr(self) -> str:
        return (
            f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}, num_heads={self.num_heads}, "
            f"bidirectional={self.bidirectional}, batch_first={self.batch_first}"
        )


def _laid_out(mask: Any, x: Tensor) -> Tensor:
    """The mask, checked against x as both were given."""
    mask = mask if isinstance(mask, Tensor) else torch.as_tensor(mask, device=x.device)
    shape = tuple(x.shape[:-1])
    if mask.dtype != torch.bool or mask.shape != shape:
        found = f"{mask.dtype} of shape {tuple(mask.shape)}"
        raise ValueError(f"mask must be bool of shape {shape}, laid out as x is, got {found}")
    return mask


def _mask(x: Tensor, mask: Tensor | None, lengths: Tensor | Sequence[int] | None) -> Tensor | None:
    """The mask (B, T) of x (B, T, D) from either of the two ways to give it."""
    if lengths is None:
        return mask
    if mask is not None:
        raise ValueError("give mask or lengths, not both")
    lengths = torch.as_tensor(lengths)
    if lengths.shape != x.shape[:1]:
        raise ValueError(f"lengths must be of shape {tuple(x.shape[:1])}, got {tuple(lengths.shape)}")
    if lengths.device.type == "cpu" and not torch.compiler.is_compiling():  # looked up only where that is free
        for row, length in enumerate(lengths.tolist()):
            if isinstance(length, bool) or length not in range(x.shape[1] + 1):
                raise ValueError(f"lengths[{row}] must be a whole number from 0 to {x.shape[1]}, got {length}")
    return torch.arange(x.shape[1], device=x.device) < lengths.to(x.device)[:, None]


class sLSTM(_Stacked):
    """The paper's sLSTM, stacked like `torch.nn.LSTM`: (output, state), state = (h, c, n, m).

    projection: "dense", one linear map as in nn.LSTM, or "headwise", the paper's, each head from its share of the
    input. Each part of the state is (num_layers * directions, B, hidden_size). Recurrent weights start at 0 and the
    forget bias at the paper's power law. Source: Beck et al. 2024, arXiv 2405.04517.

    >>> rnn = sLSTM(8, 32, num_layers=2, batch_first=True)
    >>> output, state = rnn(torch.zeros(4, 10, 8))
    >>> output.shape, state.c.shape
    (torch.Size([4, 10, 32]), torch.Size([2, 4, 32]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        num_heads: int = 4,
        projection: str = "dense",
        bidirectional: bool = False,
        batch_first: bool = False,
        *,
        dropout: float = 0.0,
        backend: str = "auto",
        generator: Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            _SLSTMDirection,
            input_size,
            hidden_size,
            num_layers,
            num_heads,
            bidirectional=bidirectional,
            batch_first=batch_first,
            dropout=dropout,
            device=device,
            dtype=dtype,
            projection=projection,
            backend=backend,
            generator=generator,
        )


class mLSTM(_Stacked):
    """The paper's mLSTM with its per-head norm, stacked like `torch.nn.LSTM`: (output, state), state = (C, n, m).

    C is (num_layers * directions, B, N, DH, DH), n (..., N, DH), m (..., N), for heads of DH = hidden_size / N.
    Training runs in parallel within chunks of time, memory is linear in T. Source: Beck et al. 2024, arXiv 2405.04517.

    >>> rnn = mLSTM(8, 32, batch_first=True)
    >>> output, state = rnn(torch.zeros(4, 10, 8))
    >>> output, state = rnn(torch.zeros(4, 1, 8), state)  # goes on where the first call ended
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        num_heads: int = 4,
        bidirectional: bool = False,
        batch_first: bool = False,
        *,
        dropout: float = 0.0,
        backend: str = "auto",
        generator: Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            _MLSTMDirection,
            input_size,
            hidden_size,
            num_layers,
            num_heads,
            bidirectional=bidirectional,
            batch_first=batch_first,
            dropout=dropout,
            device=device,
            dtype=dtype,
            backend=backend,
            generator=generator,
        )
