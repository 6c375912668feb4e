"""The median path: simple forecasters combined by shrinkage, then a ridge on the raw context for what remains.

Every stage starts from the one before, may only add a correction, and has "no correction" among its candidates. All
fits of a rolling validation and the final one on everything run side by side: fit j uses the windows with member <= j,
the last fit uses all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xlstm_forecast.backbone.features import (
    Proposals,
    Shape,
    corrects,
    known_changes,
    natural_season,
    priors,
    proposals,
    unjudged,
)
from xlstm_forecast.backbone.regression import Path, near_best, pooled_paths, step_paths, weighted_gram
from xlstm_forecast.backbone.shifts import joined_history
from xlstm_forecast.backbone.windows import Array, Index, fill

POOLED = (1e-3, 1e-2, 1e-1, 1.0, np.inf)
STEPWISE = (3e-3, 3e-2, 0.3, np.inf)
CONTEXT = (1e-3, 1e-2, 1e-1, 1.0, 10.0, np.inf)
POOLED_COST, STEP_COST, CONTEXT_COST = 2.0, 2.0, 3.0  # of the least penalised candidate, to be argued away
RESERVE = 1.0  # independent windows that the `unjudged` forecast counts as
LEAST = 10  # training windows below which a fit judges nothing
CAUTION = 3.0  # penalty that one independent window of data would get
CONTEXT_CAUTION = 0.02  # the same for the context, per value of it
Single = NDArray[np.float32]


@dataclass(frozen=True)
class View:
    """What one batch of histories says before any coefficient: complete rows, scale, simple forecasts."""

    rows: Array  # (n, L)
    observed: NDArray[np.bool_]  # (n, L), False where `rows` was filled
    available: Index  # (n,)
    scale: Array  # (n,)
    simple: Proposals
    known: Array  # (n, E) changes of known-future inputs, behind each other

    @property
    def features(self) -> Array:
        """(n, H, k), in units of the window's scale."""
        return np.asarray(self.simple.features / self.scale[:, None, None])

    def context(self, length: int) -> Single:
        """(n, E + length): known changes, then the last values around their mean in units of the scale, within 20."""
        part = self.rows[:, -length:]
        part = (part - part.mean(1, keepdims=True)) / self.scale[:, None]
        return np.concatenate([self.known, np.clip(part, -20, 20)], 1).astype(np.float32)


def window_scale(rows: Array, available: Index, context: int, season: int) -> Array:
    """(n,) standard deviation of the context, at least a tenth of the mean seasonal difference; 1 for constant rows."""
    length = rows.shape[1]
    use = np.arange(length)[None] >= length - np.minimum(available, context)[:, None]
    count = np.maximum(use.sum(1), 1)
    centre = (rows * use).sum(1) / count
    size = np.sqrt((np.where(use, rows - centre[:, None], 0.0) ** 2).sum(1) / count)
    if length > season:
        size = np.maximum(size, 0.1 * np.abs(rows[:, season:] - rows[:, :-season]).mean(1))
    return np.where(size > 1e-13 * np.abs(rows).max(1), size, 1.0)


def look(history: Array, shape: Shape, context: int, known: Array | None = None, unit: Array | None = None) -> View:
    """See histories (n, L), NaN where missing, and known-future inputs (n, B + H, K) in units of `unit` (K,)."""
    rows, available = fill(joined_history(history, shape.short), shape.short)
    scale = window_scale(rows, available, context, shape.short)
    changes = {} if known is None or unit is None else known_changes(known, shape, unit)
    extra = {name: change * scale[:, None] for name, change in changes.items()}
    paths = [c for name, c in changes.items() if not name.endswith("level")]
    ahead = np.concatenate(paths, 1) if paths and shape.horizon <= 168 else np.zeros((len(rows), 0))
    return View(rows, np.isfinite(history), available, scale, proposals(rows, available, shape, extra), ahead)


def complexity(penalties: Sequence[float]) -> Array:
    """How much a penalty leaves free: 0 where infinite, towards 1 where small."""
    return np.array([0.0 if np.isinf(p) else 1.0 / (1 + p**0.5) for p in penalties])


def slices(n: int, size: int = 2048) -> Iterator[slice]:
    """Consecutive pieces of n rows."""
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


