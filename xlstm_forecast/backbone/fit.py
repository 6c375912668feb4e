"""`Backbone`: fit the closed-form forecaster on flat columns, stage by stage."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from xlstm_forecast.backbone.calendar import Dates, divided, fit_calendar, stamps
from xlstm_forecast.backbone.climatology import climatology
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
from xlstm_forecast.backbone.model import BackboneConfig, FittedBackbone, Sizes
from xlstm_forecast.backbone.regression import near_best
from xlstm_forecast.backbone.scarcity import AGEING, measure_scarcity
from xlstm_forecast.backbone.seasons import confirm, recurs, repeats, table
from xlstm_forecast.backbone.spread import Residuals, fit_spread, volatility
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
SCARCE = 256  # windows that tell what brief histories and gaps cost
OWN_CONTEXT = 384  # values that a series' own correction reads


def choose_sizes(config: BackboneConfig, rows: list[Array]) -> Sizes:
    """Seasons, context and history from the configuration, the frequency and the lengths of the series."""
    h = config.horizon
    lengths = np.array([len(r) for r in rows])
    typical, longest = int(np.median(lengths)), int(lengths.max())
    short, long = confirm(rows, config.freq, h)
    short, long = config.season or short, config.long_season or (1 if config.season == 1 else long)
    if short + h > longest and not (short < longest and (config.season or repeats(rows, short, h))):
        short = 1
    needed = (
        long + h if table(config.freq)[0] == 1 else 1.35 * long + 2 * h
    )  # beside a short season it must have been seen to hold
    if needed > typical or long == short:
        if short == 1 < long < longest and repeats(rows, long, h):  # nothing to fit on, but the season before stands
            short = long
        long = 1
    if short == 1 < long and not config.long_season and typical < 3 * long and not recurs(rows, long, h):
        long = 1  # too little to judge it by, and what there is speaks against it
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
        calendar, why = fit_calendar(values, offsets, starts, self.config.freq)
        accepted = False
        if calendar is not None and starts is not None:
            left = self.calendar_leaves(fit, starts)
            accepted = left is not None and left < 0.98
            why += "; " + (
                "the values before the validation part give none to judge"
                if left is None
                else f"{left:.3f} of the validation error is left with it, where 0.98 is the most"
            )
            if accepted:
                adjusted = divided(values, offsets, starts, calendar)
                fit = _Fit(self.config, sizes, adjusted, offsets, bounds, known)
                fitted = fit.run()
        fitted = replace(fit.add_scarcity(fitted), calendar=calendar if accepted else None)
        return replace(fitted, report=[*fitted.report, {"stage": "calendar", "accepted": accepted, "why": why}])

    def calendar_leaves(self, plain: _Fit, starts: Dates) -> float | None:
        """What part of the validation error, in original units, a profile fitted before the validation part leaves.

        None where there is no such profile or no error.
        """
        ends = plain.splits[0].fit_end
        rows = rows_of(plain.values, plain.offsets)
        early = np.concatenate([r[:e] for r, e in zip(rows, ends, strict=True)])
        calendar = fit_calendar(early, np.r_[0, np.cumsum(ends)], starts, self.config.freq).calendar
        if calendar is None or plain.validated is None:
            return None
        adjusted = divided(plain.values, plain.offsets, starts, calendar)
        other = _Fit(self.config, plain.sizes, adjusted, plain.offsets, plain.bounds, plain.known)
        other.run()
        before = plain.error(*plain.validated)
        if other.validated is None or not before > 0:
            return None
        series, origin, path = other.validated
        when = stamps(starts[series], np.zeros(1, dtype=np.int64), calendar.step)[:, 0]
        ahead = stamps(when, np.arange(path.shape[1]), calendar.step)
        ahead = ahead + (origin * (7 if calendar.step == "W" else 1))[:, None]
        path = path * calendar.at(ahead)
        return plain.error(series, origin, path) / before


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
        self.blocks = 0.0  # independent validation windows
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
            return self.finished(fitted)
        train, names, _ = self.examples(*train_at, views=False)
        check, _, check_views = self.examples(*check_at)
        if self.known is not None:
            self.drop_known(train, check, names)
            if not self.report[-1]["kept"]:  # exactly as if there were none
                self.known = self.known_unit = None
                fitted = FittedBackbone(self.config, s, self.bounds)
                train, names, _ = self.examples(*train_at, views=False)
                check, _, check_views = self.examples(*check_at)
        unseen = 0.0
        if s.short == 1 and s.long > 1 and len(check):
            unseen = 1.0 - float(np.mean(check_at[1] >= s.long + 4))
        self.naive = names.index("naive") if "naive" in names else None
        self.apart = self.series_apart(check, check_at)
        structured = fit_structured(train, check, names, self.independent(), self.share(check), unseen)
        self.report += [{"stage": "series", "independent": round(self.apart, 2)}, *structured.report]
        done = np.zeros_like(check.target)
        for j in np.unique(check.member):
            rows = check.member == j
            done[rows] = _apply(check.features[rows], structured.coefficients[j])
        fitted = replace(fitted, structured=structured.coefficients[-1])
        if len(train) > 50 and len(check):
            fitted, done = self.add_context(fitted, structured.coefficients, train, check, done)
        self.validated = check_at[0], check_at[1], _true_units(done, check_views)
        fitted = self.add_spread(fitted, train, check, done, train_at, check_views)
        fitted = self.add_blend(fitted, check, done, check_views)
        return self.finished(replace(fitted, report=self.report))

    def finished(self, fitted: FittedBackbone) -> FittedBackbone:
        """With what the values tell by themselves."""
        return fitted.with_floor(self.values, self.offsets).with_alone(self.values, self.offsets)

    def add_context(
        self, fitted: FittedBackbone, coefficients: Array, train: Examples, check: Examples, done: Single
    ) -> tuple[FittedBackbone, Single]:
        """Ridges on the context for what the structured stage leaves: common to all series, then each by its own."""
        s = self.sizes
        rest = np.stack([train.target - _apply(train.features, c) for c in coefficients])
        few = max(min(2 * s.short, s.context), s.context // 4)
        lengths = tuple(sorted({s.context, few, train.context.shape[1]}, reverse=True))
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
        if count > 1 and count * length * s.horizon <= 20e6:
            rest -= np.stack([train.context @ c.astype(np.float32) for c in linear.coefficients])
            own, done, report = fit_own(train, rest, check, done, length, self.independent(), self.apart, count)
            self.report += report
            fitted = replace(fitted, own=own)
        return fitted, done

    def drop_known(self, train: Examples, check: Examples, names: tuple[str, ...]) -> None:
        """Set known-future inputs that do not help to zero wherever coefficients are learned."""
        dropped = screen_known(train, check, names, self.share(check), self.independent())
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
        return look(history, s.shape, s.reach, known, self.known_unit)

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

    def examples(
        self, series: Index, origin: Index, member: Index, views: bool = True
    ) -> tuple[Examples, tuple[str, ...], list[View]]:
        """Look at windows and their labels; the views themselves are kept where asked for."""
        s = self.sizes
        pieces, kept = [], []
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
            if views:
                kept.append(seen)
            names = seen.simple.names
        if not pieces:
            h = s.horizon
            empty = [np.zeros(shape, dtype=np.float32) for shape in ((0, h, 1), (0, h), (0, h), (0, s.context))]
            return Examples(empty[0], empty[1], empty[2], empty[3], series, member), names, kept
        stacked: list[Single] = [np.concatenate([p[i] for p in pieces]) for i in range(4)]
        return Examples(stacked[0], stacked[1], stacked[2], stacked[3], series, member), names, kept

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
        ends = np.sum([np.maximum(p.end - np.maximum(p.fit_end, 2), 0) for p in self.splits], 0) / self.sizes.horizon
        return float(ends[np.unique(check.series)].mean() * self.apart)

    def series_apart(self, check: Examples, check_at: tuple[Index, Index, Index]) -> float:
        """How many series move on their own: the share of the naive error that averaging over series removes.

        What the naive error is at all times, as where every series grows, is not of one movement.
        """
        alive = max(int((self.unit > 0).sum()), 1)
        if alive == 1 or not len(check):
            return 1.0
        ahead = 0.0 if self.naive is None else check.features[..., self.naive]
        error = (check.target - ahead) * check.weight
        error = np.clip(error, *np.quantile(error, [0.02, 0.98]))
        late = self.lengths[check_at[0]] - check_at[1]  # windows at the same distance from the end stand side by side
        _, group = np.unique(late, return_inverse=True)
        count = np.bincount(group)
        if len(count) > 1:
            seen = check.weight > 0
            error = np.where(seen, error - error.sum(0) / np.maximum(seen.sum(0), 1), 0.0)
        mean = np.stack([np.bincount(group, error[:, h]) for h in range(error.shape[1])], 1) / count[:, None]
        full = count >= 0.5 * count.max()
        lost = 1 - 1 / len(count) if len(count) > 1 else 1.0  # of the movement, with its mean
        together = float((mean[full] ** 2).mean()) / lost
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
            np.asarray(0.6**age, dtype=np.float64),
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
        self.blocks = self.effective(check)
        spread = fit_spread(checked, trained, self.lengths / s.horizon, max(self.blocks, 1.0), s.short, gain)
        return replace(fitted, spread=spread)

    def add_scarcity(self, fitted: FittedBackbone) -> FittedBackbone:
        """What brief histories and gaps cost, on up to `SCARCE` windows of the validation parts."""
        if self.validated is None or not len(self.validated[0]):
            return replace(fitted, spread=replace(fitted.spread, ageing=np.array([AGEING])))
        s, (series, origin, _) = self.sizes, self.validated
        keep = np.linspace(0, len(series) - 1, min(len(series), int(np.clip(100_000 // s.horizon, 16, SCARCE))))
        series, origin = series[keep.astype(np.int64)], origin[keep.astype(np.int64)]
        label = gather_labels(self.values, self.offsets, series, origin, s.horizon)
        history = gather(self.values, self.offsets, series, origin, s.history)
        known = None
        if self.known is not None:
            known = gather_known(self.known, self.offsets, series, origin, s.behind, s.horizon)

        def miss(changed: Array) -> Array:
            paths = fitted.paths(changed, known=known)
            size = np.where(paths.sigma > 0, paths.sigma, np.nan)  # no change seen: nothing to measure by
            return np.asarray(np.log(np.abs(label - paths.median) / size + 0.02))

        spread = measure_scarcity(fitted.spread, history, s.short, miss, self.blocks)
        brief = {str(int(values)): round(float(more), 3) for values, more in spread.brief.T}
        stage = {"stage": "scarcity", "brief": brief, "ageing": round(float(spread.ageing[0]), 3)}
        return replace(fitted, spread=spread, report=[*fitted.report, stage])

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
        judged = np.zeros(s.horizon, dtype=bool)  # steps that some window tells of
        for seen in views:
            rows = slice(start, start + len(seen.rows))
            start += len(seen.rows)
            sigma = fitted.spread.sigma(seen, s.short, check.series[rows]) / seen.scale[:, None]
            table = fitted.spread.at(check.series[rows], levels)
            model = done[rows][..., None] + sigma[..., None] * table
            climate = climatology(seen.rows, seen.available, seen.simple.drift, s.short, s.horizon, levels, brief=True)
            climate = (climate - seen.simple.last[..., None]) / seen.scale[:, None, None]
            judged |= np.isfinite(climate).all(-1).any(0)
            climate = np.where(np.isfinite(climate), climate, model)
            losses.append(
                np.stack([self._pinball(check, rows, model + w * (climate - model), levels) for w in BLEND], -1)
            )
        loss = np.concatenate(losses) if losses else np.zeros((0, s.horizon, len(BLEND)))
        share = np.zeros((len(self.lengths) + 1, s.horizon))
        for third in np.array_split(np.arange(s.horizon), 3 if s.horizon >= 12 else 1):
            if not judged[third].any():
                continue
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
