"""What moved a forecast: slopes of the whole forecaster at one window, and shuffled inputs over many."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..backtest import plan_panel
from ..data.panel import Panel
from .figures import CUTOFF, FORECAST, _figure, axes

Array = np.ndarray
_COVARIATES = (("future", "known"), ("past", "past"))


def attribute(
    forecaster: Any,
    df: Any,
    *,
    method: str = "gradient",
    series: Any = None,
    n_steps: int | None = None,
    n_windows: int = 20,
    future_df: Any = None,
    static_df: Any = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Which inputs a fitted forecaster's median depends on, measured on the forecaster as a whole.

    "gradient": at the end of one series (None: the first), by how much the mean of the forecast moves, in the target's
    units, per standard deviation of each value of the last `n_steps` context steps (None: the input length) and of each
    known-future value: central differences. Columns part, step (0 is the last observed, 1 the first forecast), effect.

    "permutation": over the last `n_windows` windows of every series, by how much medians change on average where one
    covariate is taken from elsewhere (shifted in time by a random number of steps, static ones from another series),
    and by how much the mean absolute error grows. Columns part, effect, loss.

    Raises:
        ValueError: an unknown method or series.
    """
    if method not in ("gradient", "permutation"):
        raise ValueError(f"method={method!r}: 'gradient' or 'permutation'")
    if not hasattr(forecaster, "fitted_until_"):
        raise ValueError("the forecaster is not fitted: call fit(df) first")
    panel = forecaster._to_panel(df, static_df)
    panel = panel.with_future(future_df, int(forecaster.horizon)) if future_df is not None else panel
    if method == "permutation":
        return _permutation(forecaster, panel, plan_panel(forecaster, df), n_windows, seed)
    keys = list(panel.keys)
    if series is not None and series not in keys:
        raise ValueError(f"series={series!r} is not in the data: it has {keys[:10]}")
    return _gradient(forecaster, panel, 0 if series is None else keys.index(series), n_steps)


def _median(forecaster: Any, panel: Panel, series: Array, origin: Array) -> Array:
    """(n, H, V) medians."""
    return np.asarray(forecaster._forecast(panel, series, origin, (0.5,)))[..., 0]


def _gradient(forecaster: Any, panel: Panel, series: int, n_steps: int | None) -> pd.DataFrame:
    settings = getattr(forecaster, "settings_", None)
    length = n_steps or getattr(settings, "input_length", None) or 4 * int(forecaster.horizon)
    panel = panel.select(np.array([series]))
    rows, seen = panel.rows, int(panel.history[0])
    origin = seen if rows > seen or not panel.known.shape[1] else seen - int(forecaster.horizon)
    first = max(0, origin - int(length))
    parts = []
    for name, field, column in _inputs(panel):
        values = getattr(panel, field)[:, column]
        last = min(rows, origin + int(forecaster.horizon)) if field == "known" else origin
        at = np.arange(first, last)
        at = at[np.isfinite(values[at])]
        spread = float(np.nanstd(values[first:origin])) if origin > first else 0.0
        if not len(at) or spread == 0:
            continue
        moved = [_shifted(panel, field, column, at, sign * 0.1 * spread) for sign in (1, -1)]
        index, origins = np.arange(len(at)), np.full(len(at), origin)
        up, down = (_median(forecaster, many, index, origins).mean(axis=(1, 2)) for many in moved)
        parts.append(pd.DataFrame({"part": name, "step": at - origin + 1, "effect": (up - down) / 0.2}))
    if not parts:
        raise ValueError("no input of this series varies, so there is nothing to attribute")
    return pd.concat(parts, ignore_index=True)


def _inputs(panel: Panel) -> list[tuple[str, str, int]]:
    """(name, field of the panel, column) of every real input that changes in time."""
    inputs = [(name, "target", i) for i, name in enumerate(panel.roles.target)]
    for role, field in _COVARIATES:
        inputs += [(name, field, i) for i, name in enumerate(panel.roles.reals(role))]
    return inputs


def _shifted(panel: Panel, field: str, column: int, rows: Array, by: float) -> Panel:
    """One copy of a panel of one series for each row, in which that row's value is moved."""
    many = panel.select(np.zeros(len(rows), np.int64))
    values = getattr(many, field).copy()
    values[many.offsets[:-1] + rows, column] += by
    return replace(many, **{field: values})