@dataclass
class Examples:
    """Windows with labels, in units of each window's scale and relative to its last value."""

    features: Single  # (n, H, k)
    target: Single  # (n, H), 0 where missing
    weight: Single  # (n, H), 0 where missing; else the scale in units of the series' seasonal difference
    context: Single  # (n, L)
    series: Index  # (n,)
    member: Index  # (n,) for training: the first fit that may use the window; for validation: the fit it judges

    def __len__(self) -> int:
        return len(self.series)

    def only(self, rows: NDArray[np.bool_] | Index) -> Examples:
        """A selection of windows."""
        return Examples(*(getattr(self, f)[rows] for f in self.__dataclass_fields__))

    def error(self, path: Array | Single) -> Array:
        """(n,) mean absolute error of paths (n, H) in units of the series' seasonal difference."""
        return np.asarray((np.abs(self.target - path) * self.weight).sum(1) / np.maximum((self.weight > 0).sum(1), 1))


@dataclass
class Structured:
    """Coefficients (fits, H, k) on the structured features."""

    coefficients: Array
    report: list[dict[str, Any]]


def screen_known(
    train: Examples, check: Examples, names: tuple[str, ...], share: float, independent: Array
) -> list[int]:
    """Known-future inputs that do not help: their numbers.

    Each is left out once of a pooled fit with all. It stays where the training error without it is higher by more than
    three times what chance would explain with so many independent windows, or the validation error clearly higher.
    """
    inputs = sorted({int(n.split()[1]) for n in names if n.startswith("known")})
    fits = int(train.member.max(initial=0)) + 1
    if not inputs or not len(check):
        return inputs
    gram, moment = _grams(train, train.weight * _step_weight(train), fits)
    owner = np.array([int(n.split()[1]) if n.startswith("known") else -1 for n in names])
    weight = train.weight * _step_weight(train)
    power = float((weight * train.target**2).sum() / max(weight.sum(), 1e-30))
    paths, left = [], []
    for left_out in (None, *inputs):
        use = owner != (-2 if left_out is None else left_out)
        path = np.zeros((fits, 1, len(names)))
        for j in range(fits):
            g, c = gram[j].mean(0)[np.ix_(use, use)], moment[j].mean(0)[use]
            b = path[j, 0, use] = pooled_paths(g, c, [np.zeros(int(use.sum()))], (0.01,))[0]
        left.append(power - 2 * b @ c + b @ g @ b)
        paths.append(path)
    errors = _errors(check, np.concatenate(paths, 1)[:, :, None])
    effective = max(len(errors) * share, 1.0)
    dropped = []
    for i, k in enumerate(inputs):
        gain = errors[:, i + 1] - errors[:, 0]
        explained = 1 - left[0] / max(left[i + 1], 1e-30)
        if explained > 3 * (owner == k).sum() / independent[-1]:
            continue
        if gain.mean() < (gain.std() + 1e-3 * errors[:, 0].mean()) / np.sqrt(effective):
            dropped.append(k)
    return dropped


def _step_weight(train: Examples) -> Single:
    """(1, H) inverse of the typical size of the target, so that late steps do not rule the pooled fit."""
    seen = train.weight > 0
    size = (np.abs(train.target) * seen).sum(0) / np.maximum(seen.sum(0), 1)
    return (1.0 / np.maximum(size, 0.05 * size.max() + 1e-12))[None].astype(np.float32)


def _grams(train: Examples, weight: Single, fits: int) -> tuple[Array, Array]:
    """(fits, H, k, k) and (fits, H, k): averages over the windows that each fit may use."""
    h, k = train.features.shape[1:]
    gram, moment, total = np.zeros((fits, h, k, k)), np.zeros((fits, h, k)), np.zeros(fits)
    for j in range(fits):
        rows = np.flatnonzero(train.member == j)
        for part in slices(len(rows), 4096):
            w = weight[rows[part]]
            g, c = weighted_gram(train.features[rows[part]], train.target[rows[part]], w)
            gram[j] += g
            moment[j] += c
            total[j] += w.mean(1).sum()
    total = np.maximum(np.cumsum(total), 1e-30)
    return np.cumsum(gram, 0) / total[:, None, None, None], np.cumsum(moment, 0) / total[:, None, None]


