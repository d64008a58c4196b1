# One command per habit. `make test` sets up whatever it needs; CI runs the same (.ci/run).
SHELL := /bin/bash
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help venv check test test-fast test-kafka simulate bench schema golden lock

help:  ## show this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

venv: $(READY)  ## make the virtual environment (Python 3.11 or later)

$(READY): pyproject.toml constraints.txt
	@for python in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then echo "crewline needs Python 3.11 or later; name one: make $(MAKECMDGOALS) PYTHON=…" >&2; exit 1; fi; \
	if [ ! -x $(BIN)/python ]; then "$$found" -m venv $(VENV) || exit 1; fi
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

check: $(READY)  ## lint, types, who imports whom
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

test: $(READY)  ## every test, on a real Kafka and Redis (Java 17, redis-server; Maven the first time)
	$(BIN)/python -m pytest $(ARGS)

test-fast: $(READY)  ## unit and contract tests: no servers, seconds
	$(BIN)/python -m pytest tests/unit tests/contract -m "not servers" $(ARGS)

test-kafka: $(READY)  ## the bus's contract on a real broker alone
	$(BIN)/python -m pytest tests/contract/test_bus.py -k kafka $(ARGS)

simulate: $(READY)  ## seeded simulations of crashes, repeats and zombies (SECONDS_TO_RUN=600, ARGS)
	$(BIN)/python tests/simulation/run.py --seconds $${SECONDS_TO_RUN:-600} $(ARGS)

bench: $(READY)  ## throughput of whole turns, then the kill test
	$(BIN)/python benchmarks/turns.py --conversations 50 --turns 20 --tools 1
	$(BIN)/python benchmarks/kill.py --turns 100 --kills 10 --stops 5

schema: $(READY)  ## write the events' JSON Schema to docs/events.schema.json
	@$(BIN)/python -c 'import json; from crewline import events; print(json.dumps(events.json_schemas(), indent=2, ensure_ascii=False))' > docs/events.schema.json.new
	@mv docs/events.schema.json.new docs/events.schema.json; echo "docs/events.schema.json"

golden: $(READY)  ## write the events' golden file anew, after a change to the wire on purpose
	CREWLINE_GOLDEN=write $(BIN)/python -m pytest tests/unit/test_events_wire.py

lock:  ## write uv.lock and constraints.txt anew (uv in a folder of its own)
	@set -e; tools=$$(mktemp -d); trap 'rm -rf "$$tools"' EXIT; \
	python3 -m venv "$$tools" && "$$tools/bin/pip" install --quiet --disable-pip-version-check uv; \
	env -u UV_INDEX_URL -u UV_DEFAULT_INDEX "$$tools/bin/uv" lock --upgrade --default-index https://pypi.org/simple; \
	head -n 1 constraints.txt > "$$tools/constraints.txt"; \
	"$$tools/bin/uv" export --quiet --frozen --all-extras --no-hashes --no-annotate --no-header --no-emit-project >> "$$tools/constraints.txt"; \
	cp "$$tools/constraints.txt" constraints.txt
