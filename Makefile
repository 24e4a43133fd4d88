# beamhub. `make demo` shows a beamtime; `make test` tests everything; `make help` says what else there is.

PYTHON ?= python3
PORT ?= 8000
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest --durations=20
PACKAGES := extension hub_config spawners job_notebooks cockpit_dashboards
PARTS := integration-a-to-h integration-i-to-z acceptance unit

.PHONY: help demo slurm-demo test $(PARTS) lint bench pictures lock wheel clean
.DEFAULT_GOAL := help

help:
	@echo 'make demo  [PORT=8000] [FRESH=1] [DEMO="--rate 10 …"]   a beamtime on this machine, in .demo/'
	@echo 'make slurm-demo                                         the same, with jobs on a real Slurm of two nodes'
	@echo 'make test  [TESTS="tests/unit …"]                       install what is missing and run all tests'
	@echo 'make lint                                               ruff, mypy, import-linter, notebooks without outputs'
	@echo 'make bench [ONLY=frames|jobs|processing|pages|api|ingest] [FULL=1]   run the benchmarks'
	@echo 'make pictures                                           take the pictures of README and docs/ anew'
	@echo 'make lock | wheel | clean                               renew the lock files | build the wheel | start over'

demo: $(VENV)/.runtime
	@exec $(BIN)/beamhub demo --port $(PORT) $(if $(FRESH),--fresh) $(DEMO)

slurm-demo: $(VENV)/.runtime
	@exec $(BIN)/beamhub demo --slurm --port $(PORT) $(if $(FRESH),--fresh) $(DEMO)

test: $(VENV)/.development
	@bash tests/system-packages.sh
	@$(BIN)/python -m compileall -q $(PACKAGES) # else each of thousands of processes does it
ifdef TESTS
	$(PYTEST) $(TESTS)
else
	@$(MAKE) --no-print-directory --keep-going --jobs=2 $(PARTS)
endif

# Two at a time, the longest first: most tests wait for something. Each part has servers of its own; one that fails stops no
# other. Ctrl-C and SIGTERM reach both, and make waits until both have ended what they started.
integration-a-to-h: FILES = $(wildcard tests/integration/test_[a-h]*.py)
integration-i-to-z: FILES = $(wildcard tests/integration/test_[i-z]*.py)
acceptance unit: FILES = tests/$@
$(PARTS):
	$(PYTEST) --file-by-file $(FILES)

lint: $(VENV)/.development
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tests/notebooks_without_outputs.py

bench: $(VENV)/.development
	@bash tests/system-packages.sh
	$(if $(FULL),BEAMHUB_BENCH_FULL=1 )$(BIN)/python -m tests.benchmarks $(ONLY)

pictures: $(VENV)/.development
	@bash tests/system-packages.sh
	$(BIN)/python -m tests.pictures

# for the lowest Python that is supported, valid on all later ones; what is installed is checked against these hashes
lock: $(VENV)/.development
	$(BIN)/uv pip compile $(UV_LOCK) --extra postgresql --extra oidc pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile $(UV_LOCK) --all-extras --constraint requirements.lock pyproject.toml -o requirements-dev.lock
	$(BIN)/uv pip compile $(UV_LOCK) tests/benchmarks/jupyter-scheduler.in -o tests/benchmarks/jupyter-scheduler.lock
UV_LOCK := --quiet --upgrade --universal --python-version 3.11.2 --generate-hashes --no-annotate --custom-compile-command 'make lock'

wheel: $(VENV)/.development
	$(BIN)/python -m build --wheel

clean:
	rm -rf $(VENV) .demo .bench dist build

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "beamhub needs Python 3.11 or newer: try PYTHON=python3.12")'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo 'Python came without venv: apt-get install python3-venv' >&2; exit 1; }

$(VENV)/.runtime: requirements.lock pyproject.toml | $(VENV)/bin/python
	@echo 'Installing beamhub into $(VENV) (once; one or two minutes)'
	@$(PIP) install --quiet --no-deps --require-hashes -r requirements.lock
	@$(PIP) install --quiet --no-deps --editable .
	@touch $@

$(VENV)/.development: requirements-dev.lock pyproject.toml | $(VENV)/bin/python
	@echo 'Installing beamhub and its tests into $(VENV) (once; one or two minutes)'
	@$(PIP) install --quiet --no-deps --require-hashes -r requirements-dev.lock
	@$(PIP) install --quiet --no-deps --editable .
	@touch $(VENV)/.runtime $@
