"""Training in a thread, where no signal handler can be installed, and in a process's own Ray."""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray as ray_
from rich.console import Console

from raymed import locks
from raymed.config import Config
from raymed.errors import UsageError
from raymed.launch.cluster import connected, quiet_ray
from raymed.launch.run import run_training
from raymed.launch.signals import Terminated, restored_handlers
from raymed.locks import LOCK_FILE, folder_lock
from raymed.storage import atomic_write_text
from raymed.training.checkpoint import Checkpoint
from raymed.training.log import METRICS_FILE, read_metrics
from tests.support.object_stores import S3, serving_s3
from tests.support.threads import in_thread


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=[pytest.mark.ray, pytest.mark.slow])])
def test_training_in_a_thread(
    tiny: Config, tmp_path: Path, workers: int, request: pytest.FixtureRequest
) -> None:
    if workers:
        request.getfixturevalue("ray")
    before = handlers()
    changes = {"run.folder": str(tmp_path), "launch.workers": workers, "training.epochs": 1}
    done = in_thread(lambda: run_training(tiny.override(changes), Console(quiet=True)))
    assert isinstance(done, Checkpoint)
    assert done.epoch == 1
    assert handlers() == before


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_ctrl_c_frees_what_training_reserved_in_a_ray_of_the_callers(
    tiny: Config, tmp_path: Path
) -> None:
    total = ray_.cluster_resources()["CPU"]
    before = handlers()
    held = []

    def interrupt_after_an_epoch() -> None:
        until = time.monotonic() + 300
        while not read_metrics(tmp_path / "run" / METRICS_FILE) and time.monotonic() < until:
            time.sleep(0.05)
        held.append(total - ray_.available_resources().get("CPU", 0))
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    watcher = threading.Thread(target=interrupt_after_an_epoch)
    changes = {"run.folder": str(tmp_path), "launch.workers": 2, "training.epochs": 100_000}
    watcher.start()
    # As a notebook does, this keeps the error, its frames and what their variables refer to.
    with pytest.raises(KeyboardInterrupt) as kept:
        run_training(tiny.override(changes), Console(quiet=True))
    watcher.join()
    assert held == [2.0]
    assert ray_.is_initialized()
    until = time.monotonic() + 30
    while ray_.available_resources().get("CPU") != total and time.monotonic() < until:
        time.sleep(0.1)
    assert ray_.available_resources()["CPU"] == total
    groups = ray_.util.placement_group_table().values()
    assert {group["state"] for group in groups} <= {"REMOVED"}
    # Ray Data keeps this one for its own use, without resources.
    assert alive_actors() <= {"_AutoscalingCoordinatorActor"}
    assert handlers() == before
    assert kept.value is not None


def alive_actors() -> set[str]:
    """The classes of this Ray's actors that are not dead, once there is only one or time is up."""
    from ray.util.state import list_actors

    until = time.monotonic() + 30
    while True:
        found = {one.class_name for one in list_actors() if one.state != "DEAD"}
        if len(found) <= 1 or time.monotonic() > until:
            return found
        time.sleep(0.5)


@pytest.mark.ray
@pytest.mark.usefixtures("ray")
def test_inside_the_callers_ray_its_address_is_known_and_the_rest_is_as_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address = ray_.get_runtime_context().gcs_address
    monkeypatch.delenv("RAY_ADDRESS")
    with connected(None):
        assert os.environ["RAY_ADDRESS"] == address
    assert "RAY_ADDRESS" not in os.environ
    assert ray_.is_initialized()


def test_ray_is_quiet_inside_the_block_only() -> None:
    logger = logging.getLogger("ray.tune")
    before = logger.level
    logger.setLevel(logging.INFO)
    try:
        with quiet_ray():
            assert not logger.isEnabledFor(logging.INFO)
            assert logger.isEnabledFor(logging.WARNING)
        assert logger.level == logging.INFO
    finally:
        logger.setLevel(before)


def test_handlers_are_restored() -> None:
    before = handlers()
    with restored_handlers(signal.SIGINT, signal.SIGTERM):
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        assert handlers() != before
    assert handlers() == before


def test_a_program_ends_with_the_status_of_sigterm() -> None:
    with pytest.raises(SystemExit) as raised:
        raise Terminated
    assert raised.value.code == 128 + signal.SIGTERM


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    with serving_s3() as server:
        yield server


def test_a_thread_whose_folder_was_taken_over_ends(
    server: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "HEARTBEAT_S", 0.2)
    folder = server.root / tmp_path.name

    def train_for_ever() -> None:
        with folder_lock(folder):
            atomic_write_text(folder / LOCK_FILE, "process 1 on elsewhere\n0123 4\n")
            while True:
                time.sleep(0.01)

    with pytest.raises(UsageError, match=r"another raymed \(process 1 on elsewhere\) has taken"):
        in_thread(train_for_ever)
