"""Several models of one kind side by side, each reading as much of the context as its configuration says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..batch import Batch, Labels
from .common import ForecastModel


class Ensemble(nn.Module):
    """The mean of its members' quantiles, level by level, so that they stay ordered.

    The members differ in their weights and in `config.input_length`; the first one's is the longest.
    """

    def __init__(self, members: Sequence[ForecastModel]):
        super().__init__()
        if not members:
            raise ValueError("an Ensemble needs at least one model")
        self.members = nn.ModuleList(members)

    @property
    def models(self) -> list[ForecastModel]:
        """The members, the one with the longest context first."""
        return list(self.members)  # type: ignore[arg-type]

    @property
    def head(self) -> Any:
        """Of the first member."""
        return self.models[0].head

    @property
    def share(self) -> float:
        """How much of the members' corrections of a backbone is kept."""
        return float(self.models[0].share)

    @torch.no_grad()
    def keep(self, share: float) -> None:
        """Set `share` of all members."""
        for member in self.models:
            member.share.fill_(share)

    def quantiles(self, batch: Batch, levels: Sequence[float]) -> Tensor:
        """Quantiles (B, H, V, Q) in the target's units, float64, ordered along the last dimension."""
        parts = [m.quantiles(last_steps(batch, m.config.input_length), levels) for m in self.models]
        return torch.stack(parts).mean(0)

    def loss_sum(self, batch: Batch, labels: Labels) -> tuple[Tensor, Tensor]:
        """The mean over members of what `ForecastModel.loss_sum` gives."""
        return _mean([m.loss_sum(last_steps(batch, m.config.input_length), labels) for m in self.models])

    def loss_sums(self, batch: Batch, labels: Labels, shares: Tensor) -> tuple[Tensor, Tensor]:
        """The mean over members of what `ForecastModel.loss_sums` gives."""
        return _mean([m.loss_sums(last_steps(batch, m.config.input_length), labels, shares) for m in self.models])


def _mean(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    losses, weights = zip(*parts, strict=True)
    return torch.stack(losses).mean(0), torch.stack(weights).mean(0)


def last_steps(batch: Batch, length: int) -> Batch:
    """The batch with the last `length` steps of its context only."""
    cut = batch.context - length
    if cut <= 0:
        return batch
    names = ("target", "observed", "present", "known", "past", "past_observed", "known_categories", "past_categories")
    return replace(batch, **{name: getattr(batch, name)[:, cut:] for name in names})
