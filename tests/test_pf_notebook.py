"""The notebook that switches a pytorch-forecasting pipeline over, on the generated panel and for one epoch."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest

pytest.importorskip("pytorch_forecasting")
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"


def test_the_switched_pipeline_runs_and_shows_the_table_and_a_figure(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(FOLDER.parent), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.delenv("XLSTM_FORECAST_DATA", raising=False)
    before = sorted(FOLDER.iterdir())
    book = nbformat.read(FOLDER / "pytorch_forecasting.ipynb", as_version=4)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    (parameters,) = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    parameters.source = "SEEDS, EPOCHS = 1, 1"
    setup = next(cell for cell in code if "import stallion" in cell.source)
    setup.source += "\nstallion.EPOCH_BATCHES, stallion.BATCH = 2, 32"
    training = next(cell for cell in code if "pl.Trainer" in cell.source)
    training.source = training.source.replace("limit_train_batches=50", "limit_train_batches=2")
    resources = {"metadata": {"path": str(FOLDER)}}
    NotebookClient(book, timeout=300, kernel_name="python3", resources=resources).execute()
    plot = next(cell for cell in code if cell.source.splitlines()[-1].startswith("plot_forecast"))
    assert any("image/png" in output.get("data", {}) for output in plot.outputs)
    shown = next(cell for cell in code if "stallion.table" in cell.source).outputs[-1]["data"]["text/plain"]
    for name in ("baseline", "tft", "their xlstmtime", "xlstm, their loader"):
        assert name in shown
    verdict = "".join(output["text"] for output in code[-1].outputs)
    assert "quantile loss / TemporalFusionTransformer's" in verdict
    assert sorted(FOLDER.iterdir()) == before
