PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-gpu setup lint

# Everything below .venv: uv itself, then the project with what it needs. torch and torchvision
# are resolved together, so that they are a matching pair, and importing both proves it. Certificates
# are the system's, as pip's are where a company's own proxy stands between.
.venv/.ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	UV_COMPILE_BYTECODE=1 $(BIN)/uv --system-certs pip install --quiet --python $(BIN)/python --editable '.[dev]'
	$(BIN)/python -c 'import torch, torchvision; print("torch", torch.__version__, "torchvision", torchvision.__version__)'
	touch $@

setup: .venv/.ready

demo: setup
	$(BIN)/raymed demo tune_configs/demo.yaml

# Two files at a time: the tests of many processes wait for them half of their time.
test: setup
	$(BIN)/python -m pytest -m 'not gpu' --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 20

# On a machine with a GPU; on others pytest says of each test that there is none.
test-gpu: setup
	$(BIN)/python -m pytest tests/gpu

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
