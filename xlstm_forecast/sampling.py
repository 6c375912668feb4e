"""Joint sample paths over the horizon whose marginals are the forecast's own quantiles.

A Gaussian copula: how the steps of a horizon move together is the correlation of the normal scores of held-back
residuals; each step's values come from that step's quantile function.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SCORE_LIMIT = 4.0


def normal_scores(y: Tensor, quantiles: Tensor, levels: Tensor) -> Tensor:
    """The normal score of y (...) under quantiles (..., Q) at ascending levels (Q,), normal tails, within +-4."""
    knots = torch.special.ndtri(levels.to(quantiles.dtype))
    right = (quantiles < y[..., None]).sum(-1).clamp(1, len(levels) - 1)
    low, high = (torch.gather(quantiles, -1, i[..., None])[..., 0] for i in (right - 1, right))
    width = high - low
    share = torch.where(width > 0, (y - low) / torch.where(width > 0, width, torch.ones_like(width)), 0.5)
    left = knots[right - 1]
    return (left + share * (knots[right] - left)).clamp(-SCORE_LIMIT, SCORE_LIMIT)


def correlation(scores: Tensor, observed: Tensor) -> Tensor:
    """Correlation (H, H) of the steps of a horizon from scores (n, H), shrunk to what so many windows can tell.

    The target of the shrinkage is a decay with the distance of two steps, whose rate is fitted to neighbours; with few
    windows it takes over. The result is positive definite.
    """
    horizon = scores.shape[1]
    z = torch.where(observed, scores, torch.zeros_like(scores)).double()
    seen = observed.double()
    pairs = seen.T @ seen
    power = (z * z).T @ seen
    raw = (z.T @ z) / (power * power.T).clamp(min=1e-12).sqrt()
    near = raw.diagonal(1)[pairs.diagonal(1) > 0] if horizon > 1 else raw.new_zeros(0)
    rate = float(near.mean().clamp(0, 0.99)) if near.numel() else 0.0
    step = torch.arange(horizon, dtype=torch.float64)
    decay = rate ** (step[:, None] - step[None, :]).abs()
    trust = pairs / (pairs + 4.0 * math.sqrt(horizon) + 20.0)
    mixed = trust * raw + (1 - trust) * decay
    mixed.fill_diagonal_(1.0)
    values, vectors = torch.linalg.eigh((mixed + mixed.T) / 2)
    mixed = (vectors * values.clamp(min=1e-4)) @ vectors.T
    scale = mixed.diagonal().sqrt()
    return mixed / (scale[:, None] * scale[None, :])


def joint_ranks(matrix: Tensor, rows: int, samples: int, generator: torch.Generator) -> Tensor:
    """Normal scores (rows, samples, H) with the given correlation (H, H)."""
    root = torch.linalg.cholesky(matrix)
    noise = torch.randn(rows, samples, len(matrix), dtype=matrix.dtype, generator=generator)
    return noise @ root.T


def paths(quantiles: Tensor, levels: Tensor, scores: Tensor) -> Tensor:
    """Values (n, S, H) at normal scores (n, S, H) of the distributions with quantiles (n, H, Q) at `levels` (Q,)."""
    knots = torch.special.ndtri(levels.to(torch.float64))
    left = (torch.searchsorted(knots, scores.contiguous(), right=True) - 1).clamp(0, len(knots) - 2)
    share = (scores - knots[left]) / (knots[left + 1] - knots[left])
    table = quantiles.double()[:, None].expand(-1, scores.shape[1], -1, -1)
    low, high = (torch.gather(table, -1, i[..., None])[..., 0] for i in (left, left + 1))
    return low + share * (high - low)
