# One environment in the checkout; every target sets it up by itself.
PYTHON ?= python3
BIN := .venv/bin
comma := ,

.DEFAULT_GOAL := test
.PHONY: test check demo call bench protos chart scan released constraints model clean

# What lives in real time goes apart from what computes; what needs both cores at once goes alone.
LIVE := $(addprefix tests/,cli client gateway loadtest local)
ALONE := $(addprefix tests/,e2e web score/test_app.py vae/test_app.py)

test: check .venv/helm/4/helm ## everything that must hold
	$(BIN)/pytest --numprocesses 2 --dist loadfile $(addprefix --ignore ,$(LIVE) $(ALONE))
	$(BIN)/pytest --numprocesses 2 --dist loadfile $(LIVE)
	$(BIN)/pytest $(ALONE)

demo: .venv/local ## the whole fleet on this machine: a film, a sheet of pictures, the figures
	$(BIN)/talkingmachines demo --out demo.mp4 --sheet demo.png

check: .venv/ready ## format, lint, types, layering, contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python protos/generate.py --check
	$(BIN)/python -m helm.schema --check
	$(BIN)/python -m helm.dashboards --check
	$(BIN)/buf lint
	$(BIN)/buf breaking --against protos/released.binpb

call: .venv/call ## the whole fleet on this machine, and a page in the browser to talk with a character
	$(BIN)/talkingmachines call

bench: .venv/ready ## what this machine can measure in 15 minutes; compares with the last results, writes the figures
	$(BIN)/python -m benchmarks.bench

protos: .venv/ready ## regenerate the stubs after a change in protos/
	$(BIN)/python protos/generate.py

chart: .venv/ready ## regenerate the chart's schema and dashboards
	$(BIN)/python -m helm.schema
	$(BIN)/python -m helm.dashboards

scan: .venv/helm/4/helm ## look for weaknesses in manifests and images; checkov has an environment of its own
	test -x .venv/checkov/bin/checkov || { $(PYTHON) -m venv .venv/checkov && .venv/checkov/bin/pip install --quiet checkov==3.3.30; }
	$(BIN)/python -m helm.scan .venv/checkov/bin/checkov

released: .venv/ready ## after a release: later changes to the contracts must not break it
	$(BIN)/buf build --exclude-source-info --output protos/released.binpb

constraints: .venv/ready ## after changing dependencies: pin what this environment has
	$(BIN)/pip freeze --exclude-editable | sed 's/+cpu//' > constraints.txt

model: .venv/ready ## make models/tiny from nothing: hours on a CPU, see training/README.md
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[data]'
	sh training/model.sh

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

# torch goes first and by exact version: an open range would pull in gigabytes of CUDA packages.
define install
@$(PYTHON) -c '' || { echo "$(PYTHON) does not run; say PYTHON=python3.11"; exit 1; }
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "needs Python 3.11 or newer; say PYTHON=python3.11"; exit 1; }
@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "needs venv: apt-get install python3-venv"; exit 1; }
@echo "setting up .venv, which takes a minute or more"
$(PYTHON) -m venv .venv
$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt "$$(grep ^torch== constraints.txt)"
$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$(1)]'
@touch $@
endef

.venv/ready: pyproject.toml constraints.txt
	$(call install,dev)

# Real helm programs, 3 and 4, for what tests the chart.
.venv/helm/4/helm: helm/tools.py .venv/ready
	$(BIN)/python -m helm.tools

# What running a fleet takes, and what hearing and speaking takes besides; the environment of
# development has all of it.
ifeq ($(wildcard .venv/ready),)
.venv/local: pyproject.toml constraints.txt
	$(call install,local$(comma)cli)
.venv/call: pyproject.toml constraints.txt
	$(call install,local$(comma)cli$(comma)bridge)
else
.venv/local .venv/call: .venv/ready
	@touch $@
endif
