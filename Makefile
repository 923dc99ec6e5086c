# Every target installs what it needs into .venv first, so `make demo` and `make test` work in a new clone.

# The interpreter of .venv; empty means the first of python3.11, 3.12, 3.13, python3 and python that is 3.11 or newer.
PYTHON ?=
# Task of `make demo`: easy, medium or hard.
TASK ?= medium
# For example DEMO_ARGS=--hub, to download the model from the Hugging Face hub.
DEMO_ARGS ?=
# Number of pytest processes; 0 runs the tests in one process, for a debugger.
WORKERS ?= 2
# Scale of the counts of `make stress` and `make chaos`, and for example STRESS_ARGS='--json FILE' or CHAOS_ARGS='--parts kills'.
SCALE ?= 1.0
STRESS_ARGS ?=
CHAOS_ARGS ?=
# For example EVIDENCE_ARGS='fig03 fig09 --part 1/2'.
EVIDENCE_ARGS ?=
# For example PYTEST_ARGS='-k replay'.
PYTEST_ARGS ?=
# torch for the parity tests: 1 installs it, 0 does not, auto installs it on Python 3.11.
# The TPU extra is installed on Linux x86-64, the only platform with wheels: some tests use its compiler, which needs no TPU.
PARITY ?= auto

VENV := .venv
BIN := $(VENV)/bin
# worksteal gives each process consecutive files, so that the tests of a file share fixtures and compiled programs.
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

.DEFAULT_GOAL := help
.PHONY: help install install-demo cuda-compiler dist docs demo test test-fast lint format bench bench-performance stress chaos evidence evidence-quick figures clean
.DELETE_ON_ERROR:

help:
	@echo "make demo               watch SmolLM2-135M learn to answer by ReVal (TASK=easy, medium or hard)"
	@echo "make test               run every test; some 25 minutes on two cores"
	@echo "make test-fast          run the tests that take less than about 5 seconds each; about 5 minutes on two cores"
	@echo "make lint               check style, security rules and types"
	@echo "make format             rewrite the sources in the style that make lint checks"
	@echo "make bench              measure and plot the learning curves in docs/"
	@echo "make bench-performance  time the LM head, update and sampler, and plot docs/performance.svg"
	@echo "make stress             grade 10,000 adversarial answers and 1,000 that hang; SCALE=0.1 for a tenth"
	@echo "make chaos              kill, corrupt, signal, fail calls and fill the disk of tiny runs, resume and compare; SCALE=0.1 for a tenth"
	@echo "make evidence           play the missing runs of every figure of docs/evidence.md, hours on two cores; EVIDENCE_ARGS=fig03"
	@echo "make evidence-quick     play figures 3 and 9 with four seeds, three minutes on two cores, into runs/quick"
	@echo "make figures            draw the figures of docs/evidence.md again from their records"
	@echo "make docs               build the documentation as a site in site/; a broken link or reference fails the build"
	@echo "make dist               build wheel and sdist into dist/, install the wheel into a new environment, and test it"
	@echo "make install            create .venv with the package (editable) and its test tools; other targets do this themselves"
	@echo "make install-demo       create .venv with the package (editable) and its dependencies only"
	@echo "make clean              remove .venv, caches and builds, but not runs/ and models/"
	@echo
	@echo "Settings: PYTHON=$(or $(PYTHON),automatic) TASK=$(TASK) WORKERS=$(WORKERS) PARITY=$(PARITY) PYTEST_ARGS='$(PYTEST_ARGS)'"

# Two stamps, so that the demo does not wait for the test tools and nothing is installed twice.
install: $(VENV)/.installed-test
install-demo: $(VENV)/.installed-run

