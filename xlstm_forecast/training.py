"""Training: TrainConfig, a thin LightningModule, early stopping with the best averaged weights, resuming.

The only module that imports Lightning. Nothing is written to disk unless a checkpoint folder is given.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from .batch import Batch, Labels
from .settings import TrainResult

LOG = logging.getLogger("xlstm_forecast")
CHECKPOINT = "training.ckpt"
Pairs = Iterable[tuple[Batch, Labels]]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a model is trained. Steps are optimiser steps; `max_epochs`, where given, replaces `max_steps`."""

    max_steps: int = 600
    max_epochs: int | None = None
    batch_size: int = 128  # windows per step, over all devices together
    lr: float = 2e-3
    weight_decay: float = 1e-2
    warmup_steps: int = 50
    gradient_clip: float = 1.0
    check_every: int = 50  # steps between two validations
    patience: int = 6  # validations without improvement before training stops; 0: never
    average: float = 0.99  # decay of the moving average of the weights that is validated and kept; 0: none
    seed: int = 0
    precision: str | None = None  # Lightning's names; None: float32
    accelerator: str = "auto"
    devices: int | str = 1
    strategy: str = "auto"
    time_limit: float | None = None  # seconds
    checks_after: int = 0  # of the time limit, as many validations are left for what follows training

    def __post_init__(self) -> None:
        for name in ("max_steps", "batch_size", "check_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        if not self.lr > 0:
            raise ValueError(f"lr={self.lr}: expected a positive learning rate")
        if not 0 <= self.average < 1:
            raise ValueError(f"average={self.average}: expected a decay in [0, 1)")


class ForecastModule(pl.LightningModule):
    """A thin Lightning face of a model that has `loss(batch, labels)`."""

    def __init__(
        self,
        model: nn.Module,
        config: TrainConfig,
        loader: Callable[[int, int, int], Pairs],
        steps: int,
        watched: bool,
    ):
        super().__init__()
        self.model = model
        self.config = config
        self.loader = loader
        self.steps = steps
        self.losses: list[Tensor] = []
        self.watched = watched  # whether anything reads what is logged
        self.started = time.monotonic()

    def train_dataloader(self) -> Any:
        """Batches from the current step on, this process's share of each."""
        trainer = self.trainer
        return self.loader(trainer.global_rank, trainer.world_size, trainer.global_step)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Dropout is a function of seed and step, so that a resumed run repeats the uninterrupted one.
        seed_generator(self.device, (self.config.seed << 24) + self.global_step)

    def training_step(self, pair: tuple[Batch, Labels], batch_idx: int) -> Tensor:
        batch, labels = pair
        loss = self.model.loss(batch, labels)  # type: ignore[operator]
        self.losses.append(loss.detach())
        if self.watched:
            self.log("train_loss", loss.detach(), prog_bar=True, batch_size=len(batch))
        return loss

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return tuple(part.to(device, non_blocking=True) for part in batch)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(parameter_groups(self.model, self.config), lr=self.config.lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _rate(self, step: int) -> float:
        """Linear warm-up, then a cosine to 0, by steps or by the time that is left, whichever is further on."""
        warm = min(self.config.warmup_steps, self.steps // 5)
        done = step / max(1, self.steps)
        if self.config.time_limit:
            done = max(done, (time.monotonic() - self.started) / self.config.time_limit)
        return min(1.0, (step + 1) / (warm + 1)) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def seed_generator(device: torch.device, seed: int) -> None:
    """Seed the random numbers of the CPU, and of the current device where it is of another kind."""
    # torch.manual_seed does it for all kinds of devices, and for those that are not there by noting the call stack: at
    # every step, which is felt with small networks.
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
    torch.default_generator.manual_seed(seed)


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Matrices decay; vectors, norms, embeddings and the map that starts as the naive forecast do not."""
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            free = parameter.ndim < 2 or "embed_" in name or "norm" in name or name.startswith("linear.")
            (kept if free else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": config.weight_decay}, {"params": kept, "weight_decay": 0.0}]


class KeepBest(pl.Callback):
    """Validates a moving average of the weights every so many steps, step 0 included, and keeps the best of them."""

    def __init__(self, config: TrainConfig, validation: Sequence[tuple[Batch, Labels]]):
        self.config = config
        self.validation = validation
        self.average: dict[str, Tensor] = {}
        self.pairs: tuple[list[Tensor], list[Tensor]] | None = None  # of the averaged weights and the model's
        self.best: dict[str, Tensor] = {}
        self.best_step = 0
        self.scores: dict[int, float] = {}
        self.seconds = 0.0  # that the last validation took

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if not self.average:
            self.average = weights_of(pl_module.model)
            self._check(trainer, pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        decay = min(self.config.average, (1 + step) / (10 + step)) if self.config.average else 0.0
        self._move(pl_module.model, decay)
        late = self._late(pl_module)
        last = step >= pl_module.steps or late
        if step % self.config.check_every == 0 or last:
            self._check(trainer, pl_module)
        patience = self.config.patience * self.config.check_every
        if late or (patience and self.validation and step - self.best_step >= patience):
            trainer.should_stop = True

    def _move(self, model: nn.Module, decay: float) -> None:
        """Move the averaged weights towards the model's, which stay the same tensors all through training."""
        if self.pairs is None:
            state = model.state_dict()
            floating = [name for name, mean in self.average.items() if mean.is_floating_point()]
            self.pairs = [self.average[name] for name in floating], [state[name] for name in floating]
        means, current = self.pairs
        get_ema_multi_avg_fn(decay)(means, [new.to(mean) for mean, new in zip(means, current, strict=True)], 1)

    def _late(self, pl_module: Any) -> bool:
        """Whether the time limit leaves no more than a last validation and what follows training."""
        if self.config.time_limit is None:
            return False
        spent = time.monotonic() - pl_module.started
        return spent + (1 + self.config.checks_after) * self.seconds > self.config.time_limit

    def _check(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if pl_module.losses:
            float(pl_module.losses[-1])  # a GPU has done all steps before the validation is timed
        step, began = trainer.global_step, time.monotonic()
        score = self._score(pl_module) if self.validation else -float(step)
        self.seconds = time.monotonic() - began
        if not math.isfinite(score):
            score = math.inf
        best = self.scores.get(self.best_step, math.inf)
        self.scores[step] = score
        if not self.best or score < best:
            self.best_step = step
            self.best = {name: value.clone() for name, value in self.average.items()}
        if self.validation and trainer.training and step:
            pl_module.log("val_loss", score, prog_bar=True, batch_size=1, rank_zero_only=True)

    def _score(self, pl_module: Any) -> float:
        """Loss per observed label of the averaged weights on the validation windows."""
        model = pl_module.model
        current = weights_of(model)
        model.load_state_dict(self.average)
        model.eval()
        total, count = 0.0, 0.0
        with torch.no_grad():
            for pair in self.validation:
                batch, labels = (part.to(pl_module.device) for part in pair)
                loss, weight = model.loss_sum(batch, labels)
                total, count = total + float(loss), count + float(weight)
        model.train()
        model.load_state_dict(current)
        return total / count if count else math.inf

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("average", "best", "best_step", "scores")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.pairs = None
        for name, value in copy.deepcopy(state_dict).items():
            setattr(self, name, value)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """A detached copy of a model's parameters and buffers."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def train(
    model: nn.Module,
    config: TrainConfig,
    loader: Callable[[int, int, int], Pairs],
    validation: Sequence[tuple[Batch, Labels]],
    *,
    steps_per_epoch: int,
    checkpoint_dir: str | Path | None = None,
    logger: Any = False,
    callbacks: Sequence[pl.Callback] = (),
    verbose: bool = True,
) -> TrainResult:
    """Train `model` in place and leave it with its best weights, in evaluation mode, on the CPU.

    loader(rank, world_size, first_step) gives this process's batches from a step on. With a checkpoint folder the
    state is saved there at every validation; a run that was killed goes on from it, and ends with the same weights
    as one that was not. The file is removed when the run is done, and the folder if it is empty then.
    """
    hardware = resolve_hardware(config)
    steps = config.max_epochs * steps_per_epoch if config.max_epochs else config.max_steps
    module = ForecastModule(model, config, loader, steps, watched=verbose or bool(logger) or bool(callbacks))
    keep = KeepBest(config, validation)
    path = Path(checkpoint_dir) / CHECKPOINT if checkpoint_dir else None
    started = time.monotonic()
    with torch.random.fork_rng(devices=()), quiet(verbose):
        all_callbacks = [keep, *_own_callbacks(config, checkpoint_dir, verbose), *callbacks]
        trainer = _trainer(hardware, steps, all_callbacks, logger, checkpoint_dir, verbose)
        resume = str(path) if path and path.exists() else None
        if resume:
            _check_resumable(resume)
        trainer.fit(module, ckpt_path=resume, weights_only=True if resume else None)
    model.load_state_dict(keep.best or keep.average)
    model.cpu().eval()
    if path and trainer.is_global_zero:
        path.unlink(missing_ok=True)
        if not any(path.parent.iterdir()):
            path.parent.rmdir()
    return TrainResult(
        validation={s: v for s, v in keep.scores.items() if validation},
        best_step=keep.best_step,
        steps=trainer.global_step,
        seconds=time.monotonic() - started,
        train_loss=torch.stack(module.losses).tolist() if module.losses else [],
    )


def _trainer(
    hardware: TrainConfig,
    steps: int,
    callbacks: list[pl.Callback],
    logger: Any,
    checkpoint_dir: str | Path | None,
    verbose: bool,
) -> pl.Trainer:
    return pl.Trainer(
        accelerator=hardware.accelerator,
        devices=hardware.devices,
        strategy=hardware.strategy,
        precision=hardware.precision,  # type: ignore[arg-type]
        max_steps=steps,
        max_epochs=-1,
        gradient_clip_val=hardware.gradient_clip or None,
        logger=logger,
        callbacks=callbacks,
        enable_progress_bar=verbose,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        use_distributed_sampler=False,
        limit_val_batches=0,
        log_every_n_steps=10,
        default_root_dir=str(checkpoint_dir) if checkpoint_dir else None,
    )


def _check_resumable(path: str) -> None:
    """ValueError for a checkpoint that cannot be read; no code in it is ever run."""
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} is damaged or no training checkpoint: delete it to train from the start") from error


def _own_callbacks(config: TrainConfig, checkpoint_dir: str | Path | None, verbose: bool) -> list[pl.Callback]:
    own: list[pl.Callback] = []
    if verbose:
        own.append(TQDMProgressBar(refresh_rate=10))
    if checkpoint_dir is not None:
        own.append(
            ModelCheckpoint(
                dirpath=str(checkpoint_dir),
                filename=CHECKPOINT.removesuffix(".ckpt"),
                every_n_train_steps=config.check_every,
                enable_version_counter=False,
                save_top_k=1,
            )
        )
    return own


def resolve_hardware(config: TrainConfig) -> TrainConfig:
    """The configuration with accelerator, devices, strategy and precision that this machine has.

    What is asked for and missing falls back (GPU to CPU, bf16 to float32 on a CPU, DDP to one process where there is
    one device), and a message through the package's logger says so.
    """
    gpu = torch.cuda.is_available()
    mps = torch.backends.mps.is_available()
    told: list[str] = []
    accelerator, devices, strategy = config.accelerator, config.devices, config.strategy
    precision = config.precision or "32-true"
    if accelerator in ("gpu", "cuda") and not (gpu or mps):
        told.append(f"accelerator={accelerator!r}: no GPU found, training on the CPU")
        accelerator = "cpu"
    if accelerator == "auto":
        accelerator = "gpu" if gpu else "mps" if mps else "cpu"
        if accelerator == "cpu" and (config.precision or config.strategy != "auto"):
            told.append("accelerator='auto': no GPU found, training on the CPU")
    if accelerator == "cpu":
        if devices in ("auto", -1, "-1"):
            devices = 1
        if precision in ("bf16-mixed", "16-mixed", "bf16-true", "16-true"):
            told.append(f"precision={precision!r}: the CPU trains in float32")
            precision = "32-true"
    count = torch.cuda.device_count() if devices in ("auto", -1, "-1") else int(devices)
    if strategy.startswith("ddp") and count == 1:
        told.append(f"strategy={strategy!r}: one device found, training in one process")
        strategy = "auto"
    for message in told:
        LOG.warning(message)
    return replace(config, accelerator=accelerator, devices=devices, strategy=strategy, precision=precision)


@contextlib.contextmanager
def quiet(verbose: bool) -> Iterator[None]:
    """Lightning's tips, and unless `verbose` its messages, kept off the screen for the duration of a fit."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for pattern in (".*does not have many workers.*", ".*checkpoint directory.*", ".*`isinstance.*LeafSpec.*"):
            warnings.filterwarnings("ignore", pattern)
        warnings.filterwarnings("ignore", module="lightning.*")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
