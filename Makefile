# A fresh machine needs Python 3.11 and make; everything else goes into $(VENV).

VENV ?= .venv
PYTHON ?= python3
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
LOWEST := .venv-lowest
LOWEST_PY := $(LOWEST)/bin/python
LOWEST_INSTALLED := $(LOWEST)/.installed
LOWEST_TESTS := tests/clip tests/model tests/text tests/evaluation tests/test_config.py tests/test_ablation.py \
	tests/test_kept_classifier.py tests/test_predictor.py tests/visualize tests/test_boxes.py \
	$(addprefix tests/data/test_,images.py jpeg_pixels.py transforms.py loader.py) \
	$(addprefix tests/engine/test_,checkpoint.py log.py) --ignore tests/model/test_compiled.py \
	--deselect "tests/engine/test_checkpoint.py::test_killed_at_any_instant_something_intact_remains[200]"
QUICKLY := -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"
REQUIREMENTS := requirements.txt requirements-dev.txt requirements-no-deps.txt

# Seconds since the epoch at which make began, so that the quick start can count the installation as a stage.
export OVD_START := $(shell date +%s)

.PHONY: install quickstart test test-all test-stand-in test-lowest lint docs world bench clean

install: $(INSTALLED)

quickstart: $(INSTALLED)
	$(PY) tools/quickstart.py $(ARGS)

# Two processes, each of which runs whole test files. Their threads do not spin while they wait for a core.
test: $(INSTALLED)
	OMP_WAIT_POLICY=passive $(PY) -m pytest $(QUICKLY)

test-all: $(INSTALLED)
	$(PY) -m pytest
	$(MAKE) test-stand-in

# Tests on a fake GPU (tests/stand_in_gpu.py), which finds GPU errors on a machine without a GPU.
test-stand-in: $(INSTALLED)
	PYTHONPATH=tests OMP_WAIT_POLICY=passive $(PY) -m pytest -p stand_in_gpu $(QUICKLY)

# Tests of the parts that call other packages, with the lowest versions that the requirements allow. CI runs it when the
# requirements have changed since the last success.
test-lowest: $(LOWEST_INSTALLED)
	$(LOWEST_PY) -m pytest $(LOWEST_TESTS)
	sha256sum $(REQUIREMENTS) > .ci/lowest.sha256

lint: $(INSTALLED)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports

# Builds the site of docs/ into site/; a broken link stops it. `make docs ARGS=serve` serves it while you write.
docs: $(INSTALLED)
	$(PY) -m pip install --quiet -c constraints.txt 'mkdocs-material>=9.6' 'mkdocstrings[python]>=0.29'
	$(PY) -m mkdocs $(or $(ARGS),build)

world: $(INSTALLED)
	$(PY) tools/make_world.py

# Takes minutes; run nothing else meanwhile. ARGS=--only-join measures nothing and only joins the results.
bench: $(INSTALLED)
	$(PY) bench/join.py $(ARGS)

# Deletes caches only; the environment, data/ and runs/ stay.
clean:
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
	find ovd tools tests -name __pycache__ -type d -prune -exec rm -rf {} +

# ovd is installed editable, so that scripts and tests find it from any folder. torch installs the setuptools that
# builds it; without build isolation, setuptools is not downloaded again.
$(INSTALLED): requirements.txt requirements-dev.txt requirements-extras.txt requirements-no-deps.txt constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ovd needs Python 3.11 or newer: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -r requirements.txt -r requirements-dev.txt -r requirements-extras.txt -c constraints.txt
	$(PY) -m pip install --no-deps -r requirements-no-deps.txt -c constraints.txt
	$(PY) -m pip install --no-deps --no-build-isolation -e .
	touch $@

# Every lower bound in the requirements becomes the exact version, test tools included; pip chooses the versions of
# their dependencies.
$(LOWEST_INSTALLED): $(REQUIREMENTS)
	$(PYTHON) -m venv $(LOWEST)
	sed 's/>=/==/' requirements.txt > $(LOWEST)/requirements.txt
	sed -n 's/>=/==/; /^\(beartype\|hypothesis\|pytest\)=/p' requirements-dev.txt > $(LOWEST)/requirements-dev.txt
	sed 's/>=/==/' requirements-no-deps.txt > $(LOWEST)/requirements-no-deps.txt
	$(LOWEST_PY) -m pip install -r $(LOWEST)/requirements.txt -r $(LOWEST)/requirements-dev.txt
	$(LOWEST_PY) -m pip install --no-deps -r $(LOWEST)/requirements-no-deps.txt
	touch $@
