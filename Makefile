# `make demo`, `make serve`, `make test`, `make bench`, `make accept-N`: each sets up what it needs in .venv.

.ONESHELL:
.SHELLFLAGS := -eu -c
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check
CHECKPOINT := build/demo
PRECISION := fp32
PRECISIONS := fp32 fp8 int4 nvfp4
ENGINES := var/engines/demo-cpu
ENGINE := $(ENGINES)-$(PRECISION)
BUILD_ENGINE := $(BIN)/dgemma-build engine --checkpoint $(CHECKPOINT) --target cpu --precision $(PRECISION) --out $(ENGINE)
SOURCES := python_backend build/dgemma_build helm/files/tests loadtest tests
export PATH := $(BIN):$(PATH)
# Nothing here may reach for a model on the network.
export HF_HUB_OFFLINE := 1
export ORT_DISABLE_TELEMETRY := 1

.PHONY: demo serve loadtest test bench accept-1 accept-2 accept-3 accept-4 accept-5 accept-6 accept-7 bench-gpu soak image-check train-demo evaluate-demo evaluate-precisions clean help

help:
	@sed -n 's/^## //p' Makefile

## make demo           solve a Sudoku over gRPC with the real Triton server; PRECISION=fp8, int4, nvfp4
demo: $(VENV)/.runtime
	@$(BUILD_ENGINE)
	exec $(BIN)/python -m dgemma_build.demo.showcase --engine $(ENGINE) --checkpoint $(CHECKPOINT)

## make serve          serve the demo checkpoint: HTTP on 8000 with a page at /, gRPC 8001, metrics 8002
serve: $(VENV)/.runtime
	@$(BUILD_ENGINE)
	export NIM_MODEL_PATH="$${NIM_MODEL_PATH:-$(CURDIR)/$(ENGINE)}"
	export DGEMMA_CHECKPOINT="$${DGEMMA_CHECKPOINT:-$(CURDIR)/$(CHECKPOINT)}"
	export DGEMMA_HOST="$${DGEMMA_HOST:-127.0.0.1}"
	exec $(BIN)/dgemma serve --model-repository model_repository

## make loadtest       two minutes of load on the demo checkpoint, and a report about them
loadtest: $(VENV)/.loadtest
	@$(BUILD_ENGINE)
	exec $(BIN)/python -m dgemma_build.demo.loaded --engine $(ENGINE) --checkpoint $(CHECKPOINT) --out var/loadtest/demo

## make test           type check, lint and all tests
test: $(VENV)/.test
	@$(BIN)/ruff check --quiet $(SOURCES)
	$(BIN)/ruff format --quiet --check $(SOURCES)
	$(BIN)/mypy
	exec $(BIN)/python -m pytest --numprocesses 2 --dist loadscope --no-loadscope-reorder $(PYTEST)

## make bench          speed against Hugging Face's implementation and against the bare engine
bench: $(VENV)/.test
	@$(BUILD_ENGINE)
	exec $(BIN)/python -m tests.bench --engine $(ENGINE) --checkpoint $(CHECKPOINT)

## make bench-gpu      the torch engine on this machine's GPU, on random weights of the 26B network
bench-gpu: $(VENV)/.test
	@exec $(BIN)/python -m dgemma.bench gpu --out var/bench-gpu

## make accept-1       the slow checks of part 1, as a table
accept-1: $(VENV)/.test
	@$(BUILD_ENGINE)
	exec $(BIN)/python -m tests.accept.main_job --engine $(ENGINE) --checkpoint $(CHECKPOINT)

## make accept-2       the slow checks of the build step: plans of the real network, quantising 8 GB
accept-2: $(VENV)/.test
	@$(BIN)/python -m tests.accept.emission
	$(BIN)/python -m tests.accept.builds
	exec $(BIN)/python -m tests.accept.quantize

## make accept-3       the slow checks of many users at once, some of them on simulated GPUs
accept-3: $(VENV)/.test
	@$(BUILD_ENGINE)
	$(BIN)/python -m tests.accept.many_users --engine $(ENGINE) --checkpoint $(CHECKPOINT)
	exec $(BIN)/python -m tests.accept.simulated

## make accept-4       the slow checks of the whole service: its surface, and faults under load
accept-4: $(VENV)/.test
	@$(BUILD_ENGINE)
	$(BIN)/python -m tests.accept.surface --engine $(ENGINE) --checkpoint $(CHECKPOINT)
	exec $(BIN)/python -m tests.accept.chaos --engine $(ENGINE) --checkpoint $(CHECKPOINT)

