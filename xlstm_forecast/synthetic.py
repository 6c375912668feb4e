"""A generator of diverse series in plain torch, for pre-training, tests and demos: no data licence is involved.

A series is level, trend, up to two seasons and up to two noises, put together by addition or by multiplication, or,
where asked for, a level that grows and wanders times its seasons; and then sometimes bent: regimes joined, levels
shifted, counted, clipped, rounded, spiked. All steps are vectorised over series and time. Every linear noise (white,
AR, MA, random walks) is one impulse response, applied by one FFT.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
import torch
from torch import Generator, Tensor

from .surroundings import undisturbed

PERIODS = (4, 5, 6, 7, 8, 10, 12, 13, 24, 26, 30, 48, 52, 60, 96, 144, 168, 365)
NESTED = {4: 52, 7: 365, 12: 60, 13: 52, 24: 168, 48: 336, 96: 672, 144: 1008}
PROFILES, PHASES, CHUNK = 512, 256, 256
GROWING = {4: 0.6, 12: 0.6, 52: 0.4, 7: 0.3, 365: 0.3, 0: 0.3}  # share of series by first season; of others .05


@dataclass(frozen=True, kw_only=True)
class Synthetic:
    """Generated series, with what a model may be told about them."""

    values: Tensor  # (n, T) float64; NaN where missing
    period: Tensor  # (n,) int64, the first season in steps; 0 where there is none
    second: Tensor  # (n,) int64, the second season; 0 where there is none


class _Draw:
    """Random numbers for n series from one generator: the global one is never touched."""

    def __init__(self, n: int, source: int | Generator) -> None:
        self.n = n
        self.generator = source if isinstance(source, Generator) else Generator().manual_seed(source)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(self.n, *shape, generator=self.generator)

    def uniform(self, low: float = 0.0, high: float = 1.0, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(self.n, *(shape or (1,)), generator=self.generator)

    def log_uniform(self, low: float, high: float) -> Tensor:
        return self.uniform(math.log(low), math.log(high)).exp()

    def chance(self, share: float) -> Tensor:  # (n, 1) bool
        return self.uniform() < share

    def choice(self, weights: tuple[float, ...]) -> Tensor:  # (n,) int64
        return torch.multinomial(torch.tensor(weights), self.n, replacement=True, generator=self.generator)

    def integers(self, high: int, *shape: int) -> Tensor:
        return torch.randint(high, (self.n, *shape), generator=self.generator)


@undisturbed()
def generate(
    count: int, length: int, *, seed: int = 0, missing: float = 0.0, simple: bool = False, growing: bool = False
) -> Synthetic:
    """`count` series of `length` steps; the first k are the same for every count.

    missing  the share of series of which some values are NaN (single ones and runs)
    simple   only seasons, trends and linear noise: no growth, regimes, counts, clipping and the like
    growing  whether some series, most of those of months and quarters, grow like prices, sales and visitors do
    Raises ValueError for count or length below 1 or a share outside [0, 1].
    """
    if count < 1 or length < 1:
        raise ValueError(f"count and length must be at least 1, found {count} and {length}")
    if not 0 <= missing <= 1:
        raise ValueError(f"missing is a share between 0 and 1, found {missing}")
    parts = list(_chunks(count, length, seed, missing, simple, growing and not simple))
    values, period, second = (torch.cat(column)[:count] for column in zip(*parts, strict=True))
    return Synthetic(values=values, period=period, second=second)


def frame(
    count: int, length: int, *, freq: str | None = "D", start: str = "2000-01-01", seed: int = 0, missing: float = 0.0
) -> pd.DataFrame:
    """The same series as a long frame: unique_id ("s0000", ...), ds, y; `freq=None` numbers the steps instead."""
    values = generate(count, length, seed=seed, missing=missing).values.numpy()
    time = np.arange(length) if freq is None else pd.date_range(start, periods=length, freq=freq)
    ids = np.repeat([f"s{i:04d}" for i in range(count)], length)
    return pd.DataFrame({"unique_id": ids, "ds": np.tile(time, count), "y": values.ravel()})


def _chunks(
    count: int, length: int, seed: int, missing: float, simple: bool, growing: bool
) -> Iterator[tuple[Tensor, ...]]:
    for number in range(-(-count // CHUNK)):
        draw = _Draw(CHUNK, seed * 1_000_003 + number)
        period, second = _periods(draw)
        values = _compose(draw, length, period, second, simple)
        if growing:
            values = _with_growth(draw, values, period, second)
        if not simple:
            values = _bend(draw, values)
        values = values.double() * draw.log_uniform(0.05, 5000.0) + 0.0
        yield torch.where(_holes(draw, length, missing), torch.nan, values), period, second


def _compose(draw: _Draw, length: int, period: Tensor, second: Tensor, simple: bool) -> Tensor:
    """Level, trend, seasons and noise, added or multiplied; (n, T) of order one."""
    seasons = draw.log_uniform(0.1, 2.0) * _season(draw, length, period)
    seasons = seasons + draw.log_uniform(0.05, 1.0) * _season(draw, length, second)
    noise = draw.log_uniform(0.02, 1.0) * _standard(_noise(draw, length))
    noise = noise + draw.chance(0.5) * draw.log_uniform(0.02, 0.5) * _standard(_noise(draw, length))
    if not simple:
        noise = noise * _spread(draw, length, seasons)
    trend = draw.log_uniform(0.05, 2.0) * _trend(draw, length)
    smooth = draw.chance(0.15) * draw.log_uniform(0.1, 1.5) * _gaussian_process(draw, length, period)
    total = trend + seasons + noise + smooth
    level = torch.where(draw.chance(0.7), draw.log_uniform(0.5, 30.0), draw.normal(1))
    multiplied = level.abs() * (total.clamp(-20, 20) * draw.uniform(0.1, 0.6)).clamp(-8, 8).exp()
    return torch.where(draw.chance(0.35), multiplied, level + total)


def _with_growth(draw: _Draw, values: Tensor, period: Tensor, second: Tensor) -> Tensor:
    """Some of the series (n, T), the more the more their season is one of business, replaced by growing ones."""
    share = torch.full(period.shape, 0.05)
    for season, value in GROWING.items():
        share = torch.where(period == season, value, share)
    chosen = (draw.uniform().squeeze(1) < share).nonzero().squeeze(1)
    if len(chosen):
        part = _Draw(len(chosen), draw.generator)
        values[chosen] = _growing(part, values.shape[1], period[chosen], second[chosen])
    return values


def _growing(draw: _Draw, length: int, period: Tensor, second: Tensor) -> Tensor:
    """(n, T): a level that walks, with a growth rate that wanders over years, times seasons and noise; positive."""
    free = draw.log_uniform(1, 250).squeeze(1)  # steps a year where there is no season
    year = torch.where(period > 0, torch.maximum(period, second).float(), free)
    year = torch.where(period == 7, 365.0, year)[:, None]
    lag = torch.arange(length)
    rate = _filtered(draw.normal(2 * length), torch.exp(-lag / (year * draw.log_uniform(1, 10))))
    rate = draw.log_uniform(0.01, 0.2) * _standard(rate) + (0.02 + 0.03 * draw.normal(1))  # a year
    walk = draw.log_uniform(0.01, 0.25) * draw.normal(length) / year.sqrt()
    level = (rate / year + walk).cumsum(1)
    level = level - level.mean(1, keepdim=True)
    seasons = draw.log_uniform(0.01, 0.5) * _season(draw, length, period)
    seasons = seasons + draw.log_uniform(0.01, 0.3) * _season(draw, length, second)
    noise = draw.log_uniform(0.003, 0.15) * _standard(_noise(draw, length))
    return (level + seasons + noise).clamp(-8, 8).exp()


def _periods(draw: _Draw) -> tuple[Tensor, Tensor]:
    """First season: none for one in six, else from the table or (a quarter) log-uniform; a second one nests it."""
    table = torch.tensor(PERIODS)[draw.integers(len(PERIODS))]
    free = draw.log_uniform(3, 400).long().squeeze(1)
    first = torch.where(draw.chance(0.25).squeeze(1), free, table)
    first = torch.where(draw.chance(1 / 6).squeeze(1), 0, first)
    nested = torch.tensor([NESTED.get(p, 0) for p in first.tolist()])
    multiple = first * (3 + draw.integers(6))
    second = torch.where(nested > 0, nested, multiple)
    return first, torch.where(draw.chance(0.35).squeeze(1), second, 0)


@lru_cache(maxsize=1)
def _profiles() -> Tensor:
    """Table of PROFILES seasonal shapes over PHASES phases, each of mean 0 and variance 1; fixed, not seeded."""
    draw = _Draw(PROFILES, 7)
    phase = torch.arange(PHASES) / PHASES  # (F,)
    order = torch.arange(1, 9)
    weight = draw.normal(8) * order.float() ** -draw.uniform(0.5, 3.0)  # (n, 8)
    shift = draw.uniform(0, 1, 8)
    angle = 2 * math.pi * (order[:, None] * phase + shift[..., None])  # (n, 8, F)
    harmonic = (weight[..., None] * angle.cos()).sum(1)
    slots = 2 + draw.integers(23, 1)
    free = draw.normal(24).gather(1, (phase * slots).long())
    on_off = ((phase + draw.uniform()) % 1 < draw.uniform(0.05, 0.6)).float()
    peaky = (draw.log_uniform(1, 30) * (angle[:, 0].cos() - 1)).exp()
    rectified = (angle[:, 0].cos() + draw.uniform(-0.4, 0.4)).relu()
    kind = draw.choice((0.45, 0.2, 0.1, 0.1, 0.15))
    shapes = torch.stack((harmonic, free, on_off, peaky, rectified))  # (5, n, F)
    return _standard(shapes[kind, torch.arange(PROFILES)])


def _season(draw: _Draw, length: int, period: Tensor) -> Tensor:
    """(n, T): a profile repeated with the period; some drift into another profile, some swell and fade."""
    table, rows = _profiles(), torch.arange(draw.n)[:, None]
    step = torch.arange(length) + draw.integers(1000, 1)
    position = (step % period.clamp(min=1)[:, None]) / period.clamp(min=1)[:, None] * PHASES  # (n, T)
    low = position.long().clamp(max=PHASES - 1)
    rest = position - low
    both = table[draw.integers(PROFILES, 2)]  # (n, 2, F)
    shapes = [(1 - rest) * both[rows, i, low] + rest * both[rows, i, (low + 1) % PHASES] for i in (0, 1)]
    share = _ramp(draw, length) * draw.chance(0.4)
    amplitude = torch.where(draw.chance(0.3), (0.4 * _slow(draw, length)).exp(), 1.0)
    return amplitude * ((1 - share) * shapes[0] + share * shapes[1]) * (period > 0)[:, None]


def _ramp(draw: _Draw, length: int) -> Tensor:
    """(n, T): a logistic step from 0 to 1 at a random place and of random steepness."""
    time = torch.linspace(0, 1, length)
    return torch.sigmoid((time - draw.uniform()) * draw.log_uniform(2, 60))


def _slow(draw: _Draw, length: int) -> Tensor:
    """(n, T): a smooth random curve of unit variance, a sum of a few slow waves."""
    time = torch.linspace(0, 1, length)
    waves = draw.uniform(0.2, 4.0, 4)[..., None] * time + draw.uniform(0, 1, 4)[..., None]
    return (draw.normal(4)[..., None] * (2 * math.pi * waves).cos()).sum(1) / math.sqrt(2)


def _trend(draw: _Draw, length: int) -> Tensor:
    """(n, T): none, linear, piecewise linear, exponential, logistic or smooth."""
    time = torch.linspace(0, 1, length)
    knots = draw.uniform(0, 1, 3)[..., None]
    piecewise = (draw.normal(3)[..., None] * (time - knots).relu()).sum(1) * 2
    rate = draw.normal(1) * 2
    exponential = (rate.exp() * 0.3 * time).exp() - 1
    shapes = torch.stack(
        (
            torch.zeros(draw.n, length),
            draw.normal(1) * time * 3,
            piecewise,
            exponential.clamp(max=30) * draw.normal(1).sign(),
            _ramp(draw, length) * draw.normal(1) * 3,
            _slow(draw, length),
        )
    )
    return shapes[draw.choice((0.3, 0.2, 0.15, 0.1, 0.1, 0.15)), torch.arange(draw.n)]


def _noise(draw: _Draw, length: int) -> Tensor:
    """(n, T): shocks, some with heavy tails, through the impulse response of an ARIMA-like filter."""
    lag = torch.arange(length).float()
    shocks = draw.normal(2 * length)
    tails = draw.normal(3, 2 * length).square().mean(1).sqrt()  # Student-t of 3 degrees of freedom, below
    shocks = torch.where(draw.chance(0.2), (shocks / tails).clamp(-30, 30), shocks)
    decay = draw.uniform(0.1, 0.98)
    radius, angle = draw.uniform(0.7, 0.99), 2 * math.pi / draw.log_uniform(3, 60)
    white = (lag == 0).float().expand(draw.n, length)
    responses = torch.stack(
        (
            white,
            decay**lag,  # AR(1)
            radius**lag * ((lag + 1) * angle).sin() / angle.sin(),  # AR(2) with complex roots: cycles
            white + draw.normal(1) * (lag == 1) + draw.normal(1) * (lag == 2),  # MA(2)
            torch.ones(draw.n, length),  # random walk
            (1 - 0.98 ** (lag + 1)).expand(draw.n, length) / 0.02,  # nearly integrated twice
        )
    )
    kind = draw.choice((0.25, 0.3, 0.1, 0.1, 0.2, 0.05))
    return _filtered(shocks, responses[kind, torch.arange(draw.n)])


def _filtered(shocks: Tensor, response: Tensor) -> Tensor:
    """(n, T): what shocks (n, 2 T) become through an impulse response of T steps, the last half of it."""
    size = 2 * shocks.shape[1]
    filtered = torch.fft.irfft(torch.fft.rfft(shocks, size) * torch.fft.rfft(response, size), size)
    return filtered[:, shocks.shape[1] // 2 : shocks.shape[1]]


def _standard(x: Tensor) -> Tensor:
    """Mean 0 and variance 1 along time; constant rows become 0."""
    x = x - x.mean(1, keepdim=True)
    return x / x.square().mean(1, keepdim=True).sqrt().clamp(min=1e-6)


def _spread(draw: _Draw, length: int, seasons: Tensor) -> Tensor:
    """(n, T): how the size of the noise changes, with time or with the season."""
    with_time = (0.7 * _slow(draw, length)).exp()
    with_season = (0.5 * _standard(seasons)).clamp(-3, 3).exp()
    kind = draw.uniform()
    return torch.where(kind < 0.2, with_time, torch.where(kind < 0.35, with_season, 1.0))


def _gaussian_process(draw: _Draw, length: int, period: Tensor, features: int = 16) -> Tensor:
    """(n, T): random Fourier features of an RBF kernel, on the circle of the period for half of the series."""
    time = torch.arange(length).float()
    scale = length * draw.log_uniform(0.01, 0.5)
    free = draw.normal(features) / scale  # (n, features)
    circle = 2 * math.pi * (1 + draw.integers(6, features)) / period.clamp(min=2)[:, None]
    frequency = torch.where(draw.chance(0.5) & (period > 0)[:, None], circle, free)
    shift = draw.uniform(0, 2 * math.pi, features)
    waves = torch.zeros(draw.n, length)
    for k in range(features):
        waves += torch.cos(frequency[:, k, None] * time + shift[:, k, None])
    return waves * math.sqrt(2 / features)


def _bend(draw: _Draw, x: Tensor) -> Tensor:
    """Regimes, level shifts, spikes, counts, intermittency, clipping and rounding: each on a part of the series."""
    n, length = x.shape
    time, spread = torch.arange(length), x.std(1, keepdim=True).clamp(min=1e-6) if length > 1 else torch.ones(n, 1)
    cut = draw.uniform() * length
    x = torch.where(draw.chance(0.06) & (time >= cut), x.roll(1, 0), x)  # another series from here on
    x = x + draw.chance(0.1) * (time >= draw.uniform() * length) * draw.normal(1) * 3 * spread
    x = torch.where(draw.chance(0.05), 0.5 * x + 0.5 * x.roll(2, 0), x)
    spikes = draw.chance(0.08) & (draw.uniform(0, 1, length) < 0.01)
    x = x + spikes * draw.uniform(2, 8) * spread * draw.normal(1).sign()
    mean = (x - x.amin(1, keepdim=True)) / spread * draw.log_uniform(0.2, 8)
    counts = torch.poisson(mean.clamp(0, 1e4), generator=draw.generator)
    counts = counts * ((draw.uniform(0, 1, length) < draw.uniform(0.1, 0.9)) | draw.chance(0.5))  # intermittent
    x = torch.where(draw.chance(0.1), counts, x)
    low, high = x.quantile(0.3, 1, keepdim=True), x.quantile(0.9, 1, keepdim=True)
    x = torch.where(draw.chance(0.05), x.maximum(low) - low, x)
    x = torch.where(draw.chance(0.03), x.minimum(high), x)
    grain = spread * draw.log_uniform(0.05, 0.5)
    return torch.where(draw.chance(0.08), (x / grain).round() * grain, x)


def _holes(draw: _Draw, length: int, share: float) -> Tensor:
    """(n, T) bool: missing values, single ones and one run, in a share of the series; never the whole series."""
    single = draw.uniform(0, 1, length) < draw.uniform(0, 0.15)
    first, run = draw.uniform() * length, draw.log_uniform(1, 1 + length / 4)
    time = torch.arange(length)
    holes = draw.chance(share) & (single | ((time >= first) & (time < first + run)))
    return holes & ~holes.all(1, keepdim=True)
