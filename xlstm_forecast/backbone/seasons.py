"""Seasons in steps: one table from the length of a step, confirmed on the data."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_DAY = 86_400.0
_YEAR = 365.25 * _DAY
_UNITS = {  # seconds per pandas frequency unit
    "ns": 1e-9,
    "us": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "min": 60.0,
    "t": 60.0,
    "h": 3600.0,
    "bh": 3600.0,
    "d": _DAY,
    "c": _DAY,
    "w": 7 * _DAY,
    "sm": _YEAR / 24,
    "sme": _YEAR / 24,
    "sms": _YEAR / 24,
    **dict.fromkeys(("m", "me", "ms_", "bm", "bme", "bms", "cbms", "cbme"), _YEAR / 12),
    **dict.fromkeys(("q", "qe", "qs", "bq", "bqe", "bqs"), _YEAR / 4),
    **dict.fromkeys(("y", "ye", "ys", "a", "as", "bye", "bys", "ba", "bas"), _YEAR),
}
SMOOTH = 1e-10  # deviations from the moving average, in parts of the largest one from the mean, that are rounding
_INTEGER_PERIODS = (4, 5, 6, 7, 10, 12, 24, 48, 52, 96, 144, 168, 288)  # tried where time is an integer


def step_seconds(freq: str | None) -> float | None:
    """Seconds of one step of a pandas frequency alias ("15min", "h", "4h", "10D", "W-THU", "MS"); None: integer time.

    Business days count as a seventh more than a day, so that a week has five steps. What shifts an alias ("MS+14D", the
    15th of a month) does not count. Raises ValueError for an alias that is not known.
    """
    if freq is None or freq.lower() in ("", "int", "integer"):
        return None
    match = re.fullmatch(r"(\d*)\s*([A-Za-z]+)(-[A-Za-z0-9]+)*(\+.+)?", freq.strip())
    if match:
        count, unit = int(match[1] or 1), match[2]
        if unit == "MS":
            return count * _YEAR / 12
        if unit in ("B", "C"):
            return count * _DAY * 7 / 5
        if unit == "M":
            return count * _YEAR / 12
        if unit.lower() in _UNITS:
            return count * _UNITS[unit.lower()]
    raise ValueError(f"freq: {freq!r} is no known frequency; pass a pandas alias such as 'h', '15min', 'D', 'W', 'MS'")


def table(freq: str | None) -> tuple[int, int]:
    """(short, long) season in steps that a frequency suggests; 1 where there is none.

    The one place where frequencies differ: below a day the day and the week, for days the week and the year, above
    that the year. A year of days is 364, so that weekdays stay in place.
    """
    step = step_seconds(freq)
    if step is None:
        return 1, 1
    day, week, year = (_whole(p / step) for p in (_DAY, 7 * _DAY, _YEAR))
    if step < 0.75 * _DAY:
        return (day, week) if day <= 1440 else (_whole(3600 / step), 1)
    if step < 2.5 * _DAY:
        return (week, week * 52) if week > 1 else (1, year)
    if step < 25 * _DAY:
        return 1, year
    return (year, 1) if year > 1 else (1, 1)


def _whole(steps: float) -> int:
    """The season of so many steps; 1 where they are far from a whole number, as a week of two-day steps is."""
    nearest = max(1, round(steps))
    return nearest if abs(steps / nearest - 1) <= 0.02 else 1


def strength(rows: list[Array], season: int, most: int = 40) -> float:
    """Mean over series of the share of variance around a moving average that the phase of a season explains.

    What phases would explain by chance is taken off, so that it is near 0 without a season and 1 for an exact one. NaN
    where no series holds four seasons.
    """
    values = []
    for row in rows:
        row = row[-(most + 1) * season :]
        count = len(row) // season - 1
        if count < 3:
            continue
        filled = np.where(np.isfinite(row), row, np.nanmean(row) if np.isfinite(row).any() else 0.0)
        coarse = np.spacing(np.abs(filled).max())
        filled = filled - filled.mean()
        total = np.cumsum(np.concatenate([[0.0], filled]))
        left = season // 2
        around = (total[season:] - total[:-season]) / season
        rest = filled[left : left + len(around)] - around
        rest = rest - rest.mean()  # the average of an even season is half a step late: on a slope, off by a constant
        size = 6 * np.mean(np.abs(rest))
        cycle = np.clip(rest, -size, size)[-count * season :].reshape(count, season)
        power = float((cycle**2).mean())
        if power > (SMOOTH * np.abs(filled).max() + coarse) ** 2:
            share = float((cycle.mean(0) ** 2).mean()) / power
            values.append((share - 1 / count) / (1 - 1 / count))
    return float(np.mean(values)) if values else np.nan


def _by_chance(rows: list[Array], season: int, most: int = 40) -> float:
    """Standard error of `strength` where there is no season; NaN where it cannot be told."""
    counts = np.array([min(len(row) // season - 1, most) for row in rows if len(row) // season >= 4])
    return float(np.sqrt(2 / season * np.sum(1.0 / (counts - 1) ** 2)) / len(counts)) if len(counts) else np.nan


def repeats(rows: list[Array], season: int, horizon: int) -> bool:
    """Whether values a season apart differ clearly less than those up to a horizon apart: where nothing can be fitted.

    Only series with half a season of such pairs count, so that it is never told from a few values. A fifth less is
    asked for: a random walk seldom gets there (1 of 30), a season twice as high as the noise does.
    """
    ratios = []
    for row in rows[:: max(1, len(rows) // 200)]:
        if len(row) < 1.5 * season:
            continue
        near = np.concatenate([np.abs(row[k:] - row[:-k]) for k in range(1, min(horizon, len(row) - 1) + 1)])
        apart = np.abs(row[season:] - row[:-season])
        if np.nansum(near) > 0 and np.isfinite(apart).any():
            ratios.append(np.nanmean(apart) / np.nanmean(near))
    return bool(ratios) and float(np.median(ratios)) < 0.8


def recurs(rows: list[Array], season: int, horizon: int) -> bool:
    """Whether what is known of a season speaks for it: where it was seen too seldom to be judged by forecasts.

    Either values a season apart differ little more than those up to a horizon apart: in logs a third of the way from
    noise, where they differ as much, to a random walk (less would drop seasons that hold for a part of the year). Or
    the changes from there on clearly repeat those of a season ago, as where the season stands on a moving level: they
    differ by a fifth less than they do from the drift of the whole series. Every series longer than a season counts,
    the median decides.
    """
    steps = np.unique(np.geomspace(1, horizon, min(horizon, 24)).astype(np.int64))  # enough of them to tell
    walk = season**0.5 / np.mean(steps**0.5)
    values, changes = [], []
    for row in rows[:: max(1, len(rows) // 200)]:
        drift = float(np.nanmean(np.diff(row))) if np.isfinite(np.diff(row)).any() else 0.0
        sizes = np.zeros(4)
        for k in steps[steps < len(row) - season]:
            ahead, then = row[season + k :], row[k : len(row) - season]
            change = ahead - row[season:-k]
            repeated = then - row[: len(row) - season - k]
            found = np.abs([change, change - k * drift, ahead - then, change - repeated])
            sizes += np.where(np.isfinite(found).all(0), found, 0.0).sum(1)
        if min(sizes[:2]) > 0:
            values.append(sizes[2] / sizes[0])
            changes.append(sizes[3] / sizes[1])
    return bool(values) and bool(np.median(values) < max(walk, 1.0) ** (1 / 3) or np.median(changes) < 0.8)


def confirm(rows: list[Array], freq: str | None, horizon: int, threshold: float = 0.04) -> tuple[int, int]:
    """(short, long) season: the table's, dropped where the data speak against it; for integer time the strongest.

    The data speak against a short season whose `strength` is below the threshold, or less than what one standard error
    gives it by chance; where it cannot be told, they do where it does not recur within the horizon.
    """
    short, long = table(freq)
    rows = rows[:: max(1, len(rows) // 200)]
    if step_seconds(freq) is None:
        scores = {p: strength(rows, p) for p in _INTEGER_PERIODS}
        best = max((s for s in scores.values() if s == s), default=0.0)
        if best < 0.2:
            return 1, 1
        return next(p for p, s in scores.items() if s > 0.8 * best), 1
    if short > 1:
        found = strength(rows, short)
        stands = recurs(rows, short, horizon) if np.isnan(found) else found >= max(threshold, _by_chance(rows, short))
        short = short if stands else 1
    return short, long
