# Everything a bare machine with Python 3.11 needs. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= runs/demo
SEED ?= 0

.DEFAULT_GOAL := help
.PHONY: help docs install demo test test-unit lint types check clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(BIN)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -e '.[dev]'
	@touch $@

install: $(BIN)/.installed ## install everything into .venv

demo: install ## the whole chain on synthetic radiographs, about a quarter of an hour on two CPU cores
	$(BIN)/mavilt run demo --out $(OUT) --seed $(SEED)

# One worker a core, one thread a worker: two trainings that share their cores' threads are ten times
# slower than one after the other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -q -n auto --dist worksteal

test: install ## all tests, one worker a core
	$(PYTEST)

test-unit: install ## the tests that train nothing, under 90 seconds
	$(PYTEST) -m "not slow"

lint: install ## style, imports that run upwards or in circles, the tables of config keys and commands
	$(BIN)/ruff check mavilt_pl tests benchmarks docs
	$(BIN)/ruff format --check mavilt_pl tests benchmarks docs
	$(BIN)/lint-imports
	$(BIN)/python docs/config_keys.py --check
	$(BIN)/python docs/commands.py --check

docs: install ## the documentation as a site, build/site; fails on a broken link
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

types: install ## mypy
	$(BIN)/mypy

check: lint types docs test ## what CI runs

clean: ## remove caches (never runs or data)
	rm -rf .pytest_cache .mypy_cache .ruff_cache build dist *.egg-info
