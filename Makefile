# make setup     .venv with the omniloom command; TORCH_FLAGS='--index-url URL' takes torch from another index
# make demo      the demo pipeline, end to end, in runs/demo
# make test      the fast tests; test-slow: those that start Ray, servers or train; bench: figures, no tests
# make check     style and layers
# make mutants   mistakes made in the product on purpose: do the tests notice? (docs/testing.md)
PYTHON ?= python3.11
BIN := .venv/bin
OMP ?= 1

.PHONY: setup demo test test-slow bench check mutants clean bench-tokenizer

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt $(TORCH_FLAGS) torch==2.13.0
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[test,dev]'
	$(BIN)/python -m omniloom.infra.training.prepare
	touch $@

demo: setup
	$(BIN)/omniloom run pipelines/presets/demo.yaml

test: setup
	OMP_NUM_THREADS=$(OMP) $(BIN)/python -m pytest -q

test-slow: setup
	OMP_NUM_THREADS=$(OMP) $(BIN)/python -m pytest -q -m slow

check: setup
	$(BIN)/ruff check .

mutants: setup
	OMP_NUM_THREADS=$(OMP) $(BIN)/python tests/mutants/run.py $(MUTANTS)

bench-tokenizer: setup
	$(BIN)/python tests/benchmarks/tokenizer.py --schemes

clean:
	rm -rf .venv build *.egg-info
