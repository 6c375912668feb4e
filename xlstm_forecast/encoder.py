"""Stacks of residual xLSTM blocks: which mixers, in which order, and how they are wrapped.

Dimension key in batch.py. A new mixer is one class in `layers` and one line in `MIXERS`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn

from . import layers
from .layers import (
    GatedFeedForward,
    LayerNorm,
    Packing,
    RMSNorm,
    Steps,
    UpProjected,
    chosen,
    needed,
    reverse,
    round_up,
)
from .ops import check_backend
from .ops.states import kept

VARIANTS = ("neurips", "large")
STRUCTURES = ("pre", "post", "plain")


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """What an encoder is made of.

    blocks: one letter per block (see `MIXERS`), or the paper's "xLSTM[a:b]", a mLSTM blocks for b sLSTM blocks.
    num_blocks: repeats the pattern up to this number of blocks; None: as it stands.
    num_layers: recurrent layers in a block, each with its norm and residual; a feed-forward net follows the last.
    structure: "pre", up- and down-projection around the mixer, "post", a feed-forward net after it, or "plain", the
        mixer alone; None: as in the paper, "pre" for mLSTM, "post" for the others.
    variant: "neurips", the paper's blocks, or "large", those of xLSTM-7B (RMSNorm, SwiGLU, soft caps, no convolution).
    bidirectional: each block adds the mean of a forward and a reverse mixer.
    """

    d_model: int = 64
    num_heads: int = 4
    blocks: str = "ms"
    num_blocks: int | None = None
    num_layers: int = 1
    structure: str | None = None
    variant: str = "neurips"
    dropout: float = 0.0
    conv_kernel: int = 4
    projection: str = "headwise"
    bidirectional: bool = False
    backend: str = "auto"

    def __post_init__(self) -> None:
        for name, choices in (("variant", VARIANTS), ("projection", layers.PROJECTIONS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; choose from {', '.join(choices)}")
        if self.structure not in (None, *STRUCTURES):
            raise ValueError(f"structure={self.structure!r} is unknown; choose from {', '.join(STRUCTURES)}, or None")
        if self.structure == "pre" and self.variant == "large":
            raise ValueError('structure="pre" and variant="large" exclude each other: blocks of xLSTM-7B are "post"')
        check_backend(self.backend, "slstm", "mlstm")
        if self.num_layers < 1:
            raise ValueError(f"num_layers={self.num_layers} must be at least 1")
        if self.d_model < 1 or self.num_heads < 1 or self.d_model % self.num_heads:
            raise ValueError(f"num_heads={self.num_heads} must divide d_model={self.d_model}, and both be positive")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must be at least 0 and below 1")
        if self.conv_kernel < 0:
            raise ValueError(f"conv_kernel={self.conv_kernel} must be 0 (no convolution) or more")
        _ = self.pattern

    @property
    def pattern(self) -> str:
        """The blocks as letters, one for each: "xLSTM[7:1]" is one sLSTM in eight, in second place."""
        ratio = re.fullmatch(r"xLSTM\[(\d+):(\d+)\]", self.blocks)
        group = self.blocks
        if ratio:
            m, s = int(ratio[1]), int(ratio[2])
            group = "m" * min(m, 1) + "s" * s + "m" * (m - 1)
        unknown = [letter for letter in group if letter not in MIXERS]
        if unknown or not group:
            known = ", ".join(f"{letter} ({mixer.name})" for letter, mixer in MIXERS.items())
            found = f"letter {unknown[0]!r} is unknown" if unknown else "there is no block"
            raise ValueError(f'blocks={self.blocks!r}: {found}; choose from {known}, or write "xLSTM[7:1]"')
        count = len(group) if self.num_blocks is None else self.num_blocks
        if count < 1 or count % len(group):
            raise ValueError(f"num_blocks={count} must be a multiple of {len(group)}, the length of {self.blocks!r}")
        return group * (count // len(group))


class Place(NamedTuple):
    """Where a block stands in its stack, as far as its initial values depend on it, and what they are drawn from."""

    position: int
    num_blocks: int
    generator: Generator | None

    @property
    def depth(self) -> float:
        """0 for the first block, 1 for the last."""
        return self.position / (self.num_blocks - 1) if self.num_blocks > 1 else 0.0


def _slstm(config: EncoderConfig, place: Place) -> nn.Module:
    return layers.SLSTMMixer(
        config.d_model,
        config.num_heads,
        conv_kernel=0 if config.variant == "large" else config.conv_kernel,
        projection=config.projection,
        dropout=config.dropout,
        depth=place.depth,
        backend=config.backend,
        generator=place.generator,
    )


def _mlstm(config: EncoderConfig, place: Place) -> nn.Module:
    common: dict[str, Any] = {
        "dropout": config.dropout,
        "num_blocks": place.num_blocks,
        "backend": config.backend,
        "generator": place.generator,
    }
    if config.variant == "large" or config.structure in ("post", "plain"):
        return layers.LargeMLSTMMixer(config.d_model, config.num_heads, **common)
    return layers.MLSTMMixer(config.d_model, config.num_heads, conv_kernel=config.conv_kernel, **common)


def _coupled(config: EncoderConfig, place: Place) -> nn.Module:
    return layers.CoupledMixer(config.d_model, dropout=config.dropout, generator=place.generator)


def _lstm(config: EncoderConfig, place: Place) -> nn.Module:
    return layers.TorchRNN(config.d_model, kind="lstm", dropout=config.dropout, generator=place.generator)


def _gru(config: EncoderConfig, place: Place) -> nn.Module:
    return layers.TorchRNN(config.d_model, kind="gru", dropout=config.dropout, generator=place.generator)


def _attention(config: EncoderConfig, place: Place) -> nn.Module:
    return layers.CausalAttention(
        config.d_model,
        config.num_heads,
        dropout=config.dropout,
        num_blocks=place.num_blocks,
        generator=place.generator,
    )


def _linear_map(config: EncoderConfig, place: Place) -> nn.Module:
    return layers.LinearMap(
        config.d_model, dropout=config.dropout, num_blocks=place.num_blocks, generator=place.generator
    )


class Mixer(NamedTuple):
    """An entry of the table: what the letter stands for and how its mixer is built."""

    name: str
    build: Callable[[EncoderConfig, Place], nn.Module]


MIXERS = {
    "m": Mixer("mLSTM", _mlstm),
    "s": Mixer("sLSTM", _slstm),
    "c": Mixer("coupled-gate cell", _coupled),
    "l": Mixer("torch LSTM", _lstm),
    "g": Mixer("torch GRU", _gru),
    "t": Mixer("causal Transformer", _attention),
    "f": Mixer("linear map over time", _linear_map),
}


@kept
class BothWays(NamedTuple):
    """State of a bidirectional block; the backward half is that of the reverse pass, after the row's first step."""

    forward: Any
    backward: Any


