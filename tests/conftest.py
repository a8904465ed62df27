"""Fixtures that more than one folder of tests uses."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console

from raymed.config import Config
from raymed.data.phantom import draw
from raymed.data.prepare import prepare

# Processes that a test spawns import its module by name.
sys.path.insert(0, str(Path(__file__).parents[1]))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """The tests' tensors are so small that threads only get in each other's way."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A prepared data set of 30 phantom studies (24 to train on), 32 x 32 pixels."""
    folder = tmp_path_factory.mktemp("phantom")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        prepare(
            draw(30, image_size=32),
            folder / "prepared",
            source="phantom",
            image_size=32,
            console=Console(quiet=True),
        )
        yield folder / "prepared"


@pytest.fixture(scope="session")
def tiny(phantom: Path) -> Config:
    """A configuration of a model that trains on the phantom studies in seconds."""
    return Config().override(
        {
            "data.path": str(phantom),
            "model.encoder": "small",
            "model.encoder_weights": "none",
            "model.hidden_size": 16,
            "model.embedding_size": 12,
            "model.top_tags": 3,
            "training.epochs": 3,
            "training.batch_size": 7,
            "launch.workers": 0,
        }
    )
