"""Scores of tidy forecast frames, by group. Whatever utilsforecast or scoringrules computes is computed by them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from .scale import seasonal_scale
from .tidy import Columns, as_pandas, band_name, check_unique, columns_of, common_rows, like, quantile_name, sure_steps

GROUPS = ("overall", "series", "step", "cutoff", "target")
_POINT = ("mae", "rmse", "smape", "wape", "bias")
_QUANTILE = ("pinball", "wql", "crps")
_BAND = ("coverage", "width")
_SCALED = ("mase", "rmsse")
_SCALED_BAND = ("msis",)
METRICS = _POINT + _SCALED + _QUANTILE + _BAND + _SCALED_BAND
_NEEDS = dict.fromkeys(_QUANTILE, "quantile columns (q0.1, q0.9, ...)") | dict.fromkeys(
    _BAND + _SCALED_BAND, "a pair of quantile columns around the median (q0.1 and q0.9)"
)


@dataclass(frozen=True)
class _Scored:
    """The rows that have a label: arrays of length n, and the group of each row."""

    y: np.ndarray  # (n,)
    forecast: np.ndarray  # (n,)
    quantiles: np.ndarray  # (n, Q)
    levels: np.ndarray  # (Q,)
    bands: list[tuple[float, float, float]]
    scale: np.ndarray | None  # (n,), mean absolute seasonal change
    root_scale: np.ndarray | None  # (n,), root of the mean squared seasonal change
    group: np.ndarray  # (n,) int
    n_groups: int

    def frame(self, y: np.ndarray | None = None, **models: np.ndarray) -> pd.DataFrame:
        return pd.DataFrame({"group": self.group, "y": self.y if y is None else y, **models})

    def spread(self, result: pd.DataFrame, name: str = "m") -> np.ndarray:
        """A grouped result as one value per group, NaN where no row of a group has a label. (n_groups,)"""
        full = np.full(self.n_groups, np.nan)
        full[result["group"].to_numpy()] = result[name].to_numpy(dtype=np.float64)
        return full

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Mean over the rows of each group, rows that are not finite left out. (n_groups,)"""
        keep = np.isfinite(values)
        count = np.bincount(self.group[keep], minlength=self.n_groups)
        total = np.bincount(self.group[keep], weights=values[keep], minlength=self.n_groups)
        return np.divide(total, count, out=np.full(self.n_groups, np.nan), where=count > 0)

    def column(self, level: float) -> np.ndarray:
        return self.quantiles[:, int(np.argmin(np.abs(self.levels - level)))]


def _loss(name: str) -> Callable[..., pd.DataFrame]:
    import utilsforecast.losses as losses

    return getattr(losses, name)


def _point(name: str) -> Callable[[_Scored], dict[str, np.ndarray]]:
    factor = 2.0 if name == "smape" else 1.0  # utilsforecast's runs to 1, gluonts' and the M competitions' to 2

    def score(rows: _Scored) -> dict[str, np.ndarray]:
        result = _loss(name)(rows.frame(m=rows.forecast), models=["m"], id_col="group", target_col="y")
        return {name: factor * rows.spread(result)}

    return score


def _scaled(name: str, loss: str) -> Callable[[_Scored], dict[str, np.ndarray]]:
    def score(rows: _Scored) -> dict[str, np.ndarray]:
        scale = rows.scale if loss == "mae" else rows.root_scale
        assert scale is not None
        frame = rows.frame(y=rows.y / scale, m=rows.forecast / scale)
        return {name: rows.spread(_loss(loss)(frame[frame["m"].notna()], models=["m"], id_col="group", target_col="y"))}

    return score


def _pinball(rows: _Scored) -> dict[str, np.ndarray]:
    names = {f"m{i}": rows.quantiles[:, i] for i in range(len(rows.levels))}
    result = _loss("mqloss")(
        rows.frame(**names), models={"m": list(names)}, quantiles=rows.levels, id_col="group", target_col="y"
    )
    return {"pinball": rows.spread(result)}


def _crps(rows: _Scored) -> dict[str, np.ndarray]:
    return {"crps": 2 * _pinball(rows)["pinball"]}


def _wql(rows: _Scored) -> dict[str, np.ndarray]:
    names = {f"m{i}": rows.quantiles[:, i] for i in range(len(rows.levels))}
    result = _loss("scaled_crps")(
        rows.frame(**names), models={"m": list(names)}, quantiles=rows.levels, id_col="group", target_col="y"
    )
    return {"wql": np.where(rows.mean(np.abs(rows.y)) > 0, rows.spread(result), np.nan)}


