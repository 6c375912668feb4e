"""Hyper-parameter search by backtest scores with optuna (needs the extra "tune"): pruned, resumable, reproducible."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
import pandas as pd
from sklearn.base import clone

from .backtest import backtest, iterate
from .metrics import METRICS, as_pandas, evaluate


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
    ("sqlite:///tune.db") keeps the trials: the same call goes on until there are `n_trials` in all. `options` go to
    `backtest`; `timeout` in seconds ends the search between trials.

    Raises:
        ValueError: an empty space, an unknown parameter or metric, or a range that is none.
    """
    _check(forecaster, space, metric, n_trials)
    optuna.logging.set_verbosity(optuna.logging.INFO if verbose else optuna.logging.WARNING)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=4) if prune else optuna.pruners.NopPruner()
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        load_if_exists=storage is not None,
        sampler=optuna.samplers.TPESampler(seed=seed),
        pruner=pruner,
        direction="minimize",
    )
    finished = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    if study.trials:
        study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials))
    left = n_trials - len(study.get_trials(deepcopy=False, states=finished))

    def score(frame: Any) -> float:
        past = df if history is None else history
        row = evaluate(frame, [metric], history=past, season_length=season_length)
        return float(np.mean(row.to_numpy()))

    def objective(trial: optuna.Trial) -> float:
        candidate = clone(forecaster).set_params(**{key: _suggest(trial, key, value) for key, value in space.items()})
        if refit is False:
            return score(backtest(candidate, df, n_windows=n_windows, **options))
        return _by_window(trial, candidate, df, score, n_windows=n_windows, refit=refit, options=options)

    if left > 0:
        study.optimize(objective, n_trials=left, timeout=timeout)
    done = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    if not done:
        raise ValueError(f"none of the {len(study.trials)} trials finished: raise n_trials or timeout")
    best = study.best_params
    chosen = {key: _value(space[key], best[key]) for key in space}
    return Tuned(chosen, float(study.best_value), clone(forecaster).set_params(**chosen), _table(study, space), study)


def _check(forecaster: Any, space: Mapping[str, Any], metric: str, n_trials: int) -> None:
    if not space:
        raise ValueError("space is empty: name at least one parameter, as {'d_model': [32, 64]}")
    known = forecaster.get_params(deep=False)
    for key, value in space.items():
        if key not in known:
            raise ValueError(
                f"space names {key!r}, which is no parameter of {type(forecaster).__name__}: {sorted(known)}"
            )
        if not _is_choice(value) and not (
            isinstance(value, tuple)
            and len(value) in (2, 3)
            and all(isinstance(v, (int, float)) for v in value[:2])
            and value[0] < value[1]
            and value[2:] in ((), ("log",))
        ):
            raise ValueError(f"space[{key!r}]={value!r}: a list of choices, (low, high) or (low, high, 'log')")
    errors = [name for name in METRICS if name not in ("coverage", "width", "bias")]
    if metric not in errors:
        raise ValueError(f"metric={metric!r} cannot be minimised: choose from {', '.join(errors)}")
    if isinstance(n_trials, bool) or not isinstance(n_trials, (int, np.integer)) or n_trials < 1:
        raise ValueError(f"n_trials={n_trials!r}: it must be an integer of at least 1")


def _is_choice(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0


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
        parts.append(as_pandas(frame))
        total = score(pd.concat(parts, ignore_index=True))
        trial.report(total, step)
        if trial.should_prune():
            raise optuna.TrialPruned
    return total


def _table(study: optuna.Study, space: Mapping[str, Any]) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for trial in study.trials:
        values = {key: _value(space[key], trial.params[key]) for key in space if key in trial.params}
        seconds = trial.duration.total_seconds() if trial.duration else np.nan
        score = np.nan if trial.value is None else trial.value
        rows.append({"number": trial.number, "score": score, "state": trial.state.name, "seconds": seconds, **values})
    return pd.DataFrame(rows)
