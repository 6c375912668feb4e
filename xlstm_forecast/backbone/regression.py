"""Ridge regressions from Gram matrices, and the averaging of near-best candidates by validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xlstm_forecast.backbone.windows import Array

TYPICAL = 0.4  # spread of a difference between errors as a share of the error, before the data say otherwise,
DOUBT = 4.0  # believed as much as this many windows
TRUST = 3.0  # windows at which a difference counts half
SLIGHT = 0.1  # of the best one's mean error; differences below it count little in logarithms


def pooled_paths(
    gram: Array,
    moment: Array,
    priors: Sequence[Array],
    penalties: Sequence[float],
    extra: float = 0.0,
    forecasts: NDArray[np.bool_] | None = None,
) -> Array:
    """Coefficients (candidates, k) shrunk towards each prior with each penalty; `inf` is the prior itself.

    `gram` (k, k) and `moment` (k,) are averages over samples of F'F and F'(y - base); `extra` adds to every penalty.
    Features that are `forecasts` (default: all) are measured from the prior's forecast, so that shrinking means staying
    near it; the others are corrections and shrink towards nothing.
    """
    k = len(gram)
    out = []
    for prior in priors:
        turn = np.eye(k) - np.outer(prior, np.ones(k) if forecasts is None else forecasts)  # F_k - F @ prior
        g = turn.T @ gram @ turn
        c = turn.T @ (moment - gram @ prior)
        size = np.sqrt(np.maximum(np.diag(g), 1e-30))
        value, vector = np.linalg.eigh(g / size / size[:, None])
        projected = vector.T @ (c / size)
        for penalty in penalties:
            if np.isinf(penalty):
                out.append(prior)
                continue
            b = vector @ (projected / (np.maximum(value, 0) + penalty + extra)) / size
            out.append(prior + turn @ np.where(size > 1e-12, b, 0.0))
    return np.array(out)


def step_paths(
    gram: Array, moment: Array, centre: Array, penalties: Sequence[float], extra: float = 0.0
) -> list[Array]:
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
        b = np.linalg.solve(g + (penalty + extra) * np.eye(gram.shape[1]), rest[..., None])[..., 0] / size
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


def near_best(
    errors: Array, share: float, cost: Array, *, allowed: NDArray[np.bool_] | None = None, most: int = 16
) -> Array:
    """Weights (C,) of candidates from their errors (n, C) on validation windows.

    A candidate counts by exp(-t - cost): t is how far its mean error lies above the best one's, in standard errors of
    that difference, and `cost` is what has to be argued away. With little validation data differences are within their
    error and the costs decide; with much the best one does. Series may move together: `share` is the number of
    independent windows per window. Candidates that are not `allowed` get no weight.
    """
    use = np.ones(len(cost), dtype=bool) if allowed is None else allowed
    weight = np.zeros(len(cost))
    t = _distance(errors[:, use], share) if len(errors) else 0.0
    weight[use] = np.exp(-(t + cost[use] - np.min(t + cost[use])))
    weight[np.argsort(-weight)[most:]] = 0.0
    return np.asarray(weight / weight.sum())


def _distance(errors: Array, share: float) -> Array:
    """(C,) mean error above the best one's, in standard errors of the difference: of errors, or of their logarithms.

    The larger of both. A candidate that fails in one window is one standard error behind, however badly it fails
    there; in logarithms it is as far behind as it is in all windows.
    """
    best = int(np.argmin(errors.mean(0)))
    typical = max(float(errors[:, best].mean()), 1e-30 * float(errors.max(initial=0.0)), 1e-150)
    effective = max(len(errors) * share, 1.0)
    logs = np.log(errors / typical + SLIGHT)
    away = [_standard_errors(x - x[:, best : best + 1], effective) for x in (errors / typical, logs)]
    return np.asarray(effective / (effective + TRUST) * np.maximum(*away))


def _standard_errors(differences: Array, effective: float) -> Array:
    """(C,) means of differences (n, C), in parts of the typical error, over what so many windows leave uncertain."""
    wobble = np.sqrt((effective * differences.var(0) + DOUBT * TYPICAL**2) / (effective + DOUBT) / effective)
    return np.asarray(differences.mean(0) / wobble)


def weighted_gram(
    features: NDArray[np.float32], target: NDArray[np.float32], weight: NDArray[np.float32]
) -> tuple[Array, Array]:
    """Per step (H, k, k) and (H, k) sums of w F'F and w F'y over samples; features (n, H, k), target, weight (n, H)."""
    f = np.ascontiguousarray(features.transpose(1, 0, 2))
    wf = f * weight.T[..., None]
    gram = np.matmul(wf.transpose(0, 2, 1), f).astype(np.float64)
    moment = np.matmul(wf.transpose(0, 2, 1), target.T[..., None])[..., 0].astype(np.float64)
    return gram, moment