def _coverage(rows: _Scored) -> dict[str, np.ndarray]:
    scores = {}
    for nominal, lo, hi in rows.bands:
        frame = rows.frame(**{"m-lo-0": rows.column(lo), "m-hi-0": rows.column(hi)})
        result = _loss("coverage")(frame, models=["m"], level=0, id_col="group", target_col="y")
        scores[band_name("coverage", nominal)] = rows.spread(result)
    return scores


def _width(rows: _Scored) -> dict[str, np.ndarray]:
    return {band_name("width", nominal): rows.mean(rows.column(hi) - rows.column(lo)) for nominal, lo, hi in rows.bands}


def _msis(rows: _Scored) -> dict[str, np.ndarray]:
    assert rows.scale is not None
    return {
        band_name("msis", nominal): rows.mean(
            interval_score(rows.y, rows.column(lo), rows.column(hi), nominal) / rows.scale
        )
        for nominal, lo, hi in rows.bands
    }


_SCORERS: dict[str, Callable[[_Scored], dict[str, np.ndarray]]] = {
    **{name: _point(name) for name in _POINT},
    "mase": _scaled("mase", "mae"),
    "rmsse": _scaled("rmsse", "rmse"),
    "pinball": _pinball,
    "wql": _wql,
    "crps": _crps,
    "coverage": _coverage,
    "width": _width,
    "msis": _msis,
}


def evaluate(
    frame: Any,
    metrics: str | Sequence[str] | None = None,
    *,
    history: Any = None,
    season_length: int = 1,
    by: str | Sequence[str] = "overall",
) -> Any:
    """Score a tidy forecast frame; one row per group, one column per metric.

    `by` is one or several of "overall", "series", "step", "cutoff" and "target"; `metrics` is one or several of METRICS
    (None: all that the columns allow). Rows without a label, a forecast or, where a metric reads quantiles, one of
    those are left out. `history` is the frame that was forecast: it gives the scale of MASE, RMSSE and MSIS, read up to
    each row's own cutoff only, and tells how long a "step" is where rows of the frame are gone. Over several series a
    score is the mean over all rows (as gluonts aggregates), not a mean of means; `coverage80` counts labels on the
    band's ends as covered; `bias` is forecast minus label; `smape` runs from 0 to 2; `crps` is twice the mean pinball
    loss over the levels; `wql` divides the same by the mean absolute label.

    Raises:
        ValueError: an unknown metric or group, a metric without the columns it needs, no row with a label, rows that
            repeat, or steps that are not clear.
    """
    table = as_pandas(frame)
    columns = columns_of(table)
    check_unique(table, columns)
    chosen = choose(metrics, columns, history)
    groups, keys = _groups(table, columns, [by] if isinstance(by, str) else list(by), history)
    rows = _scored(table, columns, groups, len(keys), history, season_length, chosen)
    for name in chosen:
        for column, values in _SCORERS[name](rows).items():
            keys[column] = values
    return like(keys, frame)


def choose(metrics: str | Sequence[str] | None, columns: Columns, history: Any) -> list[str]:
    """The metrics to compute, in METRICS' order when not named; refuses those whose columns are missing."""
    needs: dict[str, str] = {}
    needs |= {name: _NEEDS[name] for name in _without(columns)}
    if history is None:
        needs |= dict.fromkeys((*_SCALED, *_SCALED_BAND), "history=, the frame that was forecast")
    if metrics is None:
        return [name for name in METRICS if name not in needs]
    metrics = [metrics] if isinstance(metrics, str) else metrics
    for name in metrics:
        if name not in METRICS:
            raise ValueError(f"unknown metric {name!r}: choose from {', '.join(METRICS)}")
        if name in needs:
            raise ValueError(f"metric {name!r} needs {needs[name]}")
    return list(dict.fromkeys(metrics))


def _without(columns: Columns) -> tuple[str, ...]:
    """The metrics for which these columns lack quantiles."""
    return (() if columns.levels else _QUANTILE) + (() if columns.bands else _BAND + _SCALED_BAND)


