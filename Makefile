# Each target sets up what it needs: Python 3.11 or later with venv is enough to start from.
PYTHON ?= python3
BIN := .venv/bin
# Compiled once, and not by each of the first processes.
UV_INSTALL := $(BIN)/uv pip install --compile-bytecode --python $(BIN)/python --editable .
# More workers than cores, because they wait for processes and files now and then. Each worker goes through one stretch of the tests, in which those of a file share what they prepare, and then
# takes over half of what another has left.
WORKERS := $(shell $(PYTHON) -c "import os; print(os.cpu_count() * 3 // 2)")
PYTEST := $(BIN)/pytest --numprocesses $(WORKERS) --dist worksteal
CORE := kernels geometry losses registrar files

.PHONY: demo test quick slow lint kernels results clean

demo: .venv/ready
	$(BIN)/stepwarp demo --out demo --force

test: .venv/ready-dev
	$(MAKE) --jobs 2 --output-sync lint kernels
	$(PYTEST)

# What most changes can break, on images made for it.
quick: .venv/ready-dev
	$(PYTEST) -m 'not slow and not data' $(wildcard $(CORE:%=tests/%))

# Alone, because each takes a machine: processes that are killed, peers, an installation from the wheel.
slow: .venv/ready-dev
	$(BIN)/pytest -m slow

lint: .venv/ready-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/mypy

# Machine code for this processor, which the first run would make otherwise.
kernels: .venv/ready-dev
	$(BIN)/python -c "from stepwarp.kernels.cpu import kernel_files; kernel_files.prepare()"

# Every number that is committed, anew: days, resumable, and the data are needed.
results: .venv/ready-dev
	benchmarks/all.sh

clean:
	rm -rf .venv demo dist .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache

$(BIN)/uv:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

# The stamps make the second time instant; a changed pyproject.toml installs again.
.venv/ready: pyproject.toml | $(BIN)/uv
	$(UV_INSTALL)
	@touch $@

.venv/ready-dev: pyproject.toml | $(BIN)/uv
	$(UV_INSTALL) --group dev
	@touch $@
