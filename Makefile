# SPDX-License-Identifier: BSD-3-Clause
# Every target does its own set-up in .venv/ and build/, and only once. `make help` lists them.

PYTHON ?= python3
VENV ?= .venv
JOBS ?= $(shell nproc)
STAMPS := $(VENV)/stamps
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --quiet --disable-pip-version-check
# cmake and ninja from PyPI go into the virtual environment when the system has none
export PATH := $(abspath $(VENV))/bin:$(PATH)
export CMAKE_BUILD_PARALLEL_LEVEL ?= $(JOBS)
export CMAKE_CXX_COMPILER_LAUNCHER ?= $(shell command -v ccache)

cxx_sources := CMakeLists.txt $(shell find csrc -name '*.[ch]pp')
sources := pyproject.toml $(cxx_sources) $(shell find python -type f -not -name '*.pyc')
cxx_format := $(shell find csrc tests benchmarks -name '*.[ch]pp')

.PHONY: help build demo test lint format test-cpp test-python asan tsan thread-safety tidy fuzz defects mutants coverage chaos bench bench-check interop-full vfio clean
.DELETE_ON_ERROR:

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

build: $(STAMPS)/package ## the package in .venv/

demo: $(STAMPS)/package ## a port and a guest exchange packets for some seconds, every byte checked
	$(PY) -m vhost_ioat demo

test: lint test-cpp test-python ## everything: format, lint, types, C++ tests, Python tests, real peers where installed

lint: $(STAMPS)/package $(STAMPS)/dev ## clang-format, ruff, mypy, stubtest
	clang-format --dry-run -Werror $(cxx_format)
	ruff format --check
	ruff check
	tools/defects --check
	tools/mutants --check
	mypy
	cd $(VENV) && python -m mypy.stubtest vhost_ioat._core --allowlist $(CURDIR)/tools/stubtest-allowlist.txt

format: $(STAMPS)/dev ## apply the fixes of clang-format and ruff
	clang-format -i $(cxx_format)
	ruff check --fix --exit-zero
	ruff format

docs/architecture.svg: docs/architecture.dot ## the picture in ARCHITECTURE.md; needs graphviz
	dot -Tsvg $< -o $@

test-cpp: $(STAMPS)/venv ## the C++ tests
	cmake --preset dev
	cmake --build --preset dev
	ctest --preset dev

test-python: $(STAMPS)/package $(STAMPS)/dev ## pytest; PYTEST_ARGS narrows it
	$(PY) -m pytest $(PYTEST_ARGS)

ASAN_TESTS ?= tests/unit tests/property tests/protocol
asan: $(STAMPS)/package $(STAMPS)/dev ## C++ tests and ASAN_TESTS under AddressSanitizer and UndefinedBehaviorSanitizer
	cmake --preset asan-ubsan -DVHOST_IOAT_PYTHON=ON -DPython_EXECUTABLE=$(abspath $(PY)) \
	  -Dpybind11_DIR=$$($(PY) -m pybind11 --cmakedir)
	cmake --build --preset asan-ubsan
	ctest --preset asan-ubsan
	rm -rf build/asan-python
	mkdir -p build/asan-python
	cp -r python/vhost_ioat build/asan-python
	cmake --install build/asan-ubsan --prefix build/asan-python
	tools/with-asan build/asan-python $(PY) -m pytest -m "not address_space" $(ASAN_TESTS) $(PYTEST_ARGS)

tsan: $(STAMPS)/venv ## C++ tests under ThreadSanitizer
	cmake --preset tsan
	cmake --build --preset tsan
	ctest --preset tsan

thread-safety: $(STAMPS)/venv ## clang checks which thread may touch what, and holding which mutex (make fuzz does, too, but for the bindings)
	tools/need clang
	cmake --preset clang -DPython_EXECUTABLE=$(abspath $(PY)) -Dpybind11_DIR=$$($(PY) -m pybind11 --cmakedir)
	cmake --build --preset clang

# Nothing is built there: only how each file is compiled is written down. clang cannot read g++'s precompiled headers.
tidy: $(STAMPS)/dev ## clang-tidy on all C++ files, with the checks of .clang-tidy
	cmake --preset dev -B build/tidy -DVHOST_IOAT_PYTHON=ON -DVHOST_IOAT_BENCHMARKS=ON -DVHOST_IOAT_FUZZERS=ON \
	  -DCMAKE_DISABLE_PRECOMPILE_HEADERS=ON -DPython_EXECUTABLE=$(abspath $(PY)) \
	  -Dpybind11_DIR=$$($(PY) -m pybind11 --cmakedir)
	run-clang-tidy.py -quiet -hide-progress -p build/tidy -j $(JOBS)

