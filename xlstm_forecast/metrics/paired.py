"""Paired tests of two models' losses: is a difference more than noise?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from .scale import seasonal_scale
from .scores import align, choose
from .tidy import Columns, columns_of


@dataclass(frozen=True)
class Comparison:
    """A paired test of two models: is the first one's loss below the second's by more than chance?

    `difference` and `ratio` are of mean losses, first minus second and first over second; `low` and `high` bound the
    ratio with 95 % confidence (bootstrap) or the difference (Diebold-Mariano).
    """

    method: str
    metric: str
    difference: float
    ratio: float
    low: float
    high: float
    p_value: float
    n_series: int
    n_windows: int

    @property
    def significant(self) -> bool:
        return self.p_value < 0.05


def compare(
    first: Any,
    second: Any,
    metric: str = "pinball",
    *,
    method: str = "bootstrap",
    history: Any = None,
    season_length: int = 1,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Test whether two models' losses on the same windows differ by more than noise.

    "bootstrap" resamples series and, within them, circular blocks of windows whose horizons overlap; p is two-sided.
    "dm" is Diebold and Mariano's test on the loss difference per cutoff, with Harvey, Leybourne and Newbold's
    correction (1997): it needs several cutoffs. `metric` is "mae", "rmse" (squared loss), "mase" or "pinball", over
    the quantile levels that both have. Rows count where both forecasts (and quantiles) are finite.

    Raises:
        ValueError: an unknown metric or method, no rows or levels in common, or too few windows (says how many).
    """
    if metric not in ("mae", "rmse", "mase", "pinball"):
        raise ValueError(f"metric must be 'mae', 'rmse', 'mase' or 'pinball' for a paired test, got {metric!r}")
    if method not in ("bootstrap", "dm"):
        raise ValueError(f"method must be 'bootstrap' or 'dm', got {method!r}")
    tables = list(align({"first": first, "second": second}, metric).values())
    columns = columns_of(tables[0])
    losses = [_row_loss(table, metric, history, season_length) for table in tables]
    cells = [window_means(table, columns, loss) for table, loss in zip(tables, losses, strict=True)]
    block = overlap(tables[0], columns)
    test = _bootstrap if method == "bootstrap" else _diebold_mariano
    a, b = (np.nanmean(cell) for cell in cells)
    low, high, p = test(cells[0], cells[1], block, n_resamples, seed)
    return Comparison(method, metric, float(a - b), float(a / b) if b else math.nan, low, high, p, *cells[0].shape)


def _row_loss(table: pd.DataFrame, metric: str, history: Any, season_length: int) -> np.ndarray:
    columns = columns_of(table)
    choose([metric], columns, history)
    error = table[columns.label].to_numpy(np.float64, na_value=np.nan) - table["forecast"].to_numpy(np.float64)
    if metric == "pinball":
        import utilsforecast.losses as losses

        frame = pd.DataFrame({"row": np.arange(len(table)), "y": table[columns.label].to_numpy(np.float64)})
        frame = pd.concat([frame, table[columns.quantiles].reset_index(drop=True)], axis=1)
        models = {"m": columns.quantiles}
        result = losses.mqloss(frame, models, np.asarray(columns.levels), id_col="row", target_col="y")
        return result["m"].to_numpy(np.float64)
    if metric == "rmse":
        return error**2
    return np.abs(error) / (seasonal_scale(table, history, season_length) if metric == "mase" else 1.0)


def window_means(table: pd.DataFrame, columns: Columns, loss: np.ndarray) -> np.ndarray:
    """Mean loss of every series (rows) at every window (columns, by rank of the cutoff from the series' last one)."""
    cells = pd.DataFrame({"loss": loss, "cutoff": table["cutoff"].array})
    cells["series"] = table.groupby(columns.series, sort=True).ngroup().to_numpy() if columns.series else 0
    mean = cells.groupby(["series", "cutoff"], sort=True)["loss"].mean().reset_index()
    mean["window"] = mean.groupby("series")["cutoff"].rank(method="dense", ascending=False)
    return mean.pivot_table(index="series", columns="window", values="loss", dropna=False).to_numpy()[:, ::-1]


