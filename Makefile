# Two commands to begin with: make demo, make test.
#   TORCH=torch==2.13.0   what to hand to pip for torch; add --index-url to choose a build for the CPU or a CUDA version
#   PYTHON=python3.12     which Python to make the environment with

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-all check lint types docs bench wheel lowest clean

demo: $(VENV)/.installed
	$(BIN)/transducer demo

# one process per core, each with one thread; a file's tests stay together, since they share what they train.
# Compiled modules are kept, even where the environment says otherwise: tests start dozens of programs
PYTEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

test: $(VENV)/.installed-dev
	$(PYTEST) -m "not sweep"

# the further cases of slow tests as well
test-all: $(VENV)/.installed-dev
	$(PYTEST)

# what CI runs: the checks of one core side by side, then the tests, which use all
check:
	$(MAKE) --jobs 2 --output-sync lint types docs
	$(MAKE) test-all

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/pyright --pythonpath $(BIN)/python

# the documentation as a site: build/site/docs/index.html
docs: $(VENV)/.installed-dev
	$(BIN)/sphinx-build -W --keep-going -q -b html -c docs . build/site

bench: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/train.py step
	$(BIN)/python benchmarks/decode.py --batch-size 1 16
	$(BIN)/python benchmarks/loss.py

SMALL_DEMO := --num-epochs 2 --num-train-speakers 6 --num-dev-speakers 2 --num-test-speakers 2 --utterances-per-speaker 10

# the wheel in a new environment, run outside the clone: a demo of two epochs and ten voices
wheel: $(VENV)/.installed
	rm -rf build/wheel
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir build/wheel .
	$(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/python -m pip install --quiet $(TORCH)
	build/wheel/venv/bin/python -m pip install --quiet "$$(echo build/wheel/*.whl)[train,export,demo,serve]"
	cd build/wheel && venv/bin/transducer demo $(SMALL_DEMO) && venv/bin/transducer export onnx --model demo/model.pt --output onnx

UV := build/lowest/venv/bin/uv pip install --python build/lowest/venv/bin/python
CORE_TESTS := tests/text tests/decoding $(addprefix tests/test_,checkpoint.py features.py audio.py audio_files.py files.py options.py)

# the lowest versions that pyproject.toml declares, in a new environment: the demo and the core tests.
# Its torch comes with CUDA, 3 GB to download; PYTHON=python3.10 is the oldest that is supported
lowest:
	rm -rf build/lowest
	$(PYTHON) -m venv build/lowest/venv
	build/lowest/venv/bin/python -m pip install --quiet uv
	$(UV) --quiet --resolution lowest-direct --editable ".[train,export,demo,serve]"
	$(UV) --quiet pytest httpx "websockets>=15"
	cd build/lowest && venv/bin/transducer demo $(SMALL_DEMO)
	OMP_NUM_THREADS=1 build/lowest/venv/bin/python -m pytest -m "not sweep" $(CORE_TESTS)

# torch comes first and by name: the package itself takes any version from 2.5 on
$(VENV)/.installed: pyproject.toml
	@echo "Installing into $(VENV): a few minutes, depending on the network"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable ".[train,export,demo,serve]"
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --group dev
	touch $@

clean:
	rm -rf demo build dist .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
