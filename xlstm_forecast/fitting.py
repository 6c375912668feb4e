"""From a panel to a trained model: windows, sizes, the model itself, training, and how the horizon's steps correlate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .backbone import seasons
from .batch import Batch, Labels
from .data.frame import Panel
from .data.loader import Loader, Sampler
from .data.windows import Windows
from .defaults import PRESETS, Settings, choose_input_length, choose_patch, choose_validation
from .encoder import EncoderConfig
from .heads import LEVELS
from .models.patch import PatchConfig, PatchModel
from .sampling import correlation, normal_scores
from .scaling import scale_labels

Array = np.ndarray
MAX_VALIDATION = 4096  # windows
BATCH = 1024  # windows per batch where nothing is trained


def with_calendar(panel: Panel) -> Panel:
    """The panel with cyclic calendar features, where its dates cover the cycle twice; none where they are given."""
    if panel.roles.calendar or panel.axis.kind == "int":
        return panel
    seconds = seasons.step_seconds(str(panel.freq))
    span = float(panel.history.max()) * (seconds or 0)
    day, year = 86_400.0, 365.25 * 86_400.0
    cycles = (("hour", day, seconds < day), ("dayofweek", 7 * day, seconds < 2 * day)) if seconds else ()
    names = [name for name, period, finer in cycles if finer and span >= 4 * period]
    if seconds and seconds < 100 * day and span >= 3 * year:
        names.append("dayofyear" if seconds < 20 * day else "month")
    return replace(panel, roles=replace(panel.roles, calendar=tuple(names)))


def settle(panel: Panel, params: dict[str, Any], val_size: int | None) -> Settings:
    """Every choice that the parameters leave open, from the preset, the season and the length of the series."""
    preset = PRESETS[params["presets"]]
    horizon, lengths = params["horizon"], panel.history
    if params["season_length"]:
        season = int(params["season_length"])
    else:
        rows = [panel.target[a : a + n, 0] for a, n in zip(panel.offsets[:-1], lengths, strict=True)]
        freq = None if panel.axis.kind == "int" else str(panel.freq)
        season = max(1, seasons.confirm(rows, freq)[0])

    def given(name: str, otherwise: Any) -> Any:
        return otherwise if params.get(name) is None else params[name]

    input_length = given("input_length", choose_input_length(lengths, season, horizon))
    validation, validation_step = choose_validation(lengths, horizon, val_size)
    windows = int(np.maximum(lengths - validation - horizon, 0).sum())
    d_model = given("d_model", preset["d_model"] if windows > 2000 else min(32, int(preset["d_model"])))
    return Settings(
        input_length=input_length,
        patch_length=given("patch_length", choose_patch(season, input_length)),
        season=season,
        validation=validation,
        validation_step=validation_step,
        min_context=min(input_length, max(season + 1, 3)),
        blocks=given("blocks", preset["blocks"]),
        d_model=d_model,
        num_heads=given("num_heads", 4 if d_model % 4 == 0 else 1),
        dropout=given("dropout", 0.1),
        max_steps=given("max_steps", preset["max_steps"]),
        batch_size=given("batch_size", 128),
        lr=given("lr", 2e-3),
    )


@dataclass(frozen=True, kw_only=True)
class Split:
    """Training windows and the held-back last ones. Every row at or after a series' `end` is held back."""

    train: Windows
    end: Array  # (n,) rows of each series that training sees
    series: Array  # (m,) of the validation windows
    origin: Array  # (m,)


def split(panel: Panel, settings: Settings, horizon: int, device: Any = "cpu") -> Split:
    """Hold back the last windows of each series that is long enough to spare them. Raises ValueError if none fits."""
    length, keep = panel.history, settings.validation
    spare = (length >= keep + horizon + settings.min_context) if keep else np.zeros(len(length), bool)
    end = np.where(spare, length - keep, length)
    for least in (settings.min_context, 1):
        train = Windows(
            panel, settings.input_length, horizon, min(least, settings.input_length), end=end, device=device
        )
        if len(train):
            break
    train.require()
    series = np.flatnonzero(spare)
    steps = np.arange(keep - horizon, -1, -settings.validation_step)[::-1] if keep else np.zeros(0, np.int64)
    series, steps = np.repeat(series, len(steps)), np.tile(steps, len(series))
    if len(series) > MAX_VALIDATION:
        chosen = np.sort(np.random.default_rng(0).choice(len(series), MAX_VALIDATION, replace=False))
        series, steps = series[chosen], steps[chosen]
    return Split(train=train, end=end, series=series, origin=end[series] + steps)