def _windows_with(train: Examples, fits: int, names: tuple[str, ...]) -> Array:
    """(fits, k) windows that a fit may use in which a feature is neither 0 nor the natural season, itself excepted."""
    counts, natural = np.zeros((fits, len(names)), np.int64), natural_season(names)
    for part in slices(len(train), 4096):
        features = train.features[part]
        seen = (features != 0).any(1)
        if natural:
            at = names.index(natural)
            seen &= (features != features[..., [at]]).any(1) | (np.arange(len(names)) == at)
        np.add.at(counts, train.member[part], seen)
    return np.cumsum(counts, 0)


def fit_structured(
    train: Examples, check: Examples, names: tuple[str, ...], independent: Array, share: float, unseen: float = 0.0
) -> Structured:
    """Shrink towards simple forecasts, pooled over the horizon and then per step, twice: squares, then near-absolute.

    `independent` (fits,) counts the independent windows behind each fit, `share` those per validation window. `unseen`
    is the share of validation windows without the natural season, which cannot judge it: half of that is kept for the
    `unjudged` forecast, and so is what `RESERVE` windows would weigh.
    """
    (starts, start_costs), fits = priors(names), len(independent)
    judged = np.isin(check.member, np.flatnonzero(np.bincount(train.member, minlength=fits).cumsum() >= LEAST))
    trusted = judged.any()
    part = check.only(judged) if trusted else check
    extra = CAUTION / np.maximum(independent, 0.1)
    costs = (start_costs[:, None] + POOLED_COST * complexity(POOLED)).ravel()
    free = np.tile(np.isinf(POOLED), len(starts))
    moves = np.array([not corrects(n) for n in names])
    own = np.array([not n.startswith("known") for n in names])
    subsets = [np.ones(len(names), dtype=bool)] if own.all() else [own, np.ones(len(names), dtype=bool)]
    base = train.weight * _step_weight(train)
    rare = own & (_windows_with(train, fits, names) < LEAST)
    pooled: list[Array] = []
    coefficients = np.zeros((fits, *train.features.shape[1:]))
    for turn in range(2):
        weight = base if turn == 0 else base * _robust(train, coefficients[-1], base)
        gram, moment = _grams(train, weight, fits)
        for j in range(fits):  # what few windows have is left as the prior has it
            gram[j][:, rare[j]] = gram[j][:, :, rare[j]] = moment[j][:, rare[j]] = 0.0
        paths = np.stack(
            [_subset_paths(gram[j].mean(0), moment[j].mean(0), starts, extra[j], subsets, moves) for j in range(fits)]
        )
        pooled.append(paths)
        every = np.concatenate(pooled, 1)  # (fits, candidates, k)
        chosen = near_best(
            _errors(part, every[:, :, None]),
            share,
            np.tile(costs, (turn + 1) * len(subsets)),
            allowed=np.tile(free, (turn + 1) * len(subsets)) | trusted,
        )
        centre = np.einsum("c,jck->jk", chosen, every)
        steps = np.stack([step_paths(gram[j], moment[j], centre[j], STEPWISE, extra[j]) for j in range(fits)])
        kept = near_best(
            _errors(part, steps), share, STEP_COST * complexity(STEPWISE), allowed=np.isinf(STEPWISE) | trusted
        )
        coefficients = np.einsum("c,jchk->jhk", kept, steps)
    stands = np.array([float(n == unjudged(names)) for n in names])
    kept_back = max(0.5 * unseen, RESERVE / (RESERVE + independent[-1]))
    coefficients = (1 - kept_back) * coefficients + kept_back * stands
    report = [
        {"stage": "pooled", **_named(chosen, starts, names, len(pooled) * len(subsets))},
        {"stage": "stepwise", **_shares(kept, STEPWISE)},
    ]
    return Structured(coefficients, report)


def _subset_paths(
    gram: Array, moment: Array, starts: list[Array], extra: float, subsets: list[Array], moves: NDArray[np.bool_]
) -> Array:
    """(candidates, k): the pooled paths on each subset of the features, the others left at zero."""
    out = []
    for use in subsets:
        part = pooled_paths(gram[np.ix_(use, use)], moment[use], [s[use] for s in starts], POOLED, extra, moves[use])
        whole = np.zeros((len(part), len(use)))
        whole[:, use] = part
        out.append(whole)
    return np.concatenate(out)


