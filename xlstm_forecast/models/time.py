"""xLSTMTime (arXiv 2407.10240): trend and remainder, a linear forecast of each, an sLSTM stack over the variates.

The trend is a centred moving average of the context (edge values repeated), so it reads the context only. Differences
from the published code, besides its validation on the test part: covariates, static columns and missing values; the
linear forecast of trend and remainder is kept as the base to which the head adds; any head.
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
class TimeConfig(VariateConfig):
    """Sizes and choices of a `TimeModel`. kernel: steps of the moving average, odd."""

    kernel: int = 25
    encoder: EncoderConfig = field(default_factory=lambda: EncoderConfig(blocks="sss", conv_kernel=4))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"kernel={self.kernel}: expected an odd number of steps")


class TimeModel(VariateModel):
    """Batch -> Forecast; see the module's docstring. A head of the caller's own takes the place of config.head."""

    def __init__(self, config: TimeConfig, head: nn.Module | None = None):
        super().__init__()
        self.config = config
        width = config.encoder.d_model
        self.trend = nn.Linear(config.input_length, config.horizon)
        self.remainder = nn.Linear(config.input_length, config.horizon)
        self.embed = nn.Linear(config.horizon + config.input_length, width)
        self.covariates = CovariateTokens(config)
        self.input_dropout = nn.Dropout(config.dropout)
        self.encoder = Encoder(config.encoder)
        self.decode = nn.Linear(width, config.horizon * config.features)
        self.head = build_head(config.head, config.features, config.levels) if head is None else head
        self._build_identity(config)
        self._register_covariate_scale(config.known, config.past, config.static)
        for linear in (self.trend, self.remainder):  # together the naive forecast of the window itself
            start_as_naive(linear, config.season)
        if config.backbone:
            self.head.start_at_base()

    def features(self, batch: Batch, scaled: Scaled) -> tuple[Tensor, Tensor]:
        filled = fill_forward(scaled.values, batch.observed).transpose(1, 2)  # B V L
        trend = moving_average(filled, self.config.kernel)
        base = self.trend(trend) + self.remainder(filled - trend)
        missing = (~batch.observed).transpose(1, 2).to(base.dtype)
        tokens = self.embed(torch.cat((base, missing), -1)) + self._identity(batch)
        tokens = self.input_dropout(torch.cat((self._covariates(batch), tokens), 1))
        encoded, _ = self.encoder(tokens)
        features = self.decode(encoded[:, -self.config.targets :])
        return features.unflatten(-1, (self.config.horizon, -1)).transpose(1, 2), base.transpose(1, 2)


def moving_average(values: Tensor, kernel: int) -> Tensor:
    """Centred moving average (..., L) over `kernel` steps, edge values repeated beyond both ends."""
    rows = values.reshape(-1, 1, values.shape[-1])
    padded = nn.functional.pad(rows, (kernel // 2, kernel // 2), mode="replicate")
    return nn.functional.avg_pool1d(padded, kernel, stride=1).view_as(values)
