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
ALL := .venv/$(VERSION)-all
ALL_READY := $(ALL)/.ready
PEER := .venv/d3rlpy
PEER_READY := $(PEER)/.ready
IN_PARALLEL := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
# What is recorded is compared as users compile; all else is compiled in half the time (tests/conftest.py).
GOLDEN := $(wildcard tests/test_golden_*.py)
OTHERS := --former-emitter $(GOLDEN:%=--ignore=%)
# Both even if the first fails, so that one visit shows everything that is wrong.
run_tests = @$(1) $(GOLDEN); golden=$$?; $(1) $(OTHERS) && exit $$golden
PIP_INSTALL := -m pip install -q --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint bench bench-offline bench-online bench-memory bench-sampling bench-gpu clean python

help:
	@echo 'make demo      offline training, online fine-tuning and a report, on built-in Hopper data'
	@echo 'make test      the tests, without the slow ones'
	@echo 'make test-all  every test, with torch and Stable-Baselines3 in an environment of their own'
	@echo 'make lint      ruff and mypy'
	@echo 'make bench     speed and memory, beside the matrix rate of this machine and d3rlpy'
	@echo 'make bench-gpu seconds for 1,000,000 updates on this machine'"'"'s GPU'
	@echo 'make clean     remove virtual environments, caches and build artefacts (runs stay)'
	@echo
	@echo 'PYTHON=python3.13 chooses the interpreter.'

demo: $(READY)
	@$(BIN)/segue demo

test: $(READY)
	$(call run_tests,$(BIN)/python -m pytest $(IN_PARALLEL) -m 'not slow')

test-all: $(ALL_READY)
	$(call run_tests,$(ALL)/bin/python -m pytest $(IN_PARALLEL))

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/mypy

bench: bench-offline bench-online bench-memory bench-sampling

bench-offline: $(READY) $(PEER_READY)
	@$(BIN)/python -m benchmarks.offline --out bench/offline.json

bench-online: $(READY)
	@$(BIN)/python -m benchmarks.online --out bench/online.json

bench-memory: $(READY)
	@$(BIN)/python -m benchmarks.memory --out bench/memory.json

bench-sampling: $(READY)
	@$(BIN)/python -m benchmarks.sampling --out bench/sampling.json

# JAX for the GPU comes with: $(BIN)/python -m pip install '.[cuda]'
bench-gpu: $(READY)
	@$(BIN)/python -m benchmarks.gpu --out bench/gpu.json

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

python:
	@test '$(SUPPORTED)' = 1 || { echo 'Segue needs Python 3.11 or newer; found: $(PYTHON) $(VERSION). Name one with PYTHON=...' >&2; exit 2; }

$(READY): pyproject.toml constraints.txt | python
	@echo 'Setting up $(VENV) (once; about a minute)'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python $(PIP_INSTALL) -c constraints.txt -e '.[dev]'
	@touch $@

$(ALL_READY): pyproject.toml constraints.txt tools/foreign-requirements.txt | python
	@echo 'Setting up $(ALL) with torch and Stable-Baselines3 (once; some minutes)'
	@$(PYTHON) -m venv $(ALL)
	@grep -v '^#' tools/foreign-requirements.txt | while read -r line; do \
		$(ALL)/bin/python $(PIP_INSTALL) "$$line" || exit 1; done
	@$(ALL)/bin/python $(PIP_INSTALL) -c constraints.txt -e '.[dev]'
	@touch $@

# A requirement a line and one install each: torch has to be there before d3rlpy asks for it.
$(PEER_READY): benchmarks/d3rlpy-requirements.txt | python
	@echo 'Setting up $(PEER) for the comparison with d3rlpy (once)'
	@$(PYTHON) -m venv $(PEER)
	@grep -v '^#' $< | while read -r line; do $(PEER)/bin/python $(PIP_INSTALL) "$$line" || exit 1; done
	@touch $@
