# A newcomer needs `make demo` and `make test`; CONTRIBUTING.md says what the other targets are for.
# Everything is installed into .venv from the hashed lock files of the Python that runs make.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCKED_PYTHONS := 3.11 3.12 3.13
TAG := $(shell $(PYTHON) -c 'import sys; print("py%d%d" % sys.version_info[:2])')
# pip must neither look at an index for what the lock files name nor warn about being root here.
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet --no-input
INSTALL := $(PIP) install --root-user-action=ignore --require-hashes --no-build-isolation --no-deps
SOURCES := daemon workers tests
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' daemon/socks_tunnel/__init__.py)

# Options for pytest, the demo, the bench: make test ARGS='-k reload', make demo ARGS='--listen …'
ARGS ?=

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 15

# -- environments ---------------------------------------------------------------------------------

# Stamps carry the lock files' Python, so that another PYTHON does not pass for the same environment.
BUILD_STAMP := $(VENV)/.stamp-build-$(TAG)
RUNTIME_STAMP := $(VENV)/.stamp-runtime-$(TAG)
DEV_STAMP := $(VENV)/.stamp-dev-$(TAG)
DEEP_STAMP := $(VENV)/.stamp-deep-$(TAG)
PROJECT_STAMP := $(VENV)/.stamp-project-$(TAG)
PACKAGES_STAMP := $(VENV)/.stamp-packages
NPM_STAMP := tests/support/npm/node_modules/.stamp

requirements/%-$(TAG).lock:
	@echo "there is no lock file for this Python ($(TAG)): use one of $(LOCKED_PYTHONS), PYTHON=…" >&2
	@exit 1

$(BUILD_STAMP): requirements/build-$(TAG).lock
	@if ! $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then \
	  if [ "$$(id -u)" != 0 ]; then \
	    echo "$(PYTHON) has no venv: as root, apt-get install python3-venv" >&2; exit 1; \
	  fi; \
	  echo "installing python3-venv"; \
	  tests/support/packages --install python3-venv; \
	fi
	@echo "making $(VENV) for $$($(PYTHON) --version)"
	@rm -f $(VENV)/.stamp-*
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -r $<
	@touch $@

$(RUNTIME_STAMP): requirements/runtime-$(TAG).lock $(BUILD_STAMP)
	$(INSTALL) -r $<
	@touch $@

$(DEV_STAMP): requirements/dev-$(TAG).lock $(BUILD_STAMP)
	$(INSTALL) -r $<
	@touch $@ $(RUNTIME_STAMP)

# atheris is compiled, and not for all machines: without its wheel the rest is installed.
$(DEEP_STAMP): requirements/deep-$(TAG).lock $(DEV_STAMP)
	$(INSTALL) --only-binary=atheris -r $< || \
	  $(INSTALL) -r <(awk '/^atheris==/ { skip = 1; next } /^[a-z]/ { skip = 0 } !skip' $<)
	@touch $@

$(PROJECT_STAMP): pyproject.toml $(BUILD_STAMP)
	$(PIP) install --root-user-action=ignore --no-build-isolation --no-deps --editable .
	@touch $@

$(PACKAGES_STAMP): tests/support/packages tests/support/packages.list $(BUILD_STAMP)
	@tests/support/packages
	@touch $@

$(NPM_STAMP): tests/support/npm/package.json tests/support/npm/package-lock.json $(PACKAGES_STAMP)
	@if command -v npm >/dev/null; then \
	  cd tests/support/npm && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error; \
	else \
	  echo "npm is missing: the tests with the npm package socks will be skipped"; \
	  mkdir -p tests/support/npm/node_modules; \
	fi
	@touch $@

.PHONY: install
install: $(DEV_STAMP) $(PROJECT_STAMP) ## everything for working on the project, into .venv

# aiolibdatachannel needs a newer Python than the project does. Where there is none, the tests with it are
# skipped, and fail with INTEROP=required.
LIBDATACHANNEL := .tools/libdatachannel
LIBDATACHANNEL_STAMP := $(LIBDATACHANNEL)/.stamp
$(LIBDATACHANNEL_STAMP): requirements/libdatachannel.lock tests/support/newer-python
	@rm -rf $(LIBDATACHANNEL)
	@if python=$$(tests/support/newer-python); then \
	  echo "making $(LIBDATACHANNEL) for $$($$python --version)"; \
	  $$python -m venv $(LIBDATACHANNEL) && \
	  $(LIBDATACHANNEL)/bin/python -m pip --disable-pip-version-check --quiet install \
	    --only-binary=:all: --require-hashes --no-deps -r $< && touch $@ || \
	  { rm -rf $(LIBDATACHANNEL); echo "without aiolibdatachannel: it could not be installed"; }; \
	fi

