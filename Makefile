# make demo | make test | make lint | make unit | make drills | make gpu | make setup
SHELL := /bin/bash
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export PIP_DISABLE_PIP_VERSION_CHECK := 1
TEST_ENV := OMP_NUM_THREADS=1

.PHONY: demo test unit lint drills gpu setup clean
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

test: $(READY) lint
	$(TEST_ENV) $(BIN)/python -m pytest tests/gpu tests/unit tests/jobs tests/distributed -n auto --maxprocesses 4 --dist loadfile --durations=10
	$(TEST_ENV) $(BIN)/python -m pytest tests/cluster --ignore tests/cluster/test_drills.py --ignore tests/cluster/test_demand.py -m 'not drill' -n 2 --dist loadfile --durations=10
	$(TEST_ENV) $(BIN)/python -m pytest tests/cluster/test_drills.py tests/cluster/test_demand.py -m 'not drill' --durations=5

unit: $(READY)
	$(TEST_ENV) $(BIN)/python -m pytest tests/unit -n auto --maxprocesses 4 --dist loadfile

drills: $(READY)
	$(TEST_ENV) $(BIN)/python -m pytest tests/cluster -m drill
	@$(TEST_ENV) $(BIN)/python -u tests/cluster/all_drills.py
	@$(TEST_ENV) $(BIN)/python -u tests/cluster/drill_demand.py

gpu: $(READY)
	@$(BIN)/python -m jobs.gpu

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
