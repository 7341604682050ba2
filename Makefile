# make demo      train and evaluate small detectors and segmentors on generated data, CPU is enough
# make test      run all tests
# make lint      check style and types
# make sanitize  run the C++ and CUDA kernels over random shapes under AddressSanitizer and UBSan
# make clean     remove what was built and generated, the environments excepted
#
# Each sets up what it needs: an environment of its own (.venv) with a pinned stack. Options:
#   STACK=onedl    the maintained onedl-* forks instead of the last OpenMMLab releases
#   PYTHON=...     the Python to make the environment with (3.10 to 3.12)

STACK ?= classic
PYTHON ?= python3
VENV ?= .venv$(if $(filter-out classic,$(STACK)),-$(STACK))
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
MMCV = $$(grep -E '^(onedl-)?mmcv==' requirements/$(STACK).txt)
# The same OpenCV without its windows, which need system libraries that a server lacks.
HEADLESS = $(PIP) install --quiet --no-deps --force-reinstall \
  $$(sed -n 's/^opencv-python==/opencv-python-headless==/p' requirements/$(STACK).txt)
# torch looks for ninja here, and compiles mmcv on one core without it.
export PATH := $(abspath $(BIN)):$(PATH)
# For every pip below: no package may bring another torch or setuptools.
export PIP_CONSTRAINT := $(CURDIR)/requirements/constraints.txt
# Threads that wait shall sleep: spinning ones, the default, take the cores from one another as soon
# as anything else runs, which was measured to cost a factor of ten.
export OMP_WAIT_POLICY ?= PASSIVE

ifeq ($(wildcard requirements/$(STACK).txt),)
$(error STACK must be classic or onedl, got $(STACK))
endif

.PHONY: demo test lint sanitize clean env

demo: $(VENV)/package.stamp
	$(BIN)/python tools/demo.py

test: $(VENV)/package.stamp
	$(BIN)/python -m pytest

lint: $(VENV)/stack.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(find ops_dcnv3 tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
	$(BIN)/mypy

# Ten times the rounds of `make test`: on the CPU every combination of what the kernels distinguish.
sanitize: $(VENV)/stack.stamp
	SANITIZE_FACTOR=$${SANITIZE_FACTOR:-10} $(BIN)/python -m pytest -s tests/ops/test_sanitizers.py

env: $(VENV)/package.stamp

$(VENV)/package.stamp: $(VENV)/stack.stamp setup.py pyproject.toml $(shell find ops_dcnv3/csrc -type f)
	$(PIP) install --no-build-isolation --no-deps -e .
	@$(BIN)/python -c 'from ops_dcnv3 import explain_backend; print(explain_backend())'
	@touch $@

# mmcv's operators are compiled here, about 11 minutes on 2 cores; pip keeps the wheel in its cache.
# A wheel made elsewhere without them would be taken as well, hence the check.
$(VENV)/stack.stamp: requirements/$(STACK).txt requirements/dev.txt requirements/constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 12) else f"Python 3.10 to 3.12 is needed, {sys.executable} is {v[0]}.{v[1]}: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet setuptools wheel ninja torch
	MMCV_WITH_OPS=1 $(PIP) install --no-build-isolation -c requirements/$(STACK).txt $(MMCV)
	$(HEADLESS)
	@$(BIN)/python -c 'import mmcv.ops' || { \
	  echo 'pip had an mmcv without operators in its cache; building it anew'; \
	  MMCV_WITH_OPS=1 $(PIP) install --no-build-isolation --no-deps --no-cache-dir --force-reinstall $(MMCV); }
	$(PIP) install --quiet -r requirements/$(STACK).txt -r requirements/dev.txt -r requirements/mim.txt
# Without dependencies: torchvision would replace torch, openmim downgrade half of the environment.
	$(PIP) install --quiet --no-deps torchvision==0.28.0 openmim==0.3.9
	$(HEADLESS)
	$(BIN)/python -c 'import cv2, mmcv.ops, mmdet, mmseg'
	@touch $@

clean:
	rm -rf build dist *.egg-info ops_dcnv3/*.so internimage_mm/.mim data/mini_coco data/mini_ade20k data/mini_imagenet work_dirs/demo
	rm -f .venv*/package.stamp
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