def gather_pairs(windows: Windows, series: Array, origin: Array) -> list[tuple[Batch, Labels]]:
    """Batches of the windows at these places, with labels."""
    pairs = []
    for a in range(0, len(series), BATCH):
        batch, labels = windows.gather_at(series[a : a + BATCH], origin[a : a + BATCH])
        assert labels is not None
        pairs.append((batch, labels))
    return pairs


def build_model(panel: Panel, windows: Windows, settings: Settings, params: dict[str, Any]) -> PatchModel:
    """The model for this panel, weights drawn from the seed; torch's global generator is left as it was."""
    roles, encoding = panel.roles, panel.encoding
    levels = tuple(sorted({*LEVELS, *params["quantiles"]}))
    config = PatchConfig(
        input_length=settings.input_length,
        horizon=params["horizon"],
        patch_length=settings.patch_length,
        targets=len(roles.target),
        known=len(windows.known_names),
        past=len(windows.past_names),
        static=len(roles.reals("static")),
        known_sizes=encoding.sizes(roles.categories("future")),
        past_sizes=encoding.sizes(roles.categories("past")),
        static_sizes=encoding.sizes(roles.categories("static")),
        series=len(panel) if 1 < len(panel) <= 64 else 0,
        season=settings.season,
        head=params["head"],
        levels=levels,
        scaling=params["scaling"],
        dropout=settings.dropout,
        encoder=EncoderConfig(
            d_model=settings.d_model, num_heads=settings.num_heads, blocks=settings.blocks, dropout=settings.dropout
        ),
    )
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(params["seed"])
        return PatchModel(config)


def copula(model: PatchModel, pairs: Sequence[tuple[Batch, Labels]]) -> Tensor:
    """Correlation (H, H) of the normal scores of held-back residuals; without any, of independent steps."""
    scores, observed = [torch.zeros(0, model.config.horizon)], [torch.zeros(0, model.config.horizon, dtype=torch.bool)]
    levels = torch.tensor(model.config.levels)
    for batch, labels in pairs:
        forecast = model(batch)
        y, usable = scale_labels(labels.target, forecast.scaled)
        quantiles = model.head.quantiles(forecast.params, model.config.levels)
        z = normal_scores(y.to(quantiles.dtype), quantiles, levels).float()  # B H V
        scores.append(z.transpose(1, 2).flatten(0, 1))
        observed.append((labels.observed & usable).transpose(1, 2).flatten(0, 1))
    return correlation(torch.cat(scores), torch.cat(observed))


class TrainingBatches:
    """This process's share of every training batch from a step on; a step's batch depends on seed and step alone."""

    def __init__(self, windows: Windows, batch_size: int, seed: int, steps: int):
        self.windows, self.batch_size, self.seed, self.steps = windows, batch_size, seed, steps

    def sampler(self, rank: int = 0, world: int = 1) -> Sampler:
        """The windows of one of `world` processes; together they see what a single one sees."""
        size = max(1, self.batch_size // world)
        whole = len(self.windows) >= size * world
        return Sampler(self.windows, size, drop_last=whole, seed=self.seed, rank=rank, world_size=world)

    def __call__(self, rank: int, world: int, first: int) -> Share:
        return Share(self.sampler(rank, world), first, self.steps)


class Share:
    """Batches first ... steps - 1 of a process, for a trainer that counts all steps of the run."""

    def __init__(self, sampler: Sampler, first: int, steps: int):
        self.sampler, self.first, self.steps = sampler, first, steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Batch, Labels]]:
        self.sampler.epoch, self.sampler.batch = divmod(self.first, len(self.sampler))
        return iter(Loader(self.sampler, self.steps - self.first))


def settings_from(values: dict[str, Any]) -> Settings:
    """Settings out of plain values."""
    return Settings(**{field.name: values[field.name] for field in fields(Settings)})
