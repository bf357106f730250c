# Everything sets itself up: `make test` and `make demo` need Python >= 3.11 and make, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help setup test check demo bench format clean

help:
	@echo "make demo    the whole chain on synthetic scans, to demo/report.html"
	@echo "make test    the test suite"
	@echo "make check   ruff, pyright, import-linter"
	@echo "make bench   side-by-side timings, printed as ratios"
	@echo "make format  ruff format and import order"

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $(READY)

setup: $(READY)

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $${TEST_WORKERS:-auto} --dist worksteal

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

demo: $(READY)
	$(BIN)/dualwitness demo --out demo

bench: $(READY)
	for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python "$$file" || exit 1; done

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) demo build *.egg-info