def overlap(table: pd.DataFrame, columns: Columns) -> int:
    """How many consecutive windows a horizon reaches into: the length of a bootstrap block."""
    last = table.groupby([*columns.series, "cutoff"], sort=True)[columns.time].max().reset_index()
    part = last[(last[columns.series] == last[columns.series].iloc[0]).all(axis=1)] if columns.series else last
    return max(1, int(pd.Index(part["cutoff"]).searchsorted(part[columns.time].iloc[0], side="left")))


def block_weights(
    shape: tuple[int, ...], block: int, n_resamples: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """How often each series and each window is drawn, resample by resample: windows in circular blocks."""
    rng = np.random.default_rng(seed)
    n_series, n_windows = shape
    block = min(block, n_windows)
    for _ in range(n_resamples):
        series = rng.integers(n_series, size=n_series)
        starts = rng.integers(n_windows, size=-(-n_windows // block))
        windows = ((starts[:, None] + np.arange(block)) % n_windows).ravel()[:n_windows]
        yield np.bincount(series, minlength=n_series), np.bincount(windows, minlength=n_windows)


def _bootstrap(
    first: np.ndarray, second: np.ndarray, block: int, n_resamples: int, seed: int
) -> tuple[float, float, float]:
    if first.size < 2:
        raise ValueError("a paired bootstrap needs at least 2 windows, found 1: raise n_windows")
    present = np.isfinite(first) & np.isfinite(second)
    a, b = np.where(present, first, 0.0), np.where(present, second, 0.0)
    ratios, differences = np.full(n_resamples, np.nan), np.full(n_resamples, np.nan)
    for i, (rows, columns) in enumerate(block_weights(first.shape, block, n_resamples, seed)):
        total_a, total_b, count = (float(rows @ x @ columns) for x in (a, b, present))
        if count:
            ratios[i] = total_a / total_b if total_b else math.nan
            differences[i] = (total_a - total_b) / count
    low, high = np.nanquantile(ratios, [0.025, 0.975])
    positive = np.nanmean(differences > 0) + 0.5 * np.nanmean(differences == 0)
    p = min(1.0, 2 * min(positive, 1 - positive) + 1 / n_resamples)
    return float(low), float(high), float(p)


def _diebold_mariano(
    first: np.ndarray, second: np.ndarray, block: int, n_resamples: int, seed: int
) -> tuple[float, float, float]:
    difference = np.nanmean(first - second, axis=0)
    difference = difference[np.isfinite(difference)]
    n = len(difference)
    if n < max(4, block + 2):
        raise ValueError(
            f"the Diebold-Mariano test needs at least {max(4, block + 2)} windows here, found {n}: raise n_windows, or "
            "use method='bootstrap'"
        )
    mean = difference.mean()
    centred = difference - mean
    lags = [float(centred[k:] @ centred[: n - k]) / n for k in range(block)]
    variance = (lags[0] + 2 * sum(lags[1:])) / n
    variance = variance if variance > 0 else lags[0] / n
    correction = (n + 1 - 2 * block + block * (block - 1) / n) / n
    error = math.sqrt(variance / correction) if variance > 0 else 0.0
    p = _student_tail(mean / error, n - 1) if error else (1.0 if mean == 0 else 0.0)
    reach = _student_reach(n - 1) * error
    return float(mean - reach), float(mean + reach), p


def _student_tail(t: float, freedom: int) -> float:
    """Two-sided tail probability of Student's t: with x = sqrt(freedom) tan(a) its density is cos(a)**(freedom - 1)."""
    angles = np.linspace(0, math.pi / 2, 20001)
    density = np.cos(angles) ** (freedom - 1)
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return float(1 - np.interp(math.atan(abs(t) / math.sqrt(freedom)), angles, mass) / mass[-1])


def _student_reach(freedom: int) -> float:
    """The t beyond which 5 % lie, two-sided, by bisection."""
    low, high = 0.0, 1000.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_tail(middle, freedom) > 0.05 else (low, middle)
    return high
