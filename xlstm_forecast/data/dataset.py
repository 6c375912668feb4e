"""Windows in pytorch-forecasting's vocabulary, for those who know its `TimeSeriesDataSet`; it need not be installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import narwhals as nw

from .columns import open_frame, require
from .frame import to_panel
from .loader import Loader, Sampler
from .roles import Encoding, Roles
from .windows import Windows

_SERIES, _TIME = "__series__", "__time_value__"


class WindowDataset:
    """A data set of windows, its arguments named as in pytorch-forecasting where they mean the same.

    max_encoder_length is the context L, max_prediction_length the horizon H. The target is an input whether or not it
    is among the unknown reals. Several `group_ids` make one series per combination. `lags` names targets only. Windows
    keep their full horizon, and targets are not normalised: a model scales each window itself. Missing values are
    masks; `allow_missing_timesteps` makes missing time steps so, too. `freq` is inferred where None.
    """

    def __init__(
        self,
        data: Any,
        time_idx: str,
        target: str | Sequence[str],
        group_ids: Sequence[str],
        weight: str | None = None,
        max_encoder_length: int = 30,
        min_encoder_length: int | None = None,
        min_prediction_idx: Any = None,
        max_prediction_length: int = 1,
        static_categoricals: Sequence[str] = (),
        static_reals: Sequence[str] = (),
        time_varying_known_categoricals: Sequence[str] = (),
        time_varying_known_reals: Sequence[str] = (),
        time_varying_unknown_categoricals: Sequence[str] = (),
        time_varying_unknown_reals: Sequence[str] = (),
        allow_missing_timesteps: bool = False,
        lags: Mapping[str, Sequence[int]] | None = None,
        add_relative_time_idx: bool = False,
        predict_mode: bool = False,
        freq: Any = None,
        encoding: Encoding | None = None,
    ):
        self._arguments = {k: v for k, v in locals().items() if k not in ("self", "data", "encoding", "predict_mode")}
        targets = (target,) if isinstance(target, str) else tuple(target)
        shortest = max_encoder_length if min_encoder_length is None else min_encoder_length
        groups = (group_ids,) if isinstance(group_ids, str) else tuple(group_ids)
        roles = Roles(
            id=None if not groups else groups[0] if len(groups) == 1 else _SERIES,
            time=time_idx,
            target=targets,
            weight=weight,
            static=(*static_reals, *(c for c in static_categoricals if (c,) != groups)),
            past=(*(c for c in time_varying_unknown_reals if c not in targets), *time_varying_unknown_categoricals),
            future=(
                *(_TIME if c == time_idx else c for c in time_varying_known_reals),
                *time_varying_known_categoricals,
            ),
            categorical=(
                *static_categoricals,
                *time_varying_known_categoricals,
                *time_varying_unknown_categoricals,
            ),
            lags=_lags(lags, targets),
            relative_time=add_relative_time_idx,
        )
        frame = _prepared(data, roles, groups, time_idx)
        on_gap = "mask" if allow_missing_timesteps else "error"
        self.panel = to_panel(nw.to_native(frame), roles, freq=freq, on_gap=on_gap, encoding=encoding)
        start = self.panel.history - max_prediction_length if predict_mode else min_prediction_idx
        self.windows = Windows(self.panel, max_encoder_length, max_prediction_length, shortest, start=start)
        self.windows.require()

    @classmethod
    def from_dataset(cls, dataset: WindowDataset, data: Any, *, predict: bool = False, **changed: Any) -> WindowDataset:
        """The same arguments, vocabularies and scales over other data; `predict`: the last window of each series."""
        arguments = {**dataset._arguments, "encoding": dataset.panel.encoding, "predict_mode": predict, **changed}
        return cls(data, **arguments)

    def __len__(self) -> int:
        return len(self.windows)

    def to_dataloader(self, train: bool = True, batch_size: int = 64, **sampling: Any) -> Loader:
        """A loader of (Batch, Labels): shuffled and without a last, smaller batch for training, in order otherwise.

        Further arguments are those of `Sampler` (mode, weights, seed, rank, world_size) and `Loader` (steps, prefetch).
        """
        loading = {k: sampling.pop(k) for k in ("steps", "prefetch", "pin_memory") if k in sampling}
        sampling = {"shuffle": train, "drop_last": train and len(self) > batch_size, **sampling}
        return Loader(Sampler(self.windows, batch_size, **sampling), **loading)


def _lags(lags: Mapping[str, Sequence[int]] | None, targets: tuple[str, ...]) -> tuple[int, ...]:
    steps = {}
    for name, values in (lags or {}).items():
        if name not in targets:
            raise ValueError(f"lags names {name!r}; only the targets {list(targets)} have lags here")
        steps[name] = tuple(values)
    if len(set(steps.values())) > 1 or (steps and set(steps) != set(targets)):
        raise ValueError(f"lags={dict(lags or {})}: all targets must have the same lags")
    return next(iter(steps.values()), ())


def _prepared(data: Any, roles: Roles, groups: tuple[str, ...], time_idx: str) -> nw.DataFrame:
    """The frame with one id column for several groups, and the time as a known real where it is asked for."""
    frame, _ = open_frame(data, roles)
    require(frame, [*groups, time_idx])
    if roles.id == _SERIES:
        for group in groups:
            if int(frame[group].is_null().sum()):
                raise ValueError(f"group column {group!r} has missing values")
        text = [nw.col(g).cast(nw.String) for g in groups]
        joined = frame.select(*groups, nw.concat_str(text, separator="|").alias(_SERIES)).unique()
        if joined[_SERIES].n_unique() < len(joined):
            raise ValueError(f"group columns {list(groups)} hold values with '|' that make two series look like one")
        frame = frame.with_columns(nw.concat_str(text, separator="|").alias(_SERIES))
    if _TIME in roles.future:
        if not frame[time_idx].dtype.is_integer():
            raise ValueError(f"time_idx column {time_idx!r} can be a known real only where it holds integers")
        frame = frame.with_columns(nw.col(time_idx).cast(nw.Float64).alias(_TIME))
    return frame
