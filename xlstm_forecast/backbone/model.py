"""`FittedBackbone`: forecasts of any histories, its configuration and its saved form."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xlstm_forecast.backbone.calendar import Calendar, Dates, stamps
from xlstm_forecast.backbone.climatology import climatology
from xlstm_forecast.backbone.features import REVISION, Shape
from xlstm_forecast.backbone.median import View, look, slices
from xlstm_forecast.backbone.spread import GRID, Spread, errors_of_last_value, normal_quantiles, volatility
from xlstm_forecast.backbone.windows import Array, Index, gather, gather_known, rows_of


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
    def reach(self) -> int:
        """Values that the scale of a window is taken from: the context, but at least four seasons."""
        return max(self.context, 4 * self.short, 8)

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


REACH = 3.0  # ranges of a history beyond it that a path may go, times the horizon in histories
LASTING = 4  # values out of bounds that are a new level rather than sentinels, if they are most of the last ones
BRIEF = 8  # values of which a history that shows no change may be one that was not yet seen to change


def brief(history: Array) -> NDArray[np.bool_]:
    """(n,) which histories (n, L) have few values, all the same."""
    seen = np.isfinite(history)
    high, low = np.where(seen, history, -np.inf).max(1), np.where(seen, history, np.inf).min(1)
    return np.asarray((seen.sum(1) <= BRIEF) & (high == low))


def _part(values: Any, part: slice) -> Any:
    return None if values is None else values[part]


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
    alone: Array = None  # type: ignore[assignment]  # (2, H) sigma around one value: absolute, and per value
    calendar: Calendar | None = None
    known_unit: Array | None = None  # (K,) where the fit had known-future inputs
    report: Any = ()

    @property
    def independent_series(self) -> float | None:
        """How many series move on their own; None where too few windows told."""
        found = [stage["independent"] for stage in self.report if stage["stage"] == "series"]
        return found[-1] if found else None

    @property
    def kept_inputs(self) -> list[int]:
        """Which known-future inputs helped when they were screened."""
        found = [stage["kept"] for stage in self.report if stage["stage"] == "known inputs"]
        return list(found[-1]) if found else []

    def __post_init__(self) -> None:
        s, n = self.sizes, len(self.bounds)
        blank = self._blank()
        default: dict[str, Any] = {
            "linear": np.zeros((blank.context(s.context).shape[1], s.horizon)),
            "own": np.zeros((0, s.context, s.horizon)),
            "blend": np.zeros((n + 1, s.horizon)),
            "floor": np.full(n, -np.inf),
            "alone": np.zeros((2, s.horizon)),
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
        return look(np.zeros((1, s.history)), s.shape, s.reach, known, self.known_unit)

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

    def with_alone(self, values: Array, offsets: Index) -> FittedBackbone:
        """Remember how wide a band is around a single value, which shows no change: as wide as what the last value
        misses by in the series of the fit."""
        low, high = normal_quantiles(np.array([0.1, 0.9]))
        band = self.offsets(np.array([-1]), np.array([0.1, 0.9]))[0]
        width = 1.25 * (high - low) / np.maximum(band[:, 1] - band[:, 0], 1e-3)
        return replace(self, alone=errors_of_last_value(values, offsets, self.horizon) * width)

    @property
    def needs_stamps(self) -> bool:
        """Whether a calendar profile was accepted, so that forecasts need the stamp of their first step."""
        return self.calendar is not None

    def _factors(self, when: Dates | None, n: int, length: int | None = None) -> tuple[Array, Array]:
        """(n, L) and (n, H) factors of the profile for history and horizon; ones without a profile."""
        length, h = self.sizes.history if length is None else length, self.horizon
        if self.calendar is None:
            return np.ones((1, 1)), np.ones((1, 1))
        if when is None:
            raise ValueError("stamps: the fit accepted a calendar profile; pass the stamp of each first forecast step")
        dates = stamps(np.asarray(when), np.arange(-length, h), self.calendar.step)
        factors = self.calendar.at(dates)
        return factors[:, :length], factors[:, length:]

    def freed(self, history: Array, series: Index, when: Dates | None = None) -> tuple[Array, Array, Array]:
        """What another model should be given, and what undoes it: histories (n, L) of any length without sentinels and
        without the calendar's profile, the profile's factors for the horizon, and the floors (n, 1, 1)."""
        history, series = self._history(history, series, history.shape[1])
        behind, ahead = self._factors(when, len(history), history.shape[1])
        return history / behind, ahead, self.floors(history, series)

    def floors(self, history: Array, series: Index) -> Array:
        """(n, 1, 1) the value that forecasts do not fall below; -inf where recent values are below it themselves."""
        floor = np.where(series >= 0, self.floor[np.maximum(series, 0)], -np.inf)
        if np.isfinite(floor).any():
            history, _ = self._history(history, series, history.shape[1])
            recent = history[:, -2 * max(self.sizes.short, BRIEF) :]
            floor = np.where((recent < floor[:, None]).any(1), -np.inf, floor)
        return floor[:, None, None]

    def _history(self, history: Array, series: Index | None, length: int | None = None) -> tuple[Array, Index]:
        history = np.asarray(history, dtype=np.float64)
        if history.ndim != 2:
            raise ValueError(f"history: must be (windows, steps), found shape {history.shape}")
        series = np.full(len(history), -1) if series is None else np.asarray(series, dtype=np.int64)
        n = self.sizes.history if length is None else length
        if history.shape[1] < n:
            pad = np.full((len(history), n - history.shape[1]), np.nan)
            history = np.concatenate([pad, history], 1)
        history = history[:, -n:]
        known = series >= 0
        if known.any():
            low, high = self.bounds[np.maximum(series, 0)].T
            for side in (history < low[:, None], history > high[:, None]):
                side &= known[:, None]
                history = np.where(side & ~self._lasting(history, side)[:, None], np.nan, history)
        return history, series

    def _lasting(self, history: Array, side: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """(n,) whether the values of a history on one `side` (n, L) of its bounds are a level: most of the last ones,
        and not all the same, as those of a sensor that is stuck."""
        recent = slice(-max(self.sizes.short, 2 * LASTING), None)
        last, there = history[:, recent], side[:, recent]
        many, of = there.sum(1), np.isfinite(last).sum(1)
        varies = np.where(there, last, -np.inf).max(1) > np.where(there, last, np.inf).min(1)
        return np.asarray((many >= LASTING) & (2 * many > of) & varies)

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
        return look(history / behind, s.shape, s.reach, known, self.known_unit), series, ahead

    def _paths(self, seen: View, series: Index, history: Array) -> Paths:
        rest = np.einsum("nhk,hk->nh", seen.simple.features, self.structured)
        context = seen.context(self.sizes.context).astype(np.float64)
        correction = context @ self.linear
        for s in np.unique(series[series >= 0]) if len(self.own) else ():
            rows = series == s
            correction[rows] += context[rows, -self.own.shape[1] :] @ self.own[s]
        median = seen.simple.last + rest + seen.scale[:, None] * correction
        if self.known_unit is None:  # known-future inputs may ask for anything
            low, high = seen.rows.min(1, keepdims=True), seen.rows.max(1, keepdims=True)
            room = REACH * (high - low) * np.maximum(1.0, self.horizon / np.maximum(seen.available, 1))[:, None]
            median = np.clip(median, low - room, high + room)
        sigma = self.spread.sigma(seen, self.sizes.short, series)
        recent = history[:, -self.history :]
        few = np.isfinite(recent).sum(1) <= BRIEF
        rows = few & ((series < 0) | brief(recent))  # the early windows of a fitted series stay as they were judged
        if rows.any():
            share = 1.0 / np.maximum(np.isfinite(recent[rows]).sum(1, keepdims=True), 1) ** 2  # of what others tell
            alone = self.alone[0] + self.alone[1] * np.abs(seen.simple.last[rows])
            sigma[rows] = np.sqrt((1 - share) * sigma[rows] ** 2 + share * alone**2)
        return Paths(median, sigma)

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
            found = self._paths(seen, index, history[part])
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
        seen = look(history / behind, self.sizes.shape, self.sizes.reach)
        table = climatology(
            seen.rows, seen.available, seen.simple.drift, self.sizes.short, self.horizon, np.asarray(levels, float)
        )
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
        paths = self._paths(seen, series, history)
        model = paths.median[..., None] + paths.sigma[..., None] * self.offsets(series, levels)
        share = self.blend[np.where(series >= 0, series, len(self.blend) - 1)][..., None]
        some = share.any((1, 2))
        if some.any():
            climate = climatology(
                seen.rows[some], seen.available[some], seen.simple.drift[some], self.sizes.short, self.horizon, levels
            )
            mixed = model[some] + share[some] * (climate - model[some])
            model[some] = np.where(np.isfinite(climate), mixed, model[some])
        floor = self.floors(history, series)
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
        arrays |= {
            "floor": self.floor,
            "alone": self.alone,
            **{f"spread.{k}": v for k, v in self.spread.__dict__.items()},
        }
        if self.known_unit is not None:
            arrays["known_unit"] = self.known_unit
        meta: dict[str, Any] = {"config": asdict(self.config), "sizes": asdict(self.sizes), "report": list(self.report)}
        meta["features"] = REVISION
        if self.calendar is not None:
            arrays |= {"calendar.coefficients": self.calendar.coefficients, "calendar.centre": self.calendar.centre}
            meta["calendar"] = {"step": self.calendar.step, "shift": self.calendar.shift}
        text = json.dumps(meta)
        return arrays, text

    @staticmethod
    def from_arrays(arrays: dict[str, Array], text: str) -> FittedBackbone:
        """The inverse of `to_arrays`. Raises ValueError where the coefficients are of features of another version."""
        meta = json.loads(text)
        if meta.get("features") != REVISION:
            raise ValueError(
                "the backbone's coefficients are of features of another version of xlstm_forecast: fit again and save"
            )
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
            alone=arrays["alone"],
            calendar=calendar,
            known_unit=arrays.get("known_unit"),
            report=meta["report"],
        )