def align(frames: Mapping[str, Any], metrics: str | Sequence[str] | None) -> dict[str, pd.DataFrame]:
    """The models' frames, cut to the quantile levels and the rows that all of them have for these metrics.

    Raises:
        ValueError: a metric needs quantiles, and none, or no pair around the median, is common to all frames.
    """
    tables = {name: as_pandas(frame, name) for name, frame in frames.items()}
    columns = {name: columns_of(table) for name, table in tables.items()}
    asked = METRICS if metrics is None else [metrics] if isinstance(metrics, str) else metrics
    read = [name for name in asked if name in _NEEDS]
    levels = set.intersection(*(set(c.levels) for c in columns.values())) if read else set()
    shared = replace(next(iter(columns.values())), levels=tuple(sorted(levels)))
    lacking = [name for name in read if name in _without(shared)]
    if metrics is not None and lacking:
        found = ", ".join(f"{name!r} has {c.quantiles}" for name, c in columns.items())
        raise ValueError(
            f"metric {lacking[0]!r} needs {_NEEDS[lacking[0]]} that all frames have: {found}; forecast the same "
            "quantiles with each"
        )
    for name, table in tables.items():
        others = [quantile_name(level) for level in columns[name].levels if level not in levels]
        tables[name] = table.drop(columns=others)
    return common_rows(tables, shared.levels)


def _groups(table: pd.DataFrame, columns: Columns, by: list[str], history: Any) -> tuple[np.ndarray, pd.DataFrame]:
    """The group of every row, and a frame of the groups' keys in ascending order."""
    for name in by:
        if name not in GROUPS:
            raise ValueError(f"by={name!r} is not known: choose from {', '.join(GROUPS)}")
    keys: dict[str, Any] = {}
    for name in by:
        if name == "series" and columns.id is not None:
            keys[columns.id] = table[columns.id].to_numpy()
        if name in ("series", "target") and columns.target is not None:
            keys["target"] = table["target"].to_numpy()
        if name == "step":
            keys["step"] = sure_steps(table, columns, history)
        if name == "cutoff":
            keys["cutoff"] = table["cutoff"].array
    if not keys:
        return np.zeros(len(table), dtype=np.int64), pd.DataFrame(index=range(1))
    frame = pd.DataFrame(keys)
    grouped = frame.groupby(list(keys), sort=True, observed=True)
    return grouped.ngroup().to_numpy(), grouped.size().index.to_frame(index=False)


def _scored(
    table: pd.DataFrame,
    columns: Columns,
    groups: np.ndarray,
    n_groups: int,
    history: Any,
    season_length: int,
    chosen: list[str],
) -> _Scored:
    y = table[columns.label].to_numpy(dtype=np.float64, na_value=np.nan)
    forecast = table["forecast"].to_numpy(dtype=np.float64, na_value=np.nan)
    read = columns.quantiles if set(chosen) & set(_NEEDS) else []
    quantiles = table[read].to_numpy(dtype=np.float64, na_value=np.nan)
    keep = np.isfinite(y) & np.isfinite(forecast) & np.isfinite(quantiles).all(axis=1)
    if not keep.any():
        raise ValueError(
            f"no row of the {len(table)} has both a label (column {columns.label!r}) and a forecast: nothing to score"
        )
    scales: dict[int, np.ndarray | None] = {1: None, 2: None}
    for power, users in ((1, {"mase", "msis"}), (2, {"rmsse"})):
        if users & set(chosen):
            scales[power] = seasonal_scale(table[keep], history, season_length, power=power, columns=columns)
    return _Scored(
        y[keep],
        forecast[keep],
        quantiles[keep],
        np.asarray(columns.levels),
        columns.bands,
        scales[1],
        None if scales[2] is None else np.sqrt(scales[2]),
        groups[keep],
        n_groups,
    )


def interval_score(y: np.ndarray, lower: np.ndarray, upper: np.ndarray, nominal: float) -> np.ndarray:
    """Width of a central band plus 2 / (1 - nominal) times what a label misses it by; scoringrules computes it. (n,)"""
    import scoringrules

    return np.reshape(scoringrules.interval_score(y, lower, upper, 1 - nominal, backend="numpy"), np.shape(y))


def crps_student_t(y: ArrayLike, freedom: ArrayLike, location: ArrayLike, scale: ArrayLike) -> np.ndarray:
    """Exact CRPS of Student t forecasts; scoringrules computes it. (n,)"""
    import scoringrules

    return np.asarray(scoringrules.crps_t(y, freedom, location, scale, backend="numpy"))


