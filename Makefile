# `make demo` and `make test` each do everything on a fresh Debian machine with Python 3.11, as root or not.
#
# They use the active environment, or make .venv. Variables:
#   PYTHON=/path/to/python   this environment, or .venv made with this Python
#   TORCH="torch==2.13.0"    what to install where there is no torch (may hold options of pip);
#                            a torch that is there is never replaced

SHELL := /bin/bash
export PYTHON TORCH

CSRC := src/regrow/csrc/*.h src/regrow/csrc/*.cpp

.PHONY: help demo test coverage sanitize check lint format docs wheel wheel-test lines clean

help:
	@echo 'make demo        train a sparse network on Fashion-MNIST dense, with RigL and with Static (5 minutes)'
	@echo 'make test        install what the tests need and run them'
	@echo 'make coverage    run the tests (ARGS names some) and print which share of the lines they run'
	@echo 'make sanitize    the tests of the kernels under the address and undefined-behaviour sanitizers'
	@echo 'make check       the one-minute smoke test of pre-commit'
	@echo 'make lint        ruff, clang-format and mypy'
	@echo 'make format      let ruff and clang-format put the code into shape'
	@echo 'make docs        build the site of README, docs/ and docstrings into site/, links checked'
	@echo 'make wheel       build the wheel of this processor into dist/, for every supported torch'
	@echo 'make wheel-test  build the wheel and train with it in a clean environment'
	@echo 'make lines       lines of code per folder'
	@echo 'make clean       remove what was built (.venv and runs/ stay)'

demo:
	@scripts/data.sh
	@python=$$(scripts/setup.sh train) && $$python examples/studies/demo.py $(ARGS)

# Two processes of pytest with one thread of torch each (tests/conftest.py).
test:
	@scripts/data.sh
	@python=$$(scripts/setup.sh train,test) && $$python -m pytest -n 2 $(ARGS)

# Tracing takes 40% more time on Python 3.11; from 3.12 on, sys.monitoring takes its place.
coverage:
	@scripts/data.sh
	@python=$$(scripts/setup.sh train,test) && \
		if $$python -c 'import sys; sys.exit(sys.version_info < (3, 12))'; then export COVERAGE_CORE=sysmon; fi && \
		$$python -m pytest -q -n 2 --cov $(ARGS)

sanitize:
	@python=$$(scripts/setup.sh train,test) && scripts/sanitize.sh $$python $(ARGS)

check:
	@python=$$(scripts/setup.sh train,test) && $$python -m pytest -q -m smoke $(ARGS)

lint:
	@python=$$(scripts/setup.sh train,test) && $$python -m ruff check . && \
		$$python -m ruff format --check . && $${python%/*}/clang-format --dry-run -Werror $(CSRC) && $$python -m mypy

format:
	@python=$$(scripts/setup.sh train,test) && $$python -m ruff check --fix . && $$python -m ruff format . && \
		$${python%/*}/clang-format -i $(CSRC)

docs:
	@python=$$(scripts/setup.sh docs) && NO_MKDOCS_2_WARNING=1 $$python -m mkdocs build $(ARGS)

wheel:
	@python=$$(scripts/setup.sh train,test) && scripts/wheel.sh $$python dist

wheel-test:
	@scripts/data.sh
	@python=$$(scripts/setup.sh train,test) && scripts/wheel-test.sh $$python

lines:
	@scripts/lines.sh

clean:
	rm -rf build dist site .coverage src/*.egg-info src/regrow/_kernels*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
