"""Writes the shipped real series (co2, elnino, nile, macro) from statsmodels' public-domain data sets.

Run `python data/make_series.py`: the files are the same every time. The only changes are of shape: a long frame
(unique_id, ds, y), an empty cell for a missing value.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from statsmodels import datasets


def co2() -> pd.DataFrame:
    """Weekly CO2 above Mauna Loa in ppm, Saturdays, 1958-2001; 59 weeks without a measurement."""
    weekly = datasets.co2.load_pandas().data["co2"].asfreq("W-SAT")
    return pd.DataFrame({"unique_id": "mauna_loa", "ds": weekly.index, "y": weekly.to_numpy()})


def elnino() -> pd.DataFrame:
    """Monthly sea-surface temperature of the El Nino 1+2 region in degrees Celsius, 1950-2010."""
    wide = datasets.elnino.load_pandas().data.set_index("YEAR")
    months = pd.date_range(f"{int(wide.index[0])}-01-01", periods=wide.size, freq="MS")
    return pd.DataFrame({"unique_id": "nino_1_2", "ds": months, "y": wide.to_numpy().ravel()})


def nile() -> pd.DataFrame:
    """Yearly flow of the Nile at Aswan in 1e8 m3, 1871-1970; the time is an integer, the year."""
    data = datasets.nile.load_pandas().data
    return pd.DataFrame({"unique_id": "aswan", "ds": data["year"].astype("int64"), "y": data["volume"]})


def macro() -> pd.DataFrame:
    """Twelve quarterly series of the US economy, 1959Q1-2009Q3, in the units of the source."""
    data = datasets.macrodata.load_pandas().data
    quarters = pd.date_range("1959-01-01", periods=len(data), freq="QS")
    wide = data.drop(columns=["year", "quarter"]).set_index(quarters).rename_axis("ds")
    return wide.reset_index().melt("ds", var_name="unique_id", value_name="y")[["unique_id", "ds", "y"]]


SERIES = {"co2": co2, "elnino": elnino, "nile": nile, "macro": macro}

if __name__ == "__main__":
    for name, build in SERIES.items():
        build().to_csv(Path(__file__).with_name(f"{name}.csv"), index=False, lineterminator="\n")