TEST_STAMPS := $(DEV_STAMP) $(PROJECT_STAMP) $(PACKAGES_STAMP) $(NPM_STAMP) $(LIBDATACHANNEL_STAMP)

# How many processes share a test run. Most tests wait for other processes most of their time.
JOBS ?= $(shell nproc)
PYTEST := $(BIN)/python -m pytest --numprocesses=$(JOBS)

# -- what people run ------------------------------------------------------------------------------

.PHONY: demo
demo: $(RUNTIME_STAMP) $(PROJECT_STAMP) ## a gateway and an endpoint on loopback, SOCKS5 on 127.0.0.1:1080
	@exec $(BIN)/socks-tunnel demo $(ARGS)

.PHONY: test
test: $(TEST_STAMPS) ## unit, property, integration and system tests, the latter in network namespaces
	@$(PYTEST) $(ARGS)

.PHONY: test-network
test-network: $(TEST_STAMPS) ## networks that fail, change, lose packets or translate addresses; needs root
	@$(PYTEST) tests/network $(ARGS)

.PHONY: test-long
test-long: $(TEST_STAMPS) ## many recoveries, cuts and a long sleep, with their figures: half an hour; needs root
	@$(BIN)/python -m pytest tests/long $(ARGS)

# Of the network tests, those whose hosts can be booted ones.
ON_BOOTED_HOSTS := tests/packaging tests/system tests/network/test_alive.py tests/network/test_ice.py

.PHONY: test-packages
test-packages: $(TEST_STAMPS) ## the packages, and the system tests on hosts that boot with them; needs root
	@$(PYTEST) --hosts=booted $(ON_BOOTED_HOSTS) $(ARGS)

COMPILED := build/compiled
$(COMPILED)/.stamp: $(DEV_STAMP) packaging/tools/compile.py pyproject.toml \
  $(shell find daemon workers -name '*.py')
	@$(BIN)/python packaging/tools/compile.py $(COMPILED)
	@touch $@

.PHONY: compiled
compiled: $(COMPILED)/.stamp ## copies of the packages with a compiled data path, in build/compiled

.PHONY: test-compiled
test-compiled: $(TEST_STAMPS) $(COMPILED)/.stamp ## the tests of the data path, on the compiled one
	@SOCKS_TUNNEL_COMPILED=1 PYTHONPATH=$(COMPILED) $(PYTEST) tests/unit/ops/test_compiled.py \
	  tests/unit/peer tests/unit/protocol tests/unit/supervisor tests/unit/workers tests/property \
	  tests/integration/ipc/test_stream.py tests/integration/test_fast_dtls.py tests/integration/test_fast_interop.py \
	  tests/integration/test_fast_recordpath.py tests/integration/test_dtls_hostile.py tests/integration/test_link.py \
	  tests/integration/test_link_ends.py tests/integration/test_link_hostile.py \
	  tests/integration/test_worker_tcp.py tests/integration/test_worker_udp.py $(ARGS)

