"""A call neither depends on what torch keeps for the whole process nor changes it; columns stay those of the fit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from xlstm_forecast import XLSTMForecaster, pretrained

DF = pd.DataFrame({"unique_id": "a", "ds": pd.date_range("2024", periods=60), "y": np.arange(60) % 7 + 0.5})
DF["x"] = np.sin(np.arange(60.0))


def tiny(**changes: Any) -> XLSTMForecaster:
    sizes: dict[str, Any] = {"d_model": 8, "num_heads": 2, "blocks": "s", "input_length": 16}
    return XLSTMForecaster(horizon=4, max_steps=2, networks=1, **sizes | changes)


@pytest.fixture(autouse=True)
def default_dtype() -> Iterator[None]:
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize("first", [torch.float64, torch.float32])
def test_the_default_dtype_changes_nothing(first: torch.dtype, tmp_path: Path) -> None:
    second = torch.float32 if first == torch.float64 else torch.float64
    pretrained.network.cache_clear()
    torch.set_default_dtype(first)
    fitted = tiny().fit(DF, verbose=False)
    before = fitted.predict()
    fitted.save(tmp_path / "f")
    torch.set_default_dtype(second)
    for found in (fitted.predict(), XLSTMForecaster.load(tmp_path / "f").predict(DF), tiny().fit(DF).predict()):
        pd.testing.assert_frame_equal(found, before)
    assert torch.get_default_dtype() == second


def test_random_numbers_are_left_alone(tmp_path: Path) -> None:
    fitted = tiny().fit(DF, verbose=False)
    fitted.save(tmp_path / "f")
    history = DF[["y"]].to_numpy().T
    for call in (
        lambda: tiny().fit(DF, verbose=False),
        lambda: fitted.predict(n_samples=3),
        lambda: XLSTMForecaster.load(tmp_path / "f"),
        lambda: pretrained.quantiles(history, (7,), 4, (0.5,)),
    ):
        pretrained.network.cache_clear()
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        call()
        assert torch.equal(torch.rand(3), expected)


def test_a_fit_within_inference_mode_is_the_fit_outside() -> None:
    expected = tiny().fit(DF, verbose=False).predict()
    with torch.inference_mode():
        inside = tiny().fit(DF, verbose=False)
    pd.testing.assert_frame_equal(inside.predict(), expected)


@pytest.mark.parametrize("changes", [{"future": ["x"]}, {"past": ["x"]}, {"target_col": ["y", "x"]}], ids=str)
@pytest.mark.parametrize("loaded", [False, True])
def test_columns_named_after_the_fit_are_refused(changes: dict[str, Any], loaded: bool, tmp_path: Path) -> None:
    fitted = tiny().fit(DF, verbose=False)
    if loaded:
        fitted.save(tmp_path / "f")
        fitted = XLSTMForecaster.load(tmp_path / "f")
    before = fitted.predict(DF)
    name = next(iter(changes))
    fitted.set_params(**changes)
    for call in (lambda: fitted.predict(DF), lambda: fitted.fit(DF, warm_start=True, verbose=False)):
        with pytest.raises(ValueError, match=rf"{name}=\[.*'x'\]: this forecaster was fitted with .*; fit again"):
            call()
    fitted.set_params(**{name: "y" if name == "target_col" else ()})
    pd.testing.assert_frame_equal(fitted.predict(DF), before)


@pytest.mark.parametrize(
    "columns", [{"id_col": 0}, {"time_col": 0}, {"target_col": 0}, {"target_col": [0]}, {"past": 0}]
)
def test_numbers_as_names_of_columns_are_refused_by_role(columns: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"(id|time|target|past) column 0: .* df.rename\(columns=str\)"):
        tiny(**columns).fit(DF.rename(columns={"y": 0}))


@pytest.mark.parametrize(
    "changes",
    [
        {"past": DF.columns[3:]}, {"past": pd.Series(["x"])}, {"past": {"x"}}, {"quantiles": pd.Series([0.1, 0.9])},
        {"lr": np.float32(1e-3), "dropout": np.float32(0.1)}, {"calendar": pd.Index(["dayofweek"])},
    ],
    ids=str,
)  # fmt: skip
def test_arguments_of_any_collection_and_number_type_are_saved(changes: dict[str, Any], tmp_path: Path) -> None:
    fitted = tiny(**changes).fit(DF, verbose=False)
    fitted.save(tmp_path / "f")
    pd.testing.assert_frame_equal(XLSTMForecaster.load(tmp_path / "f").predict(DF), fitted.predict(DF))
