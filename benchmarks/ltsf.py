"""Long-term forecasting tables: MSE and MAE over all windows at stride 1, z-scored with training statistics.

    python benchmarks/ltsf.py --sets ETTh1 ETTm1 weather ILI --models ridge linear
    python benchmarks/ltsf.py --sets ETTm1 --models blend --every 13
    python benchmarks/ltsf.py --sets ETTm1 weather --models xlstm-mixer p-slstm --every 13 --seeds 0 1

Borders as published: ETTh 8640/11520/14400 rows, ETTm four times that, others 70/10/20 %; validation and test reach
back by the look-back; no batch is dropped. Models are fitted on the training rows alone (`--fit-on validation` adds the
validation rows, which the published models do not do). Each metric is given its own forecast of a distribution: MSE the
mean, MAE the median. `blend` averages ridge, backbone and xLSTM-Mixer by weights that the validation rows choose;
`xlstm-mixer` is that network alone in its published sizes. Every run is a line of a csv and is not run again.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from runner import peak_memory
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
P_SLSTM = {  # MSE, and MAE where it is told
    ("ETTm1", 96): (0.292,),
    ("ETTm1", 192): (0.329,),
    ("ETTm1", 336): (0.362,),
    ("ETTm1", 720): (0.421,),
    ("weather", 96): (0.149, 0.208),
    ("weather", 192): (0.197, 0.256),
    ("weather", 336): (0.249, 0.297),
    ("weather", 720): (0.320, 0.350),
}
Pair = tuple[Array, Array]  # median and mean, (n, H) each
Forecast = Callable[[NDArray[np.int64], int], Pair]  # of origins (n,) of a channel
LEVELS = tuple(np.arange(1, 10) / 10)  # whose quantiles are averaged to the mean


NETWORK: dict[str, Any] = {"input_length": 512, "d_model": 64, "max_steps": 600, "batch_size": 32, "lr": 2e-3}
AS_PUBLISHED: dict[str, Any] = {"num_heads": 8, "lr": 1e-3, "dropout": 0.1, "max_steps": 2000}
PASSES = 5  # through the training rows, at most
Sizes = dict[tuple[str, int], dict[str, Any]]
SIZES: Sizes = {  # of each set and horizon, as far as they are told; batch and dropout as above where they are not
    ("ETTm1", 96): {"input_length": 768, "d_model": 256},
    ("ETTm1", 192): {"input_length": 768, "d_model": 128, "batch_size": 64, "dropout": 0.25},
    ("ETTm1", 336): {"input_length": 768, "d_model": 256, "batch_size": 128, "dropout": 0.25},
    ("ETTm1", 720): {"input_length": 768, "d_model": 256, "batch_size": 256, "dropout": 0.25},
    ("weather", 96): {"input_length": 768, "d_model": 256},
    ("weather", 192): {"input_length": 512, "d_model": 256},
    ("weather", 336): {"input_length": 512, "d_model": 256},
    ("weather", 720): {"input_length": 768, "d_model": 128},
}
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


def estimator(values: Array, end: int, horizon: int, freq: str, preset: str, seed: int) -> Forecast:
    """`XLSTMForecaster` with a preset, every channel a series."""
    from xlstm_forecast import XLSTMForecaster

    def frame(rows: Array) -> pd.DataFrame:
        stamps = np.tile(pd.date_range("2016-07-01", periods=len(rows), freq=freq), rows.shape[1])
        index = np.repeat(np.arange(rows.shape[1]), len(rows))
        return pd.DataFrame({"unique_id": index, "ds": stamps, "y": rows.T.ravel()})

    forecaster = XLSTMForecaster(horizon=horizon, presets=preset, seed=seed).fit(frame(values[:end]), verbose=False)
    panel = forecaster._to_panel(frame(values))

    def forecast(origin: NDArray[np.int64], channel: int) -> Pair:
        return of_quantiles(forecaster._forecast(panel, np.full(len(origin), channel), origin, LEVELS)[:, :, 0])

    return forecast


def of_quantiles(quantiles: Array) -> Pair:
    """Median and mean (n, H) of quantiles (n, H, Q) at `LEVELS`."""
    return quantiles[..., len(LEVELS) // 2], quantiles.mean(-1)


def as_published(name: str, horizon: int, end: int) -> dict[str, Any]:
    """Sizes of xLSTM-Mixer as published for a set and horizon, for training on `end` rows."""
    found: dict[str, Any] = NETWORK | AS_PUBLISHED | SIZES[name, horizon]
    windows = end - found["input_length"] - horizon + 1
    return found | {"max_steps": min(found["max_steps"], PASSES * windows // found["batch_size"])}


def network(
    values: Array, end: int, validation: int, horizon: int, freq: str, model: str, seed: int, sizes: Mapping[str, Any]
) -> Forecast:
    """A network of that name alone, all channels as targets of one series, stopped early on the validation rows.

    Trained on the absolute error, as xLSTM-Mixer: its median stands for the mean too.
    """
    from xlstm_forecast import XLSTMForecaster

    names = [f"c{k}" for k in range(values.shape[1])]
    stamps = pd.date_range("2016-07-01", periods=len(values), freq=freq)
    frame = pd.DataFrame(values, columns=names).assign(ds=stamps)
    forecaster = XLSTMForecaster(
        horizon=horizon, id_col=None, target_col=names, model=model, head="point", backbone=False, calendar=(),
        season_length=1, seed=seed, **sizes,
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
    model: str, name: str, values: Array, ends: tuple[int, int, int], horizon: int, seed: int, args: argparse.Namespace
) -> dict[str, Forecast]:
    """A model by name, fitted on the training rows of a set; a blend with its members, named with their weights.

    The validation rows stop a network's training and choose a blend's weights.
    """
    end, freq = ends[0] if args.fit_on == "training" else ends[1], FREQ[name]
    held = ends[0], ends[1] - ends[0]
    if model == "ridge":
        return {model: ridge(values, end, horizon, args.look_back or (104 if name == "ILI" else 512))}
    if model == "linear":
        return {model: linear(values, end, horizon, freq)}
    if model in ("mixer", "time", "patch"):
        return {model: network(values, *held, horizon, freq, model, seed, NETWORK)}
    if model == "xlstm-mixer":
        sizes = as_published(name, horizon, ends[0])
        return {model: network(values, *held, horizon, freq, "mixer", seed, sizes)}
    if model == "p-slstm":
        import p_slstm

        return {model: p_slstm.fitted(values, ends, horizon, name, seed)}
    if model == "blend":
        training = argparse.Namespace(**{**vars(args), "fit_on": "training"})
        members = {m: build(m, name, values, ends, horizon, seed, training)[m] for m in MEMBERS}
        forecast, weights = blend(values, ends, horizon, members)
        told = {f"{m} ({a:.2f} for MAE, {b:.2f} for MSE)": members[m] for m, (a, b) in weights.items()}
        return told | {model: forecast}
    return {model: estimator(values, end, horizon, freq, model, seed)}


KEYS = ["set", "horizon", "model", "seed", "every", "fit_on", "look_back"]


def run_all(args: argparse.Namespace) -> pd.DataFrame:
    """Fit and score everything that is asked for; append to the csv as it goes and return all lines asked for."""
    args.out.parent.mkdir(parents=True, exist_ok=True)
    lines = pd.read_csv(args.out) if args.out.exists() else pd.DataFrame(columns=KEYS)
    folder, asked = data_folder(args.data), []
    for name in args.sets:
        values, ends = load(folder, name)
        for horizon in args.horizons or HORIZONS.get(name, (96, 192, 336, 720)):
            for model, seed in itertools.product(args.models, args.seeds):
                key = name, horizon, model, seed, args.every, args.fit_on, args.look_back or 0
                asked.append(key)
                if key in set(lines[KEYS].itertuples(index=False, name=None)):
                    continue
                start = time.perf_counter()
                for told, forecast in build(model, name, values, ends, horizon, seed, args).items():
                    mse, mae = score(values, ends, horizon, forecast, args.every)
                    row = dict(zip(KEYS, (*key[:2], told, *key[3:]), strict=True)) | {"MSE": mse, "MAE": mae}
                    row |= {"seconds": time.perf_counter() - start, "peak_MiB": peak_memory()}
                    print(" ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()), flush=True)
                    lines = pd.concat([lines, pd.DataFrame([row])], ignore_index=True)
                lines.to_csv(args.out, index=False)
    return lines.set_index(KEYS).loc[asked].reset_index()


def table(lines: pd.DataFrame) -> str:
    """Markdown: mean over seeds with the largest deviation from it, published figures beside them."""
    out = ["| set | horizon | model | seeds | MSE | MAE | xLSTM-Mixer, P-sLSTM published | seconds | peak MiB |"]
    out.append("|" + "---|" * 9)
    for (name, horizon, model), group in lines.groupby(["set", "horizon", "model"], sort=False):
        cells = [name, horizon, model, len(group)]
        for metric in ("MSE", "MAE"):
            off = (group[metric] - group[metric].mean()).abs().max()
            cells.append(f"{group[metric].mean():.3f}" + (f" ± {off:.3f}" if len(group) > 1 else ""))
        beside = ["/".join(f"{v:.3f}" for v in where.get((name, horizon), ())) for where in (PUBLISHED, P_SLSTM)]
        cells += [", ".join(beside), f"{group.seconds.mean():.0f}", f"{group.peak_MiB.max():.0f}"]
        out.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    data_argument(parser)
    parser.add_argument("--sets", nargs="+", default=["ETTh1", "ETTm1", "weather", "ILI"])
    parser.add_argument(
        "--models",
        nargs="+",
        default=["ridge", "linear"],
        help="ridge, linear, a preset, mixer, time, patch alone, xlstm-mixer, p-slstm (ETTm1, weather), or blend",
    )
    parser.add_argument("--horizons", nargs="+", type=int)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--look-back", type=int, help="of the ridge; 512, and 104 for ILI")
    parser.add_argument("--fit-on", choices=["training", "validation"], default="training")
    parser.add_argument("--every", type=int, default=1, help="score every so many windows only (quick looks)")
    parser.add_argument("--out", type=Path, default=Path("results") / "ltsf.csv", help="one line per run; resumed")
    print("\n" + table(run_all(parser.parse_args())))


if __name__ == "__main__":
    main()
