# Everything runs in one environment: .venv, unless VENV names another.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.warmstart-installed

.PHONY: help install demo test torture slow lint docs gpu-test build clean

help:
	@echo "make demo    the whole story in a minute (into warmstart-demo/)"
	@echo "make test    all tests"
	@echo "make torture thousands of damaged and hostile files, fifty kills; new ones each time"
	@echo "make slow    sweeps over several processes, and on a local Ray"
	@echo "make lint    ruff and mypy"
	@echo "make docs    the site (into site/)"
	@echo "make build   a wheel (into dist/)"

# The checkout may move under a shared environment, so the editable install is renewed when it does.
$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $(STAMP)

install: $(STAMP)
	@$(BIN)/python -c "import warmstart, pathlib; raise SystemExit(pathlib.Path(warmstart.__file__).parents[2] != pathlib.Path.cwd())" 2>/dev/null \
		|| $(BIN)/python -m pip install --quiet --no-deps -e .

demo: install
	$(BIN)/warmstart demo

test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile

torture: install
	WARMSTART_TORTURE=200 $(BIN)/python -m pytest -m torture -n 2

slow: install
	WARMSTART_SLOW=1 $(BIN)/python -m pytest -m slow

gpu-test: install
	$(BIN)/python -m pytest -m gpu

lint: install
	$(BIN)/ruff check src tests bench docs
	$(BIN)/ruff format --check src tests bench docs
	$(BIN)/mypy

docs: install
	$(BIN)/mkdocs build --strict

build: install
	$(BIN)/python -m pip install --quiet build
	$(BIN)/python -m build --wheel

clean:
	rm -rf dist build site warmstart-demo* .pytest_cache .mypy_cache .ruff_cache
