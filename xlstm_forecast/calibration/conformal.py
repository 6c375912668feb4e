"""Conformal calibration of forecast bands: from backtest residuals, per horizon step, online where wanted.

Split-conformal prediction (Lei et al. 2018) puts bands of the residuals' size around the median; conformalised quantile
regression (Romano, Patterson and Candes 2019) moves the forecaster's own quantiles. Both take the residual of rank
(n + 1) * coverage. Older residuals can weigh less (Barber et al. 2023), and the level itself can follow the misses as
labels arrive (adaptive conformal inference, Gibbs and Candes 2021).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from ..data.roles import plain
from ..metrics import Columns, as_pandas, columns_of, like, quantile_name, steps

METHODS = ("cqr", "conformal")
POOLS = ("all", "series")


@dataclass(frozen=True)
class Side:
    """One band to calibrate: the columns of its ends (None where a level has no partner) and its coverage."""

    lower: int | None
    upper: int | None
    nominal: float


def sides_of(levels: Sequence[float]) -> list[Side]:
    """Central bands and levels without a partner, by coverage; the median stays as it is."""
    at = {round(level, 9): i for i, level in enumerate(levels)}
    sides = []
    for level, i in at.items():
        partner = at.get(round(1 - level, 9))
        if level < 0.5:
            sides.append(Side(i, partner, round(1 - (1 if partner is None else 2) * level, 9)))
        elif level > 0.5 and partner is None:
            sides.append(Side(None, i, level))
    return sorted(sides, key=lambda side: side.nominal)


def scores_needed(nominal: float) -> int:
    """The fewest residuals for a coverage: the first n with (n + 1) * nominal <= n."""
    return math.ceil(round(nominal / (1 - nominal), 6))


def conformal_quantile(scores: np.ndarray, weights: np.ndarray, nominal: np.ndarray, fresh: float = 1.0) -> np.ndarray:
    """The smallest score with at least `nominal` of all weight at or below it; NaN scores do not count.

    scores (..., M), weights (..., M), nominal (...) -> (...). `fresh` is the weight of the forecast to come, which sits
    at infinity: 1 gives split-conformal's rank (n + 1) * nominal, and inf where that exceeds n.
    """
    missing = np.isnan(scores)
    order = np.argsort(np.where(missing, np.inf, scores), axis=-1, kind="stable")
    mass = np.cumsum(np.take_along_axis(np.where(missing, 0.0, weights), order, -1), -1)
    total = mass[..., -1:]
    index = (mass < np.asarray(nominal)[..., None] * (total + fresh) - 1e-9).sum(-1)
    last = scores.shape[-1] - 1
    found = np.take_along_axis(scores, np.take_along_axis(order, np.minimum(index, last)[..., None], -1), -1)[..., 0]
    return np.where((index <= last) & (total[..., 0] > 0), found, np.inf)


def ordered_outwards(quantiles: np.ndarray, middle: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Quantiles (n, Q) with every level above .5 at least the inner one and the median (n,), and mirrored below."""
    out = quantiles.copy()
    upper, lower = np.flatnonzero(levels > 0.5), np.flatnonzero(levels < 0.5)[::-1]
    out[:, upper] = np.maximum.accumulate(np.maximum(out[:, upper], middle[:, None]), axis=1)
    out[:, lower] = np.minimum.accumulate(np.minimum(out[:, lower], middle[:, None]), axis=1)
    return out


def parts_of(table: pd.DataFrame) -> tuple[Columns, np.ndarray]:
    """The columns and horizon steps of a forecast frame, with a cutoff or (from `predict`) without."""
    if "cutoff" in table:
        columns = columns_of(table)
        return columns, steps(table, columns)
    if "forecast" not in table:
        raise ValueError(f"column 'forecast' is missing: found {list(table.columns)}; pass what `predict` returned")
    names = [str(name) for name in table.columns[: list(table.columns).index("forecast")]]
    if len(names) > 1 and names[-1] == "sample":
        raise ValueError(
            "the frame holds sample paths, in column 'sample': pass what predict() without n_samples gives"
        )
    target = "target" if "target" in names[1:] else None
    keys = [name for name in names if name != target]
    rest = [str(name) for name in table.columns[len(names) + 1 :]]
    levels = tuple(float(name[1:]) for name in rest if re.fullmatch(r"q\d*\.?\d+(e-\d+)?", name))
    columns = Columns(keys[0] if len(keys) > 1 else None, keys[-1], target, "", levels)
    order = table.groupby(columns.series, sort=False)[columns.time] if columns.series else table[columns.time]
    return columns, order.rank(method="dense").to_numpy().astype(np.int64)


