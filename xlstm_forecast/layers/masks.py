"""Masks and states between the public doors and the mixers.

Mixers take masks with the valid steps first; `Packing` brings rows with any mask into that form and back. They
also take `Steps`, the only ones whose output is asked for: nothing after the recurrence is computed for the others.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Packing(NamedTuple):
    """Where each valid step goes so that the valid steps of a row come first, in order, and how to undo it."""

    mask: Tensor  # (B, T) bool as given
    packed: Tensor  # (B, T) bool, valid steps first
    order: Tensor  # (B, T) int64: step that stands at each packed place
    place: Tensor  # (B, T) int64: packed place of each step

    @classmethod
    def of(cls, mask: Tensor) -> Packing:
        """From a mask (B, T), false on steps that do not exist."""
        order = torch.argsort(mask.logical_not().to(torch.uint8), dim=1, stable=True)
        steps = torch.arange(mask.shape[1], device=mask.device)
        return cls(mask, steps < mask.sum(1, keepdim=True), order, order.argsort(1))

    def pack(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D), valid steps first, zeros behind them whatever stood there."""
        x = picked(x, self.order)
        return torch.where(self.packed[..., None], x, 0)

    def unpack(self, y: Tensor) -> Tensor:
        """The inverse of `pack`: every valid step back in its place, 0 elsewhere."""
        y = picked(y, self.place)
        return torch.where(self.mask[..., None], y, 0)


Steps = Tensor | slice | None


def picked(x: Tensor, steps: Tensor) -> Tensor:
    """The steps of x (B, T, ...) with the numbers (B, T') of each row, all below T (not checked): (B, T', ...).

    Whole rows are copied, and added up in the backward pass; `gather` and its backward pass do it number by number.
    """
    rows = torch.arange(x.shape[0], device=x.device)[:, None] * x.shape[1] + steps
    return x.flatten(0, 1).index_select(0, rows.flatten()).view(*steps.shape, *x.shape[2:])


def chosen(x: Tensor, steps: Steps) -> Tensor:
    """The steps of x (B, T, ...) that are asked for: all (None), a slice of them, or by number (B, T')."""
    if steps is None:
        return x
    if isinstance(steps, slice):
        return x[:, steps]
    return picked(x, steps)


def reverse(x: Tensor, mask: Tensor | None) -> Tensor:
    """Turn the valid steps of each row around: (B, T, D), mask (B, T) with the valid steps first. Its own inverse."""
    if mask is None:
        return x.flip(1)
    steps = torch.arange(x.shape[1], device=x.device)
    index = torch.where(mask, mask.sum(1, keepdim=True) - 1 - steps, steps)
    return picked(x, index)


def needed(mask: Tensor | None, x: Tensor) -> Tensor | None:
    """A mask checked against x (B, T, D), or None where it masks nothing (looked up only where that is free)."""
    if mask is None:
        return None
    if mask.dtype != torch.bool or mask.shape != x.shape[:2]:
        raise ValueError(
            f"mask must be bool of shape {tuple(x.shape[:2])}, got {mask.dtype} of shape {tuple(mask.shape)}"
        )
    free = mask.device.type == "cpu" and not torch.compiler.is_compiling()
    return None if free and bool(mask.all()) else mask


def detach_state(state: Any) -> Any:
    """The same (nested) state cut off from the graph: what truncated back-propagation carries over."""
    if state is None:
        return None
    if isinstance(state, Tensor):
        return state.detach()
    parts = [detach_state(part) for part in state]
    return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)
