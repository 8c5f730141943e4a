# `make demo` runs the whole path from annotations to predictions, `make test` the tests; both install what they need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo
JOBS ?= 2

.PHONY: demo quick test test-long browser docs generate clean

demo: $(VENV)/.ready
	rm -rf $(DEMO)
	$(BIN)/cocolvis sample --out $(DEMO)/sample --images 480 --classes 106
	$(BIN)/cocolvis build --coco $(DEMO)/sample/coco --lvis $(DEMO)/sample/lvis --out $(DEMO)/data
	$(BIN)/cocolvis verify $(DEMO)/data --oracle --coco $(DEMO)/sample/coco --lvis $(DEMO)/sample/lvis
	$(BIN)/cocolvis stats $(DEMO)/data --plot $(DEMO)/stats.png
	$(BIN)/ess train $(DEMO)/data --out $(DEMO)/run --preset demo
	$(BIN)/ess eval $(DEMO)/run $(DEMO)/data --top-n 10,50,106 --plot $(DEMO)/curve.png
	$(BIN)/ess report $(DEMO)/run $(DEMO)/data --out $(DEMO)/report.html
	$(BIN)/ess predict $(DEMO)/run $(DEMO)/sample/coco/val2017 --out $(DEMO)/predictions
	$(BIN)/ess predict $(DEMO)/run $(DEMO)/data --format shards --out $(DEMO)/predicted
	@echo "Add a class that the model has not seen, from the pictures of a second sample (class 1271 there):"
	$(BIN)/cocolvis sample --out $(DEMO)/more --images 120 --classes 130 --seed 1
	$(BIN)/cocolvis build --coco $(DEMO)/more/coco --lvis $(DEMO)/more/lvis --out $(DEMO)/more/data
	$(BIN)/cocolvis export $(DEMO)/more/data --format png --out $(DEMO)/more/masks
	$(BIN)/ess add-class $(DEMO)/run --name "a new tree" --images $(DEMO)/more/coco --masks $(DEMO)/more/masks/train --value 1271
	$(BIN)/ess predict $(DEMO)/run $(DEMO)/more/coco/train2017/000000046430.jpg --out $(DEMO)/added
	@echo "Pictures: $(DEMO)/stats.png (the long tail), $(DEMO)/curve.png (mIoU of the most frequent classes),"
	@echo "$(DEMO)/predictions/*_overlay.png (predictions), $(DEMO)/added/*_overlay.png (with the added class)"
	@echo "Look around in the browser: $(BIN)/cocolvis view $(DEMO)/data --predictions $(DEMO)/predicted --open"
	@echo "Everything about the run on one page: $(DEMO)/report.html"

quick: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tools/quick_tests.py -n $(JOBS)

test: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n $(JOBS) -m "not long"

test-long: $(VENV)/.ready
	COCOLVIS_BROWSER=required $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

# Chromium, for the tests of the explorer: make test skips them without it and says so, make test-long fails.
browser: $(VENV)/.ready
	command -v chromium || apt-get install -y --no-install-recommends chromium || $(BIN)/python -m playwright install chromium

docs: generate
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	$(BIN)/python -m mkdocs build

generate: $(VENV)/.ready
	set -e; for script in tools/draw_imports.py tools/count_lines.py $(wildcard docs/*.py); do $(BIN)/python $$script; done

clean:
	rm -rf $(VENV) $(DEMO) build/site

$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python >= 3.11 is needed, $(PYTHON) is older: make PYTHON=python3.11 ..."; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' || { echo "python3-venv is missing: apt-get install python3-venv"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	@$(BIN)/python -c 'import cv2' || { echo "opencv-python needs system libraries: apt-get install libgl1 libglib2.0-0"; exit 1; }
	@touch $@
