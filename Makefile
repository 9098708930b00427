# Every target installs what it needs, and no more, into .venv; the test matrix into .tox.
PYTHON ?= python3
BIN := .venv/bin
PACKAGE := .venv/.package
READY := .venv/.dev
LEGS ?= eric20,lowest
# Interpreters that pyenv keeps off the PATH.
PYENV_BINS := $(subst $(eval) ,:,$(wildcard $(HOME)/.pyenv/versions/3.1*/bin))

.PHONY: help demo live test lint docs coverage bench torture test-matrix test-legs clean
.DEFAULT_GOAL := help

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

$(PACKAGE): pyproject.toml $(wildcard migrations/*.py)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/pip uninstall --quiet --quiet --yes setuptools  # 10 MB that older Pythons bring, and nothing here needs
	$(BIN)/pip install --quiet --editable .
	touch $@

# A dependency group of pyproject.toml.
.venv/.%: $(PACKAGE)
	$(BIN)/pip install --quiet --group $*
	touch $@

demo: $(PACKAGE) $(if $(findstring postgres,$(ARGS)),.venv/.postgres) ## the main job, on SQLite; ARGS="--url postgresql://..." for another database
	$(BIN)/python examples/demo.py $(ARGS)

live: export ERIC_SSE_SQL_URL ?= sqlite:///live_feed.db
live: .venv/.live $(if $(findstring postgres,$(ERIC_SSE_SQL_URL)),.venv/.postgres) ## a page that shows what others type, on SQLite; ARGS="--port 8001 --workers 2" for the server
	$(BIN)/uvicorn app:app --app-dir examples/live_feed $(ARGS)

test: lint ## lint, types, and the tests on SQLite in memory, SQLite in a file, and Postgres
	$(BIN)/pytest $(ARGS)

lint: $(READY) ## style and types alone
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/.docs ## HTML in build/docs, from docs/ and the docstrings; ARGS="-b linkcheck" asks for external links
	$(BIN)/sphinx-build --fail-on-warning --keep-going --fresh-env --quiet docs build/docs $(ARGS)

coverage: $(READY) ## which lines and branches the tests reach
	$(BIN)/coverage run -m pytest $(ARGS)
	$(BIN)/coverage report --show-missing

bench: $(READY) .venv/.bench ## measure against the raw drivers, and keep the figures; ARGS="compare --before PYTHON" for two versions
	$(BIN)/python -m benchmarks $(ARGS)

torture: $(READY) .venv/.torture ## kill, crash and cut everything, and count what is lost; ARGS="--short" for two minutes
	$(BIN)/python -m torture $(ARGS)

test-matrix: $(READY) ## the tests on every Python 3.10-3.13 found, both eric-sse, and the lowest dependencies
	PATH="$(PYENV_BINS):$$PATH" $(BIN)/tox run $(ARGS)

test-legs: $(READY) ## the tests on eric-sse 2.0, and on the lowest dependencies
	PATH="$(PYENV_BINS):$$PATH" $(BIN)/tox run -e $(LEGS) $(ARGS)

clean: ## remove what the other targets made
	rm -rf .venv .tox build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis live_feed.db*
