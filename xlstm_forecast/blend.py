"""Backbone, fitted network and pre-trained network side by side: what each says, and how much of each to take."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import pretrained
from .backbone import brief
from .batch import Batch, Labels
from .data.frame import Panel
from .heads import pinball
from .linear import Base, LinearModel, filled
from .models.common import fill_forward
from .scaling import scale_context

Array = np.ndarray
WILD = 8.0  # deviations of its context; a window that moves further away decides no more than this
UNSEEN = 2 / 3  # of the pre-trained network beside what was fitted, where there is no window to judge by
FITTED = 0.2  # what the fitted one of the two costs in full: held-back windows have also stopped its training
BAND = (0.1, 0.9)  # levels between which a member's forecast of a step is as wide as the member is unsure of it
APART = 1.5  # logarithm by which a width may differ from the members' mean and count in full


class Truth(NamedTuple):
    """The labels of held-back windows in true units, float64."""

    y: Tensor  # (B, H, V)
    seen: Tensor  # (B, H, V) bool
    unit: Tensor  # (B, 1, V) deviation of the window's context
    weight: Tensor  # (B, H, 1)

    @classmethod
    def of(cls, batch: Batch, labels: Labels) -> Truth:
        """Of the windows of a batch; those whose context is constant count as not seen."""
        scaled = scale_context(batch.target, batch.observed, batch.offset)
        unit = torch.where(scaled.varies, scaled.scale, torch.ones_like(scaled.scale)).double()
        y = labels.target.double() + batch.offset.double()[:, None]
        return cls(y, labels.observed & scaled.varies, unit, labels.weight[..., None].double())


def zero_shot(linear: LinearModel, panel: Panel, seasons: Sequence[int], horizon: int, levels: Sequence[float]) -> Base:
    """The pre-trained network's quantiles (n, H, V, Q) as a function of (series, origin).

    The backbone takes sentinels and calendar effects out of what it is given, and puts the latter back. Windows of few
    values that are all the same, which tell nothing of how values change, get the backbone's forecast.
    """

    def forecast(history: Array) -> Array:
        out = pretrained.quantiles(history, seasons, horizon, levels)
        out[brief(history)] = np.nan
        return out

    return filled(linear.around(panel, forecast, pretrained.history(horizon)), linear.on(panel, levels))


def usual_widths(members: Mapping[str, Sequence[Tensor]], levels: Sequence[float]) -> dict[str, float]:
    """How wide each member's BAND is on the held-back windows: mean logarithm, relative to the members' mean.

    members: quantiles (B, H, V, Q) of every batch of windows. 0 for all where there are none.
    """
    away = [_away(list(batch), levels).flatten(1) for batch in zip(*members.values(), strict=True)]
    mean = torch.cat(away, 1).mean(1) if away else torch.zeros(len(members))
    return dict(zip(members, mean.tolist(), strict=True))


def choose_weights(
    members: Mapping[str, Sequence[Tensor]],
    truths: Sequence[Truth],
    levels: Sequence[float],
    widths: Mapping[str, float],
    count: float,
    even: bool = False,
) -> dict[str, float]:
    """What share of each member's quantiles (B, H, V, Q) to take: those that did best together, averaged.

    The pinball loss over held-back windows, in units of each window's deviation, is taken for all mixtures in eighths
    (of three members, quarters), each made as `mix` makes it with these `widths`. count: how many independent windows
    they are worth; the fewer, the more the mixtures near the best one count. Of two as good as each other the
    pre-trained network gets a little more. Without a window it gets two thirds beside another one, as series are short
    then; equal parts for more of them, and where `even`.
    """
    two = len(members) == 2 and "pretrained" in members
    if not truths and two and not even:
        return {name: UNSEEN if name == "pretrained" else 1 - UNSEEN for name in members}
    if len(members) == 1 or not truths:
        return dict.fromkeys(members, 1 / len(members))
    parts = 8 if len(members) == 2 else 4
    grid = [m for m in itertools.product(range(parts + 1), repeat=len(members)) if sum(m) == parts]
    mixtures = torch.tensor(grid, dtype=torch.float64) / parts
    at = torch.tensor(levels, dtype=torch.float64)
    losses = torch.zeros(len(mixtures), dtype=torch.float64)
    for k, truth in enumerate(truths):
        batch = {name: m[k] for name, m in members.items()}
        errors = torch.stack([(truth.y[..., None] - m.double()) / truth.unit[..., None] for m in batch.values()])
        sure = _sure(batch, levels, widths)
        for i, mixture in enumerate(mixtures):
            error = (_shares(mixture, sure) * errors).sum(0).clamp(-WILD, WILD)
            losses[i] += (pinball(error, at).mean(-1) * truth.seen * truth.weight).sum()
    if two:
        cost = FITTED * (1 - mixtures[:, list(members).index("pretrained")])
        weight = near_best(losses, count, cost, breadth=0.35, power=1.0)
    else:  # more members make more mixtures, of which a wide average would be nearly equal parts
        weight = near_best(losses, count, breadth=0.25 if len(members) == 2 else 0.1)
    return dict(zip(members, (weight[:, None] * mixtures).sum(0).tolist(), strict=True))


def mix(
    members: Mapping[str, Tensor],
    weights: Mapping[str, float],
    levels: Sequence[float],
    widths: Mapping[str, float],
) -> Tensor:
    """The weighted mean of the members' quantiles (..., Q), level by level, so that they stay ordered.

    Where a member is surer of a step than it usually is, relative to the others, it gets the more of it: weights are
    divided by the width of its BAND over `widths`, what it usually is (Bates and Granger 1969 divide by variances).
    At levels without BAND the weights are as they are.
    """
    each = torch.tensor([weights[name] for name in members], dtype=torch.float64)
    values = torch.stack([value.double() for value in members.values()])
    return (_shares(each, _sure(members, levels, widths)) * values).sum(0)


def mixtures(
    members: Mapping[str, Sequence[Tensor]],
    weights: Mapping[str, float],
    levels: Sequence[float],
    widths: Mapping[str, float],
) -> list[Tensor]:
    """`mix` of the members' quantiles, batch by batch."""
    batches = zip(*members.values(), strict=True) if members else ()
    return [mix(dict(zip(members, batch, strict=True)), weights, levels, widths) for batch in batches]


