# `make demo` and `make test` need Python >= 3.11, make and a C library; everything else is installed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint types tests bench clean

demo: $(VENV)/ready
	$(BIN)/twosides demo

test: lint types tests

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/ready
	$(BIN)/pyright

# One process per core, a file at a time: torch's own threads would only be in each other's way.
tests: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile

bench: $(VENV)/ready
	$(BIN)/python benchmarks/step_overhead.py
	$(BIN)/python benchmarks/scheduler_cost.py
	$(BIN)/python benchmarks/brownian.py
	$(BIN)/python benchmarks/quality_per_nfe.py --quick

$(VENV)/ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet -c constraints.txt "torch==2.13.0"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[all]" --group dev
	touch $@

clean:
	rm -rf $(VENV) runs
