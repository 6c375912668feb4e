"""`Backbone`: fit the closed-form forecaster on flat columns; `FittedBackbone`: forecast any histories."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from xlstm_forecast.backbone.calendar import Calendar, Dates, divided, fit_calendar, stamps
from xlstm_forecast.backbone.climatology import climatology
from xlstm_forecast.backbone.features import Shape
from xlstm_forecast.backbone.median import (
    Examples,
    Single,
    View,
    _apply,
    fit_context,
    fit_own,
    fit_structured,
    look,
    screen_known,
    slices,
)
from xlstm_forecast.backbone.regression import near_best
from xlstm_forecast.backbone.seasons import confirm, table
from xlstm_forecast.backbone.spread import GRID, Residuals, Spread, fit_spread, normal_quantiles, volatility
from xlstm_forecast.backbone.windows import (
    Array,
    Index,
    Split,
    clean,
    gather,
    gather_known,
    gather_labels,
    origins_between,
    rolling_splits,
    rows_of,
)

BLEND = (0.0, 0.25, 0.5, 0.75, 1.0)
BLEND_COST = 4.0
OWN_CONTEXT = 384  # values that a series' own correction reads


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Everything that is decided before fitting; `None` is chosen from frequency and size of the data."""

    horizon: int
    freq: str | None = None  # pandas alias; None: integer time
    season: int | None = None  # steps; 1 switches seasons off
    long_season: int | None = None
    context: int | None = None  # L, values that the ridge reads
    stride: int = 1  # forecasts are only made every so many steps, counted back from the end of the data
    max_windows: int = 30_000

    def __post_init__(self) -> None:
        if self.horizon < 1:
            raise ValueError(f"horizon: must be at least 1, found {self.horizon}")
        for name in ("season", "long_season", "context", "stride"):
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
    def behind(self) -> int:
        """Rows before the origin for which known-future inputs are read."""
        return min(self.history, max(self.short, self.long if self.long <= 400 else 1, 8))

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
    needed = (
        long + h if table(config.freq)[0] == 1 else 1.35 * long + 2 * h
    )  # beside a short season it must have been seen to hold
    if needed > typical or long == short:
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

    def fit(
        self, values: Array, offsets: Index, starts: Dates | None = None, known: Array | None = None
    ) -> FittedBackbone:
        """Fit on flat columns: `values` float64 (N,) with NaN missing, `offsets` (S + 1,) where the series begin.

        `starts` (S,) is the datetime64 stamp of each series' first row; without it no calendar profile is tried.
        `known` (N, K) are inputs that will be known over the horizon when a forecast is made, NaN where missing.
        Raises ValueError where there is no series or no finite value at all.
        """
        values, offsets = np.asarray(values, dtype=np.float64), np.asarray(offsets, dtype=np.int64)
        if len(offsets) < 2 or not np.isfinite(values).any():
            raise ValueError("values: no observed value to fit on")
        values, bounds = clean(values, offsets)
        sizes = choose_sizes(self.config, rows_of(values, offsets))
        fit = _Fit(self.config, sizes, values, offsets, bounds, known)
        fitted = fit.run()
        calendar = fit_calendar(values, offsets, starts, self.config.freq)
        if calendar is None or starts is None or not self.calendar_pays(fit, starts):
            return fitted
        adjusted = divided(values, offsets, starts, calendar)
        fitted = _Fit(self.config, sizes, adjusted, offsets, bounds, known).run()
        return replace(fitted, calendar=calendar, report=[*fitted.report, {"stage": "calendar", "accepted": True}])

    def calendar_pays(self, plain: _Fit, starts: Dates) -> bool:
        """Whether a profile fitted before the validation part lowers its error, in original units, by over 2 %."""
        ends = plain.splits[0].fit_end
        rows = rows_of(plain.values, plain.offsets)
        early = np.concatenate([r[:e] for r, e in zip(rows, ends, strict=True)])
        calendar = fit_calendar(early, np.r_[0, np.cumsum(ends)], starts, self.config.freq)
        if calendar is None or plain.validated is None:
            return False
        adjusted = divided(plain.values, plain.offsets, starts, calendar)
        other = _Fit(self.config, plain.sizes, adjusted, plain.offsets, plain.bounds, plain.known)
        other.run()
        if other.validated is None:
            return False
        series, origin, path = other.validated
        when = stamps(starts[series], np.zeros(1, dtype=np.int64), calendar.step)[:, 0]
        ahead = stamps(when, np.arange(path.shape[1]), calendar.step)
        ahead = ahead + (origin * (7 if calendar.step == "W" else 1))[:, None]
        path = path * calendar.at(ahead)
        return plain.error(series, origin, path) < 0.98 * plain.error(*plain.validated)


