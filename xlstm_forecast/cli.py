"""The command line: `xlstm-forecast fit|predict|backtest|language --config FILE [--key value]`.

Exit status 0 on success and 2 on bad input, which is told in one line on standard error.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from .files import check_place, replacing

USAGE = """usage: xlstm-forecast COMMAND --config FILE [--key value ...]

  fit        fit on input.history, save the model in output.model
  predict    load output.model, forecast what follows input.history, write output.forecast
  backtest   forecast past windows of input.history, write output.backtest, print the scores
  language   the language model: xlstm-forecast language fit --config FILE

Every key of the file can be given as an option, with its section or, where it is the only one, without:
--forecaster.horizon 12 or --horizon 12. All keys: xlstm-forecast fit --help."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    logging.basicConfig(format="xlstm-forecast: %(message)s", level=logging.WARNING)
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments)
    except OSError as error:
        told = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except (ValueError, TypeError, ImportError) as error:
        told = str(error) or type(error).__name__
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # whatever a library below raises: one line, never a traceback
        told = f"{type(error).__name__}: {error}"
    print(f"xlstm-forecast: error: {' '.join(told.split())}", file=sys.stderr)
    return 2


def _dispatch(arguments: list[str]) -> int:
    if not arguments:
        raise ValueError("no command given: fit, predict, backtest or language; xlstm-forecast --help explains them")
    command, *rest = arguments
    _check_once(rest)
    if command in ("-h", "--help"):
        print(USAGE)
        return 0
    if command == "language":
        _language(rest)
        return 0
    from .config import load, nearest, parser

    if command not in COMMANDS:
        raise ValueError(f"unknown command {command!r}{nearest(command, [*COMMANDS, 'language'])}")
    if "-h" in rest or "--help" in rest:
        print(parser().format_help())
        return 0
    config, options = _config_option(rest)
    COMMANDS[command](load(config, options, command))
    return 0


def _check_once(arguments: list[str]) -> None:
    """Raise for an option that is given twice: one of its values would be lost."""
    names = [argument.partition("=")[0] for argument in arguments if argument.startswith("--")]
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise ValueError(f"{twice} is given twice")


def _config_option(arguments: list[str]) -> tuple[str | None, list[str]]:
    """The file of --config, and the other arguments."""
    for i, argument in enumerate(arguments):
        if argument.startswith("--config="):
            return argument.partition("=")[2], arguments[:i] + arguments[i + 1 :]
        if argument == "--config":
            if i + 1 == len(arguments):
                raise ValueError("--config needs a file name")
            return arguments[i + 1], arguments[:i] + arguments[i + 2 :]
    return None, arguments


def _fit(run: Any) -> None:
    check_place(run.output.model)
    forecaster = run.build()
    history, static = _frames(run.input, forecaster)[:2]
    forecaster.fit(history, static_df=static, **run.fit)
    forecaster.save(run.output.model)
    print(f"model saved in {run.output.model}")


def _predict(run: Any) -> None:
    from .forecaster import XLSTMForecaster

    _check_kind(run.output.forecast)
    check_place(run.output.forecast)
    forecaster = XLSTMForecaster.load(run.output.model)
    history, static, future = _frames(run.input, forecaster)
    _write(forecaster.predict(history, future_df=future, static_df=static, **run.predict), run.output.forecast)
    print(f"forecast written to {run.output.forecast}")


def _backtest(run: Any) -> None:
    from .backtest import backtest
    from .baselines import SeasonalNaive
    from .metrics import leaderboard

    _check_kind(run.output.backtest)
    check_place(run.output.backtest)
    forecaster = run.build()
    history, static, future = _frames(run.input, forecaster)
    if run.backtest.get("cutoffs") is None and run.backtest.get("align") != "calendar":
        future = None  # every window ends within the history
    windows = backtest(forecaster, history, static_df=static, future_df=future, fit_options=run.fit, **run.backtest)
    _write(windows, run.output.backtest)
    shared = {name: value for name, value in run.forecaster.items() if name in SeasonalNaive(horizon=1).get_params()}
    naive = SeasonalNaive(**shared)
    same = {name: value for name, value in run.backtest.items() if name not in ("refit", "folder")}
    tables = {"xLSTM": windows, "seasonal naive": backtest(naive, history, **same)}
    naive.fit(history)
    board = leaderboard(tables, _scores(windows), history=history, season_length=naive.season_)
    print(board.to_string(index=False, float_format="{:.4g}".format))
    print(f"backtest written to {run.output.backtest}")


