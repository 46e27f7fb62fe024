# make demo    set up .venv, then the whole way on rendered eyes: align, train, generate, and a report (about 6 minutes)
# make test    set up .venv and run the tests
# make check   what CI runs: format, lint, types, tests
# make docs    write docs/reference.md from --help
# make test-nightly   further kills, processes, seeds and poses (about 10 minutes)
# make test-slow   what takes minutes: full-size SDXL and SD1.5 with random weights on the CPU (about 20 GB), recipes, 100 copies
# make test-gpu    what only an accelerator can show
# make soak    training and drawing, killed 60 times, and compared with what nobody killed (about 15 minutes)
# make long   memory and open files of two hours of training, then of 2,000 drawn pairs
# make fuzz    what reads images, points and tables, fed what a fuzzer finds for ten minutes (Linux)
# make test-browser   the report in Chromium (Debian: apt install chromium)

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test check docs test-nightly test-slow test-gpu test-browser soak long fuzz help clean
.DEFAULT_GOAL := test

$(INSTALLED): pyproject.toml constraints.txt
	@echo "Setting up .venv (the first time takes a minute or two)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

test: $(INSTALLED)
	$(BIN)/python -m pytest -n logical --maxprocesses 8 --dist worksteal

test-nightly: $(INSTALLED)
	$(BIN)/python -m pytest -m nightly -n logical --maxprocesses 8 --dist worksteal

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow -s

test-gpu: $(INSTALLED)
	RETIPAIR_TEST_GPU=1 $(BIN)/python -m pytest -m gpu -s

test-browser: $(INSTALLED)
	$(BIN)/python -m pytest -m browser

soak: $(INSTALLED)
	$(BIN)/python tests/soak.py --kills 60

long: $(INSTALLED)
	$(BIN)/python benchmarks/long_run.py --hours 2 --pairs 2000

fuzz: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt atheris
	for reader in image points table; do $(BIN)/python tests/fuzz/readers.py $$reader -max_total_time=200 || exit 1; done

docs: $(INSTALLED)
	cd tests && ../$(BIN)/python reference.py > ../docs/reference.md

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) test

demo: $(INSTALLED)
	$(BIN)/retipair demo
	@echo "(First, once in each shell: source .venv/bin/activate)"

help:
	@grep -E '^# make ' Makefile | cut -c3-

clean:
	rm -rf .venv demo
