# `make help` lists the commands. PYTHON names another interpreter for .venv, ARGS passes options on.
.DEFAULT_GOAL := help
.PHONY: help demo test check bench-serving figures image image-check lock

# onnxruntime reports its use to its maker unless told not to; for tools that load it by themselves.
export ORT_DISABLE_TELEMETRY := 1

INSTALLED := .venv/.complete
BIN := .venv/bin
SOURCES := $(wildcard benchmarks models scripts service tests training)

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

$(INSTALLED): requirements/all.txt pyproject.toml
	@scripts/setup-venv.sh $(if $(PYTHON),"$(PYTHON)")

demo: $(INSTALLED) ## Train, calibrate, export and serve the digits: PORT=9000 make demo; make demo ARGS=--once
	@$(BIN)/equipoise demo $(ARGS)

test: $(INSTALLED) ## All tests: make test ARGS="-k marc"
	@$(BIN)/python -m pytest $(ARGS)

check: $(INSTALLED) ## Lint, format and types
	@$(BIN)/ruff check --quiet $(SOURCES)
	@$(BIN)/ruff format --check --quiet $(SOURCES) || { echo "Not formatted: run $(BIN)/ruff format $(SOURCES)" >&2; exit 1; }
	@$(BIN)/mypy

bench-serving: $(INSTALLED) ## Compare servers (wrk, a quiet machine): make bench-serving ARGS="--peers litserve ray"
	@$(BIN)/python benchmarks/serving.py $(ARGS)

figures: $(INSTALLED) ## Draw the pictures of docs/calibration.md from the committed results
	@$(BIN)/python benchmarks/calibration_figures.py

image: ## Build the container image: make image; make image ARGS="serve train"
	@scripts/build-image.sh $(ARGS)

image-check: $(INSTALLED) ## Run the built image's own command and check what it does (Linux, root)
	@scripts/check-image.sh $(ARGS)

lock: ## Pin the dependencies again: make lock; make lock ARGS=--upgrade (needs uv)
	@scripts/lock.sh $(ARGS)
