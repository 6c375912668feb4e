"""Sets that come with installed packages: classical series and small panels from statsmodels and sktime.

No data folder is needed. No choice had seen them when they were first scored; docs/accuracy.md tells of what came
after. Some are files of statsmodels' own tests. CO2, the Nile, El Nino and `macro` are families of the demo too. Rows
with missing values at the end of a file are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pandas as pd
from sets import Task, cut_down, wide_task

CUTS = (30, 60, 120)  # lengths of the cut-down versions


def _statsmodels(path: str) -> pd.DataFrame:
    return pd.read_csv(Path(str(files("statsmodels"))) / path)


def _sktime(path: str) -> pd.DataFrame:
    return pd.read_csv(Path(str(files("sktime"))) / "datasets" / "data" / path)


def _from(frame: pd.DataFrame | pd.Series, start: str, freq: str) -> pd.DataFrame:
    """Columns of numbers with stamps from `start` on."""
    frame = pd.DataFrame(frame).apply(pd.to_numeric, errors="coerce")
    return frame.set_index(pd.date_range(start, periods=len(frame), freq=freq))


def _loaded(loader: str, start: str, freq: str) -> pd.DataFrame:
    """What a function of sktime.datasets gives."""
    from sktime import datasets

    return _from(getattr(datasets, loader)().to_numpy(), start, freq)


def _co2(rule: str) -> pd.DataFrame:
    """Weekly readings with gaps (`W-SAT`), or means of months (`MS`)."""
    from statsmodels.datasets import co2

    return pd.DataFrame(co2.load_pandas().data["co2"].resample(rule).mean())


def _elnino() -> pd.DataFrame:
    return _from(_statsmodels("datasets/elnino/elnino.csv").iloc[:, 1:].to_numpy().ravel(), "1950-01-01", "MS")


def _fertility() -> pd.DataFrame:
    """Births per woman, a column for each country that has all years."""
    wide = _statsmodels("datasets/fertility/fertility.csv").iloc[:, 4:].T.iloc[:-2]
    return _from(wide.loc[:, wide.notna().all()].to_numpy(float), "1960-01-01", "YS")


def _investment() -> pd.DataFrame:
    frame = _statsmodels("datasets/grunfeld/grunfeld.csv").pivot(index="year", columns="firm", values="invest")
    return _from(frame.to_numpy(), "1935-01-01", "YS")


def _nowcast() -> pd.DataFrame:
    """Monthly figures of the US economy that a central bank watches, 1985 to 2016, with ragged starts."""
    folder = "tsa/statespace/tests/results/frbny_nowcast/Nowcasting/data/US"
    frame = _statsmodels(f"{folder}/2016-06-29.csv").iloc[:-3, 1:]
    monthly = frame.loc[:, frame.notna().sum() > len(frame) / 2]
    return _from(monthly, "1985-01-01", "MS")


def _stocks_and_yields() -> pd.DataFrame:
    folder = "tsa/tests/results"
    parts = [_statsmodels(f"{folder}/{name}.csv").iloc[:456, 0] for name in ("SP500", "UN", "BAA")]
    return _from(pd.concat(parts, axis=1), "1948-01-01", "MS")


_SETS: dict[str, tuple[Callable[[], pd.DataFrame], int, int, int, str]] = {  # frame, m, H, windows, freq
    "airline": (lambda: _loaded("load_airline", "1949-01-01", "MS"), 12, 12, 4, "MS"),
    "lynx": (lambda: _loaded("load_lynx", "1821-01-01", "YS"), 1, 5, 6, "YS"),
    "pbs": (lambda: _loaded("load_PBS_dataset", "1991-07-01", "MS"), 12, 12, 5, "MS"),
    "shampoo": (lambda: _loaded("load_shampoo_sales", "2000-01-01", "MS"), 12, 4, 3, "MS"),
    "uschange": (lambda: _from(_sktime("Uschange/Uschange.csv").iloc[:, 2:], "1970-01-01", "QS"), 4, 8, 5, "QS"),
    "longley": (lambda: _from(_sktime("Longley/Longley.csv").iloc[:, 1:-1], "1947-01-01", "YS"), 1, 3, 1, "YS"),
    "seatbelts": (lambda: _from(_sktime("seatbelts/seatbelts.csv").iloc[:, 1], "1969-01-01", "MS"), 12, 12, 4, "MS"),
    "solar": (lambda: _from(_sktime("solar/solar.csv").iloc[:, 1], "2021-05-01", "30min"), 48, 24, 3, "30min"),
    "sunspots": (
        lambda: _from(_statsmodels("datasets/sunspots/sunspots.csv").iloc[:, 1], "1700-01-01", "YS"), 1, 6, 12, "YS",
    ),
    "macro": (
        lambda: _from(_statsmodels("datasets/macrodata/macrodata.csv").iloc[:, 2:], "1959-01-01", "QS"), 4, 8, 6, "QS",
    ),
    "copper": (
        lambda: _from(_statsmodels("datasets/copper/copper.csv").iloc[:, 1:6], "1951-01-01", "YS"), 1, 3, 2, "YS",
    ),
    "nile": (lambda: _from(_statsmodels("datasets/nile/nile.csv").iloc[:, 1], "1871-01-01", "YS"), 1, 5, 6, "YS"),
    "elnino": (_elnino, 12, 12, 8, "MS"),
    "co2_weekly": (lambda: _co2("W-SAT"), 52, 26, 6, "W-SAT"),
    "co2_monthly": (lambda: _co2("MS"), 12, 12, 6, "MS"),
    "inflation": (
        lambda: _from(_statsmodels("datasets/interest_inflation/E6.csv").iloc[:, 2:], "1972-04-01", "QS"),
        4, 4, 6, "QS",
    ),
    "fertility": (_fertility, 1, 5, 1, "YS"),
    "investment": (_investment, 1, 4, 1, "YS"),
    "elec_equip": (
        lambda: _from(_statsmodels("datasets/elec_equip/elec_equip.csv").iloc[:, 1], "1995-01-01", "MS"),
        12, 12, 6, "MS",
    ),
    "danish_money": (
        lambda: _from(_statsmodels("datasets/danish_data/data.csv").iloc[:, 1:], "1974-01-01", "QS"), 4, 4, 3, "QS",
    ),
    "housing": (
        lambda: _from(_statsmodels("tsa/holtwinters/tests/results/housing-data.csv").iloc[:, 1], "1959-01-01", "MS"),
        12, 12, 8, "MS",
    ),
    "elec_vic": (
        lambda: _from(_statsmodels("tsa/stl/tests/results/mstl_elec_vic.csv").iloc[:, 1], "2012-01-01", "h"),
        24, 48, 10, "h",
    ),
    "nowcast": (_nowcast, 12, 12, 3, "MS"),
    "markets": (_stocks_and_yields, 12, 12, 6, "MS"),
    "gnp_yearly": (
        lambda: _from(_statsmodels("tsa/tests/results/rgnp.csv").iloc[:, 0], "1909-01-01", "YS"), 1, 4, 4, "YS",
    ),
    "deflator": (
        lambda: _from(_statsmodels("tsa/tests/results/gnpdef.csv").iloc[:, 0], "1889-01-01", "YS"), 1, 4, 4, "YS",
    ),
    "stock_prices": (
        lambda: _from(_statsmodels("tsa/tests/results/stkprc.csv").iloc[:, 0], "1871-01-01", "YS"), 1, 4, 5, "YS",
    ),
    "gnp_quarterly": (
        lambda: _from(_statsmodels("tsa/tests/results/rgnpq.csv").iloc[:, 0], "1947-01-01", "QS"), 4, 8, 4, "QS",
    ),
}  # fmt: skip


def library_tasks() -> dict[str, Callable[[], Task | None]]:
    """All sets by name, each built when called, and their cut-down versions (`sets.cut_down`, None where ruled out).

    pbs is not cut down: it ends in zeros, which no ratio to the seasonal naive can be had of.
    """
    tasks: dict[str, Callable[[], Task | None]] = {}
    for name, (frame, season, horizon, windows, freq) in _SETS.items():
        tasks[name] = lambda n=name, f=frame, a=(season, horizon, windows, freq): wide_task(n, f(), *a)
    for name, build in list(tasks.items()):
        for length in CUTS if name != "pbs" else ():
            tasks[f"{name}@{length}"] = lambda b=build, n=length: cut_down(b(), n)
    return tasks