def _named(weights: Array, starts: list[Array], names: tuple[str, ...], turns: int) -> dict[str, Any]:
    """What weight each forecast that was shrunk to has ("last value", "naive", "0.5 level fast + 0.5 naive"), and each
    penalty."""
    grid = weights.reshape(turns, len(starts), len(POOLED))
    labels = [
        " + ".join(n if w == 1 else f"{w:g} {n}" for n, w in zip(names, start, strict=True) if w) for start in starts
    ]
    return {label or "last value": round(float(w), 3) for label, w in zip(labels, grid.sum((0, 2)), strict=True)} | {
        f"penalty {p:g}": round(float(w), 3) for p, w in zip(POOLED, grid.sum((0, 1)), strict=True)
    }


def _shares(weights: Array, penalties: Sequence[float]) -> dict[str, Any]:
    return {f"penalty {p:g}": round(float(w), 3) for p, w in zip(penalties, weights, strict=True)}


def _robust(train: Examples, coefficients: Array, base: Single) -> Single:
    """Weights that turn squares into absolute values, floored at a third of the typical residual."""
    residual = np.abs(train.target - _apply(train.features, coefficients))
    seen = base > 0
    typical = (residual * seen).sum(0) / np.maximum(seen.sum(0), 1)
    return np.asarray(typical / np.maximum(residual, 0.33 * typical + 1e-12), dtype=np.float32)


def _apply(features: Single, coefficients: Array) -> Single:
    """(n, H) from features (n, H, k) and coefficients (H, k)."""
    return np.asarray(np.matmul(features.transpose(1, 0, 2), coefficients.astype(np.float32)[..., None])[..., 0].T)


def _errors(check: Examples, candidates: Array) -> Array:
    """(n, C) validation errors of candidates (fits, C, H or 1, k), every window judged by its own fit."""
    h, k = check.features.shape[1:]
    out = np.zeros((len(check), candidates.shape[1]))
    for j in np.unique(check.member):
        rows = np.flatnonzero(check.member == j)
        f = check.features[rows].transpose(1, 0, 2)
        c = np.broadcast_to(candidates[j].transpose(1, 2, 0), (h, k, candidates.shape[1])).astype(np.float32)
        path = np.matmul(f, c).transpose(1, 0, 2)  # (n, H, C)
        w = check.weight[rows][..., None]
        out[rows] = (np.abs(check.target[rows][..., None] - path) * w).sum(1) / np.maximum((w > 0).sum(1), 1)
    return out


@dataclass
class Linear:
    """Ridge from the raw context to the remaining error: coefficients (fits, L, H)."""

    coefficients: Array
    report: list[dict[str, Any]]


def fit_context(
    context: Single,
    rest: Single,
    weight: Single,
    member: Index,
    check: Examples,
    done: Single,
    lengths: tuple[int, ...],
    independent: Array,
    apart: float,
) -> Linear:
    """`rest` (fits, n, H) is what each fit's structured stage leaves of the target, `done` (n_check, H) its paths."""
    fits, _, h = rest.shape
    longest = context.shape[1]
    row_weight = weight.mean(1) / np.maximum(np.sqrt((rest[-1] ** 2).mean(1)), 1e-3)
    row_weight = (row_weight / max(row_weight.mean(), 1e-30)).astype(np.float32)
    gram = np.zeros((fits, longest, longest))
    moment = np.zeros((fits, longest, h))
    total = np.zeros(fits)
    for j in range(fits):
        rows = member <= j
        x = context[rows]
        wx = x * row_weight[rows, None]
        gram[j] = x.T @ wx
        moment[j] = wx.T @ (rest[j][rows] * (weight[rows] > 0))
        total[j] = max(row_weight[rows].sum(), 1e-30)
    gram, moment = gram / total[:, None, None], moment / total[:, None, None]
    errors, paths = [], []
    extra = CONTEXT_CAUTION * longest / np.maximum(independent, 0.1)
    for length in lengths:
        path = [Path.of(g[-length:, -length:], c[-length:]) for g, c in zip(gram, moment, strict=True)]
        paths.append(path)
        for penalty in CONTEXT:
            if np.isinf(penalty) and length != lengths[0]:
                continue
            errors.append(_context_error(check, done, path, penalty, length, extra))
    grid = [(i, p) for i, n in enumerate(lengths) for p in CONTEXT if not (np.isinf(p) and i)]
    cost = CONTEXT_COST * complexity([p for _, p in grid])
    judged = np.isin(check.member, np.flatnonzero(np.bincount(member, minlength=fits).cumsum() >= LEAST))
    share = near_best(np.stack(errors, 1)[judged], apart, cost, allowed=(cost == 0) | judged.any())
    coefficients = np.zeros((fits, longest, h))
    for (i, penalty), w in zip(grid, share, strict=True):
        if w > 0 and not np.isinf(penalty):
            for j in range(fits):
                coefficients[j, -lengths[i] :] += w * paths[i][j].coefficients(penalty + extra[j])
    report = {f"context {lengths[i]} penalty {p:g}": round(float(w), 3) for (i, p), w in zip(grid, share, strict=True)}
    return Linear(coefficients, [{"stage": "context", **{k: v for k, v in report.items() if v}}])


