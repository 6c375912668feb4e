# Every target sets up $(VENV) by itself; nothing is needed beyond Python 3.11 to 3.13 and pip's package index.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3 python; do \
	$$python -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	&& echo $$python && break; done)
VENV ?= .venv
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
# One thread: these models are small, and a second one that waits for a busy core costs more than it brings.
RUN := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
PACKAGE := $(VENV)/.package
TESTS := $(VENV)/.tests

.PHONY: demo test lint bench notebooks clean

demo: $(PACKAGE)
	$(RUN) -m benchmarks.demo

test: $(TESTS)
	$(RUN) -m pytest -n 2 --dist worksteal

lint: $(TESTS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(TESTS)
	$(RUN) -m benchmarks.predict_latency

notebooks: $(TESTS)
	$(BIN)/jupyter execute notebooks/*.ipynb

clean:
	rm -rf $(VENV) build dist demo_output *.egg-info

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "no Python 3.11, 3.12 or 3.13 found; name one: make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch first and by itself, so that a CPU-only or CUDA build can be chosen: make TORCH="torch==2.13.0 --index-url ..."
$(PACKAGE): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) $(TORCH)
	$(PIP) --editable ".[plot]"
	@touch $@

# The official xLSTM packages serve as oracles of the tests only; what they themselves would bring is not needed.
$(TESTS): $(PACKAGE)
	$(PIP) --editable ".[test]"
	$(BIN)/python -m pip install --quiet --no-deps xlstm==2.0.6 flashrnn==1.0.8
	@touch $@