def _permutation(forecaster: Any, panel: Panel, labelled: Panel, n_windows: int, seed: int) -> pd.DataFrame:
    horizon = int(forecaster.horizon)
    back = np.arange(min(n_windows, int(panel.history.max())))
    series = np.repeat(np.arange(len(panel)), len(back))
    origin = panel.history[series] - horizon - np.tile(back, len(panel))
    series, origin = series[origin > 0], origin[origin > 0]
    if not len(series):
        raise ValueError(f"no series has more than {horizon} rows: there is no window to measure on")
    truth = labelled.target[(labelled.offsets[series] + origin)[:, None] + np.arange(horizon)]  # (n, H, V)
    rng = np.random.default_rng(seed)
    base = _median(forecaster, panel, series, origin)
    loss = float(np.nanmean(np.abs(base - truth)))
    rows = []
    for name, other in _permuted(panel, rng):
        changed = _median(forecaster, other, series, origin)
        worse = float(np.nanmean(np.abs(changed - truth))) - loss
        rows.append({"part": name, "effect": float(np.abs(changed - base).mean()), "loss": worse})
    if not rows:
        raise ValueError("the forecaster reads no covariate: use method='gradient' for the target's own past")
    return pd.DataFrame(rows).sort_values("effect", ascending=False, ignore_index=True)


def _permuted(panel: Panel, rng: np.random.Generator) -> Any:
    """(name, panel) for every covariate, taken from elsewhere: in time within each series, or from other series."""
    lengths = np.diff(panel.offsets)
    moved = np.arange(panel.rows)
    for a, n in zip(panel.offsets[:-1], lengths, strict=True):
        if n > 1:
            moved[a : a + n] = a + np.roll(np.arange(n), int(rng.integers(1, n)))
    other = rng.permutation(len(panel))
    for role, field in (("future", "known"), ("past", "past"), ("static", "static")):
        order = other if field == "static" else moved
        for kind, names in ((field, panel.roles.reals(role)), (f"{field}_categories", panel.roles.categories(role))):
            for i, name in enumerate(names):
                values = getattr(panel, kind).copy()
                values[:, i] = values[order, i]
                yield name, replace(panel, **{kind: values})


def plot_attribution(table: pd.DataFrame, *, ax: Axes | None = None) -> Figure:
    """The result of `attribute`: effects by step for each input ("gradient"), or one bar per input ("permutation")."""
    if "effect" not in table or "part" not in table:
        raise ValueError(
            f"columns 'part' and 'effect' are needed: found {list(table.columns)}; pass what `attribute` made"
        )
    return _plot_steps(table, ax) if "step" in table else _plot_bars(table, ax)


def _plot_steps(table: pd.DataFrame, ax: Axes | None) -> Figure:
    from .figures import MODELS

    ax = axes(ax, 8.0, 3.2)
    for i, (name, rows) in enumerate(table.groupby("part", sort=False)):
        ax.plot(rows["step"], rows["effect"], color=MODELS[i % len(MODELS)], linewidth=1.3, label=str(name))
        ax.fill_between(rows["step"], 0, rows["effect"], color=MODELS[i % len(MODELS)], alpha=0.15, linewidth=0)
    ax.axvline(0.5, color=CUTOFF, linestyle=":", linewidth=1)
    ax.axhline(0, color=CUTOFF, linewidth=0.8)
    ax.set(xlabel="step (0: last observed, 1: first forecast)", ylabel="effect per standard deviation")
    ax.legend(fontsize=8, frameon=False, loc="upper left")
    ax.margins(x=0.01)
    return _figure(ax)


def _plot_bars(table: pd.DataFrame, ax: Axes | None) -> Figure:
    table = table.sort_values("effect")
    ax = axes(ax, 6.4, 0.9 + 0.4 * len(table))
    bars = ax.barh(table["part"].astype(str), table["effect"], color=FORECAST, height=0.62)
    ax.bar_label(bars, fmt="%.3g", padding=4, fontsize=9)
    ax.set_xlabel("mean absolute change of the forecast, target's units")
    ax.margins(x=0.12)
    ax.tick_params(axis="y", length=0)
    return _figure(ax)
