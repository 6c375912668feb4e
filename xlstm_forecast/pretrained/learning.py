"""How the network is trained: windows of generated series, a balanced loss, and a run that can be stopped anywhere."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor

from .. import synthetic
from ..checkpoint import load_checkpoint, save_checkpoint
from ..files import replacing
from .lookups import PATCH, transform
from .network import Network, NetworkConfig

POOL, LENGTH = 4096, 2048  # series generated at a time, and their steps
PARTS = ("network", "average", "optimizer")  # of a run, kept with it
WRONG = 0.12  # share of windows that are told a wrong season


@dataclass(frozen=True, kw_only=True)
class LearningConfig:
    """A training run; a batch holds about `tokens` patches, so its rows depend on how long its windows are."""

    steps: int = 16000
    tokens: int = 2560
    lr: float = 2e-3
    warmup: int = 200
    weight_decay: float = 0.01
    decay: float = 0.998  # of the averaged weights
    seed: int = 0
    growing: bool = False  # whether some series grow, as prices and sales do


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A batch of windows. T = context, S = steps of the horizon."""

    context: Tensor  # (B, T) float64, NaN where missing or before the start
    future: Tensor  # (B, S) float64, NaN where missing
    periods: Tensor  # (B, 2)


class Samples:
    """Batches of windows of generated series; batch k of a pool depends on the seed alone."""

    def __init__(self, config: LearningConfig):
        self.config = config

    def pool(self, number: int) -> Iterator[Sample]:
        """The batches cut from one pool of series."""
        seed = 1000 * self.config.seed + number
        made = synthetic.generate(POOL, LENGTH, seed=seed, missing=0.1, growing=self.config.growing)
        draw = Generator().manual_seed(7_000_003 * self.config.seed + number)
        rows = torch.randperm(POOL, generator=draw).repeat(3)
        periods = torch.stack((made.period, made.second), 1)
        at = 0
        while at < len(rows):
            future = int(math.exp(_uniform(draw, 0.0, math.log(48.99))))
            total = min(80, max(future + 4, int(math.exp(_uniform(draw, math.log(8), math.log(110))))))
            size = min(self.config.tokens // total, len(rows) - at)
            chosen = rows[at : at + size]
            at += size
            yield self._cut(draw, made.values[chosen], periods[chosen], total - future, future)

    def _cut(self, draw: Generator, values: Tensor, periods: Tensor, past: int, future: int) -> Sample:
        """Windows of `past` + `future` patches at random places; some have a short history, some are turned over."""
        count, length = len(values), (past + future) * PATCH
        start = torch.randint(LENGTH - length + 1, (count, 1), generator=draw)
        window = values.gather(1, start + torch.arange(length))
        window = torch.where(torch.rand(count, 1, generator=draw) < 0.3, -window, window)
        context, ahead = window[:, : past * PATCH], window[:, past * PATCH :]
        short = torch.rand(count, 1, generator=draw) < 0.5
        most = math.log(past * PATCH)
        history = torch.exp(math.log(8) + torch.rand(count, 1, generator=draw) * (most - math.log(8)))
        history = torch.where(short, history, past * PATCH).long()
        context = torch.where(torch.arange(past * PATCH) >= past * PATCH - history, context, torch.nan)
        return Sample(context=context, future=ahead, periods=self._told(draw, periods))

    def _told(self, draw: Generator, periods: Tensor) -> Tensor:
        """The seasons that the network is told: mostly the true ones, sometimes swapped, wrong or none."""
        count = len(periods)
        table = torch.tensor(synthetic.PERIODS)
        wrong = table[torch.randint(len(table), (count,), generator=draw)]
        first = torch.where(torch.rand(count, generator=draw) < WRONG, wrong, periods[:, 0])
        second = periods[:, 1]
        other = table[torch.randint(len(table), (count,), generator=draw)]
        second = torch.where((second == 0) & (torch.rand(count, generator=draw) < 0.3), other, second)
        swap = torch.rand(count, generator=draw) < 0.15
        told = torch.where(swap[:, None], torch.stack((second, first), 1), torch.stack((first, second), 1))
        return torch.where((torch.rand(count, 1, generator=draw) < 0.05), 0, told)


def _uniform(draw: Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=draw))


