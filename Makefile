# make demo    set up .venv, then prepare, train and generate on synthetic eyes with a tiny random base
# make test    set up .venv and run the tests
# make check   what CI runs: format, lint, types, tests
# make docs    write docs/reference.md from --help
# make test-slow   full-size SDXL and SD1.5 with random weights on the CPU (about 20 GB of memory, 15 minutes)
# make test-gpu    what only an accelerator can show

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test check docs test-slow test-gpu clean
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
	RETIPAIR_TEST_GPU=1 $(BIN)/python -m pytest -m gpu -s

docs: $(INSTALLED)
	cd tests && ../$(BIN)/python reference.py > ../docs/reference.md

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) test

demo: $(INSTALLED)
	@echo "Eight synthetic eyes, prepared, trained on and generated from, on a tiny base with RANDOM weights:"
	@echo "what it draws is noise. This shows the commands and the files, not the quality."
	@cd tests && ../$(BIN)/python -c "from eyes import write_raw; from pathlib import Path; write_raw(Path('../demo/raw'), 8, jitter=1.0)"
	$(BIN)/retipair prepare demo/raw demo/pairs
	$(BIN)/retipair train -n demo --data demo/pairs --base random:tiny-sdxl --results demo/results \
	    --max_steps 60 --val_every 20 --log_every 10 --num_samples 2 --sample_steps 10 --resume
	$(BIN)/retipair generate -n demo --results demo/results --savedir new --amount 4 --steps 20
	$(BIN)/retipair generate -n demo --results demo/results --savedir varied --amount 4 --steps 20 --mode from_data
	@echo "Done: demo/pairs/contact_sheet.png, demo/results. Next: README.md, \"From your pairs to new pairs\""

clean:
	rm -rf .venv demo results
