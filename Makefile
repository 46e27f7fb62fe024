# make demo    set up .venv, then prepare, train and generate on synthetic eyes with a tiny random base
# make test    set up .venv and run the tests
# make check   what CI runs: format, lint, types, tests
# make test-slow   full-size SDXL and SD1.5 with random weights on the CPU (about 20 GB of memory, 15 minutes)
# make test-gpu    what only an accelerator can show

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test check test-slow test-gpu clean
.DEFAULT_GOAL := test

$(INSTALLED): pyproject.toml constraints.txt
	@echo "Setting up .venv (the first time takes a minute or two)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

test: $(INSTALLED)
	$(BIN)/python -m pytest

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow -s

test-gpu: $(INSTALLED)
	$(BIN)/python -m pytest -m gpu

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) test

demo: $(INSTALLED)
	$(BIN)/python recipes/demo.py

clean:
	rm -rf .venv demo results
