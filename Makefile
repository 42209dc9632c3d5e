# Targets and what they do: make help
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
MINIMUM := 3.11

.DEFAULT_GOAL := help
.PHONY: help install demo test accept lint bench clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP) ## make .venv with the tested versions; nothing to do when it is up to date

$(STAMP): pyproject.toml constraints.txt
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < tuple(map(int, "$(MINIMUM)".split("."))))' || \
	  { echo "Python $(MINIMUM) or newer is needed ('$(PYTHON)' is not): install it, or say where it is: make install PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Installing into $(VENV): about 5 GB, a few minutes ..."
	@$(PYTHON) -m venv $(VENV)
	@PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $(STAMP)
	@echo "Installed."

demo: install ## learn the demo stream and show the results; ARGS="--method.beta 2 --name hot" runs it another way
	@$(BIN)/python jobs/run_stream.py --config configs/demo.yaml $(ARGS)

test: install ## run the tests (at most 15 minutes on 2 cores); ARGS="tests/test_store.py" runs some of them
	@$(BIN)/python -m pytest -q -m "not accept" $(ARGS)

accept: install ## measure every issue's bars and print the numbers; ISSUE=2 measures one issue's (at most 90 minutes each)
	@$(BIN)/python -m pytest -m accept -s --timeout 5400 $(if $(ISSUE),tests/accept/test_issue_$(ISSUE)*.py,tests) $(ARGS)

lint: install ## check style, types and layers
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet . || { echo "Not formatted: $(BIN)/ruff format ."; exit 1; }
	@$(BIN)/mypy lada_ray jobs benchmarks
	@$(BIN)/lint-imports --no-logo

bench: install ## measure side by side (an hour on 2 cores); ARGS="classes step --out bench" does some, with a page
	@$(BIN)/python -m benchmarks $(ARGS)

clean: ## remove .venv, builds and caches; runs stay
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
	@find lada_ray jobs tests -name __pycache__ -type d -prune -exec rm -rf {} +
