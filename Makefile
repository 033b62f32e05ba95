# Each target is a line or two that calls a tool; `make` alone lists them.
PYTHON ?= python3
BIN    := .venv/bin
STAMP  := .venv/.minga-setup
PIP    := $(BIN)/pip install --quiet --disable-pip-version-check $(if $(CI),--no-cache-dir)

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Create .venv with all that minga needs (a second run reuses it)

# PIP_CONSTRAINT, not -c: it also replaces a constraint in the PC's own pip configuration.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
	  echo "minga needs Python 3.11, 3.12 or 3.13; $(PYTHON) is $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "  another one?   make setup PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
	  echo "$(PYTHON) lacks venv; on Debian and Ubuntu:   sudo apt install python3-venv" >&2; exit 2; }
	@echo "Installing minga into .venv (torch alone is some gigabytes: minutes)"
	$(PYTHON) -m venv .venv
	PIP_CONSTRAINT=constraints.txt $(PIP) --editable '.[dev]'
	@touch $@

demo: setup ## Train on this PC: ps + 2 workers, real digits, under a minute
	$(BIN)/minga demo

test: setup lint ## Run every check that needs no other PC
	$(BIN)/pytest tests --ignore=tests/lan

lint: setup ## Check style, types, shell and YAML
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict src
	$(BIN)/shellcheck $$(git ls-files '*.sh') .ci/run
	$(BIN)/yamllint --strict $$(git ls-files '*.yml' '*.yaml')

clean: ## Remove .venv and caches; runs/ and data/ stay
	rm -rf .venv build .pytest_cache .mypy_cache .ruff_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
