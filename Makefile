# Two commands are all that is needed: make multi-models, make test. Both set up .venv first.
# ARGS goes to ansible-playbook: make multi-models ARGS="-e roundhouse_gateway_port=8081"
# INVENTORY names another inventory than this machine's: make multi-models INVENTORY=inventories/k3d-cpu

SHELL := /bin/sh
.DEFAULT_GOAL := help

# The first of these that is new enough; if none is, tools/environment.py says so.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
    $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && exit; done; echo python3)

VENV := .venv/bin
PLAYBOOK = PATH="$(CURDIR)/$(VENV):$$PATH" $(VENV)/ansible-playbook $(if $(INVENTORY),--inventory $(INVENTORY))
ONLY_ARGS = $(if $(ONLY),-e roundhouse_only=$(ONLY))
TEST_REQUIREMENTS := requirements.txt gateway/requirements.txt requirements-test.txt \
    roles/engines/files/hub/requirements.txt roles/cluster/files/requirements.txt

.PHONY: help controller test-tools multi-models multi-engines serve status start stop restart remove logs keys
.PHONY: test lint unit soak bench package molecule test-k3d test-gpu

help: ## Show this
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 24

controller:
	@$(PYTHON) tools/environment.py requirements.txt

test-tools:
	@$(PYTHON) tools/environment.py $(TEST_REQUIREMENTS)

multi-models: controller ## Serve several models behind one endpoint
	@$(PLAYBOOK) playbooks/multi-models.yml $(ARGS)

multi-engines: controller ## Serve one model on several engines behind one endpoint
	@$(PLAYBOOK) playbooks/multi-engines.yml $(ARGS)

serve: controller ## Serve any stack: make serve STACK=NAME
	@$(PLAYBOOK) playbooks/serve.yml -e roundhouse_stack=$(or $(STACK),multi-models) $(ARGS)

status: controller ## Show what runs; fails if something that should run does not
	@$(PLAYBOOK) playbooks/status.yml $(ARGS)

start: controller ## Start what was deployed last; all four take ONLY=NAME for one deployment
	@$(PLAYBOOK) playbooks/start.yml $(ONLY_ARGS) $(ARGS)

stop: controller ## Stop it; downloads and logs stay
	@$(PLAYBOOK) playbooks/stop.yml $(ONLY_ARGS) $(ARGS)

restart: controller ## Stop and start it
	@$(PLAYBOOK) playbooks/restart.yml $(ONLY_ARGS) $(ARGS)

logs: controller ## Show its last log lines, and where the logs are
	@$(PLAYBOOK) playbooks/logs.yml $(ONLY_ARGS) $(ARGS)

keys: controller ## List the gateway's keys; ARGS="-e keys_create=NAME" makes one, keys_revoke=NAME revokes it
	@$(PLAYBOOK) playbooks/keys.yml $(ARGS)

remove: controller ## Remove it; with ARGS="-e roundhouse_purge=true" the downloads, too
	@$(PLAYBOOK) playbooks/remove.yml $(ARGS)

test: lint unit package molecule ## Lint, type, test: all of it

lint: test-tools ## Check style and types
	@$(VENV)/ruff check .
	@$(VENV)/ruff format --check .
	@$(VENV)/mypy
	@$(VENV)/yamllint --strict .
	@PATH="$(CURDIR)/$(VENV):$$PATH" $(VENV)/ansible-lint --offline --strict

unit: test-tools ## Run the Python tests
	@$(VENV)/python -m pytest

soak: test-tools ## A minute of clients and engines that misbehave
	@$(VENV)/python -m pytest gateway/tests -m slow

bench: test-tools ## What the gateway costs, beside nginx and the Rust routers (ten minutes; BENCH_ARGS=--quick: one)
	@cd gateway && ../$(VENV)/python -m bench $(BENCH_ARGS)

package: test-tools ## Build the collection, as Galaxy gets it
	@out=$$(mktemp -d) && trap 'rm -rf "$$out"' EXIT && $(VENV)/ansible-galaxy collection build --output-path "$$out" .

molecule: test-tools ## Converge real stacks and ask them; what this machine can't run is left out, and named
	@scenarios=$$($(VENV)/python tools/scenarios.py) && \
	    PATH="$(CURDIR)/$(VENV):$$PATH" $(VENV)/molecule test $$scenarios

test-k3d: test-tools ## The part of it that needs Docker: a real cluster, engines in pods
	@PATH="$(CURDIR)/$(VENV):$$PATH" $(VENV)/molecule test -s k3d

test-gpu: test-tools ## The part of it that needs an NVIDIA GPU: two engines that share it
	@PATH="$(CURDIR)/$(VENV):$$PATH" $(VENV)/molecule test -s gpu
