# Everything a clone needs: each target makes .venv itself, with plain pip, and installs only once.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
PROMPT := a red ball bounces on a dark background with a high beep at every bounce
export OMP_NUM_THREADS ?= $(shell getconf _NPROCESSORS_ONLN)

.PHONY: setup demo test check fix bench chaos fuzz

setup: .venv/.dev

.venv/.engine: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ltx2 needs Python 3.11 or newer: make PYTHON=python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing the engine into .venv (torch is large: some minutes the first time)"
	@$(PIP) torch
	@$(PIP) -e '.[engine]'
	@touch $@

.venv/.dev: .venv/.engine
	@echo "installing the development tools into .venv"
	@$(PIP) -e '.[engine,dev]'
	@touch $@

demo: .venv/.engine
	$(BIN)/ltx2 generate "$(PROMPT)" -o out.mp4

test: .venv/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 3 --dist loadfile $(ARGS)

check: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-cache

fix: .venv/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Whole services under 200 kills, and the commands with the embedded model: about 12 minutes on two cores.
chaos: .venv/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -s --slow tests/chaos tests/jobs/test_faults.py $(ARGS)

# 10,000 requests made from the OpenAPI document, 20,000 frames for the engine's pipe: about 30 minutes.
fuzz: .venv/.dev
	OMP_NUM_THREADS=1 FUZZ_CASES=10000 $(BIN)/python -m pytest -q --slow tests/doors/http/test_fuzz.py tests/engine/test_wire.py $(ARGS)

# On a GPU: make bench ARGS="--model ltx-2 --weights random --preset distilled"
bench: .venv/.engine
	$(BIN)/ltx2 bench $(ARGS)