def _scores(windows: pd.DataFrame) -> list[str]:
    """MASE, and where there are quantiles what they are worth."""
    from .metrics import columns_of

    columns = columns_of(windows)
    return ["mase", *(["crps"] if columns.levels else []), *(["coverage"] if columns.bands else [])]


def _language(arguments: list[str]) -> None:
    if "-h" in arguments or "--help" in arguments:
        from .language.config import usage

        print(usage())
        return
    if arguments[:1] != ["fit"]:
        raise ValueError(
            f"expected xlstm-forecast language fit --config FILE, found {' '.join(arguments) or 'nothing'}"
        )
    config, rest = _config_option(arguments[1:])
    if config is None:
        raise ValueError("language fit needs --config FILE")
    from .language import fit_from_config, parse_options

    fitted = fit_from_config(config, **parse_options(rest))
    if fitted.score is not None:
        score = fitted.score
        print(f"validation: {score.bits_per_byte:.3f} bits per byte, perplexity {score.perplexity:.2f}")
    if fitted.config.output is not None:
        print(f"model saved in {fitted.config.output}")


COMMANDS: dict[str, Callable[[Any], None]] = {"fit": _fit, "predict": _predict, "backtest": _backtest}


def _frames(files: Any, forecaster: Any) -> tuple[pd.DataFrame | None, ...]:
    """History, static table and future table, as far as they are given, with ids of the kind that is known."""
    found = [None if path is None else _read(path, forecaster) for path in (files.history, files.static, files.future)]
    fitted, id_col = getattr(forecaster, "encoding_", None), forecaster.id_col
    if fitted is not None:
        known = pd.Series(fitted.ids, dtype=object)
    else:
        known = found[0][id_col] if found[0] is not None and id_col in found[0] else pd.Series(dtype=object)
    for frame in found:
        if frame is not None and id_col in frame:
            frame[id_col] = _like(frame[id_col], known)
    return tuple(found)


def _like(ids: pd.Series, known: pd.Series) -> pd.Series:
    """Ids of a csv, which are text, as the numbers that are known from a .parquet file, and the other way round.

    They stay as they are where any would not come back the same, such as 007.
    """
    kinds = [pd.api.types.infer_dtype(x, skipna=True) for x in (ids, known)]
    if kinds == ["integer", "string"]:
        return ids.astype(str)
    if kinds == ["string", "integer"]:
        numbers = pd.to_numeric(ids, errors="coerce")
        if numbers.notna().all() and (numbers.astype("int64").astype(str) == ids).all():
            return numbers.astype("int64")
    return ids


def _read(path: str, forecaster: Any) -> pd.DataFrame:
    """A .csv or .parquet file; in a csv ids and categories stay text, and times that are not numbers become dates.

    An empty cell is missing, in columns of text nothing else is: Namibia's "NA" and a promotion "None" are values.
    """
    _check_kind(path)
    if Path(path).suffix == ".parquet":
        return pd.read_parquet(path)
    text = [name for name in (forecaster.id_col, *forecaster.categorical) if name is not None]
    try:
        frame = pd.read_csv(path, converters=dict.fromkeys(text, _cell))
    except (ValueError, pd.errors.ParserError) as error:
        raise ValueError(f"{path} cannot be read as a csv file: {error}") from error
    time = forecaster.time_col
    if time in frame and not pd.api.types.is_numeric_dtype(frame[time]):
        try:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                frame[time] = pd.to_datetime(frame[time])
            guessed = next((str(w.message) for w in told if "Could not infer format" in str(w.message)), None)
            if guessed is not None:
                raise ValueError(guessed)
        except ValueError as error:
            if "utc=True" in str(error):
                raise ValueError(
                    f"{path}: column {time!r} has times with different distances from UTC, which do not tell the "
                    "zone: write local times without them, times in UTC, or a .parquet file, which keeps the zone"
                ) from None
            raise ValueError(f"{path}: column {time!r} holds neither numbers nor dates: {error}") from None
    return frame


def _cell(text: str) -> str | None:
    """A cell of a column of text."""
    return text or None


def _write(frame: pd.DataFrame, path: str) -> None:
    with replacing(path) as file:
        if Path(path).suffix == ".parquet":
            frame.to_parquet(file, index=False)
        else:
            frame.to_csv(file, index=False)


def _check_kind(path: str) -> None:
    if Path(path).suffix not in (".csv", ".parquet"):
        raise ValueError(f"{path}: expected a file name that ends in .csv or .parquet")


if __name__ == "__main__":
    sys.exit(main())
