# Needs python3 (3.11 or newer, with venv), make and git; everything else is installed into .venv. Versions: constraints.txt.
PYTHON = python3
VENV = .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

.PHONY: help demo test check bench chaos serve clean

help:
	@echo 'make demo    the main job on real data: the functions of the standard library, described by the local server'
	@echo 'make test    all tests, in TEST_PROCESSES=2 processes'
	@echo 'make check   format, lint and types'
	@echo 'make bench   figures: shard, merge and a whole run, beside their peers'
	@echo 'make chaos   the real command against the real server, disturbed by CHAOS_SEEDS=100 seeded plans, CHAOS_JOBS=2 at once'
	@echo 'make serve   the local batch server on port 8377'
	@echo 'make clean   remove what these made'

$(VENV)/.runtime: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo 'installing streambatch into $(VENV)'
	@$(PIP) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	@echo 'installing what tests and checks need into $(VENV)'
	@$(PIP) -e '.[dev]'
	@touch $@

demo: $(VENV)/.runtime
	@$(BIN)/python -m benchmarks.demo

TEST_PROCESSES ?= 2
test: $(VENV)/.dev
	@$(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist worksteal

check: $(VENV)/.dev
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

# the peers are optional: one that can't be installed here is skipped, and the table says so
$(VENV)/.bench: $(VENV)/.runtime
	@echo 'installing the peers into $(VENV)'
	@$(PIP) -e '.[bench]' || echo 'the peers could not be installed'
	@touch $@

bench: $(VENV)/.bench
	@$(BIN)/python -m benchmarks $(BENCH)

CHAOS_SEEDS ?= 100
CHAOS_JOBS ?= 2
chaos: $(VENV)/.dev
	@$(BIN)/python -m tests.chaos --seeds $(CHAOS_SEEDS) --jobs $(CHAOS_JOBS)

serve: $(VENV)/.runtime
	@$(BIN)/streambatch serve

clean:
	@rm -rf $(VENV) .demo .bench .pytest_cache .mypy_cache .ruff_cache .hypothesis
