# Every target sets up what it needs. `make help` lists them.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PORT   ?= 8080

.DEFAULT_GOAL := help
.PHONY: help run test test-clients test-engines test-ops test-storms test-failover test-timed bench check format dashboards pictures lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

# $(call environment,FOLDER,LOCK FILE): a virtual environment with exactly what the lock file names, and this project in it.
define environment
	$(PYTHON) -m venv --clear $(1)
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(2)
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(1)/.ready
endef

$(VENV)/.ready: requirements/dev.txt pyproject.toml
	$(call environment,$(VENV),requirements/dev.txt)

run: $(VENV)/.ready ## serve the demo on 127.0.0.1:8080 (PORT=… for another)
	$(BIN)/gateway demo --port $(PORT)

test: $(VENV)/.ready ## every test that needs only pip, in under two minutes
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile tests

test-clients: $(VENV)-clients/.ready tests/clients/node/node_modules/.ready ## other vendors' clients in front, and the SDK's previous major version (needs Node)
	$(VENV)-clients/bin/python -m pytest -p no:asyncio -m "not storms" tests/clients tests/sdk

$(VENV)-clients/.ready: requirements/clients.txt pyproject.toml
	$(call environment,$(VENV)-clients,requirements/clients.txt)

tests/clients/node/node_modules/.ready: tests/clients/node/package-lock.json
	cd tests/clients/node && npm ci --ignore-scripts --no-audit --no-fund --silent
	@touch $@

test-engines: $(VENV)-engines/.ready ## real engines behind a real gateway: Triton over HTTP and gRPC (half a gigabyte)
	$(VENV)-engines/bin/python -m pytest -m engines tests/engines

$(VENV)-engines/.ready: requirements/engines.txt pyproject.toml
	$(call environment,$(VENV)-engines,requirements/engines.txt)

test-ops: $(VENV)-ops/.ready .prometheus/.ready ## dashboards, rules and alerts on a real Prometheus that scrapes a gateway in trouble
	$(OPS)

pictures: $(VENV)-ops/.ready .prometheus/.ready ## the same, and draw the dashboards that docs show
	$(OPS) --pictures docs/images
	cd docs/images && rm models.png streams.png

OPS = PATH="$(CURDIR)/.prometheus/usr/bin:$$PATH" $(VENV)-ops/bin/python -m pytest -m ops tests/ops

$(VENV)-ops/.ready: requirements/ops.txt pyproject.toml
	$(call environment,$(VENV)-ops,requirements/ops.txt)

# Prometheus and promtool as Debian packages them, unpacked here and not installed: no service is started, and nobody must be
# root where apt has its lists. Elsewhere they must be on the PATH.
.prometheus/.ready:
	@rm -rf $(@D) && mkdir -p $(@D)
	@if command -v apt-get > /dev/null; then cd $(@D) \
	  && { apt-get -qq download prometheus || { apt-get -qq update && apt-get -qq download prometheus; }; } \
	  && dpkg-deb -x prometheus_*.deb . && rm prometheus_*.deb; fi || true
	@PATH="$(CURDIR)/$(@D)/usr/bin:$$PATH" && for program in prometheus promtool; do command -v $$program || { \
	  echo "$$program is missing: apt-get could not fetch Debian's package prometheus, so install Prometheus (2.42 or later), with promtool, and put both on the PATH" >&2; exit 1; }; done
	@touch $@

test-storms: $(VENV)/.ready ## cancellations by the hundred thousand: no slot, descriptor or task may leak (minutes)
	$(BIN)/python -m pytest -m storms tests

test-failover: $(VENV)/.ready ## replicas killed, stalled, slow and wrong under load: nobody may notice (minutes)
	$(BIN)/python -m pytest -m failover tests/failover

test-timed: $(VENV)/.ready ## what must be quick: a scrape of a full page (the machine should have nothing else to do)
	$(BIN)/python -m pytest -m timed -s tests

bench: $(VENV)-bench/.ready $(if $(BENCH_LITELLM),$(VENV)-bench-litellm/.ready) ## CPU per request and chunk beside Envoy and a Rust router (BENCH_LITELLM=1: and LiteLLM)
	$(VENV)-bench/bin/python -m bench $(BENCH_OPTIONS)

$(VENV)-bench/.ready: requirements/bench.txt pyproject.toml
	$(call environment,$(VENV)-bench,requirements/bench.txt)

$(VENV)-bench-litellm/.ready: requirements/bench-litellm.txt
	$(PYTHON) -m venv --clear $(VENV)-bench-litellm
	$(VENV)-bench-litellm/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

check: $(VENV)/.ready ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.ready ## let ruff tidy the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

dashboards: ## write the JSON of the dashboards from deploy/grafana/dashboards.py
	$(PYTHON) -m deploy.grafana

LOCK = $(VENV)-lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --no-annotate

lock: ## write the lock files anew
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet --require-hashes -r requirements/lock.txt
	$(LOCK) pyproject.toml -o requirements/run.txt
	$(LOCK) pyproject.toml --group dev -o requirements/dev.txt
	$(LOCK) pyproject.toml requirements/bench.in -o requirements/bench.txt
	$(LOCK) requirements/bench-litellm.in -o requirements/bench-litellm.txt
	$(LOCK) requirements/clients.in -o requirements/clients.txt
	$(LOCK) requirements/engines.in -o requirements/engines.txt
	$(LOCK) requirements/ops.in -o requirements/ops.txt
	$(LOCK) requirements/build.in -o requirements/build.txt
	$(LOCK) requirements/lock.in -o requirements/lock.txt

clean: ## remove what the targets made
	rm -rf .venv* .prometheus tests/clients/node/node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis .bench
