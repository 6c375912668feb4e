"""From a panel to a trained model: windows, sizes, training, and how the steps of the horizon correlate."""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .backbone import seasons
from .batch import Batch, Labels
from .blend import Truth, choose_weights, mixtures, near_best, usual_widths, validation_errors, zero_shot
from .data.frame import Panel
from .data.loader import Loader, Sampler
from .data.windows import Windows
from .heads import LEVELS
from .held_back import Split, could_judge
from .linear import Base, LinearModel, Remembered
from .models import MODELS, Ensemble, ForecastModel, build_model, default_encoder, last_steps
from .sampling import correlation, normal_scores
from .settings import FEW, PRESETS, Settings, TrainResult, choose_input_length, choose_patch, choose_validation
from .training import TrainConfig, train

Array = np.ndarray
BATCH = 1024  # windows per batch where nothing is trained
SIZES = ("input_length", "patch_length", "networks", "blocks", "d_model", "num_heads")
KEPT = (*SIZES, "season", "alone")  # of the settings, what a warm start goes on with


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
    return panel.with_calendar(tuple(names))


def settle(panel: Panel, params: dict[str, Any], val_size: int | None) -> Settings:
    """Every choice that the parameters leave open, from the preset, the season and the length of the series."""
    preset = PRESETS[params["presets"]]
    horizon, lengths = params["horizon"], panel.history
    if params["season_length"]:
        season, freq = int(params["season_length"]), None
    else:
        rows = [panel.target[a : a + n, 0] for a, n in zip(panel.offsets[:-1], lengths, strict=True)]
        freq = None if panel.axis.kind == "int" else str(panel.freq)
        season = max(1, seasons.confirm(rows, freq, horizon)[0])
    candidates = (season, 1) if params["season_length"] or panel.axis.kind == "int" else seasons.table(freq)

    def given(name: str, otherwise: Any) -> Any:
        return otherwise if params.get(name) is None else params[name]

    averaged = params["head"] == "quantile" and has_covariates(panel)
    alone = params["model"] != "linear" and (averaged or not params["backbone"])
    beyond = candidates[1] if alone and params["backbone"] else 1
    validation, validation_step = choose_validation(lengths, horizon, val_size)
    few = np.maximum(lengths - validation - horizon, 0).sum() <= FEW
    count = "networks_alone" if averaged and alone else "networks_few" if few else "networks"
    networks = given("networks", preset[count])
    input_length = given("input_length", choose_input_length(lengths, season, horizon, beyond, networks))
    d_model = given("d_model", min(32, int(preset["d_model"])) if few else preset["d_model"])
    return Settings(
        input_length=input_length,
        patch_length=given("patch_length", choose_patch(season, input_length)),
        season=season,
        seasons=candidates,
        alone=alone,
        validation=validation,
        validation_step=validation_step,
        min_context=min(input_length, max(season + 1, 3)),
        blocks=given("blocks", preset["blocks"] if params["model"] == "patch" else own_blocks(params["model"])),
        d_model=d_model,
        num_heads=given("num_heads", 4 if d_model % 4 == 0 else 1),
        dropout=given("dropout", 0.1),
        networks=networks,
        max_steps=given("max_steps", preset["max_steps"]),
        batch_size=given("batch_size", 128),
        lr=given("lr", 1e-2 if alone else 2e-3),
    )


def has_covariates(panel: Panel) -> bool:
    """Whether the user gave known-future or past columns: then a network by itself finds what the backbone lacks."""
    roles = panel.roles
    return any(roles.reals(role) or roles.categories(role) for role in ("future", "past"))


def own_blocks(model: str) -> str:
    """The blocks of a model whose paper says which."""
    return default_encoder(model).blocks if model in MODELS else ""


def check_continued(start: Ensemble, settings: Settings, params: dict[str, Any]) -> None:
    """Raise where the parameters ask for another network than the fitted one that a warm start goes on with."""
    config, kind = start.models[0].config, type(start.models[0])
    model = next(name for name, (_, found) in MODELS.items() if found is kind)
    fitted: dict[str, Any] = {"model": model, "horizon": config.horizon, "head": config.head, "scaling": config.scaling}
    fitted |= {"backbone": True} if config.backbone else {}
    fitted |= {"season_length": settings.season} if params["season_length"] else {}
    fitted |= {name: getattr(settings, name) for name in SIZES if params.get(name) is not None}
    for name, found in fitted.items():
        if params[name] != found:
            raise ValueError(f"{name}={params[name]!r}: warm_start=True goes on with a network of {name}={found!r}")
    if params["head"] == "quantile" and head_levels(params) != config.levels:
        raise ValueError(
            f"quantiles={params['quantiles']}: warm_start=True goes on with a network of quantiles={config.levels}"
        )


