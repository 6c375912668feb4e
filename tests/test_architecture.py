"""The rules of the house, read from the source: one direction of imports, one home for each third-party library."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "xlstm_forecast"
FILES = sorted(PACKAGE.rglob("*.py"))
ORDER = [
    "_version",
    "surroundings",
    "files",
    "batch",
    "ops",
    "layers",
    "encoder",
    "scaling",
    "heads",
    "backbone",
    "models",
    "data",
    "synthetic",
    "sampling",
    "linear",
    "settings",
    "held_back",
    "parameters",
    "training",
    "checkpoint",
    "pretrained",
    "blend",
    "fitting",
    "forecaster",
    "metrics",
    "baselines",
    "backtest",
    "calibration",
    "tuning",
    "plot",
    "language",
    "config",
    "cli",
    "adapters",
]
INSIDE_METHODS = {
    "forecaster": {"metrics", "baselines", "backtest", "calibration", "plot"},
    "baselines": {"backtest"},
}
STRANGERS = [("data", "models"), ("models", "data")]
NETWORKS = ("ops", "layers", "encoder", "scaling", "heads", "models")
FREE = {"torch", "numpy", "pandas", "narwhals", "xlstm_forecast"}
HOMES = {
    "lightning": {"training"},
    "matplotlib": {"plot"},
    "numba": {"ops"},
    "llvmlite": {"ops"},
    "triton": {"ops"},
    "flashrnn": {"ops"},
    "safetensors": {"checkpoint"},
    "pyarrow": {"data"},
    "scipy": {"heads"},
    "sklearn": {"forecaster", "baselines", "backtest", "calibration", "tuning", "adapters"},
    "joblib": {"backtest"},
    "threadpoolctl": {"backtest"},
    "utilsforecast": {"metrics"},
    "scoringrules": {"metrics"},
    "tqdm": {"backtest"},
    "optuna": {"tuning"},
    "tokenizers": {"language"},
    "jsonargparse": {"config", "cli"},
    "yaml": {"files", "language"},
    "pytorch_forecasting": {"adapters"},
    "sktime": {"adapters"},
}


def module(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[str, str | None, bool]]:
    """(library, module of ours or None, at the top of the file) of every import that runs."""
    tree = ast.parse(path.read_text())
    checks = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test).endswith("TYPE_CHECKING")]
    skipped = {id(part) for check in checks for statement in check.body for part in ast.walk(statement)}
    folder = path.relative_to(PACKAGE.parent).parts[:-1]
    for node in ast.walk(tree):
        if id(node) in skipped or not isinstance(node, (ast.Import, ast.ImportFrom)):
            continue
        names = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            base = ".".join(
                (*folder[: len(folder) + 1 - node.level], *filter(None, [node.module])) if node.level else []
            )
            base = base or str(node.module)
            names = [f"{base}.{name}" for name in names] if base == "xlstm_forecast" else [base]
        for name in names:
            library, *inner = name.split(".")
            yield library, inner[0] if library == "xlstm_forecast" and inner else None, node.col_offset == 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_what_stands_before_it(path):
    here = module(path)
    if here == "__init__":
        return
    assert here in ORDER, f"give {here} its place in ORDER"
    for _, other, top in imports(path):
        if other in (None, here) or (not top and other in INSIDE_METHODS.get(here, ())):
            continue
        assert ORDER.index(other) < ORDER.index(here), f"{here} imports {other}, which stands after it"
        assert (here, other) not in STRANGERS, f"{here} and {other} must not know each other"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_library_is_imported_in_its_home_only(path):
    here = module(path)
    for library, _, _ in imports(path):
        if library in FREE or library in sys.stdlib_module_names:
            assert not (library in ("pandas", "narwhals") and here in NETWORKS), f"{here} must not know {library}"
            continue
        assert library in HOMES, f"give {library} a home in HOMES"
        assert here in HOMES[library], f"{library} belongs in {HOMES[library]}, found in {here}"


def test_the_public_names_and_nothing_heavy_are_imported_at_the_top():
    assert {library for library, _, top in imports(PACKAGE / "__init__.py") if top} <= {
        *sys.stdlib_module_names,
        "xlstm_forecast",
    }


def test_files_and_functions_stay_short():
    for path in FILES:
        text = path.read_text()
        assert text.count("\n") <= 650, f"{path.name} has {text.count(chr(10))} lines: split it into a package"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
                assert lines <= 60, f"{path.name}: {node.name} has {lines} lines"


def test_the_tree_in_the_readme_names_every_module():
    readme = (PACKAGE.parent / "README.md").read_text()
    tree = readme.split("xlstm_forecast/\n", 1)[1].split("```", 1)[0]
    top = {path.name + ("/" if path.is_dir() else "") for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    missing = sorted(name for name in top if f" {name} " not in tree)
    named = {line.split()[0] for line in tree.splitlines() if line.startswith("  ")}
    assert not missing, f"the tree in README.md lacks {missing}"
    assert named <= top, f"the tree in README.md names {sorted(named - top)}, which do not exist"
