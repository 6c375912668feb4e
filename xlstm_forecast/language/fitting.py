"""Training and scoring of language models; a whole run from a configuration."""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import detach_state
from .config import LanguageConfig, load_config
from .model import xLSTM
from .text import LanguageModelingDataset, Tokenizer, check_files

LOG = logging.getLogger("xlstm_forecast")
MODEL_FILE, TOKENIZER_FILE = "model.safetensors", "tokenizer.json"


def set_seed(seed: int) -> None:
    """Seed Python's, numpy's and torch's global generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def get_device(name: str = "auto") -> torch.device:
    """The device of a name; "auto": CUDA where there is one, else Apple's MPS, else the CPU."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


@dataclass(frozen=True, kw_only=True)
class TrainLog:
    """What training did: the loss of every step, tokens seen, seconds."""

    losses: list[float]
    tokens: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Score:
    """Negative log-likelihood of a text, in nats per token, and what follows from it."""

    nats: float
    tokens: int
    num_bytes: int

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.nats, 700.0))

    @property
    def bits_per_byte(self) -> float:
        return self.nats * self.tokens / math.log(2) / self.num_bytes


def check_trainable(model: nn.Module, dataset: LanguageModelingDataset) -> None:
    """ValueError where the model reads what it is to predict, or knows another number of tokens than the data set."""
    if getattr(model, "bidirectional", False):
        raise ValueError(
            "a bidirectional model cannot be trained to predict the next token: its reverse pass has read it; build it "
            "with bidirectional=False"
        )
    if isinstance(model, xLSTM):
        model.check_tokenizer(dataset.tokenizer)


def rate(step: int, steps: int, config: LanguageConfig) -> float:
    """Share of the learning rate at a step: linear warm-up, then a cosine to a tenth, or constant."""
    warm = min(config.warmup_steps, steps // 5)
    if step < warm:
        return (step + 1) / (warm + 1)
    if config.schedule == "constant":
        return 1.0
    return 0.55 + 0.45 * math.cos(math.pi * (step - warm) / max(1, steps - warm))


def total_steps(dataset: LanguageModelingDataset, config: LanguageConfig) -> int:
    """Optimiser steps of a run: max_steps, or all windows in every epoch."""
    return config.max_steps or config.epochs * len(dataset.batches(config.batch_size))


def scheduled(optimizer: torch.optim.Optimizer, steps: int, config: LanguageConfig) -> Any:
    """The scheduler of a run: multiples of the rates that the optimiser has now, whatever ran with it before."""
    for group in optimizer.param_groups:
        group.pop("initial_lr", None)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps, config))


def next_token_loss(
    model: nn.Module, criterion: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, state: Any
) -> tuple[Tensor, Any]:
    """criterion(logits (B * T, vocab), targets (B * T,)) of a window, and the state after it, without its graph."""
    logits, state = model(x, state)
    return criterion(logits.flatten(0, 1), y.flatten()), None if state is None else detach_state(state)


def train(
    model: nn.Module,
    dataset: LanguageModelingDataset,
    optimizer: torch.optim.Optimizer,
    criterion: Callable[[Tensor, Tensor], Tensor],
    config: LanguageConfig,
    device: torch.device | str = "cpu",
) -> TrainLog:
    """Train by truncated back-propagation through time over contiguous windows; leaves the model in evaluation mode.

    model(ids, state) -> (logits, state), a state of None: it has none. criterion takes logits (N, vocab) and targets
    (N,); give it ignore_index=tokenizer.pad_token_id. The optimiser's learning rates follow `config.schedule` and are
    afterwards what they were. Raises ValueError where vocabularies differ or the model is bidirectional,
    FloatingPointError where the loss is not finite.
    """
    check_trainable(model, dataset)
    batches, steps = dataset.batches(config.batch_size), total_steps(dataset, config)
    rates = [group["lr"] for group in optimizer.param_groups]
    schedule = scheduled(optimizer, steps, config)
    losses: list[float] = []
    started, tokens = time.monotonic(), 0
    model.to(device).train()
    while len(losses) < steps:
        state = None
        for x, y in batches:
            x, y = x.to(device), y.to(device)
            loss, state = next_token_loss(model, criterion, x, y, state if config.carry_state else None)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if config.gradient_clip:
                nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
            tokens += x.numel()
            if not math.isfinite(losses[-1]):
                raise FloatingPointError(f"the loss is {losses[-1]} at step {len(losses)}; lower lr={config.lr}")
            if len(losses) % 100 == 0:
                LOG.info("step %d of %d: loss %.4f", len(losses), steps, losses[-1])
            if len(losses) == steps:
                break
    model.eval()
    for group, lr in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = lr
    return TrainLog(losses=losses, tokens=tokens, seconds=time.monotonic() - started)