class Starts(NamedTuple):
    """Fitted networks to go on from, where there are any."""

    model: Ensemble | None
    correction: Ensemble | None


def training_windows(panel: Panel, settings: Settings, horizon: int, end: Array, base: Base | None) -> Windows:
    """All windows before each series' `end`, if any; with less context than usual where nothing else fits."""
    for least in (settings.min_context, 1):
        least = min(least, settings.input_length)
        windows = Windows(panel, settings.input_length, horizon, least, end=end, base=base)
        if len(windows):
            break
    return windows


def gather_pairs(
    windows: Windows, series: Array, origin: Array, linear: LinearModel | None
) -> list[tuple[Batch, Labels]]:
    """Batches of the windows at these places, as networks forecast from them, with labels."""
    pairs = []
    for a in range(0, len(series), BATCH):
        batch, labels = windows.gather_at(series[a : a + BATCH], origin[a : a + BATCH])
        assert labels is not None
        pairs.append((batch if linear is None else linear.joined(batch), labels))
    return pairs


def head_levels(params: dict[str, Any]) -> tuple[float, ...]:
    """The levels a network is trained on: the deciles and those asked for."""
    return tuple(sorted({*LEVELS, *params["quantiles"]}))


def target_units(panel: Panel, settings: Settings) -> tuple[float, ...]:
    """The deviation of each target over the rows that training sees; none where there are several series."""
    if len(panel) > 1:
        return ()
    rows = panel.target[: max(1, len(panel.target) - settings.validation)].astype(np.float64)
    units = [float(np.std(column[np.isfinite(column)])) if np.isfinite(column).any() else 0.0 for column in rows.T]
    return tuple(unit if unit > 0 else 1.0 for unit in units)


def new_model(
    panel: Panel, windows: Windows, settings: Settings, params: dict[str, Any], rank: int = 0
) -> ForecastModel:
    """The network of this rank, weights drawn from the seed; torch's global generator is left as it was."""
    roles, encoding = panel.roles, panel.encoding
    values = {
        "input_length": windows.input_length,
        "horizon": params["horizon"],
        "patch_length": settings.patch_length,
        "targets": len(roles.target),
        "known": len(windows.known_names),
        "past": len(windows.past_names),
        "static": len(roles.reals("static")),
        "known_sizes": encoding.sizes(roles.categories("future")),
        "past_sizes": encoding.sizes(roles.categories("past")),
        "static_sizes": encoding.sizes(roles.categories("static")),
        "series": len(panel) if 1 < len(panel) <= 64 else 0,
        "season": settings.season,
        "units": target_units(panel, settings),
        "head": params["head"],
        "levels": head_levels(params),
        "scaling": params["scaling"],
        "backbone": not settings.alone,
        "dropout": settings.dropout,
        "encoder": replace(
            default_encoder(params["model"]),
            d_model=settings.d_model,
            num_heads=settings.num_heads,
            blocks=settings.blocks,
            dropout=settings.dropout,
        ),
    }
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(params["seed"] + 1_000_003 * rank)  # the generator reads 32 bits of it
        return build_model(params["model"], values)


def choose_correction(model: Ensemble, pairs: Sequence[tuple[Batch, Labels]], trained: bool, count: float) -> None:
    """Set how much of the correction of the backbone to keep: quarters by their validation loss, near-best averaged.

    The windows, worth `count` independent ones, have also decided when training ended, so a correction has a cost.

    Nothing of one that was never trained, or that there is no window to judge by.
    """
    if not (trained and pairs):
        model.keep(0.0)
        return
    shares = torch.linspace(0, 1, 5)
    sums = [model.loss_sums(batch, labels, shares) for batch, labels in pairs]
    losses = torch.stack([s.double() for s, _ in sums]).sum(0)
    losses = losses / torch.stack([w.double() for _, w in sums]).sum().clamp(min=1e-12)
    weight = near_best(losses, count, 0.5 * shares)
    model.keep(float((weight * shares).sum()))


def copula(forecasts: Sequence[Tensor], truths: Sequence[Truth], levels: Sequence[float], horizon: int) -> Tensor:
    """Correlation (H, H) of the normal scores of held-back residuals; without any, of independent steps."""
    scores, observed = [torch.zeros(0, horizon)], [torch.zeros(0, horizon, dtype=torch.bool)]
    if len(levels) > 1:
        grid = torch.tensor(levels, dtype=torch.float64)
        for quantiles, truth in zip(forecasts, truths, strict=True):
            z = normal_scores(truth.y, quantiles.double(), grid).float()  # B H V
            scores.append(z.transpose(1, 2).flatten(0, 1))
            observed.append(truth.seen.transpose(1, 2).flatten(0, 1))
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


