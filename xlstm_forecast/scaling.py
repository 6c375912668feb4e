"""Location and scale of a window from its observed values, and the inverse.

`window` takes them over the whole context; `causal` takes at each step what was observed up to it, so that a stream
can go on without looking back (the last step's values then unscale the forecast).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

MODES = ("window", "causal")
CONSTANT = 1e-12  # relative spread under which a float64 window counts as constant
CLIP = 20.0  # scaled inputs are kept within +-CLIP, so that one wild value cannot drown a window


class Scaled(NamedTuple):
    """Scaled context and what undoes the scaling of a forecast."""

    values: Tensor  # (B, L, V), 0 where not observed
    location: Tensor  # (B, 1, V)
    scale: Tensor  # (B, 1, V); 0 where the context is constant or empty
    varies: Tensor  # (B, 1, V) bool, whether it is not


def scale_context(target: Tensor, observed: Tensor, offset: Tensor, mode: str = "window") -> Scaled:
    """Mean 0 and standard deviation 1 over the observed context steps.

    target: (B, L, V) with `offset` (B, V) removed; observed: (B, L, V) bool. A constant window gets scale 0: its
    scaled values are 0 and its forecast is its level. Raises ValueError for an unknown mode.
    """
    if mode not in MODES:
        raise ValueError(f"scaling={mode!r} is unknown: choose one of {', '.join(map(repr, MODES))}")
    x = target.double() if target.device.type != "mps" else target
    seen = observed.to(x.dtype)
    first = torch.take_along_dim(x, observed.to(torch.uint8).argmax(1, keepdim=True), 1)
    x = (x - first) * seen  # sums around a value of the window: a constant one has spread exactly 0
    if mode == "window":
        count = seen.sum(1, keepdim=True).clamp(min=1)
        location = x.sum(1, keepdim=True) / count
        spread = ((((x - location) * seen) ** 2).sum(1, keepdim=True) / count).sqrt()
    else:
        count = seen.cumsum(1).clamp(min=1)
        location = x.cumsum(1) / count
        spread = ((x * x).cumsum(1) / count - location**2).clamp(min=0).sqrt()
    floor = CONSTANT * (offset[:, None, :].to(x.dtype).abs() + location.abs() + first.abs())
    spread = torch.where(spread > floor, spread, torch.zeros_like(spread))
    values = (x - location) / torch.where(spread > 0, spread, torch.ones_like(spread)) * (spread > 0) * seen
    dtype = target.dtype
    location = (location + first)[:, -1:]
    spread = spread[:, -1:]
    return Scaled(values.clamp(-CLIP, CLIP).to(dtype), location.to(dtype), spread.to(dtype), spread > 0)


def scale_labels(target: Tensor, scaled: Scaled) -> tuple[Tensor, Tensor]:
    """Future values (B, H, V) in the window's units, and (B, 1, V) bool: whether the window has a scale at all."""
    safe = torch.where(scaled.varies, scaled.scale, torch.ones_like(scaled.scale))
    return (target - scaled.location) / safe * scaled.varies, scaled.varies


def unscale(values: Tensor, scaled: Scaled, offset: Tensor) -> Tensor:
    """A forecast (B, H, V, ...) in the window's units, back in the target's: float64, so that levels stay exact."""
    shape = (*scaled.scale.shape, *(1,) * (values.ndim - 3))
    dtype = offset.dtype
    inner = values.to(dtype) * scaled.scale.to(dtype).view(shape) + scaled.location.to(dtype).view(shape)
    return inner + offset[:, None, :].view(offset.shape[0], 1, offset.shape[1], *(1,) * (values.ndim - 3))