FUZZ_SECONDS ?= 30
fuzz: $(STAMPS)/venv ## each libFuzzer target for FUZZ_SECONDS (30), from its seeds; needs clang
	tools/need clang libclang-rt
	cmake --preset fuzz
	cmake --build --preset fuzz
	tools/fuzz build/fuzz $(FUZZ_SECONDS)

defects: $(STAMPS)/package $(STAMPS)/dev ## each known mistake of tests/defects, put in again, must make its tests fail
	tools/defects $(DEFECTS)

MUTANTS_SEED ?= 1
MUTANTS_COUNT ?= 150
MUTANTS_FILES ?= csrc/*/*.[ch]pp
mutants: $(STAMPS)/package $(STAMPS)/dev ## MUTANTS_COUNT (150) small mistakes in MUTANTS_FILES, one at a time; a test must fail
	tools/mutants --seed $(MUTANTS_SEED) --count $(MUTANTS_COUNT) --files '$(MUTANTS_FILES)'

coverage: $(STAMPS)/package $(STAMPS)/dev ## lines and branches of csrc that the C++, unit and protocol tests reach
	cmake --preset coverage -Dpybind11_DIR=$$($(PY) -m pybind11 --cmakedir) -DPython_EXECUTABLE=$(abspath $(PY))
	cmake --build --preset coverage
	find build/coverage -name '*.gcda' -delete
	ctest --preset coverage
	cmake --install build/coverage --prefix build/coverage/python >/dev/null
	cp -r python/vhost_ioat build/coverage/python/
	PYTHONPATH=build/coverage/python $(PY) -m pytest tests/unit tests/protocol $(PYTEST_ARGS)
	$(VENV)/bin/gcovr --root . --filter csrc/ --exclude-throw-branches --exclude-unreachable-branches \
	  --gcov-ignore-errors all --html-details build/coverage/index.html --txt build/coverage/coverage.txt build/coverage
	tail -5 build/coverage/coverage.txt

CHAOS_SECONDS ?= 600
CHAOS_SEED ?= 1
chaos: $(STAMPS)/package $(STAMPS)/dev ## hostile peers, shortages, failing engines beside verified traffic, CHAOS_SECONDS (600)
	cmake --preset dev
	cmake --build --preset dev --target vhost_ioat_shortages
	LD_PRELOAD=$(CURDIR)/build/dev/libvhost_ioat_shortages.so \
	  $(PY) benchmarks/chaos.py $(CHAOS_SECONDS) --seed $(CHAOS_SEED)

bench: $(STAMPS)/package $(STAMPS)/dev ## all benchmarks (about 20 minutes); BENCH="peer engine" runs some
	tools/need dpdk valgrind
	$(PIP) install 'matplotlib>=3.8'
	cmake --preset release
	cmake --build --preset release
	$(PY) benchmarks/bench.py $(BENCH)

bench-check: $(STAMPS)/dev ## instructions per packet against benchmarks/reference.json
	tools/need valgrind
	cmake --preset release
	cmake --build --preset release
	$(PY) benchmarks/instructions.py --check

interop-full: $(STAMPS)/package $(STAMPS)/dev ## the full product of the DPDK matrix, 144 runs (3 minutes)
	tools/need dpdk qemu busybox-static cpio
	VHOST_IOAT_REQUIRE=peers $(PY) -m pytest tests/interop -m full --override-ini=timeout=600 $(PYTEST_ARGS)

vfio: $(STAMPS)/package $(STAMPS)/dev ## virtual I/OAT cards in virtual machines: Linux's driver, and ours through VFIO
	tools/need cpio
	cmake --preset dev
	cmake --build --preset dev --target vhost_ioat_guest_tests
	VHOST_IOAT_REQUIRE=peers $(PY) -m pytest tests/vfio -m vfio $(PYTEST_ARGS)

clean: ## removes .venv/ and build/; .cache/ (the guest kernel) stays
	rm -rf $(VENV) build dist

$(STAMPS)/venv:
	tools/need git g++ python3 python3-venv python3-dev
	$(PYTHON) -m venv $(VENV)
	$(PIP) install 'pip>=25.1'
	command -v cmake >/dev/null || $(PIP) install 'cmake>=3.24'
	command -v ninja >/dev/null || $(PIP) install ninja
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/build-tools: pyproject.toml $(STAMPS)/venv
	$(PIP) install --group build
	@touch $@

$(STAMPS)/dev: pyproject.toml $(STAMPS)/venv
	$(PIP) install --group dev
	@touch $@

# A plain install and not an editable one: what is tested is what ships. Only what changed is compiled again.
$(STAMPS)/package: $(sources) $(STAMPS)/build-tools
	$(PIP) install --no-build-isolation '.[cli,testing]'
	@touch $@
