"""Structured features: what simple forecasters would say about every step of the horizon.

Each feature is a function of the history alone, expressed as a difference from the prior forecast (or as a pure trend
term): adding a constant to a series changes none of them and scaling a series scales all of them. All are linear in the
history but "drifting", which goes on with a drift as far as that stands out of its noise. A ridge regression on them
therefore moves from the prior towards whichever simple forecasters hold on the data.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from xlstm_forecast.backbone.windows import Array, Index

_RATES = (0.15, 0.4)  # exponential smoothing of the level
_SLOPES = ((0.1, 0.98), (0.3, 0.85))  # smoothing of the slope, damping per step
_HOLT = {"holt slow": (0.3, 0.1, 0.98), "holt fast": (0.8, 0.3, 0.98)}  # rates of level and slope, damping per step
_RECENT = 512  # values that levels, trends and drifts are taken from
_STRETCHES = 12  # means that a drift is measured between, at least, where the recent values hold so many seasons
_STANDS_OUT = 4.0  # squared t-value of a drift that is taken for noise, where many changes tell of it,
_TWO_STAND_OUT = 60.0  # and where two do
REVISION = 3  # of what the features below mean: raise it with that, as coefficients are saved
TRENDING = (*_HOLT, "drifting")  # forecasts that go on with a trend
# Features that a ridge shrinks to nothing instead of towards the prior's forecast. "drifting" is a forecast by itself,
# and one to shrink towards, but as a feature it does better here: docs/accuracy.md, what was tried.
CORRECTIONS = ("slope slow", "slope fast", "drift", "drifting")


def corrects(name: str) -> bool:
    """Whether a feature shrinks to nothing; known-future inputs do, too."""
    return name in CORRECTIONS or name.startswith("known")


@dataclass(frozen=True)
class Shape:
    """What the features need to know: horizon, seasons in steps (1 = none)."""

    horizon: int
    short: int
    long: int


@dataclass(frozen=True)
class Proposals:
    """Simple forecasts of one batch of histories, in true units."""

    last: Array  # (n, 1) the last value
    features: Array  # (n, H, k) forecasts minus the last value, and pure trend terms
    names: tuple[str, ...]  # (k,)
    drift: Array  # (n,) per step, as far as it stands out


def natural_season(names: tuple[str, ...]) -> str:
    """The feature that is the seasonal naive; none where the last value is."""
    return "naive" if "naive" in names else "long" if "long" in names else ""


def unjudged(names: tuple[str, ...]) -> str:
    """The feature that keeps a part whatever windows say: the natural season or last value, moved by a drift.

    Not so where that season is a year of weeks, which seldom has the four seasons that a drift takes.
    """
    return "long" if natural_season(names) == "long" else "drifting"


def priors(names: tuple[str, ...]) -> tuple[list[Array], Array]:
    """Forecasts to shrink towards, as weights on the features (zero is the last value), and what each one costs.

    The naive forecast of the natural season costs nothing: whatever differs from it has to be argued for. A drift that
    stands out of the noise has argued for itself in part.
    """
    natural = natural_season(names)
    mixes: list[tuple[float, dict[str, float]]] = [
        (3.0, {}),
        (3.0, {"naive": 1.0}),
        (3.0, {"level fast": 1.0}),
        (2.0, {"level fast": 0.5, "naive": 0.5}),
        (2.0, {"level slow": 0.5, "seasons few": 0.5}),
        (3.0, {"level fast": 1.0, "slope slow": 1.0}),
        (3.0, {"long": 1.0}),
        (3.0, {"long moved": 1.0}),
        (2.0, {"long": 0.5, "level fast": 0.5}),
        *((3.0, {name: 1.0}) for name in _HOLT),
        (2.0, {"drifting": 1.0}),
    ]
    chosen = [(cost, mix) for cost, mix in mixes if set(mix) <= set(names)]
    costs = np.array([0.0 if mix == ({natural: 1.0} if natural else {}) else cost for cost, mix in chosen])
    return [np.array([mix.get(n, 0.0) for n in names]) for _, mix in chosen], costs


def _weights(rate: float, length: int) -> Array:
    w = (1 - rate) ** np.arange(length - 1, -1, -1.0)
    return w


def _smoothed(rows: Array, rate: float, available: Index) -> Array:
    """(n,) exponentially weighted mean of the last `available` entries of each row."""
    length = rows.shape[1]
    w = _weights(rate, length) * (np.arange(length) >= length - np.maximum(available, 1)[:, None])
    return np.asarray((rows * w).sum(1) / w.sum(1))


def _phases(rows: Array, season: int, count: int, horizon: int) -> Array:
    """(n, horizon) mean over the last `count` seasons of the same phase."""
    cycle = rows[:, rows.shape[1] - count * season :].reshape(len(rows), count, season).mean(1)
    return np.asarray(cycle[:, np.arange(horizon) % season])


def seasonal_profile(rows: Array, season: int, available: Index, most: int = 4) -> Array:
    """(n, season) mean deviation of each phase from the mean of its season, over up to `most` seasons of each row.

    Less what the trend between these seasons makes of it, where there are two of them.
    """
    out = np.zeros((len(rows), season))
    phase = np.arange(season) - (season - 1) / 2
    length = rows.shape[1]
    seasons = np.clip(available // season, 0, min(most, length // season))
    for count in np.unique(seasons[seasons > 0]):
        which = seasons == count
        block = rows[which, length - count * season :].reshape(-1, count, season)
        mean = block.mean(2)
        slope = (mean[:, -1] - mean[:, 0]) / (max(count - 1, 1) * season)
        out[which] = (block - mean[..., None]).mean(1) - slope[:, None] * phase
    return out


def proposals(rows: Array, available: Index, shape: Shape, extra: dict[str, Array] | None = None) -> Proposals:
    """Simple forecasts from complete histories (n, L), of which the last `available` values are real.

    `extra` holds further features (n, H) in true units, those of covariates.
    """
    length, h, m = rows.shape[1], shape.horizon, shape.short
    step = np.arange(h)
    last = rows[:, -1:]
    recent = rows[:, -min(length, _RECENT) :]
    if m > 1:
        profile = seasonal_profile(rows, m, available)
        adjusted = recent - profile[:, np.arange(-recent.shape[1], 0) % m]
        ahead = profile[:, step % m]
    else:
        adjusted, ahead = recent, np.zeros((1, h))
    usable = np.minimum(available, recent.shape[1])

    out: dict[str, Array] = {}
    out["level slow"] = _smoothed(adjusted, _RATES[0], usable)[:, None] + ahead - last
    out["level fast"] = _smoothed(adjusted, _RATES[1], usable)[:, None] + ahead - last
    out["mean short"] = _mean_of_last(adjusted, max(4, m), usable)[:, None] + ahead - last
    out["mean long"] = _mean_of_last(adjusted, max(16, 2 * m), usable)[:, None] + ahead - last
    out |= _trends(adjusted, usable, h, m)
    naive = last
    if m > 1:
        naive = np.where(available[:, None] >= m, rows[:, length - m + step % m], last)
        out["naive"] = naive - last
        out["last moved"] = adjusted[:, -1:] - last + ahead
        out |= _seasonal(rows, available, m, h, naive, last)
    if shape.long > 1:
        out |= _long(rows, available, shape, naive, last)
    out |= {name: path + ahead - last for name, path in _holt(adjusted, usable, h).items()}
    drift = standing_drift(recent, usable, m)
    out["drifting"] = naive - last + carried(drift, usable, m * np.ceil((step + 1) / m))  # whole seasons of it
    out |= extra or {}
    features = np.stack([np.broadcast_to(f, (len(rows), h)) for f in out.values()], -1)
    return Proposals(last=last, features=features, names=tuple(out), drift=drift)


def _mean_of_last(rows: Array, width: int, available: Index) -> Array:
    length = rows.shape[1]
    width = min(width, length)
    total = np.cumsum(rows[:, ::-1][:, :width], 1)
    use = np.clip(available, 1, width)
    return np.asarray(total[np.arange(len(rows)), use - 1] / use)


def _trends(adjusted: Array, available: Index, horizon: int, season: int) -> dict[str, Array]:
    """Damped trend terms: smoothed slopes carried ahead, and the drift between the last two stretches of a season."""
    step = np.arange(1, horizon + 1)
    out = {}
    change = np.diff(adjusted, axis=1, prepend=adjusted[:, :1])
    for name, (rate, damping) in zip(("slope slow", "slope fast"), _SLOPES, strict=True):
        slope = _smoothed(change, rate, np.maximum(available - 1, 1))
        out[name] = slope[:, None] * _damped(damping, horizon)
    width = min(max(4, season), adjusted.shape[1] // 2)
    recent, before = adjusted[:, -width:].mean(1), adjusted[:, -2 * width : -width].mean(1)
    drift = np.where(available >= 2 * width, (recent - before) / width, 0.0)
    out["drift"] = drift[:, None] * (step / (1 + step / (4.0 * width)))
    return out


def _damped(damping: float, horizon: int) -> Array:
    """(H,) how far a slope of one leads that is damped at every step."""
    return np.asarray(damping * (1 - damping ** np.arange(1, horizon + 1)) / (1 - damping))


@lru_cache(maxsize=64)
def _holt_weights(level: float, slope: float, damping: float, length: int) -> Array:
    """(length, 2) weights of the last values in the level and the slope of exponential smoothing with a damped trend.

    Its error-correction form (Gardner & McKenzie 1985), run on a one followed by zeros.
    """
    out = np.zeros((length, 2))
    at, trend = 0.0, 0.0
    for step in range(length):
        error = float(step == 0) - at - damping * trend
        at, trend = at + damping * trend + level * error, damping * trend + level * slope * error
        out[length - 1 - step] = at, trend
    out.flags.writeable = False
    return out


def _holt(adjusted: Array, available: Index, horizon: int) -> dict[str, Array]:
    """(n, H) exponential smoothing with a damped trend, from the first of these values on, without a slope."""
    length = adjusted.shape[1]
    first = length - np.clip(available, 1, length)
    start = adjusted[np.arange(len(adjusted)), first]
    moves = np.where(np.arange(length) > first[:, None], adjusted - start[:, None], 0.0)
    out = {}
    for name, (level, slope, damping) in _HOLT.items():
        at, trend = (moves @ _holt_weights(level, slope, damping, length)).T
        out[name] = (start + at)[:, None] + trend[:, None] * _damped(damping, horizon)
    return out


def standing_drift(rows: Array, available: Index, season: int) -> Array:
    """(n,) drift per step of the recent values, as far as it stands out of their noise.

    It takes three seasons of them. Gaps that were filled count as changes seen, so they make it smaller.
    """
    rows = rows[:, -min(rows.shape[1], _RECENT) :]
    available = np.clip(available, 1, rows.shape[1])
    width = season * np.maximum(available // season // _STRETCHES, 1)
    return np.asarray(_drift(*_changes(rows, available, width)) / width)


def carried(drift: Array, available: Index, reach: Array) -> Array:
    """(n, H) where a drift (n,) leads over `reach` (H,) steps: it slows down with twice the length it was seen over."""
    seen = np.clip(available, 1, _RECENT)[:, None]
    return np.asarray(drift[:, None] * (reach / (1 + reach / (2.0 * seen))))


def _changes(rows: Array, available: Index, width: Index) -> tuple[Array, NDArray[np.bool_]]:
    """(n, k) changes between the means of stretches of `width` (n,) values, the last first, and which there are."""
    n, length = rows.shape
    count = available // width
    back = np.arange(int(count.max(initial=1)))
    there = back < count[:, None]
    end = np.where(there, length - width[:, None] * back, length)
    start = np.where(there, end - width[:, None], length)
    moves = np.where(np.arange(length) >= length - available[:, None], rows - rows[:, -1:], 0.0)
    total = np.concatenate([np.zeros((n, 1)), np.cumsum(moves, 1)], 1)
    mean = (np.take_along_axis(total, end, 1) - np.take_along_axis(total, start, 1)) / width[:, None]
    return np.where(there[:, 1:], mean[:, :-1] - mean[:, 1:], 0.0), there[:, 1:]


def _drift(change: Array, told: NDArray[np.bool_]) -> Array:
    """(n,) mean of two changes or more, times 1 - c / t^2 or 0: the positive part, as James and Stein shrink.

    t is the mean in standard errors, as of changes that are independent (those of means of a walk are not quite: one
    walk in twelve without a drift gets some); c falls to `_STANDS_OUT` with the number of changes, of which two tell
    little.
    """
    unit = np.abs(change).max(1, initial=0.0)
    change = change / np.where(unit > 0, unit, 1.0)[:, None]
    count = told.sum(1)
    drift = change.sum(1) / np.maximum(count, 1)
    free = np.maximum(count - 1, 1)
    noise = ((change - drift[:, None]) ** 2 * told).sum(1) / free / np.maximum(count, 1)
    noise *= np.where(count == 2, _TWO_STAND_OUT, _STANDS_OUT * (1 + 4 / free))
    kept = np.where((count >= 2) & (noise < drift**2), 1 - noise / np.maximum(drift**2, 1e-30), 0.0)
    return np.asarray(kept * drift * unit)


def _seasonal(rows: Array, available: Index, m: int, horizon: int, naive: Array, last: Array) -> dict[str, Array]:
    """Means of the same phase over 4 and up to 16 seasons; the season-ago value moved by the change of level since."""
    out = {}
    length = rows.shape[1]
    for name, most in (("seasons few", 4), ("seasons many", 16)):
        count = min(most, length // m)
        if count > 1:
            mean = _phases(rows, m, count, horizon)
            out[name] = np.where((available >= count * m)[:, None], mean, naive) - last
    width = max(1, m // 4)
    if length >= m + width:
        shift = rows[:, -width:].mean(1) - rows[:, -m - width : length - m].mean(1)
        out["naive moved"] = np.where((available >= m + width)[:, None], naive + shift[:, None], naive) - last
    return out


def _long(rows: Array, available: Index, shape: Shape, fallback: Array, last: Array) -> dict[str, Array]:
    """Values one to three long seasons before the target, as they are and moved by the change of level since."""
    h, long = shape.horizon, shape.long
    length = rows.shape[1]
    width = max(4, shape.short)
    reach = 2 if long >= 36 and shape.short <= 7 else 0  # a year has no exact phase: smooth over neighbours
    level = rows[:, -width:].mean(1)
    ahead = np.arange(h) - long * (np.arange(h) // long)
    out: dict[str, Array] = {}
    moved = []
    for back in range(1, 4):
        start = length - back * long
        if start < width + reach:
            break
        enough = (available >= back * long + width)[:, None]
        if back == 1:
            out["long"] = np.where(enough, rows[:, start + ahead], fallback) - last
        then = rows[:, start - width : start].mean(1)
        moved.append(np.where(enough, _smoothed_at(rows, start + ahead, reach) + (level - then)[:, None], np.nan))
    if moved:
        stack = np.stack(moved)
        seen = np.isfinite(stack)
        mean = np.where(seen, stack, 0.0).sum(0) / np.maximum(seen.sum(0), 1)
        out["long moved"] = np.where(seen[0], stack[0], fallback) - last
        out["long mean"] = np.where(seen.any(0), mean, fallback) - last
    return out


def _smoothed_at(rows: Array, index: Index, reach: int) -> Array:
    top = rows.shape[1] - 1
    return np.asarray(np.mean([rows[:, np.clip(index + d, 0, top)] for d in range(-reach, reach + 1)], axis=0))


def known_changes(known: Array, shape: Shape, unit: Array) -> dict[str, Array]:
    """What known-future inputs (n, B + H, K) do differently from what the simple forecasters repeat, (n, H) each.

    The change since the same phase of the last short and long season (without a season: since the last row), and the
    distance from the recent mean, in units of `unit` (K,). Missing values count as no change.
    """
    h = shape.horizon
    behind = known.shape[1] - h
    step = np.arange(h)
    out = {}
    for k in range(known.shape[2]):
        values = known[:, :, k] / unit[k]
        ahead = values[:, behind:]
        for name, season in (("short", shape.short), ("long", shape.long)):
            if season <= behind and (season > 1 or name == "short"):
                out[f"known {k} {name}"] = ahead - values[:, behind - season + step % season]
        with np.errstate(invalid="ignore"):
            recent = values[:, max(behind - max(shape.short, 8), 0) : behind]
            seen = np.isfinite(recent)
            mean = np.where(seen, recent, 0).sum(1) / np.maximum(seen.sum(1), 1)
        out[f"known {k} level"] = ahead - mean[:, None]
    return {name: np.clip(np.where(np.isfinite(v), v, 0.0), -10, 10) for name, v in out.items()}
