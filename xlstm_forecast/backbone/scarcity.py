"""How much wider bands have to be after a brief history, and after a gap before the first step.

Errors are learned from histories that mostly are long and end in a value. So values are taken away from windows of the
validation parts, and what then is missed by more than the scale model says is what such histories cost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from xlstm_forecast.backbone.spread import Spread
from xlstm_forecast.backbone.windows import Array

Miss = Callable[[Array], Array]  # histories (n, L) -> (n, H) logs of errors in units of sigma, NaN where not known
DOUBT = 4.0  # independent windows at which half of what was measured is believed
AGEING = 0.25  # exponent of the error's growth with age before any window tells; .5 is a random walk's
GAPS = (1, 2, 4, 8, 16, 32, 64)  # rows


def measure_scarcity(spread: Spread, history: Array, season: int, miss: Miss, effective: float) -> Spread:
    """With `brief` and `ageing` as found on windows with histories (n, L).

    `effective` says how many of the windows are independent.
    """
    trust = effective / (effective + DOUBT)
    whole = miss(history)
    brief = _brief(history, season, miss, whole) * np.array([[1.0], [trust]])
    found = _ageing(history, miss, whole)
    ageing = AGEING if found is None else trust * found + (1 - trust) * AGEING
    return replace(spread, brief=brief, ageing=np.array([ageing]))


def _brief(history: Array, season: int, miss: Miss, whole: Array) -> Array:
    """(2, B) numbers of values, ascending, and the logs of how much more is missed with no more than these."""
    since = np.cumsum(np.isfinite(history)[:, ::-1], 1)[:, ::-1]  # (n, L) values observed from each on
    typical = int(np.median(since[:, 0]))
    seasons = {season - 1, *(n * season for n in (1, 2, 4, 8, 16))}  # of all values but one nothing is seasonal yet
    counts = [c for c in sorted({2, 4, 8} | seasons) if 1 < c <= typical / 1.5]
    wider = []
    for count in counts:
        more = (miss(np.where(since > count, np.nan, history)) - whole)[since[:, 0] >= 1.5 * count]
        told = np.isfinite(more)
        wider.append(float(more[told].mean()) if told.any() else 0.0)
    values = np.array([*counts, max(typical, 2)], dtype=float)
    added = np.append(np.clip(wider, 0.0, 3.0), 0.0)
    return np.stack([values, np.maximum.accumulate(added[::-1])[::-1]])  # never less for a briefer one


def _ageing(history: Array, miss: Miss, whole: Array) -> float | None:
    """Exponent a of the error's growth by ((step + gap) / step)^a where the last `gap` values are missing."""
    seen = np.isfinite(history)
    available = np.where(seen.any(1), history.shape[1] - seen.argmax(1), 0)
    steps = np.arange(1, whole.shape[1] + 1)
    top = bottom = 0.0
    for gap in GAPS:
        rows = available >= 4 * gap
        if not rows.any():
            break
        cut = history.copy()
        cut[:, -gap:] = np.nan
        more = (miss(cut) - whole)[rows]
        age = np.broadcast_to(np.log((steps + gap) / steps), more.shape)
        told = np.isfinite(more)
        top, bottom = top + (more * age)[told].sum(), bottom + (age**2)[told].sum()
    return float(np.clip(top / bottom, 0.0, 1.0)) if bottom > 0 else None
