# Breakeven's chores. `make run` and `make test` need Python 3.11 or newer, gcc and what pip is configured to reach;
# they make .venv/ from the hash-locked lists in requirements/ and reuse it until a list or pyproject.toml changes.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:# two pips in one environment would trip over each other

# The first interpreter that is new enough; `make PYTHON=/some/python run` overrules.
PYTHON ?= $(shell for p in python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
PIP := $(VENV)/bin/python -m pip install -qq --disable-pip-version-check
# Makes the locks, in an environment of its own. Quiet about where pip looked: locks are for everybody.
PIP_TOOLS := pip-tools==7.6.1
COMPILE := pip-compile -q --generate-hashes --allow-unsafe --strip-extras --no-emit-index-url \
	--no-emit-trusted-host --no-emit-find-links --no-emit-options $(if $(UPGRADE),--upgrade)

# A stamp is named after what it was made from, so that neither a touched file nor a switched branch reinstalls in
# vain, and after the folder, because an environment that moved still runs the old tree. A CRC notices change; that
# the right packages came is for pip's hashes to say.
crc = $(shell (pwd; cat $(1) pyproject.toml) | cksum | tr ' ' -)
RUN_READY := $(VENV)/.run-$(call crc,requirements/run.txt)
DEV_READY := $(VENV)/.dev-$(call crc,requirements/run.txt requirements/dev.txt)

.PHONY: help run test lint lock accept cells sensitivity decision-bench week live live-replay test-vllm clean
.PHONY: bench bench-short budgets compiled crash disconnects disk fuzz hold overload scaling simulate soak workers steps
.PHONY: dashboard-test month plan-check plan-plots plan-sizing reconcile-test

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' Makefile

run: $(RUN_READY) ## the gateway with simulated engines, a simulated API and traffic; prints its addresses
	@exec $(VENV)/bin/breakeven demo $(ARGS)

test: $(DEV_READY) ## every test that needs nothing but this machine; a skip that is not allowed for fails
	@exec $(VENV)/bin/python -m pytest -p tests.skips -m "not slow" $(ARGS)

lint: $(DEV_READY) ## ruff, by the rules in pyproject.toml; names files that are getting long
	@$(VENV)/bin/python -m ruff check .
	@exec $(VENV)/bin/python -m tests.test_tidy

accept: $(DEV_READY) ## the acceptance run: the product measured against its promises (minutes)
	@exec $(VENV)/bin/python -m tests.acceptance $(ARGS)

cells: $(DEV_READY) ## every routing policy on 20 cells of recorded traffic, against the clairvoyant bound (2 minutes)
	@exec $(VENV)/bin/python -m tests.bench.cells $(ARGS)

sensitivity: $(DEV_READY) ## the same when each constant of the policy is halved and doubled (10 minutes)
	@exec $(VENV)/bin/python -m tests.bench.cells --sensitivity $(ARGS)

decision-bench: $(DEV_READY) ## how long a decision takes with 2, 16 and 1,000 replicas, and a pull with 10,000 waiting
	@exec $(VENV)/bin/python -m tests.bench.decision $(ARGS)

bench: $(DEV_READY) ## the gateway's own cost beside nginx and the bare backend (12 minutes); ARGS="--peers FILE --profile"
	@exec $(VENV)/bin/python -m tests.bench.gateway $(ARGS)

bench-short: $(DEV_READY) ## the same, one round (3 minutes); ARGS="--phases sat,paced" for less
	@exec $(VENV)/bin/python -m tests.bench.gateway --short $(ARGS)

hold: $(DEV_READY) ## 10,000 streams at 2 chunks a second on one worker, for ten minutes: errors, delays, memory
	@exec $(VENV)/bin/python -m tests.bench.gateway --hold 600 $(ARGS)

steps: $(DEV_READY) ## microseconds of event loop of each step of a request: guard, key, decision, reserve, settle
	@exec $(VENV)/bin/python -m tests.bench.steps $(ARGS)

scaling: $(DEV_READY) ## how each step's cost grows with backends, keys, rows of the ledger, requests that wait (2 minutes)
	@exec $(VENV)/bin/python -m tests.bench.scaling $(ARGS)

compiled: $(DEV_READY) ## the hot path as machine code, in build/compiled (a minute or two); docs/performance.md says how to run it
	@exec $(VENV)/bin/python -m tests.bench.compiled build/compiled

week: $(DEV_READY) ## a production week on four fleet sizes; TRACE=path/to/servegen_m_large_week1.csv.zst (10 minutes)
	@[ -n "$(TRACE)" ] || { echo "make week TRACE=path/to/servegen_m_large_week1.csv.zst" >&2; exit 2; }
	@exec $(VENV)/bin/python -m tests.bench.week $(TRACE) $(ARGS)

plan-check: $(DEV_READY) ## the planner against an article's claims, 67 published throughputs and a production week
	@exec $(VENV)/bin/python -m tests.bench.plan_check $(ARGS)

plan-plots: $(DEV_READY) ## the two plots of docs/what-a-token-costs.md and the figures it quotes
	@exec $(VENV)/bin/python -m tests.bench.plan_plots $(ARGS)

plan-sizing: $(DEV_READY) ## fleet sizes for a production week beside the published ones; TRACE=...week1.csv.zst for the requests themselves
	@exec $(VENV)/bin/python -m tests.bench.plan_sizing $(TRACE) $(ARGS)

live: $(DEV_READY) ## what the gateway learns of engines whose speed it is not told, and of one that changes (11 minutes)
	@exec $(VENV)/bin/python -m tests.bench.live $(ARGS)

live-replay: $(DEV_READY) ## recorded traffic through the demo in real time, against what `breakeven replay` forecasts (5 minutes)
	@exec $(VENV)/bin/python -m tests.bench.live_replay $(ARGS)

disk: $(DEV_READY) ## every write, sync, truncation and opening of the ledger made to fail in turn; power cuts (3 minutes)
	@exec $(VENV)/bin/python -m tests.disk $(ARGS)

disconnects: $(DEV_READY) ## 10,000 clients leave at random: how soon the engine hears of it, and what stays behind (4 minutes)
	@exec $(VENV)/bin/python -m tests.bench.disconnects $(ARGS)

overload: $(DEV_READY) ## three times what the engines can do: goodput, how soon the rest is refused, how soon it is over (2 minutes)
	@exec $(VENV)/bin/python -m tests.bench.overload $(ARGS)

workers: $(DEV_READY) ## one, two and four workers on an engine that has too much to do: is what they decide as good (2 minutes)
	@exec $(VENV)/bin/python -m tests.bench.workers $(ARGS)

simulate: $(DEV_READY) ## the gateway in virtual time, a thousand seeds of a thousand requests, every rule at every step (25 minutes)
	@exec $(VENV)/bin/python -m tests.simulation $(ARGS)

month: $(DEV_READY) ## a generated month of 2 million requests whose truth is known, every form to the nano-dollar; 10 million timed (10 minutes)
	@exec $(VENV)/bin/python -m tests.month $(ARGS)

fuzz: $(DEV_READY) ## the parsers under atheris, a minute each (Linux); ARGS="--seconds 600" for longer, --help for more
	@exec $(VENV)/bin/python -m tests.fuzz $(ARGS)

crash: $(DEV_READY) ## the gateway killed 200 times under 64 clients, and the books compared with everybody's own (12 minutes)
	@exec $(VENV)/bin/python -m tests.bench.crash $(ARGS)

budgets: $(DEV_READY) ## 500 requests at once on a budget's last cent, in four processes; a million holds (2 minutes)
	@exec $(VENV)/bin/python -m tests.bench.budgets $(ARGS)

reconcile-test: $(DEV_READY) ## the simulated API's own bill against the ledger, then 8 things wrong with it, each to be named (1 minute)
	@exec $(VENV)/bin/python -m tests.reconcile $(ARGS)

soak: $(DEV_READY) ## an hour at half load with faults at random: what grows, and what goes wrong
	@exec $(VENV)/bin/python -m tests.bench.soak $(ARGS)

test-vllm: $(DEV_READY) ## the gateway against a real vLLM on this machine's CPU (once 2.3 GB, in .real-vllm/)
	@[ -n "$$REAL_VLLM_URL" ] || $(VENV)/bin/python tests/vllm/start.py --install-only
	@exec $(VENV)/bin/python -m pytest -p tests.skips -m vllm tests/vllm $(ARGS)

dashboard-test: $(DEV_READY) ## pages in a real Chromium: controls, accessibility, console, a month of ten million requests (minutes; 4.5 GB once)
	@exec $(VENV)/bin/python -m pytest -p tests.skips -m browser tests/browser $(ARGS)

lock: ## requirements/*.txt from *.in; UPGRADE=1 takes newer versions, else only what must change does
	@set -eu; work=$$(mktemp -d); trap 'rm -rf "$$work"' EXIT; \
	$(PYTHON) -m venv "$$work"; PATH="$$work/bin:$$PATH"; \
	python -m pip install -qq --disable-pip-version-check $(PIP_TOOLS); \
	export CUSTOM_COMPILE_COMMAND="make lock"; \
	$(COMPILE) --output-file requirements/dev.txt requirements/dev.in; \
	$(COMPILE) --constraint requirements/dev.txt --output-file requirements/run.txt requirements/run.in

clean: ## remove everything made here but the real vLLM (rm -r .real-vllm) and the ledger in data/
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .fuzz .bench
	find proxy tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@[ -n "$(PYTHON)" ] && $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Breakeven needs Python 3.11 or newer: install it, or name one: make PYTHON=/path/to/python run" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)

# dev.txt holds all of run.txt (tests/test_tidy.py sees to it), so an environment for tests also serves `make run`.
# The project itself comes as an editable install: it is this tree that runs.
$(RUN_READY): | $(VENV)/bin/python
	@echo "Installing what Breakeven needs into $(VENV)/ (once, about a minute) ..."
	@$(PIP) --require-hashes -r requirements/run.txt
	@$(PIP) --no-deps --no-build-isolation -e .
	@rm -f $(VENV)/.run-*; touch $@

$(DEV_READY): | $(VENV)/bin/python
	@echo "Installing what Breakeven's tests need into $(VENV)/ (once, about a minute) ..."
	@$(PIP) --require-hashes -r requirements/dev.txt
	@$(PIP) --no-deps --no-build-isolation -e .
	@rm -f $(VENV)/.run-* $(VENV)/.dev-*; touch $(RUN_READY) $@
