"""A fitted model and the pre-trained network side by side: what each says, and how much of the latter to take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import pretrained
from .batch import Batch, Labels
from .data.frame import Panel
from .heads import pinball
from .linear import LinearModel
from .scaling import scale_context

Array = np.ndarray


class Truth(NamedTuple):
    """The labels of held-back windows in true units, float64."""

    y: Tensor  # (B, H, V)
    seen: Tensor  # (B, H, V) bool
    unit: Tensor  # (B, 1, V) deviation of the window's context
    weight: Tensor  # (B, H, 1)

    @classmethod
    def of(cls, batch: Batch, labels: Labels) -> Truth:
        """Of the windows of a batch; those whose context is constant count as not seen."""
        scaled = scale_context(batch.target, batch.observed, batch.offset)
        unit = torch.where(scaled.varies, scaled.scale, torch.ones_like(scaled.scale)).double()
        y = labels.target.double() + batch.offset.double()[:, None]
        return cls(y, labels.observed & scaled.varies, unit, labels.weight[..., None].double())


def zero_shot(
    linear: LinearModel, panel: Panel, seasons: Sequence[int], horizon: int, levels: Sequence[float]
) -> Callable[[Array, Array], Array]:
    """The pre-trained network's quantiles (n, H, V, Q) as a function of (series, origin).

    The backbone takes sentinels and calendar effects out of what it is given, and puts the latter back.
    """

    def forecast(history: Array) -> Array:
        return pretrained.quantiles(history, seasons, horizon, levels)

    return linear.around(panel, forecast, pretrained.history(horizon))


def choose_share(
    own: Sequence[Tensor], other: Sequence[Tensor], truths: Sequence[Truth], levels: Sequence[float]
) -> float:
    """How much of the `other` quantiles (B, H, V, Q) to mix into one's own: those that did best, averaged.

    The pinball loss over held-back windows, in units of each window's deviation, is taken at eighths; the fewer windows
    there are, the more the shares near the best one count. One half where there is no window.
    """
    if not truths:
        return 0.5
    shares = torch.linspace(0, 1, 9, dtype=torch.float64)
    grid = torch.tensor(levels, dtype=torch.float64)
    losses = torch.zeros(len(shares), dtype=torch.float64)
    for mine, theirs, truth in zip(own, other, truths, strict=True):
        for k, share in enumerate(shares):
            error = (truth.y[..., None] - torch.lerp(mine.double(), theirs.double(), share)) / truth.unit[..., None]
            losses[k] += (pinball(error, grid).mean(-1) * truth.seen * truth.weight).sum()
    return float((near_best(losses, sum(len(truth.y) for truth in truths)) * shares).sum())


def near_best(losses: Tensor, count: int) -> Tensor:
    """Weights of candidates by their losses over `count` windows: broad where windows are few."""
    best = losses.min().clamp(min=1e-12)
    return torch.softmax(-(losses / best - 1) / (0.5 / max(1.0, count) ** 0.5), 0)