$(VENV)/.installed-run: pyproject.toml requirements.txt
	@python='$(PYTHON)'; \
	for candidate in $${python:-python3.11 python3.12 python3.13 python3 python}; do \
	    if "$$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        interpreter="$$candidate"; break; fi; \
	done; \
	if [ -z "$$interpreter" ]; then \
	    echo "make: there is no Python 3.11 or newer with its venv module (tried: $${python:-python3.11 python3.12 python3.13 python3 python})." >&2; \
	    echo "Install one (Debian, Ubuntu: apt-get install python3 python3-venv), or name it: make PYTHON=/path/to/python ..." >&2; \
	    exit 1; \
	fi; \
	set -ex; "$$interpreter" -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[plot]" --constraint requirements.txt
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed-run
	@extras=test,plot,trackers; \
	case '$(PARITY)' in \
	    0) ;; \
	    1) extras=$$extras,parity ;; \
	    auto) if $(BIN)/python -c 'import sys; sys.exit(sys.version_info >= (3, 12))'; then extras=$$extras,parity; fi ;; \
	    *) echo "make: PARITY=$(PARITY) is not known. Use 0, 1 or auto." >&2; exit 1 ;; \
	esac; \
	case "$$(uname -sm)" in 'Linux x86_64') extras=$$extras,tpu ;; esac; \
	set -ex; $(BIN)/python -m pip install --quiet --editable ".[$$extras]" --constraint requirements.txt
	@case "$$(uname -sm)" in 'Linux x86_64') $(MAKE) --no-print-directory cuda-compiler || \
	    echo "make: without XLA's compiler for NVIDIA GPUs the tests marked gpu_compile are skipped." >&2 ;; esac
	@touch $@

# XLA's compiler for NVIDIA GPUs, for tests of the programs that a GPU would run; it needs no GPU and no driver. It is beside the
# environment's packages, not among them: installed there, it makes jax report the missing driver whenever it starts.
cuda-compiler:
	version=$$($(BIN)/python -c 'import importlib.metadata; print(importlib.metadata.version("jax"))') && \
	    $(BIN)/python -m pip install --quiet --no-deps --no-compile --upgrade --target $(VENV)/cuda-compiler \
	    jax-cuda13-plugin==$$version jax-cuda13-pjrt==$$version 'nvidia-cuda-nvcc>=13,<14' 'nvidia-nvvm>=13,<14'

$(VENV)/.installed-docs: $(VENV)/.installed-run
	$(BIN)/python -m pip install --quiet --editable ".[docs]" --constraint requirements.txt
	@touch $@

# Makes glibc allocate large arrays in huge pages where possible, which causes fewer page faults.
demo bench bench-performance: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

demo: install-demo
	$(BIN)/python -m reval_jax.tools.demo --task $(TASK) $(DEMO_ARGS)

test: install
	$(PYTEST)

test-fast: install
	$(PYTEST) -m "not slow"

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: install
	$(BIN)/python -m benchmarks.learning_curves

bench-performance: install
	$(BIN)/python -m benchmarks.performance

stress: install
	$(BIN)/python -m benchmarks.stress --scale $(SCALE) $(STRESS_ARGS)

chaos: install
	$(BIN)/python -m benchmarks.chaos --scale $(SCALE) $(CHAOS_ARGS)

evidence: install
	$(BIN)/python -m benchmarks.figures run $(EVIDENCE_ARGS)

evidence-quick: install-demo
	$(BIN)/python -m benchmarks.figures quick

figures: install-demo
	$(BIN)/python -m benchmarks.figures draw

# The variable suppresses a message of Material about MkDocs 2 that does not concern this site.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# The new environment can import this one's libraries, so that nothing is downloaded twice, but not this checkout.
dist: install
	rm -rf dist build/wheel-test
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python -m venv build/wheel-test
	build/wheel-test/bin/python -m pip install --quiet --no-deps --no-index dist/reval_jax-*.whl
	build/wheel-test/bin/python -c 'import pathlib, site, sys; pathlib.Path(site.getsitepackages()[0], "libraries.pth").write_text(sys.argv[1])' \
	    "$$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])')"
	cd build/wheel-test && bin/python -I $(CURDIR)/.ci/check_wheel.py
	cd build/wheel-test && bin/reval --help > /dev/null && bin/reval doctor

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist site
	find reval_jax tests benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
