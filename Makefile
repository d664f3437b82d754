# make demo: set up and run a federation of three architectures on digits. make test: set up and run the tests.
# make test-all: the slow ones too. make check: the linters, and the tests of what has changed since the last commit.
# make mutants: small changes of the code that no test sees, in a random sample. make docs: the guides and the API as a
# site in site/. make test-newest: the default tests with the newest version of every dependency, in an environment of its own.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/pytest --numprocesses 2 --dist loadgroup

.PHONY: demo test test-all test-newest check mutants docs lint clean

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

test-newest:
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/pip install --quiet --upgrade --upgrade-strategy eager --editable '.[dev]'
	.venv-newest/bin/pytest --numprocesses 2 --dist loadgroup -m "not slow"

check: lint
	$(BIN)/python tests/changed.py | xargs --no-run-if-empty $(PYTEST) -m "not slow"

mutants: $(VENV)/installed
	$(BIN)/python tests/mutants.py

docs: $(VENV)/installed
	$(BIN)/mkdocs build --strict --quiet

lint: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) .venv-newest build site *.egg-info
