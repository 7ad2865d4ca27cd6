# Everything runs in .venv, which is made when there is none. Another Python: make test PYTHON=python3.12
PYTHON ?= python3
VENV ?= .venv
# More than the two cores of a small machine: slow tests wait a lot.
JOBS ?= 3
BIN := $(VENV)/bin
RUN := PATH="$(abspath $(BIN)):$$PATH"
# Without the package python3-venv of Debian, the first attempt leaves an environment without pip.
MAKE_VENV = @$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
# Python compiles a module when it is first imported; to compile all modules of all packages takes most of a minute.
INSTALL = $(BIN)/python -m pip install --quiet --no-compile

.PHONY: install dev demo test test-all test-unit test-lowest lint

install: $(VENV)/.installed ## the packages for training and testing

dev: $(VENV)/.installed-dev ## and the packages for the checks and tests of this code

$(VENV)/.installed: setup.py
	$(MAKE_VENV)
	$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-dev: setup.py
	$(MAKE_VENV)
	$(INSTALL) -e '.[dev]'
	@touch $(VENV)/.installed $@

demo: install ## the main job on synthetic videos: data, training, multi-view test, control
	$(RUN) bash exp/demo/run.sh

test: lint test-all ## the checks of the code and all tests; at the same time with make -j 2

test-all: dev ## all tests
	$(RUN) pytest -n $(JOBS) --dist worksteal

test-unit: dev ## the quick part of the tests
	$(RUN) pytest -n $(JOBS) --dist worksteal -m "not slow"

test-lowest: ## the quick tests with the oldest packages that are supported; before every release
	python3.10 -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/python -m pip install --quiet -e '.[dev]' -c tests/lowest.txt
	PATH="$(abspath $(VENV)-lowest/bin):$$PATH" pytest -n $(JOBS) --dist worksteal -m "not slow"

lint: dev ## the checks that pre-commit also runs
	$(RUN) pre-commit run --all-files --show-diff-on-failure
