"""Long-term forecasting tables: MSE and MAE over all windows at stride 1, z-scored with training statistics.

    python benchmarks/ltsf.py --sets ETTh1 ETTm1 weather ILI --models ridge linear
    python benchmarks/ltsf.py --sets ETTm1 --models default mixer --every 13

Borders as published: ETTh 8640/11520/14400 rows, ETTm four times that, others 70/10/20 %; validation and test reach
back by the look-back; no batch is dropped. Models are fitted on the training rows alone (`--fit-on validation` adds the
validation rows, which the published models do not do).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sets import Array, data_argument, data_folder, weather

HORIZONS = {"ILI": (24, 36, 48, 60)}
FREQ = {"ETTh1": "h", "ETTm1": "15min", "weather": "10min", "ILI": "W"}
PUBLISHED = {  # MSE, MAE of xLSTM-Mixer
    ("ETTh1", 96): (0.359, 0.386),
    ("ETTh1", 192): (0.402, 0.417),
    ("ETTh1", 336): (0.408, 0.429),
    ("ETTh1", 720): (0.419, 0.448),
    ("ETTm1", 96): (0.275, 0.328),
    ("ETTm1", 192): (0.319, 0.354),
    ("ETTm1", 336): (0.353, 0.374),
    ("ETTm1", 720): (0.409, 0.407),
    ("weather", 96): (0.143, 0.184),
    ("weather", 192): (0.186, 0.226),
    ("weather", 336): (0.236, 0.266),
    ("weather", 720): (0.310, 0.323),
}
Forecast = Callable[[NDArray[np.int64], int], Array]  # origins, channel -> (n, H)


def load(folder: Path, name: str) -> tuple[Array, tuple[int, int, int]]:
    """Values (T, V) z-scored with the training rows, and the ends of training, validation and test."""
    if name == "weather":
        frame = weather(folder)
    elif name == "ILI":
        frame = pd.read_csv(folder / "national_illness.csv.gz").iloc[:, 1:]
    else:
        frame = pd.read_csv(folder / f"{name}.csv.gz").iloc[:, 1:]
    values = frame.to_numpy(float)
    n = len(values)
    if name.startswith("ETT"):
        unit = 8640 if name.startswith("ETTh") else 4 * 8640
        ends = unit, unit * 4 // 3, unit * 5 // 3
    else:
        ends = int(n * 0.7), n - int(n * 0.2), n
    mean, std = values[: ends[0]].mean(0), values[: ends[0]].std(0)
    return (values - mean) / std, ends


def ridge(values: Array, end: int, horizon: int, look_back: int) -> Forecast:
    """Window-normalised ridge shared by all channels, closed form; windows weigh by their variance, as MSE does."""
    total = (end - look_back - horizon + 1) * values.shape[1]
    stride = max(1, total // 60_000)
    gram, moment, n = 0.0, 0.0, 0
    for c in range(values.shape[1]):
        rows = np.lib.stride_tricks.sliding_window_view(values[:end, c], look_back + horizon)[::stride]
        x, y = rows[:, :look_back], rows[:, look_back:]
        mean, std = x.mean(1, keepdims=True), np.sqrt(x.var(1, keepdims=True) + 1e-5)
        x, y = x - mean, y - mean  # both times std, divided by it again: the weights of MSE
        gram, moment, n = gram + x.T @ x, moment + x.T @ y, n + float((std**2).sum())
    b = np.linalg.solve(gram + 0.1 * n * np.eye(look_back), moment)

    def forecast(origin: NDArray[np.int64], channel: int) -> Array:
        past = values[origin[:, None] + np.arange(-look_back, 0), channel]
        mean = past.mean(1, keepdims=True)
        return np.asarray((past - mean) @ b + mean)

    return forecast


def linear(values: Array, end: int, horizon: int, freq: str) -> Forecast:
    """The backbone's median path, every channel a series."""
    from xlstm_forecast.backbone import Backbone, BackboneConfig, gather

    channels = values.shape[1]
    flat, offsets = values[:end].T.ravel(), np.arange(channels + 1) * end
    fitted = Backbone(BackboneConfig(horizon=horizon, freq=freq)).fit(flat, offsets)
    whole, starts = np.ascontiguousarray(values.T).ravel(), np.arange(channels + 1) * len(values)

    def forecast(origin: NDArray[np.int64], channel: int) -> Array:
        index = np.full(len(origin), channel)
        return fitted.paths(gather(whole, starts, index, origin, fitted.history), index).median

    return forecast


