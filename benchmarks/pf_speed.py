"""Speed inside pytorch-forecasting: a training step beside its xLSTMTime, and predicting one new series after another.

    python benchmarks/pf_speed.py

Training step: batch 64, 96 encoder and 24 decoder steps, hidden size 64, patch length 1, equal sLSTM layers, one
target, absolute error, Adam. "equal": ours as theirs, without a convolution in the layers and a feed-forward net after
them, the whole horizon from the last step of the history; "plain": the same, but going on over the decoder's steps;
"paper": with all of it, as by default.
Rolling prediction: one series after another is forecast by the same network, from a frame (which costs both the
TimeSeriesDataSet) and from its data set; "theirs" through their loader and their predict. (Their xLSTMTime cannot: it
fails with a single series.)
Processor time of one thread, best of several, in turns; training steps in runs of five, as in training.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
from pytorch_forecasting import TimeSeriesDataSet
from pytorch_forecasting.data import EncoderNormalizer
from pytorch_forecasting.metrics import MAE
from pytorch_forecasting.models import BaseModel, xLSTMTime

from xlstm_forecast.adapters.pytorch_forecasting import XLSTM, accelerate

STEPS, HORIZON, WIDTH, BATCH = 96, 24, 64, 64


def frame(series: int, steps: int, seed: int = 0) -> pd.DataFrame:
    """Noisy sine waves."""
    rng = np.random.default_rng(seed)
    time_idx = np.arange(steps)
    waves = [np.sin(time_idx / 4 + rng.uniform(0, 6)) + 0.1 * rng.standard_normal(steps) for _ in range(series)]
    frames = [pd.DataFrame({"id": f"s{i}", "time_idx": time_idx, "y": wave}) for i, wave in enumerate(waves)]
    return pd.concat(frames, ignore_index=True)


def dataset(df: pd.DataFrame) -> TimeSeriesDataSet:
    """96 steps in, 24 out, the target alone."""
    return TimeSeriesDataSet(
        df,
        time_idx="time_idx",
        target="y",
        group_ids=["id"],
        max_encoder_length=STEPS,
        max_prediction_length=HORIZON,
        time_varying_unknown_reals=["y"],
        target_normalizer=EncoderNormalizer(),
    )


def models(data: TimeSeriesDataSet, layers: int = 1) -> dict[str, Any]:
    """So many sLSTM layers of width 64 each."""
    sizes = {"hidden_size": WIDTH, "num_layers": layers, "dropout": 0.0}
    theirs = xLSTMTime.from_dataset(data, input_size=1, output_size=1, xlstm_type="slstm", loss=MAE(), **sizes)
    options: dict[str, Any] = {"blocks": "s", "patch_length": 1, "loss": MAE(), **sizes}
    return {
        "theirs": theirs,
        "equal": XLSTM.from_dataset(data, structure="plain", conv_kernel=0, decode="last", **options),
        "plain": XLSTM.from_dataset(data, structure="plain", conv_kernel=0, **options),
        "paper": XLSTM.from_dataset(data, **options),
    }


def best(functions: dict[str, Callable[[], Any]], turns: int, run: int = 1) -> dict[str, float]:
    """Least processor seconds of each; they take turns, each with so many calls in a row."""
    seconds = dict.fromkeys(functions, float("inf"))
    for turn in range(turns + 1):
        for name, function in functions.items():
            for _ in range(run):
                start = time.process_time()
                function()
                if turn:  # the first warms up
                    seconds[name] = min(seconds[name], time.process_time() - start)
    return seconds


def training_step(model: Any, batch: Any) -> Callable[[], None]:
    """Forward, loss, backward and update."""
    optimizer = model.configure_optimizers()["optimizer"]
    x, y = batch
    model.train()

    def step() -> None:
        loss = model.loss(model(x)["prediction"], y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def rolling(model: Any, series: list[Any], fast: bool) -> Callable[[], None]:
    """The forecast of one series (a frame or a data set) after another."""
    model.eval()
    quiet = {"logger": False, "accelerator": "cpu"}

    def run() -> None:
        for one in series:
            if fast:
                model.predict(accelerate(one) if isinstance(one, TimeSeriesDataSet) else one)
            else:
                BaseModel.predict(model, one, trainer_kwargs=dict(quiet))

    return run


def report(name: str, seconds: dict[str, float], count: int = 1) -> None:
    each = {key: value / count * 1e3 for key, value in seconds.items()}
    theirs = each.pop("theirs")
    ours = "; ".join(f"{key} {value:.1f} ms, {theirs / value:.1f} times faster" for key, value in each.items())
    print(f"{name}: theirs {theirs:.1f} ms, {ours}")


def main() -> None:
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = dataset(frame(8, 400))
    batch = next(iter(accelerate(data).to_dataloader(train=True, batch_size=BATCH)))
    for layers in (1, 2, 4):
        steps = {name: training_step(model, batch) for name, model in models(data, layers).items()}
        report(f"training step, {layers} layer{'s' * (layers > 1)}", best(steps, 5, run=5))
    model = models(data)["paper"]
    frames = [frame(1, STEPS + HORIZON, seed=s) for s in range(5)]
    ready = [TimeSeriesDataSet.from_dataset(data, one, predict=True) for one in frames]
    for name, series in (("predict from a frame", frames), ("predict from a data set", ready)):
        ways = {key: rolling(model, series, fast=key == "ours") for key in ("theirs", "ours")}
        report(name, best(ways, 5), len(series))


if __name__ == "__main__":
    main()
