# Every target installs what it needs into $(VENV); there is nothing to install or activate first.

PYTHON ?= python3
VENV ?= .venv
TESTS ?= tests

# The miniature CLIPs are too small to benefit from threads: on busy cores, a second thread makes the quickstart several
# times slower.
OMP_NUM_THREADS ?= 1
export OMP_NUM_THREADS

RUN := -m kdpl run --config configs/data/digits.yaml --config configs/trainer/cpu.yaml \
	--teacher configs/teacher/quickstart.yaml --student configs/student/quickstart.yaml --out runs/quickstart

VENV_PYTHON := $(VENV)/bin/python
# without the notice about MkDocs 2
MKDOCS := NO_MKDOCS_2_WARNING=1 $(VENV_PYTHON) -m mkdocs
WITH_QUICKSTART := $(VENV)/.installed-quickstart
WITH_DEV := $(VENV)/.installed-dev

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help quickstart table reproduce targets photographs bench gpu test check-slow base floors slurm screenshots lint typecheck format docs docs-serve clean notebook

help: ## list the targets
	@echo "usage: make TARGET"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s%s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

quickstart: $(WITH_QUICKSTART) ## tune a teacher and distil a student on handwritten digits, into runs/quickstart
	@$(VENV_PYTHON) $(RUN)

table: $(WITH_QUICKSTART) ## reproduce the README's table of accuracies, over three seeds
	@$(VENV_PYTHON) -m kdpl benchmark configs/benchmark/quickstart.yaml --out runs/table
	@$(VENV_PYTHON) -m kdpl table runs/table

CAMPAIGN := reproduce
reproduce: $(if $(DATA),$(WITH_QUICKSTART)) ## compare DTD and EuroSAT with the published figures, on a GPU: DATA=FOLDER of the datasets; SEEDS="1 2"; CAMPAIGN=atprompt for another teacher
	@test -n "$(DATA)" || { echo "make reproduce needs the folder of the datasets, into which it downloads \
	dtd and eurosat if they are missing: add DATA=FOLDER" >&2; exit 1; }
	@for name in dtd eurosat; do $(VENV_PYTHON) -m kdpl data download $$name --root "$(DATA)" || exit; done
	@$(VENV_PYTHON) -m kdpl benchmark configs/benchmark/$(CAMPAIGN).yaml --root "$(DATA)" --out runs/$(CAMPAIGN) \
		--datasets dtd eurosat $(if $(SEEDS),--seeds $(SEEDS)) $(SETTINGS)
	@$(VENV_PYTHON) -m kdpl table runs/$(CAMPAIGN)

targets: $(WITH_DEV) ## measure what else a student can learn from, in at most two hours
	@$(VENV_PYTHON) -m kdpl benchmark benchmarks/worlds/targets.yaml --out runs/targets
	@$(VENV_PYTHON) -m kdpl table runs/targets

PHOTOS := runs/photographs
photographs: $(WITH_DEV) ## compare students of photographs, which docs/datasets.md says how to get, with regressions on the same labels
	@$(VENV_PYTHON) -m benchmarks.worlds.photographs --scenes $(PHOTOS)/scenes --clothing $(PHOTOS)/clothing \
		--packages $(PHOTOS)/packages --out $(PHOTOS)
	@$(VENV_PYTHON) -m kdpl benchmark benchmarks/worlds/photographs/campaign.yaml --out $(PHOTOS)/campaign
	@$(VENV_PYTHON) -m kdpl table $(PHOTOS)/campaign

# uses all cores for both sides of a comparison, regardless of OMP_NUM_THREADS
bench: $(WITH_DEV) ## compare speed and memory with the published procedure, into runs/bench.json
	@$(VENV_PYTHON) -m benchmarks.run --out runs/bench.json

gpu: $(WITH_DEV) ## measure speed and memory on a CUDA GPU in at most an hour, into runs/gpu.md and runs/gpu.json
	@$(VENV_PYTHON) -m benchmarks.gpu --out runs/gpu.json

