"""A regression that every forecast solves anew on the past of its own series: nothing of it is fitted or kept.

Its rows are the past windows whose origins lie whole seasons before the present one, so that a step of the horizon
always falls on the same phase, and every step has coefficients of its own on all steps of the known-future inputs. The
forecast is the mean of a regression on many rows, which is exact, and one on few, which is of today (the calibration
windows of Lago et al., Applied Energy 2021, whose Lasso models read the same kind of inputs).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xlstm_forecast.backbone.features import Shape
from xlstm_forecast.backbone.windows import Array, Index, fill

ROWS = (56, 1092)  # past windows of each regression: eight weeks and three years where a season is a day
PENALTY = 0.1  # of the ridge per input, in squares of a deviation: what all inputs together may explain stays the same
SQUASH = 2.0  # deviations up to which values enter almost as they are; beyond, by their logarithm
WEIGHTS = (1.5, 0.7, 1.0)  # of the last season, the one before and the long season ago: large ones are shrunk less
BOUND = 2.0  # typical residuals beyond which one counts no further (Huber's loss)
TURNS = 4
MOST_INPUTS = 1000
MOST_STEPS = 168  # of the horizon
LONGEST = 400  # steps of a long season that is looked back on


@dataclass(frozen=True)
class Squash:
    """Values around their median in median absolute deviations, beyond `SQUASH` of them by their logarithm."""

    centre: Array  # (K,)
    scale: Array  # (K,)

    @classmethod
    def of(cls, values: Array) -> Squash:
        """Of columns (n, K), NaN where missing."""
        seen = np.isfinite(values)
        values = np.where(seen.any(0), values, 0.0)
        centre = np.nanmedian(values, 0)
        away = np.abs(values - centre)
        scale = 1.4826 * np.nanmedian(away, 0)
        scale = np.where(scale > 1e-9 * np.nanmax(away, 0), scale, np.nanmean(away, 0))
        return cls(centre, np.where(scale > 1e-13 * np.abs(centre), scale, 1.0))

    def __call__(self, values: Array) -> Array:
        return np.asarray(SQUASH * np.arcsinh((values - self.centre) / (SQUASH * self.scale)))

    def undo(self, values: Array) -> Array:
        """The inverse."""
        return np.asarray(self.centre + SQUASH * self.scale * np.sinh(values / SQUASH))


@dataclass(frozen=True)
class Recent:
    """What the regressions read, by horizon and seasons."""

    shape: Shape

    @property
    def block(self) -> int:
        """Values of a season, or a few where there is none."""
        return self.shape.short if self.shape.short > 1 else 8

    @property
    def long(self) -> int:
        """Steps of the long season, 0 where there is none within reach."""
        return self.shape.long if self.block < self.shape.long <= LONGEST else 0

    @property
    def gap(self) -> int:
        """Steps from the present origin back to the last one whose labels are all past: whole seasons."""
        return -(-self.shape.horizon // self.shape.short) * self.shape.short

    @property
    def reach(self) -> int:
        """Rows before the origin that a forecast reads; shorter histories are allowed."""
        return self.gap + (max(ROWS) - 1) * self.shape.short + self.behind

    @property
    def behind(self) -> int:
        """Rows before its origin that a window's inputs reach back."""
        return max(2 * self.block, self.long)

    def count(self, length: Index | int) -> Index:
        """Past windows within histories of so many values."""
        return np.minimum((np.asarray(length) - self.behind - self.gap) // self.shape.short + 1, max(ROWS))

    def has_past(self, length: Index | int) -> NDArray[np.bool_]:
        """Whether histories of so many values hold enough past windows."""
        return np.asarray(self.count(length) >= min(ROWS))

    def suits(self, inputs: int) -> bool:
        """Whether so many known-future inputs and this horizon are few enough to be solved for with every forecast."""
        return inputs > 0 and self.shape.horizon <= MOST_STEPS and self.size(inputs) <= MOST_INPUTS

    def size(self, inputs: int) -> int:
        """Numbers in a row of so many known-future inputs."""
        own = 2 * self.block + min(self.shape.horizon, self.long)
        return own + inputs * (self.block + self.shape.horizon)

    def seconds(self, inputs: int) -> float:
        """About what one window takes of a core, with so many known-future inputs."""
        return self.size(inputs) / 3000

    def quantiles(self, history: Array, known: Array, levels: Array) -> Array | None:
        """(H, Q) in true units, increasing in the level, from a history (L,) and known-future inputs (L + H, K).

        NaN is missing; None where the values since the first observed one hold too few past windows.
        """
        seen = np.isfinite(history)
        most = int(self.count(len(history) - int(seen.argmax()) if seen.any() else 0))
        if most < min(ROWS):
            return None
        values = fill(history[None], self.shape.short)[0][0]
        found = [self._one(values, seen, known, min(rows, most), levels) for rows in ROWS]
        return np.asarray(np.mean(found, 0))

    def _one(self, values: Array, seen: NDArray[np.bool_], known: Array, rows: int, levels: Array) -> Array:
        """The quantiles (H, Q) of the regression on the last `rows` past windows."""
        now, h = len(values), self.shape.horizon
        origin = np.r_[now - self.gap - self.shape.short * np.arange(rows)[::-1], now]
        own, others = Squash.of(values[origin[0] :, None]), Squash.of(known[origin[0] : now])
        level = own(values[:, None])[:, 0]
        inputs = self._inputs(level, np.nan_to_num(others(known)), origin)
        ahead = origin[:-1, None] + np.arange(h)
        path, errors = ridge(inputs, level[ahead], seen[ahead], PENALTY * inputs.shape[1])
        size = np.abs(errors).sum(0) / np.maximum(seen[ahead].sum(0), 1)
        size = np.maximum(size, 1e-9)
        relative = (errors / size)[seen[ahead]]
        spread = np.quantile(relative, levels) - np.median(relative) if relative.size else np.zeros(len(levels))
        found = path[:, None] + size[:, None] * spread
        return own.undo(np.clip(found, level[ahead].min() - 1, level[ahead].max() + 1)[..., None])[..., 0]

    def _inputs(self, level: Array, known: Array, origin: Index) -> Array:
        """(n + 1, p): of every window the last two seasons, the steps one long season ago, and the known inputs."""
        back, ahead = np.arange(-self.block, 0), np.arange(self.shape.horizon)
        own = [back, back - self.block, ahead[: self.long] - self.long][: 3 if self.long else 2]
        parts = [w * level[origin[:, None] + at] for w, at in zip(WEIGHTS, own, strict=False)]
        around = known[origin[:, None] + np.r_[back, ahead]]
        return np.concatenate([*parts, around.reshape(len(origin), -1)], 1)


def ridge(inputs: Array, labels: Array, seen: NDArray[np.bool_], penalty: float) -> tuple[Array, Array]:
    """The last row's path (H,), and the errors (n, H) of the others as large as for rows that were left out.

    inputs (n + 1, p), labels (n, H). Huber's loss: labels further from the path than `BOUND` typical residuals are
    drawn in to there, those not `seen` onto the path, and the ridge is solved again; it is factored once. Residuals are
    enlarged by generalised cross-validation; those of labels not seen are zero.
    """
    centre = inputs[:-1].mean(0)
    x = inputs[:-1] - centre
    n, p = x.shape
    gram = x @ x.T if n < p else x.T @ x
    inverse = np.linalg.inv(gram + penalty * np.eye(len(gram)))
    free = 1 + len(gram) - penalty * np.trace(inverse)  # coefficients that the penalty leaves free
    drawn = labels
    for turn in range(TURNS):
        mean = drawn.mean(0)
        coefficients = x.T @ (inverse @ (drawn - mean)) if n < p else inverse @ (x.T @ (drawn - mean))
        path = mean + x @ coefficients
        rest = np.where(seen, labels - path, 0.0)
        if turn < TURNS - 1:
            bound = BOUND * np.median(np.abs(rest[seen])) if seen.any() else 0.0
            drawn = path + np.clip(rest, -bound, bound)
    return mean + (inputs[-1] - centre) @ coefficients, rest / max(1 - free / n, 0.05)
