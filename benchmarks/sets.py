"""Benchmark sets, their test windows and the metrics, exactly as the published protocols define them.

The data folder comes from `--data` or the environment variable XLSTM_FORECAST_DATA; nothing is downloaded or copied.
A `Task` is one configuration: series, season of the protocol, horizon, and the non-overlapping test windows at the end.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import math
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Array = NDArray[np.float64]
LEVELS = np.arange(1, 10) / 10

# Untouched until the recipe was frozen: drawn by `np.random.default_rng(7)` from the base sets on which no earlier
# experiment is known to us (see `draw_held_out`). Their cut-down versions are held out with them.
HELD_OUT = ("m1_quarterly", "m3_quarterly", "m3_yearly", "solar_weekly", "tourism_yearly")


@dataclass(frozen=True, kw_only=True)
class Task:
    """One configuration: every series is scored on its last `windows * horizon` steps."""

    name: str
    series: list[Array]
    season: int  # m of the protocol, for the metric and the seasonal naive
    horizon: int
    windows: int
    freq: str | None  # what a frame would say: a pandas alias
    starts: NDArray[np.datetime64] | None = None  # first stamp of each series, None where the data has no dates

    def flat(self) -> tuple[Array, NDArray[np.int64]]:
        """All series behind each other, and the offsets (S + 1,) at which each begins."""
        return np.concatenate(self.series), np.cumsum([0] + [len(s) for s in self.series])

    def cutoffs(self) -> NDArray[np.int64]:
        """Rows of each series before its first test window: what a fit may see."""
        return np.array([len(s) for s in self.series]) - self.windows * self.horizon

    def origins(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(series, origin) of every test window, windows of one series behind each other."""
        index = np.repeat(np.arange(len(self.series)), self.windows)
        steps = np.tile(np.arange(self.windows) * self.horizon, len(self.series))
        return index, self.cutoffs()[index] + steps

    def training(self) -> Task:
        """The same task cut before its first test window."""
        cut = [s[:c] for s, c in zip(self.series, self.cutoffs(), strict=True)]
        return Task(**{**self.__dict__, "series": cut, "windows": 0})

    def labels(self) -> Array:
        """(n, H) true values of the test windows."""
        index, origin = self.origins()
        return np.stack([self.series[i][o : o + self.horizon] for i, o in zip(index, origin, strict=True)])

    def moved_back(self, share: float) -> Task:
        """The same number of windows, ending `share` of the test span earlier; everything after is removed."""
        drop = round(self.windows * self.horizon * share)
        return Task(**{**self.__dict__, "series": [s[: len(s) - drop] for s in self.series]})


