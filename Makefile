PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-gpu setup lint

# Everything goes into .venv: uv itself, then the project and its dependencies. torch and torchvision
# are resolved together so that they match, and importing both proves it. uv uses the system's
# certificates, as pip does, because a company's proxy may have its own.
.venv/.ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	UV_COMPILE_BYTECODE=1 $(BIN)/uv --system-certs pip install --quiet --python $(BIN)/python --editable '.[dev]'
	$(BIN)/python -c 'import torch, torchvision; print("torch", torch.__version__, "torchvision", torchvision.__version__)'
	touch $@

setup: .venv/.ready

demo: setup
	$(BIN)/raymed demo

# Two files at a time: tests of several processes spend half of their time waiting for them.
test: setup
	$(BIN)/python -m pytest -m 'not gpu' --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 20

# For machines with a GPU; on others every test is skipped with the reason.
test-gpu: setup
	$(BIN)/python -m pytest tests/gpu

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
