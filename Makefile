# make setup     .venv with the omniloom command; TORCH_FLAGS='--index-url URL' takes torch from another index
# make demo      the demo pipeline, end to end, in runs/demo
# make test      the fast tests, in two processes (JOBS=8 on a larger machine); test-slow: those that start Ray, servers
#                or train, in one; test-pipeline: of these the one whole pipeline on Ray that a change has to pass
# make check     style, types, layers; types: mypy alone
# make docs      the pages of docs/ that are made from the code
# make chaos     whole pipelines on three Ray nodes, disturbed by 100 faults; CHAOS='--faults N --seed S' (docs/testing.md)
# make frauds    ten frauds planted in the demo's model: does the gate flag each? FRAUDS=FOLDER keeps the model (docs/testing.md)
# make mutants   mistakes made in the product on purpose: do the tests notice? (docs/testing.md)
PYTHON ?= python3.11
BIN := .venv/bin
OMP ?= 1
JOBS ?= 2

.PHONY: setup demo test test-slow test-pipeline check types docs chaos elastic frauds mutants clean bench-checkpoint \
	bench-tokenizer

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt $(TORCH_FLAGS) torch==2.13.0
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[test,dev]'
	touch $@

demo: setup
	$(BIN)/omniloom run pipelines/presets/demo.yaml

# A file's tests stay in one process, which makes the fixtures that they share once.
test: setup
	OMP_NUM_THREADS=$(OMP) $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile

test-slow: setup
	OMP_NUM_THREADS=$(OMP) $(BIN)/python -m pytest -q -m slow

test-pipeline: setup
	OMP_NUM_THREADS=$(OMP) $(BIN)/python -m pytest -q -m slow tests/e2e/test_pipeline.py \
		-k 'whole_artifact or mlflow_knows or second_run'

check: setup types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -q tests/test_layers.py

# mypy finds packages by folders: these links are what setup.py maps.
types: setup
	mkdir -p build/types/omniloom
	cd build/types/omniloom && ln -sfn ../../../omniloom/* . && \
		for folder in pipelines stages models infra; do ln -sfn ../../../$$folder $$folder; done
	$(BIN)/python -m mypy

docs: setup
	$(BIN)/python docs/make_api.py

chaos: setup
	$(BIN)/python tests/chaos/run.py $(CHAOS)

frauds: setup
	OMNILOOM_FRAUDS=$(FRAUDS) OMP_NUM_THREADS=$(OMP) $(BIN)/python -m pytest -q -m slow tests/frauds

mutants: setup
	OMP_NUM_THREADS=$(OMP) $(BIN)/python tests/mutants/run.py $(MUTANTS)

# 20 trainings that are killed and go on under other ranks, ZeRO stages and passes; 20 minutes on 2 cores.
elastic: setup
	OMP_NUM_THREADS=$(OMP) $(BIN)/python tests/chaos/elastic.py --schedules 20

bench-checkpoint: setup
	OMP_NUM_THREADS=$(OMP) $(BIN)/python tests/benchmarks/checkpoint.py --tokens 128

bench-tokenizer: setup
	$(BIN)/python tests/benchmarks/tokenizer.py --schemes

clean:
	rm -rf .venv build *.egg-info