.PHONY: wheel
wheel: $(DEV_STAMP) ## a wheel with the compiled data path, for this Python and machine, in dist/
	@SOCKS_TUNNEL_COMPILE=1 $(PIP) wheel --no-build-isolation --no-deps --wheel-dir dist .
	@ls dist/*.whl

.PHONY: check
check: $(DEV_STAMP) $(PROJECT_STAMP) ## format, lint, types, import contracts, no large file in git
	@$(BIN)/ruff format --check $(SOURCES)
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/mypy $(SOURCES)
	@$(BIN)/lint-imports
	@large=$$(git ls-files -z | xargs -0 -r stat --format='%s %n' | awk '$$1 > 1048576 {print $$2}'); \
	  [ -z "$$large" ] || { echo "over 1 MiB, and in git: $$large" >&2; exit 1; }

.PHONY: structure
structure: $(DEV_STAMP) $(PROJECT_STAMP) ## delete from tests/unit/structure/exceptions.toml what has been mended
	@PYTHONPATH=tests $(BIN)/python -m support.structure

.PHONY: fmt
fmt: $(DEV_STAMP) ## format and apply the linter's safe fixes
	@$(BIN)/ruff check --fix --exit-zero $(SOURCES)
	@$(BIN)/ruff format $(SOURCES)

# Benchmarks run on the data path in pure Python, or with BUILD=compiled on the compiled one.
BUILD ?= pure
BENCH_STAMPS := $(DEV_STAMP) $(PROJECT_STAMP) bench-packages $(if $(filter compiled,$(BUILD)),$(COMPILED)/.stamp)
BENCH := PYTHONPATH=$(if $(filter compiled,$(BUILD)),$(COMPILED):)tests $(BIN)/python -m

.PHONY: bench-packages
bench-packages:
	@export PATH=$$PATH:/usr/sbin:/sbin; command -v ip >/dev/null && command -v cc >/dev/null || \
	  tests/support/packages --install iproute2 gcc libc6-dev

.PHONY: bench
bench: $(BENCH_STAMPS) ## the figures of docs/performance.md; needs root; BUILD=compiled for the compiled data path
	@$(BENCH) bench.run $(ARGS)
	@$(BENCH) bench.walk
	@$(BENCH) bench.memory

.PHONY: bench-scheduling
bench-scheduling: $(BENCH_STAMPS) ## keystrokes and speech beside bulk on full links; needs root
	@$(BENCH) bench.scheduling $(ARGS)

.PHONY: bench-links
bench-links: $(BENCH_STAMPS) ## 200 links at one endpoint, idle and busy
	@$(BENCH) bench.links $(ARGS)

.PHONY: bench-rendezvous
bench-rendezvous: $(BENCH_STAMPS) ## 10,000 clients of a rendezvous service, 500 offers a second, a restart
	@$(BENCH) bench.rendezvous_load $(ARGS)

.PHONY: bench-paths
bench-paths: $(BENCH_STAMPS) ## long, slow and lossy paths; needs root
	@$(BENCH) bench.paths $(ARGS)

.tools/rivals/.stamp: requirements/rivals.lock
	@rm -rf .tools/rivals
	$(PYTHON) -m venv .tools/rivals
	.tools/rivals/bin/python -m pip --disable-pip-version-check --quiet install \
	  --only-binary=:all: --require-hashes --no-deps -r $<
	@touch $@

.PHONY: rivals
rivals: .tools/rivals/.stamp $(LIBDATACHANNEL_STAMP) ## other tunnels and channels for make bench

.PHONY: interop
interop: $(TEST_STAMPS) ## the tests against other stacks, none of which may be missing
	@INTEROP=required $(BIN)/python -m pytest tests/integration/test_fast_interop.py tests/integration/test_fast_chromium.py $(ARGS)

# -- what takes long ------------------------------------------------------------------------------

# How long make fuzz goes on, and which targets (all of tests/fuzz/targets.py if none is named); how many
# walks through two sessions follow, and the seed of the first one.
SECONDS_TO_FUZZ ?= 300
WALKS ?= 100000
SEED ?= 0

.PHONY: fuzz
fuzz: $(DEEP_STAMP) $(PROJECT_STAMP) ## coverage-guided fuzzing, walks through sessions, deep property tests
	@if $(BIN)/python -c 'import atheris' 2>/dev/null; then \
	  PYTHONPATH=tests $(BIN)/python -m fuzz.run $(SECONDS_TO_FUZZ) $(ARGS); \
	else \
	  echo "there is no wheel of atheris for this Python or machine: only the property tests run"; \
	fi
	@PYTHONPATH=tests $(BIN)/python -m fuzz.sessions $(WALKS) $(SEED)
	@HYPOTHESIS_PROFILE=deep $(PYTEST) tests/property --timeout=0

.PHONY: coverage
coverage: $(DEV_STAMP) $(PROJECT_STAMP) ## branch coverage of socks_tunnel.protocol, which is to be 100 %
	@$(BIN)/python -m coverage run --branch --source=socks_tunnel.protocol \
	  -m pytest -q tests/unit/protocol tests/unit/config tests/property $(ARGS)
	@$(BIN)/python -m coverage report --show-missing --skip-covered --fail-under=100

.PHONY: mutants
mutants: $(DEEP_STAMP) $(PROJECT_STAMP) ## change socks_tunnel.protocol in all small ways; the tests have to notice
	@tests/mutants/run $(BIN)/python $(ARGS)

# -- packages -------------------------------------------------------------------------------------

.PHONY: deb
deb: $(BUILD_STAMP) $(PACKAGES_STAMP) ## the packages for Debian 12 and 13, into dist/; needs root
	@for suite in bookworm trixie; do \
	  PYTHON=$(abspath $(BIN)/python) packaging/tools/build-deb $$suite; \
	done

IMAGE_SITE := build/image-site-$(TAG)
$(IMAGE_SITE)/.stamp: requirements/runtime-$(TAG).lock $(BUILD_STAMP)
	@rm -rf $(IMAGE_SITE)
	$(INSTALL) --no-compile --target $(IMAGE_SITE) -r $<
	@touch $@

.PHONY: image
image: $(IMAGE_SITE)/.stamp ## an OCI image of this machine's architecture, into dist/
	@$(BIN)/python packaging/tools/image --site $(IMAGE_SITE) --version $(VERSION) \
	  --output dist/socks-tunnel-$(VERSION)-oci.tar

# Another architecture: wheels for it, and Debian's Python for it, of which nothing is run here.
ARM64_SITE := build/image-site-arm64-$(TAG)
ARM64_SUITE := $(if $(filter py311,$(TAG)),bookworm,$(if $(filter py313,$(TAG)),trixie))
ARM64_WHEELS := --platform manylinux2014_aarch64 \
  $(foreach glibc,17 24 26 27 28 31 34,--platform manylinux_2_$(glibc)_aarch64)
$(ARM64_SITE)/.stamp: requirements/runtime-$(TAG).lock $(BUILD_STAMP)
	@rm -rf $(ARM64_SITE)
	$(INSTALL) --no-compile $(ARM64_WHEELS) --target $(ARM64_SITE) -r $<
	@touch $@

.PHONY: image-arm64
image-arm64: $(ARM64_SITE)/.stamp $(PACKAGES_STAMP) ## an OCI image for arm64, into dist/; needs root
	@test -n "$(ARM64_SUITE)" || { echo "no Debian has the Python of $(TAG)" >&2; exit 1; }
	@$(BIN)/python packaging/tools/image --site $(ARM64_SITE) --version $(VERSION) \
	  --root "$$(packaging/tools/foreign-root $(ARM64_SUITE) arm64)" \
	  --output dist/socks-tunnel-$(VERSION)-oci-arm64.tar

# -- lock files -----------------------------------------------------------------------------------

UV := .tools/lock/bin/uv
# make lock UPGRADE= only adds what pyproject.toml has gained, and leaves the other versions alone.
UPGRADE ?= --upgrade
COMPILE = $(UV) pip compile --quiet $(UPGRADE) --generate-hashes --no-emit-index-url --no-emit-find-links \
  --no-header --no-annotate --python-platform x86_64-unknown-linux-gnu

$(UV): requirements/lock-tool.lock
	$(PYTHON) -m venv .tools/lock
	.tools/lock/bin/python -m pip --disable-pip-version-check --quiet install --require-hashes --no-deps -r $<
	@touch $@

.PHONY: lock
lock: $(UV) ## write requirements/*.lock anew, with the newest versions that pyproject.toml allows
	@for v in $(LOCKED_PYTHONS); do \
	  tag=py$${v//./}; \
	  echo "resolving for Python $$v"; \
	  $(COMPILE) --python-version $$v pyproject.toml --group dev requirements/build.in \
	    -o requirements/dev-$$tag.lock; \
	  $(COMPILE) --python-version $$v -c requirements/dev-$$tag.lock pyproject.toml \
	    -o requirements/runtime-$$tag.lock; \
	  $(COMPILE) --python-version $$v -c requirements/dev-$$tag.lock requirements/build.in \
	    -o requirements/build-$$tag.lock; \
	  $(COMPILE) --python-version $$v -c requirements/dev-$$tag.lock --group deep \
	    -o requirements/deep-$$tag.lock; \
	done
	@$(COMPILE) --python-version 3.11 requirements/lock.in -o requirements/lock-tool.lock
	@$(COMPILE) --python-version 3.12 requirements/libdatachannel.in -o requirements/libdatachannel.lock
	@$(COMPILE) --python-version 3.11 --no-deps requirements/rivals.in -o requirements/rivals.lock
	@if grep -nE '://|^--' requirements/*.lock; then echo "a lock file names an index" >&2; exit 1; fi

# -- cleaning -------------------------------------------------------------------------------------

.PHONY: clean
clean: ## remove what make made, environments too
	rm -rf $(VENV) .tools build dist .hypothesis .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	rm -rf tests/support/npm/node_modules
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
