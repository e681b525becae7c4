# Everything here runs in .venv, which is made on first use. A newcomer needs `make demo` and `make test`.

PYTHON ?= python3
# Tests wait more than they compute: four at a time keep two cores busy. What is skipped is told, with what is missing.
ARGS ?= -n 4 -rs

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# `check` goes from cheap to dear, one after the other, whatever -j says.
.NOTPARALLEL:
.PHONY: help install demo test examples chaos chaos-bugs conformance mutants sim sim-bugs bench bench-compare bench-failover bench-scale gen check-gen protos lint format types imports check clean

help: ## Show this list
	@echo "Usage: make TARGET"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' Makefile | awk -F'|' '{ printf "%-15s %s\n", $$1, $$2 }'

install: $(INSTALLED) ## Make .venv and install the project and its tools into it

$(INSTALLED): pyproject.toml
	@command -v "$(PYTHON)" >/dev/null || { \
	    echo 'make: "$(PYTHON)" was not found. Install Python 3.11 or later, or name one: make PYTHON=/path/to/python3.11' >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo 'make: "$(PYTHON)" is '"$$("$(PYTHON)" --version 2>&1)"'; this project needs Python 3.11 or later. Name one: make PYTHON=/path/to/python3.11' >&2; exit 1; }
	@test -x $(BIN)/python || { echo "Making $(VENV) with $$("$(PYTHON)" --version)."; "$(PYTHON)" -m venv $(VENV); } || { \
	    rm -rf $(VENV); echo 'make: $(VENV) cannot be made. On Debian and Ubuntu the package python3-venv is needed.' >&2; exit 1; }
	@echo "Installing the project and its tools into $(VENV); the first time this takes a minute or two."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(INSTALLED) ## Run a saga whose owner is killed, and one that fails and unwinds
	@$(BIN)/python -m examples.demo

test: $(INSTALLED) ## Run the tests; other options: make test ARGS='-n 0 tests/core'
	@$(BIN)/pytest $(ARGS)

examples: $(INSTALLED) ## Build the action servers of all languages whose tools are there, check each, and run a saga through all of them
	@$(BIN)/pytest -n 0 -rs -s -v examples/action-servers

chaos: ARGS :=
chaos: $(INSTALLED) ## A minute of chaos with each kind of fault, and ten with all of them: make chaos ARGS='--each 20 --mixed 60 --seed 8'
	@$(BIN)/python tools/chaos.py $(ARGS)

chaos-bugs: ARGS :=
chaos-bugs: $(INSTALLED) ## Break one rule after the other, of the kit too, and show that a chaos run finds it
	@$(BIN)/python tools/chaos_bugs.py $(ARGS)

conformance: ARGS :=
conformance: $(INSTALLED) ## Run every row of the conformance table, and print it; a row without a test fails too: make conformance ARGS=--strict
	@$(BIN)/python tools/conformance.py $(ARGS)

mutants: ARGS :=
mutants: $(INSTALLED) ## Break one rule of the core after the other, and show that the tests find it
	@$(BIN)/python tools/mutants.py $(ARGS)

bench: ARGS := --shape chain:5,fan:20,fail:5,subs:2 --etcd 1,3 --seconds 5
bench: $(INSTALLED) ## Measure sagas a second, and what each action costs: make bench ARGS='--nodes 1 --in-flight 64 --shape fan:10'
	@$(BIN)/sec bench $(ARGS)

bench-compare: ARGS := --nodes 1 --in-flight 1,512 --seconds 5
bench-compare: BASE := HEAD
bench-compare: $(INSTALLED) ## Compare with another revision, in turns: make bench-compare BASE=v0.1.0 ARGS='--shape fan:20'
	@$(BIN)/python bench/compare.py $(BASE) $(ARGS)

bench-failover: ARGS :=
bench-failover: $(INSTALLED) ## Measure how long sagas stand still when their owner dies, hangs or is drained: make bench-failover ARGS='--kills 3 --many 0'
	@$(BIN)/python bench/failover.py $(ARGS)

sim: SEEDS ?= 10000
sim: $(INSTALLED) ## Run simulated clusters in which everything goes wrong: make sim SEEDS=100000
	@$(BIN)/sec sim run --seeds $(SEEDS)

sim-bugs: ARGS :=
sim-bugs: $(INSTALLED) ## Break one rule of the store or the node after the other, and show that the simulator finds it
	@$(BIN)/python tools/sim_bugs.py $(ARGS)

bench-scale: ARGS :=
bench-scale: $(INSTALLED) ## Measure what sagas cost that wait or have ended, and how fast a node starts: make bench-scale ARGS='--ended 10000'
	@$(BIN)/python bench/scale.py $(ARGS)

gen: $(INSTALLED) ## Generate client/sec_protos from protos/, and the diagrams in docs/
	@$(BIN)/python tools/gen_protos.py
	@$(BIN)/python tools/gen_diagram.py

check-gen: $(INSTALLED) ## Fail when what `make gen` generates is not what is there
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && \
	    $(BIN)/python tools/gen_protos.py "$$fresh" && \
	    { diff -r -u -x __pycache__ client/sec_protos "$$fresh/sec_protos" || \
	      { echo 'client/sec_protos is not what protos/ generates: run "make gen".' >&2; exit 1; }; }
	@$(BIN)/python tools/gen_diagram.py --check
	@echo "Generated code and diagram are up to date."

BUF := npm exec --yes --package=@bufbuild/buf@1.74.0 -- buf

protos: ## Check the style of protos/, and that they are compatible with those of each release (buf.yaml); needs npm
	@command -v npm >/dev/null || { echo 'make: "npm" was not found: buf, which checks the protos, comes with it.' >&2; exit 1; }
	@$(BUF) lint
	@for release in protos/released/*.binpb; do $(BUF) breaking --against "$$release" || exit 1; done
	@echo "The protos are well-formed, and compatible with those of each release."

lint: $(INSTALLED) ## Check style (ruff)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(INSTALLED) ## Format the code, and mend what ruff can mend
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

types: $(INSTALLED) ## Check types (mypy --strict)
	@$(BIN)/mypy

imports: $(INSTALLED) ## Check import directions (.importlinter)
	@$(BIN)/lint-imports --no-logo

check: lint types imports check-gen test ## All of the checks, and then the tests

clean: ## Remove caches and what demo and tests left; .venv stays
	@rm -rf build dist .demo sec-dev-data sec-chaos-* .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
