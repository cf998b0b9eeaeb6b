# Needs make, and Python 3.11 or newer with venv. Every target works on a fresh clone: it first installs the
# Python packages that it needs into .venv. `make PYTHON=python3.12 ...` selects another Python.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# This file exists when all packages are installed in .venv.
READY := $(VENV)/ready
PIP := -m pip -qq --disable-pip-version-check --no-input
INSTALL := DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends
CACHES := .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache

BENCHES := first_request deliver import_clients cost profiles against_bare against_peers finished_rows million \
	scale many_mailings waiting_mailings held_snapshot access admin_pages two_processes idle loop_blocks \
	receipts several_gateways changing_routes webhooks contact_cap sending_during_import hostile_headers schema \
	soak

# The package on npm that contains Twilio's OpenAPI description.
TWILIO_OPENAPI := @twilio/cli-core@8.3.2

# Programs that only some tests need, and that pip cannot install.
PROGRAMS := promtool chromium faketime bearerbox
PEER_PROGRAMS := rabbitmq-server redis-server

.PHONY: help demo check test busy peers $(PROGRAMS) $(PEER_PROGRAMS) oidc-provider lint fmt bench properties texts security schema lock audit clean
.DELETE_ON_ERROR:

help: ## show this help
	@sed -n 's/^\([a-z]*\):.*## /make \1\t/p' $(MAKEFILE_LIST) | expand -t 12

demo: $(READY) ## run mailer with a sandbox gateway and running mailings; Ctrl-C stops it
	@$(BIN)/mailer demo

# An empty PYTHONDONTWRITEBYTECODE lets Python write bytecode: otherwise each of the many test processes
# would compile all code again. Three processes run the tests, each a whole file at a time (loadfile).
# no-loadscope-reorder: files run by name, so the slow ones of tests/acceptance come first. The default order,
# most tests first, would leave these slow files with few tests to the end.
TEST := PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -q -n 3 --dist loadfile --no-loadscope-reorder

check: lint oidc-provider ## run lint, and the unit and API tests: a quarter of the time of `make test`
	@$(TEST) tests/unit tests/api

test: lint $(PROGRAMS) oidc-provider ## run lint and all tests on a real PostgreSQL (including `alembic check`)
	@$(TEST)

busy: $(READY) ## run all tests three times, beside four endless loops that keep the machine busy
	@set -e; trap 'kill $$burners' EXIT; for n in 1 2 3 4; do \
		$(BIN)/python -c 'while True: pass' & burners="$$burners $$!"; done; \
	for run in 1 2 3; do $(MAKE) --no-print-directory test; done

peers: $(READY) $(PEER_PROGRAMS) ## compare with the providers' SDKs and OpenAPI descriptions, send through a real Jasmin
	@[ -e .venv/sdks/ready ] || { $(PYTHON) -m venv .venv/sdks && \
		.venv/sdks/bin/pip install -q -r tests/peers/requirements.txt && touch .venv/sdks/ready; }
	@[ -e .venv/sdks/package ] || { cd .venv/sdks && npm pack --silent $(TWILIO_OPENAPI) >/dev/null && \
		tar xzf twilio-cli-core-*.tgz; } || echo 'npm is not installed: the test that needs it is skipped'
	@[ -e .venv/jasmin/ready ] || { $(PYTHON) -m venv .venv/jasmin && \
		.venv/jasmin/bin/pip install -q jasmin==0.11.1 && touch .venv/jasmin/ready; }
	@$(BIN)/pytest -q tests/peers

promtool: PACKAGE := prometheus
chromium: PACKAGE := chromium
faketime: PACKAGE := faketime
bearerbox: PACKAGE := kannel kannel-extras
$(PEER_PROGRAMS): PACKAGE = $@
# The tests start their own: none runs as a service.
$(PEER_PROGRAMS): STOP = && { [ ! -d /run/systemd/system ] || systemctl disable --now $@; }
$(PROGRAMS) $(PEER_PROGRAMS): # installs a missing program from Debian, if run as root; otherwise prints what that means
	@command -v $@ >/dev/null || \
		{ [ "$$(id -u)" = 0 ] && { { $(INSTALL) $(PACKAGE) || { apt-get update -qq && $(INSTALL) $(PACKAGE); }; } \
		$(STOP); } >/dev/null 2>&1; } || echo '$@ is not installed: tests that need it are skipped, and in CI fail'

oidc-provider: $(READY) # installs the OpenID Connect provider of the tests, from PyPI and npm, pinned in tests/openid
	@PYTHONPATH=. $(BIN)/python -m tests.provider || true # prints one line if it fails; tests are then skipped

lint: $(READY) ## run ruff, mypy and import-linter
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet || { echo 'Not formatted: run make fmt'; exit 1; }
	@$(BIN)/mypy # without its option for several processes: they time out on a busy machine
	@$(BIN)/lint-imports --no-logo

fmt: $(READY) ## fix what ruff can fix, and format the code
	@$(BIN)/ruff check --quiet --fix --exit-zero
	@$(BIN)/ruff format

texts: $(READY) ## update the gettext catalogues of the pages
	@PYTHONPATH=. $(BIN)/python tests/texts.py

security: $(READY) ## write the permissions of all routes into docs/security.md
	@PYTHONPATH=. $(BIN)/python tests/security_table.py

schema: $(READY) ## write the database schema that the migrations create into docs/schema.sql
	@PYTHONPATH=. $(BIN)/python -m tests.schema_dump

bench: $(READY) ## run all benchmarks, one after the other
	@set -e; for name in $(BENCHES); do echo "== $$name"; $(BIN)/python bench/$$name.py; done

# The property tests are the files that import tests.examples, which reads TEST_EXAMPLES.
properties: $(READY) ## run the property tests, ten thousand examples each
	@TEST_EXAMPLES=10000 $(BIN)/pytest -q -o timeout=1800 --durations=8 \
		$$(grep -rl --include='test_*.py' tests.examples tests)

lock: ## pin the dependencies in requirements.lock; with LOCK=--upgrade to their newest versions
	@set -e; tools=$$(mktemp -d); trap 'rm -rf "$$tools"' EXIT; \
	$(PYTHON) -m venv "$$tools"; "$$tools/bin/python" $(PIP) install uv; \
	"$$tools/bin/uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' \
		--extra embedded --extra dev $(LOCK) pyproject.toml -o requirements.lock

audit: ## check all pinned packages for known vulnerabilities; fails for packages unknown to PyPI too
	@set -e; tools=$$(mktemp -d); trap 'rm -rf "$$tools"' EXIT; \
	$(PYTHON) -m venv "$$tools"; "$$tools/bin/python" $(PIP) install pip-audit; \
	"$$tools/bin/pip-audit" --strict --disable-pip --require-hashes --vulnerability-service pypi \
		--progress-spinner off -r requirements.lock

clean: ## remove everything that these targets created
	@rm -rf $(VENV) $(CACHES) build dist
	@find src tests bench alembic -name __pycache__ -prune -exec rm -rf {} +

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	@echo 'Setting up $(VENV), once: about a minute'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python $(PIP) install --require-hashes -r requirements.lock
	@$(BIN)/python $(PIP) install --no-deps --no-build-isolation -e .
	@touch $@
