# Two commands do everything on a fresh machine with Python 3.11+, a C++17 compiler and make:
#   make demo    set up, build, train ResNet-9, export it and classify with the package
#   make test    set up, build, lint and test
# `make build` compiles the C++ parts into build/ and makes the source tree importable in place.
VENV ?= .venv
PYTHON = $(VENV)/bin/python
JOBS ?= 2
CMAKE ?= $(firstword $(wildcard $(VENV)/bin/cmake) cmake)
NINJA ?= $(firstword $(wildcard $(VENV)/bin/ninja) ninja)

.DEFAULT_GOAL := build
.PHONY: setup build clean-build demo test test-all lint format bench

NEW_ENOUGH = import sys; sys.exit(sys.version_info < (3, 11))
SYSTEM_PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13; do \
  $$p -c "$(NEW_ENOUGH)" 2>/dev/null && echo $$p && break; done)
SETUP = $(VENV)/.installed
DATA ?=
EPOCHS ?=
SEED ?=
BATCH ?=

# ---- set-up: a virtual environment with what pyproject.toml names --------------------------------

setup: $(SETUP)

$(SETUP): pyproject.toml
	@test -n "$(SYSTEM_PYTHON)" || { echo "nir needs Python 3.11 or later, found none"; exit 1; }
	@test -x $(PYTHON) || $(SYSTEM_PYTHON) -m venv $(VENV)
	@$(PYTHON) -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb')); \
	  q = p['project']; e = q['optional-dependencies']; \
	  print(*p['build-system']['requires'], *q['dependencies'], *e['demo'], *e['dev'], sep=chr(10))" \
	  > $(VENV)/requirements.txt
	@$(PYTHON) -m pip install -q -r $(VENV)/requirements.txt
	@touch $@

# ---- build ---------------------------------------------------------------------------------------

build: $(SETUP) build/build.ninja
	@$(NINJA) -C build -j $(JOBS)
	@for so in build/_core*.so; do if [ -e $$so ]; then ln -sf ../../$$so nir/runtime/; fi; done
	@$(PYTHON) -c "import pathlib, sysconfig; \
	  pathlib.Path(sysconfig.get_path('purelib'), 'nir_in_place.pth').write_text(str(pathlib.Path.cwd()) + chr(10))"

build/build.ninja: pyproject.toml | $(SETUP)
	@$(CMAKE) -S . -B build -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(NINJA)) \
	  -DPython_EXECUTABLE=$(abspath $(PYTHON)) -Dpybind11_DIR=$$($(PYTHON) -m pybind11 --cmakedir)
	@touch $@

clean-build:
	rm -rf build nir/runtime/_core*.so

# ---- use -----------------------------------------------------------------------------------------

# DATA= a CIFAR-10 (cifar-10-batches-py) or MNIST (IDX) folder; scikit-learn's digits without it.
demo: build
	$(PYTHON) -m examples.demo $(if $(DATA),--data $(DATA)) $(if $(EPOCHS),--epochs $(EPOCHS)) \
	  $(if $(SEED),--seed $(SEED)) $(if $(BATCH),--batch $(BATCH))

# Beside the peers that are installed (`pip install -e .[bench]` is not done here); BENCH= options,
# such as BENCH="--only resnet9 --report docs".
BENCH ?=
bench: build
	$(PYTHON) -m benchmarks $(BENCH)

lint: $(SETUP)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

format: $(SETUP)
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

# Half of the random graphs: `test-all` has 2,000, and counts how often each op occurs in them.
test: build lint
	$(PYTHON) -m pytest -m "not slow" -n $(JOBS) --dist worksteal --fuzz-graphs 1000

test-all: build lint
	$(PYTHON) -m pytest
