# Everything a contributor runs. Each target sets up what it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Two workers on two cores; one torch thread each, or they fight.
PYTEST := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist loadscope
PROMPT ?= What is 17 + 25?
# Options of `dsv2 serve`, such as SERVE="v2-lite-chat --port 80".
SERVE ?= pocket

.PHONY: serve run test test-all check format install install-dev clean

serve: install ## Set up, then serve the pocket model: API, accounts and keys at http://127.0.0.1:8000
	@$(BIN)/dsv2 serve $(SERVE)

run: install ## Set up, then generate from the pocket model
	@$(BIN)/dsv2 run "$(PROMPT)"

test: install-dev ## The default suite: no GPU, no network, under five minutes on two cores
	$(PYTEST) -m "not slow and not gpu and not net"

test-all: install-dev ## The default suite's slow companions
	$(PYTEST) -m "slow and not gpu and not net"

check: install-dev ## Format, lint, types, import layers, then the default suite
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) test

format: install-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dsv2 needs Python 3.11 or newer, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)

# What the wheel is built from: a change of it installs anew.
BUILD := pyproject.toml CMakeLists.txt $(wildcard src/dsv2/kernels/cpu/csrc/*)

$(VENV)/.installed: $(BUILD) | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[serve]"
	@touch $@

$(VENV)/.installed-dev: $(BUILD) | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
