"""Hyper-parameter search by backtest scores with optuna (needs the extra "tune"): pruned, resumable, reproducible."""

from __future__ import annotations

import numbers
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
import pandas as pd
from sklearn.base import clone

from .backtest import backtest, iterate
from .backtest.folder import content, fingerprint, parameters
from .backtest.run import check
from .metrics import METRICS, as_pandas, evaluate

ASKED = ("horizon", "quantiles", "target_col", "id_col", "time_col", "freq")  # not how, but what is forecast


@dataclass(frozen=True)
class Tuned:
    """What a search found: the best parameters and score, a forecaster with them, not fitted, and all trials."""

    params: dict[str, Any]
    score: float
    forecaster: Any
    trials: pd.DataFrame  # number, score, state, seconds, one column per parameter
    study: optuna.Study


def tune(
    forecaster: Any,
    df: Any,
    space: Mapping[str, Any],
    n_trials: int = 20,
    *,
    metric: str = "pinball",
    n_windows: int = 3,
    refit: Any = False,
    storage: str | None = None,
    name: str = "xlstm_forecast",
    seed: int = 0,
    prune: bool = True,
    timeout: float | None = None,
    history: Any = None,
    season_length: int = 1,
    verbose: bool = False,
    **options: Any,
) -> Tuned:
    """Search the parameters of a forecaster for the least backtest error over the last windows of `df`.

    `space` maps a parameter to a list of choices, or to (low, high), of integers or of reals, or (low, high, "log").
    `metric` is any error of `evaluate`; the scaled ones read `history` (None: `df`). With several fits (`refit`) a
    trial is stopped after a window whose running score is worse than the median of earlier trials. `storage`
    ("sqlite:///tune.db") keeps the trials: the same call goes on until there are `n_trials` in all, and a search of
    other data, metric, space, forecaster or windows under the same `name` is refused. `options` go to `backtest`;
    `timeout` in seconds ends the search between trials. With on_error="record" a trial of which a window fails is given
    up, and the search goes on.

    Raises:
        ValueError: before the first trial, where the space is empty, a parameter or metric unknown, a range none, the
            windows do not fit the data, or the storage holds another search.
    """
    _check(forecaster, space, metric, n_trials)
    refit = bool(refit) if isinstance(refit, np.bool_) else refit
    _check_options(forecaster, df, n_windows, refit, options)
    search = _search(forecaster, df, space, (metric, season_length), history, {"refit": refit, **options}, n_windows)

    def score(frame: Any) -> float:
        past = df if history is None else history
        row = evaluate(frame, [metric], history=past, season_length=season_length)
        return float(np.mean(row.to_numpy()))

    def objective(trial: optuna.Trial) -> float:
        candidate = clone(forecaster).set_params(**{key: _suggest(trial, key, value) for key, value in space.items()})
        if refit is False:
            return score(_whole(backtest(candidate, df, n_windows=n_windows, **options)))
        return _by_window(trial, candidate, df, score, n_windows=n_windows, refit=refit, options=options)

    with _logging(optuna.logging.INFO if verbose else optuna.logging.WARNING):
        study = _open_study(storage, name, seed, prune, search)
        finished = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
        left = n_trials - len(study.get_trials(deepcopy=False, states=finished))
        if left > 0:
            study.optimize(objective, n_trials=left, timeout=timeout)
    if not study.get_trials(deepcopy=False, states=finished[:1]):
        raise ValueError(
            f"none of the {len(study.trials)} trials has a score: raise n_trials or timeout, and see whether "
            f"{metric!r} can be had of these windows and whether fits fail in them"
        )
    best = study.best_params
    chosen = {key: _value(space[key], best[key]) for key in space}
    return Tuned(chosen, float(study.best_value), clone(forecaster).set_params(**chosen), _table(study, space), study)


