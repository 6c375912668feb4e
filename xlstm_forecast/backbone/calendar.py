"""A calendar profile for daily, weekly and monthly records: what holidays and the make-up of months multiply.

The ratio of each value to its local level is regressed on indicators of the date. The series are divided by
1 + profile before the fit and the forecasts multiplied by it. It is kept only where it explains dates it has not seen,
and where it also lowers the validation error of the forecasts (see `Backbone`): invented dates pass neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from xlstm_forecast.backbone.seasons import step_seconds
from xlstm_forecast.backbone.windows import Array, Index, rows_of

Dates = NDArray[np.datetime64]
_PENALTIES = (1.0, 4.0, 16.0, 64.0)
_LEAST = {"D": 1100, "W": 260, "M": 60}  # values before a profile is tried


def kind(freq: str | None) -> str | None:
    """D, W or M for steps of one day, week or month; None for all others."""
    seconds = step_seconds(freq)
    if seconds is None or (freq or "").upper().startswith(("B", "C")):
        return None
    days = seconds / 86_400
    return {1.0: "D", 7.0: "W"}.get(days) or ("M" if 30 < days < 31 else None)


def stamps(first: Dates, steps: Index, step: str) -> Dates:
    """(n, T) dates `steps` (T,) steps from each of `first` (n,), in days ("D", "W") or months ("M")."""
    if step == "M":
        return np.asarray(first).astype("datetime64[M]")[:, None] + np.asarray(steps)
    days = np.asarray(steps) * (7 if step == "W" else 1)
    return np.asarray(np.asarray(first).astype("datetime64[D]")[:, None] + days.astype("timedelta64[D]"))


def _places(dates: Dates) -> tuple[Index, Index]:
    """Of dates (n,), the columns of (month, day) and of (month, week of the month, weekday) in `_days`, (n,) each."""
    day = dates.astype("datetime64[D]")
    month = day.astype("datetime64[M]")
    m = month.astype(int) % 12
    d = (day - month.astype("datetime64[D]")).astype(int)
    weekday = (day.astype(int) + 3) % 7
    return m * 31 + d, 372 + m * 35 + np.minimum(d // 7, 4) * 7 + weekday


def _days(dates: Dates) -> Array:
    """(n, 372 + 420) indicators of (month, day) and of (month, week of the month, weekday)."""
    out = np.zeros((len(dates), 12 * 31 + 12 * 35))
    for place in _places(dates):
        out[np.arange(len(dates)), place] = 1
    return out


def indicators(dates: Dates, step: str, shift: int) -> Array:
    """(n, p) indicators of dates (n,): a week is the seven days that begin `shift` days after its stamp, a month the
    number of each of its weekdays."""
    if step == "D":
        return _days(dates)
    if step == "W":
        return np.asarray(sum(_days(dates.astype("datetime64[D]") + shift + k) for k in range(7)))
    month = dates.astype("datetime64[M]")
    first = month.astype("datetime64[D]")
    length = ((month + 1).astype("datetime64[D]") - first).astype(int)
    weekday = (first.astype(int) + 3) % 7
    out = np.full((len(dates), 7), 4.0)
    for extra in range(3):
        out[np.arange(len(dates)), (weekday + extra) % 7] += length > 28 + extra
    return out


def _local(row: Array, dates: Dates, step: str) -> Array:
    """Level around each value that does not hold the value itself; NaN near the ends."""
    n = len(row)
    out = np.full(n, np.nan)
    if step == "D":
        around: tuple[int, ...] = (-21, -14, -7, 7, 14, 21)
        reach = 21
    else:
        reach = 4 if step == "W" else 6
        around = tuple(k for k in range(-reach, reach + 1))
    if n <= 2 * reach:
        return out
    stack = np.stack([row[reach + k : n - reach + k] for k in around])
    seen = reach + np.flatnonzero(np.isfinite(stack).any(0))
    around_seen = stack[:, seen - reach]
    out[seen] = np.nanmean(around_seen, 0) if step == "M" else np.nanmedian(around_seen, 0)
    return out


def _ratios(row: Array, dates: Dates, step: str) -> Array:
    """(n,) value over local level minus 1; months relative to the same month of other years."""
    ratio = row / _local(row, dates, step) - 1
    if step == "M":
        month = dates.astype("datetime64[M]").astype(int) % 12
        for m in range(12):
            these = month == m
            if np.isfinite(ratio[these]).any():
                ratio[these] -= np.nanmean(ratio[these])
    return np.clip(ratio, -0.9, 3.0)


@dataclass(frozen=True)
class Calendar:
    """Coefficients of the indicators; `at(dates)` is the factor 1 + profile."""

    step: str
    shift: int
    coefficients: Array  # (p,)
    centre: Array  # (p,) subtracted from the indicators (months), else zero

    def at(self, dates: Dates) -> Array:
        """Factors for dates of any shape."""
        flat = np.asarray(dates).ravel()
        if self.step == "D":  # two of the indicators are one, the others zero
            profile = sum(self.coefficients[place] for place in _places(flat))
        else:
            unique, back = np.unique(flat, return_inverse=True)
            profile = ((indicators(unique, self.step, self.shift) - self.centre) @ self.coefficients)[back]
        return np.asarray(np.clip(1 + profile, 0.2, 4.0).reshape(np.shape(dates)))


class Trial(NamedTuple):
    """A profile, or none, and why."""

    calendar: Calendar | None
    why: str


def fit_calendar(values: Array, offsets: Index, starts: Dates | None, freq: str | None) -> Trial:
    """A profile common to all series; none where there are too few values, or where it explains no unseen dates."""
    step = kind(freq)
    if starts is None:
        return Trial(None, "the series have no dates")
    if step is None:
        return Trial(None, "profiles are for steps of one day, week or month")
    dates, ratios, owner = [], [], []
    for s, row in enumerate(rows_of(values, offsets)):
        seen = row[np.isfinite(row)]
        if len(seen) < _LEAST[step] or seen.min() <= 0 or seen.std() >= 0.6 * seen.mean():
            continue
        when = stamps(starts[s : s + 1], np.arange(len(row)), step)[0]
        ratio = _ratios(row, when, step)
        use = np.isfinite(ratio)
        dates.append(when[use])
        ratios.append(ratio[use])
        owner.append(np.full(int(use.sum()), s))
    if len(dates) < max(1, 0.5 * (len(offsets) - 1)):
        least = f"{_LEAST[step]} values, all positive, with a deviation below 0.6 of the mean"
        return Trial(None, f"{len(dates)} of {len(offsets) - 1} series have {least}; half of them must")
    return _best(np.concatenate(dates), np.concatenate(ratios), np.concatenate(owner), step)


def _best(dates: Dates, ratio: Array, owner: Index, step: str) -> Trial:
    """Penalty, and the days that a weekly stamp covers, by five contiguous blocks of time."""
    series, owner = np.unique(owner, return_inverse=True)
    limit = 0.95 if len(series) == 1 else 0.8
    unique, back = np.unique(dates, return_inverse=True)
    count = np.bincount(back).astype(float)
    mean = np.bincount(back, ratio) / count
    power = np.maximum(np.bincount(owner, ratio**2), 1e-30)
    best = np.inf, 0.0, 0
    for shift in (-6, 0) if step == "W" else (0,):
        x, _ = _inputs(unique, step, shift)
        for penalty, guess in zip(_PENALTIES, _unseen(x, mean, count), strict=True):
            left = float(np.median(np.bincount(owner, (ratio - guess[back]) ** 2) / power))
            if left < best[0]:
                best = left, penalty, shift
    why = f"a profile leaves {best[0]:.2f} of the variation on dates it has not seen, where {limit:g} is the most"
    if best[0] >= limit:
        return Trial(None, why)
    x, centre = _inputs(unique, step, best[2])
    gram = x.T @ (x * count[:, None]) + best[1] * count.mean() * np.eye(x.shape[1])
    return Trial(Calendar(step, best[2], np.linalg.solve(gram, x.T @ (mean * count)), centre), why)


def _inputs(dates: Dates, step: str, shift: int) -> tuple[Array, Array]:
    raw = indicators(dates, step, shift)
    centre = raw.mean(0) if step == "M" else np.zeros(raw.shape[1])
    return raw - centre, centre


def _unseen(x: Array, mean: Array, count: Array) -> list[Array]:
    """What a ridge with each penalty says about each of five blocks when fitted on the others."""
    block = np.minimum(np.arange(len(x)) * 5 // len(x), 4)
    out = [np.zeros(len(x)) for _ in _PENALTIES]
    for b in range(5):
        fit = block != b
        value, vector = np.linalg.eigh(x[fit].T @ (x[fit] * count[fit, None]))
        projected = vector.T @ (x[fit].T @ (mean[fit] * count[fit]))
        ahead = x[~fit] @ vector
        for guess, penalty in zip(out, _PENALTIES, strict=True):
            guess[~fit] = ahead @ (projected / (np.maximum(value, 0) + penalty * count.mean()))
    return out


def divided(values: Array, offsets: Index, starts: Dates, calendar: Calendar) -> Array:
    """The flat column with the profile taken out."""
    factors = [
        calendar.at(stamps(starts[s : s + 1], np.arange(b - a), calendar.step)[0])
        for s, (a, b) in enumerate(pairwise(offsets))
    ]
    return np.asarray(values / np.concatenate(factors))