def fit(
    panel: Panel,
    settings: Settings,
    parts: Split,
    params: dict[str, Any],
    start: Starts,
    freeze_encoder: bool = False,
    val_size: int | None = None,
    began: float | None = None,
    **training: Any,
) -> dict[str, Any]:
    """Train what the parameters ask for; the fitted attributes of the forecaster by name.

    val_size: what the user asked to be held back; where that is left open a tight time limit holds back nothing.
    began: of time.monotonic(), when the time limit began to run; None: now.

    The network learns to correct a backbone that saw the training rows only, and is judged on the held-back windows;
    the backbone that forecasts afterwards is fitted on all rows.
    """
    began = time.monotonic() if began is None else began
    horizon, levels = params["horizon"], head_levels(params)
    late = backbone(panel, panel.history, params)
    tight = late is not None and too_slow(time.monotonic() - began, params) and not val_size
    if tight:
        parts, settings = parts.none_held_back(panel.history), replace(settings, validation=0)
    early = backbone(panel, parts.end, params) if len(parts.series) else late
    base = early.on(panel, levels) if early and not settings.alone else None
    pairs = gather_pairs(Windows(panel, settings.input_length, horizon, base=base), parts.series, parts.origin, early)
    truths = [Truth.of(batch, labels) for batch, labels in pairs]
    count = parts.count(settings.validation / horizon, early.fitted.independent_series if early else None)
    fitted: dict[str, Any] = {"model_": None, "correction_": None, "linear_": late, "settings_": settings}
    fitted |= {"training_": [], "weights_": {"backbone": 1.0}, "widths_": {"backbone": 0.0}}
    reads_alone = tight and early and early.fitted.kept_inputs  # columns that the pre-trained network does not know
    others = beside(early, panel, settings, parts, params) if early and not reads_alone else {}
    asked: tuple[float, ...] = (0.5,)
    members: dict[str, list[Tensor]] = {}
    if params["model"] != "linear":
        held = settings.validation / horizon if pairs else 0.0
        counts = not settings.alone or (not tight and takes_part(early, panel, held, val_size))
        options = {"began": began, "freeze_encoder": freeze_encoder, "count": count, "counts": counts, **training}
        found, members = with_networks(early, panel, settings, parts, params, start, base, pairs, others, **options)
        fitted |= found
        asked = levels if fitted["model_"].head.has_quantiles else asked
        even = not len(parts.series) and could_judge(panel, settings, horizon)
        fitted["widths_"] = usual_widths(members, asked)
        fitted["weights_"] = choose_weights(members, truths, asked, fitted["widths_"], count, even)
    mixed = mixtures(members, fitted["weights_"], asked, fitted["widths_"])
    fitted["copula_"] = copula(mixed, truths, asked, horizon) if members else torch.eye(horizon)
    fitted["errors_"] = validation_errors(mixed, others, pairs, truths, settings.naive_season, asked.index(0.5))
    return fitted | {"seconds_": time.monotonic() - began}


def with_networks(
    early: LinearModel | None,
    panel: Panel,
    settings: Settings,
    parts: Split,
    params: dict[str, Any],
    start: Starts,
    base: Base | None,
    pairs: Sequence[tuple[Batch, Labels]],
    others: dict[str, list[Tensor]],
    *,
    count: float,
    counts: bool,
    **options: Any,
) -> tuple[dict[str, Any], dict[str, list[Tensor]]]:
    """Train networks, and the correction of a backbone beside them, whose forecasts are added to the others.

    What was fitted, and the forecasts of all that take part, (B, H, V, Q) of each batch of held-back windows.
    """
    beside_backbone = early if settings.alone else None
    follow = int(beside_backbone is not None)
    model, results = networks(
        panel, settings, parts, params, base, pairs, start.model, follow=follow, counts=counts, **options
    )
    correction = None
    if beside_backbone is not None:
        correction, more, others["backbone"] = corrected(
            beside_backbone, panel, settings, parts, params, count, start.correction, **options
        )
        results = results + more
    own = {}
    with torch.no_grad():
        if base is not None:
            choose_correction(model, pairs, start.model is not None or improved(results), count)
        if counts:
            asked = head_levels(params) if model.head.has_quantiles else (0.5,)
            own["network"] = [model.quantiles(batch, asked) for batch, _ in pairs]
    return {"model_": model, "correction_": correction, "training_": results}, own | others


