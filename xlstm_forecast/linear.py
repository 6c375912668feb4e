"""model="linear": the closed-form backbone over a panel, a forecaster by itself and what the networks correct.

Every target variate of every series is a series of its own to the backbone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .backbone import Backbone, BackboneConfig, FittedBackbone, gather
from .data.frame import Panel

Array = np.ndarray


class LinearModel:
    """A fitted backbone, and which series of which panel it was fitted on."""

    def __init__(self, fitted: FittedBackbone, series: int):
        self.fitted = fitted
        self.series = series  # number of series in the fit

    @classmethod
    def fit(cls, panel: Panel, end: Array, horizon: int, season: int | None = None) -> LinearModel:
        """Fit on the first `end` (n,) rows of each series of a panel; nothing after them is read."""
        config = BackboneConfig(
            horizon=horizon, freq=None if panel.axis.kind == "int" else str(panel.freq), season=season
        )
        spans = [slice(a, a + n) for a, n in zip(panel.offsets[:-1], end, strict=True)]
        values = np.concatenate([panel.target[s, v] for v in range(panel.target.shape[1]) for s in spans])
        offsets = np.r_[0, np.cumsum(np.tile(end, panel.target.shape[1]))]
        return cls(Backbone(config).fit(values, offsets), len(panel))

    def quantiles(self, panel: Panel, series: Array, origin: Array, levels: Sequence[float]) -> Array:
        """Quantiles (n, H, V, Q) of the windows at (series, origin) of any panel, from rows before each origin."""
        known = panel.series[series]
        parts = []
        for v in range(panel.target.shape[1]):
            history = gather(panel.target[:, v], panel.offsets, series, origin, self.fitted.history)
            index = np.where(known >= 0, known + v * self.series, -1)
            parts.append(self.fitted.quantiles(history, np.asarray(levels), index))
        return np.stack(parts, 2)

    def on(self, panel: Panel, levels: Sequence[float]) -> Callable[[Array, Array], Array]:
        """The quantiles at fixed levels as a function of (series, origin), as `Windows` takes it."""
        return lambda series, origin: self.quantiles(panel, series, origin, levels)

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON values for a checkpoint."""
        arrays, text = self.fitted.to_arrays()
        return {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in arrays.items()}, {
            "text": text,
            "series": self.series,
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], values: dict[str, Any]) -> LinearModel:
        """The inverse of `to_tensors`."""
        arrays = {k: v.numpy() for k, v in tensors.items()}
        return cls(FittedBackbone.from_arrays(arrays, values["text"]), values["series"])
