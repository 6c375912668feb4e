"""The default model: patches of the scaled window, an xLSTM encoder over time, a head over the horizon.

The forecast is a linear map of the context, which starts as the seasonal naive forecast, plus what the encoder adds.
The encoder reads the context's patches and then the horizon's, whose values are missing and whose known covariates
are not: so every forecast step sees known covariates up to the end of its own patch, and none after it.
With decode="last" the encoder reads the context alone, and its last output gives all steps of the horizon at once.
Patch length 1 is the plain step-by-step recurrent model. Target variates share the weights (channel independence).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..batch import Batch
from ..encoder import Encoder
from ..heads import build_head
from ..scaling import CLIP, Scaled
from .common import CategoryEmbedding, ForecastModel, ModelConfig, fill_forward, start_as_naive


@dataclass(frozen=True, kw_only=True)
class PatchConfig(ModelConfig):
    """Sizes and choices of a `PatchModel`; everything a checkpoint needs to build it again."""

    patch_length: int = 1  # P
    decode: str = "steps"  # "steps": the encoder goes on over the horizon; "last": its last output gives all of it

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patch_length < 1:
            raise ValueError(f"patch_length={self.patch_length}: expected at least 1")
        if self.decode not in ("steps", "last"):
            raise ValueError(f"decode={self.decode!r} is unknown: choose 'steps' or 'last'")
        if self.decode == "last" and (self.known or self.known_sizes or self.backbone):
            raise ValueError(
                "decode='last' reads nothing of the horizon, and there are known-future columns or a backbone's "
                "forecast to read: choose decode='steps'"
            )

    @property
    def context_patches(self) -> int:
        return math.ceil(self.input_length / self.patch_length)

    @property
    def horizon_patches(self) -> int:
        """Patches of the horizon that the encoder reads."""
        return math.ceil(self.horizon / self.patch_length) if self.decode == "steps" else 0

    @property
    def decoded(self) -> int:
        """Forecast steps that one of the encoder's outputs gives."""
        return self.patch_length if self.decode == "steps" else self.horizon


class PatchModel(ForecastModel):
    """Batch -> Forecast; see the module's docstring. A head of the caller's own takes the place of config.head."""

    def __init__(self, config: PatchConfig, head: nn.Module | None = None):
        super().__init__()
        self.config = config
        width = config.encoder.d_model
        self.known_embedding = CategoryEmbedding(config.known_sizes, config.forget)
        self.past_embedding = CategoryEmbedding(config.past_sizes, config.forget)
        per_step = 2 + config.known + 2 * config.past + self.known_embedding.width + self.past_embedding.width
        self.embed = nn.Linear(config.patch_length * per_step, width)
        self._build_identity(config)
        position = 0.02 * torch.randn(config.horizon_patches, width)
        self.position = nn.Parameter(position) if config.horizon_patches else None
        self.input_dropout = nn.Dropout(config.dropout)
        self.encoder = Encoder(config.encoder)
        self.decode = nn.Linear(width, config.decoded * config.features)
        self.head = build_head(config.head, config.features, config.levels) if head is None else head
        self.linear = None if config.backbone else nn.Linear(config.input_length, config.horizon)
        self._register_covariate_scale(config.known, config.past, config.static)
        if self.linear is None:
            self.head.start_at_base()
        else:
            start_as_naive(self.linear, config.season)

    def features(self, batch: Batch, scaled: Scaled) -> tuple[Tensor, Tensor]:
        config = self.config
        steps = self._steps(batch, scaled)  # (B V) (L + H) F
        tokens, mask = self._tokens(steps, batch)
        encoded, _ = self.encoder(tokens, mask=mask, last=max(1, config.horizon_patches))
        future = self.decode(encoded)  # (B V) patches (P F)
        features = nn.functional.gelu(future).view(len(future), -1, config.features)
        features = features[:, : config.horizon].unflatten(0, (-1, config.targets)).transpose(1, 2)
        if self.linear is None:
            return features, features.new_zeros(features.shape[:3])
        base = self.linear(fill_forward(scaled.values, batch.observed).transpose(1, 2))
        return features, base.transpose(1, 2)

    def _steps(self, batch: Batch, scaled: Scaled) -> Tensor:
        """Features of every step of context and horizon, per variate: (B V, L + H, F)."""
        config = self.config
        length = config.input_length
        total = length + (config.horizon if config.horizon_patches else 0)
        own = torch.stack((scaled.values, batch.observed.to(scaled.values.dtype)), -1).transpose(1, 2)  # B V L 2
        own = nn.functional.pad(own, (0, 0, 0, total - length))
        if batch.base is not None:
            middle = (batch.base[..., self.head.centre] - scaled.location) / scaled.scale  # B H V
            own[:, :, length:, 0] = middle.clamp(-CLIP, CLIP).transpose(1, 2)
        known = (batch.known[:, :total] - self.known_location) / self.known_scale
        seen = batch.past_observed.to(known.dtype)
        past = torch.cat(((batch.past - self.past_location) / self.past_scale * seen, seen), -1)
        past = torch.cat((past, self.past_embedding(batch.past_categories)), -1)
        past = nn.functional.pad(past, (0, 0, 0, total - length))
        here = nn.functional.pad(batch.present, (0, total - length), value=True)[..., None]
        shared = torch.cat((known, self.known_embedding(batch.known_categories[:, :total]), past), -1) * here
        shared = shared[:, None].expand(-1, config.targets, -1, -1)
        return torch.cat((own, shared), -1).flatten(0, 1)

    def _tokens(self, steps: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Patch tokens (B V, patches, D) of context and horizon, and which of them hold anything (bool)."""
        config, patch = self.config, self.config.patch_length
        left = config.context_patches * patch - config.input_length
        right = max(0, config.horizon_patches * patch - config.horizon)
        steps = nn.functional.pad(steps, (0, 0, left, right))
        tokens = self.embed(steps.unflatten(1, (-1, patch)).flatten(2))
        if self.position is not None:
            context, horizon = tokens.tensor_split((config.context_patches,), 1)
            tokens = torch.cat((context, horizon + self.position), 1)
        if self._identifies:
            tokens = tokens + self._identity(batch).flatten(0, 1)[:, None]
        tokens = self.input_dropout(tokens)
        present = nn.functional.pad(batch.present, (left, 0)).unflatten(1, (-1, patch)).any(-1)
        mask = nn.functional.pad(present, (0, config.horizon_patches), value=True)
        return tokens, mask.repeat_interleave(config.targets, 0)
