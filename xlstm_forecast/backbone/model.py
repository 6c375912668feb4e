"""`Backbone`: fit the closed-form forecaster on flat columns; `FittedBackbone`: forecast any histories."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from xlstm_forecast.backbone.climatology import climatology
from xlstm_forecast.backbone.features import Shape
from xlstm_forecast.backbone.median import Examples, Single, View, _apply, fit_context, fit_structured, look, slices
from xlstm_forecast.backbone.regression import near_best
from xlstm_forecast.backbone.seasons import confirm
from xlstm_forecast.backbone.spread import GRID, Spread, fit_spread, interpolate, volatility
from xlstm_forecast.backbone.windows import (
    Array,
    Index,
    Split,
    clean,
    gather,
    gather_labels,
    origins_between,
    rolling_splits,
    rows_of,
)

BLEND = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Everything that is decided before fitting; `None` is chosen from frequency and size of the data."""

    horizon: int
    freq: str | None = None  # pandas alias; None: integer time
    season: int | None = None  # steps; 1 switches seasons off
    long_season: int | None = None
    context: int | None = None  # L, values that the ridge reads
    max_windows: int = 30_000

    def __post_init__(self) -> None:
        if self.horizon < 1:
            raise ValueError(f"horizon: must be at least 1, found {self.horizon}")
        for name in ("season", "long_season", "context"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: must be at least 1 or None, found {value}")


@dataclass(frozen=True)
class Sizes:
    """What a fit decided about lengths, in steps."""

    horizon: int
    short: int
    long: int
    context: int  # L of the ridge and of the scale
    history: int  # rows before the origin that a forecast reads

    @property
    def shape(self) -> Shape:
        return Shape(self.horizon, self.short, self.long)


@dataclass(frozen=True)
class Paths:
    """The backbone before its quantiles: what a residual network starts from."""

    median: Array  # (n, H) true units
    sigma: Array  # (n, H) true units


def choose_sizes(config: BackboneConfig, rows: list[Array]) -> Sizes:
    """Seasons, context and history from the configuration, the frequency and the lengths of the series."""
    h = config.horizon
    lengths = np.array([len(r) for r in rows])
    typical, longest = int(np.median(lengths)), int(lengths.max())
    short, long = confirm(rows, config.freq)
    short, long = config.season or short, config.long_season or long
    if short + h > longest:
        short = 1
    if long + h > longest or long == short:
        long = 1
    context = config.context or min(max(16 * short, 64), 768, max((typical - 2 * h) // 2, 4))
    history = max(context, 5 * short, min(16 * short, 768), 48)
    if long > 1:
        history = max(history, min(3 * long + max(4, short) + 2, max(1600, long + max(4, short) + 2)))
    return Sizes(h, short, long, context, max(min(history, longest), 2))


class Backbone:
    """A closed-form forecaster on arrays; see the package docstring for the interface."""

    def __init__(self, config: BackboneConfig) -> None:
        self.config = config

    def fit(self, values: Array, offsets: Index) -> FittedBackbone:
        """Fit on flat columns: `values` float64 (N,) with NaN missing, `offsets` (S + 1,) where the series begin.

        Raises ValueError where there is no series or no finite value at all.
        """
        values, offsets = np.asarray(values, dtype=np.float64), np.asarray(offsets, dtype=np.int64)
        if len(offsets) < 2 or not np.isfinite(values).any():
            raise ValueError("values: no observed value to fit on")
        values, bounds = clean(values, offsets)
        rows = rows_of(values, offsets)
        sizes = choose_sizes(self.config, rows)
        return _Fit(self.config, sizes, values, offsets, bounds).run()


class _Fit:
    """The steps of one fit, in order."""

    def __init__(self, config: BackboneConfig, sizes: Sizes, values: Array, offsets: Index, bounds: Array) -> None:
        self.config, self.sizes, self.values, self.offsets, self.bounds = config, sizes, values, offsets, bounds
        self.lengths = np.diff(offsets)
        self.unit = np.array([_seasonal_difference(r, sizes.short) for r in rows_of(values, offsets)])
        self.splits: list[Split] = rolling_splits(self.lengths, sizes.horizon, sizes.short)
        self.report: list[dict[str, Any]] = []

    def run(self) -> FittedBackbone:
        s, fits = self.sizes, len(self.splits) + 1
        train_at = self.training_windows()
        check_at = self.validation_windows()
        fitted = FittedBackbone(self.config, s, self.bounds)
        if len(train_at[0]) < 2:
            return fitted.with_floor(self.values, self.offsets)
        train, names, _ = self.examples(*train_at)
        check, _, check_views = self.examples(*check_at)
        structured = fit_structured(train, check, names, fits)
        self.report += structured.report
        done = np.zeros_like(check.target)
        for j in np.unique(check.member):
            rows = check.member == j
            done[rows] = _apply(check.features[rows], structured.coefficients[j])
        fitted = replace(fitted, structured=structured.coefficients[-1])
        if len(train) > 50 and len(check):
            rest = np.stack([train.target - _apply(train.features, c) for c in structured.coefficients])
            lengths = tuple(sorted({s.context, max(min(2 * s.short, s.context), s.context // 4)}, reverse=True))
            linear = fit_context(train.context, rest, train.weight, train.member, check, done, lengths)
            self.report += linear.report
            for j in np.unique(check.member):
                rows = check.member == j
                done[rows] += check.context[rows] @ linear.coefficients[j].astype(np.float32)
            fitted = replace(fitted, linear=linear.coefficients[-1])
        fitted = self.add_spread(fitted, train, check, done, train_at, check_views)
        fitted = self.add_blend(fitted, check, done, check_views)
        return replace(fitted, report=self.report).with_floor(self.values, self.offsets)

    # ---- windows ---------------------------------------------------------------------------------------------------

    def budget(self, share: float = 1.0) -> int:
        """Windows that fit into memory: about 30 million feature values."""
        return int(max(200, min(self.config.max_windows, 30e6 / (20 * self.sizes.horizon))) * share)

    def training_windows(self) -> tuple[Index, Index, Index]:
        """(series, origin, member): windows with all labels inside the series, by stride within the budget."""
        h = self.sizes.horizon
        least = np.minimum(np.maximum(self.lengths // 4, 2), max(self.sizes.short + 2, 8))
        last = np.where(self.unit > 0, self.lengths - h, -1)
        total = int(np.maximum(last - least + 1, 0).sum())
        series, origin = origins_between(least, last, max(1, -(-total // self.budget())))
        member = np.zeros(len(series), dtype=np.int64)
        for split in self.splits:
            member += origin + h > split.fit_end[series]
        return series, origin, member

    def validation_windows(self) -> tuple[Index, Index, Index]:
        """(series, origin, split): origins half a horizon apart between the end of a fit and the end of its part."""
        h = self.sizes.horizon
        parts = []
        for j, split in enumerate(self.splits):
            last = np.where(self.unit > 0, split.end - h, -1)
            first = np.maximum(split.fit_end, 2)
            stride = max(1, h // 2, int((last - first).max(initial=0)) // 120)
            series, origin = origins_between(first, last, stride)
            limit = self.budget(0.5)
            if len(series) > limit:
                keep = np.random.default_rng(0).permutation(len(series))[:limit]
                series, origin = series[np.sort(keep)], origin[np.sort(keep)]
            parts.append((series, origin, np.full(len(series), j)))
        return tuple(np.concatenate([p[i] for p in parts]) for i in range(3))  # type: ignore[return-value]

    def examples(self, series: Index, origin: Index, member: Index) -> tuple[Examples, tuple[str, ...], list[View]]:
        """Look at windows and their labels."""
        s = self.sizes
        pieces, views = [], []
        names: tuple[str, ...] = ()
        for part in slices(len(series)):
            history = gather(self.values, self.offsets, series[part], origin[part], s.history)
            seen = look(history, s.shape, s.context)
            label = gather_labels(self.values, self.offsets, series[part], origin[part], s.horizon)
            target = (label - seen.simple.last) / seen.scale[:, None]
            present = np.isfinite(target)
            unit = np.clip(seen.scale / self.unit[series[part]], 0.02, 50)[:, None]
            alive = np.isfinite(history).any(1)[:, None]
            weight = np.where(present & alive, unit, 0.0)
            pieces.append(
                (
                    seen.features.astype(np.float32),
                    np.where(present, np.clip(target, -50, 50), 0.0).astype(np.float32),
                    weight.astype(np.float32),
                    seen.context(s.context),
                )
            )
            views.append(seen)
            names = seen.simple.names
        if not pieces:
            h = s.horizon
            empty = [np.zeros(shape, dtype=np.float32) for shape in ((0, h, 1), (0, h), (0, h), (0, s.context))]
            return Examples(*empty, series, member), names, views
        stacked: list[Single] = [np.concatenate([p[i] for p in pieces]) for i in range(4)]
        return Examples(*stacked, series, member), names, views

    # ---- spread and blend ------------------------------------------------------------------------------------------

    def effective(self, check: Examples) -> float:
        """Independent validation windows: horizons validated, series counting as their square root."""
        if not len(check):
            return 0.0
        ends = sum(np.maximum(p.end - np.maximum(p.fit_end, 2), 0) for p in self.splits) / self.sizes.horizon
        series = len(np.unique(check.series))
        return float(ends[np.unique(check.series)].sum() / np.sqrt(series))

    def add_spread(
        self,
        fitted: FittedBackbone,
        train: Examples,
        check: Examples,
        done: Single,
        train_at: tuple[Index, Index, Index],
        views: list[View],
    ) -> FittedBackbone:
        """Scale model and residual quantiles from validation residuals, and training residuals where those are few."""
        s = self.sizes
        effective = self.effective(check)
        drivers = [volatility(v, s.short, s.horizon) for v in views]
        residual = [check.target - done]
        weight = [check.weight]
        series = [check.series]
        weights = [np.ones(len(check))]
        keep = np.random.default_rng(0).permutation(len(train))[: max(200, min(len(train), 4000))]
        if effective < 100 and len(train):
            keep = np.sort(keep)
            path = _apply(train.features[keep], fitted.structured) + train.context[keep] @ fitted.linear.astype(np.float32)
            for part in slices(len(keep)):
                history = gather(
                    self.values, self.offsets, train_at[0][keep[part]], train_at[1][keep[part]], s.history
                )
                drivers.append(volatility(look(history, s.shape, s.context), s.short, s.horizon))
            residual.append(train.target[keep] - path)
            weight.append(train.weight[keep])
            series.append(train.series[keep])
            share = 25 / (25 + effective)
            weights.append(np.full(len(keep), share / max(1 - share, 0.05) * max(len(check), 1) / len(keep)))
        observed = np.concatenate(weight) > 0
        spread = fit_spread(
            np.concatenate(drivers),
            np.concatenate(residual).astype(np.float64),
            observed,
            np.concatenate(weights),
            np.concatenate(series),
            len(self.lengths),
            max(effective, 1.0),
        )
        return replace(fitted, spread=spread)

    def add_blend(self, fitted: FittedBackbone, check: Examples, done: Single, views: list[View]) -> FittedBackbone:
        """Weight of climatology per series and third of the horizon, by validation pinball loss."""
        s = self.sizes
        levels = np.arange(1, 10) / 10
        losses, start = [], 0
        for seen in views:
            rows = slice(start, start + len(seen.rows))
            start += len(seen.rows)
            sigma = fitted.spread.sigma(seen, s.short) / seen.scale[:, None]
            table = fitted.spread.at(check.series[rows], levels)
            model = done[rows][..., None] + sigma[..., None] * table
            climate = climatology(seen.rows, seen.available, s.short, s.horizon, levels)
            climate = (climate - seen.simple.last[..., None]) / seen.scale[:, None, None]
            climate = np.where(np.isfinite(climate), climate, model)
            losses.append(np.stack([self._pinball(check, rows, model + w * (climate - model), levels) for w in BLEND], -1))
        loss = np.concatenate(losses) if losses else np.zeros((0, s.horizon, len(BLEND)))
        share = np.zeros((len(self.lengths) + 1, s.horizon))
        for third in np.array_split(np.arange(s.horizon), 3 if s.horizon >= 12 else 1):
            part = loss[:, third].mean(1)
            pooled = near_best(part, check.series, np.array(BLEND)) @ np.array(BLEND)
            share[:, third] = pooled
            for i in np.unique(check.series) if len(self.lengths) > 1 else ():
                own = part[check.series == i]
                if len(own) >= 4:
                    trust = len(own) / (len(own) + 16)
                    weight = near_best(own, np.zeros(len(own)), np.array(BLEND)) @ np.array(BLEND)
                    share[i, third] = (1 - trust) * pooled + trust * weight
        self.report.append({"stage": "climatology", "weight": round(float(share[-1].mean()), 3)})
        return replace(fitted, blend=share)

    @staticmethod
    def _pinball(check: Examples, rows: slice, quantiles: Array, levels: Array) -> Array:
        difference = check.target[rows][..., None] - quantiles
        rho = np.maximum(levels * difference, (levels - 1) * difference).mean(-1)
        return np.asarray(rho * check.weight[rows])


def _seasonal_difference(row: Array, season: int) -> float:
    """Mean of |y_t - y_{t-m}| of a series; 0 where nothing changes."""
    for m in (season, 1):
        if len(row) > m:
            d = np.abs(row[m:] - row[:-m])
            if np.isfinite(d).any():
                mean = float(np.nanmean(d))
                return mean if mean > 1e-13 * float(np.nanmax(np.abs(row))) else 0.0
    return 0.0


@dataclass(frozen=True)
class FittedBackbone:
    """Forecasts from histories; before anything was learned it is the seasonal naive with a spread of its own."""

    config: BackboneConfig
    sizes: Sizes
    bounds: Array  # (S, 2) outside of which a value counts as missing
    structured: Array = None  # type: ignore[assignment]  # (H, k)
    linear: Array = None  # type: ignore[assignment]  # (L, H)
    spread: Spread = None  # type: ignore[assignment]
    blend: Array = None  # type: ignore[assignment]  # (S + 1, H) weight of climatology
    floor: Array = None  # type: ignore[assignment]  # (S,) -inf where nothing piles up at the minimum
    report: Any = ()

    def __post_init__(self) -> None:
        s, n = self.sizes, len(self.bounds)
        default: dict[str, Any] = {
            "linear": np.zeros((s.context, s.horizon)),
            "blend": np.zeros((n + 1, s.horizon)),
            "floor": np.full(n, -np.inf),
        }
        if self.structured is None:
            names = look(np.zeros((1, s.history)), s.shape, s.context).simple.names
            naive = np.array([float(x == ("naive" if "naive" in names else "")) for x in names])
            default["structured"] = np.tile(naive, (s.horizon, 1))
        if self.spread is None:
            q = volatility(look(np.zeros((1, s.history)), s.shape, s.context), s.short, s.horizon).shape[-1]
            growth = np.log(np.sqrt(np.arange(s.horizon) // s.short + 1.0))
            slope = np.zeros(q)
            slope[2 if q > 3 else 1] = 1.0
            normal = _normal_quantiles(GRID) * 1.25
            default["spread"] = Spread(growth, slope, np.zeros((s.horizon, q)), np.tile(normal, (n + 1, s.horizon, 1)))
        for name, value in default.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    @property
    def horizon(self) -> int:
        return self.sizes.horizon

    @property
    def history(self) -> int:
        """Rows directly before the origin that a forecast reads; shorter histories are allowed."""
        return self.sizes.history

    def with_floor(self, values: Array, offsets: Index) -> FittedBackbone:
        """Remember the minimum of series that sit at it for over one value in fifty, and at least ten times."""
        floor = np.full(len(offsets) - 1, -np.inf)
        for i, row in enumerate(rows_of(values, offsets)):
            seen = row[np.isfinite(row)]
            if len(seen):
                low = seen.min()
                piled = int((seen == low).sum())
                if piled >= 10 and piled > 0.02 * len(seen):
                    floor[i] = low
        return replace(self, floor=floor)

    def _history(self, history: Array, series: Index | None) -> tuple[Array, Index]:
        history = np.asarray(history, dtype=np.float64)
        if history.ndim != 2:
            raise ValueError(f"history: must be (windows, steps), found shape {history.shape}")
        series = np.full(len(history), -1) if series is None else np.asarray(series, dtype=np.int64)
        n = self.sizes.history
        if history.shape[1] < n:
            pad = np.full((len(history), n - history.shape[1]), np.nan)
            history = np.concatenate([pad, history], 1)
        history = history[:, -n:]
        known = series >= 0
        if known.any():
            low, high = self.bounds[np.maximum(series, 0)].T
            outside = known[:, None] & ((history < low[:, None]) | (history > high[:, None]))
            history = np.where(outside, np.nan, history)
        return history, series

    def _see(self, history: Array, series: Index | None) -> tuple[View, Index]:
        history, series = self._history(history, series)
        return look(history, self.sizes.shape, self.sizes.context), series

    def _paths(self, seen: View) -> Paths:
        rest = np.einsum("nhk,hk->nh", seen.simple.features, self.structured)
        context = seen.context(self.sizes.context).astype(np.float64)
        median = seen.simple.last + rest + seen.scale[:, None] * (context @ self.linear)
        return Paths(median, self.spread.sigma(seen, self.sizes.short))

    def paths(self, history: Array, series: Index | None = None) -> Paths:
        """Median and sigma, (n, H) each in true units, from histories (n, L) that end before the origin.

        NaN is missing; `series` (n,) is the index of the series in the fit, -1 (or None) for one that was not in it.
        """
        parts = []
        history = np.asarray(history, dtype=np.float64)
        for part in slices(len(history)):
            seen, _ = self._see(history[part], None if series is None else series[part])
            parts.append(self._paths(seen))
        if not parts:
            return Paths(np.zeros((0, self.horizon)), np.zeros((0, self.horizon)))
        return Paths(np.concatenate([p.median for p in parts]), np.concatenate([p.sigma for p in parts]))

    def offsets(self, series: Index, levels: Array) -> Array:
        """(n, H, Q) quantiles of (y - median) / sigma, increasing in the level."""
        return self.spread.at(np.asarray(series, dtype=np.int64), np.asarray(levels, dtype=np.float64))

    def climate(self, history: Array, levels: Array, series: Index | None = None) -> Array:
        """(n, H, Q) climatological quantiles in true units, NaN where the history holds too few seasons."""
        seen, _ = self._see(history, series)
        return climatology(seen.rows, seen.available, self.sizes.short, self.horizon, np.asarray(levels, float))

    def quantiles(self, history: Array, levels: Array, series: Index | None = None) -> Array:
        """(n, H, Q) forecasts at any levels in (0, 1): model blended with climatology, ordered, above the floor."""
        levels = np.asarray(levels, dtype=np.float64)
        if len(levels) == 0 or levels.min() <= 0 or levels.max() >= 1:
            raise ValueError(f"levels: must lie between 0 and 1, found {levels.tolist()}")
        history = np.asarray(history, dtype=np.float64)
        out = np.empty((len(history), self.horizon, len(levels)))
        for part in slices(len(history)):
            out[part] = self._quantiles(history[part], levels, None if series is None else series[part])
        return out

    def _quantiles(self, history: Array, levels: Array, series: Index | None) -> Array:
        seen, series = self._see(history, series)
        paths = self._paths(seen)
        model = paths.median[..., None] + paths.sigma[..., None] * self.offsets(series, levels)
        share = self.blend[np.where(series >= 0, series, len(self.blend) - 1)][..., None]
        if share.any():
            climate = climatology(seen.rows, seen.available, self.sizes.short, self.horizon, levels)
            model = np.where(np.isfinite(climate), model + share * (climate - model), model)
        floor = np.where(series >= 0, self.floor[np.maximum(series, 0)], -np.inf)[:, None, None]
        order = np.argsort(np.argsort(levels))
        return np.asarray(np.maximum(np.sort(model, axis=-1)[..., order], floor))

    def forecast(self, values: Array, offsets: Index, series: Index, origin: Index, levels: Array) -> Array:
        """(n, H, Q) for windows of flat columns: `series` indexes the columns and the fit alike, rows before `origin`."""
        out = np.empty((len(series), self.horizon, len(levels)))
        for part in slices(len(series)):
            history = gather(values, offsets, series[part], origin[part], self.history)
            out[part] = self.quantiles(history, levels, series[part])
        return out

    # ---- saving ----------------------------------------------------------------------------------------------------

    def to_arrays(self) -> tuple[dict[str, Array], str]:
        """Arrays for safetensors and a JSON text: everything that `from_arrays` needs."""
        arrays = {"bounds": self.bounds, "structured": self.structured, "linear": self.linear, "blend": self.blend}
        arrays |= {"floor": self.floor, **{f"spread.{k}": v for k, v in self.spread.__dict__.items()}}
        text = json.dumps({"config": asdict(self.config), "sizes": asdict(self.sizes), "report": list(self.report)})
        return arrays, text

    @staticmethod
    def from_arrays(arrays: dict[str, Array], text: str) -> FittedBackbone:
        """The inverse of `to_arrays`."""
        meta = json.loads(text)
        spread = Spread(**{k.removeprefix("spread."): v for k, v in arrays.items() if k.startswith("spread.")})
        return FittedBackbone(
            BackboneConfig(**meta["config"]),
            Sizes(**meta["sizes"]),
            arrays["bounds"],
            structured=arrays["structured"],
            linear=arrays["linear"],
            spread=spread,
            blend=arrays["blend"],
            floor=arrays["floor"],
            report=meta["report"],
        )


def _normal_quantiles(levels: Array) -> Array:
    from statistics import NormalDist

    return np.array([NormalDist().inv_cdf(float(p)) for p in levels])
