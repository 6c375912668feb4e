"""The gather under every batch: spans of consecutive rows of a flat column, each one copy."""

from __future__ import annotations

import torch
from torch import Tensor


class Spans:
    """A flat column (R, W) or (R,), to be cut into spans of T consecutive rows: (B,) first rows -> (B, T[, W])."""

    def __init__(self, values: Tensor):
        self.values = values.contiguous()
        self._rows: dict[int, Tensor] = {}

    @property
    def width(self) -> int:
        """W, the number of values in a row."""
        return int(self.values.shape[1]) if self.values.ndim == 2 else 1

    def cut(self, first: Tensor, steps: int, edge: bool = False) -> Tensor:
        """Rows first, ..., first + steps - 1 of each span. With `edge`, rows outside are those at the column's ends."""
        rows, width, tail = int(self.values.shape[0]), self.width, self.values.shape[1:]
        count = first.shape[0]
        if width == 0 or steps == 0:
            return self.values.new_empty((count, steps, *tail))
        if rows < steps:
            return self._clamped(first, steps)
        if steps not in self._rows:  # overlapping spans as the rows of one matrix
            self._rows[steps] = self.values.as_strided((rows - steps + 1, steps * width), (width, 1))
        if not edge:
            return self._rows[steps].index_select(0, first).view(count, steps, *tail)
        inside = first.clamp(0, rows - steps)
        out = self._rows[steps].index_select(0, inside).view(count, steps, *tail)
        outside = (inside != first).nonzero().squeeze(1)
        if outside.shape[0]:
            out[outside] = self._clamped(first[outside], steps)
        return out

    def _clamped(self, first: Tensor, steps: int) -> Tensor:
        at = (first[:, None] + torch.arange(steps, device=first.device)).clamp_(0, len(self.values) - 1)
        return self.values.index_select(0, at.view(-1)).view(first.shape[0], steps, *self.values.shape[1:])
