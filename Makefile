# Two commands do everything on a bare machine with python3 (and java and mvn for the real broker): make demo, make test.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SECONDS ?=
RUNS ?= 2000
PYTEST := $(BIN)/python -m pytest
# Most of these tests wait for something: two workers, a file each, the long ones (system tests) first.
SPREAD := -n 2 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help demo test unit integration chaos fuzz lint bench soak clean

help: ## Show what each target does
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 20

$(STAMP): pyproject.toml constraints.txt
	@echo "==> making the virtual environment in $(VENV) (the first time takes a minute or two)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "k2ray needs Python 3.11 or newer; this is $$($(PYTHON) --version). Try: make PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP) ## Record a simulated exchange and answer questions about it (SECONDS=30 ends by itself)
	@exec $(BIN)/k2ray demo $(if $(SECONDS),--seconds $(SECONDS))

lint: $(STAMP) ## ruff, mypy --strict, import-linter
	@echo "==> ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet . || { echo "run: $(BIN)/ruff format ."; exit 1; }
	@echo "==> mypy --strict"
	@$(BIN)/mypy
	@echo "==> import-linter"
	@$(BIN)/lint-imports --no-logo

test: lint ## Everything that CI runs: lint, unit, integration on real components, the quick chaos cases
	@echo "==> unit, integration and the quick chaos cases"
	@$(PYTEST) -m 'not chaos_full' $(SPREAD)

unit: $(STAMP) ## Only the tests that need no socket and no Ray
	@$(PYTEST) tests/unit

integration: $(STAMP) ## Only the tests on real components
	@$(PYTEST) tests/integration

chaos: $(STAMP) ## Kill everything on purpose, under load, and compare ids (all cases)
	@$(PYTEST) tests -m 'chaos or chaos_full'

fuzz: $(STAMP) ## The randomised simulation of the ledger, longer (RUNS=2000)
	@$(BIN)/python -m tests.fuzz.ledger --runs $(RUNS)

bench: $(STAMP) ## Every benchmark; each prints a table, writes benchmarks/results/*.json and is shown in the README
	@$(BIN)/python -m benchmarks.all
	@$(BIN)/python -m benchmarks.render

soak: $(STAMP) ## The whole system for HOURS=1 under load, judged by ids and samples; the report is k2ray-soak/report.html
	@exec $(BIN)/k2ray soak --hours $(or $(HOURS),1) $(if $(RATE),--rate $(RATE))

clean: ## Remove what the targets made: environment, caches, demo data
	@rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache k2ray-data k2ray-demo k2ray-soak
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