class _Fit:
    """The steps of one fit, in order."""

    def __init__(
        self,
        config: BackboneConfig,
        sizes: Sizes,
        values: Array,
        offsets: Index,
        bounds: Array,
        known: Array | None,
    ) -> None:
        self.config, self.sizes, self.values, self.offsets, self.bounds = config, sizes, values, offsets, bounds
        self.known = known if known is not None and known.shape[1] else None
        self.known_unit = _known_unit(self.known)
        self.lengths = np.diff(offsets)
        self.unit = np.array([_seasonal_difference(r, sizes.short) for r in rows_of(values, offsets)])
        self.naive: int | None = None  # which feature is the seasonal naive; None: the last value
        self.apart = 1.0  # series that move on their own
        self.splits: list[Split] = rolling_splits(self.lengths, sizes.horizon, sizes.short)
        self.unit[self.lengths < 2] = 0.0
        self.report: list[dict[str, Any]] = []
        self.validated: tuple[Index, Index, Array] | None = None  # series, origin, median paths in true units

    def run(self) -> FittedBackbone:
        s = self.sizes
        train_at = self.training_windows()
        check_at = self.validation_windows()
        fitted = FittedBackbone(self.config, s, self.bounds, known_unit=self.known_unit)
        if len(train_at[0]) < 2:
            return fitted.with_floor(self.values, self.offsets)
        train, names, _ = self.examples(*train_at)
        check, _, check_views = self.examples(*check_at)
        if self.known is not None:
            self.drop_known(train, check, names)
        unseen = 0.0
        if s.short == 1 and s.long > 1 and len(check):
            unseen = 1.0 - float(np.mean(check_at[1] >= s.long + 4))
        self.apart = self.series_apart(check, check_at)
        self.naive = names.index("naive") if "naive" in names else None
        structured = fit_structured(train, check, names, self.independent(), self.share(check), unseen)
        self.report += structured.report
        done = np.zeros_like(check.target)
        for j in np.unique(check.member):
            rows = check.member == j
            done[rows] = _apply(check.features[rows], structured.coefficients[j])
        fitted = replace(fitted, structured=structured.coefficients[-1])
        if len(train) > 50 and len(check):
            rest = np.stack([train.target - _apply(train.features, c) for c in structured.coefficients])
            own = {s.context, max(min(2 * s.short, s.context), s.context // 4)}
            lengths = tuple(sorted(own | {train.context.shape[1]}, reverse=True))
            linear = fit_context(
                train.context,
                rest,
                train.weight,
                train.member,
                check,
                done,
                lengths,
                self.independent(),
                self.share(check),
            )
            self.report += linear.report
            for j in np.unique(check.member):
                rows = check.member == j
                done[rows] += check.context[rows] @ linear.coefficients[j].astype(np.float32)
            fitted = replace(fitted, linear=linear.coefficients[-1])
            count, length = len(self.lengths), min(s.context, OWN_CONTEXT)
            if 1 < count and count * length * s.horizon <= 20e6:
                rest -= np.stack([train.context @ c.astype(np.float32) for c in linear.coefficients])
                own, done, report = fit_own(train, rest, check, done, length, self.independent(), self.apart, count)
                self.report += report
                fitted = replace(fitted, own=own)
        self.validated = check_at[0], check_at[1], _true_units(done, check_views)
        fitted = self.add_spread(fitted, train, check, done, train_at, check_views)
        fitted = self.add_blend(fitted, check, done, check_views)
        return replace(fitted, report=self.report).with_floor(self.values, self.offsets)

    def drop_known(self, train: Examples, check: Examples, names: tuple[str, ...]) -> None:
        """Set known-future inputs that do not help to zero wherever coefficients are learned."""
        dropped = screen_known(train, check, names, self.share(check))
        assert self.known is not None
        kept = [k for k in range(self.known.shape[1]) if k not in dropped]
        self.report.append({"stage": "known inputs", "kept": kept, "dropped": dropped})
        columns = [i for i, n in enumerate(names) if n.startswith("known") and int(n.split()[1]) in dropped]
        paths = [n for n in names if n.startswith("known") and not n.endswith("level")]
        for examples in (train, check):
            examples.features[..., columns] = 0.0
            extra = examples.context.shape[1] - self.sizes.context
            for i, name in enumerate(paths if extra else ()):
                if int(name.split()[1]) in dropped:
                    examples.context[:, i * self.sizes.horizon : (i + 1) * self.sizes.horizon] = 0.0

    def error(self, series: Index, origin: Index, path: Array) -> float:
        """Mean absolute error of paths in units of the series' seasonal difference."""
        label = gather_labels(self.values, self.offsets, series, origin, self.sizes.horizon)
        return float(np.nanmean(np.abs(label - path) / self.unit[series][:, None]))

    # ---- windows ---------------------------------------------------------------------------------------------------

    def budget(self, share: float = 1.0) -> int:
        """Windows that fit into memory: about 30 million feature values."""
        return int(max(200, min(self.config.max_windows, 30e6 / (20 * self.sizes.horizon))) * share)

    def look(self, series: Index, origin: Index) -> View:
        """What the histories before `origin` and the known inputs say."""
        s = self.sizes
        history = gather(self.values, self.offsets, series, origin, s.history)
        known = None
        if self.known is not None:
            known = gather_known(self.known, self.offsets, series, origin, s.behind, s.horizon)
        return look(history, s.shape, s.context, known, self.known_unit)

    def training_windows(self) -> tuple[Index, Index, Index]:
        """(series, origin, member): windows with all labels inside the series, by stride within the budget."""
        h = self.sizes.horizon
        least = np.minimum(np.maximum(self.lengths // 4, 2), max(self.sizes.short + 2, 8))
        step = self.config.stride
        last = np.where(self.unit > 0, self.lengths - -(-h // step) * step, -1)
        total = int(np.maximum((last - least) // step + 1, 0).sum())
        series, origin = origins_between(least, last, step * max(1, -(-total // self.budget())))
        member = np.zeros(len(series), dtype=np.int64)
        for split in self.splits:
            member += origin + h > split.fit_end[series]
        return series, origin, member

    def validation_windows(self) -> tuple[Index, Index, Index]:
        """(series, origin, split): origins half a horizon apart between the end of a fit and the end of its part."""
        h = self.sizes.horizon
        parts = []
        for j, split in enumerate(self.splits):
            step = self.config.stride
            late = self.lengths - -(-(self.lengths - split.end + h) // step) * step
            last = np.where(self.unit > 0, late, -1)
            first = np.maximum(split.fit_end, 2)
            stride = max(1, h // 2, int((last - first).max(initial=0)) // 120)
            stride = -(-stride // step) * step
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
            seen = self.look(series[part], origin[part])
            label = gather_labels(self.values, self.offsets, series[part], origin[part], s.horizon)
            target = (label - seen.simple.last) / seen.scale[:, None]
            present = np.isfinite(target)
            unit = np.clip(seen.scale / self.unit[series[part]], 0.02, 50)[:, None]
            weight = np.where(present & (seen.available > 0)[:, None], unit, 0.0)
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

    def independent(self) -> Array:
        """(fits,) windows that do not overlap behind each fit, of series that move on their own."""
        ends = [p.fit_end for p in self.splits] + [self.lengths]
        alive = self.unit > 0
        h = self.sizes.horizon
        return np.array([np.maximum(e - h, 0)[alive].mean() / h * self.apart for e in ends])

    def share(self, check: Examples) -> float:
        """Independent windows per validation window, as far as series move together."""
        return self.apart / max(len(np.unique(check.series)), 1)

    def effective(self, check: Examples) -> float:
        """Independent validation windows: horizons validated times the series that move on their own."""
        if not len(check):
            return 0.0
        ends = sum(np.maximum(p.end - np.maximum(p.fit_end, 2), 0) for p in self.splits) / self.sizes.horizon
        return float(ends[np.unique(check.series)].mean() * self.apart)

    def series_apart(self, check: Examples, check_at: tuple[Index, Index, Index]) -> float:
        """How many series move on their own: the share of the naive error that averaging over series removes."""
        alive = max(int((self.unit > 0).sum()), 1)
        if alive == 1 or not len(check):
            return 1.0
        error = check.target * check.weight
        error = np.clip(error, *np.quantile(error, [0.02, 0.98]))
        late = self.lengths[check_at[0]] - check_at[1]  # windows at the same distance from the end stand side by side
        _, group = np.unique(late, return_inverse=True)
        count = np.bincount(group)
        mean = np.stack([np.bincount(group, error[:, h]) for h in range(error.shape[1])], 1) / count[:, None]
        full = count >= 0.5 * count.max()
        together = float((mean[full] ** 2).mean())
        alone = float((error[full[group]] ** 2).mean())
        return float(np.clip(alone / max(together, 1e-30), 1.0, alive))

    def add_spread(
        self,
        fitted: FittedBackbone,
        train: Examples,
        check: Examples,
        done: Single,
        train_at: tuple[Index, Index, Index],
        views: list[View],
    ) -> FittedBackbone:
        """Scale model and residual quantiles; of several validation parts the last counts most."""
        s = self.sizes
        age = len(self.splits) - 1 - check.member
        checked = Residuals(
            np.concatenate([volatility(v, s.short, s.horizon) for v in views]) if views else self.no_drivers(),
            (check.target - done).astype(np.float64),
            check.weight > 0,
            0.6**age,
            check.series,
        )
        naive = check.features[..., self.naive] if self.naive is not None else np.zeros_like(done)
        gain = (
            float(np.clip(check.error(done).sum() / max(check.error(naive).sum(), 1e-30), 0.3, 1.0))
            if len(check)
            else 1.0
        )
        keep = np.random.default_rng(0).permutation(len(train))[: max(200, min(8000, 400_000 // s.horizon))]
        keep = np.sort(keep)
        path = _apply(train.features[keep], fitted.structured) + train.context[keep] @ fitted.linear.astype(np.float32)
        for i in np.unique(train.series[keep]) if len(fitted.own) else ():
            rows = train.series[keep] == i
            path[rows] += train.context[keep][rows, -fitted.own.shape[1] :] @ fitted.own[i].astype(np.float32)
        drivers = [
            volatility(self.look(train_at[0][keep[part]], train_at[1][keep[part]]), s.short, s.horizon)
            for part in slices(len(keep))
        ]
        trained = Residuals(
            np.concatenate(drivers),
            (train.target[keep] - path).astype(np.float64),
            train.weight[keep] > 0,
            np.ones(len(keep)),
            train.series[keep],
        )
        spread = fit_spread(checked, trained, self.lengths / s.horizon, max(self.effective(check), 1.0), s.short, gain)
        return replace(fitted, spread=spread)

    def no_drivers(self) -> Array:
        """(0, H, q)"""
        return volatility(
            self.look(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)), self.sizes.short, self.sizes.horizon
        )

    def add_blend(self, fitted: FittedBackbone, check: Examples, done: Single, views: list[View]) -> FittedBackbone:
        """Weight of climatology per series and third of the horizon, by validation pinball loss."""
        s = self.sizes
        levels = np.arange(1, 10) / 10
        losses, start = [], 0
        for seen in views:
            rows = slice(start, start + len(seen.rows))
            start += len(seen.rows)
            sigma = fitted.spread.sigma(seen, s.short, check.series[rows]) / seen.scale[:, None]
            table = fitted.spread.at(check.series[rows], levels)
            model = done[rows][..., None] + sigma[..., None] * table
            climate = climatology(seen.rows, seen.available, s.short, s.horizon, levels)
            climate = (climate - seen.simple.last[..., None]) / seen.scale[:, None, None]
            climate = np.where(np.isfinite(climate), climate, model)
            losses.append(
                np.stack([self._pinball(check, rows, model + w * (climate - model), levels) for w in BLEND], -1)
            )
        loss = np.concatenate(losses) if losses else np.zeros((0, s.horizon, len(BLEND)))
        share = np.zeros((len(self.lengths) + 1, s.horizon))
        for third in np.array_split(np.arange(s.horizon), 3 if s.horizon >= 12 else 1):
            part = loss[:, third].mean(1)
            pooled = near_best(part, self.share(check), BLEND_COST * np.array(BLEND)) @ np.array(BLEND)
            share[:, third] = pooled
            for i in np.unique(check.series) if len(self.lengths) > 1 else ():
                own = part[check.series == i]
                if len(own) >= 4:
                    trust = len(own) / (len(own) + 16)
                    weight = near_best(own, 1.0, BLEND_COST * np.array(BLEND)) @ np.array(BLEND)
                    share[i, third] = (1 - trust) * pooled + trust * weight
        self.report.append({"stage": "climatology", "weight": round(float(share[-1].mean()), 3)})
        return replace(fitted, blend=share)

    @staticmethod
    def _pinball(check: Examples, rows: slice, quantiles: Array, levels: Array) -> Array:
        difference = check.target[rows][..., None] - quantiles
        rho = np.maximum(levels * difference, (levels - 1) * difference).mean(-1)
        return np.asarray(rho * check.weight[rows])


def _part(values: Any, part: slice) -> Any:
    return None if values is None else values[part]


def _known_unit(known: Array | None) -> Array | None:
    """(K,) mean absolute deviation of each known input, 1 for constants."""
    if known is None:
        return None
    with np.errstate(invalid="ignore"):
        centre = np.nan_to_num(np.nanmean(known, 0))
        size = np.nan_to_num(np.nanmean(np.abs(known - centre), 0))
    return np.where(size > 1e-12 * np.abs(centre), size, 1.0)


def _true_units(path: Single, views: list[View]) -> Array:
    """(n, H) paths from units of each window's scale."""
    last = np.concatenate([v.simple.last for v in views]) if views else np.zeros((0, 1))
    scale = np.concatenate([v.scale for v in views]) if views else np.zeros(0)
    return np.asarray(last + path * scale[:, None])


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
    own: Array = None  # type: ignore[assignment]  # (S or 0, L', H)
    spread: Spread = None  # type: ignore[assignment]
    blend: Array = None  # type: ignore[assignment]  # (S + 1, H) weight of climatology
    floor: Array = None  # type: ignore[assignment]  # (S,) -inf where nothing piles up at the minimum
    calendar: Calendar | None = None
    known_unit: Array | None = None  # (K,) where the fit had known-future inputs
    report: Any = ()

    def __post_init__(self) -> None:
        s, n = self.sizes, len(self.bounds)
        blank = self._blank()
        default: dict[str, Any] = {
            "linear": np.zeros((blank.context(s.context).shape[1], s.horizon)),
            "own": np.zeros((0, s.context, s.horizon)),
            "blend": np.zeros((n + 1, s.horizon)),
            "floor": np.full(n, -np.inf),
        }
        if self.structured is None:
            names = blank.simple.names
            naive = np.array([float(x == ("naive" if "naive" in names else "")) for x in names])
            default["structured"] = np.tile(naive, (s.horizon, 1))
        if self.spread is None:
            q = volatility(blank, s.short, s.horizon).shape[-1]
            growth = np.log(np.sqrt(np.arange(s.horizon) // s.short + 1.0))
            slope = np.zeros(q)
            slope[2 if q > 3 else 1] = 1.0
            normal = normal_quantiles(GRID) * 1.25
            default["spread"] = Spread(
                growth, slope, np.zeros((s.horizon, q)), np.zeros(n + 1), np.tile(normal, (n + 1, s.horizon, 1))
            )
        for name, value in default.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    def _blank(self) -> View:
        s = self.sizes
        known = None if self.known_unit is None else np.zeros((1, s.behind + s.horizon, len(self.known_unit)))
        return look(np.zeros((1, s.history)), s.shape, s.context, known, self.known_unit)

    @property
    def horizon(self) -> int:
        return self.sizes.horizon

    @property
    def known_behind(self) -> int:
        """Rows before the origin for which known-future inputs are read; with the horizon, their window."""
        return self.sizes.behind

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

    @property
    def needs_stamps(self) -> bool:
        """Whether a calendar profile was accepted, so that forecasts need the stamp of their first step."""
        return self.calendar is not None

    def _factors(self, when: Dates | None, n: int) -> tuple[Array, Array]:
        """(n, L) and (n, H) factors of the profile for history and horizon; ones without a profile."""
        length, h = self.sizes.history, self.horizon
        if self.calendar is None:
            return np.ones((1, 1)), np.ones((1, 1))
        if when is None:
            raise ValueError("stamps: the fit accepted a calendar profile; pass the stamp of each first forecast step")
        dates = stamps(np.asarray(when), np.arange(-length, h), self.calendar.step)
        factors = self.calendar.at(dates)
        return factors[:, :length], factors[:, length:]

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

    def _see(
        self, history: Array, series: Index | None, when: Dates | None, known: Array | None
    ) -> tuple[View, Index, Array]:
        history, series = self._history(history, series)
        behind, ahead = self._factors(when, len(history))
        s = self.sizes
        if self.known_unit is not None:
            shape = (len(history), s.behind + s.horizon, len(self.known_unit))
            if known is None or known.shape != shape:
                found = "nothing" if known is None else f"shape {known.shape}"
                raise ValueError(f"known: the fit had {shape[2]} known-future inputs; needs {shape}, found {found}")
        else:
            known = None
        return look(history / behind, s.shape, s.context, known, self.known_unit), series, ahead

    def _paths(self, seen: View, series: Index) -> Paths:
        rest = np.einsum("nhk,hk->nh", seen.simple.features, self.structured)
        context = seen.context(self.sizes.context).astype(np.float64)
        correction = context @ self.linear
        for s in np.unique(series[series >= 0]) if len(self.own) else ():
            rows = series == s
            correction[rows] += context[rows, -self.own.shape[1] :] @ self.own[s]
        median = seen.simple.last + rest + seen.scale[:, None] * correction
        return Paths(median, self.spread.sigma(seen, self.sizes.short, series))

    def paths(
        self,
        history: Array,
        series: Index | None = None,
        when: Dates | None = None,
        known: Array | None = None,
    ) -> Paths:
        """Median and sigma, (n, H) each in true units, from histories (n, L) that end before the origin.

        NaN is missing; `series` (n,) is the index of the series in the fit, -1 (or None) for one that was not in it;
        `when` (n,) is the stamp of the first forecast step, needed only where a calendar profile was accepted;
        `known` (n, known_behind + H, K) are the known-future inputs around the origin, where the fit had any.
        """
        parts = []
        history = np.asarray(history, dtype=np.float64)
        for part in slices(len(history)):
            seen, index, factor = self._see(history[part], _part(series, part), _part(when, part), _part(known, part))
            found = self._paths(seen, index)
            parts.append(Paths(found.median * factor, found.sigma * factor))
        if not parts:
            return Paths(np.zeros((0, self.horizon)), np.zeros((0, self.horizon)))
        return Paths(np.concatenate([p.median for p in parts]), np.concatenate([p.sigma for p in parts]))

    def offsets(self, series: Index, levels: Array) -> Array:
        """(n, H, Q) quantiles of (y - median) / sigma, increasing in the level."""
        return self.spread.at(np.asarray(series, dtype=np.int64), np.asarray(levels, dtype=np.float64))

    def climate(self, history: Array, levels: Array, series: Index | None = None, when: Dates | None = None) -> Array:
        """(n, H, Q) climatological quantiles in true units, NaN where the history holds too few seasons."""
        history, _ = self._history(history, series)
        behind, factor = self._factors(when, len(history))
        seen = look(history / behind, self.sizes.shape, self.sizes.context)
        table = climatology(seen.rows, seen.available, self.sizes.short, self.horizon, np.asarray(levels, float))
        return table * factor[..., None]

    def quantiles(
        self,
        history: Array,
        levels: Array,
        series: Index | None = None,
        when: Dates | None = None,
        known: Array | None = None,
    ) -> Array:
        """(n, H, Q) forecasts at any levels in (0, 1): model blended with climatology, ordered, above the floor."""
        levels = np.asarray(levels, dtype=np.float64)
        if len(levels) == 0 or levels.min() <= 0 or levels.max() >= 1:
            raise ValueError(f"levels: must lie between 0 and 1, found {levels.tolist()}")
        history = np.asarray(history, dtype=np.float64)
        out = np.empty((len(history), self.horizon, len(levels)))
        for part in slices(len(history)):
            out[part] = self._quantiles(
                history[part], levels, _part(series, part), _part(when, part), _part(known, part)
            )
        return out

    def _quantiles(
        self, history: Array, levels: Array, series: Index | None, when: Dates | None, known: Array | None
    ) -> Array:
        seen, series, factor = self._see(history, series, when, known)
        paths = self._paths(seen, series)
        model = paths.median[..., None] + paths.sigma[..., None] * self.offsets(series, levels)
        share = self.blend[np.where(series >= 0, series, len(self.blend) - 1)][..., None]
        if share.any():
            climate = climatology(seen.rows, seen.available, self.sizes.short, self.horizon, levels)
            model = np.where(np.isfinite(climate), model + share * (climate - model), model)
        floor = np.where(series >= 0, self.floor[np.maximum(series, 0)], -np.inf)[:, None, None]
        order = np.argsort(np.argsort(levels))
        return np.asarray(np.maximum(np.sort(model, axis=-1)[..., order] * factor[..., None], floor))

    def forecast(
        self,
        values: Array,
        offsets: Index,
        series: Index,
        origin: Index,
        levels: Array,
        starts: Dates | None = None,
        known: Array | None = None,
        known_offsets: Index | None = None,
    ) -> Array:
        """(n, H, Q) for windows of flat columns: `series` indexes the columns and the fit alike, rows before `origin`.

        `known` (N', K) has the rows of the horizon too; `known_offsets` says where its series begin, if that differs
        from `offsets`.
        """
        when = None
        if self.calendar is not None and starts is not None:
            when = np.array(
                [
                    stamps(starts[s : s + 1], np.array([o]), self.calendar.step)[0, 0]
                    for s, o in zip(series, origin, strict=True)
                ]
            )
        out = np.empty((len(series), self.horizon, len(levels)))
        for part in slices(len(series)):
            history = gather(values, offsets, series[part], origin[part], self.history)
            rows = None
            if self.known_unit is not None and known is not None:
                at = offsets if known_offsets is None else known_offsets
                rows = gather_known(known, at, series[part], origin[part], self.known_behind, self.horizon)
            out[part] = self.quantiles(history, levels, series[part], _part(when, part), rows)
        return out

    # ---- saving ----------------------------------------------------------------------------------------------------

    def to_arrays(self) -> tuple[dict[str, Array], str]:
        """Arrays for safetensors and a JSON text: everything that `from_arrays` needs."""
        arrays = {
            "bounds": self.bounds,
            "structured": self.structured,
            "linear": self.linear,
            "own": self.own,
            "blend": self.blend,
        }
        arrays |= {"floor": self.floor, **{f"spread.{k}": v for k, v in self.spread.__dict__.items()}}
        if self.known_unit is not None:
            arrays["known_unit"] = self.known_unit
        meta: dict[str, Any] = {"config": asdict(self.config), "sizes": asdict(self.sizes), "report": list(self.report)}
        if self.calendar is not None:
            arrays |= {"calendar.coefficients": self.calendar.coefficients, "calendar.centre": self.calendar.centre}
            meta["calendar"] = {"step": self.calendar.step, "shift": self.calendar.shift}
        text = json.dumps(meta)
        return arrays, text

    @staticmethod
    def from_arrays(arrays: dict[str, Array], text: str) -> FittedBackbone:
        """The inverse of `to_arrays`."""
        meta = json.loads(text)
        calendar = None
        if "calendar" in meta:
            calendar = Calendar(
                **meta["calendar"],
                coefficients=arrays["calendar.coefficients"],
                centre=arrays["calendar.centre"],
            )
        spread = Spread(**{k.removeprefix("spread."): v for k, v in arrays.items() if k.startswith("spread.")})
        return FittedBackbone(
            BackboneConfig(**meta["config"]),
            Sizes(**meta["sizes"]),
            arrays["bounds"],
            structured=arrays["structured"],
            linear=arrays["linear"],
            own=arrays["own"],
            spread=spread,
            blend=arrays["blend"],
            floor=arrays["floor"],
            calendar=calendar,
            known_unit=arrays.get("known_unit"),
            report=meta["report"],
        )