## make accept-5       the slow checks of the chart: releases and values, its pods and engines as processes
accept-5: $(VENV)/.test
	@$(BUILD_ENGINE)
	$(BIN)/python -m tests.accept.chart
	exec $(BIN)/python -m tests.accept.chart_live --engine $(ENGINE) --checkpoint $(CHECKPOINT)

## make accept-6       the slow checks of the load tests: calibration, aiperf, platforms, tenants, Ctrl-C
accept-6: $(VENV)/.test
	@$(BUILD_ENGINE)
	$(BIN)/python -m tests.accept.calibration
	exec $(BIN)/python -m tests.accept.load --engine $(ENGINE) --checkpoint $(CHECKPOINT)

## make accept-7       the slow checks of the GPU engine that need no GPU: every chip, real widths, tokens
accept-7: $(VENV)/.test
	@$(BUILD_ENGINE)
	exec $(BIN)/python -m tests.accept.kernels --engine $(ENGINE) --checkpoint $(CHECKPOINT)

## make soak           30 minutes at 80 % of what the service can do
soak: $(VENV)/.test
	@$(BUILD_ENGINE)
	exec $(BIN)/python -m tests.accept.surface --engine $(ENGINE) --checkpoint $(CHECKPOINT) --only soak

## make image-check    build the image for CPUs without a registry and serve from it; as root, with buildah
image-check: $(VENV)/.test
	@$(BUILD_ENGINE)
	exec $(BIN)/python -m tests.accept.image --engine $(ENGINE) --checkpoint $(CHECKPOINT)

## make evaluate-demo  what the demo checkpoint can do, on 500 tasks a line
evaluate-demo: $(VENV)/.runtime
	@$(BUILD_ENGINE)
	exec $(BIN)/python -m dgemma_build.demo.evaluate --engine $(ENGINE) --checkpoint $(CHECKPOINT)

## make evaluate-precisions  quality, steps, size and repeated passes of every precision
evaluate-precisions: $(VENV)/.runtime
	@for precision in $(PRECISIONS); do
	  $(BIN)/dgemma-build engine --checkpoint $(CHECKPOINT) --target cpu --precision $$precision --out $(ENGINES)-$$precision
	done
	exec $(BIN)/python -m dgemma_build.demo.compare $(PRECISIONS:%=--engine $(ENGINES)-%) --checkpoint $(CHECKPOINT)

## make train-demo     train the demo checkpoint from scratch (hours on a CPU, resumable)
train-demo: $(VENV)/.runtime
	@$(BIN)/python -m dgemma_build.demo.train --run var/demo-run
	exec $(BIN)/python -m dgemma_build.demo.export --run var/demo-run --out $(CHECKPOINT)

## make clean          remove the environment and the engines
clean:
	rm -rf $(VENV) var

$(VENV)/bin/python:
	@for python in $${PYTHON:-python3 python3.12 python3.11}; do
	  if "$$python" -c 'import sys; sys.exit(sys.version_info[:2] not in {(3, 11), (3, 12)})' 2>/dev/null; then
	    exec "$$python" -m venv $(VENV)
	  fi
	done
	echo "error: Python 3.11 or 3.12 is needed and $$(python3 --version 2>&1 || echo none) was found; install one, or name it: make PYTHON=/path/to/python3.12" >&2
	exit 1

$(VENV)/.runtime: requirements-runtime.lock requirements-build.lock requirements-triton.lock python_backend/pyproject.toml build/pyproject.toml | $(VENV)/bin/python
	@echo "setting up $(VENV): some 300 MB of wheels, a minute or two …" >&2
	$(PIP) -r requirements-runtime.lock -r requirements-build.lock
	$(PIP) --no-deps -r requirements-triton.lock
	$(PIP) --no-deps --no-build-isolation -e python_backend -e build
	touch $@

$(VENV)/.loadtest: requirements-loadtest.lock loadtest/pyproject.toml $(VENV)/.runtime
	@echo "setting up the load tests …" >&2
	$(PIP) --no-deps -r requirements-loadtest.lock
	$(PIP) --no-deps --no-build-isolation -e loadtest
	touch $@

$(VENV)/.test: requirements-test.lock $(VENV)/.runtime $(VENV)/.loadtest
	@echo "setting up the tests …" >&2
	$(PIP) -r requirements-test.lock
	touch $@
