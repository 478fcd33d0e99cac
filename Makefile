# make run: the main job on the embedded default. make test: lint and tests.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test lint clean

run: .venv/run.stamp
	$(BIN)/python -m dbl_jax.main --config=configs/dbl.py --workdir=runs/dbl

test: lint
	$(BIN)/pytest -n 2 --dist worksteal --cov

lint: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/bin/pip:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip

.venv/run.stamp: pyproject.toml | .venv/bin/pip
	$(BIN)/pip install --quiet --editable .
	touch $@

.venv/dev.stamp: pyproject.toml | .venv/bin/pip
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@ .venv/run.stamp

clean:
	rm -rf .venv runs .coverage*
