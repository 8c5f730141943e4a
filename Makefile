# Two commands set everything up by themselves: `make demo` runs the main job, `make test` the tests.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo
JOBS ?= 2

.PHONY: demo test test-long clean

demo: $(VENV)/.ready
	rm -rf $(DEMO)
	$(BIN)/cocolvis sample --out $(DEMO)/sample --images 480 --classes 106
	$(BIN)/cocolvis build --coco $(DEMO)/sample/coco --lvis $(DEMO)/sample/lvis --out $(DEMO)/data
	$(BIN)/cocolvis verify $(DEMO)/data --oracle --coco $(DEMO)/sample/coco --lvis $(DEMO)/sample/lvis
	$(BIN)/cocolvis stats $(DEMO)/data --plot $(DEMO)/stats.png
	$(BIN)/ess train $(DEMO)/data --out $(DEMO)/run --preset demo
	$(BIN)/ess eval $(DEMO)/run $(DEMO)/data
	$(BIN)/ess predict $(DEMO)/run $(DEMO)/sample/coco/val2017/*.jpg --out $(DEMO)/predictions
	@echo "Pictures: $(DEMO)/stats.png (the long tail), $(DEMO)/predictions/*_overlay.png (what the model sees)"

test: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n $(JOBS) -m "not long"

test-long: $(VENV)/.ready
	$(BIN)/python -m pytest -n $(JOBS)

clean:
	rm -rf $(VENV) $(DEMO)

$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python >= 3.11 is needed, $(PYTHON) is older: make PYTHON=python3.11 ..."; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' || { echo "python3-venv is missing: apt-get install python3-venv"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	@$(BIN)/python -c 'import cv2' || { echo "opencv-python needs system libraries: apt-get install libgl1 libglib2.0-0"; exit 1; }
	@touch $@
