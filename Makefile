# Everything runs in .venv, made on first use. Set PYTHON to use another interpreter than python3.

PYTHON ?= python3
BIN := .venv/bin

# Where the system can do it, a command dies with the make that started it, also by SIGKILL.
GUARD := $(shell command -v setpriv >/dev/null 2>&1 && echo setpriv --pdeathsig KILL)

.PHONY: demo profile test soak check bench docs clean

demo: .venv/demo-installed
	@$(GUARD) $(BIN)/python examples/quickstart.py

# A profile page in the browser; USERS="name=id ..." where DATABASE_URL is set.
profile: .venv/demo-installed
	@$(GUARD) $(BIN)/python examples/profile_app $(USERS)

# -rs: what is skipped, such as the browser tests on a system without Chromium, is listed with the reason.
test: .venv/dev-installed
	$(GUARD) $(BIN)/python -m pytest -rs --cov --cov-report=term

# The long form of the tests of the refresh protocol: more processes, more rounds, more steps, random faults.
soak: .venv/dev-installed
	SPOTCONN_SOAK=1 $(GUARD) $(BIN)/python -m pytest -v -s -m soak
	SPOTCONN_SOAK=1 $(GUARD) $(BIN)/python -m pytest -v -s tests/test_state_machine.py

check: .venv/dev-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) test

# What the library costs beside what one would pick instead; a quarter of an hour. OPTIONS=--quick shows that it runs.
# The interpreter is that of .venv: `make clean bench PYTHON=python3.13` takes another.
bench: .venv/bench-installed
	$(GUARD) $(BIN)/python -m benchmarks $(OPTIONS)

# The documentation site, in site/: broken links and missing references fail.
docs: .venv/docs-installed
	$(BIN)/zensical build --strict --clean
	$(BIN)/python tests/site_check.py site

clean:
	rm -rf .venv .cache site .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

.venv/%-installed: pyproject.toml | .venv/bin/python
	$(GUARD) $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$*]"
	@touch $@

.venv/bin/python:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'spotconn needs Python 3.11 or later; set PYTHON=')"
	$(GUARD) $(PYTHON) -m venv .venv
