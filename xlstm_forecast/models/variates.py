"""Models whose sequence is the variates, not time: every variate's window is one token.

xLSTM-Mixer is in `mixer`, xLSTMTime in `time`. Both make
a linear forecast of each variate, turn it into a token, run an sLSTM stack over the variates and map every token back
to the horizon. Here covariates come as tokens before the targets, so that the recurrence carries them into each target.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..batch import Batch
from ..scaling import Scaled
from .common import CategoryEmbedding, ForecastModel, ModelConfig


@dataclass(frozen=True, kw_only=True)
class VariateConfig(ModelConfig):
    """What the models of this family have in common.

    units: a typical deviation of each target (V,), in which its errors count; (): they count in the deviation of their
    window, so that those after a quiet one count for many.
    """

    units: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.units and (len(self.units) != self.targets or not min(self.units) > 0):
            raise ValueError(f"units={self.units}: expected {self.targets} positive deviations, one for each target")

    @property
    def features(self) -> int:
        """F: few, as one linear map of a token makes those of all steps and the head is linear in them."""
        return 1 if self.head == "point" else 8


class CovariateTokens(nn.Module):
    """One token (D) for every covariate column: past ones from their context, known ones from context and horizon."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        length, total = config.input_length, config.input_length + config.horizon
        width = config.encoder.d_model
        self.known_embedding = CategoryEmbedding(config.known_sizes, config.forget)
        self.past_embedding = CategoryEmbedding(config.past_sizes, config.forget)
        self.known = config.known + self.known_embedding.width
        self.past = config.past + self.past_embedding.width
        self.embed_known = nn.Linear(total, width) if self.known else None
        self.embed_past = nn.Linear(2 * length, width) if self.past else None
        self.column = nn.Parameter(0.02 * torch.randn(self.known + self.past, width))

    def forward(self, batch: Batch, known: Tensor, past: Tensor) -> Tensor:
        """(B, columns, D) from the batch and its scaled reals, known (B, L + H, K) and past (B, L, O)."""
        here = batch.present[..., None].to(known.dtype)
        tokens = [known.new_zeros(len(batch), 0, self.column.shape[-1])]
        if self.embed_known is not None:
            joined = torch.cat((known, self.known_embedding(batch.known_categories)), -1)
            joined = joined * nn.functional.pad(here, (0, 0, 0, batch.horizon), value=1.0)
            tokens.append(self.embed_known(joined.transpose(1, 2)))
        if self.embed_past is not None:
            codes = self.past_embedding(batch.past_categories)
            seen = torch.cat((batch.past_observed.to(past.dtype), here.expand_as(codes)), -1)
            joined = torch.cat((past, codes), -1) * seen
            tokens.append(self.embed_past(torch.cat((joined, seen), 1).transpose(1, 2)))
        return torch.cat(tokens, 1) + self.column


class VariateModel(ForecastModel):
    """Covariate tokens and scaled covariates for the models of this family."""

    covariates: CovariateTokens

    def importance(self, scaled: Scaled) -> Tensor:
        """The deviation of the window in the target's units (B, 1, V); 1 where the configuration names none."""
        if not self.config.units:
            return super().importance(scaled)
        return scaled.scale / scaled.scale.new_tensor(self.config.units)

    def _covariates(self, batch: Batch) -> Tensor:
        """Tokens (B, columns, D) of the batch's covariates."""
        known = (batch.known - self.known_location) / self.known_scale
        past = (batch.past - self.past_location) / self.past_scale
        return self.covariates(batch, known, past)
