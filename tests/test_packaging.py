"""What a user installs: the wheel, its start-up cost, the README's example where there is no source tree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import xlstm_forecast
from xlstm_forecast.synthetic import frame

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def run(*command: object, cwd: Path) -> str:
    """Standard output of a command that must succeed, run without the source tree on its path."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, env=clean)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def readme_example() -> str:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return code


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy so that the tree stays clean, with the build tools that are installed."""
    source = tmp_path_factory.mktemp("source")
    shutil.copytree(ROOT / "xlstm_forecast", source / "xlstm_forecast", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", source / "dist", source, cwd=source)
    (built,) = (source / "dist").iterdir()
    return built


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory) -> Path:
    """The Python of a new environment that holds the wheel alone and sees this one's third-party packages."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home / "env", with_pip=False)
    python = home / "env" / "bin" / "python"
    target = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=home).strip()
    Path(target, "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index")
    run(*pip, "--ignore-installed", wheel, cwd=home)
    return python


def test_the_wheel_is_pure_python_and_holds_the_package_and_nothing_else(wheel):
    assert wheel.name == f"xlstm_forecast-{xlstm_forecast.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(name for name in names if name.endswith("METADATA"))).decode()
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "xlstm_forecast").rglob("*.py")}
    assert modules <= names
    assert {"xlstm_forecast/py.typed", "xlstm_forecast/pretrained/weights.safetensors"} <= names
    assert all(name.startswith(("xlstm_forecast/", "xlstm_forecast-")) for name in names)
    assert "License-Expression: Apache-2.0" in metadata
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_readme_example_runs_in_an_environment_that_has_only_the_wheel(installed, tmp_path):
    code = readme_example()
    assert len(code.strip().splitlines()) <= 12
    shutil.copytree(ROOT / "data", tmp_path / "data")
    check = (
        "\nimport xlstm_forecast, pandas\n"
        "print(xlstm_forecast.__file__)\n"
        "assert list(forecast.columns) == ['unique_id', 'ds', 'forecast', 'q0.1', 'q0.5', 'q0.9'], forecast.columns\n"
        "assert len(forecast) == 20 * 28 and forecast.notna().all().all() and (forecast['q0.1'] >= 0).all()\n"
        "loaded = XLSTMForecaster.load('runs/sales.safetensors')\n"
        "pandas.testing.assert_frame_equal(loaded.predict(sales, future), forecast)\n"
    )
    out = run(installed, "-c", code + check, cwd=tmp_path)
    assert str(installed.parents[1]) in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "runs"]


def test_the_console_script_is_installed(installed, tmp_path):
    assert "xlstm-forecast COMMAND" in run(installed.with_name("xlstm-forecast"), "--help", cwd=tmp_path)


def seconds(code: str) -> float:
    """The least CPU time of two fresh processes."""
    timed = f"import time; start = time.process_time(); {code}; print(time.process_time() - start)"
    return min(float(run(sys.executable, "-c", timed, cwd=ROOT)) for _ in range(2))


def test_importing_the_package_costs_hardly_more_than_importing_torch():
    assert seconds("import xlstm_forecast") <= 1.15 * seconds("import torch")


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, xlstm_forecast; print(*{'torch', 'lightning', 'matplotlib', 'numba'} & set(sys.modules))"
    assert run(sys.executable, "-c", code, cwd=ROOT).split() == []


def test_load_and_predict_in_a_fresh_process_import_neither_lightning_nor_matplotlib(tmp_path):
    history = frame(2, 60)
    model = xlstm_forecast.XLSTMForecaster(horizon=4, max_steps=1, d_model=8, input_length=16)
    model.fit(history, verbose=False).save(tmp_path / "model")
    history.to_csv(tmp_path / "history.csv", index=False)
    code = (
        "import sys, pandas, xlstm_forecast\n"
        "history = pandas.read_csv('history.csv', parse_dates=['ds'])\n"
        "forecast = xlstm_forecast.XLSTMForecaster.load('model').predict(history)\n"
        "print(len(forecast), *{name.partition('.')[0] for name in sys.modules})\n"
    )
    length, *modules = run(
        sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n" + code, cwd=tmp_path
    ).split()
    assert length == "8"
    heavy = {"lightning", "pytorch_lightning", "matplotlib", "pytorch_forecasting", "optuna", "jsonargparse"}
    assert not heavy & set(modules)


def test_public_names_are_listed_and_unknown_ones_refused():
    assert {"XLSTMForecaster", "sLSTM", "mLSTM", "sLSTMCell"} <= set(dir(xlstm_forecast))
    with pytest.raises(AttributeError, match="nothing"):
        xlstm_forecast.nothing  # noqa: B018


def test_constraints_hold_an_allowed_exact_version_of_every_dependency():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    assert pins[canonicalize_name("torch")] == "2.13.0"
    extras = PROJECT["optional-dependencies"]
    asked = [*PROJECT["dependencies"], *(line for name, lines in extras.items() if name != "gpu" for line in lines)]
    for requirement in map(Requirement, asked):
        if requirement.name == "xlstm-forecast":
            continue
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), str(requirement)


def test_every_make_target_sets_up_the_environment_first(tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    for target, does in {
        "demo": "-m benchmarks.demo",
        "test": "-m pytest",
        "lint": "ruff check",
        "bench": "-m benchmarks.predict_latency",
        "notebooks": "jupyter execute",
    }.items():
        steps = run("make", "--dry-run", target, cwd=tmp_path)
        places = [steps.index(part) for part in ("-m venv .venv", "torch==2.13.0", "--editable", does)]
        assert places == sorted(places)


def test_the_index_of_the_docs_links_every_page():
    index = (ROOT / "docs" / "index.md").read_text()
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert pages <= set(re.findall(r"\]\((\w+\.md)\)", index))


@pytest.mark.parametrize("page", ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_links_to_files_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text())
    missing = [link for link in links if "://" not in link and not ((ROOT / page).parent / link).exists()]
    assert not missing
