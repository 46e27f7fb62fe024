# make demo           set up .venv, then align, train, generate and evaluate phantoms (about 6 minutes)
# make test           set up .venv and run the tests
# make check          what CI runs: format, lint, types, tests
# make docs           build the documentation site in site/; fails on warnings
# make reference      write docs/reference.md from --help
# make test-nightly   longer tests: more signals, process counts, seeds and poses, and the site (about 10 minutes)
# make test-slow      tests that take minutes: full-size random bases on the CPU (20 GB), recipes, finding 100 copies
# make test-gpu       tests that need an accelerator
# make test-browser   the report and the page of `retipair app` in Chromium (Debian: apt install chromium)
# make soak           train and generate with 60 kills and resumes, compare with uninterrupted runs (about 15 minutes)
# make long           measure memory and open files while training for two hours, then while generating 2,000 pairs
# make fuzz           fuzz the readers of images, points and tables for ten minutes (Linux)

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
INSTALLED_APP := .venv/.installed-app

.PHONY: demo test check docs reference test-nightly test-slow test-gpu test-browser soak long fuzz help clean
.DEFAULT_GOAL := test

$(INSTALLED): pyproject.toml constraints.txt
	@echo "Setting up .venv (the first time takes a minute or two)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

$(INSTALLED_APP): $(INSTALLED)
	@echo "Adding the extra app to .venv"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[app]'
	@touch $@

test: $(INSTALLED)
	$(BIN)/python -m pytest -n logical --maxprocesses 8 --dist worksteal

test-nightly: $(INSTALLED) docs
	$(BIN)/python -m pytest -m nightly -n logical --maxprocesses 8 --dist worksteal

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow -s

test-gpu: $(INSTALLED)
	RETIPAIR_TEST_GPU=1 $(BIN)/python -m pytest -m gpu -s

test-browser: $(INSTALLED_APP)
	$(BIN)/python -m pytest -m browser

soak: $(INSTALLED)
	$(BIN)/python tests/soak.py --kills 60

long: $(INSTALLED)
	$(BIN)/python benchmarks/long_run.py --hours 2 --pairs 2000

fuzz: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt atheris
	for reader in image points table; do $(BIN)/python tests/fuzz/readers.py $$reader -max_total_time=200 || exit 1; done

docs: $(INSTALLED)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(BIN)/python -m sphinx -W --keep-going -q -c docs . site
	@echo "Open site/index.html"

reference: $(INSTALLED)
	cd tests && ../$(BIN)/python reference.py > ../docs/reference.md

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) test

demo: $(INSTALLED)
	$(BIN)/retipair demo
	@echo "(In each new shell, first run: source .venv/bin/activate)"

help:
	@grep -E '^# make ' Makefile | cut -c3-

clean:
	rm -rf .venv demo site