def too_slow(seconds: float, params: dict[str, Any]) -> bool:
    """Whether fitting the backbone took so much of the time limit that a second fit and training leave nothing."""
    return bool(params["time_limit"]) and 3 * seconds > params["time_limit"]


def takes_part(linear: LinearModel | None, panel: Panel, held: float, val_size: int | None) -> bool:
    """Whether networks that forecast beside this backbone, if any, belong to the average.

    held: horizons held back. Two of them judge what networks read in the covariates (one has stopped their training
    already), or the backbone does, which kept a known-future column. Who gives a val_size vouches for it, with 0 for
    columns that the backbone is not given.
    """
    if linear is None or linear.fitted.kept_inputs:
        return True
    if val_size is None:
        return held >= 2
    return held > 0 if val_size else not panel.known.shape[1]


def backbone(panel: Panel, end: Array, params: dict[str, Any]) -> LinearModel | None:
    """The closed-form part, fitted on the first `end` (n,) rows of each series; None where it is not asked for."""
    if params["model"] != "linear" and not params["backbone"]:
        return None
    return LinearModel.fit(panel, end, params["horizon"], params["season_length"])


def beside(
    linear: LinearModel, panel: Panel, settings: Settings, parts: Split, params: dict[str, Any]
) -> dict[str, list[Tensor]]:
    """Forecasts of the held-back windows by what the fitted network is averaged with: quantiles (B, H, V, Q).

    Without the backbone, which the network has in it or `corrected` brings.
    """
    if params["model"] == "linear" or params["head"] != "quantile":
        return {}
    levels = head_levels(params)
    found = {}
    if settings.alone and pays_to_solve(linear, panel, parts, params["time_limit"]):
        found["recent"] = at_once(linear.recent(panel, levels), parts)
    if params["pretrained"]:
        found["pretrained"] = at_once(zero_shot(linear, panel, settings.seasons, params["horizon"], levels), parts)
    return found


def corrected(
    linear: LinearModel,
    panel: Panel,
    settings: Settings,
    parts: Split,
    params: dict[str, Any],
    count: float,
    start: Ensemble | None,
    **options: Any,
) -> tuple[Ensemble | None, list[TrainResult], list[Tensor]]:
    """Networks that correct the backbone and know no covariates, for where the others forecast by themselves.

    What a network reads out of covariates can be wrong after the held-back windows; this one keeps what the values
    alone give. The networks, what training did, and their quantiles (B, H, V, Q) of the held-back windows; where there
    are none, `start` without a share.
    """
    if not len(parts.series):
        return unjudged(start), [], []
    plain, levels = panel.without_covariates(), head_levels(params)
    own = settle(plain, params, None)
    own = replace(own, validation=settings.validation, validation_step=settings.validation_step)
    if start is not None:
        sizes = start.models[0].config
        own = replace(own, input_length=sizes.input_length, season=sizes.season, networks=len(start.models))
    base = linear.on(panel, levels)
    windows = Windows(plain, own.input_length, params["horizon"], base=base)
    pairs = gather_pairs(windows, parts.series, parts.origin, linear)
    options["freeze_encoder"] &= start is not None  # a new encoder has nothing to keep
    model, results = networks(plain, own, parts, params, base, pairs, start, **options)
    with torch.no_grad():
        choose_correction(model, pairs, start is not None or improved(results), count)
        return model, results, [model.quantiles(batch, levels) for batch, _ in pairs]


def unjudged(correction: Ensemble | None) -> Ensemble | None:
    """A fitted correction that no held-back window supports: kept for later, without a share."""
    correction = copy.deepcopy(correction)
    if correction is not None:
        correction.keep(0.0)
    return correction


def improved(results: Sequence[TrainResult]) -> bool:
    """Whether any training found a step that is better than the start."""
    return any(result.best_step > 0 for result in results)


def pays_to_solve(linear: LinearModel, panel: Panel, parts: Split, time_limit: float | None) -> bool:
    """Whether a regression on each window's own past may take part: known-future inputs that help, most held-back
    windows with past enough, and seconds to spare for all of them."""
    windows = len(parts.series) * panel.target.shape[1]
    seconds = linear.recent_seconds() * windows
    if not windows or not linear.recent_inputs() or seconds > min(30.0, 0.1 * (time_limit or np.inf)):
        return False
    return bool(np.median(linear.has_past(panel, parts.series, parts.origin)) == 1)


def at_once(forecast: Base, parts: Split) -> list[Tensor]:
    """Forecasts (B, H, V, Q) of the held-back windows, batch by batch."""
    spans = range(0, len(parts.series), BATCH)
    return [torch.from_numpy(forecast(parts.series[a : a + BATCH], parts.origin[a : a + BATCH])) for a in spans]


