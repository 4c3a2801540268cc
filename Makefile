# Two commands do everything: `make demo` and `make test`. Both set up .venv first, on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What pip is told about PyTorch. On Linux the package index may serve the CUDA build (gigabytes); for the CPU one:
#   make demo TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
# and for a GPU any version: make demo TORCH="torch>=2.6".
TORCH ?= torch==2.13.0
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-all test-web check format figures docs clean setup setup-dev
.DEFAULT_GOAL := demo

# PyTorch goes in first and alone, or the resolver would choose another build.
$(VENV)/.setup: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "self1e needs Python >= 3.11, found $$($(PYTHON) --version). Try: make PYTHON=python3.12"; exit 1; }
	@echo "Setting up $(VENV) (once, about a minute) ..."
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(if $(findstring >,$(TORCH)),"$(TORCH)",$(TORCH))
	$(PIP) -e .
	@touch $@

$(VENV)/.setup-dev: $(VENV)/.setup
	$(PIP) -e ".[dev]"
	@touch $@

setup: $(VENV)/.setup

setup-dev: $(VENV)/.setup-dev

demo: setup
	$(BIN)/self1e demo --out out/demo

test: setup-dev
	$(BIN)/python -m pytest -m "not slow and not gpu"

test-all: setup-dev $(VENV)-web/.setup
	$(BIN)/python -m pytest
	$(VENV)-web/bin/python -m pytest tests/web

# The web page has an environment of its own: gradio wants Pillow below 13, whose pictures differ in the last digit from
# those that the numbers of the published system were recorded with.
$(VENV)-web/.setup: pyproject.toml
	$(PYTHON) -m venv $(VENV)-web
	$(VENV)-web/bin/python -m pip install --quiet --disable-pip-version-check $(if $(findstring >,$(TORCH)),"$(TORCH)",$(TORCH))
	$(VENV)-web/bin/python -m pip install --quiet --disable-pip-version-check -e ".[demo,serve]" pytest pytest-timeout pytest-randomly httpx2 playwright
	@touch $@

test-web: $(VENV)-web/.setup
	$(VENV)-web/bin/python -m pytest tests/web -m "not slow"

check: setup-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: setup-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The pictures of README and docs, drawn from nano's real tensors.
figures: setup
	$(BIN)/python scripts/draw_figures.py

# The docs site, offline: open site/index.html.
docs: setup-dev
	$(BIN)/python scripts/build_docs.py

clean:
	rm -rf $(VENV) $(VENV)-web out build dist site
