"""Workers that are sent SIGTERM, which is no failure of theirs, and workers that die, which is."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import ray as ray_
from ray.train import WorkerGroupError
from rich.console import Console

from raymed.config import Config
from raymed.launch import groups, trainer
from raymed.launch.groups import JobObserver, serve, worker_groups
from raymed.launch.queue import Job
from raymed.launch.run import run_training
from raymed.launch.trainer import TrainObserver, train_worker
from raymed.training.observer import Status
from tests.launch.test_queue_actor import Watched
from tests.support.long_runs import assert_the_same, long_run

EPOCHS, STEP = 4, 7
PID = "pid"

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def to_come(folder: Path, strikes: dict[int, signal.Signals]) -> Path:
    """A folder with a file for each epoch in which a signal is to come, once."""
    (folder / "strikes").mkdir(exist_ok=True)
    for epoch, number in strikes.items():
        (folder / "strikes" / str(epoch)).write_text(str(int(number)))
    return folder / "strikes"


def strike(status: Status) -> None:
    """In the middle of an epoch, between two checkpoints, send this process what is to come."""
    file = Path(os.environ["STRIKES"]) / str(status.epoch)
    if status.done == STEP and file.exists():
        number = int(file.read_text())
        file.unlink()
        os.kill(os.getpid(), number)


class StruckWorker(TrainObserver):
    def progress(self, status: Status) -> None:
        super().progress(status)
        strike(status)


class StruckJob(JobObserver):
    def progress(self, status: Status) -> None:
        super().progress(status)
        strike(status)


def struck_worker(job: dict[str, Any]) -> str | None:
    os.environ["STRIKES"] = str(Path(job["folder"]).parent / "strikes")
    trainer.TrainObserver = StruckWorker  # type: ignore[misc]
    return train_worker(job)


def struck_group(settings: dict[str, Any]) -> None:
    folder = Path(settings["config"]["run"]["folder"])
    (folder / PID).write_text(str(os.getpid()))
    os.environ["STRIKES"] = str(folder / "strikes")
    groups.JobObserver = StruckJob  # type: ignore[misc]
    serve(settings)


@pytest.fixture(scope="module")
def undisturbed(tiny: Config, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The configuration of a run that has ended without a worker of its own."""
    folder = tmp_path_factory.mktemp("undisturbed")
    config = long_run(
        tiny, folder, run__name="undisturbed", training__epochs=EPOCHS, launch__max_failures=0
    )
    run_training(config, Console(quiet=True))
    return config


def test_a_run_is_preempted_more_often_than_it_may_fail(
    undisturbed: Config,
    ray: None,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trainer, "train_worker", struck_worker)
    config = undisturbed.override({"run.name": "preempted", "launch.workers": 1})
    folder = Path(config.run.folder)
    # Two starts after which it goes on, though it may not fail once, and then a failure.
    strikes = to_come(folder, {1: signal.SIGTERM, 2: signal.SIGTERM, 3: signal.SIGKILL})
    with pytest.raises(WorkerGroupError):
        run_training(config, Console(quiet=True))
    assert not list(strikes.iterdir())
    run_training(config, Console(quiet=True))
    assert_the_same(folder / "preempted", folder / "undisturbed")


def test_a_group_is_preempted_idle_and_in_training_without_a_failure(
    undisturbed: Config,
    ray: None,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(groups, "serve", struck_group)
    monkeypatch.setattr(groups, "JobQueue", Watched)
    # It may not fail once.
    monkeypatch.setattr(groups, "ATTEMPTS", 0)
    config = undisturbed.override({"launch.workers": 1})
    folder = Path(config.run.folder)
    strikes = to_come(folder, {2: signal.SIGTERM})
    with worker_groups(config, 1, jobs=1, name="preempted") as queue:
        ray_.get(queue.was_asked.remote(1))
        os.kill(int((folder / PID).read_text()), signal.SIGTERM)
        ray_.get(queue.submit.remote(Job(0, str(folder / "job"), {}), free=True))
        news: list[Job] = []
        while not any(job.ended for job in news):
            time.sleep(0.1)
            news += ray_.get(queue.drain.remote())
    assert (news[-1].failure, news[-1].attempts) == ("", 1)
    assert not list(strikes.iterdir())
    assert_the_same(folder / "job", folder / "undisturbed")
