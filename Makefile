# Two commands do all the set-up: `make demo` and `make test`. Needs Python >= 3.11 with pip and venv, and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Weights come from packages, so no model hub is asked, and nothing waits for one that cannot be reached.
export HF_HUB_OFFLINE := 1
export TRANSFORMERS_OFFLINE := 1
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := 1

.PHONY: setup demo test bench gpu audit lint format proto clean

setup: $(READY)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Python {v[0]}.{v[1]} is too old; L2R2 needs 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): some minutes, about 7 GB"
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $(READY)

demo: $(READY)
	$(BIN)/l2r2 data starter --out data/starter
	$(BIN)/l2r2 train demo --data data/starter
	$(BIN)/l2r2 export latest:demo --data data/starter --name l2r2-demo
	$(BIN)/l2r2 evaluate mlruns/bundles/demo --data data/starter --out mlruns/demo/result.json
	@echo
	@echo 'figures as JSON: mlruns/demo/result.json'
	@echo 'try next:'
	@echo '  $(BIN)/mlflow ui --backend-store-uri sqlite:///mlruns/mlflow.db'
	@echo '  $(BIN)/l2r2 serve mlruns/bundles/demo'
	@echo '  $(BIN)/l2r2 recognize data/starter/reversed/bird-0000.jpg --server 127.0.0.1:50051 --habitat shore --month 5'

test: $(READY) lint
	$(BIN)/python -m pytest

bench: $(READY)
	$(BIN)/python -m tests.bench

gpu: $(READY)
	BIN=$(BIN) export/gpu.sh

audit: $(READY)
	$(BIN)/python -m tests.repo.audit

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/buf lint
	$(BIN)/shellcheck .ci/run export/gpu.sh
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: $(READY)
	$(BIN)/python -m l2r2_serving.generate

clean:
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