def data_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--data`, which defaults to XLSTM_FORECAST_DATA."""
    parser.add_argument("--data", default=os.environ.get("XLSTM_FORECAST_DATA"), help="folder with the raw files")


def data_folder(value: str | None) -> Path:
    """The data folder as a path; SystemExit with advice where there is none."""
    if not value or not Path(value).is_dir():
        raise SystemExit(f"no data folder {value!r}: pass --data DIR or set XLSTM_FORECAST_DATA")
    return Path(value)


# ---- metrics -------------------------------------------------------------------------------------------------------


def seasonal_error(past: Array, m: int) -> float:
    """Mean of |x_t - x_{t-m}| over the past of a window; m = 1 where the past is not longer than m."""
    m = m if len(past) > m else 1
    with np.errstate(invalid="ignore"):
        difference = np.abs(past[m:] - past[:-m])
    return float(np.nanmean(difference)) if np.isfinite(difference).any() else math.nan


def window_scores(task: Task, quantiles: Array) -> pd.DataFrame:
    """Sums per test window from which every aggregate follows: one row per window. `quantiles` is (n, H, 9)."""
    index, origin = task.origins()
    truth = task.labels()
    scale = np.array([seasonal_error(task.series[i][:o], task.season) for i, o in zip(index, origin, strict=True)])
    return pd.DataFrame({"series": index, "origin": origin, **sums(truth, quantiles, scale)})


def sums(truth: Array, quantiles: Array, scale: Array) -> dict[str, Array]:
    """Per window: scaled absolute error and its count, pinball loss at nine levels, |y|, hits of the 80 % band.

    SystemExit where a forecast is not a number: sums that leave it out would call it free of error.
    """
    if not np.isfinite(quantiles).all():
        raise SystemExit(f"{(~np.isfinite(quantiles)).mean():.0%} of the forecasts are no finite numbers")
    seen = np.isfinite(truth)
    y = np.where(seen, truth, 0.0)
    error = np.abs(y - quantiles[..., 4]) * seen
    usable = np.isfinite(scale) & (scale > 0)
    below = y[..., None] <= quantiles
    rho = 2 * np.abs((y[..., None] - quantiles) * (below - LEVELS)) * seen[..., None]
    inside = (y >= quantiles[..., 0]) & (y <= quantiles[..., 8]) & seen
    return {
        "scaled": np.where(usable, error.sum(1) / np.where(usable, scale, 1), 0.0),
        "scaled_n": np.where(usable, seen.sum(1), 0),
        "pinball": rho.mean(-1).sum(1),
        "absolute": np.abs(y).sum(1),
        "inside": inside.sum(1),
        "n": seen.sum(1),
    }


def aggregate(scores: pd.DataFrame) -> dict[str, float]:
    """MASE, CRPS and coverage of the 80 % band of one configuration."""
    total = scores[["scaled", "scaled_n", "pinball", "absolute", "inside", "n"]].sum()
    return {
        "MASE": total["scaled"] / total["scaled_n"],
        "CRPS": total["pinball"] / total["absolute"],
        "cover80": total["inside"] / total["n"],
        "points": total["n"],
    }


def bootstrap_ratio(ours: pd.DataFrame, naive: pd.DataFrame, draws: int = 1000, seed: int = 0) -> dict[str, float]:
    """95 % interval of the ratio to seasonal naive, paired, over series and (blocks of) windows of each series."""
    columns = ["scaled", "scaled_n", "pinball", "absolute"]
    a, b = (s[columns].to_numpy(float) for s in (ours, naive))
    series = ours["series"].to_numpy()
    count = int(series.max()) + 1
    windows = len(series) // count
    rng = np.random.default_rng(seed)
    ratios = np.empty((draws, 2))
    for d in range(draws):
        rows = rng.integers(0, count, count)[:, None] * windows + rng.integers(0, windows, windows)
        p, q = a[rows.ravel()].sum(0), b[rows.ravel()].sum(0)
        ratios[d] = (p[0] / p[1]) / (q[0] / q[1]), (p[2] / p[3]) / (q[2] / q[3])
    low, high = np.nanquantile(ratios, [0.025, 0.975], axis=0)
    return {"MASE_low": low[0], "MASE_high": high[0], "CRPS_low": low[1], "CRPS_high": high[1]}


# ---- readers -------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=8)
def _csv(path: Path) -> pd.DataFrame:
    return pd.read_csv(path)


@functools.lru_cache(maxsize=8)
def _tsf(path: Path) -> tuple[list[Array], NDArray[np.datetime64]]:
    """Series and first stamps of a Monash .tsf.gz file."""
    with gzip.open(path, "rt", encoding="cp1252") as file:
        lines = file.read().split("@data\n")[1].strip().split("\n")
    series, starts = [], []
    for line in lines:
        *_, start, values = line.split(":")
        series.append(np.array([float(v) if v != "?" else np.nan for v in values.split(",")]))
        starts.append(np.datetime64(start.split(" ")[0], "s"))
    return series, np.array(starts)


def _frame(path: Path) -> pd.DataFrame:
    """A wide csv with its first column as a time index."""
    frame = _csv(path)
    return frame.set_index(pd.to_datetime(frame.iloc[:, 0])).iloc[:, 1:]


@functools.lru_cache(maxsize=2)
def weather(folder: Path) -> pd.DataFrame:
    """The 21-variable weather set, every 10 minutes."""
    with zipfile.ZipFile(folder / "weather.zip") as archive, archive.open("weather/weather.csv") as file:
        frame = pd.read_csv(file, encoding="cp1252")
    return frame.set_index(pd.to_datetime(frame["date"])).drop(columns="date")


def wide_task(
    name: str, frame: pd.DataFrame, season: int, horizon: int, windows: int, freq: str, dated: bool = True
) -> Task:
    """Every column of a wide frame as its own series."""
    values = frame.to_numpy(float)
    starts = np.full(values.shape[1], np.datetime64(frame.index[0], "s")) if dated else None
    series = [np.ascontiguousarray(values[:, k]) for k in range(values.shape[1])]
    return Task(name=name, series=series, season=season, horizon=horizon, windows=windows, freq=freq, starts=starts)


# ---- GIFT-Eval, the sixteen configurations that can be rebuilt exactly -----------------------------------------------


def gift_windows(shortest: int, horizon: int) -> int:
    return min(max(1, math.ceil(0.1 * shortest / horizon)), 20)


def _gift(name: str, frame: pd.DataFrame, season: int, horizon: int, freq: str) -> Task:
    return wide_task(name, frame, season, horizon, gift_windows(len(frame), horizon), freq)


def _births(folder: Path) -> pd.DataFrame:
    series, starts = _tsf(folder / "us_births_dataset.tsf.gz")
    return pd.DataFrame({"births": series[0]}, index=pd.date_range(starts[0], periods=len(series[0]), freq="D"))


def _m4_weekly(folder: Path) -> Task:
    train = _csv(folder / "m4_Weekly-train.csv.gz").iloc[:, 1:].to_numpy(float)
    test = _csv(folder / "m4_Weekly-test.csv.gz").iloc[:, 1:].to_numpy(float)
    series = [np.concatenate([a[np.isfinite(a)], b[np.isfinite(b)]]) for a, b in zip(train, test, strict=True)]
    starts = np.full(len(series), np.datetime64("1750-01-01", "s"))
    return Task(name="m4_weekly/W/short", series=series, season=1, horizon=13, windows=1, freq="W-SUN", starts=starts)


def _hospital(folder: Path) -> Task:
    series, starts = _tsf(folder / "hospital_dataset.tsf.gz")
    windows = gift_windows(min(map(len, series)), 12)
    return Task(
        name="hospital/M/short", series=series, season=12, horizon=12, windows=windows, freq="MS", starts=starts
    )


def gift_tasks(folder: Path) -> dict[str, Callable[[], Task]]:
    """The 16 configurations by their published names, each built when called."""
    ett = functools.lru_cache(lambda: _frame(folder / "ETTm1.csv.gz"))
    births = functools.lru_cache(lambda: _births(folder))
    terms = {"short": 48, "medium": 480, "long": 720}
    tasks: dict[str, Callable[[], Task]] = {}
    for term, h in terms.items():
        name = f"ett1/15T/{term}"
        tasks[name] = lambda name=name, h=h: _gift(name, ett(), 96, h, "15min")
    for term, h in terms.items():
        name = f"ett1/H/{term}"
        tasks[name] = lambda name=name, h=h: _gift(name, ett().resample("h").mean(), 24, h, "h")
    tasks["ett1/D/short"] = lambda: _gift("ett1/D/short", ett().resample("D").mean()[:-1], 1, 30, "D")
    tasks["ett1/W/short"] = lambda: _gift("ett1/W/short", ett().resample("W-THU").mean()[:-1], 1, 8, "W-THU")
    tasks["m4_weekly/W/short"] = lambda: _m4_weekly(folder)
    tasks["hospital/M/short"] = lambda: _hospital(folder)
    tasks["us_births/D/short"] = lambda: _gift("us_births/D/short", births(), 1, 30, "D")
    tasks["us_births/W/short"] = lambda: _gift(
        "us_births/W/short", births().resample("W-TUE").sum()[:-1], 1, 8, "W-TUE"
    )
    tasks["us_births/M/short"] = lambda: _gift("us_births/M/short", births().resample("ME").sum(), 12, 12, "ME")
    for term, h in terms.items():
        name = f"jena_weather/H/{term}"
        tasks[name] = lambda name=name, h=h: _gift(name, weather(folder).resample("h").mean()[:-1], 24, h, "h")
    return tasks


# ---- breadth: unlike sets without a published table ------------------------------------------------------------------

_MONASH = {  # name: (file, m, H, windows, freq)
    "fred_md": ("fred_md", 12, 12, 7, "MS"),
    "tourism_monthly": ("tourism_monthly", 12, 24, 1, "MS"),
    "tourism_quarterly": ("tourism_quarterly", 4, 8, 1, "QS"),
    "tourism_yearly": ("tourism_yearly", 1, 4, 1, "YS"),
    "m3_monthly": ("m3_monthly", 12, 18, 1, "MS"),
    "m3_quarterly": ("m3_quarterly", 4, 8, 1, "QS"),
    "m3_yearly": ("m3_yearly", 1, 6, 1, "YS"),
    "m1_quarterly": ("m1_quarterly", 4, 8, 1, "QS"),
    "electricity_weekly": ("electricity_weekly", 52, 8, 2, "W-SUN"),
    "traffic_weekly": ("traffic_weekly", 52, 8, 2, "W-THU"),
    "solar_weekly": ("solar_weekly", 1, 5, 1, "W-SUN"),
    "vehicle_trips": ("vehicle_trips", 7, 30, 1, "D"),
}


def _undated(folder: Path, file: str) -> pd.DataFrame:
    """A wide file without stamps; the row number stands for time."""
    return _csv(folder / file)


def _exchange(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "exchange_rate.txt.gz", header=None)


def _covid(folder: Path) -> pd.DataFrame:
    frame = _csv(folder / "jhu_covid_deaths.csv.gz").iloc[:, 4:]
    counts = np.diff(frame.to_numpy(float), axis=1).T
    return pd.DataFrame(counts, index=pd.to_datetime(frame.columns[1:], format="%m/%d/%y"))


def _mean_of(frame: pd.DataFrame, size: int) -> pd.DataFrame:
    """Means over blocks of `size` rows, the last partial block dropped; a block without values stays missing."""
    whole = frame.iloc[: len(frame) // size * size]
    return whole.groupby(np.arange(len(whole)) // size).mean()


def _monash(folder: Path, name: str) -> Task:
    file, m, horizon, windows, freq = _MONASH[name]
    series, starts = _tsf(folder / f"{file}_dataset.tsf.gz")
    return Task(name=name, series=series, season=m, horizon=horizon, windows=windows, freq=freq, starts=starts)


def base_sets(folder: Path) -> dict[str, Callable[[], Task]]:
    """Breadth sets as they are, by name, each built when called."""
    f = folder
    wide: dict[str, tuple[Callable[[], pd.DataFrame], int, int, int, str, bool]] = {
        "exchange_rate": (lambda: _exchange(f), 1, 30, 20, "D", False),
        "national_illness": (lambda: _frame(f / "national_illness.csv.gz"), 52, 24, 5, "W-TUE", True),
        "gefcom_hourly": (lambda: _undated(f, "gefcom2012_load.csv.gz"), 24, 48, 10, "h", False),
        "gefcom_daily": (lambda: _mean_of(_undated(f, "gefcom2012_load.csv.gz"), 24), 7, 30, 3, "D", False),
        "gefcom_weekly": (lambda: _mean_of(_undated(f, "gefcom2012_load.csv.gz"), 168), 52, 8, 2, "W-SUN", False),
        "bdg2_hourly": (lambda: _frame(f / "bdg2_hourly_sample.csv.gz"), 24, 48, 10, "h", True),
        "bdg2_daily": (lambda: _frame(f / "bdg2_daily_sample.csv.gz"), 7, 30, 3, "D", True),
        "ETTh1": (lambda: _frame(f / "ETTh1.csv.gz"), 24, 48, 10, "h", True),
        "nn5_daily": (lambda: _undated(f, "nn5_daily_wide.csv.gz"), 7, 56, 2, "D", False),
        "covid_deaths": (lambda: _covid(f), 7, 30, 2, "D", True),
        "air_quality": (lambda: _frame(f / "air_quality_valencia.csv.gz"), 24, 48, 10, "h", True),
    }
    tasks: dict[str, Callable[[], Task]] = {name: functools.partial(_monash, f, name) for name in _MONASH}
    for name, (frame, m, horizon, windows, freq, dated) in wide.items():
        tasks[name] = lambda n=name, fr=frame, a=(m, horizon, windows, freq, dated): wide_task(n, fr(), *a)
    return tasks


def cut_down(task: Task, length: int, count: int = 48, seed: int = 0) -> Task | None:
    """Up to `count` random series cut to their last `length` values plus H; None where the rules exclude the cut.

    The past must be longer than max(m, 2H), and the original longer than the cut (over its single test window).
    """
    if length <= max(task.season, 2 * task.horizon):
        return None
    keep = [i for i, s in enumerate(task.series) if len(s) > length + task.horizon]
    if not keep:
        return None
    chosen = np.sort(np.random.default_rng(seed).permutation(keep)[:count])
    series = [task.series[i][-(length + task.horizon) :] for i in chosen]
    starts = None
    if task.starts is not None and task.freq is not None:
        starts = np.array(
            [
                np.datetime64(pd.date_range(task.starts[i], periods=len(task.series[i]), freq=task.freq)[-len(s)], "s")
                for i, s in zip(chosen, series, strict=True)
            ]
        )
    return Task(
        name=f"{task.name}@{length}",
        series=series,
        season=task.season,
        horizon=task.horizon,
        windows=1,
        freq=task.freq,
        starts=starts,
    )


def breadth_tasks(folder: Path) -> dict[str, Callable[[], Task | None]]:
    """Base sets and their cut-down versions; a cut that the rules exclude gives None."""
    tasks: dict[str, Callable[[], Task | None]] = dict(base_sets(folder))
    for name, build in base_sets(folder).items():
        for length in (60, 120, 400):
            tasks[f"{name}@{length}"] = lambda b=build, n=length: cut_down(b(), n)
    return tasks


def draw_held_out(folder: Path) -> tuple[str, ...]:
    """The five sets put aside: a seeded draw among those that no earlier experiment of ours has touched."""
    touched = {"tourism_monthly", "m3_monthly", "fred_md", "exchange_rate", "national_illness", "ETTh1"}
    names = sorted(set(base_sets(folder)) - touched)
    return tuple(sorted(str(n) for n in np.random.default_rng(7).choice(names, 5, replace=False)))
