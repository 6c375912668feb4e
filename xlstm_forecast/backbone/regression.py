"""Ridge regressions from Gram matrices, and the averaging of near-best candidates by validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xlstm_forecast.backbone.windows import Array, Index


def pooled_paths(gram: Array, moment: Array, priors: Sequence[Array], penalties: Sequence[float]) -> Array:
    """Coefficients (candidates, k) shrunk towards each prior with each penalty; `inf` is the prior itself.

    `gram` (k, k) and `moment` (k,) are averages over samples of F'F and F'(y - base). In the coordinates of a prior
    `u` every forecast is measured from the prior's forecast, so that shrinking means staying near it.
    """
    k = len(gram)
    out = []
    for prior in priors:
        turn = np.eye(k) - prior[:, None]  # F_k - F @ prior
        g = turn.T @ gram @ turn
        c = turn.T @ (moment - gram @ prior)
        size = np.sqrt(np.maximum(np.diag(g), 1e-30))
        value, vector = np.linalg.eigh(g / size / size[:, None])
        projected = vector.T @ (c / size)
        for penalty in penalties:
            if np.isinf(penalty):
                out.append(prior)
                continue
            b = vector @ (projected / (np.maximum(value, 0) + penalty)) / size
            out.append(prior + turn @ np.where(size > 1e-12, b, 0.0))
    return np.array(out)


def step_paths(gram: Array, moment: Array, centre: Array, penalties: Sequence[float]) -> list[Array]:
    """Coefficients (H, k) per penalty, each step shrunk towards the pooled `centre` (k,) or (H, k)."""
    centre = np.broadcast_to(centre, moment.shape)
    size = np.sqrt(np.maximum(np.diagonal(gram.mean(0)), 1e-30))
    g = gram / size / size[:, None]
    rest = (moment - np.einsum("hkl,hl->hk", gram, centre)) / size
    out = []
    for penalty in penalties:
        if np.isinf(penalty):
            out.append(centre.copy())
            continue
        b = np.linalg.solve(g + penalty * np.eye(gram.shape[1]), rest[..., None])[..., 0] / size
        out.append(centre + np.where(size > 1e-12, b, 0.0))
    return out


@dataclass
class Path:
    """Eigen-form of a ridge from p inputs to H outputs: cheap coefficients for any penalty."""

    value: Array
    vector: Array
    projected: Array  # (p, H)

    @staticmethod
    def of(gram: Array, moment: Array) -> Path:
        """`gram` (p, p) and `moment` (p, H), averages over samples."""
        value, vector = np.linalg.eigh(gram)
        return Path(np.maximum(value, 0.0), vector, vector.T @ moment)

    def coefficients(self, penalty: float) -> Array:
        """(p, H); zero at an infinite penalty."""
        if np.isinf(penalty):
            return np.zeros_like(self.projected)
        return np.asarray(self.vector @ (self.projected / (self.value + penalty)[:, None]))


def near_best(errors: Array, cells: Index, complexity: Array, *, caution: float = 0.5, most: int = 12) -> Array:
    """Weights (C,) of candidates from their errors (n, C) on validation windows.

    A candidate counts by exp(-t): t is how far its mean error lies above the best one's, in standard errors of that
    difference, plus `caution * complexity`. With little validation data the differences are within their error and
    the average is broad; with much it is the best alone. Windows of one `cells` value (series) are not independent of
    each other across series: n series count as sqrt(n).
    """
    if errors.shape[1] == 1:
        return np.ones(1)
    if not len(errors):
        simple = np.exp(-4.0 * complexity)
        return np.asarray(simple / simple.sum())
    mean = errors.mean(0)
    count = np.sqrt(len(np.unique(cells)))
    effective = max(len(errors) / count, 1.0)
    best = int(np.argmin(mean))
    for _ in range(2):
        difference = errors - errors[:, best : best + 1]
        spread = difference.std(0) + 0.02 * mean[best] / np.sqrt(effective)
        wobble = spread * np.sqrt((1 + 4 / effective) / effective) + 1e-4 * mean[best] + 1e-300
        penalised = mean + caution * complexity * wobble.mean()
        best = int(np.argmin(penalised))
    t = (penalised - penalised[best]) / wobble
    weight = np.exp(-np.maximum(t, 0.0))
    weight[np.argsort(-weight)[most:]] = 0.0
    return np.asarray(weight / weight.sum())


def weighted_gram(features: NDArray[np.float32], target: NDArray[np.float32], weight: NDArray[np.float32]) -> tuple:
    """Per step (H, k, k) and (H, k) sums of w F'F and w F'y over samples; features (n, H, k), target, weight (n, H)."""
    f = np.ascontiguousarray(features.transpose(1, 0, 2))
    wf = f * weight.T[..., None]
    gram = np.matmul(wf.transpose(0, 2, 1), f).astype(np.float64)
    moment = np.matmul(wf.transpose(0, 2, 1), target.T[..., None])[..., 0].astype(np.float64)
    return gram, moment
