# make run    set everything up and run the main job: a small pretrained model learns three tasks, one after the other
# make test   set everything up and pass lint, types and the default suite
# make help   all targets
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
QUANT := $(VENV)/quant/.installed
ARGS ?=

.PHONY: help setup run test test-all test-quant lint types format benchmark faults clean

help:
	@grep -E '^# make' $(MAKEFILE_LIST) | cut -c3-
	@echo "make test-all   the default suite and the slow one (subprocess, fault, training runs)"
	@echo "make test-quant the part of it that needs bitsandbytes and torchao"
	@echo "make lint       ruff and mypy;  make format  mends what ruff can"
	@echo "make faults     the fault harness in full (a quarter of an hour), into docs/reliability.md"
	@echo "make benchmark  cost of one training step by adapter, into benchmarks/results/"
	@echo "make clean      remove the virtual environment, caches and build output (never runs)"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

run: setup
	$(BIN)/python train.py $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

types: setup
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: lint
	$(BIN)/python -m pytest -n 2 -m "not slow" $(ARGS)

test-all: lint
	$(BIN)/python -m pytest -n 2 $(ARGS)
	$(MAKE) test-quant

# In a folder of their own, since both are slow to import and talk while they are.
$(QUANT): constraints.txt $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps --upgrade \
		--target $(VENV)/quant bitsandbytes torchao
	touch $@

test-quant: $(QUANT)
	PYTHONPATH=$(VENV)/quant $(BIN)/python -m pytest tests/unit/adapters/test_quantised_libraries.py tests/integration/test_examples.py

faults: setup
	$(BIN)/python -m tests.faults --out docs/reliability.md $(ARGS)

benchmark: setup
	$(BIN)/python benchmarks/adapter_cost.py $(ARGS)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
