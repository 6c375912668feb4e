"""Figures of tidy forecast frames; each takes `ax`, draws into it or into a new figure, and returns the figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from ..calibration import reliability
from ..metrics import Columns, as_pandas, columns_of, evaluate, pit, quantile_name

PAST, FORECAST, CUTOFF = "#33415c", "#d1495b", "#8d99ae"
MODELS = ("#d1495b", "#2a6f97", "#edae49", "#588157", "#7b2cbf", "#6c757d", "#0b132b")


def axes(ax: Axes | None, width: float = 8.0, height: float = 3.2) -> Axes:
    """The axes to draw into: those given, or those of a new figure, which notebooks show once, as a cell's value."""
    if ax is None:
        figure, ax = plt.subplots(figsize=(width, height), layout="constrained")
        plt.close(figure)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _figure(ax: Axes) -> Figure:
    figure = ax.get_figure()
    while not isinstance(figure, Figure):
        assert figure is not None
        figure = figure.get_figure()  # type: ignore[assignment]
    return figure


def _dates(ax: Axes, times: pd.Series) -> None:
    if pd.api.types.is_datetime64_any_dtype(times):
        locator = AutoDateLocator(minticks=4, maxticks=8)
        ax.xaxis.set_major_locator(locator)
        ax.xaxis.set_major_formatter(ConciseDateFormatter(locator))


def _x(times: pd.Series) -> Any:
    """Times as matplotlib takes them: wall-clock where they have a zone, periods by their start."""
    if isinstance(times.dtype, pd.DatetimeTZDtype):
        return times.dt.tz_localize(None)
    return times.dt.to_timestamp() if isinstance(times.dtype, pd.PeriodDtype) else times


def _parts(table: pd.DataFrame) -> Columns:
    """The columns of a forecast frame, with or without cutoff and label."""
    from ..calibration.conformal import parts_of

    return parts_of(table)[0]


def _select(table: pd.DataFrame, columns: Columns, series: Any, target: str | None) -> tuple[pd.DataFrame, Any, Any]:
    """The rows of one series and target, the first ones where none is named."""
    if columns.id is not None:
        known = table[columns.id].unique()
        series = known[0] if series is None else series
        if series not in known:
            raise ValueError(f"series {series!r} is not in the forecast: it has {list(known[:10])}")
        table = table[table[columns.id] == series]
    if columns.target is not None:
        names = table["target"].unique()
        target = names[0] if target is None else target
        if target not in names:
            raise ValueError(f"target {target!r} is not in the forecast: it has {list(names)}")
        table = table[table["target"] == target]
    return table.sort_values(columns.time), series, target


def _past(history: Any, columns: Columns, series: Any, label: str | None) -> pd.DataFrame:
    """Times and values of one series of the history, as columns x and y."""
    if isinstance(history, pd.Series):
        history = pd.DataFrame({columns.time: history.index, "y": history.array})
    table = as_pandas(history, "history")
    for name in (columns.id, columns.time):
        if name is not None and name not in table:
            raise ValueError(f"column {name!r} is missing from history: found {list(table.columns)}")
    if columns.id is not None:
        table = table[table[columns.id] == series]
    known = [columns.id, columns.time]
    numbers = [c for c in table.select_dtypes("number").columns if c not in known]
    label = label or ("y" if "y" in numbers else numbers[0] if len(numbers) == 1 else None)
    if label is None or label not in table:
        raise ValueError(f"which column of history is the target? pass target=, one of {numbers}")
    table = table.sort_values(columns.time)
    return pd.DataFrame({"x": _x(table[columns.time]).to_numpy(), "y": table[label].to_numpy(np.float64)})


def _draw_forecast(ax: Axes, rows: pd.DataFrame, columns: Columns, name: bool) -> None:
    x = _x(rows[columns.time]).to_numpy()
    bands = columns.bands
    for i, (nominal, lo, hi) in enumerate(reversed(bands)):
        ax.fill_between(
            x,
            rows[quantile_name(lo)].to_numpy(np.float64),
            rows[quantile_name(hi)].to_numpy(np.float64),
            color=FORECAST,
            alpha=0.16 + 0.14 * i,
            linewidth=0,
            label=f"{100 * nominal:g} % band" if name else None,
        )
    ax.plot(x, rows["forecast"].to_numpy(np.float64), color=FORECAST, linewidth=1.8, label="forecast" if name else None)


def plot_forecast(
    forecast: Any,
    history: Any = None,
    *,
    series: Any = None,
    target: str | None = None,
    n_history: int | None = None,
    ax: Axes | None = None,
) -> Figure:
    """One series: the end of its history, the median forecast and its bands.

    `forecast` is what `predict` returned; `series` None: the first; `n_history` None: four horizons; `target` names the
    history's column where it is not clear.
    """
    table = as_pandas(forecast)
    columns = _parts(table)
    if table.empty:
        raise ValueError("the forecast has no rows: there is nothing to plot")
    rows, series, name = _select(table, columns, series, target)
    ax = axes(ax)
    if history is not None:
        past = _past(history, columns, series, name or target)
        past = past[past["x"] < _x(rows[columns.time]).min()].tail(n_history or max(4 * len(rows), 30))
        ax.plot(past["x"], past["y"], color=PAST, linewidth=1.3, label="history")
    _draw_forecast(ax, rows, columns, name=True)
    ax.set_title(" · ".join(str(part) for part in (series, name) if part is not None), loc="left", fontsize=10)
    ax.margins(x=0.01)
    ax.legend(loc="upper left", fontsize=8, frameon=False, ncols=2 + len(columns.bands))
    _headroom(ax)
    _dates(ax, rows[columns.time])
    return _figure(ax)


def _headroom(ax: Axes, share: float = 0.16) -> None:
    """Room above the data for the legend."""
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + share * (high - low))


def plot_backtest(
    frame: Any,
    history: Any = None,
    *,
    series: Any = None,
    target: str | None = None,
    n_history: int | None = None,
    ax: Axes | None = None,
) -> Figure:
    """One series and the forecasts of its windows over it; dotted lines are the cutoffs."""
    table = as_pandas(frame)
    columns = columns_of(table)
    rows, series, name = _select(table, columns, series, target)
    ax = axes(ax, 9.0, 3.4)
    windows = list(rows.groupby("cutoff", sort=True))
    if history is None:
        seen = rows.drop_duplicates(columns.time)
        past = pd.DataFrame({"x": _x(seen[columns.time]).to_numpy(), "y": seen[columns.label].to_numpy(np.float64)})
    else:
        past = _past(history, columns, series, name or columns.label)
        before = int((past["x"] < _x(rows[columns.time]).min()).sum())
        past = past.iloc[max(0, before - (n_history or 2 * len(windows[0][1]))) :]
    ax.plot(past["x"], past["y"], color=PAST, linewidth=1.2, label=columns.label)
    for i, (_, window) in enumerate(windows):
        _draw_forecast(ax, window, columns, name=i == 0)
    for i, cutoff in enumerate(_x(rows["cutoff"]).drop_duplicates()):
        ax.axvline(cutoff, color=CUTOFF, linestyle=":", linewidth=1, label="cutoff" if i == 0 else None)
    ax.set_title(" · ".join(str(part) for part in (series, name) if part is not None), loc="left", fontsize=10)
    ax.margins(x=0.01)
    ax.legend(loc="upper left", fontsize=8, frameon=False, ncols=3 + len(columns.bands))
    _headroom(ax)
    _dates(ax, rows[columns.time])
    return _figure(ax)


def _named(frames: Any) -> dict[str, pd.DataFrame]:
    """Frames by name of model; a single frame stands for the forecast."""
    named = frames if isinstance(frames, Mapping) else {"forecast": frames}
    if not named:
        raise ValueError("frames is empty: pass a backtest, or several as {'name': frame}")
    return {str(name): as_pandas(frame) for name, frame in named.items()}


