"""Long-term forecasting tables: MSE and MAE over all windows at stride 1, z-scored with training statistics.

    python benchmarks/ltsf.py --sets ETTh1 ETTm1 weather ILI --models ridge linear
    python benchmarks/ltsf.py --sets ETTm1 --models blend --every 13

Borders as published: ETTh 8640/11520/14400 rows, ETTm four times that, others 70/10/20 %; validation and test reach
back by the look-back; no batch is dropped. Models are fitted on the training rows alone (`--fit-on validation` adds the
validation rows, which the published models do not do). Each metric is given its own forecast of a distribution: MSE the
mean, MAE the median. `blend` averages ridge, backbone and xLSTM-Mixer by weights that the validation rows choose.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Mapping
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
Pair = tuple[Array, Array]  # median and mean, (n, H) each
Forecast = Callable[[NDArray[np.int64], int], Pair]  # of origins (n,) of a channel
LEVELS = tuple(np.arange(1, 10) / 10)  # whose quantiles are averaged to the mean


NETWORK = {"input_length": 512, "d_model": 64, "max_steps": 600, "batch_size": 32, "lr": 2e-3}
MEMBERS = ("ridge", "linear", "mixer")  # of a blend
VALIDATION_STEP = 31  # rows between two validation windows that a blend is chosen on


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

    def forecast(origin: NDArray[np.int64], channel: int) -> Pair:
        past = values[origin[:, None] + np.arange(-look_back, 0), channel]
        mean = past.mean(1, keepdims=True)
        path = (past - mean) @ b + mean
        return path, path

    return forecast


def linear(values: Array, end: int, horizon: int, freq: str) -> Forecast:
    """The backbone, every channel a series."""
    from xlstm_forecast.backbone import Backbone, BackboneConfig, gather

    channels = values.shape[1]
    flat, offsets = values[:end].T.ravel(), np.arange(channels + 1) * end
    fitted = Backbone(BackboneConfig(horizon=horizon, freq=freq)).fit(flat, offsets)
    whole, starts = np.ascontiguousarray(values.T).ravel(), np.arange(channels + 1) * len(values)

    def forecast(origin: NDArray[np.int64], channel: int) -> Pair:
        index = np.full(len(origin), channel)
        history = gather(whole, starts, index, origin, fitted.history)
        return of_quantiles(fitted.quantiles(history, np.array(LEVELS), index))

    return forecast


def estimator(values: Array, end: int, horizon: int, freq: str, preset: str) -> Forecast:
    """`XLSTMForecaster` with a preset, every channel a series."""
    from xlstm_forecast import XLSTMForecaster

    def frame(rows: Array) -> pd.DataFrame:
        stamps = np.tile(pd.date_range("2016-07-01", periods=len(rows), freq=freq), rows.shape[1])
        index = np.repeat(np.arange(rows.shape[1]), len(rows))
        return pd.DataFrame({"unique_id": index, "ds": stamps, "y": rows.T.ravel()})

    forecaster = XLSTMForecaster(horizon=horizon, presets=preset).fit(frame(values[:end]), verbose=False)
    panel = forecaster._to_panel(frame(values))

    def forecast(origin: NDArray[np.int64], channel: int) -> Pair:
        return of_quantiles(forecaster._forecast(panel, np.full(len(origin), channel), origin, LEVELS)[:, :, 0])

    return forecast


def of_quantiles(quantiles: Array) -> Pair:
    """Median and mean (n, H) of quantiles (n, H, Q) at `LEVELS`."""
    return quantiles[..., len(LEVELS) // 2], quantiles.mean(-1)


def network(values: Array, end: int, validation: int, horizon: int, freq: str, model: str) -> Forecast:
    """A network of that name alone, all channels as targets of one series, stopped early on the validation rows.

    Trained on the absolute error, as xLSTM-Mixer: its median stands for the mean too.
    """
    from xlstm_forecast import XLSTMForecaster

    names = [f"c{k}" for k in range(values.shape[1])]
    stamps = pd.date_range("2016-07-01", periods=len(values), freq=freq)
    frame = pd.DataFrame(values, columns=names).assign(ds=stamps)
    forecaster = XLSTMForecaster(
        horizon=horizon, id_col=None, target_col=names, model=model, head="point", backbone=False, calendar=(),
        season_length=1, **NETWORK,
    )  # fmt: skip
    forecaster.fit(frame[: end + validation], val_size=validation, verbose=False)
    panel = forecaster._to_panel(frame)
    made: dict[tuple[int, int], Array] = {}

    def forecast(origin: NDArray[np.int64], channel: int) -> Pair:
        key = int(origin[0]), len(origin)
        if key not in made:
            found = forecaster._forecast(panel, np.zeros(len(origin), np.int64), origin, (0.5,))
            made[key] = found[..., 0].astype(np.float32)
        path = made[key][:, :, channel].astype(float)
        return path, path

    return forecast


def blend(
    values: Array, ends: tuple[int, int, int], horizon: int, members: Mapping[str, Forecast]
) -> tuple[Forecast, dict[str, list[float]]]:
    """The average of the members, and their weights: for MAE and for MSE those of the mixture, out of all in eighths,
    that is best on the validation rows.
    """
    origins = np.arange(ends[0], ends[1] - horizon + 1)[::VALIDATION_STEP]
    eighths = [m for m in itertools.product(range(9), repeat=len(members)) if sum(m) == 8]
    mixtures = np.array(eighths) / 8
    losses = np.zeros((2, len(mixtures)))
    for channel in range(values.shape[1]):
        truth = values[origins[:, None] + np.arange(horizon), channel]
        errors = [[path - truth for path in member(origins, channel)] for member in members.values()]
        median, mean = (np.stack(parts).reshape(len(members), -1) for parts in zip(*errors, strict=True))
        losses[0] += [np.abs(m @ median).mean() for m in mixtures]
        losses[1] += np.einsum("mi,ij,mj->m", mixtures, mean @ mean.T / mean.shape[1], mixtures)
    weights = mixtures[losses.argmin(1)]  # (2, members)

    def forecast(origin: NDArray[np.int64], channel: int) -> Pair:
        found = [member(origin, channel) for member in members.values()]
        median, mean = (np.tensordot(weights[k], np.stack([f[k] for f in found]), 1) for k in (0, 1))
        return median, mean

    return forecast, {name: weights[:, k].tolist() for k, name in enumerate(members)}


def score(
    values: Array, ends: tuple[int, int, int], horizon: int, forecast: Forecast, every: int
) -> tuple[float, float]:
    """MSE of the mean and MAE of the median over all test windows (or every so many), steps and channels."""
    origins = np.arange(ends[1], ends[2] - horizon + 1)[::every]
    square = absolute = count = 0.0
    for channel in range(values.shape[1]):
        for part in np.array_split(origins, max(1, len(origins) * horizon // 2_000_000)):
            median, mean = forecast(part, channel)
            truth = values[part[:, None] + np.arange(horizon), channel]
            square += float(((mean - truth) ** 2).sum())
            absolute += float(np.abs(median - truth).sum())
            count += truth.size
    return square / count, absolute / count


def build(
    model: str, name: str, values: Array, ends: tuple[int, int, int], end: int, horizon: int, look_back: int | None
) -> dict[str, Forecast]:
    """A model by name, fitted on the first `end` rows of a set; a blend with its members, named with their weights.

    The rows up to `ends[1]` stop a network's training and choose a blend's weights.
    """
    if model == "ridge":
        return {model: ridge(values, end, horizon, look_back or (104 if name == "ILI" else 512))}
    if model == "linear":
        return {model: linear(values, end, horizon, FREQ[name])}
    if model in ("mixer", "time", "patch"):
        return {model: network(values, ends[0], ends[1] - ends[0], horizon, FREQ[name], model)}
    if model == "p-slstm":
        import p_slstm

        return {model: p_slstm.fitted(values, ends, horizon, name)}
    if model == "blend":
        members = {m: build(m, name, values, ends, ends[0], horizon, look_back)[m] for m in MEMBERS}
        forecast, weights = blend(values, ends, horizon, members)
        told = {f"{m} ({a:.2f} for MAE, {b:.2f} for MSE)": members[m] for m, (a, b) in weights.items()}
        return told | {model: forecast}
    return {model: estimator(values, end, horizon, FREQ[name], model)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    data_argument(parser)
    parser.add_argument("--sets", nargs="+", default=["ETTh1", "ETTm1", "weather", "ILI"])
    parser.add_argument(
        "--models",
        nargs="+",
        default=["ridge", "linear"],
        help="ridge, linear, a preset, mixer, time, patch alone, p-slstm (ETTm1, weather), or blend",
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
                found = build(model, name, values, ends, end, horizon, args.look_back)
                for told, forecast in found.items():
                    mse, mae = score(values, ends, horizon, forecast, args.every)
                    beside = PUBLISHED.get((name, horizon))
                    cell = "" if beside is None else f"{beside[0]:.3f}/{beside[1]:.3f}"
                    row = name, horizon, told, f"{mse:.3f}", f"{mae:.3f}", cell, f"{time.perf_counter() - start:.0f}"
                    print(f"| {' | '.join(map(str, row))} |", flush=True)


if __name__ == "__main__":
    main()