def _mixer(config: EncoderConfig, letter: str, place: Place) -> nn.Module:
    """The mixer of a letter; with structure "pre" within projections of twice the width, which mLSTM has of itself."""
    if config.structure != "pre" or letter == "m":
        return MIXERS[letter].build(config, place)
    inner = round_up(2 * config.d_model)
    return UpProjected(
        config.d_model,
        inner,
        MIXERS[letter].build(replace(config, d_model=inner, dropout=0.0), place),
        dropout=config.dropout,
        num_blocks=place.num_blocks,
        generator=place.generator,
    )


class Block(nn.Module):
    """Residual block: x + mixer(norm(x)), then x + feed_forward(norm(x)) where the structure is "post".

    last: whether it is the last layer of its block, which carries the feed-forward net.
    """

    def __init__(self, config: EncoderConfig, letter: str, place: Place, *, last: bool = True) -> None:
        super().__init__()
        large = config.variant == "large"
        norm = RMSNorm if large else LayerNorm
        self.norm = norm(config.d_model)
        self.mixer = _mixer(config, letter, place)
        self.reverse = _mixer(config, letter, place) if config.bidirectional else None
        self.feed_forward: nn.Module | None = None
        structure = config.structure or ("pre" if letter == "m" and not large else "post")
        if last and structure == "post":
            self.feed_forward_norm = norm(config.d_model)
            self.feed_forward = GatedFeedForward(
                config.d_model,
                round_up(math.floor(2.6667 * config.d_model) if large else 1.3 * config.d_model),
                act="silu" if large else "gelu",
                dropout=config.dropout,
                num_blocks=place.num_blocks,
                generator=place.generator,
            )

    def forward(
        self, x: Tensor, state: Any = None, mask: Tensor | None = None, steps: Steps = None
    ) -> tuple[Tensor, Any]:
        """(B, T, D), state, mask (B, T) with the valid steps first -> (B, T, D), state.

        steps: the only ones whose output is asked for, a slice or their numbers (B, T').
        """
        inner = self.norm(x)
        if self.reverse is None:
            y, state = self.mixer(inner, state, mask, steps)
        else:
            ahead, back = (None, None) if state is None else state
            y, ahead = self.mixer(inner, ahead, mask)
            z, back = self.reverse(reverse(inner, mask), back, mask)
            y, state = chosen((y + reverse(z, mask)) / 2, steps), BothWays(ahead, back)
        x = chosen(x, steps) + y
        if self.feed_forward is not None:
            x = x + self.feed_forward(self.feed_forward_norm(x))
        return x, state


