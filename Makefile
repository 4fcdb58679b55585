# A fresh machine needs Python 3.11 and make; everything else goes into $(VENV).

VENV ?= .venv
PYTHON ?= python3
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

# Seconds since the epoch at which make began, so that the quick start can count the installation as a stage.
export OVD_START := $(shell date +%s)

.PHONY: install quickstart test test-all lint world clean

install: $(INSTALLED)

quickstart: $(INSTALLED)
	$(PY) tools/quickstart.py $(ARGS)

test: $(INSTALLED)
	$(PY) -m pytest -m "not slow"

test-all: $(INSTALLED)
	$(PY) -m pytest

lint: $(INSTALLED)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports

world: $(INSTALLED)
	$(PY) tools/make_world.py

# Caches only: the environment, data/ and runs/ stay.
clean:
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
	find ovd tools tests -name __pycache__ -type d -prune -exec rm -rf {} +

# ovd itself is installed editable, so that scripts and tests find it from any folder. torch brings the setuptools
# that builds it, hence no build isolation and no second download.
$(INSTALLED): requirements.txt requirements-dev.txt requirements-no-deps.txt constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ovd needs Python 3.11 or newer: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -r requirements.txt -r requirements-dev.txt -c constraints.txt
	$(PY) -m pip install --no-deps -r requirements-no-deps.txt -c constraints.txt
	$(PY) -m pip install --no-deps --no-build-isolation -e .
	touch $@