test: $(WITH_DEV) ## run the tests, or some of them: make test TESTS=tests/test_losses.py
	@$(VENV_PYTHON) -m pytest -n 2 --dist loadfile -m "not slow" $(TESTS)

# three at a time on two cores, as they often wait for processes that they have started
check-slow: $(WITH_DEV) ## run the slow tests: several processes, browsers
	@$(VENV_PYTHON) -m pytest -n 3 --dist loadfile -m slow $(TESTS)

# environments of their own: .venv-base and .venv-floors
$(VENV)-base/.installed: pyproject.toml
	@$(MAKE) --no-print-directory VENV=$(VENV)-base $(VENV)-base/.created
	@$(VENV)-base/bin/python -m pip install --quiet --disable-pip-version-check --editable . pytest pytest-xdist
	@touch $@

base: $(VENV)-base/.installed ## run the tests that need the base installation alone, without any extra
	@KDPL_WITHOUT=dev $(VENV)-base/bin/python -m pytest -n 2 --dist loadfile -m "not slow" $(TESTS)

floors: ## run the tests with the oldest versions that pyproject.toml allows
	@$(MAKE) --no-print-directory VENV=$(VENV)-floors $(VENV)-floors/.created
	@$(VENV)-floors/bin/python tests/floors.py $(TESTS)

slurm: $(WITH_DEV) ## test jobs in a local Slurm; needs root, slurm-wlm and munge
	@$(VENV_PYTHON) -m pytest tests/slurm/jobs.py

screenshots: quickstart $(WITH_DEV) ## make the quickstart's pictures and the letters in docs/images again, with chromium
	@KDPL_SCREENSHOTS_OF=$(CURDIR)/runs/quickstart $(VENV_PYTHON) -m pytest -q tests/test_screenshots.py

notebook: $(WITH_DEV) ## run the notebook in examples/ and save its outputs
	@KDPL_SAVE_NOTEBOOK=1 $(VENV_PYTHON) -m pytest -q -m slow tests/test_notebook.py

lint: $(WITH_DEV) ## check code style and formatting
	@$(VENV_PYTHON) -m ruff check
	@$(VENV_PYTHON) -m ruff format --check

typecheck: $(WITH_DEV) ## check the types of kdpl/
	@$(VENV_PYTHON) -m mypy

format: $(WITH_DEV) ## format all files and fix what ruff can fix
	@$(VENV_PYTHON) -m ruff check --fix --exit-zero --quiet
	@$(VENV_PYTHON) -m ruff format

docs: $(WITH_DEV) ## build the documentation into site/; a broken link is an error
	@$(MKDOCS) build --strict --quiet
	@echo "site/index.html"

docs-serve: $(WITH_DEV) ## serve a live preview of the documentation on http://127.0.0.1:8000
	@$(MKDOCS) serve

clean: ## remove caches and builds, but not runs and the environment
	@rm -rf build dist site .mypy_cache .pytest_cache .ruff_cache
	@find kdpl tests -name __pycache__ -type d -prune -exec rm -rf {} +

# make compares stamp files, because the interpreter is a symlink and has its target's time.
$(VENV)/.created:
	@command -v $(PYTHON) >/dev/null || { \
		echo "$(PYTHON) does not exist: install Python 3.11 or newer, or set another with PYTHON=…" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		version=$$($(PYTHON) -c 'import sys; print("%d.%d" % tuple(sys.version_info[:2]))'); \
		echo "kdpl needs Python 3.11 or newer, but $(PYTHON) is $$version: set another with PYTHON=…" >&2; exit 1; }
	@echo "Creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(WITH_QUICKSTART): pyproject.toml | $(VENV)/.created
	@echo "Installing kdpl and the dependencies of the quickstart into $(VENV); this takes a few minutes"
	@$(VENV_PYTHON) -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

# dev includes all that the quickstart needs
$(WITH_DEV): pyproject.toml | $(VENV)/.created
	@echo "Installing kdpl and the dependencies for development into $(VENV); this takes a few minutes"
	@$(VENV_PYTHON) -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(WITH_QUICKSTART) $@
