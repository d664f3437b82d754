# make demo: set up and run a federation of three architectures on digits. make test: set up and run the tests.
# make test-all: the slow ones too. make check: the linters, and the tests of what has changed since the last commit.
# make mutants: small changes of the code that no test sees, in a random sample.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/pytest --numprocesses 2 --dist loadgroup

.PHONY: demo test test-all check mutants lint clean

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

demo: $(VENV)/installed
	$(BIN)/fedkd run configs/fedmd/quick.toml

test: $(VENV)/installed
	$(PYTEST) -m "not slow"

test-all: $(VENV)/installed
	$(PYTEST)

check: lint
	$(BIN)/python tests/changed.py | xargs --no-run-if-empty $(PYTEST) -m "not slow"

mutants: $(VENV)/installed
	$(BIN)/python tests/mutants.py

lint: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) build *.egg-info
