# make demo   creates .venv, installs with exact pins, runs `compress demo`
# make test   the same environment: lint, types, the whole test suite
# make recipes  every shipped recipe in its quick form
# make wheel-check  the built wheel, installed alone, runs the demo and a recipe
# make docs   builds the pages into site/
# make TORCH_INDEX=URL demo   takes torch from that index instead of the configured one

PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
TORCH := $(shell grep -E '^torch==' constraints.txt)
WORKERS ?= 2

.PHONY: demo test recipes wheel-check lint types docs install clean
.DEFAULT_GOAL := demo

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "== environment: $(VENV) (Python: $$($(PYTHON) --version))"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "== torch: $(TORCH) $(if $(TORCH_INDEX),from $(TORCH_INDEX),from the configured index)"
	$(PIP) install --quiet "$(TORCH)" $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	@echo "== compress and its dependencies, pinned by constraints.txt (a few minutes at first)"
	$(PIP) install --quiet -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-tests: $(VENV)/.installed
	@echo "== what the tests need besides"
	$(PIP) install --quiet -c constraints.txt -e '.[test]'
	@touch $@

demo: $(VENV)/.installed
	@echo "== compress demo"
	$(BIN)/compress demo

lint: $(VENV)/.installed-tests
	@echo "== ruff"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-tests
	@echo "== mypy"
	$(BIN)/mypy

test: lint types
	@echo "== pytest, $(WORKERS) workers"
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

docs: $(VENV)/.installed
	$(PIP) install --quiet -c constraints.txt -e '.[docs]'
	$(BIN)/mkdocs build --strict

recipes: $(VENV)/.installed
	@echo "== every shipped recipe in its quick form (about 15 minutes)"
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/recipes/quick.py runs/quick

wheel-check: $(VENV)/.installed
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/recipes/wheel_check.py

clean:
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache
