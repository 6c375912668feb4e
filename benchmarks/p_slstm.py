"""P-sLSTM (Kong et al., AAAI 2025) on our encoder: patches of one variate, sLSTM blocks, one linear map to the horizon.

As published: variates share all weights, windows are not normalised, patches do not overlap, the loss is the squared
error, the rate is halved after every pass through the training windows. `benchmarks/ltsf.py --models p-slstm` trains
and scores it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from sets import Array
from torch import Tensor, nn

from xlstm_forecast.encoder import Encoder, EncoderConfig

LOOK_BACK = 336
PATCH = {"weather": 56, "ETTm1": 6}  # as published, like the convolutions, rates and look-back
CONVOLUTION = {"ETTm1": {96: 32, 192: 4, 336: 4, 720: 2}}  # steps of its kernel; Weather: 8
RATE = {"weather": 1e-3, "ETTm1": 1e-4}
HEADS = {"weather": (2,), "ETTm1": (2, 4)}  # tried, that with the best validation error is kept
WIDTH, BATCH = 96, 32  # width 100 where published
PASSES = 3  # published: 10 to 20 at rates halved each time; validation judges after each, as there
ENOUGH = 400  # validation windows


class PSLSTM(nn.Module):
    """(rows, LOOK_BACK) -> (rows, horizon)."""

    def __init__(self, patch: int, horizon: int, convolution: int, heads: int) -> None:
        super().__init__()
        self.patch = patch
        self.embed = nn.Linear(patch, WIDTH)
        sizes = {"d_model": WIDTH, "num_heads": heads, "conv_kernel": convolution}
        self.encoder = Encoder(EncoderConfig(blocks="s", dropout=0.1, **sizes))
        self.head = nn.Linear(LOOK_BACK // patch * WIDTH, horizon)

    def forward(self, x: Tensor) -> Tensor:
        encoded, _ = self.encoder(self.embed(x.unflatten(1, (-1, self.patch))))
        return self.head(encoded.flatten(1))  # type: ignore[no-any-return]


def windows(values: Array, origins: NDArray[np.int64], horizon: int) -> tuple[Tensor, Tensor]:
    """Pasts (n V, LOOK_BACK) and futures (n V, horizon) of all variates at some origins."""
    rows = values[origins[:, None] + np.arange(-LOOK_BACK, horizon)].transpose(0, 2, 1).reshape(-1, LOOK_BACK + horizon)
    whole = torch.from_numpy(rows.astype(np.float32))
    return whole[:, :LOOK_BACK], whole[:, LOOK_BACK:]


def error(model: PSLSTM, values: Array, origins: NDArray[np.int64], horizon: int) -> float:
    """Mean squared error at some origins."""
    total = 0.0
    with torch.inference_mode():
        for part in np.array_split(origins, max(1, len(origins) // 64)):
            past, future = windows(values, part, horizon)
            total += float((model(past) - future).square().mean()) * len(part)
    return total / len(origins)


def train(
    values: Array, ends: tuple[int, int, int], horizon: int, name: str, seed: int, heads: int
) -> tuple[PSLSTM, float]:
    """Fit on the training rows of z-scored values (T, V); the pass that did best on the validation rows, its error."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = PSLSTM(PATCH[name], horizon, CONVOLUTION.get(name, {}).get(horizon, 8), heads)
    optimizer = torch.optim.Adam(model.parameters(), RATE[name])
    a_pass = (ends[0] - LOOK_BACK - horizon) // BATCH
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    judged = np.arange(ends[0], ends[1] - horizon + 1)
    judged = judged[:: max(1, len(judged) // ENOUGH)]
    best, kept = np.inf, copy.deepcopy(model.state_dict())
    for _ in range(PASSES):
        model.train()
        for _ in range(a_pass):
            past, future = windows(values, rng.integers(LOOK_BACK, ends[0] - horizon + 1, BATCH), horizon)
            loss = (model(past) - future).square().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        schedule.step()
        found = error(model.eval(), values, judged, horizon)
        if found < best:
            best, kept = found, copy.deepcopy(model.state_dict())
    model.load_state_dict(kept)
    return model.eval(), best


def fitted(
    values: Array, ends: tuple[int, int, int], horizon: int, name: str, seed: int
) -> Callable[[NDArray[np.int64], int], tuple[Array, Array]]:
    """Train, and give the forecasts (n, horizon) of origins (n,) of a variate: one path, as median and as mean."""
    fits = [train(values, ends, horizon, name, seed, heads) for heads in HEADS[name]]
    for heads, (_, found) in zip(HEADS[name], fits, strict=True):
        print(f"{name} {horizon}: {heads} heads, validation {found:.4f}", flush=True)
    model = min(fits, key=lambda fit: fit[1])[0]

    def forecast(origins: NDArray[np.int64], channel: int) -> tuple[Array, Array]:
        past = values[origins[:, None] + np.arange(-LOOK_BACK, 0), channel].astype(np.float32)
        with torch.inference_mode():
            path = torch.cat([model(part) for part in torch.from_numpy(past).split(1024)]).double().numpy()
        return path, path

    return forecast