@torch.no_grad()
def evaluate(
    model: nn.Module, dataset: LanguageModelingDataset, *, batch_size: int = 1, device: torch.device | str = "cpu"
) -> Score:
    """Score every token of a data set but its first, the state carried from window to window."""
    check_trainable(model, dataset)
    training, total, count, state = model.training, 0.0, 0, None
    model.to(device).eval()
    pad = dataset.tokenizer.pad_token_id
    for x, y in dataset.batches(batch_size):
        x, y = x.to(device), y.to(device).flatten()
        logits, state = model(x, state)
        wide = logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32))
        total += float(F.cross_entropy(wide, y, ignore_index=pad, reduction="sum"))
        count += int((y != pad).sum())
    model.train(training)
    return Score(nats=total / count, tokens=count, num_bytes=dataset.num_bytes)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; vectors, norms, embeddings and recurrent matrices do not, as in the paper's code."""
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        decays = parameter.ndim >= 2 and not any(part in name for part in ("norm", "embedding", "recurrent"))
        (decayed if decays else others).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


@dataclass(frozen=True, kw_only=True)
class LanguageFit:
    """A fitted language model with its tokenizer; `score` is that of the validation text, None where none was given."""

    model: xLSTM
    tokenizer: Tokenizer
    config: LanguageConfig
    log: TrainLog
    score: Score | None

    def complete(self, prompt: str, max_new_tokens: int = 100, **options: Any) -> str:
        """The prompt continued: see `complete`."""
        return complete(self.model, self.tokenizer, prompt, max_new_tokens, **options)


def complete(model: xLSTM, tokenizer: Tokenizer, prompt: str, max_new_tokens: int = 100, **options: Any) -> str:
    """A text continued by the model; options as in `xLSTM.generate`. ValueError where the vocabularies differ."""
    model.check_tokenizer(tokenizer)
    device = next(model.parameters()).device
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer.encode(prompt)]], device=device)
    out = model.generate(ids, max_new_tokens, eos_token_id=tokenizer.eos_token_id, **options)
    return tokenizer.decode(out[0].tolist())


def build_model(config: LanguageConfig, vocab_size: int, generator: torch.Generator | None = None) -> xLSTM:
    """The model that a configuration describes."""
    return xLSTM(
        vocab_size,
        config.embedding_size,
        config.hidden_size,
        config.num_layers,
        config.num_blocks,
        config.dropout,
        config.bidirectional,
        config.lstm_type,
        block=config.block,
        num_heads=config.num_heads,
        conv_kernel=config.conv_kernel,
        tie_embeddings=config.tie_embeddings,
        generator=generator,
    )


def fit_from_config(source: str | Path | Mapping[str, Any], **overrides: Any) -> LanguageFit:
    """A whole run: tokenizer, data, model, training, score, and both files in `output` where that is given.

    source: a YAML file or a mapping with the keys of `LanguageConfig`. The same seed gives the same weights; torch's
    global generator is left as it was.
    """
    config = load_config(source, **overrides)
    device = get_device(config.device)
    check_files("train_data", config.train_data)
    check_files("valid_data", config.valid_data or [])
    tokenizer, fresh = _tokenizer(config)
    dataset, valid = LanguageModelingDataset(config.train_data, tokenizer, config.max_length), None
    if config.valid_data is not None:
        valid = LanguageModelingDataset(config.valid_data, tokenizer, config.max_length)
    dataset.batches(config.batch_size)  # what cannot be had is told now
    if fresh and config.vocab_file is not None:
        tokenizer.save(config.vocab_file)
    model = build_model(config, len(tokenizer), torch.Generator().manual_seed(config.seed)).to(device)
    optimizer = torch.optim.AdamW(parameter_groups(model, config.weight_decay), lr=config.lr)
    criterion = nn.CrossEntropyLoss(ignore_index=tokenizer.pad_token_id)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)  # dropout
        log = train(model, dataset, optimizer, criterion, config, device)
    score = None if valid is None else evaluate(model, valid, device=device)
    if config.output is not None:
        model.save(Path(config.output) / MODEL_FILE)
        tokenizer.save(Path(config.output) / TOKENIZER_FILE)
    return LanguageFit(model=model, tokenizer=tokenizer, config=config, log=log, score=score)


def _tokenizer(config: LanguageConfig) -> tuple[Tokenizer, bool]:
    """The tokenizer of a run, and whether it is a new one."""
    if config.vocab_file is not None and Path(config.vocab_file).is_file():
        return Tokenizer(config.vocab_file), False
    return Tokenizer.train(config.train_data, config.vocab_size, config.tokenizer), True
