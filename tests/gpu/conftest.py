"""What only a machine with a GPU can show; `make test-gpu` runs it there."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from raymed.config import Config

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of this folder bear the mark, and are skipped with the reason where there is no GPU."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="this machine has no CUDA device"))


@pytest.fixture
def device() -> Iterator[torch.device]:
    """The first GPU, with nothing of an earlier test in its memory."""
    gc.collect()
    torch.cuda.empty_cache()
    yield torch.device("cuda", 0)
    gc.collect()
    torch.cuda.empty_cache()


@pytest.fixture
def on_gpu(tiny: Config) -> Config:
    """A run of two short epochs that computes as a GPU does by default."""
    return tiny.override({"training.epochs": 2, "training.batch_size": 3})