def _sure(members: Mapping[str, Tensor], levels: Sequence[float], widths: Mapping[str, float]) -> Tensor:
    """(M, ..., 1) how sure each member is of every step: one over its width, as wide as usual being 1."""
    usual = torch.tensor([widths[name] for name in members], dtype=torch.float64)
    return torch.exp(-_away(list(members.values()), levels, usual))[..., None]


def _away(values: Sequence[Tensor], levels: Sequence[float], usual: Tensor | None = None) -> Tensor:
    """(M, ...) logarithm of the members' widths less the usual ones and less the mean of the members, within APART.

    0 where a member has no width, and at levels without BAND.
    """
    low, high = BAND
    if low not in levels or high not in levels:
        return torch.zeros(len(values), *values[0].shape[:-1], dtype=torch.float64)
    at = levels.index(low), levels.index(high)
    width = torch.stack([(value[..., at[1]] - value[..., at[0]]).double() for value in values]).log()
    if usual is not None:
        width = width - usual.view(-1, *(1,) * (width.ndim - 1))
    away = width - width.mean(0)
    return torch.where(width.isfinite().all(0), away, 0.0).clamp(-APART, APART)


def _shares(weights: Tensor, sure: Tensor) -> Tensor:
    """(M, ..., 1) what every step takes of each member, of weights (M,): together 1."""
    parts = weights.view(-1, *(1,) * (sure.ndim - 1)) * sure
    return parts / parts.sum(0)


def validation_errors(
    mixed: Sequence[Tensor],
    others: Mapping[str, Sequence[Tensor]],
    pairs: Sequence[tuple[Batch, Labels]],
    truths: Sequence[Truth],
    season: int,
    middle: int,
) -> dict[str, float]:
    """Mean absolute errors of medians on held-back windows, in units of each window's deviation; naive ones beside.

    The seasonal naive is left out where its season is longer than a window's context. NaN where nothing was observed.
    """
    sums: dict[str, float] = {}
    count = 0.0
    for k, ((batch, _), truth) in enumerate(zip(pairs, truths, strict=True)):
        offset = batch.offset.double()[:, None]
        filled = fill_forward(batch.target, batch.observed).double() + offset
        found = {"last_value": filled[:, -1:]}
        if season <= batch.context:
            found["seasonal_naive"] = filled[:, batch.context - season + torch.arange(truth.y.shape[1]) % season]
        if batch.base is not None:
            found["backbone"] = batch.base[..., batch.base.shape[-1] // 2] + offset
        found |= {name: values[k][..., values[k].shape[-1] // 2] for name, values in others.items()}
        if mixed:
            found["model"] = mixed[k][..., middle]
        for name, median in found.items():
            sums[name] = sums.get(name, 0.0) + float((((truth.y - median) / truth.unit).abs() * truth.seen).sum())
        count += float(truth.seen.sum())
    return {name: value / count if count else float("nan") for name, value in sums.items()}


def near_best(
    losses: Tensor, count: float, cost: Tensor | float = 0.0, breadth: float = 0.25, power: float = 0.5
) -> Tensor:
    """Weights of candidates by their losses over `count` independent windows: broad where windows are few.

    cost: of choosing each of them, in parts of the best loss and per window. breadth: by what part of the best loss
    another may be worse for a weight of 1 / e of it, with one window. power: of the count that divides this.
    """
    best, count = losses.min().clamp(min=1e-12), max(1.0, count)
    return torch.softmax(-(losses / best - 1 + cost / count) / (breadth / count**power), 0)
