"""Many processes: refitted backtests on a Dask cluster, partitions of a Dask frame, and a worker that dies."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import joblib
import numpy as np
import pandas as pd
import pytest
from distributed import Client, LocalCluster

from xlstm_forecast import XLSTMForecaster
from xlstm_forecast.backtest import backtest
from xlstm_forecast.baselines import LastValue


def make(ids: str = "abcd") -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = 60
    return pd.DataFrame(
        {
            "unique_id": np.repeat(list(ids), rows),
            "ds": np.tile(pd.date_range("2024", periods=rows, freq="D"), len(ids)),
            "y": 50 + rng.standard_normal(rows * len(ids)).cumsum(),
        }
    )


def tiny() -> XLSTMForecaster:
    return XLSTMForecaster(horizon=4, max_steps=3, d_model=8, input_length=12, blocks="s", calendar=())


class Dying(LastValue):
    """Takes its process down in the fit of the third window, unless a file says that it did so before."""

    def __init__(self, *, horizon: int, grave: str) -> None:
        super().__init__(horizon=horizon)
        self.grave = grave

    def fit(self, df: Any, static_df: Any = None, **options: Any) -> Any:
        third = df.groupby("unique_id").size().max() == 52
        if third and not Path(self.grave).exists():
            Path(self.grave).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().fit(df, static_df, **options)


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    folder = str(tmp_path_factory.mktemp("dask"))
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, local_directory=folder, memory_limit=0
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def test_a_refitted_backtest_on_a_cluster_has_the_bits_of_the_serial_run(client):
    df = make()
    serial = backtest(tiny(), df, n_windows=4, refit=True)
    with joblib.parallel_config("dask"):
        spread = backtest(tiny(), df, n_windows=4, refit=True)
    assert serial["forecast"].notna().all()
    pd.testing.assert_frame_equal(spread, serial, check_exact=True)


def test_partitions_of_a_dask_frame_are_forecast_by_map_partitions(client):
    df = make()
    forecaster = tiny().fit(df, verbose=False)
    whole = forecaster.predict(df)
    parts = dd.from_pandas(df.set_index("unique_id"), npartitions=2).reset_index()
    spread = parts.map_partitions(forecaster.predict, meta=whole.iloc[:0]).compute()
    spread = spread.sort_values(["unique_id", "ds"], ignore_index=True)
    spread["unique_id"] = spread["unique_id"].astype(whole["unique_id"].dtype)
    pd.testing.assert_frame_equal(spread, whole, check_exact=False, rtol=1e-5)


def fit_part(part: pd.DataFrame) -> XLSTMForecaster:
    return tiny().fit(part, verbose=False)


def test_a_forecaster_per_partition_is_fitted_on_the_cluster_with_the_bits_of_the_serial_run(client):
    parts = [part for _, part in make().groupby(lambda row: row // 120)]
    assert [part["unique_id"].nunique() for part in parts] == [2, 2]
    serial = [fit_part(part).predict() for part in parts]
    with joblib.parallel_config("dask"):
        fitted = joblib.Parallel()(joblib.delayed(fit_part)(part) for part in parts)
    for one, other in zip(fitted, serial, strict=True):
        pd.testing.assert_frame_equal(one.predict(), other, check_exact=True)


def test_a_worker_that_dies_loses_nothing_that_was_finished(tmp_path):
    df = make("ab")
    whole = backtest(LastValue(horizon=4), df, n_windows=4, refit=True)
    doomed = Dying(horizon=4, grave=str(tmp_path / "grave"))
    options: dict[str, Any] = {"n_windows": 4, "refit": True, "folder": tmp_path / "run"}
    with pytest.raises(Exception, match=r"(?i)terminated|killed|worker"):
        backtest(doomed, df, n_jobs=2, **options)
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("window-*.npz")}
    assert kept
    again = backtest(doomed, df, n_jobs=2, **options)
    pd.testing.assert_frame_equal(again, whole, check_exact=True)
    assert all((tmp_path / "run" / name).stat().st_mtime_ns == time for name, time in kept.items())
