"""A complete run in YAML: which files, which forecaster, which options. Strict, and overridden by `--key value`.

The keys are the arguments of `XLSTMForecaster`, its methods and `backtest`, read from their signatures: nothing is
listed twice. A key that does not exist is an error that names the nearest one that does.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonargparse

from .backtest import backtest
from .files import read_yaml
from .forecaster import XLSTMForecaster


@dataclass(frozen=True, kw_only=True)
class Input:
    """Files to read: long frames, .csv or .parquet.

    history  the series, with the forecaster's id, time and target columns
    static   one row per series
    future   the columns known in advance, for the time after the history
    """

    history: str
    static: str | None = None
    future: str | None = None


@dataclass(frozen=True, kw_only=True)
class Output:
    """Where to write: the fitted model (one file), the forecast and the backtest (.csv or .parquet)."""

    model: str = "runs/model.safetensors"
    forecast: str = "runs/forecast.csv"
    backtest: str = "runs/backtest.csv"


@dataclass(frozen=True, kw_only=True)
class Run:
    """A configuration, read and checked; `forecaster`, `fit`, `predict` and `backtest` hold keyword arguments."""

    input: Input
    output: Output
    forecaster: dict[str, Any]
    fit: dict[str, Any]
    predict: dict[str, Any]
    backtest: dict[str, Any]

    def build(self) -> XLSTMForecaster:
        """The forecaster, not yet fitted."""
        return XLSTMForecaster(**self.forecaster)


FRAMES: set[str | int] = {"df", "static_df", "future_df"}  # given as files
UNSAID: set[str | int] = {"forecaster", "logger", "callbacks", "fit_options"}  # objects
UNSAID |= {"warm_start", "freeze_encoder"}  # of a fitted forecaster
SECTIONS = {  # that a command reads, the one that a short option means first
    "fit": ("forecaster", "fit", "input", "output"),
    "predict": ("predict", "input", "output"),
    "backtest": ("forecaster", "backtest", "fit", "input", "output"),
}


def parser() -> jsonargparse.ArgumentParser:
    """The parser of everything a `Run` holds."""
    out = jsonargparse.ArgumentParser(prog="xlstm-forecast", exit_on_error=False, add_help=False)
    out.add_argument("--config", action="config", help="YAML file with the keys below")
    out.add_class_arguments(Input, "input")
    out.add_class_arguments(Output, "output")
    out.add_class_arguments(XLSTMForecaster, "forecaster")
    for method in ("fit", "predict"):
        out.add_method_arguments(XLSTMForecaster, method, method, skip=FRAMES | UNSAID)
    out.add_function_arguments(backtest, "backtest", skip=FRAMES | UNSAID)
    return out


def load(path: str | Path | None = None, options: Sequence[str] = (), command: str = "fit") -> Run:
    """The run of a YAML file, with `options` (["--forecaster.horizon", "12", ...]) in place of what the file says.

    An option may leave out its section: --horizon is that of the first of the command's SECTIONS that has one. Raises
    ValueError for unknown keys, options that the command does not read and values of the wrong kind, FileNotFoundError
    for a missing file.
    """
    read = parser()
    known = _known(read)
    argv = list(_full_names(options, known, command))
    if path is not None:
        check_keys(_flat(read_yaml(path), known, str(path)), known, str(path))
        argv = ["--config", str(path), *argv]
    if command == "predict":  # the saved file has it
        argv = ["--forecaster.horizon", "1", *argv]
    try:
        values = read.parse_args(argv)
    except (jsonargparse.ArgumentError, TypeError) as error:
        told = one_line(error).replace("Parser key", "key").replace("arguments are required", "keys are missing")
        raise ValueError(f"{path}: {told}" if path is not None else told) from None
    parts = {name: values[name].as_dict() for name in ("forecaster", "fit", "predict", "backtest")}
    return Run(input=Input(**values["input"].as_dict()), output=Output(**values["output"].as_dict()), **parts)


def check_keys(found: Sequence[str], known: Sequence[str], where: str) -> None:
    """ValueError for the first key that is not known, with the nearest one that is."""
    for key in found:
        if key not in known:
            raise ValueError(f"{where}: unknown key {key!r}{nearest(key, known)}")


def nearest(key: str, known: Sequence[str]) -> str:
    """ ", did you mean ...?" for the known key that is most alike, by its full or its last name; "" if none is."""
    last = {name.rpartition(".")[2]: name for name in reversed(known)}  # the first of those that end alike
    whole = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    part = difflib.get_close_matches(key.rpartition(".")[2], list(last), n=1, cutoff=0.6)
    match = whole[0] if whole else last[part[0]] if part else None
    return f"; did you mean {match!r}?" if match else f"; known: {', '.join(known)}"


def one_line(error: object) -> str:
    """A message without its line breaks."""
    return " ".join(str(error).split())


def _known(read: jsonargparse.ArgumentParser) -> list[str]:
    return [action.dest for action in read._actions if "." in action.dest]


def _flat(values: Mapping[str, Any], known: Sequence[str], where: str) -> list[str]:
    """Dotted keys of a file's sections; ValueError where a section holds something else than keys."""
    sections = {name.partition(".")[0] for name in known}
    keys: list[str] = []
    for key, value in values.items():
        if key in sections and not isinstance(value, Mapping):
            raise ValueError(f"{where}: section {key!r} holds keys, found {value!r}; give it some or remove it")
        keys += [f"{key}.{name}" for name in value] if isinstance(value, Mapping) else [str(key)]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise ValueError(f"{where}: the key {twice!r} is given twice; keep one of them")
    return keys


def _full_names(options: Sequence[str], known: Sequence[str], command: str) -> Iterator[str]:
    """Options with their section put before names that come without."""
    sections = SECTIONS[command]
    read = [key for section in sections for key in known if key.startswith(f"{section}.")]
    for option in options:
        if not option.startswith("--"):
            yield option
            continue
        name, equals, value = option[2:].partition("=")
        name = name.replace("-", "_")
        full = next((key for key in read if key == name or key.endswith(f".{name}")), name)
        if full not in read and any(key == name or key.endswith(f".{name}") for key in known):
            raise ValueError(f"option --{name} has no effect on {command}, which reads {', '.join(sections)}")
        check_keys([full], read, f"option --{name}")
        yield f"--{full}{equals}{value}"
