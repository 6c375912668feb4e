"""Initial values of the paper's parameters. Every draw takes a `torch.Generator`; None is torch's global one."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Generator, Tensor, nn

M = TypeVar("M", bound=nn.Module)


def small(weight: Tensor, dim: int, generator: Generator | None = None) -> Tensor:
    """Fill with N(0, 2 / (5 dim)) (Nguyen and Salazar 2019), in place."""
    return nn.init.normal_(weight, std=math.sqrt(2 / (5 * dim)), generator=generator)


def wang(weight: Tensor, dim: int, num_blocks: int, generator: Generator | None = None) -> Tensor:
    """Fill with N(0, (2 / (num_blocks sqrt(dim)))^2), for projections back into the residual stream, in place."""
    return nn.init.normal_(weight, std=2 / (num_blocks * math.sqrt(dim)), generator=generator)


def uniform(weight: Tensor, bound: float, generator: Generator | None = None) -> Tensor:
    """Fill with U(-bound, bound), in place."""
    return nn.init.uniform_(weight, -bound, bound, generator=generator)


def powerlaw_forget_bias(dim: int, depth: float) -> Tensor:
    """sLSTM forget bias of one head, from 5 (slow) to -7 (fast): 5 - 12 (j / (dim - 1))^(0.3 + 1.3 depth), j < dim.

    depth: position of the block in its stack, 0 first to 1 last. A head of size 1 gets 5.
    """
    position = torch.arange(dim, dtype=torch.float64) / max(dim - 1, 1)
    return (5 - 12 * position ** (0.3 + 1.3 * depth)).to(torch.get_default_dtype())


def unset(module: M) -> M:
    """A module built on the meta device, moved to the default one with its parameters unset."""
    return module.to_empty(device=torch.get_default_device())
