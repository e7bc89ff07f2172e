# Two commands from a bare clone: `make demo` and `make test`. Both set up .venv first and skip that when it is done.

PYTHON ?= python3
COUNT ?= 1
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

export RAY_USAGE_STATS_ENABLED := 0
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := 1

.PHONY: demo test test-all faults services lint docs setup clean

demo: $(READY)  ## build the glyphs data set, search embedding dimension and negatives, print the best
	$(BIN)/python experiments/tune_embed_dim.py

test: $(READY)  ## the tests, in three processes of one thread each: one of them is for Ray and often waits
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 3

test-all: $(READY)  ## what `make test` leaves out: tests of more than a minute, and those on clusters of several Ray nodes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slow or cluster"

faults: $(READY)  ## studies struck by faults, each COUNT times
	$(BIN)/python -m pytest -m faults --count $(COUNT) -ra

services: $(READY)  ## an MLflow server on PostgreSQL, for MLFLOW_TRACKING_URI=http://127.0.0.1:5000
	$(BIN)/python -m kiloseg.tracking.services --folder runs/services

lint: $(READY)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(READY)  ## the documentation, into runs/docs; a broken link or an undocumented public name ends it
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet -d runs/docs/doctrees docs runs/docs/html
	@echo "runs/docs/html/index.html"

setup: $(READY)  ## the environment alone

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "kiloseg needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
		echo "$(PYTHON) cannot make a virtual environment; on Debian or Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade pip
	@echo "installing into $(VENV): about 6.5 GB, most of it torch; a few minutes"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:  ## remove the environment and all results
	rm -rf $(VENV) runs
