# `make run` and `make test` do everything on a fresh machine. `make help` lists the rest.
.DEFAULT_GOAL := help
.PHONY: help install dev grf slurm run check test tools lint types unit bench docs release wheelhouse clean
PYTHON ?= python3
BIN := .venv/bin
BY_FILE := --dist loadfile --no-loadscope-reorder  # what a file prepares is prepared once; tests/conftest.py puts long files first
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c launch/constraints.txt

help:  ## this list
	@awk -F':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: .venv/installed  ## the package into .venv, with everything a run needs
.venv/bin/python:
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq python3-venv; } \
	  || { echo "this Python has no venv: install it first (Debian: apt-get install python3-venv)"; exit 1; }
	@$(PYTHON) -m venv .venv
.venv/installed: pyproject.toml launch/constraints.txt | .venv/bin/python
	@command -v c++ >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get install -y -qq g++ >/dev/null; } \
	  || echo "no C++ compiler: training works, at about half the speed (Debian: apt-get install g++)"
	@echo "installing into .venv (once)"
	@$(PIP) torch
	@$(PIP) -e '.[pettingzoo]'
	@$(BIN)/python -c 'from qllm_exp.networks import gru_kernel as a; from qllm_exp.envs.smax import kernel as b; \
	  print(f"kernel of the network: {a.status()}\nkernel of smax: {b.SOURCE.status()}")'
	@touch $@

dev: .venv/dev  ## ... and with what the tests need
.venv/dev: .venv/installed
	@$(PIP) -e '.[dev]'
	@touch $@

grf: .venv/installed  ## the football engine (builds it once, about 4 minutes; the wheel is kept in .wheels)
	@launch/install_grf.sh $(BIN)/python

slurm:  ## a real one-node Slurm to try sweeps on: installs what it needs and starts it
	@launch/slurm_local.sh install && launch/slurm_local.sh start
	@echo 'now: eval "$$(launch/slurm_local.sh env)"      and in the end: launch/slurm_local.sh stop'

# Makes the targets $(1), and compiles the football engine meanwhile where that has not been done. What fails of it is said afterwards.
# A shell lets its background jobs ignore Ctrl-C: theirs is a group of its own, which is ended.
beside_engine = if ! ls .wheels/gfootball-$$($(PYTHON) launch/headless_engine.py --version)-*.whl >/dev/null 2>&1 && launch/install_grf.sh packages 2>/dev/null; then \
    setsid launch/install_grf.sh wheel & engine=$$!; trap 'kill -- -$$engine' INT TERM; \
  fi; $(MAKE) --no-print-directory $(1); made=$$?; wait; exit $$made

run: .venv/bin/python  ## a small real sweep: mpe, lbf and grf, tfcaf against qmix, 2 seeds; ends with table and plot
	@$(call beside_engine,install)
	@launch/install_grf.sh || true
	@envs=mpe,lbf; $(BIN)/python -c 'import gfootball' 2>/dev/null && envs=$$envs,grf; \
	  set -x; $(BIN)/python -m qllm_exp -m env=$$envs mixer=tfcaf,qmix seed=0-1 train=quick

check: lint types  ## lint, types and the fast tests, for while you work
	$(BIN)/pytest -n 2 $(BY_FILE) -m 'not slow' tests/unit

test: .venv/bin/python  ## lint, types and all tests, on the real football engine, a real one-node Slurm and a real browser
	@$(call beside_engine,dev tools)
	@launch/install_grf.sh
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory -j 2 types unit  # mypy takes one core for a minute or two

tools:
	@launch/slurm_local.sh install
	@tests/install_tools.sh
	@tests/install_browser.sh
	@PYTHON=$(PYTHON) tests/install_jaxmarl.sh

lint: .venv/dev  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/dev  ## mypy
	$(BIN)/mypy

# Four workers on two cores: many tests wait, for Slurm, for servers and for processes of their own.
unit: .venv/dev  ## the tests alone
	$(BIN)/pytest -n 4 $(BY_FILE) --durations=20

docs: .venv/dev  ## the documentation site, into docs/site
	$(BIN)/python docs/generate_methods.py
	$(BIN)/python docs/generate_configuration.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -f docs/mkdocs.yml

bench: .venv/dev  ## speed, beside JaxMARL, BenchMARL and gfootball from their published packages
	@tests/bench/run.sh

release: .venv/dev  ## sdist and wheel in dist/, checked, and tried in an empty environment
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist .
	$(BIN)/pytest tests/integration/test_wheel.py

wheelhouse: .venv/installed  ## all wheels for machines without internet, in wheelhouse/
	$(BIN)/python -m pip wheel --quiet -c launch/constraints.txt -w wheelhouse '.[pettingzoo]'
	@cp .wheels/*.whl wheelhouse/ 2>/dev/null || echo "without the football engine: make grf first, then again"
	@echo "there: pip install --no-index --find-links wheelhouse 'qllm_exp[pettingzoo]'"

clean:  ## remove what was installed or generated; keep runs
	rm -rf .venv .venv-* .pytest_cache .mypy_cache .ruff_cache .hypothesis dist wheelhouse docs/site
