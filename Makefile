# make run: configs/dbl.py on synthetic faces. make test: lint and tests.
# make docs: the documentation as a site, in build/docs.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test lint docs clean

run: .venv/run.stamp
	$(BIN)/python -m dbl_jax.main --config=configs/dbl.py --workdir=runs/dbl

test: lint
	$(BIN)/pytest -n 2 --dist worksteal --cov

lint: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/docs.stamp
	$(BIN)/sphinx-build -W --keep-going -q -d build/doctrees docs build/docs

.venv/bin/pip:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip

.venv/run.stamp: pyproject.toml | .venv/bin/pip
	$(BIN)/pip install --quiet --editable .
	touch $@

.venv/dev.stamp: pyproject.toml | .venv/bin/pip
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@ .venv/run.stamp

.venv/docs.stamp: pyproject.toml | .venv/bin/pip
	$(BIN)/pip install --quiet --editable '.[docs]'
	touch $@ .venv/run.stamp

clean:
	rm -rf .venv runs .coverage*