def _context_error(check: Examples, done: Single, path: list[Path], penalty: float, length: int, extra: Array) -> Array:
    out = np.zeros(len(check))
    for j in np.unique(check.member):
        rows = np.flatnonzero(check.member == j)
        sub = Examples(
            check.features[:0],
            check.target[rows],
            check.weight[rows],
            check.context[rows],
            check.series[rows],
            check.member[rows],
        )
        add = (
            0.0
            if np.isinf(penalty)
            else sub.context[:, -length:] @ path[j].coefficients(penalty + extra[j]).astype(np.float32)
        )
        out[rows] = sub.error(done[rows] + add)
    return out


OWN = (0.01, 0.1, 1.0, 10.0, np.inf)
OWN_COST = 3.0


def _own_path(x: Single, weight: Single, rest: Single) -> Path:
    """Ridge on the contexts x (n, L) of one series' windows, large errors `rest` (n, H) counting less."""
    robust = weight / np.maximum(np.sqrt((rest**2).mean(1)), 1e-3)
    wx = x * (robust / robust.sum())[:, None]
    return Path.of((x.T @ wx).astype(np.float64), (wx.T @ rest).astype(np.float64))


def fit_own(
    train: Examples,
    rest: Single,
    check: Examples,
    done: Single,
    length: int,
    independent: Array,
    apart: float,
    count: int,
) -> tuple[Array, Single, list[dict[str, Any]]]:
    """Ridge of each series by itself on what the common stages leave: coefficients (count, length, H), the new
    validation paths, and the report. Series with few windows, and all where validation sees no gain, keep zeros.

    `rest` (fits, n, H) is what each fit leaves of the target.
    """
    fits, _, h = rest.shape
    out = np.zeros((count, length, h))
    errors = np.repeat(check.error(done)[:, None], len(OWN), 1)
    added = np.zeros((len(OWN), *done.shape), dtype=np.float32)
    extra = CONTEXT_CAUTION * length / np.maximum(independent / max(apart, 1.0), 0.1)  # (fits,)
    found: dict[int, Path] = {}
    seen = (train.weight > 0).any(1)  # a window in the midst of a gap has nothing to tell
    for s in np.unique(check.series):
        rows = np.flatnonzero((train.series == s) & seen)
        if len(rows) < 200:
            continue
        for j in range(fits):
            part = rows[train.member[rows] <= j]
            judged = np.flatnonzero((check.series == s) & (check.member == j))
            if len(part) < 100 or (j < fits - 1 and not len(judged)):
                continue
            path = _own_path(train.context[part, -length:], train.weight[part].mean(1), rest[j][part])
            if j == fits - 1:
                found[int(s)] = path
                continue
            inputs = check.context[judged, -length:]
            for i, penalty in enumerate(OWN[:-1]):
                added[i, judged] = inputs @ path.coefficients(penalty + extra[j]).astype(np.float32)
                errors[judged, i] = check.only(judged).error(done[judged] + added[i, judged])
    if not found:
        return out[:0], done, []
    cost = OWN_COST * complexity(OWN)
    pooled = near_best(errors, apart / count, cost)
    paths = done.copy()
    used = []
    for s, path in found.items():
        rows = np.flatnonzero(check.series == s)
        trust = len(rows) / (len(rows) + 30.0)
        weight = (1 - trust) * pooled + trust * near_best(errors[rows], 1.0, cost)
        for i, penalty in enumerate(OWN[:-1]):
            out[s] += weight[i] * path.coefficients(penalty + extra[-1])
            paths[rows] += weight[i] * added[i, rows]
        used.append(1 - weight[-1])
    return out, paths, [{"stage": "own", "weight": round(float(np.mean(used)), 3)}]