def plot_error_by_step(
    frames: Any,
    metric: str = "mae",
    *,
    history: Any = None,
    season_length: int = 1,
    ax: Axes | None = None,
) -> Figure:
    """A metric by horizon step, for one backtest or several as {'name': frame}."""
    ax = axes(ax)
    for i, (name, table) in enumerate(_named(frames).items()):
        scores = evaluate(table, [metric], history=history, season_length=season_length, by="step")
        column = next(c for c in scores.columns if str(c).startswith(metric))
        marker = "o" if len(scores) <= 40 else None
        ax.plot(
            scores["step"], scores[column], color=MODELS[i % len(MODELS)], marker=marker, markersize=3.5, label=name
        )
    ax.set(xlabel="steps ahead", ylabel=str(column).upper() if str(column).islower() else str(column))
    ax.set_ylim(bottom=0)
    ax.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]
    ax.legend(fontsize=8, frameon=False, loc="lower right")
    return _figure(ax)


def plot_reliability(frames: Any, *, ax: Axes | None = None) -> Figure:
    """Observed against nominal coverage of every central band, with two standard errors; the diagonal is perfect."""
    ax = axes(ax, 4.6, 4.2)
    ax.plot([0, 1], [0, 1], color=CUTOFF, linestyle="--", linewidth=1, label="perfect")
    for i, (name, table) in enumerate(_named(frames).items()):
        points = reliability(table)
        ax.errorbar(
            points["nominal"],
            points["coverage"],
            yerr=2 * points["standard_error"],
            color=MODELS[i % len(MODELS)],
            marker="o",
            markersize=5,
            capsize=3,
            linewidth=1.4,
            label=name,
        )
    ax.set(xlabel="nominal coverage", ylabel="observed coverage", xlim=(0, 1.02), ylim=(0, 1.02))
    ax.set_aspect("equal")
    ax.legend(fontsize=8, frameon=False, loc="upper left")
    return _figure(ax)


def plot_pit(frame: Any, *, ax: Axes | None = None) -> Figure:
    """How often labels fall between neighbouring levels, relative to how often they should: flat at 1 is calibrated."""
    table = as_pandas(frame)
    columns = columns_of(table)
    values = pit(table)
    values = values[np.isfinite(values)]
    edges = np.array([0.0, *columns.levels, 1.0])
    count, _ = np.histogram(values, edges)
    width = np.diff(edges)
    error = 2 * np.sqrt(width * (1 - width) / max(len(values), 1)) / width
    ax = axes(ax, 5.6, 3.2)
    ax.bar(edges[:-1], count / max(len(values), 1) / width, width, align="edge", color=FORECAST, alpha=0.55, ec="white")
    ax.errorbar(edges[:-1] + width / 2, np.ones(len(width)), yerr=error, fmt="none", color=PAST, capsize=3, linewidth=1)
    ax.axhline(1, color=PAST, linewidth=1, linestyle="--")
    ax.set(xlabel="level at which the label fell (PIT)", ylabel="relative frequency", xlim=(0, 1))
    tight = float(width.min()) < 0.06
    ax.set_xticks(edges, [f"{edge:g}" for edge in edges], fontsize=8, rotation=90 if tight else 0)
    return _figure(ax)


def plot_leaderboard(board: pd.DataFrame, metric: str | None = None, *, ax: Axes | None = None) -> Figure:
    """Models by one metric of a leaderboard (its first by default), best on top."""
    if "model" not in board:
        raise ValueError(f"column 'model' is missing: found {list(board.columns)}; pass what `leaderboard` returned")
    metric = metric or str(board.columns[1])
    if metric not in board:
        raise ValueError(f"column {metric!r} is missing: the leaderboard has {list(board.columns[1:])}")
    if metric == board.columns[1]:  # best first already, also where that is not the least
        board, best = board.iloc[::-1], board[metric].iloc[0]
    else:
        board, best = board.sort_values(metric, ascending=False), board[metric].min()
    ax = axes(ax, 6.4, 0.7 + 0.42 * len(board))
    colours = [FORECAST if value == best else CUTOFF for value in board[metric]]
    bars = ax.barh(board["model"], board[metric], color=colours, height=0.62)
    ax.bar_label(bars, fmt="%.3g", padding=4, fontsize=9)
    ax.set_xlabel(metric.upper() if metric.islower() else metric)
    ax.margins(x=0.12)
    ax.tick_params(axis="y", length=0)
    return _figure(ax)