@contextmanager
def _logging(level: int) -> Iterator[None]:
    """Another level of optuna's messages for a while."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(level)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def _open_study(storage: str | None, name: str, seed: int, prune: bool, search: Mapping[str, Any]) -> optuna.Study:
    """A new study, or the stored one of this search."""
    pruner = optuna.pruners.MedianPruner(n_startup_trials=4) if prune else optuna.pruners.NopPruner()
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        load_if_exists=storage is not None,
        sampler=optuna.samplers.TPESampler(seed=seed),
        pruner=pruner,
        direction="minimize",
    )
    _recognise(study, search)
    if study.trials:
        study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials))
    return study


def _check(forecaster: Any, space: Mapping[str, Any], metric: str, n_trials: int) -> None:
    if not space:
        raise ValueError("space is empty: name at least one parameter, as {'d_model': [32, 64]}")
    known = forecaster.get_params(deep=True)
    for key, value in space.items():
        if key not in known:
            raise ValueError(
                f"space names {key!r}, which is no parameter of {type(forecaster).__name__}: {sorted(known)}"
            )
        if key.rpartition("__")[2] in ASKED:
            raise ValueError(
                f"space names {key!r}, which says what is asked, so that scores of its values cannot be compared: set "
                "it in the forecaster"
            )
        if not _is_choice(value) and not _is_range(value):
            raise ValueError(
                f"space[{key!r}]={value!r}: a list of choices, (low, high) or (low, high, 'log') with low above 0"
            )
    errors = [name for name in METRICS if name not in ("coverage", "width", "bias")]
    if metric not in errors:
        raise ValueError(f"metric={metric!r} cannot be minimised: choose from {', '.join(errors)}")
    if isinstance(n_trials, bool) or not isinstance(n_trials, (int, np.integer)) or n_trials < 1:
        raise ValueError(f"n_trials={n_trials!r}: it must be an integer of at least 1")


def _check_options(forecaster: Any, df: Any, n_windows: int, refit: Any, options: Mapping[str, Any]) -> None:
    """Refuse windows and options that no trial could use, before the first."""
    if options.get("folder") is not None:
        raise ValueError("folder= keeps the windows of one backtest, and every trial is another: use storage= instead")
    if refit is not False and options.get("n_jobs") not in (None, 1):
        raise ValueError("n_jobs: with refits the windows of a trial run one by one, so that it can be stopped early")
    rest = {name: value for name, value in options.items() if name not in ("folder", "n_jobs")}
    check(clone(forecaster), df, n_windows=n_windows, refit=refit, **rest)


def _search(
    forecaster: Any,
    df: Any,
    space: Mapping[str, Any],
    metric: tuple[Any, ...],
    history: Any,
    options: Mapping[str, Any],
    n_windows: int,
) -> dict[str, Any]:
    """What tells one search from another, part by part; the parameters that are searched do not count."""
    frames = [df, history, options.get("static_df"), options.get("future_df")]
    rest = {name: value for name, value in options.items() if name not in ("static_df", "future_df", "n_jobs")}
    own = {name: value for name, value in parameters(forecaster).items() if name not in space}
    return {
        "data": fingerprint([content(frame) for frame in frames]),
        "metric": fingerprint(metric),
        "space": {name: repr(value) for name, value in space.items()},
        "forecaster": {"class": type(forecaster).__qualname__, **own},
        "windows": {name: fingerprint(value) for name, value in {"n_windows": n_windows, **rest}.items()},
    }


def _recognise(study: optuna.Study, search: Mapping[str, Any]) -> None:
    """Note in a new study which search it is. Raises ValueError where it is another one, naming what differs."""
    if not study.trials:
        study.set_user_attr("search", dict(search))
        return
    known = study.user_attrs.get("search")
    if known is None:
        raise ValueError(
            f"the study {study.study_name!r} in storage does not say which search its trials are of: give another name="
        )
    for part, value in search.items():
        if known.get(part) != value:
            found = known.get(part)
            names = sorted({*value, *found}) if isinstance(value, dict) and isinstance(found, dict) else []
            other = [name for name in names if value.get(name) != found.get(name)]
            shown = f" ({', '.join(other)})" if other else ""
            raise ValueError(
                f"the study {study.study_name!r} in storage is another search: other {part}{shown}; "
                "give another name= or storage=, or make the same call"
            )


def _is_choice(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0


def _is_range(value: Any) -> bool:
    """(low, high) of numbers, or (low, high, "log") of positive ones."""
    if not isinstance(value, tuple) or len(value) not in (2, 3) or value[2:] not in ((), ("log",)):
        return False
    real = all(isinstance(v, numbers.Real) and not isinstance(v, (bool, np.bool_)) for v in value[:2])
    return real and value[0] < value[1] and (len(value) == 2 or value[0] > 0)


def _value(space: Any, stored: Any) -> Any:
    """A parameter's value from what the study stores: the text of a choice, or the number itself."""
    return space[[repr(choice) for choice in space].index(stored)] if _is_choice(space) else stored


def _suggest(trial: optuna.Trial, key: str, value: Any) -> Any:
    if _is_choice(value):
        return _value(value, trial.suggest_categorical(key, [repr(choice) for choice in value]))
    low, high, log = value[0], value[1], len(value) == 3
    if all(isinstance(v, (int, np.integer)) for v in (low, high)):
        return trial.suggest_int(key, int(low), int(high), log=log)
    return trial.suggest_float(key, float(low), float(high), log=log)


def _by_window(
    trial: optuna.Trial, candidate: Any, df: Any, score: Any, *, n_windows: int, refit: Any, options: Mapping[str, Any]
) -> float:
    """A backtest fit by fit, reported to the pruner after each."""
    parts: list[pd.DataFrame] = []
    total = 0.0
    for step, frame in enumerate(iterate(candidate, df, n_windows=n_windows, refit=refit, **options)):
        parts.append(_whole(frame))
        total = score(pd.concat(parts, ignore_index=True))
        trial.report(total, step)
        if trial.should_prune():
            raise optuna.TrialPruned
    return total


def _whole(frame: Any) -> pd.DataFrame:
    """The windows of a trial, which is given up where one of them failed: the others are no fair score."""
    table = as_pandas(frame)
    if "error" in table and table["error"].notna().any():
        raise optuna.TrialPruned(str(table["error"].dropna().iloc[0]))
    return table


def _table(study: optuna.Study, space: Mapping[str, Any]) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for trial in study.trials:
        values = {key: _value(space[key], trial.params[key]) for key in space if key in trial.params}
        seconds = trial.duration.total_seconds() if trial.duration else np.nan
        whole = trial.state == optuna.trial.TrialState.COMPLETE  # else of some windows only
        score = np.nan if trial.value is None or not whole else trial.value
        rows.append({"number": trial.number, "score": score, "state": trial.state.name, "seconds": seconds, **values})
    return pd.DataFrame(rows)
