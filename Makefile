# make demo | make test | make lint | make unit | make drills | make gpu | make setup
SHELL := /bin/bash
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export PIP_DISABLE_PIP_VERSION_CHECK := 1
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
BY_FILE := --dist loadfile --no-loadscope-reorder  # files in the order in which they stand: the longest come first

.PHONY: demo test test-here test-hosts unit lint drills gpu setup clean
.DEFAULT_GOAL := setup

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@bash cluster/setup-machine.sh $(PYTHON)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing zfdist and its dependencies into $(VENV) (a minute or two)"
	@$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY)
	@$(BIN)/python -m jobs.demo

# Hosts made of network namespaces wait for each other most of the time: what computes runs beside them, and yields.
test: $(READY)
	@$(MAKE) --no-print-directory --jobs=2 test-hosts test-here
	$(PYTEST) tests/cluster --ignore tests/cluster/test_drills.py --ignore tests/cluster/test_demand.py -m 'not drill' -n 2 $(BY_FILE) --durations=10

test-here: $(READY) lint
	nice -n 10 env $(PYTEST) tests/distributed tests/gpu tests/jobs tests/unit -m 'not drill' -n auto --maxprocesses 4 $(BY_FILE) --durations=10

test-hosts: $(READY)
	@said=$$(mktemp); $(PYTEST) tests/cluster/test_drills.py tests/cluster/test_demand.py -m 'not drill' --durations=5 >$$said 2>&1; \
	code=$$?; cat $$said; rm $$said; exit $$code

unit: $(READY)
	$(PYTEST) tests/unit -m 'not drill' -n auto --maxprocesses 4 $(BY_FILE)

drills: $(READY)
	$(PYTEST) tests/unit tests/distributed tests/jobs tests/cluster -m drill
	@OMP_NUM_THREADS=1 $(BIN)/python -u tests/cluster/all_drills.py
	@OMP_NUM_THREADS=1 $(BIN)/python -u tests/cluster/drill_demand.py

gpu: $(READY)
	@$(BIN)/python -m jobs.gpu

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
