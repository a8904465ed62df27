"""Fixtures that more than one folder of tests uses."""

import logging
import math
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray as ray_
import torch
from rich.console import Console

from raymed import progress
from raymed.config import Config
from raymed.launch.run import run_training
from raymed.training.loop import train
from raymed.training.observer import Row
from raymed.training.worker import Worker
from tests.support.prepared import prepare_phantom
from tests.support.recording import Recorder

# Of the S3 server on loopback; set here, so that Ray's workers have them too.
os.environ |= {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_EC2_METADATA_DISABLED": "true",
}
# By default Ray's workers yield to every other process, so that on busy cores a test waits for them
# in vain; and its agents inspect all processes every five seconds, for a page that nobody looks at.
os.environ |= {"RAY_worker_niceness": "0", "REPORTER_UPDATE_INTERVAL_MS": "60000"}
# One process fewer in each start of a worker group. Of nodes that a cloud announces to take away no
# test knows; `cluster/test_onprem.py`, whose hosts have their own environment, keeps the watcher.
os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
# The tests' tensors are so small that threads only get in each other's way, in commands that tests
# start too; and where more threads than cores wait for each other, none is to spin.
os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
# Processes that a test spawns import its module by name.
sys.path.insert(0, str(Path(__file__).parents[1]))


def pytest_configure(config: pytest.Config) -> None:
    """What Ray's own modules do to each other is no fault of ours."""
    for kind in ("DeprecationWarning", "FutureWarning", "ResourceWarning"):
        config.addinivalue_line("filterwarnings", rf"ignore::{kind}:ray\..*")
    # It waits a second for the processes that it kills, which is little on a busy machine.
    line = r"ignore:subprocess \d+ is still running:ResourceWarning"
    config.addinivalue_line("filterwarnings", line)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: of several processes, none is to end with a long one alone."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture
def ray_files() -> Iterator[Path]:
    """A folder for Ray's files; its sockets must have shorter names than `tmp_path` gives."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """As in the processes that tests start; here torch was imported before the variable was set."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _no_lines_of_progress() -> Iterator[None]:
    """On a busy machine they would stand between the lines that a test looks at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "INTERVAL_S", math.inf)
        yield


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A prepared dataset of 30 phantom studies (24 to train on), 32 x 32 pixels."""
    folder = tmp_path_factory.mktemp("phantom")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        prepare_phantom(folder / "prepared", 30)
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


@pytest.fixture(scope="session")
def learner(tiny: Config) -> Config:
    """A model that in a second learns to write reports that differ and score above 0."""
    return tiny.override(
        {
            "model.hidden_size": 64,
            "model.embedding_size": 64,
            "model.dropout": 0.1,
            "training.epochs": 12,
            "training.batch_size": 4,
            "training.learning_rate": 0.01,
            "training.encoder_learning_rate": 0.001,
            "training.clip_norm": 30,
        }
    )


@pytest.fixture(scope="session")
def trained(learner: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of `learner`; to be read only."""
    folder = tmp_path_factory.mktemp("trained")
    run_training(learner.override({"run.folder": str(folder)}), Console(quiet=True))
    return folder / "run"


@pytest.fixture(scope="session")
def whole(tiny: Config, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Row]]:
    """The folder and the rows of `tiny` on a local disk that nothing disturbs; to be read only."""
    folder, recorder = tmp_path_factory.mktemp("whole"), Recorder()
    train(tiny, folder, Worker(torch.device("cpu")), recorder)
    return folder, recorder.rows


@pytest.fixture(scope="session")
def ray(phantom: Path) -> Iterator[None]:  # noqa: ARG001
    """One Ray of two processors for all tests, with the dashboard that Ray Train asks.

    It starts after the dataset was prepared, so that its workers inherit the place of the cache.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
        with ray_.init(
            "local",
            num_cpus=2,
            include_dashboard=True,
            log_to_driver=False,
            logging_level=logging.WARNING,
        ) as context:
            # Other Rays may run on this machine; without an address some parts would ask those.
            patch.setenv("RAY_ADDRESS", context.address_info["gcs_address"])
            yield
