# Everything runs inside .venv, which the first target that needs it builds from constraints.txt.

PYTHON ?= python3
# A package index that holds the CPU build of torch, where the usual one would bring the CUDA build:
# make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
BIN := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow lint format bench golden clean

help: ## print these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# torch goes first and alone, so that the rest finds its requirement met and never fetches another build of it.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -c constraints.txt torch==2.13.0
	$(BIN)/pip install -c constraints.txt -e '.[test]'
	touch $@

setup: $(READY) ## make .venv and install latcodec into it

demo: $(READY) ## encode and decode a photograph, print a table, write demo/
	$(BIN)/python examples/demo.py

test: lint ## lint, then the default tests (CPU, no network, minutes)
	$(BIN)/python -m pytest

test-slow: $(READY) ## the tests marked slow
	$(BIN)/python -m pytest -m slow

lint: $(READY) ## ruff: rules and format, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY) ## ruff: fix and format in place
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY) ## measure beside JPEG, WebP and AVIF: make bench ARGS="kodak/ --threads 2"
	$(BIN)/latcodec bench $(ARGS)

golden: $(READY) ## decode the golden files of every released version
	$(BIN)/python -m pytest -k golden

clean: ## remove caches, builds and demo/, keep .venv
	rm -rf build dist demo .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name .venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
