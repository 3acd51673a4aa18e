# `make demo` needs Python >= 3.11, make and a C library; `make test` Node and Chromium too. The rest
# is installed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint types tests web docs attacks torture injections races bench clean

demo: $(VENV)/ready
	$(BIN)/twosides demo

test: lint types web tests

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell src docs examples benchmarks README.md CONTRIBUTING.md CHANGELOG.md SECURITY.md

types: $(VENV)/ready
	$(BIN)/pyright

# The explorer's page as it is committed is what its sources give.
web: web/node_modules/ready
	cd web && npm run check

# One process per core, a file at a time: torch's own threads would only be in each other's way.
tests: $(VENV)/ready web/node_modules/ready
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile

# The documentation as pages, build/docs/index.html, the explorer's figures among them.
docs: $(VENV)/ready
	$(BIN)/twosides explore --export build/extra/figures.html
	$(BIN)/python docs/notebooks.py build/extra/notebooks
	$(BIN)/sphinx-build -W -q docs build/docs
	$(BIN)/python tests/helpers/built_site.py build/docs

# Fifteen hundred damaged and hostile files of all kinds; two minutes.
attacks: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/python -P tests/attacks/fuzz.py --count 1500

# Two hundred kills of a training on one process, and on two, by DDP and by FSDP2; six minutes.
torture: $(VENV)/ready
	for mode in one ddp fsdp; do \
		OMP_NUM_THREADS=1 $(BIN)/python tests/helpers/torture.py --kills 200 --mode $$mode || exit 1; done

# Two hundred trainings with a number that is not finite in one step; seven minutes.
injections: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/python tests/helpers/injections.py --count 200

# Five hundred times two processes that begin in one folder at once, as other runs and as the same,
# with links and locks, without links, without locks; three minutes.
races: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/python tests/helpers/races.py --count 500

bench: $(VENV)/ready
	$(BIN)/python benchmarks/step_overhead.py
	$(BIN)/python benchmarks/scheduler_cost.py
	$(BIN)/python benchmarks/brownian.py
	$(BIN)/python benchmarks/finite_watch.py
	$(BIN)/python benchmarks/quality_per_nfe.py --quick
	$(BIN)/python benchmarks/loss_variance.py --quick
	$(BIN)/python benchmarks/explorer.py

$(VENV)/ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet -c constraints.txt "torch==2.13.0"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[all]" --group dev
	touch $@

web/node_modules/ready: web/package-lock.json
	cd web && npm ci --no-audit --no-fund
	touch $@

clean:
	rm -rf $(VENV) build runs web/node_modules
