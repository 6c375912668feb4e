"""The shipped data: reproducible from its generators, as its README says, and safe to redistribute."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

DATA = Path(__file__).parents[1] / "data"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DATA / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(name: str) -> pd.DataFrame:
    frame = pd.read_csv(DATA / f"{name}.csv", keep_default_na=True)
    return frame.assign(ds=pd.to_datetime(frame.ds)) if "ds" in frame and frame.ds.dtype != np.int64 else frame


def test_the_panel_files_are_what_the_generator_makes():
    for name, made in zip(("panel", "panel_static", "panel_future"), script("make_panel").make_panel(), strict=True):
        pd.testing.assert_frame_equal(read(name), made, check_dtype=False, check_index_type=False, rtol=1e-5)


def test_another_seed_makes_another_panel():
    make = script("make_panel").make_panel
    assert len(make(seed=1)[0]) != len(read("panel"))


@pytest.mark.parametrize("name", ["co2", "elnino", "nile", "macro"])
def test_the_real_series_are_those_of_statsmodels(name):
    pytest.importorskip("statsmodels")
    made = script("make_series").SERIES[name]().reset_index(drop=True)
    pd.testing.assert_frame_equal(read(name), made, check_dtype=False, check_freq=False, rtol=1e-12)


def test_the_panel_has_gaps_missing_values_and_late_starts():
    panel = read("panel")
    steps = panel.groupby("unique_id").ds.diff().dropna()
    starts = panel.groupby("unique_id").ds.min()
    assert (steps > pd.Timedelta(days=1)).sum() >= 3
    assert starts.nunique() >= 4
    assert 20 <= panel.sales.isna().sum() <= 200
    assert panel.groupby("unique_id").ds.max().nunique() == 1


def test_the_future_table_goes_on_where_the_history_ends():
    panel, future = read("panel"), read("panel_future")
    days = pd.date_range(panel.ds.max() + pd.Timedelta(days=1), periods=28)
    assert set(future.unique_id) == set(panel.unique_id) == set(read("panel_static").unique_id)
    assert all(list(part.ds) == list(days) for _, part in future.groupby("unique_id"))
    assert not future.isna().any().any()


def test_the_drivers_of_the_panel_are_in_its_sales():
    panel = read("panel").dropna()
    usual = panel.groupby(["unique_id", panel.ds.dt.dayofweek]).sales.transform("mean")
    ratio = panel.sales / usual
    assert ratio[panel.promotion == 1].mean() > 1.25 * ratio[panel.promotion == 0].mean()
    assert ratio[panel.holiday == "christmas"].mean() > 1.5
    assert ratio[panel.holiday == "may_day"].mean() < 0.7
    assert np.corrcoef(ratio, panel.visitors / panel.groupby("unique_id").visitors.transform("mean"))[0, 1] > 0.1


def test_the_readme_tells_the_number_of_rows_of_every_file():
    lines = (DATA / "README.md").read_text().splitlines()
    for path in sorted(DATA.glob("*.csv")):
        (line,) = [line for line in lines if line.startswith(f"| `{path.name}`")]
        assert line.split("|")[3].split(",")[0].strip() == str(len(pd.read_csv(path)))


def test_the_folder_stays_small():
    assert sum(path.stat().st_size for path in DATA.glob("*.csv")) < 1_000_000
