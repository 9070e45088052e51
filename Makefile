# `make demo` and `make test` need Python 3.11+, make and a package registry, and nothing else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check
INSTALLED := $(VENV)/installed
# With the tools and extras that tests, linters and documentation need.
INSTALLED_DEV := $(VENV)/installed-dev
# Where the real data lies, for the slow tests: the folder with wikiart/ and wikiart_csv/.
WIKIART ?=

.PHONY: demo test lint test-only test-slow docs install install-dev format clean

# Each step is done once; `make clean` starts over.
demo: install
	@$(BIN)/python tools/demo.py

test: install-dev lint test-only

test-only: install-dev
	$(BIN)/python -m pytest -q -m "not slow" -n auto --maxprocesses=4 --dist=loadscope \
	  --no-loadscope-reorder

# All that takes minutes or needs the real data: make test-slow WIKIART=DIR
test-slow: install-dev
	$(PIP) -e ".[jax]"
	WIKIART_DIR="$(WIKIART)" $(BIN)/python -m pytest -q -m slow

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy multitask

# The documentation site. (With --quiet, --strict would not see the warnings.)
docs: install-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "Site: build/site/index.html"

format: install-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(INSTALLED)

install-dev: $(INSTALLED_DEV)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make PYTHON=python3.11 …" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): setup.cfg pyproject.toml | $(BIN)/python
	$(PIP) -e .
	touch $@

$(INSTALLED_DEV): setup.cfg pyproject.toml | $(BIN)/python
	$(PIP) -e ".[dev]"
	touch $(INSTALLED) $@

clean:
	rm -rf $(VENV) build dist *.egg-info runs demo
