# One word each, nothing to prepare: the first target that needs it makes the environment in .venv.
#
#   make demo        build, inspect and verify the image of a real root file system
#   make test        the whole suite with coverage and its floors (ARGS='tests/store -k sync': a part, without)
#   make check       format, lint, types, import layers, spelling, manual pages
#   make test-pure   the rooms with native functions once more, without these (no slow tests)
#   make compat      only the comparison with the reference tools and the kernel
#   make test-lower  a quick run over the lowest supported versions of the dependencies
#   make fuzz        inputs for every parser, guided by what they reach; FUZZ_SECONDS=60 for each
#   make vm          fs-verity for real, and mounts without root: tampering in virtual machines with two kernels
#                    (ARGS=users for one of them: verity, old-users, users)
#   make bench       ours against the reference tools (ARGS=--quick for a short run)
#   make sanitize    the native functions under AddressSanitizer and UBSan, warnings as errors
#   make man         the manual pages, man/*.1, from the commands
#   make layout      the constants of the formats for C, cfstools/native/layout.h, from the Python modules
#   make wheel       the source archive and the wheel, in dist/
#   make clean       remove what these targets made, but not the Debian roots in /var/cache/cfstools-tests

PYTHON ?= python3
VENV := .venv
LOWER := .venv-lower
BIN := $(VENV)/bin
READY := $(VENV)/.ready
FUZZ_READY := $(VENV)/.fuzz
LOWER_READY := $(LOWER)/.ready
PACKAGING := pyproject.toml setup.py $(wildcard cfstools/native/*.c cfstools/native/*.h)
PIP := -m pip --disable-pip-version-check --quiet
# A path instead of a finder: the finder would be loaded, and timed, with every start of the command.
LINKED := --config-settings editable_mode=compat
WORKERS ?= auto
# How often a test that failed is run again; CI does so once.
RERUNS ?= 0
PYTEST = -m pytest -q -n $(WORKERS) --reruns $(RERUNS)
# The tests of what stands on a dependency: click and tqdm, cryptography, zstandard and isal, urllib3 and obstore.
LOWER_TESTS = $(wildcard tests/cli/test_app.py tests/cli/test_help.py tests/project tests/signing \
	tests/streams/test_decompress.py tests/streams/test_readers.py tests/transport tests/oci/pushed/test_layer.py)
# The rooms that call native functions.
PURE_TESTS = tests/formats tests/store tests/sources tests/oci tests/api
ARGS ?=

.PHONY: help demo test check compat test-pure test-lower bench fuzz sanitize vm man layout wheel clean environment
.DELETE_ON_ERROR:

help:
	@sed -n 's/^#   //p' Makefile

environment: $(READY)

# Dependency groups need pip 25.1; `venv` brings the one that came with Python.
$(READY): $(PACKAGING)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "cfstools needs Python 3.11 or later; set PYTHON=" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' || { echo "python3-venv is missing: apt-get install python3-venv" >&2; exit 1; }
	@echo "making the environment in $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python $(PIP) install --upgrade 'pip>=25.1'
	@PYTHONWARNINGS=ignore $(BIN)/python $(PIP) install --editable . $(LINKED) --group dev
	@touch $@

$(LOWER_READY): $(PACKAGING)
	@echo "making the environment in $(LOWER)"
	@test -x $(LOWER)/bin/python || $(PYTHON) -m venv $(LOWER)
	@$(LOWER)/bin/python $(PIP) install --upgrade 'pip>=25.1'
	@PYTHONWARNINGS=ignore $(LOWER)/bin/python $(PIP) install --editable . $(LINKED) --group lower
	@touch $@

# Where it cannot be had, the driver says so and does without.
$(FUZZ_READY): $(READY)
	@$(BIN)/python $(PIP) install --group fuzz && touch $@ || echo "atheris cannot be installed here" >&2

demo: $(READY)
	@$(BIN)/python -m examples.demo $(ARGS)

test: $(READY)
	@$(BIN)/python $(PYTEST) --dist worksteal $(if $(ARGS),$(ARGS),--cov --cov-report= --coverage-floors)

compat: $(READY)
	@$(BIN)/python $(PYTEST) --dist worksteal tests/compat $(ARGS)

test-pure: $(READY)
	@$(BIN)/python $(PYTEST) --dist worksteal --pure -m 'not slow and not reference and not kernel' \
		$(PURE_TESTS) $(ARGS)

test-lower: $(LOWER_READY)
	@$(LOWER)/bin/python $(PYTEST) -m 'not slow and not reference and not kernel' \
		$(LOWER_TESTS) $(ARGS)

check: $(READY)
	$(BIN)/ruff format --check --quiet
	$(BIN)/ruff check --quiet
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/codespell
	@$(BIN)/python -m tools.manual --check
	@$(BIN)/python -m tools.native_layout --check

bench: $(READY)
	@$(BIN)/python -m benchmarks $(ARGS)

sanitize: $(READY)
	@tools/check-native $(ARGS)

fuzz: $(FUZZ_READY)
	@$(BIN)/python -m tests.fuzz --seconds $(or $(FUZZ_SECONDS),60) $(ARGS)

vm: $(READY)
	@$(BIN)/python -m tests.vm.machine $(ARGS)

man: $(READY)
	@$(BIN)/python -m tools.manual

layout: $(READY)
	@$(BIN)/python -m tools.native_layout

wheel: $(READY)
	@$(BIN)/python $(PIP) install build
	@rm -rf dist
	@CFSTOOLS_NATIVE=require $(BIN)/python -m build --outdir dist

clean:
	rm -rf $(VENV) $(LOWER) build dist *.egg-info .coverage .coverage.* htmlcov
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .benchmarks .fuzz
	find cfstools tests benchmarks examples -name __pycache__ -prune -exec rm -rf {} +
	rm -f cfstools/native/*.so
