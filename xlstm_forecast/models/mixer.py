"""xLSTM-Mixer (arXiv 2410.16928, section 3): a linear forecast in time, mixed over the variates in two views.

Each variate's window gives a linear forecast around its last value (NLinear); each forecast becomes a token; learned
tokens and covariates stand before them. One sLSTM stack reads the tokens twice, as they are and with the embedding
reversed; both views together give the features. Differences from the paper: covariates, static columns and missing
values; the linear forecast is kept as the base to which the head adds; any head, so quantiles that cannot cross.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..batch import Batch
from ..encoder import Encoder, EncoderConfig
from ..heads import build_head
from ..scaling import Scaled
from .common import fill_forward, start_as_naive
from .variates import CovariateTokens, VariateConfig, VariateModel


@dataclass(frozen=True, kw_only=True)
class MixerConfig(VariateConfig):
    """Sizes and choices of a `MixerModel`."""

    learned_tokens: int = 2
    encoder: EncoderConfig = field(default_factory=lambda: EncoderConfig(blocks="s", conv_kernel=0))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.learned_tokens < 0:
            raise ValueError(f"learned_tokens={self.learned_tokens}: expected 0 or more")


class MixerModel(VariateModel):
    """Batch -> Forecast; see the module's docstring. A head of the caller's own takes the place of config.head."""

    def __init__(self, config: MixerConfig, head: nn.Module | None = None):
        super().__init__()
        self.config = config
        width = config.encoder.d_model
        self.linear = nn.Linear(config.input_length, config.horizon)
        self.embed = nn.Linear(config.horizon + config.input_length, width)
        self.covariates = CovariateTokens(config)
        self.learned = nn.Parameter(0.01 * torch.randn(config.learned_tokens, width))
        self.input_dropout = nn.Dropout(config.dropout)
        self.encoder = Encoder(config.encoder)
        self.decode = nn.Linear(2 * width, config.horizon * config.features)
        self.head = build_head(config.head, config.features, config.levels) if head is None else head
        self._build_identity(config)
        self._register_covariate_scale(config.known, config.past, config.static)
        start_as_naive(self.linear, config.season)
        if config.backbone:
            self.head.start_at_base()

    def features(self, batch: Batch, scaled: Scaled) -> tuple[Tensor, Tensor]:
        filled = fill_forward(scaled.values, batch.observed).transpose(1, 2)  # B V L
        last = filled[..., -1:]
        base = last + self.linear(filled - last)
        missing = (~batch.observed).transpose(1, 2).to(base.dtype)
        tokens = self.embed(torch.cat((base, missing), -1)) + self._identity(batch)
        learned = self.learned.expand(len(batch), -1, -1)
        tokens = self.input_dropout(torch.cat((learned, self._covariates(batch), tokens), 1))
        first, _ = self.encoder(tokens)
        second, _ = self.encoder(tokens.flip(-1))
        mixed = torch.cat((first, second), -1)[:, -self.config.targets :]
        features = self.decode(mixed).unflatten(-1, (self.config.horizon, -1))
        return features.transpose(1, 2), base.transpose(1, 2)
