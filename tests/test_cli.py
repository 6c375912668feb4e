"""The command line, run as a user would: files in, files out, one clear line and status 2 on bad input."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from xlstm_forecast import XLSTMForecaster
from xlstm_forecast.cli import main

ROOT = Path(__file__).parents[1]
SMALL = ["--max_steps", "2", "--d_model", "8", "--blocks", "s", "--input_length", "16"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder with a small daily panel and the run that reads it."""
    monkeypatch.chdir(tmp_path)
    days = pd.date_range("2024-01-01", periods=60)
    parts = [
        pd.DataFrame({"unique_id": i, "ds": days, "y": range(k, k + 60), "kind": "01"})
        for k, i in enumerate(["007", "008"])
    ]
    pd.concat(parts).to_csv("history.csv", index=False)
    Path("run.yaml").write_text(
        "input: {history: history.csv}\n"
        "output: {model: model, forecast: out/forecast.csv, backtest: out/backtest.csv}\n"
        "forecaster: {horizon: 5, past: [kind], categorical: [kind]}\n"
        "fit: {verbose: false}\n"
        "backtest: {n_windows: 2}\n"
    )
    return tmp_path


def told(capsys) -> str:
    """The one line on standard error."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("xlstm-forecast: error: ")
    return err


def test_fit_then_predict_writes_the_days_that_follow_with_ids_as_they_were(folder, capsys):
    assert main(["fit", "--config", "run.yaml", *SMALL]) == 0
    assert main(["predict", "--config", "run.yaml", "--predict.quantiles", "[0.2, 0.8]"]) == 0
    assert "out/forecast.csv" in capsys.readouterr().out
    forecast = pd.read_csv("out/forecast.csv", dtype={"unique_id": "str"}, parse_dates=["ds"])
    assert list(forecast.columns) == ["unique_id", "ds", "forecast", "q0.2", "q0.8"]
    assert list(forecast.unique_id) == ["007"] * 5 + ["008"] * 5
    assert list(forecast.ds[:5]) == list(pd.date_range("2024-03-01", periods=5))
    assert sorted(path.name for path in folder.iterdir()) == ["history.csv", "model", "out", "run.yaml"]


def test_parquet_in_and_out_gives_the_forecast_of_csv(folder):
    frame = pd.read_csv("history.csv", dtype={"unique_id": "str", "kind": "str"}, parse_dates=["ds"])
    frame.to_parquet("history.parquet", index=False)
    assert main(["fit", "--config", "run.yaml", *SMALL]) == 0
    assert main(["predict", "--config", "run.yaml"]) == 0
    parquet = ["--input.history", "history.parquet", "--output.forecast", "f.parquet"]
    assert main(["predict", "--config", "run.yaml", *parquet]) == 0
    read = pd.read_csv("out/forecast.csv", dtype={"unique_id": "str"}, parse_dates=["ds"])
    pd.testing.assert_frame_equal(pd.read_parquet("f.parquet"), read, check_dtype=False, rtol=1e-9)


def test_backtest_writes_the_windows_and_prints_scores_beside_seasonal_naive(folder, capsys):
    assert main(["backtest", "--config", "run.yaml", *SMALL]) == 0
    result = pd.read_csv("out/backtest.csv", parse_dates=["ds", "cutoff"])
    assert len(result) == 2 * 2 * 5
    assert (result.ds > result.cutoff).all()
    out = capsys.readouterr().out
    assert all(name in out for name in ("mase", "crps", "coverage80", "seasonal naive", "xLSTM"))


def test_numbered_steps_stay_numbers(folder):
    pd.DataFrame({"unique_id": "a", "ds": range(1900, 1960), "y": range(60)}).to_csv("history.csv", index=False)
    options = ["--past", "[]", "--categorical", "[]"]
    assert main(["fit", "--config", "run.yaml", *SMALL, *options]) == 0
    assert main(["predict", "--config", "run.yaml"]) == 0
    assert list(pd.read_csv("out/forecast.csv").ds) == [1960, 1961, 1962, 1963, 1964]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "no command given"),
        (["ft"], "unknown command 'ft'; did you mean 'fit'?"),
        (["fit", "--config"], "--config needs a file name"),
        (["fit", "--config", "none.yaml"], "none.yaml"),
        (["fit", "--config", "run.yaml", "--horizn", "5"], "did you mean 'forecaster.horizon'?"),
        (["fit", "--config", "run.yaml", "--forecaster.horizon", "x"], "forecaster.horizon"),
        (["fit", "--config", "run.yaml", "--input.history", "none.csv"], "none.csv: No such file"),
        (["fit", "--config", "run.yaml", "--input.history", "run.yaml"], "ends in .csv or .parquet"),
        (["fit", "--config", "run.yaml", "--target_col", "sales"], "'sales'"),
        (["fit", "--config", "run.yaml", "--time_col", "unique_id"], "'unique_id'"),
        (["fit", "--config", "run.yaml", "--forecaster.quantiles", "[0.5, 1.5]"], "1.5"),
        (["fit", "--config", "run.yaml", "--forecaster.devices", "0"], "devices=0"),
        (["predict", "--config", "run.yaml", "--output.forecast", "f.txt"], "f.txt: expected a file name"),
        (["predict", "--config", "run.yaml"], "model"),
        (["backtest", "--config", "run.yaml", "--n_windows", "50"], "50"),
        (["fit", "--config", "run.yaml", "--horizon", "2", "--horizon=3"], "--horizon is given twice"),
        (["language", "fit", "--config", "run.yaml", "--config", "run.yaml"], "--config is given twice"),
    ],
)
def test_bad_input_is_told_in_one_line_with_status_2_and_leaves_nothing(folder, capsys, arguments, line):
    assert main(arguments) == 2
    assert line in told(capsys)
    assert sorted(path.name for path in folder.iterdir()) == ["history.csv", "run.yaml"]


@pytest.mark.parametrize(
    "text", ["", "unique_id,ds,y\n", "unique_id,ds,y\na,1,2,3\na,1\n", "unique_id,ds,y\na,2024-13-45,1\n"]
)
def test_a_spoiled_csv_is_told_in_one_line(folder, capsys, text):
    Path("history.csv").write_text(text)
    assert main(["fit", "--config", "run.yaml", "--past", "[]", "--categorical", "[]"]) == 2
    line = told(capsys)
    assert text or "history.csv cannot be read as a csv file" in line


def test_local_times_over_a_clock_change_are_told_what_to_do(folder, capsys):
    frame = pd.read_csv("history.csv").head(60)
    frame["ds"] = pd.date_range("2024-03-20", periods=60, tz="Europe/Berlin").astype(str)
    frame.to_csv("history.csv", index=False)
    assert main(["fit", "--config", "run.yaml", *SMALL, "--past", "[]", "--categorical", "[]"]) == 2
    assert "history.csv: column 'ds' has times with different distances from UTC" in told(capsys)


def test_help_lists_the_commands_and_every_key(capsys):
    assert main(["--help"]) == 0
    usage = capsys.readouterr().out
    assert all(command in usage for command in ("fit", "predict", "backtest", "language"))
    assert main(["fit", "--help"]) == 0
    keys = capsys.readouterr().out
    assert all(key in keys for key in ("--forecaster.horizon", "--fit.val_size", "--input.future"))
    for arguments in (["language", "--help"], ["language", "fit", "-h"]):
        assert main(arguments) == 0
        keys = capsys.readouterr().out
        assert "--train_data (str | list[str]; needed)" in keys
        assert "--lr (float; default 0.003)" in keys


def test_the_process_ends_with_status_2_and_no_traceback():
    done = subprocess.run(
        [sys.executable, "-m", "xlstm_forecast.cli", "fit", "--horizon", "x"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("xlstm-forecast: error: ")


def test_the_gpu_run_trains_on_a_cpu_and_says_what_it_fell_back_to(capsys, caplog, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.chdir(ROOT)
    options = ["--output.model", str(tmp_path / "model"), "--fit.verbose", "false", "--batch_size", "8", *SMALL]
    assert main(["fit", "--config", "configs/gpu.yaml", *options]) == 0
    assert all(word in caplog.text for word in ("no GPU found", "float32", "one process"))


def test_words_that_pandas_takes_for_missing_are_ids_and_categories(folder, capsys):
    history = pd.read_csv("history.csv", dtype="str")
    history["unique_id"] = history["unique_id"].replace({"007": "NA"})
    history["kind"] = ["None", "null", ""] * 40
    history.loc[3, "y"] = "NA"
    history.to_csv("history.csv", index=False)
    assert main(["fit", "--config", "run.yaml", "--on_gap", "mask", *SMALL]) == 0
    fitted = XLSTMForecaster.load("model")
    assert fitted.encoding_.ids == ["008", "NA"]
    assert fitted.encoding_.categories["kind"] == ["None", "null"]


def test_whole_numbers_are_given_as_options(folder, capsys):
    history = pd.read_csv("history.csv", dtype={"unique_id": "str", "kind": "str"})
    history.assign(ds=list(range(60)) * 2).to_csv("history.csv", index=False)
    linear = ["--model", "linear", "--freq", "1"]
    assert main(["fit", "--config", "run.yaml", *linear]) == 0
    assert XLSTMForecaster.load("model").encoding_.freq == 1
    assert main(["backtest", "--config", "run.yaml", *linear, "--refit", "true", "--span", "30"]) == 0


def test_a_backtest_reads_known_columns_beyond_the_history(folder, capsys):
    days = pd.date_range("2024-01-01", periods=65)
    parts = [pd.DataFrame({"unique_id": i, "ds": days, "y": range(65), "x": range(65)}) for i in "ab"]
    whole = pd.concat(parts)
    whole[whole["ds"] < "2024-03-01"].to_csv("history.csv", index=False)
    whole[whole["ds"] >= "2024-03-01"].drop(columns="y").to_csv("future.csv", index=False)
    options = ["--forecaster.past", "[]", "--forecaster.categorical", "[]", "--forecaster.future", "[x]"]
    options += ["--model", "linear", "--cutoffs", "['2024-02-26']"]
    assert main(["backtest", "--config", "run.yaml", "--input.future", "future.csv", *options]) == 0
    found = pd.read_csv("out/backtest.csv")
    assert len(found) == 10
    assert found["forecast"].notna().all()
    assert main(["backtest", "--config", "run.yaml", *options]) == 2


def test_predict_needs_nothing_of_the_forecaster_in_its_file(folder):
    assert main(["fit", "--config", "run.yaml", *SMALL]) == 0
    assert main(["predict", "--history", "history.csv", "--model", "model", "--forecast", "bare.csv"]) == 0
    assert len(pd.read_csv("bare.csv")) == 10


def test_ids_that_are_numbers_are_the_same_in_both_kinds_of_files(folder):
    frame = pd.read_csv("history.csv", dtype={"kind": "str"}, parse_dates=["ds"])
    assert frame.unique_id.dtype == "int64"
    frame.to_csv("n.csv", index=False)
    frame.to_parquet("n.parquet", index=False)
    pd.DataFrame({"unique_id": [7, 8], "size": [1.0, 2.0]}).to_csv("static.csv", index=False)
    static = ["--input.static", "static.csv", "--forecaster.static", "[size]"]
    for fitted in ("n.csv", "n.parquet"):
        assert main(["fit", "--config", "run.yaml", "--history", fitted, *SMALL, *static]) == 0
        for read in ("n.csv", "n.parquet"):
            out = ["--output.forecast", f"{read}.out.csv", "--input.static", "static.csv"]
            assert main(["predict", "--config", "run.yaml", "--history", read, *out]) == 0
        assert Path("n.csv.out.csv").read_text() == Path("n.parquet.out.csv").read_text()


def test_a_place_that_cannot_be_written_to_is_told_before_the_fit(folder, capsys, monkeypatch):
    monkeypatch.setattr("xlstm_forecast.cli._frames", lambda *_: pytest.fail("it was read first"))
    Path("file").touch()
    assert main(["fit", "--config", "run.yaml", "--output.model", "."]) == 2
    assert "it is a folder" in told(capsys)
    assert main(["backtest", "--config", "run.yaml", "--output.backtest", "file/b.csv"]) == 2
    assert "file is a file, not a folder" in told(capsys)


def test_a_failed_write_leaves_the_file_that_was_there(folder, capsys, monkeypatch):
    assert main(["fit", "--config", "run.yaml", *SMALL]) == 0
    assert main(["predict", "--config", "run.yaml"]) == 0
    before = Path("out/forecast.csv").read_text()
    capsys.readouterr()

    def broken(frame: pd.DataFrame, path: Path, **_: object) -> None:
        Path(path).write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", broken)
    assert main(["predict", "--config", "run.yaml"]) == 2
    assert "out/forecast.csv: No space left" in told(capsys)
    assert Path("out/forecast.csv").read_text() == before
    assert [path.name for path in Path("out").iterdir()] == ["forecast.csv"]


def test_a_table_of_future_values_may_hold_the_past_too(folder):
    frame = pd.read_csv("history.csv", dtype={"unique_id": "str"}).assign(price=1.0)
    frame.to_csv("history.csv", index=False)
    frame[["unique_id", "ds", "price"]].to_csv("price.csv", index=False)
    options = ["--input.future", "price.csv", "--forecaster.future", "[price]", *SMALL]
    assert main(["backtest", "--config", "run.yaml", *options]) == 0


def test_days_before_months_are_read_without_a_word(folder, capfd):
    frame = pd.read_csv("history.csv", dtype={"unique_id": "str"}, parse_dates=["ds"])
    frame["ds"] = (frame.ds + pd.Timedelta("12D")).dt.strftime("%d/%m/%Y")  # from 13/01/2024 on
    frame.to_csv("days.csv", index=False)
    capfd.readouterr()
    assert main(["fit", "--config", "run.yaml", "--history", "days.csv", *SMALL]) == 0
    assert capfd.readouterr().err == ""
