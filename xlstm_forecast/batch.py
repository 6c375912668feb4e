"""The contract between frames and tensors: what a model sees of a batch of windows, and what it is scored against.

Dimension key, used everywhere in the package
    B  windows in a batch        L  context steps            H  horizon steps        T  steps in general
    V  target variates           D  model width              N  heads                P  patch length
    K  known-future reals        O  past-only reals          S  static reals         C  categorical columns
    Q  quantile levels

The future target is not part of `Batch`, so no model can read it: it travels beside it, as `Labels`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


class _Rows:
    """Row-wise operations shared by `Batch` and `Labels`: every field has the windows as its first dimension."""

    def _map(self, fn: Any) -> Any:
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        return replace(self, **{k: fn(v) for k, v in values.items() if v is not None})  # type: ignore[type-var]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Any:
        """The same rows on another device; float64 becomes float32 where the device (MPS) has no float64."""
        double = torch.device(device).type != "mps"
        return self._map(
            lambda t: (t if double or t.dtype != torch.float64 else t.float()).to(device, non_blocking=non_blocking)
        )

    def pin_memory(self) -> Any:
        return self._map(lambda t: t.pin_memory())

    def __getitem__(self, rows: Any) -> Any:
        """A selection of windows: a slice, an index tensor or a boolean mask over the first dimension."""
        return self._map(lambda t: t[rows])


@dataclass(frozen=True, kw_only=True)
class Labels(_Rows):
    """What a forecast is scored against, in the same offset as its `Batch`."""

    target: Tensor  # (B, H, V) float32, minus the batch's offset; 0 where not observed
    observed: Tensor  # (B, H, V) bool
    weight: Tensor  # (B, H) float32, 1 where the frame has no weight column


@dataclass(frozen=True, kw_only=True)
class Batch(_Rows):
    """A batch of windows, right-aligned: the last context step stands directly before the first forecast step.

    A role that the data does not use has a tensor of width 0, never None. Values under a false mask are 0 and carry
    no meaning. A window that starts before its series does is padded on the left, with `present` false there.
    """

    target: Tensor  # (B, L, V) float32, minus `offset`; 0 where not observed
    observed: Tensor  # (B, L, V) bool
    offset: Tensor  # (B, V) float64, in the target's units: true value = target + offset
    present: Tensor  # (B, L) bool, false on the padding before a series' first row
    known: Tensor  # (B, L + H, K) float32, 0 on the padding
    past: Tensor  # (B, L, O) float32
    past_observed: Tensor  # (B, L, O) bool
    static: Tensor  # (B, S) float32
    static_observed: Tensor  # (B, S) bool
    known_categories: Tensor  # (B, L + H, C_known) int64, 0 = unknown or missing
    past_categories: Tensor  # (B, L, C_past) int64
    static_categories: Tensor  # (B, C_static) int64
    series: Tensor  # (B,) int64, index of the series in its panel; -1 where the model was not fitted on it
    origin: Tensor  # (B,) int64, rows of the series before the first forecast step
    base: Tensor | None = None  # (B, H, V, Q) float32, minus `offset`: a simpler forecast that the model corrects

    def __len__(self) -> int:
        return int(self.target.shape[0])

    @property
    def context(self) -> int:
        """L, the number of context steps."""
        return int(self.target.shape[1])

    @property
    def horizon(self) -> int:
        """H, the number of forecast steps."""
        return int(self.known.shape[1] - self.target.shape[1])
