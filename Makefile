# `make build` compiles the C++ parts into build/ and makes the source tree importable in place.
VENV ?= .venv
PYTHON = $(VENV)/bin/python
JOBS ?= 2
CMAKE ?= $(firstword $(wildcard $(VENV)/bin/cmake) cmake)
NINJA ?= $(firstword $(wildcard $(VENV)/bin/ninja) ninja)

.PHONY: build clean-build

build: build/build.ninja
	@$(NINJA) -C build -j $(JOBS)
	@for so in build/_core*.so; do if [ -e $$so ]; then ln -sf ../../$$so nir/runtime/; fi; done
	@$(PYTHON) -c "import pathlib, sysconfig; \
	  pathlib.Path(sysconfig.get_path('purelib'), 'nir_in_place.pth').write_text(str(pathlib.Path.cwd()) + chr(10))"

build/build.ninja: pyproject.toml
	@$(CMAKE) -S . -B build -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(NINJA)) \
	  -DPython_EXECUTABLE=$(abspath $(PYTHON)) -Dpybind11_DIR=$$($(PYTHON) -m pybind11 --cmakedir)
	@touch $@

clean-build:
	rm -rf build nir/runtime/_core*.so