def loss(network: Network, sample: Sample) -> Tensor:
    """Mean pinball loss of the horizon in units of what simple forecasts miss by there; nearer steps count more.

    The patches of the context, whose units know what follows them, count a tenth. Large losses enter by their
    logarithm, so that series that run away do not rule the mean.
    """
    future = sample.future.shape[1] // PATCH
    forecast, window = network(sample.context, sample.periods, future, behind=True)
    seen = sample.future.isfinite()
    y = transform(sample.future.nan_to_num(), window.location, window.scale)
    difficulty = _difficulty(window.values, window.observed, sample.periods[:, :1], sample.future.shape[1])
    steps = torch.arange(sample.future.shape[1])
    near = (1 + steps // PATCH).float().rsqrt()
    ahead = _pinball(forecast[:, -len(steps) :], y, network.levels) * near * seen
    total = ahead.sum(1) / (near * seen).sum(1).clamp(min=1) / difficulty
    total = torch.where(total > 4, 4 + (total.clamp(min=4) / 4).log(), total)
    late = window.observed.clone()
    late[:, : window.values.shape[1] // 4] = False  # too little before it
    behind = _pinball(forecast[:, : window.values.shape[1]], window.values, network.levels) * late
    rest = behind.sum(1) / late.sum(1).clamp(min=1) / window.spread[:, 0]
    return (total + 0.1 * rest.clamp(max=4)).mean()


def _pinball(forecast: Tensor, y: Tensor, levels: Tensor) -> Tensor:
    error = y[..., None] - forecast
    return torch.maximum(levels * error, (levels - 1) * error).mean(-1)


def _difficulty(values: Tensor, observed: Tensor, period: Tensor, horizon: int) -> Tensor:
    """(B,) mean absolute change of the context over half the horizon, or over that in whole seasons if it is less."""
    half = torch.full_like(period, max(1, horizon // 2))
    season = period.clamp(min=1)
    place = torch.arange(values.shape[1]).expand(len(values), -1)
    best = torch.full((len(values),), torch.inf)
    for lag in (half, (half + season - 1) // season * season):
        before = place - lag
        usable = observed & (before >= 0) & observed.gather(1, before.clamp(min=0))
        change = (values - values.gather(1, before.clamp(min=0))).abs() * usable
        count = usable.sum(1)
        best = torch.minimum(best, torch.where(count >= 4, change.sum(1) / count.clamp(min=1), torch.inf))
    return torch.where(best.isfinite(), best, torch.ones_like(best)) + 0.05


class Run:
    """A training run that goes on from its folder after a stop: weights, averages, moments and step are kept there."""

    def __init__(self, network: NetworkConfig, config: LearningConfig, folder: Path | None = None):
        self.config, self.folder = config, folder
        self.network = Network(network, Generator().manual_seed(config.seed))
        self.average = Network(network, Generator().manual_seed(config.seed))
        still = [p for p in self.network.parameters() if p.ndim < 2]
        moving = [p for p in self.network.parameters() if p.ndim >= 2]
        self.optimizer = torch.optim.AdamW(
            [{"params": moving, "weight_decay": config.weight_decay}, {"params": still, "weight_decay": 0.0}],
            lr=config.lr,
            betas=(0.9, 0.98),
        )
        self.step = self.pool = 0
        if folder is not None and (folder / "run.pt").exists():
            self._load(folder / "run.pt")

    def begin(self, network: Network) -> None:
        """Take the weights of a network of the same sizes to begin with."""
        for own in (self.network, self.average):
            own.load_state_dict(network.state_dict())

    def go_on(self, report: Callable[[int, float], None] | None = None, seconds: float = math.inf) -> bool:
        """Train until the last step (True) or until the time is over (False); kept at the end of every pool."""
        stop = time.monotonic() + seconds
        samples = Samples(self.config)
        while self.step < self.config.steps and time.monotonic() < stop:
            total, count = 0.0, 0
            for sample in samples.pool(self.pool):
                if self.step < self.config.steps:
                    total, count = total + self._train(sample), count + 1
            self.pool += 1
            if self.folder is not None:
                self._save(self.folder / "run.pt")
            if report is not None:
                report(self.step, total / max(1, count))
        return self.step >= self.config.steps

    def _train(self, sample: Sample) -> float:
        config = self.config
        share = self.step / config.steps
        rate = config.lr * min(1.0, (self.step + 1) / config.warmup) * 0.5 * (1 + math.cos(math.pi * share))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        value = loss(self.network, sample)
        value.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        decay = min(config.decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for mean, new in zip(self.average.parameters(), self.network.parameters(), strict=True):
                mean.lerp_(new, 1 - decay)
        return float(value.detach())

    def _save(self, path: Path) -> None:
        state = {name: getattr(self, name).state_dict() for name in PARTS} | {"step": self.step, "pool": self.pool}
        with replacing(path) as file:
            torch.save(state, file)

    def _load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        for name in PARTS:
            getattr(self, name).load_state_dict(state[name])
        self.step, self.pool = state["step"], state["pool"]


def keep(network: Network, path: str | Path, *learning: LearningConfig) -> None:
    """Write a trained network: weights as float16, sizes and how it, or those that it is the mean of, were trained."""
    tensors = {name: value.half() for name, value in network.state_dict().items()}
    told = [asdict(one) for one in learning]
    save_checkpoint(path, tensors, {"network": network.config.to_dict(), "learning": told})


def read(path: str | Path) -> Network:
    """A network written by `keep`, to forecast with."""
    tensors, config = load_checkpoint(path)
    network = Network(NetworkConfig.from_dict(config["network"]))
    network.load_state_dict({name: value.float() for name, value in tensors.items()})
    return network.requires_grad_(False).eval()


def averaged(networks: Sequence[Network]) -> Network:
    """A network whose weights are the mean of those of others, all trained from one start (Wortsman et al. 2022).

    Raises ValueError where their sizes differ.
    """
    first = networks[0]
    for other in networks[1:]:
        if other.config != first.config:
            raise ValueError(f"networks of different sizes have no average: {first.config}, {other.config}")
    states = [network.state_dict() for network in networks]
    mean = {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}
    out = Network(first.config)
    out.load_state_dict(mean)
    return out.requires_grad_(False).eval()
