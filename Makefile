# Everything runs in .venv, which the first target that needs it sets up. Needs python3 >= 3.11, git and make.
PYTHON ?= python3
PIP_ARGS ?=
PYTEST_ARGS ?=
BIN := .venv/bin
READY := .venv/.ready
PICTURE := examples/pictures/shapes.png

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint format bench examples clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

demo: $(READY)  ## set up, then ask the model in the package about a picture and let it box what it names
	@mkdir -p out
	$(BIN)/modelwright chat vl2-nano "How many shapes are there?" --image $(PICTURE)
	$(BIN)/modelwright chat vl2-nano "<|grounding|>Locate <|ref|>the red circle<|/ref|>." --image $(PICTURE) --draw out/demo.png

# The tensors of the tests are too small for threads to help.
test test-all: export OMP_NUM_THREADS ?= 1
test: $(READY)  ## the quick tests
	$(BIN)/python -m pytest -q $(PYTEST_ARGS)

test-all: $(READY)  ## every test, the slow ones too
	$(BIN)/python -m pytest -q -m "" $(PYTEST_ARGS)

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

clean:  ## remove the virtual environment and everything written by the targets above
	rm -rf .venv out build dist .pytest_cache .ruff_cache .hypothesis
	find src tests recipes benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("modelwright needs Python 3.11 or newer, and $(PYTHON) is %d.%d: run make with PYTHON=<a newer one>" % v[:2])'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --disable-pip-version-check --no-input --quiet $(PIP_ARGS) -c constraints.txt -e ".[dev]"
	@touch $@
