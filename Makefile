# Each target is a line or two that calls a tool; `make` alone lists them.
PYTHON ?= python3
BIN    := .venv/bin
STAMP  := .venv/.minga-setup
PIP    := $(BIN)/pip install --quiet --disable-pip-version-check $(if $(CI),--no-cache-dir)

# The LAN: INVENTORY=file, LIMIT=pc, CHECK=1 (only tell), ASK_PASS=1 (sudo's password), DATASET=folder,
# RUN=id, NEW=1, TAIL=lines; FORCE=1 (another's turn, uncollected results), KEEP_DOCKER=1 (purge)
INVENTORY ?= inventory.ini
FLAGS = --inventory $(INVENTORY) $(if $(LIMIT),--limit '$(LIMIT)') $(if $(CHECK),--check --diff) \
  $(if $(ASK_PASS),--ask-become-pass)
PLAY = ANSIBLE_CONFIG=ansible/ansible.cfg $(BIN)/ansible-playbook $(FLAGS)
# The same with a table of what became of each PC, and status 3 if one was missed.
WORK = $(BIN)/python -m minga.deploy.play $(FLAGS)
# Many small files become a few shards in build/data, once.
PACK = $(BIN)/python -m minga.deploy.packing --inventory $(INVENTORY)
export DATASET VAL_DATASET RUN NEW TAIL FORCE KEEP_DOCKER

.DEFAULT_GOAL := help
.PHONY: help setup demo plan test test-unit test-cluster lint check image deploy train status logs stop collect purge lan-test lan-test-long drills bench clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

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

# What only some verbs need: .venv/.minga-deploy stands for .[deploy].
.venv/.minga-%: $(STAMP)
	PIP_CONSTRAINT=constraints.txt $(PIP) --editable '.[$*]'
	@touch $@

demo: setup ## Train on this PC: ps + 2 workers, real digits, under a minute
	$(BIN)/minga demo

plan: setup ## Predict what 4 to 64 PCs do for ImageNet; ARGS='--pcs 8x1000' for others
	@$(BIN)/minga plan $(ARGS)

test: test-unit test-cluster ## Run every check that needs no other PC

test-unit: setup lint ## Run its first half: style, types, and each part by itself
	$(BIN)/pytest tests --ignore=tests/lan --ignore=tests/drills --ignore=tests/cluster

test-cluster: setup ## Run its second half: ps and workers on loopback
	$(BIN)/pytest tests/cluster

lint: setup .venv/.minga-deploy .venv/.minga-deploy-checks ## Check style, types, shell, YAML, playbooks, Dockerfile
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict src
	$(BIN)/shellcheck $$(git ls-files '*.sh') .ci/run
	$(BIN)/yamllint --strict $$(git ls-files '*.yml' '*.yaml')
	$(BIN)/hadolint docker/Dockerfile
	ANSIBLE_CONFIG=ansible/ansible.cfg PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/ansible-lint ansible

check: .venv/.minga-deploy ## Tell what every PC lacks, and the command that mends it; JSON=1
	@$(PACK)
	@ANSIBLE_DISPLAY_OK_HOSTS=no $(PLAY) ansible/check.yml $(if $(JSON),>&2)
	@$(BIN)/python -m minga.deploy.check $(if $(JSON),--json)

image: .venv/.minga-deploy ## Build the image of ps and workers
	$(BIN)/python -m minga.deploy.image build --inventory $(INVENTORY)

deploy: image ## Bring image, data, firewall rules, settings to every PC of inventory.ini
	$(BIN)/python -m minga.deploy.identity
	@$(PACK)
	@$(WORK) ansible/deploy.yml

train: .venv/.minga-deploy ## Start the ps, then the workers; go on with an unfinished run
	@$(WORK) ansible/train.yml

status: .venv/.minga-deploy ## Show how the run goes and what every PC does
	@ANSIBLE_DISPLAY_OK_HOSTS=no $(PLAY) ansible/status.yml
	@$(BIN)/python -m minga.deploy.status

logs: .venv/.minga-deploy ## Show the last lines of every PC
	@ANSIBLE_DISPLAY_OK_HOSTS=no $(PLAY) ansible/logs.yml
	@$(BIN)/python -m minga.deploy.logs

stop: .venv/.minga-deploy ## Stop workers and ps with a checkpoint; make train goes on
	@$(WORK) ansible/stop.yml

collect: .venv/.minga-deploy ## Fetch statistics and checkpoints of all PCs into runs/
	@$(WORK) ansible/collect.yml

purge: .venv/.minga-deploy ## Take away from every PC what deploy added, and nothing else
	@$(WORK) ansible/purge.yml

lan-test: setup .venv/.minga-deploy ## Deploy and train on virtual PCs (root, Linux)
	$(BIN)/pytest tests/lan -m "lan and not long"

lan-test-long: setup .venv/.minga-deploy ## What lan-test has no time for: a GPU, a bucket, the virtual LAN's own tests
	$(BIN)/pytest tests/lan -m "lan and long"

drills: setup ## Kill workers, sessions and the ps at every point, TIMES=5 times over; SEEDS=5 pairs
	for run in $$(seq $(or $(TIMES),5)); do $(BIN)/pytest tests/drills -n 2 --maxschedchunk=1 || exit 1; done

bench: setup ## Measure all that docs/performance.md quotes (root, Linux, about two hours)
	$(BIN)/python benchmarks/codec.py
	$(BIN)/python benchmarks/session.py
	$(BIN)/python benchmarks/lan.py
	$(BIN)/python benchmarks/lan.py --slow 2 --only 'bound-*' --only 'slow-link-*'
	$(BIN)/python benchmarks/time_to_accuracy.py
	$(BIN)/python benchmarks/accuracy.py

clean: ## Remove .venv and caches; runs/ and data/ stay
	rm -rf .venv build .pytest_cache .mypy_cache .ruff_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
