"""The notebooks: short, without outputs, and running on a small setting."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"
SMALL = {
    "quickstart": "MAX_STEPS = 3",
    "backtest_and_calibrate": "MAX_STEPS, N_WINDOWS = 3, 6",
    "covariates": "MAX_STEPS = 3",
}


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_are_stripped_and_valid(path):
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    for cell in book.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
            compile(cell.source, path.name, "exec")


def test_the_quickstart_has_at_most_35_lines_of_code():
    lines = [line for cell in read("quickstart").cells if cell.cell_type == "code" for line in cell.source.splitlines()]
    assert len([line for line in lines if line.strip()]) <= 35


@pytest.mark.parametrize("name", SMALL)
def test_notebooks_run_and_show_their_figures(name, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(FOLDER.parent), os.environ.get("PYTHONPATH", "")]))
    before = sorted(FOLDER.iterdir())
    book = read(name)
    (parameters,) = [cell for cell in book.cells if "parameters" in cell.metadata.get("tags", [])]
    parameters.source = SMALL[name]
    NotebookClient(book, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}).execute()
    for cell in book.cells:
        if cell.cell_type == "code" and cell.source.splitlines()[-1].startswith("plot_"):
            assert any("image/png" in output.get("data", {}) for output in cell.outputs), cell.source
        shown = [output for output in cell.get("outputs", []) if output.output_type == "stream"]
        assert not [output for output in shown if output.name == "stderr"], shown
    assert sorted(FOLDER.iterdir()) == before
