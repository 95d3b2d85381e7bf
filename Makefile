# Every target works on a fresh clone: the environment is made when it is missing.
PYTHON ?= python3
TORCH  ?= torch==2.13.0
export OMP_NUM_THREADS ?= 1
PY := .venv/bin/python
HMR := .venv/bin/hmr

.PHONY: setup test lint
setup: .venv/ready
.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(PY) -m pip install -q --upgrade pip
	$(PY) -m pip install -q $(TORCH)
	$(PY) -m pip install -q -e ".[dev]"
	touch $@

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

test: lint
	$(PY) -m pytest
