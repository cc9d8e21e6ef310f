# Every target sets up what it needs in $(VENV); nothing has to be installed or activated first.

PYTHON ?= python3
VENV ?= .venv
TESTS ?= tests
FUZZ_INPUTS ?= 1000

# The miniature CLIPs are too small for threads to pay: on cores that are busy otherwise, a second thread made the
# quickstart several times slower.
OMP_NUM_THREADS ?= 1
export OMP_NUM_THREADS

RUN := -m kdpl run --config configs/data/digits.yaml --config configs/trainer/cpu.yaml \
	--teacher configs/teacher/quickstart.yaml --student configs/student/quickstart.yaml --out runs/quickstart

VENV_PYTHON := $(VENV)/bin/python
# without the notice of what its authors make next
MKDOCS := NO_MKDOCS_2_WARNING=1 $(VENV_PYTHON) -m mkdocs
WITH_QUICKSTART := $(VENV)/.installed-quickstart
WITH_DEV := $(VENV)/.installed-dev

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help quickstart table bench test check-slow soak fuzz slurm screenshots lint typecheck format docs docs-serve clean

help: ## say what there is
	@echo "usage: make TARGET"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s%s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

quickstart: $(WITH_QUICKSTART) ## tune a teacher and distil a student on handwritten digits, into runs/quickstart
	@$(VENV_PYTHON) $(RUN)

table: $(WITH_QUICKSTART) ## make the README's table of accuracies again, over three seeds
	@$(VENV_PYTHON) -m kdpl benchmark configs/benchmark/quickstart.yaml --out runs/table
	@$(VENV_PYTHON) -m kdpl table runs/table

# sets its threads itself, whatever OMP_NUM_THREADS says: all cores, for both sides of a comparison
bench: $(WITH_DEV) ## measure speed and memory beside the published procedure, into runs/bench.json
	@$(VENV_PYTHON) -m benchmarks.run --out runs/bench.json

test: $(WITH_DEV) ## run the tests, or some: make test TESTS=tests/test_losses.py
	@$(VENV_PYTHON) -m pytest -n 2 --dist loadfile -m "not slow" $(TESTS)

check-slow: $(WITH_DEV) ## run the slow tests: several processes, browsers, fuzzing
	@$(VENV_PYTHON) -m pytest -n 2 --dist loadfile -m slow $(TESTS)

soak: $(WITH_DEV) ## run the quickstart 20 times, cut at random: the end must be the same; SOAK="--runs 5 --epochs 3"
	@PYTHONPATH=tests $(VENV_PYTHON) -m soak $(SOAK)

fuzz: $(WITH_DEV) ## read garbled files of every kind that strangers may give; FUZZ_INPUTS=100000 of each kind
	@FUZZ_INPUTS=$(FUZZ_INPUTS) $(VENV_PYTHON) -m pytest -m slow tests/fuzz

slurm: $(WITH_DEV) ## start fits by torchrun, and jobs in a Slurm of this machine's own: as root, with slurm-wlm and munge
	@$(VENV_PYTHON) -m pytest tests/slurm/torchrun.py tests/slurm/jobs.py

screenshots: quickstart $(WITH_DEV) ## take the pictures of report and demo in docs/images again, in chromium
	@KDPL_SCREENSHOTS_OF=$(CURDIR)/runs/quickstart $(VENV_PYTHON) -m pytest -q tests/test_screenshots.py

lint: $(WITH_DEV) ## look for mistakes and unformatted files
	@$(VENV_PYTHON) -m ruff check
	@$(VENV_PYTHON) -m ruff format --check

typecheck: $(WITH_DEV) ## check the types of kdpl/
	@$(VENV_PYTHON) -m mypy

format: $(WITH_DEV) ## format all files and mend what can be mended
	@$(VENV_PYTHON) -m ruff check --fix --exit-zero --quiet
	@$(VENV_PYTHON) -m ruff format

docs: $(WITH_DEV) ## build the documentation into site/; any broken link is an error
	@$(MKDOCS) build --strict --quiet
	@echo "site/index.html"

docs-serve: $(WITH_DEV) ## show the documentation on http://127.0.0.1:8000 while you write it
	@$(MKDOCS) serve

clean: ## remove caches and builds; runs and environment stay
	@rm -rf build dist site .mypy_cache .pytest_cache .ruff_cache
	@find kdpl tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps, not the interpreter, are what make compares: a symlink's time is its target's.
$(VENV)/.created:
	@command -v $(PYTHON) >/dev/null || { \
		echo "There is no $(PYTHON): install Python 3.11 or newer, or name one with PYTHON=…" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		version=$$($(PYTHON) -c 'import sys; print("%d.%d" % tuple(sys.version_info[:2]))'); \
		echo "kdpl needs Python 3.11 or newer and $(PYTHON) is $$version: name another with PYTHON=…" >&2; exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(WITH_QUICKSTART): pyproject.toml | $(VENV)/.created
	@echo "Installing kdpl and what the quickstart needs into $(VENV): some minutes, as PyTorch is large"
	@$(VENV_PYTHON) -m pip install --quiet --disable-pip-version-check --editable '.[quickstart]'
	@touch $@

# dev contains quickstart
$(WITH_DEV): pyproject.toml | $(VENV)/.created
	@echo "Installing kdpl and what its development needs into $(VENV): some minutes, as PyTorch is large"
	@$(VENV_PYTHON) -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(WITH_QUICKSTART) $@
