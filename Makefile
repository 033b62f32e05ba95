# Each target is a line or two that calls a tool; `make` alone lists them.
PYTHON ?= python3
BIN    := .venv/bin
STAMP  := .venv/.minga-setup
PIP    := $(BIN)/pip install --disable-pip-version-check $(if $(CI),--no-cache-dir --quiet)

# The LAN: INVENTORY=file, LIMIT=pc, CHECK=1 (report only), ASK_PASS=1 (sudo's password), DATASET=folder,
# RUN=id, NEW=1, TAIL=lines; FORCE=1 (another's lock, uncollected results), KEEP_DOCKER=1 (purge)
INVENTORY ?= inventory.ini
FLAGS = --inventory $(INVENTORY) $(if $(LIMIT),--limit '$(LIMIT)') $(if $(CHECK),--check --diff) \
  $(if $(ASK_PASS),--ask-become-pass)
PLAY = ANSIBLE_CONFIG=ansible/ansible.cfg $(BIN)/ansible-playbook $(FLAGS)
# The same, with a table of each PC's outcome, and exit status 3 if one failed.
WORK = $(BIN)/python -m minga.deploy.play $(FLAGS)
# Many small files become a few shards in build/data, once.
PACK = $(BIN)/python -m minga.deploy.packing --inventory $(INVENTORY)
export DATASET VAL_DATASET RUN NEW TAIL FORCE KEEP_DOCKER

.DEFAULT_GOAL := help
.PHONY: help setup demo plan test test-unit test-cluster lint check image deploy train status logs stop collect purge lan-test lan-test-long drills fuzz bench clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) $(if $(DEV),.venv/.minga-dev) ## Create .venv with what a user needs; DEV=1: with tests and lints, too

# PIP_CONSTRAINT, not -c: it also replaces a constraint in the PC's own pip configuration.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
	  echo "minga needs Python 3.11, 3.12 or 3.13; $(PYTHON) is $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "  another one?   make setup PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
	  echo "$(PYTHON) has no venv; on Debian and Ubuntu:   sudo apt install python3-venv" >&2; exit 2; }
	@echo "Installing PyTorch into .venv: some gigabytes, minutes"
	$(PYTHON) -m venv .venv
	PIP_CONSTRAINT=constraints.txt $(PIP) torch torchvision
	@echo "Installing minga"
	PIP_CONSTRAINT=constraints.txt $(PIP) --quiet --editable .
	@touch $@

# Extras of pyproject.toml: .venv/.minga-deploy stands for .[deploy].
.venv/.minga-%: $(STAMP)
	@echo "Installing what 'make $(firstword $(MAKECMDGOALS))' needs ($*)"
	PIP_CONSTRAINT=constraints.txt $(PIP) --quiet --editable '.[$*]'
	@touch $@

demo: setup ## Train on this PC: ps + 2 workers, real digits, under a minute
	$(BIN)/minga demo

plan: setup ## Predict what 4 to 64 PCs do for ImageNet; ARGS='--pcs 8x1000' for others
	@$(BIN)/minga plan $(ARGS)

test: lint test-unit test-cluster ## Run every check that needs no other PC

test-unit: .venv/.minga-dev .venv/.minga-deploy ## Run the tests of single parts
	$(BIN)/pytest tests/unit tests/infra -n 2

test-cluster: .venv/.minga-dev ## Run the tests with real processes on this PC
	$(BIN)/pytest tests/cluster -n 2 --dist loadfile

lint: .venv/.minga-dev .venv/.minga-deploy .venv/.minga-deploy-checks ## Check style, types, shell, YAML, playbooks, Dockerfile
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict src
	$(BIN)/shellcheck $$(git ls-files '*.sh') .ci/run
	$(BIN)/yamllint --strict $$(git ls-files '*.yml' '*.yaml')
	$(BIN)/hadolint docker/Dockerfile
	ANSIBLE_CONFIG=ansible/ansible.cfg PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/ansible-lint ansible

check: .venv/.minga-deploy ## Report what each PC is missing and the command that fixes it; JSON=1
	@$(PACK)
	@ANSIBLE_DISPLAY_OK_HOSTS=no $(PLAY) ansible/check.yml $(if $(JSON),>&2)
	@$(BIN)/python -m minga.deploy.check $(if $(JSON),--json)

image: .venv/.minga-deploy ## Build the image of ps and workers
	$(BIN)/python -m minga.deploy.image build --inventory $(INVENTORY)

deploy: image ## Send image, data, firewall rules, settings to every PC of inventory.ini
	$(BIN)/python -m minga.deploy.identity --inventory $(INVENTORY)
	@$(PACK)
	@$(WORK) ansible/deploy.yml

train: .venv/.minga-deploy ## Start the ps, then the workers; resume an unfinished run
	@$(WORK) ansible/train.yml

status: .venv/.minga-deploy ## Show the run's progress and every PC's state
	@ANSIBLE_DISPLAY_OK_HOSTS=no $(PLAY) ansible/status.yml
	@$(BIN)/python -m minga.deploy.status

logs: .venv/.minga-deploy ## Show the last lines of every PC
	@ANSIBLE_DISPLAY_OK_HOSTS=no $(PLAY) ansible/logs.yml
	@$(BIN)/python -m minga.deploy.logs

stop: .venv/.minga-deploy ## Stop workers and ps with a checkpoint; make train resumes
	@$(WORK) ansible/stop.yml

collect: .venv/.minga-deploy ## Fetch statistics and checkpoints of all PCs into runs/
	@$(WORK) ansible/collect.yml

purge: .venv/.minga-deploy ## Remove from every PC what deploy added, and nothing else
	@$(WORK) ansible/purge.yml

lan-test: .venv/.minga-dev .venv/.minga-deploy ## Deploy and train on virtual PCs (root, Linux)
	$(BIN)/pytest tests/lan -m "lan and not long"

lan-test-long: .venv/.minga-dev .venv/.minga-deploy ## More of lan-test: a GPU, a bucket, the virtual LAN's own tests
	$(BIN)/pytest tests/lan -m "lan and long"

drills: .venv/.minga-dev ## Kill workers, sessions and the ps at every point, TIMES=5 times over; SEEDS=5 pairs
	for run in $$(seq $(or $(TIMES),5)); do $(BIN)/pytest tests/drills -n 3 --maxschedchunk=1 || exit 1; done

fuzz: .venv/.minga-dev ## Feed every parser FUZZ_INPUTS made-up inputs (100,000)
	FUZZ_INPUTS=$(or $(FUZZ_INPUTS),100000) $(BIN)/pytest tests/unit/test_fuzz.py -n 2 --timeout=0

bench: setup ## Measure the figures of docs/performance.md (root, Linux, about two hours)
	$(BIN)/python benchmarks/codec.py
	$(BIN)/python benchmarks/session.py
	$(BIN)/python benchmarks/lan.py
	$(BIN)/python benchmarks/lan.py --slow 2 --only 'bound-*' --only 'slow-link-*'
	$(BIN)/python benchmarks/time_to_accuracy.py
	$(BIN)/python benchmarks/accuracy.py

clean: ## Remove .venv and caches; runs/ and data/ stay
	rm -rf .venv build .pytest_cache .mypy_cache .ruff_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