def crps_normal(y: ArrayLike, location: ArrayLike, scale: ArrayLike) -> np.ndarray:
    """Exact CRPS of normal forecasts; scoringrules computes it. (n,)"""
    import scoringrules

    return np.asarray(scoringrules.crps_normal(y, location, scale, backend="numpy"))


def crps_samples(y: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """CRPS of an ensemble or of sample paths, samples (n, S), unbiased in S; scoringrules computes it. (n,)"""
    import scoringrules

    return np.asarray(scoringrules.crps_ensemble(y, samples, estimator="fair", backend="numpy"))


def pit(frame: Any) -> np.ndarray:
    """Probability integral transform of every label under its row's quantiles, NaN where either is missing. (n,)

    Linear between levels. Beyond the outermost levels the distribution is not known: such labels get the middle of the
    probability that lies there, so a histogram over the levels counts them exactly.

    Raises:
        ValueError: fewer than two quantile columns.
    """
    table = as_pandas(frame)
    columns = columns_of(table)
    if len(columns.levels) < 2:
        raise ValueError(f"pit needs at least two quantile columns (q0.1, q0.9, ...), found {columns.quantiles}")
    y = table[columns.label].to_numpy(dtype=np.float64, na_value=np.nan)
    return pit_values(y, table[columns.quantiles].to_numpy(dtype=np.float64), np.asarray(columns.levels))


def pit_values(y: np.ndarray, quantiles: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Levels of y (n,) within ordered quantiles (n, Q) at levels (Q,), as `pit` describes; ties take their middle."""
    below, at = (quantiles < y[:, None]).sum(1), (quantiles <= y[:, None]).sum(1)
    last = len(levels) - 1
    left, right = np.clip(below - 1, 0, last), np.clip(below, 0, last)
    rows = np.arange(len(y))
    gap = quantiles[rows, right] - quantiles[rows, left]
    part = np.divide(y - quantiles[rows, left], gap, out=np.zeros(len(y)), where=gap > 0)
    value = levels[left] + part * (levels[right] - levels[left])
    tied = at > below
    value = np.where(tied, (levels[np.clip(below, 0, last)] + levels[np.clip(at - 1, 0, last)]) / 2, value)
    value = np.where(~tied & (below == 0), levels[0] / 2, value)
    value = np.where(~tied & (below > last), (1 + levels[-1]) / 2, value)
    return np.where(np.isfinite(y) & np.isfinite(quantiles).all(1), value, np.nan)


def leaderboard(
    frames: Mapping[str, Any],
    metrics: str | Sequence[str] = ("mase", "crps", "coverage"),
    *,
    history: Any = None,
    season_length: int = 1,
    relative_to: str | None = None,
) -> pd.DataFrame:
    """Scores of several models on the rows that all of them forecast, best first by the first metric.

    `frames` maps a model's name to its tidy frame. A row counts for all models or for none: each must have a finite
    forecast there and, where a metric reads quantiles, finite ones. Of the quantile levels, those that all frames have
    are scored. The best has the least error, the bias nearest to 0, or the coverage nearest to nominal (of the
    narrowest band). With `relative_to` every error is divided by that model's; coverage and bias stay as they are.

    Raises:
        ValueError: no frames, no rows or (for a metric of quantiles) no levels in common, or `relative_to` is not among
            the models.
    """
    if not len(frames):
        raise ValueError("frames is empty: pass at least one model's backtest, as {'name': frame}")
    if relative_to is not None and relative_to not in frames:
        raise ValueError(f"relative_to={relative_to!r} is not among the models {list(frames)}")
    tables = align(frames, metrics)
    rows = [evaluate(t, metrics, history=history, season_length=season_length) for t in tables.values()]
    board = pd.concat(rows, ignore_index=True)
    if relative_to is not None:
        errors = [name for name in board if not str(name).startswith(("coverage", "bias"))]
        board[errors] = board[errors] / board.loc[list(tables).index(relative_to), errors]
    board.insert(0, "model", list(tables))
    first, bands = str(board.columns[1]), columns_of(next(iter(tables.values()))).bands
    return board.sort_values(
        board.columns[1], key=lambda scores: _from_best(scores, first, bands), kind="stable", ignore_index=True
    )


def _from_best(scores: pd.Series, name: str, bands: list[tuple[float, float, float]]) -> pd.Series:
    """How far scores are from the best one can have; `name` is that of their column."""
    if name.startswith("coverage"):
        return (scores - bands[0][0]).abs().round(12)
    return scores.abs() if name == "bias" else scores
