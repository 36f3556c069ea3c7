# Two commands do all set-up on a fresh machine: `make demo` and `make test`.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false
export UV_LINK_MODE ?= copy
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help install demo test test-all check lint types layers unit bench clean

help: ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# torch first and by pip, so that a CPU build is kept where one is offered; all else by uv, which takes seconds.
$(VENV)/core: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "rlhf-bench needs Python 3.11 or newer; name one with PYTHON=..." >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { echo "no venv module: apt-get install python3-venv" >&2; exit 2; }
	$(BIN)/pip install -q -c constraints.txt torch uv
	$(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt -e .
	@touch $@

$(VENV)/dev: $(VENV)/core
	$(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt --group dev -e .
	@touch $@

install: $(VENV)/core ## the virtual environment, pinned

demo: $(VENV)/core ## one gated online-DPO iteration on real weights, two cores, no key, no hub
	$(BIN)/rlhf-bench iterate examples/demo.yaml

test: check unit ## linters, types, layers and the fast tests

check: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: $(VENV)/dev
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -n 2

test-all: check ## the slow tests too, and new examples for the property tests
	HF_HUB_OFFLINE=1 HYPOTHESIS_PROFILE=explore $(BIN)/python -m pytest -q -n 2 -m "slow or not slow"

bench: $(VENV)/dev ## the benchmarks: printed, never asserted
	@ls benchmarks/*.py >/dev/null 2>&1 || { echo "no benchmarks yet"; exit 0; }; for file in benchmarks/*.py; do $(BIN)/python $$file; done

clean: ## the environment and the caches in this folder (not .rlhf-bench, which holds your runs)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