def networks(
    panel: Panel,
    settings: Settings,
    parts: Split,
    params: dict[str, Any],
    base: Base | None,
    pairs: Sequence[tuple[Batch, Labels]],
    start: Ensemble | None,
    *,
    began: float,
    freeze_encoder: bool,
    follow: int = 0,
    counts: bool = True,
    **training: Any,
) -> tuple[Ensemble, list[TrainResult]]:
    """Train `settings.networks` networks, each on a shorter context than the one before; what each training did.

    follow: how many fits of networks come after these, for which time must be left. counts: whether their forecasts
    will take part; else they are not trained.

    A correction of the backbone that no held-back window can judge is never kept: it is not trained either.
    """
    found: list[ForecastModel] = []
    results = []
    lengths = contexts(settings) if start is None else [member.config.input_length for member in start.models]
    base = None if base is None else Remembered(base, panel)
    for rank, length in enumerate(lengths):
        own = replace(settings, input_length=length, min_context=min(length, settings.min_context))
        windows = training_windows(panel, own, params["horizon"], parts.end, base)
        model = new_model(panel, windows, own, params, rank) if start is None else continued(start.models[rank])
        found.append(model)
        if (base is not None and not pairs) or not counts:
            results.append(TrainResult(validation={}, best_step=0, steps=0, seconds=0.0, train_loss=[]))
            model.eval()
            continue
        windows.require()
        held = [(last_steps(batch, length), labels) for batch, labels in pairs]
        config = train_config(settings, params, time.monotonic() - began, rank, len(lengths) + follow)
        folder = params["checkpoint_dir"]
        if folder is not None:
            folder = str(Path(folder) / fingerprint(panel, own, parts, params, model))
        results.append(run(model, config, windows, settings, held, freeze_encoder, folder, **training))
    return Ensemble(found), results


def fingerprint(panel: Panel, settings: Settings, parts: Split, params: dict[str, Any], model: ForecastModel) -> str:
    """What tells this training from any other (data, sizes, weights): none goes on from another one's checkpoint."""
    names = ("seed", "head", "quantiles", "backbone", "scaling", "season_length", "model")
    digest = hashlib.sha256(repr((settings, [params[name] for name in names], panel.roles, panel.freq)).encode())
    columns = (panel.target, panel.known, panel.past, panel.static, panel.weight, panel.offsets, panel.start)
    codes = (panel.known_categories, panel.past_categories, panel.static_categories)
    for values in (*columns, *codes, parts.end, parts.series, parts.origin):
        if values is not None:
            digest.update(np.ascontiguousarray(values).tobytes())
    for name, value in model.state_dict().items():
        digest.update(name.encode() + value.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def contexts(settings: Settings) -> list[int]:
    """Steps of context of each network: all of them, then equal parts less."""
    count = settings.networks
    return [max(1, round(settings.input_length * (count - k) / count)) for k in range(count)]


def run(
    model: ForecastModel,
    config: TrainConfig,
    windows: Windows,
    settings: Settings,
    pairs: Sequence[tuple[Batch, Labels]],
    freeze_encoder: bool,
    folder: str | None,
    **training: Any,
) -> TrainResult:
    """Train the model on these windows, judged on the pairs."""
    batches = TrainingBatches(windows, settings.batch_size, config.seed, settings.max_steps)
    for parameter in model.encoder.parameters():
        parameter.requires_grad_(not freeze_encoder)
    steps = len(batches.sampler())
    result = train(model, config, batches, pairs, steps_per_epoch=steps, checkpoint_dir=folder, **training)
    model.requires_grad_(True)
    return result


def continued(start: ForecastModel) -> ForecastModel:
    """A copy of a model to train on, its correction of the backbone in full."""
    model = copy.deepcopy(start).train()
    model.share.fill_(1.0)
    return model


def train_config(settings: Settings, params: dict[str, Any], spent: float, rank: int, count: int) -> TrainConfig:
    """The training part of the parameters; of a time limit, an equal part of what is left, less a reserve."""
    limit = params["time_limit"]
    return TrainConfig(
        max_steps=settings.max_steps,
        batch_size=settings.batch_size,
        lr=settings.lr,
        time_limit=None if limit is None else max(0.1, (0.95 * limit - spent) / (count - rank)),
        checks_after=2,  # the share of the correction, and the members' weights
        **{k: params[k] for k in ("precision", "accelerator", "devices", "strategy")},
        seed=params["seed"] + 1000 * rank,
    )
