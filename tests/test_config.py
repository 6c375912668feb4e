"""Complete runs in YAML: strict keys, checked values, options in place of what the file says."""

from __future__ import annotations

from pathlib import Path

import pytest

from xlstm_forecast import XLSTMForecaster
from xlstm_forecast.config import Input, Output, load, nearest

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
RUNS = [path for path in CONFIGS if path.name != "language_model.yaml"]
QUICKSTART = next(path for path in RUNS if path.name == "quickstart.yaml")


def written(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_every_shipped_run_is_built_with_the_values_of_its_file(path):
    run = load(path)
    forecaster = run.build()
    assert isinstance(forecaster, XLSTMForecaster)
    assert forecaster.horizon == {"quickstart": 28, "co2": 26, "gpu": 28}[path.stem]
    for name in (run.input.history, run.input.static, run.input.future):
        assert name is None or (path.parents[1] / name).exists()


def test_the_gpu_run_asks_for_every_device_in_bf16_and_ddp():
    forecaster = load(next(path for path in RUNS if path.name == "gpu.yaml")).build()
    asked = forecaster.accelerator, forecaster.devices, forecaster.strategy, forecaster.precision
    assert asked == ("auto", "auto", "ddp", "bf16-mixed")


def test_what_the_file_leaves_out_has_the_defaults_of_the_estimator(tmp_path):
    run = load(written(tmp_path, "input: {history: a.csv}\nforecaster: {horizon: 5}\n"))
    assert run.build().get_params() == XLSTMForecaster(horizon=5).get_params()
    assert (run.input, run.output) == (Input(history="a.csv"), Output())


def test_options_replace_what_the_file_says_with_or_without_their_section():
    options = ["--forecaster.horizon", "7", "--lr=0.5", "--n_windows", "9", "--val-size", "3"]
    run = load(QUICKSTART, options, "backtest")
    assert (run.forecaster["horizon"], run.forecaster["lr"]) == (7, 0.5)
    assert (run.backtest["n_windows"], run.fit["val_size"]) == (9, 3)
    assert run.forecaster["target_col"] == "sales"


def test_a_short_option_means_the_section_that_the_command_reads_first():
    assert load(QUICKSTART, ["--horizon", "7"], "backtest").forecaster["horizon"] == 7
    run = load(QUICKSTART, ["--quantiles", "[0.3]"], "predict")
    assert (run.predict["quantiles"], list(run.forecaster["quantiles"])) == ([0.3], [0.1, 0.5, 0.9])


def test_lists_and_none_can_be_given_as_options():
    run = load(QUICKSTART, ["--past", "[]", "--lower", "null", "--forecaster.quantiles", "[0.2, 0.8]"])
    assert list(run.forecaster["past"]) == []
    assert run.forecaster["lower"] is None
    assert list(run.forecaster["quantiles"]) == [0.2, 0.8]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("input: {history: a.csv}\nforecaster: {horizn: 5}", r"'forecaster.horizn'; did you mean 'forecaster.horizon'"),
        ("input: {histroy: a.csv}\nforecaster: {horizon: 5}", r"'input.histroy'; did you mean 'input.history'"),
        ("input: {history: a.csv}\nhorizon: 5", r"unknown key 'horizon'; did you mean 'forecaster.horizon'"),
        ("inputs: {history: a.csv}\nforecaster: {horizon: 5}", r"'inputs.history'; did you mean 'input.history'"),
        ("input: {history: a.csv}\nforecaster: {horizon: many}", r"forecaster.horizon.*int.*many"),
        ("input: {history: a.csv}\nforecaster: {horizon: 5, lr: [1]}", r"forecaster.lr.*float"),
        ("input: {history: a.csv}", r"missing: forecaster.horizon"),
        ("forecaster: {horizon: 5}", r"missing: input.history"),
        ("input: a.csv\nforecaster: {horizon: 5}", r"section 'input' holds keys, found 'a.csv'"),
        ("- 1\n- 2", r"expected a mapping of keys to values, found list"),
        ("input: {history: ", r"is not YAML"),
    ],
)
def test_a_wrong_file_is_refused_and_the_key_named(tmp_path, text, told):
    path = written(tmp_path, text)
    with pytest.raises(ValueError, match=f"run.yaml.*{told}"):
        load(path)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--horizn", "5"], r"--horizn: unknown key 'horizn'; did you mean 'forecaster.horizon'"),
        (["--predict.quantiles", "[0.5]"], r"no effect on fit, which reads forecaster, fit, input, output"),
        (["--n_windows", "3"], r"--n_windows has no effect on fit"),
        (["5"], r"5"),
        (["--horizon", "5.5"], r"forecaster.horizon.*int"),
    ],
)
def test_a_wrong_option_is_refused_and_named(options, told):
    with pytest.raises(ValueError, match=told):
        load(QUICKSTART, options)


def test_a_key_unlike_any_other_lists_all_that_are_known():
    assert nearest("zzzzzz", ["a.horizon", "b.level"]) == "; known: a.horizon, b.level"


def test_a_missing_file_is_told_as_such(tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "forecaster: {horizon: 3}\nforecaster: {horizon: 2}\n",
        "forecaster: {horizon: 3, horizon: 2}\n",
        "forecaster: {horizon: 3}\nforecaster.horizon: 2\n",
    ],
)
def test_a_key_that_is_given_twice_is_refused_by_name(text: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"input: {{history: h.csv}}\n{text}")
    with pytest.raises(ValueError, match=r"(forecaster|horizon)' is given twice"):
        load(path)
