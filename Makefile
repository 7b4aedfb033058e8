# `make demo`: the paper's result on a real chat model. `make test`: the tests, in minutes. `make test-all`: those too
# that are long and rare: the real model, every family in every sweep, the distributions. `make docs`: these pages as a
# site. All set themselves up.
PYTHON ?= python3
VENV := .venv
UV ?= uv
# Test files side by side; each job may hold the real model, about 7 GB.
JOBS ?= 2
# That `make demo` may take once installed; with more it measures more.
MINUTES ?= 8
# What `make test-all` takes: all, or what these marks say.
SELECT ?=
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-all docs check format lock clean

demo: $(READY)
	$(BIN)/refusal run embedded --preset quick --minutes $(MINUTES) --out runs/demo

test: $(READY)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m 'not slow and not embedded'

test-all: $(READY)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m '$(SELECT)' --durations=25

# -E: everything is read anew, since warnings about pages that did not change would not be given again.
# Not `python -m sphinx`: the command line's page would take its usage lines from that name.
docs: $(READY)
	$(BIN)/sphinx-build -n -W --keep-going -E -q docs docs/_build
	@echo "docs/_build/index.html"

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The versions of constraints.txt with the hash of every file that the registry has of them. Without torch, whose file
# differs from machine to machine. --upgrade: or hashes that are in the lock already would not be asked for again.
lock:
	$(UV) pip compile --quiet --upgrade --no-deps --generate-hashes --no-header --no-annotate --no-emit-index-url \
		--no-emit-package torch constraints.txt --output-file requirements.lock

# torch goes first and pinned: with it in place nothing pulls in a newer, CUDA-carrying build.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,embedded]'
	touch $(READY)

clean:
	rm -rf $(VENV) runs docs/_build