def unit_keys(table: pd.DataFrame, names: Sequence[str]) -> tuple[np.ndarray, list[tuple[Any, ...]]]:
    """The unit of every row, a number, and what the units are called: tuples of plain values. (n,), list"""
    if not names:
        return np.zeros(len(table), np.int64), [()]
    codes, found = pd.factorize(pd.MultiIndex.from_frame(table[list(names)]))
    return codes, [tuple(plain(value) for value in key) for key in found]


def _with_labels(waiting: pd.DataFrame, table: pd.DataFrame, keys: list[str], label: str) -> pd.DataFrame:
    """Rows that wait for a label, with the label that `table` has for them."""
    found = waiting.drop(columns=label).merge(table[[*keys, label]], on=keys, how="left")
    return found[waiting.columns]


@dataclass(frozen=True)
class _Rows:
    """A forecast frame as arrays, and the cell (unit and step) of every row, -1 where its unit is not known."""

    cell: np.ndarray  # (n,)
    y: np.ndarray  # (n,)
    forecast: np.ndarray  # (n,)
    quantiles: np.ndarray  # (n, Q)


@dataclass
class Calibration:
    """Residuals of past windows and the bands that follow from them; `fit_calibration` makes one.

    A cell is a horizon step of a unit: of each series (pool "series"), or of all together (pool "all"; residuals are
    then counted in widths of the row's widest band, so that series of any scale mix).
    """

    method: str
    pool: str
    levels: tuple[float, ...]
    horizon: int
    gamma: float = 0.0
    memory: int | None = None
    half_life: float | None = None
    seen: dict[Any, Any] = field(default_factory=dict)  # of each series the last cutoff whose forecasts were taken in
    units: dict[Any, int] = field(default_factory=dict)
    rounds: list[Any] = field(default_factory=list)  # first cutoff of every round, in which a series has one window
    windows: int = 0  # how many rounds were taken in: of cutoffs, where all series have the same
    cells: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))  # (n,) of each residual kept
    ages: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))  # (n,) number of its round, from 1
    residuals: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))  # (n, K)
    drift: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))  # (cells, K), adaptive: added to the coverage
    waiting: pd.DataFrame | None = None  # rows taken in whose label is not known yet, with the offsets they were given

    def __post_init__(self) -> None:
        self.sides = sides_of(self.levels)
        self.nominal = np.array([side.nominal for side in self.sides])
        if not len(self.residuals):
            self.residuals = np.empty((0, len(self.sides)))
            self.drift = np.empty((0, len(self.sides)))

    # ---- bands from residuals

    def offsets(self, now: int | None = None) -> np.ndarray:
        """By how many spreads each band's ends move outwards; inf where residuals are too few. (cells, K)

        `now` is the round in which the bands are issued; None: the one after all that were taken in.
        """
        n_cells = len(self.units) * self.horizon
        scores, ages = self._dense(n_cells, self.windows + 1 if now is None else now)  # (cells, K, M), (cells, 1, M)
        weights = np.ones(ages.shape) if self.half_life is None else 0.5 ** (ages / self.half_life)
        weights = np.broadcast_to(weights, scores.shape)
        if self.gamma == 0:
            return conformal_quantile(scores, weights, np.broadcast_to(self.nominal, scores.shape[:-1]))
        level = self.nominal + self.drift
        inner = conformal_quantile(scores, weights, np.clip(level, 0.0, 1.0), fresh=0.0)
        present = ~np.isnan(scores)
        reach = np.where(present, scores, -np.inf).max(-1) - np.where(present, scores, np.inf).min(-1)
        beyond = np.maximum(level - 1, 0) - np.maximum(-level, 0)
        enough = present.sum(-1) >= [scores_needed(nominal) for nominal in self.nominal]
        return np.where(enough, inner + beyond * np.where(np.isfinite(reach), reach, 0.0), np.inf)

    def _dense(self, n_cells: int, now: int) -> tuple[np.ndarray, np.ndarray]:
        """The residuals by cell, NaN where a cell has fewer than others, and their ages in windows, 0 for the last."""
        order, cell, count, position = self._by_cell(n_cells)
        width = max(1, int(count.max(initial=0)))
        scores = np.full((n_cells, width, len(self.sides)), np.nan)
        scores[cell, position] = self.residuals[order]
        ages = np.zeros((n_cells, width))
        ages[cell, position] = now - self.ages[order] if self.pool == "all" else (count[cell] - position)
        return np.moveaxis(scores, -1, -2), ages[:, None] - 1

    def _by_cell(self, n_cells: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Residuals by cell, oldest round first: their order, cell, the number in each cell, and the place therein."""
        order = np.lexsort((self.ages, self.cells))
        cell = self.cells[order]
        count = np.bincount(cell, minlength=n_cells)
        return order, cell, count, np.arange(len(cell)) - (np.cumsum(count) - count)[cell]

    def _ends(self, rows: _Rows, side: Side) -> tuple[np.ndarray | None, np.ndarray | None]:
        around = self.method == "conformal"
        low = None if side.lower is None else rows.forecast if around else rows.quantiles[:, side.lower]
        high = None if side.upper is None else rows.forecast if around else rows.quantiles[:, side.upper]
        return low, high

    def _spread(self, rows: _Rows) -> np.ndarray:
        """The unit in which a row's residuals count. (n,)"""
        widest = next((s for s in reversed(self.sides) if s.lower is not None and s.upper is not None), None)
        if self.pool == "series" or widest is None:
            return np.ones(len(rows.y))
        return np.maximum(rows.quantiles[:, widest.upper] - rows.quantiles[:, widest.lower], 0.0)

    def _scores(self, rows: _Rows) -> np.ndarray:
        """By how many spreads each band must grow to just reach the label, negative where it could shrink. (n, K)"""
        spread = self._spread(rows)
        scores = np.empty((len(rows.y), len(self.sides)))
        for k, side in enumerate(self.sides):
            low, high = self._ends(rows, side)
            gap = np.full(len(rows.y), -np.inf)
            if low is not None:
                gap = np.maximum(gap, low - rows.y)
            if high is not None:
                gap = np.maximum(gap, rows.y - high)
            no_width = np.where(gap > 0, np.inf, np.where(np.isnan(gap), np.nan, 0.0))
            scores[:, k] = np.divide(gap, spread, out=no_width, where=spread > 0)
        return scores

    def _shifted(self, rows: _Rows, offsets: np.ndarray) -> np.ndarray:
        """The rows' quantiles, their bands moved by offsets (n, K), ordered outwards from the median. (n, Q)"""
        out = rows.quantiles.copy()
        reach = offsets * self._spread(rows)[:, None]
        for k, side in enumerate(self.sides):
            low, high = self._ends(rows, side)
            if low is not None:
                out[:, side.lower] = low - reach[:, k]
            if high is not None:
                out[:, side.upper] = high + reach[:, k]
        return ordered_outwards(out, rows.forecast, np.asarray(self.levels))

    def apply(self, frame: Any) -> Any:
        """A forecast frame, of a backtest or of `predict`, with its quantile columns calibrated.

        Raises:
            ValueError: a level, a step or (pool "series") a series that was not calibrated.
        """
        table = as_pandas(frame)
        columns, step = parts_of(table)
        rows = self._read(table, columns, step)
        if (rows.cell < 0).any():
            first = table.iloc[int(np.argmax(rows.cell < 0))]
            raise ValueError(
                f"series {tuple(first[columns.series])} was not calibrated: use pool='all', or data that has it"
            )
        out = self._shifted(rows, self.offsets()[rows.cell])
        return like(table.assign(**{quantile_name(level): out[:, i] for i, level in enumerate(self.levels)}), frame)

    def _read(self, table: pd.DataFrame, columns: Columns, step: np.ndarray, learn: bool = False) -> _Rows:
        for level in self.levels:
            if quantile_name(level) not in table:
                raise ValueError(f"level {level:g} was calibrated, but the frame holds only {columns.quantiles}")
        if len(step) and step.max() > self.horizon:
            raise ValueError(f"step {step.max()} lies beyond the {self.horizon} steps that were calibrated")
        names = columns.series if self.pool == "series" else [columns.target] if columns.target else []
        codes, found = unit_keys(table, names)
        if learn:
            for key in found:
                self.units.setdefault(key, len(self.units))
            extra = len(self.units) * self.horizon - len(self.drift)
            self.drift = np.concatenate([self.drift, np.zeros((extra, len(self.sides)))])
        unit = np.array([self.units.get(key, -1) for key in found], np.int64)[codes]
        cell = np.where(unit < 0, -1, unit * self.horizon + step - 1)
        label = table[columns.label].to_numpy(np.float64, na_value=np.nan) if columns.label in table else cell * np.nan
        quantiles = table[[quantile_name(level) for level in self.levels]].to_numpy(np.float64)
        return _Rows(cell, label, table["forecast"].to_numpy(np.float64), quantiles)

    # ---- residuals from labels, in the order in which they became known

    def update(self, frame: Any) -> Calibration:
        """Take in windows of the raw forecaster and the labels known of them; returns itself.

        Windows taken in before, those up to a series' last cutoff, are left alone, but their missing labels are filled
        in from `frame`. Series may have cutoffs of their own, and come late.
        """
        self.replay(as_pandas(frame), issue=self.gamma > 0)
        return self

    def replay(self, table: pd.DataFrame, issue: bool = True) -> pd.DataFrame:
        """`update`, which returns the new rows by cutoff, calibrated by what was known at theirs: no later label.

        Rows for which too few residuals were known get NaN bands; without `issue` all do.
        """
        columns = columns_of(table)
        keys = [*columns.series, columns.time, "cutoff"]
        table = table.assign(_step=steps(table, columns))
        fresh = table[self._is_new(table, columns)].sort_values("cutoff", kind="stable")
        late = None if self.waiting is None else _with_labels(self.waiting, table, keys, columns.label)
        joined = fresh if late is None else pd.concat([late, fresh], ignore_index=True)
        n_late = 0 if late is None else len(late)
        rows = self._read(joined, columns, joined["_step"].to_numpy(), learn=True)
        given = np.full((len(joined), len(self.sides)), np.nan)
        if late is not None:
            given[:n_late] = np.stack(late["_offsets"].to_list()) if n_late else given[:0]
        known = np.isfinite(rows.y) & np.isfinite(rows.forecast)
        moments = self._moments(fresh, columns)
        self._run(rows, moments, joined["cutoff"], joined[columns.time], known, given, n_late, issue)
        left = joined[~known].assign(_offsets=list(given[~known]))
        self.waiting = left if len(left) else None
        out = self._shifted(rows, np.where(np.isfinite(given), given, np.nan))
        done = joined.assign(**{quantile_name(level): out[:, i] for i, level in enumerate(self.levels)})
        return done.iloc[n_late:].drop(columns=["_step", "_offsets"], errors="ignore")

    def _is_new(self, table: pd.DataFrame, columns: Columns) -> np.ndarray:
        """Which rows have a cutoff after the last one taken in of their series. (n,)"""
        codes, found = unit_keys(table, [columns.id] if columns.id else [])
        known = np.array([key in self.seen for key in found], bool)
        if not known.any():
            return np.ones(len(table), bool)
        some = next(iter(self.seen.values()))
        last = pd.Series([self.seen.get(key, some) for key in found]).take(codes).reset_index(drop=True)
        return (table["cutoff"].reset_index(drop=True) > last).to_numpy() | ~known[codes]

    def _moments(self, fresh: pd.DataFrame, columns: Columns) -> pd.Index:
        """The new cutoffs in order; notes each series' last one, and where a new round starts.

        A round ends where one of its series comes again. A window that comes late belongs to the round of its cutoff.
        """
        codes, found = unit_keys(fresh, [columns.id] if columns.id else [])
        pairs = fresh[["cutoff"]].assign(_series=codes).drop_duplicates()
        moments = pd.Index(pairs["cutoff"].unique())
        place = moments.searchsorted(pd.Index(pairs["cutoff"]))
        groups = np.split(pairs["_series"].to_numpy(), np.searchsorted(place, np.arange(1, len(moments))))
        last = [self.seen.get(key) for key in found]
        for cutoff, series in zip(moments, groups, strict=False):
            start = self.rounds[-1] if self.rounds else None
            if start is None or any(last[i] is not None and last[i] >= start for i in series):
                self.rounds.append(cutoff)
            for i in series:
                last[i] = cutoff
        self.seen |= {key: last[i] for i, key in enumerate(found)}
        return moments

    def _run(
        self,
        rows: _Rows,
        moments: pd.Index,
        cutoffs: pd.Series,
        times: pd.Series,
        known: np.ndarray,
        given: np.ndarray,
        n_late: int,
        issue: bool,
    ) -> None:
        """Go through the new cutoffs: first the labels known by then, then the offsets of that cutoff's rows."""
        scores = self._scores(rows)
        arrival = moments.searchsorted(pd.Index(times), side="left")  # the first new cutoff that sees the label
        window = np.concatenate([np.full(n_late, -1), moments.searchsorted(pd.Index(cutoffs.iloc[n_late:]))])
        clock = pd.factorize(times, sort=True)[0]
        order = np.lexsort((clock, arrival))
        order = order[known[order]]
        starts = np.searchsorted(arrival[order], np.arange(len(moments) + 2))
        rounds = pd.Index(self.rounds)
        number = np.maximum(rounds.searchsorted(pd.Index(cutoffs), side="right"), 1)
        reached = rounds.searchsorted(moments, side="right")
        for moment in range(len(moments) + 1):
            self._absorb(order[starts[moment] : starts[moment + 1]], rows, scores, given, clock, number)
            if moment < len(moments):
                self.windows = max(self.windows, int(reached[moment]))
                now = window == moment
                given[now] = self.offsets(self.windows)[rows.cell[now]] if issue else np.nan

    def _absorb(
        self,
        which: np.ndarray,
        rows: _Rows,
        scores: np.ndarray,
        given: np.ndarray,
        clock: np.ndarray,
        number: np.ndarray,
    ) -> None:
        """Learn from rows whose label is known: move the levels by the misses, then keep the residuals."""
        if self.gamma:
            for part in np.split(which, np.flatnonzero(np.diff(clock[which])) + 1):
                told = part[np.isfinite(given[part]).all(1)]
                count = np.bincount(rows.cell[told], minlength=len(self.drift))[:, None]
                misses = np.zeros_like(self.drift)
                np.add.at(misses, rows.cell[told], scores[told] > given[told])
                share = np.divide(misses, count, out=np.tile(1 - self.nominal, (len(misses), 1)), where=count > 0)
                self.drift += self.gamma * (share - (1 - self.nominal))
        self.cells = np.concatenate([self.cells, rows.cell[which]])
        self.ages = np.concatenate([self.ages, number[which]])
        self.residuals = np.concatenate([self.residuals, scores[which]])
        if self.memory is not None:
            keep = self.ages > self.windows - self.memory
            if self.pool == "series":  # each has windows of its own, which may come late
                order, cell, count, position = self._by_cell(len(self.drift))
                keep[order] = count[cell] - position <= self.memory
            self.cells, self.ages, self.residuals = self.cells[keep], self.ages[keep], self.residuals[keep]
