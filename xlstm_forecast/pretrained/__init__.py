"""A small pre-trained xLSTM that forecasts any series unseen, in one pass and without fitting.

It was trained on generated series alone (`xlstm_forecast.synthetic`), so no data licence is involved; its weights are
made by `python -m benchmarks.pretrain`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..heads import interpolate_quantiles
from ..surroundings import undisturbed
from .learning import read
from .lookups import PATCH
from .network import Network

Array = np.ndarray
TOKENS = 80  # patches of context and horizon that it was trained with at most
ROWS = 256  # windows at a time
PAIRS = 8  # of values a season apart: with fewer, equal ones do not make a season
LARGEST = 1e100  # absolute value whose square can still be had
WEIGHTS = Path(__file__).with_name("weights.safetensors")


@functools.cache
@undisturbed()
def network() -> Network:
    """The network that ships with the package."""
    return read(WEIGHTS)


def history(horizon: int) -> int:
    """Steps of context that a forecast over `horizon` steps can use."""
    future = -(-horizon // PATCH)
    return PATCH * max(TOKENS - future, TOKENS // 4)


@undisturbed()
def quantiles(
    context: Array, seasons: Sequence[int], horizon: int, levels: Sequence[float], model: Network | None = None
) -> Array:
    """(n, H, Q) quantiles at any levels, in the order given and increasing with the level.

    context: (n, L) the last values of each series, NaN where missing. seasons: up to two candidate seasons in steps; 1
    or 0 for none. A constant history is forecast to stay so, and one without a value to be 0. Windows do not
    influence each other. Raises ValueError for other shapes, infinite values, and levels that are not between 0 and 1.
    """
    context = np.asarray(context, np.float64)
    _check(context, horizon, levels)
    model = network() if model is None else model
    context = context[:, -history(horizon) :]
    out = np.empty((len(context), horizon, len(levels)))
    ordered = sorted(levels)
    places = [ordered.index(level) for level in levels]
    with torch.inference_mode():
        for a in range(0, len(context), ROWS):
            rows = _trimmed(context[a : a + ROWS])
            scores, window = model(torch.from_numpy(rows), _ordered(rows, seasons), -(-horizon // PATCH))
            ahead = scores[:, :horizon].double()
            values = ahead.sinh() * (window.scale * window.varies)[..., None] + window.location[..., None]
            at = interpolate_quantiles(values, model.config.levels, ordered)
            out[a : a + ROWS] = at.numpy()[..., places]
    return out


def _check(context: Array, horizon: int, levels: Sequence[float]) -> None:
    if context.ndim != 2 or context.shape[1] == 0:
        raise ValueError(f"context must be (n, L) with at least one step, found shape {context.shape}")
    if (np.abs(context) > LARGEST).any():
        raise ValueError(f"context has values that are infinite or beyond {LARGEST:g}: NaN stands for missing ones")
    if isinstance(horizon, bool) or not isinstance(horizon, (int, np.integer)) or horizon < 1:
        raise ValueError(f"horizon={horizon!r}: expected a number of steps, at least 1")
    wrong = [level for level in levels if not 0 < level < 1]
    if wrong:
        raise ValueError(f"level {wrong[0]!r}: quantile levels lie between 0 and 1")


def _trimmed(context: Array) -> Array:
    """The last columns of a context, in whole patches, without those that no row has a value in."""
    begun = int(np.isfinite(context).any(0).argmax())
    steps = PATCH * max(1, -(-(context.shape[1] - begun) // PATCH))
    if steps <= context.shape[1]:
        return context[:, context.shape[1] - steps :]
    return np.pad(context, ((0, 0), (steps - context.shape[1], 0)), constant_values=np.nan)


def _ordered(context: Array, seasons: Sequence[int]) -> Any:
    """(n, 2) the candidate seasons of each row, that with the smaller mean seasonal difference first; 0 for none.

    A season of which a row holds few pairs, most of them of equal values, is not told: two zeros a year apart would
    stand for a year that repeats itself.
    """
    usable = [int(s) for s in seasons if s > 1][:2]
    told, change = np.zeros((len(context), 2), np.int64), np.full((len(context), 2), np.inf)
    for k, season in enumerate(usable):
        with np.errstate(invalid="ignore"):
            difference = np.abs(context[:, season:] - context[:, :-season])
        count, equal = np.isfinite(difference).sum(1), (difference == 0).sum(1)
        told[:, k] = np.where((count < PAIRS) & (2 * equal > count), 0, season)
        change[:, k] = np.where(count > season // 2, np.nansum(difference, 1) / np.maximum(count, 1), np.inf)
    swap = (told[:, 1] > 0) & ((told[:, 0] == 0) | (change[:, 1] < change[:, 0]))
    return torch.from_numpy(np.where(swap[:, None], told[:, ::-1], told))
