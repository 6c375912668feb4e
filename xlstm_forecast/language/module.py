"""The Lightning form of `train`: one module for a Trainer on any device, or several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import detach_state
from ..training import pl
from .config import LanguageConfig
from .fitting import check_trainable, next_token_loss, parameter_groups, scheduled, total_steps
from .text import ContiguousBatches, LanguageModelingDataset


class LanguageModule(pl.LightningModule):
    """A language model as a LightningModule that brings its own batches: `Trainer(...).fit(LanguageModule(...))`.

    optimizer: None makes AdamW from lr and weight_decay of the configuration. Epochs, steps and clipping are the
    Trainer's own; `trainer_options` gives them as the configuration has them.
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: LanguageModelingDataset,
        criterion: Callable[[Tensor, Tensor], Tensor],
        config: LanguageConfig,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        super().__init__()
        check_trainable(model, dataset)
        self.model, self.dataset, self.criterion, self.config = model, dataset, criterion, config
        self.given = optimizer
        self.state: Any = None
        self.losses: list[float] = []

    def trainer_options(self) -> dict[str, Any]:
        """Arguments for a Trainer: steps, clipping, and nothing written to disk."""
        return {
            "max_steps": total_steps(self.dataset, self.config),
            "max_epochs": -1,
            "gradient_clip_val": self.config.gradient_clip or None,
            "logger": False,
            "enable_checkpointing": False,
            "use_distributed_sampler": False,
        }

    def train_dataloader(self) -> ContiguousBatches:
        """Contiguous batches, this process's rows of each."""
        trainer = self.trainer
        return self.dataset.batches(self.config.batch_size, rank=trainer.global_rank, world_size=trainer.world_size)

    def on_train_epoch_start(self) -> None:
        self.state = None

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        state = self.state if self.config.carry_state else None
        loss, state = next_token_loss(self.model, self.criterion, *batch, state)
        self.state = None if state is None else detach_state(state)
        self.losses.append(float(loss.detach()))
        self.log("train_loss", loss.detach(), prog_bar=True, batch_size=len(batch[0]))
        return loss

    def configure_optimizers(self) -> Any:
        groups = parameter_groups(self.model, self.config.weight_decay)
        optimizer = self.given or torch.optim.AdamW(groups, lr=self.config.lr)
        steps = total_steps(self.dataset, self.config)
        schedule = scheduled(optimizer, steps, self.config)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
