# Every target sets up .venv by itself; nothing needs activating. `make` alone lists them.
.DEFAULT_GOAL := help
.PHONY: help install check test coverage test-deep build demo clean cluster-up cluster-down test-cluster chaos soak parity
SHELL := /bin/bash -o pipefail

BIN := .venv/bin
CACHE ?= .cache# of the checkers; .ci/run puts it outside the checkout
export RUFF_CACHE_DIR := $(CACHE)/ruff
export MYPY_CACHE_DIR := $(CACHE)/mypy
export COVERAGE_FILE := $(abspath $(CACHE))/coverage/data
unexport PYTHONDONTWRITEBYTECODE# set, as in many images, every process would compile all that it imports: a rank 9 s, not 4
WORKERS ?= 3# of a test's time a third is waiting, on two cores
TESTS ?=
CHECKS := check-pyright check-mypy check-generated check-imports check-style# the longest first; they run beside each other

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' Makefile

install: ## make .venv with everything that development needs
	@tools/setup.sh dev

check: install ## ruff, format, mypy, pyright, import layers, line count, generated docs and figures
	@$(MAKE) --no-print-directory -j $(WORKERS) --output-sync $(CHECKS)

.PHONY: $(CHECKS)
check-mypy:
	$(BIN)/mypy
check-pyright:
	$(BIN)/pyright
check-generated:
	$(BIN)/python -m tools.lines --check
	$(BIN)/python -m tools.reference --check
	$(BIN)/python -m tools.chart --check
	$(BIN)/python -m tools.figures --check
check-imports:
	$(BIN)/lint-imports --cache-dir $(CACHE)/import-linter
check-style:
	$(BIN)/ruff check
	$(BIN)/ruff format --check

test: check ## every check, then the tests with coverage, but for those that bear the mark `deep`
	@$(MAKE) --no-print-directory coverage

coverage: install ## the tests of `make test`, and coverage of both packages
	@rm -rf $(CACHE)/coverage && mkdir -p $(CACHE)/coverage
	$(BIN)/coverage run -m pytest -m 'not deep' -n $(WORKERS) --dist loadfile --no-loadscope-reorder -o cache_dir=$(CACHE)/pytest $(TESTS) | tee $(CACHE)/pytest.log
	@$(BIN)/coverage combine --quiet
	@$(MAKE) --no-print-directory -j $(WORKERS) --output-sync report-teragpt report-controlplane
	@tail -n 1 $(CACHE)/pytest.log

test-deep: install ## the tests that `make test` leaves out: what repeats it more deeply
	$(BIN)/pytest -m deep -n $(WORKERS) --dist loadfile --no-loadscope-reorder -o cache_dir=$(CACHE)/pytest-deep $(TESTS)

report-%:
	$(BIN)/coverage report --include='$*/*'

cluster-up: install ## a whole Kubernetes cluster on this machine (root); prints its kubeconfig
	@$(BIN)/python -m tests.cluster up --with image

cluster-down: ## stop it and remove everything but the caches
	@$(BIN)/python -m tests.cluster down
	@$(BIN)/python -m tests.cluster check-clean

test-cluster: export TERAGPT_CHAOS_PATIENCE ?= 2 # the other tests run beside it
test-cluster: install ## the tests on that cluster, or on the one of KUBECONFIG; KEEP=1 leaves it up
	@status=0; { [ -n "$$KUBECONFIG" ] || { $(BIN)/python -m tests.cluster build && $(MAKE) --no-print-directory cluster-up; }; } && \
	$(BIN)/pytest -n 2 --no-loadscope-reorder --durations=30 -o cache_dir=$(CACHE)/pytest-cluster \
	$(or $(TESTS),tests/cluster) || status=$$?; \
	[ -n "$${KUBECONFIG}$(KEEP)" ] || $(MAKE) --no-print-directory cluster-down || status=$$?; exit $$status

chaos: export TERAGPT_CHAOS_ROUNDS ?= $(if $(ROUND),1,1000)
chaos: export TERAGPT_CHAOS_OUTAGE ?= 600
chaos: export TERAGPT_CHAOS_INSTANTS ?= 500
chaos: export TERAGPT_STRIKES ?= 100
chaos: export TERAGPT_KILLS ?= 50
chaos: export TERAGPT_CHAOS_SEED ?= $(or $(SEED),$(shell date +%s))
ifdef ROUND
chaos: export TERAGPT_CHAOS_ROUND = $(ROUND)
chaos: export TERAGPT_CHAOS_POINT = $(POINT)
endif
chaos: install ## 1,000 rounds on an API server, 500 kills on one machine, 100 of a struck trainer, 50 of killed folders; TESTS= SEED= ROUND= plays one again
	$(BIN)/pytest -s -o cache_dir=$(CACHE)/pytest-cluster $(or $(TESTS),tests/cluster/test_chaos.py $(if $(ROUND),,\
	tests/controlplane/test_chaos.py tests/teragpt/test_chaos.py tests/teragpt/test_killed.py))

soak: install ## 1,000 runs queued on the local cluster, kept busy: is its memory flat? MINUTES= (30)
	$(BIN)/python -m benchmarks.controlplane.soak $(MINUTES)

parity: export OMP_NUM_THREADS ?= 1
parity: install ## every mesh beside one rank, with what inductor compiles; CELLS="TP 2" takes some; TORCH=2.11.0 another torch
	$(if $(TORCH),tools/other_torch.sh $(TORCH) -m pytest -q -p no:cacheprovider -k mesh tests/teragpt/test_parity.py,\
	$(BIN)/python -m tests.teragpt.matrix $(CELLS))

build: install ## the wheel and the source archive, in dist/
	$(BIN)/python -m build --no-isolation --outdir dist .

demo: ## train the tiny size through POST /runs and sample from it
	@tools/setup.sh all
	@$(BIN)/teragpt demo

clean: ## remove everything that make made, .venv and the demo's runs included
	rm -rf .venv .cache .teragpt dist build