class Encoder(nn.Module):
    """A stack of blocks with a final norm: (B, T, D), state, mask -> (B, T, D), state.

    >>> import torch
    >>> encoder = Encoder(EncoderConfig(d_model=32, blocks="ms"))
    >>> y, state = encoder(torch.zeros(2, 10, 32))
    >>> y, state = encoder(torch.zeros(2, 10, 32), state)  # goes on where the first call ended
    """

    def __init__(self, config: EncoderConfig, generator: Generator | None = None) -> None:
        super().__init__()
        self.config = config
        letters = [letter for letter in config.pattern for _ in range(config.num_layers)]
        self.blocks = nn.ModuleList(
            Block(config, letter, Place(index, len(letters), generator), last=(index + 1) % config.num_layers == 0)
            for index, letter in enumerate(letters)
        )
        self.norm = (RMSNorm if config.variant == "large" else LayerNorm)(config.d_model)

    def forward(
        self,
        x: Tensor,
        state: Sequence[Any] | None = None,
        mask: Tensor | None = None,
        *,
        last: int | None = None,
    ) -> tuple[Tensor, tuple[Any, ...]]:
        """Encode a sequence.

        x: (B, T, D). state: one entry per recurrent layer, as returned; None: start. mask: (B, T) bool, false on steps
        that do not exist (padding on either side, or holes): they give output 0 and leave every state as it is.
        last: return the outputs of so many steps at the end only, and save what the others alone would cost.
        """
        if x.ndim != 3 or x.shape[-1] != self.config.d_model:
            raise ValueError(f"x must be (batch, steps, {self.config.d_model}), got {tuple(x.shape)}")
        if 0 in x.shape:
            raise ValueError(f"x of shape {tuple(x.shape)} is empty: give one row and one step at least")
        if last is not None and not 1 <= last <= x.shape[1]:
            raise ValueError(f"last={last} must be at least 1 and at most the number of steps, {x.shape[1]}")
        if state is not None and len(state) != len(self.blocks):
            raise ValueError(f"state has {len(state)} entries for {len(self.blocks)} recurrent layers")
        mask = needed(mask, x)
        packing = None if mask is None else Packing.of(mask)
        if packing is not None:
            x, mask = packing.pack(x), packing.packed
        steps: Steps = None
        if last is not None:
            steps = slice(x.shape[1] - last, None) if packing is None else packing.place[:, x.shape[1] - last :]
        states = []
        for index, block in enumerate(self.blocks):
            wanted = steps if index == len(self.blocks) - 1 else None
            x, new = block(x, None if state is None else state[index], mask, wanted)
            states.append(new)
        x = self.norm(x)
        if packing is not None:
            x = packing.unpack(x) if last is None else torch.where(packing.mask[:, -last:, None], x, 0)
        return x, tuple(states)

    def step(self, x: Tensor, state: Sequence[Any] | None = None) -> tuple[Tensor, tuple[Any, ...]]:
        """One step: x (B, D) -> (B, D), state. ValueError where the encoder is bidirectional: it needs the future."""
        if self.config.bidirectional:
            raise ValueError("a bidirectional encoder has no step: its reverse pass starts at the end of the sequence")
        y, new = self(x[:, None], state)
        return y[:, 0], new
