# Everything from a clone: needs make and Python 3.11 or newer with venv. Each target sets up what
# it needs in .venv; `make PYTHON=python3.12 ...` picks another Python.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
PIP := -m pip -qq --disable-pip-version-check --no-input
INSTALL := DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends
CACHES := .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache

BENCHES := first_request deliver import_clients cost against_bare against_peers finished_rows million \
	scale many_mailings waiting_mailings held_snapshot access admin_pages two_processes idle loop_blocks \
	import_beside hostile_headers schema soak

PROGRAMS := promtool chromium faketime

.PHONY: help demo test busy $(PROGRAMS) lint fmt bench properties texts security lock audit clean
.DELETE_ON_ERROR:

help: ## show this
	@sed -n 's/^\([a-z]*\):.*## /make \1\t/p' $(MAKEFILE_LIST) | expand -t 12

demo: $(READY) ## run mailer with a sandbox gateway and mailings under way; Ctrl-C ends it
	@$(BIN)/mailer demo

# The compiled code is kept: the many processes of the tests would compile all of it, each for itself.
test: lint $(PROGRAMS) ## all checks, then all tests on a real PostgreSQL (`alembic check` is one of them)
	@PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -q -n 3 --dist loadfile --no-loadscope-reorder # long files of few tests first

busy: $(READY) ## the tests three times, beside four processes that keep the machine busy
	@set -e; trap 'kill $$burners' EXIT; for each in 1 2 3 4; do \
		$(BIN)/python -c 'while True: pass' & burners="$$burners $$!"; done; \
	for run in 1 2 3; do $(MAKE) --no-print-directory test; done

promtool: PACKAGE := prometheus
chromium: PACKAGE := chromium
faketime: PACKAGE := faketime
$(PROGRAMS): # of Debian; where it cannot be installed, the tests that need it are skipped
	@command -v $@ >/dev/null || [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null || \
		said=$$({ $(INSTALL) $(PACKAGE) || { apt-get update -qq && $(INSTALL) $(PACKAGE); }; } 2>&1) || \
		echo "$$said"

lint: $(READY) ## ruff, mypy, import-linter
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet || { echo 'Not formatted: run make fmt'; exit 1; }
	@$(BIN)/mypy # one process: workers give up on a busy machine
	@$(BIN)/lint-imports --no-logo

fmt: $(READY) ## mend what ruff can, and format
	@$(BIN)/ruff check --quiet --fix --exit-zero
	@$(BIN)/ruff format

texts: $(READY) ## bring the catalogues of the pages' texts up to date
	@PYTHONPATH=. $(BIN)/python tests/texts.py

security: $(READY) ## write what each route answers to whom into docs/security.md
	@PYTHONPATH=. $(BIN)/python tests/security_table.py

bench: $(READY) ## every benchmark, one after the other
	@set -e; for name in $(BENCHES); do echo "== $$name"; $(BIN)/python bench/$$name.py; done

properties: $(READY) ## the property tests, ten thousand cases each
	@TEST_EXAMPLES=10000 $(BIN)/pytest -q -o timeout=1800 --durations=8 \
		$$(grep -rl --include='test_*.py' tests.examples tests)

lock: ## pin the dependencies of pyproject.toml again; LOCK=--upgrade takes the newest
	@set -e; tools=$$(mktemp -d); trap 'rm -rf "$$tools"' EXIT; \
	$(PYTHON) -m venv "$$tools"; "$$tools/bin/python" $(PIP) install uv; \
	"$$tools/bin/uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' \
		--extra embedded --extra dev $(LOCK) pyproject.toml -o requirements.lock

audit: ## ask PyPI's advisories about every pinned package; one that it does not know fails too
	@set -e; tools=$$(mktemp -d); trap 'rm -rf "$$tools"' EXIT; \
	$(PYTHON) -m venv "$$tools"; "$$tools/bin/python" $(PIP) install pip-audit; \
	"$$tools/bin/pip-audit" --strict --disable-pip --require-hashes --vulnerability-service pypi \
		--progress-spinner off -r requirements.lock

clean: ## remove all that these targets made
	@rm -rf $(VENV) $(CACHES) build dist
	@find src tests bench alembic -name __pycache__ -prune -exec rm -rf {} +

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	@echo 'Setting up $(VENV), once: about a minute'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python $(PIP) install --require-hashes -r requirements.lock
	@$(BIN)/python $(PIP) install --no-deps --no-build-isolation -e .
	@touch $@