def estimator(values: Array, end: int, horizon: int, freq: str, preset: str) -> Forecast:
    """The median path of `XLSTMForecaster` with a preset, every channel a series."""
    from xlstm_forecast import XLSTMForecaster

    def frame(rows: Array) -> pd.DataFrame:
        stamps = np.tile(pd.date_range("2016-07-01", periods=len(rows), freq=freq), rows.shape[1])
        index = np.repeat(np.arange(rows.shape[1]), len(rows))
        return pd.DataFrame({"unique_id": index, "ds": stamps, "y": rows.T.ravel()})

    forecaster = XLSTMForecaster(horizon=horizon, presets=preset).fit(frame(values[:end]), verbose=False)
    panel = forecaster._to_panel(frame(values))

    def forecast(origin: NDArray[np.int64], channel: int) -> Array:
        return np.asarray(forecaster._forecast(panel, np.full(len(origin), channel), origin, (0.5,)))[:, :, 0, 0]

    return forecast


def network(values: Array, end: int, validation: int, horizon: int, freq: str, model: str) -> Forecast:
    """A network of that name alone, all channels as targets of one series, stopped early on the validation rows."""
    from xlstm_forecast import XLSTMForecaster

    names = [f"c{k}" for k in range(values.shape[1])]
    stamps = pd.date_range("2016-07-01", periods=len(values), freq=freq)
    frame = pd.DataFrame(values, columns=names).assign(ds=stamps)
    forecaster = XLSTMForecaster(
        horizon=horizon, id_col=None, target_col=names, model=model, head="point", backbone=False, input_length=512,
        max_steps=3000, batch_size=64, lr=1e-3,
    )  # fmt: skip
    forecaster.fit(frame[: end + validation], val_size=validation, verbose=False)
    panel = forecaster._to_panel(frame)
    made: dict[tuple[int, int], Array] = {}

    def forecast(origin: NDArray[np.int64], channel: int) -> Array:
        key = int(origin[0]), len(origin)
        if key not in made:
            made[key] = np.asarray(forecaster._forecast(panel, np.zeros(len(origin), np.int64), origin, (0.5,)))[..., 0]
        return made[key][:, :, channel]

    return forecast


def score(
    values: Array, ends: tuple[int, int, int], horizon: int, forecast: Forecast, every: int
) -> tuple[float, float]:
    """MSE and MAE over all test windows (or every so many), steps and channels."""
    origins = np.arange(ends[1], ends[2] - horizon + 1)[::every]
    square = absolute = count = 0.0
    for channel in range(values.shape[1]):
        for part in np.array_split(origins, max(1, len(origins) * horizon // 2_000_000)):
            error = forecast(part, channel) - values[part[:, None] + np.arange(horizon), channel]
            square += float((error**2).sum())
            absolute += float(np.abs(error).sum())
            count += error.size
    return square / count, absolute / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    data_argument(parser)
    parser.add_argument("--sets", nargs="+", default=["ETTh1", "ETTm1", "weather", "ILI"])
    parser.add_argument(
        "--models", nargs="+", default=["ridge", "linear"], help="ridge, linear, a preset, or mixer, time, patch alone"
    )
    parser.add_argument("--horizons", nargs="+", type=int)
    parser.add_argument("--look-back", type=int, help="of the ridge; 512, and 104 for ILI")
    parser.add_argument("--fit-on", choices=["training", "validation"], default="training")
    parser.add_argument("--every", type=int, default=1, help="score every so many windows only (quick looks)")
    args = parser.parse_args()
    folder = data_folder(args.data)
    print("| set | horizon | model | MSE | MAE | xLSTM-Mixer, published | seconds |\n|---|---|---|---|---|---|---|")
    for name in args.sets:
        values, ends = load(folder, name)
        end = ends[0] if args.fit_on == "training" else ends[1]
        for horizon in args.horizons or HORIZONS.get(name, (96, 192, 336, 720)):
            for model in args.models:
                start = time.perf_counter()
                if model == "ridge":
                    forecast = ridge(values, end, horizon, args.look_back or (104 if name == "ILI" else 512))
                elif model == "linear":
                    forecast = linear(values, end, horizon, FREQ[name])
                elif model in ("mixer", "time", "patch"):
                    forecast = network(values, ends[0], ends[1] - ends[0], horizon, FREQ[name], model)
                else:
                    forecast = estimator(values, end, horizon, FREQ[name], model)
                mse, mae = score(values, ends, horizon, forecast, args.every)
                beside = PUBLISHED.get((name, horizon))
                cell = "" if beside is None else f"{beside[0]:.3f}/{beside[1]:.3f}"
                seconds = time.perf_counter() - start
                print(f"| {name} | {horizon} | {model} | {mse:.3f} | {mae:.3f} | {cell} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
