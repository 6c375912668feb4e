"""What is in a window: one gather per column for a whole batch, and the rare rows that need more care afterwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..batch import Batch, Labels
from .calendar import calendar_features
from .columns import chunks
from .panel import Panel
from .spans import Spans

Array = np.ndarray
Forecast = Callable[[Array, Array], Array]


@dataclass(frozen=True)
class _Place:
    """Where a batch of windows lies: flat rows of its first step and of its first forecast step, (B,) each."""

    series: Tensor
    origin: Tensor
    first: Tensor
    at: Tensor
    short: Tensor | None  # (k,) the windows that start before their series does; None: none
    absent: Tensor  # (k, L) true on their padding

    @property
    def size(self) -> int:
        return int(self.origin.shape[0])

    @property
    def edge(self) -> bool:
        """Whether a window may reach beyond the columns."""
        return self.short is not None

    def blank(self, values: Tensor) -> Tensor:
        """Zero (or false) on the padding of values (B, L or more, ...), in place."""
        if self.short is not None and values.shape[-1]:
            part, context = values[self.short], self.absent.shape[1]
            part[:, :context].masked_fill_(self.absent if values.ndim == 2 else self.absent[:, :, None], 0)
            values[self.short] = part
        return values


class Gather:
    """The columns of a panel on a device, read at any (series, origin)."""

    def __init__(
        self, panel: Panel, context: int, horizon: int, complete: bool, base: Forecast | None, device: torch.device
    ):
        self.panel, self.context, self.horizon, self.complete = panel, context, horizon, complete
        self.base, self.device = base, device
        self.offsets, self.length = self._tensor(panel.offsets[:-1]), self._tensor(np.diff(panel.offsets))
        self._fitted = self._tensor(panel.series)
        self._target, self._known, self._past, self._known_categories, self._past_categories = (
            Spans(self._tensor(x))
            for x in (panel.target, panel.known, panel.past, panel.known_categories, panel.past_categories)
        )
        self._weight = None if panel.weight is None else Spans(self._tensor(panel.weight))
        self._past_complete = not any(np.isnan(panel.past[a:b]).any() for a, b in chunks(len(panel.past)))
        static = self._tensor(panel.static)
        self._static, self._static_observed = torch.nan_to_num(static), ~torch.isnan(static)
        self._static_categories = self._tensor(panel.static_categories).long()
        self._steps = torch.arange(context + horizon, device=device)
        lags = panel.roles.lags
        self.known_lags, self.past_lags = (
            tuple(k for k in lags if k >= horizon),
            tuple(k for k in lags if k < horizon),
        )
        if panel.roles.calendar:
            table, start = _calendar(panel, context, horizon)
            self._calendar, self._calendar_start = Spans(self._tensor(table)), self._tensor(start)

    def _tensor(self, values: Array) -> Tensor:
        return torch.from_numpy(values).to(self.device)

    @property
    def ahead(self) -> bool:
        """Whether a window reads columns over its horizon."""
        return bool(self._known.width or self._known_categories.width)

    @property
    def window_bytes(self) -> int:
        """About the size of one window."""
        panel = self.panel
        row = 13 * panel.target.shape[1] + 4 * panel.known.shape[1] + 5 * panel.past.shape[1]
        row += 8 * (panel.known_categories.shape[1] + panel.past_categories.shape[1] + len(panel.roles.calendar))
        return row * (self.context + self.horizon)

    def __call__(self, series: Tensor, origin: Tensor, labels: bool) -> tuple[Batch, Labels | None]:
        context, horizon, place = self.context, self.horizon, self._place(series, origin)
        values = self._target.cut(place.first, context + horizon if labels else context, place.edge)
        present = place.blank(torch.ones(place.size, context, dtype=torch.bool, device=self.device))
        there, offset, blind = self._levels(values, place)
        residual = torch.empty_like(values, dtype=torch.float32)
        torch.sub(values, offset[:, None], out=residual)
        if not self.complete:
            residual.masked_fill_(~there, 0)
        place.blank(residual)
        past, past_observed = self._past_part(place, present, offset)
        batch = Batch(
            target=residual[:, :context],
            observed=there[:, :context],
            offset=offset,
            present=present,
            known=self._known_part(place, offset),
            past=past,
            past_observed=past_observed,
            static=self._static.index_select(0, series),
            static_observed=self._static_observed.index_select(0, series),
            known_categories=self._categories(self._known_categories, place, context + horizon),
            past_categories=self._categories(self._past_categories, place, context),
            static_categories=self._static_categories.index_select(0, series),
            series=self._fitted.index_select(0, series),
            origin=origin,
            base=None if self.base is None else self._forecast(series, origin, offset),
        )
        if not labels:
            return batch, None
        target, observed = residual[:, context:], there[:, context:]
        if blind is not None:
            target, observed = target.masked_fill(blind[:, None], 0), observed & ~blind[:, None]
        return batch, Labels(target=target, observed=observed, weight=self._weights(place))

    def _place(self, series: Tensor, origin: Tensor) -> _Place:
        at = self.offsets.index_select(0, series).add_(origin)
        short = (origin < self.context).nonzero().squeeze(1)
        absent = self._steps[: self.context] < (self.context - origin[short])[:, None]
        return _Place(series, origin, at - self.context, at, short if short.shape[0] else None, absent)

    def _levels(self, values: Tensor, place: _Place) -> tuple[Tensor, Tensor, Tensor | None]:
        """(there, offset, blind): where values (B, T, V) are observed; the median of the first, middle and last
        observed value of the context (B, V); and, if there are any, which have none (B, V): their offset is 0."""
        context, last = self.context, self.context - 1
        offset = _median(values[:, 0], values[:, last // 2], values[:, last])
        if self.complete:
            there = torch.ones(values.shape, dtype=torch.bool, device=self.device)
            rows = place.short
        else:
            there = ~torch.isnan(values)
            holed = ~there[:, :context].flatten(1).all(1)
            if place.short is not None:
                holed[place.short] = True
            rows = holed.nonzero().squeeze(1)
        place.blank(there)
        if rows is None or not rows.shape[0]:
            return there, offset, None
        part, known = values[rows, :context], there[rows, :context]
        flags = known.to(torch.uint8)
        begin = flags.argmax(1, keepdim=True)
        end = last - flags.flip(1).argmax(1, keepdim=True)
        middle = (begin + end) // 2
        middle = torch.where(known.gather(1, middle), middle, end)
        none = ~known.any(1)
        level = _median(*(part.gather(1, i).squeeze(1) for i in (begin, middle, end)))
        offset[rows] = level.masked_fill_(none, 0)
        if not bool(none.any()):
            return there, offset, None
        blind = torch.zeros(offset.shape, dtype=torch.bool, device=self.device)
        blind[rows] = none
        return there, offset, blind

    def _weights(self, place: _Place) -> Tensor:
        if self._weight is None:
            return torch.ones(place.size, self.horizon, device=self.device)
        return self._weight.cut(place.at, self.horizon)

    def _forecast(self, series: Tensor, origin: Tensor, offset: Tensor) -> Tensor:
        assert self.base is not None
        values = torch.from_numpy(self.base(series.cpu().numpy(), origin.cpu().numpy())).to(self.device)
        return (values - offset[:, None, :, None]).float()

    def _categories(self, column: Spans, place: _Place, steps: int) -> Tensor:
        return place.blank(column.cut(place.first, steps, place.edge).long())

    def _past_part(self, place: _Place, present: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        values = self._past.cut(place.first, self.context, place.edge)
        if self._past_complete:
            observed = present[:, :, None].expand(values.shape)
        else:
            observed = present[:, :, None] & ~torch.isnan(values)
            values = values.masked_fill_(~observed, 0)
        place.blank(values)
        for lag in self.past_lags:
            more, there = self._lagged(place, lag, self.context, offset)
            values, observed = torch.cat([values, more], -1), torch.cat([observed, there], -1)
        return values, observed

    def _known_part(self, place: _Place, offset: Tensor) -> Tensor:
        steps, roles = self.context + self.horizon, self.panel.roles
        parts = [self._known.cut(place.first, steps, place.edge)]
        if roles.calendar:
            start = self._calendar_start.index_select(0, place.series).add_(place.origin)
            parts.append(self._calendar.cut(start, steps))
        for lag in self.known_lags:
            more, there = self._lagged(place, lag, steps, offset)
            parts += [more, there.float()]
        if roles.relative_time:
            relative = (self._steps - self.context + 1) / self.context
            parts.append(relative.expand(place.size, steps).unsqueeze(-1))
        return place.blank(parts[0] if len(parts) == 1 else torch.cat(parts, -1))

    def _lagged(self, place: _Place, lag: int, steps: int, offset: Tensor) -> tuple[Tensor, Tensor]:
        """The target some steps earlier, minus the window's offset, and whether it is there."""
        first = place.first - lag
        values = self._target.cut(first, steps, True)
        inside = first[:, None] + self._steps[:steps] >= (place.at - place.origin)[:, None]
        there = inside[:, :, None] & ~torch.isnan(values)
        return torch.where(there, (values - offset[:, None]).float(), 0), there


def _median(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return torch.maximum(torch.minimum(a, b), torch.minimum(torch.maximum(a, b), c))


def _calendar(panel: Panel, context: int, horizon: int) -> tuple[Array, Array]:
    """Calendar features by time, (rows, F) float32, and for each series the row of its window at origin 0.

    Series on the same grid share one stretch of time, unless their own stretches together are shorter.
    """
    begin, end = panel.start - context, panel.start + np.diff(panel.offsets) + horizon
    phases, group = np.unique(panel.phase, return_inverse=True)
    low = np.full(len(phases), np.iinfo(np.int64).max)
    high = np.full(len(phases), np.iinfo(np.int64).min)
    np.minimum.at(low, group, begin)
    np.maximum.at(high, group, end)
    if (high - low).sum() > (end - begin).sum():
        phases, group, low, high = panel.phase, np.arange(len(panel)), begin, end
    stretch = np.r_[0, np.cumsum(high - low)]
    ordinal = np.arange(stretch[-1]) + np.repeat(low - stretch[:-1], high - low)
    times = panel.axis.join(ordinal, np.repeat(phases, high - low))
    return calendar_features(panel.axis, times, panel.roles.calendar), stretch[group] + begin - low[group]
