# Each target sets up all that it needs: a virtual environment per Python version under .venv/.
# `make test PYTHON=python3.13` runs beside `make test`.

# The first interpreter that really starts (a pyenv shim may be on the path and still not run).
ifndef PYTHON
PYTHON := $(shell for p in python3.11 python3; do $$p -c '' 2>/dev/null && { echo $$p; break; }; done)
endif
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
SUPPORTED := $(shell $(PYTHON) -c 'import sys; print(int(sys.version_info >= (3, 11)))' 2>/dev/null)
VENV := .venv/$(VERSION)
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint bench clean python

help:
	@echo 'make demo      offline training, online fine-tuning and a report, on built-in Hopper data'
	@echo 'make test      the tests, without the slow ones (make test-all: every test)'
	@echo 'make lint      ruff and mypy'
	@echo 'make bench     speed and memory, beside the matrix rate of this machine and d3rlpy'
	@echo 'make clean     remove virtual environments, caches and build artefacts (runs stay)'
	@echo
	@echo 'PYTHON=python3.13 chooses the interpreter.'

demo: $(READY)
	@$(BIN)/segue demo

test: $(READY)
	@$(BIN)/python -m pytest -m 'not slow'

test-all: $(READY)
	@$(BIN)/python -m pytest

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/mypy

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

python:
	@test '$(SUPPORTED)' = 1 || { echo 'Segue needs Python 3.11 or newer; found: $(PYTHON) $(VERSION). Name one with PYTHON=...' >&2; exit 2; }

$(READY): pyproject.toml constraints.txt | python
	@echo 'Setting up $(VENV) (once; about a minute)'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
