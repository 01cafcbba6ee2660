# Everything runs inside .venv, which the first target that needs it builds from constraints.txt.

PYTHON ?= python3
# A package index that holds the CPU build of torch, where the usual one would bring the CUDA build:
# make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
# The 24 Kodak pictures; downloaded there if they are missing.
KODAK ?= kodak
# Processes that share the tests, with one thread each.
WORKERS ?= 2
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
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow and not gpu and not alone"
	$(BIN)/python -m pytest -m "alone and not slow and not gpu"

test-slow: $(READY) ## the tests marked slow
	$(BIN)/python -m pytest -m slow

lint: $(READY) ## ruff: rules and format, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY) ## ruff: fix and format in place
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# JPEG XL is one of the anchors where its plug-in can be had. A run that was stopped goes on; ARGS=--force starts again.
bench: $(READY) ## measure on Kodak: report/, tables of README and docs/results.md; make bench KODAK=folder ARGS="--reps 3"
	-$(BIN)/pip install -q -c constraints.txt pillow-jxl-plugin
	test -e $(KODAK)/kodim24.png || $(BIN)/latcodec bench --fetch kodak $(KODAK)
	$(BIN)/latcodec bench $(KODAK) --codecs all --threads 1 -o report --readme README.md --results docs/results.md $(ARGS)

golden: $(READY) ## decode the golden files of every released version
	$(BIN)/python -m pytest -k golden

clean: ## remove caches, builds and demo/, keep .venv
	rm -rf build dist demo .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name .venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
