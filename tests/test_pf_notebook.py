"""The notebook that switches a pytorch-forecasting pipeline over, on the generated panel and for one epoch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

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
    live, recorded = (c.outputs[-1]["data"]["text/plain"] for c in code if "stallion.table" in c.source)
    for name in ("baseline", "tft", "their xlstmtime", "xlstm"):
        assert name in live
    assert "xlstm, their loader" in recorded
    verdicts = ["".join(o["text"] for o in c.outputs) for c in code if "stallion.verdict" in c.source]
    assert all("quantile loss / TemporalFusionTransformer's" in verdict for verdict in verdicts)
    assert len(verdicts) == 2
    assert sorted(FOLDER.iterdir()) == before


def test_the_recorded_runs_on_stallion_meet_their_bars_in_every_seed_s_time(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER.parent / "benchmarks"))
    import stallion

    runs = stallion.read(stallion.RECORDED)
    seconds: dict[Any, Any] = {(r["model"], r["seed"]): r.get("cpu_seconds") for r in runs}
    assert {seed for _, seed in seconds} == {0, 1, 2}
    for seed in range(3):
        assert max(seconds["xlstm", seed], seconds["xlstm, their loader", seed]) <= seconds["tft", seed]
    shares = [float(line.split(": ")[1].split()[0]) for line in stallion.verdict(runs).splitlines()]
    for share, bar in zip(shares, (0.95, 0.7, 1, 0.7, 1, 1), strict=True):
        assert share <= bar
