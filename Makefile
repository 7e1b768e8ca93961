# `make help` lists the targets. All run in .venv, which they make and renew by themselves.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := build/demo

SHELL := bash
.DEFAULT_GOAL := help

STAMP := $(VENV)/installed

.PHONY: help demo test test-long fuzz campaign lint type pytest tensorrt-cpu gpu-proof format clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(STAMP)  ## Export the encoder to ONNX and run it on a photograph (random weights, no download)
	$(BIN)/fvexport onnx --res 1024 --out $(DEMO)/fastvithd-1024 --force
	photo=$$($(BIN)/python -c 'from fvexport.encoder.image import sample_images as s; print(s()["astronaut"])') && \
	$(BIN)/fvexport encode "$$photo" --artifact $(DEMO)/fastvithd-1024 --out $(DEMO)/features.safetensors --force

test: lint type pytest  ## Lint, type check and run all tests

lint: $(STAMP)  ## Check style, formatting, declared dependencies and the order of layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/deptry .
	$(BIN)/lint-imports --no-cache --no-logo

# mypy names a package after its folder, and this folder may have any name: a link shows it as `fvexport`. Findings are
# printed with the paths of the repository.
TYPES := build/types
type: $(STAMP)  ## Check types in every file of the package
	@rm -rf $(TYPES) && mkdir -p $(TYPES) && ln -s "$(CURDIR)" $(TYPES)/fvexport
	set -o pipefail; cd $(TYPES) && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache \
	| sed -E 's#^fvexport/##'

pytest: $(STAMP) tensorrt-cpu  ## Run all tests on two cores (a part of them: .venv/bin/pytest tests/encoder)
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

test-long: $(STAMP) tensorrt-cpu  ## Run the tests that take minutes
	$(BIN)/pytest -m long

FUZZ := 5000
fuzz: $(STAMP)  ## Read damaged files of every kind, FUZZ=5000 for each reader (minutes)
	FUZZ_EXAMPLES=$(FUZZ) $(BIN)/pytest -n 2 --dist worksteal --timeout 3600 tests/fuzzing

COUNT := 50
SEED := 0
campaign: FUZZ := 500
campaign: $(STAMP)  ## Kill, starve and attack every command, in at most 30 minutes (parts: ONLY=kills,faults COUNT=5)
	$(BIN)/python tests/campaign --seed $(SEED) --count $(COUNT) --fuzz $(FUZZ) --only '$(ONLY)' $(if $(INDEX),--index $(INDEX))

tensorrt-cpu: $(STAMP)  ## Fetch a TensorRT for the tests that builds engines without a GPU (once, 100 MB)
	@$(BIN)/python tests/tensorrt_cpu.py

# A machine with a GPU has torch and triton in its own Python, perhaps no network, and then needs no .venv.
PROOF := build/proof
SECONDS := 470
ifneq ($(filter gpu-proof,$(MAKECMDGOALS)),)
NEEDED := import sys; from importlib.util import find_spec as f; sys.exit(not (f("torch") and f("triton")))
OWN := $(shell $(PYTHON) -c '$(NEEDED)' && echo yes)
endif
gpu-proof: $(if $(OWN),,$(STAMP))  ## Check and time everything on this machine's GPU (DRY=1: every line, on the CPU)
	$(if $(OWN),$(PYTHON),$(BIN)/python) benchmarks/studies/gpu/proof.py --out $(PROOF) --seconds $(SECONDS) $(if $(DRY),--dry-run)

format: $(STAMP)  ## Mend formatting and what else ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove the environment, builds and caches
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

# torch goes first and alone, so that a build for this machine's disk or CPU is taken where pip knows of one.
$(STAMP): setup.py pyproject.toml constraints.txt
	@echo "Installing into $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt torch
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@rm -f $(VENV)/installed-*
	@touch $@
