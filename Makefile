# Commands for a newcomer: `make demo`, `make demo-video`, `make demo-detection` and `make test`. Each makes .venv first.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed

.PHONY: demo demo-video demo-detection test lint format clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(STAMP) ## draw birds, train with and without a block, write demo/report.html
	$(BIN)/cgnl demo

demo-video: $(STAMP) ## the same with drawn actions and video networks, into demo-video/
	$(BIN)/cgnl demo --video

demo-detection: $(STAMP) ## the same with drawn flocks and Mask R-CNN, into demo-detection/
	$(BIN)/cgnl demo --detection

test: $(STAMP) ## every unit test, and one recipe of each table
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build dist demo demo-video demo-detection runs
