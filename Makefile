# make sweep   install, search the default space on the default data, print where the report lies
# make test    install, run all tests
# make soak    hundreds of trials with injected faults, and drivers that are killed; writes results/soak*.md
# Both start from a machine that has only Python >= 3.11, pip and make.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: sweep test fast soak lint check clean
.DEFAULT_GOAL := test

# torch goes first and alone: whatever is installed after it then keeps the CPU build where that is what pip found.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=…")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

sweep: $(INSTALLED)
	$(BIN)/onenet-bench sweep --space depth_scale

test: $(INSTALLED) lint check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -q

fast: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -q -m 'not slow'

soak: $(INSTALLED)
	OMP_NUM_THREADS=1 nice -n 10 $(BIN)/python -m tests.soak
	OMP_NUM_THREADS=1 nice -n 10 $(BIN)/python -m tests.soak_cluster

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

check: $(INSTALLED)
	$(BIN)/onenet-bench check

clean:
	rm -rf .venv build dist
