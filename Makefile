PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Small networks and several processes: more threads than cores only wait for each other
export OMP_NUM_THREADS ?= 1
export MUJOCO_GL ?= egl

.PHONY: help install demo test test-slow test-matrix check lint docs benchmark clean

help:
	@echo "make demo       train CPO on SafePointCircle-v0 and draw the run (installs what is missing)"
	@echo "make test       run the tests (installs what is missing)"
	@echo "make test-slow  also the tests that train for minutes"
	@echo "make test-matrix  run them with each Python that is here, and the oldest and newest dependencies"
	@echo "make check      lint, types and tests"
	@echo "make docs       build the documentation into docs/_build/html"
	@echo "make benchmark  print speeds as ratios measured side by side"

install: $(INSTALLED)

# torch first: whatever else asks for it is then satisfied with the build that constraints.txt pins
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,zoo,plot,report,video,docs]"
	touch $@

demo: $(INSTALLED)
	$(BIN)/python scripts/demo.py

test: $(INSTALLED)
	$(BIN)/python -m pytest -n auto

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -n auto -m "slow or not slow"

# Minutes, and gigabytes where pip finds no CPU build of torch
test-matrix:
	bash scripts/test_matrix.sh

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint
	$(BIN)/python -m pytest -n auto

docs: $(INSTALLED)
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

benchmark: $(INSTALLED)
	$(BIN)/python scripts/benchmark.py envs
	$(BIN)/python scripts/benchmark.py train

clean:
	rm -rf $(VENV) build *.egg-info docs/_build demo_output
