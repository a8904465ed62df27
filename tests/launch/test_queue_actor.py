"""The job queue as the Ray actor that it is: many jobs, workers that are killed, no room left."""

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread

import pytest
import ray as ray_
import torch
from ray.actor import ActorHandle
from ray.exceptions import RayActorError

from raymed.config import Config
from raymed.launch import groups
from raymed.launch.groups import JobObserver, worker_groups
from raymed.launch.monitor import pinned_to_this_node
from raymed.launch.queue import Delivery, Job, JobQueue
from raymed.training.worker import Worker

JOBS = 3000
ENDLESS_S = 480.0

pytestmark = pytest.mark.ray


class Watched(JobQueue):
    """A queue of which it is known how often it was asked for a job, and that can be filled up."""

    questions = 0

    async def next_job(self, group: int) -> Delivery:
        self.questions += 1
        return await super().next_job(group)

    async def was_asked(self, times: int) -> None:
        while self.questions < times:
            await asyncio.sleep(0.01)

    async def wait_for_ever(self) -> None:
        await asyncio.Event().wait()


class Asker:
    """A worker of a group, as far as it asks for a job."""

    def pid(self) -> int:
        return os.getpid()

    def ask(self, queue: ActorHandle) -> None:
        ray_.get(queue.next_job.remote(0))


@pytest.fixture
def queue(ray: None) -> Iterator[ActorHandle]:  # noqa: ARG001
    queue = pinned_to_this_node(ray_.remote(Watched), "watched").remote(1)
    yield queue
    ray_.kill(queue)


@pytest.mark.slow
def test_thousands_of_jobs_leave_nothing_behind(
    tiny: Config, queue: ActorHandle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = 0

    def train(_config: Config, _folder: Path, _worker: Worker, observer: JobObserver) -> None:
        nonlocal trained
        assert not observer.ending()
        observer.epoch({"epoch": 1.0})
        trained += 1
        if trained == JOBS:
            ray_.get(queue.close.remote())

    # All of a job but its files and its training.
    monkeypatch.setattr(groups, "train", train)
    monkeypatch.setattr(groups, "atomic_write_text", lambda *_: None)
    monkeypatch.setattr(Config, "override", lambda config, _: config)
    monkeypatch.setattr(Config, "to_yaml", lambda _: "")
    ray_.get([queue.submit.remote(Job(n, str(tmp_path / "run"), {}), True) for n in range(JOBS)])
    arguments = (tiny, Worker(torch.device("cpu")), queue, 0)
    thread = Thread(target=groups._serve, args=arguments, daemon=True)
    thread.start()
    thread.join(ENDLESS_S)
    assert trained == JOBS
    assert not thread.is_alive()


@pytest.mark.slow
def test_a_worker_that_is_killed_while_it_waits_takes_no_job_with_it(queue: ActorHandle) -> None:
    asker = ray_.remote(num_cpus=0)(Asker).remote()
    pid = ray_.get(asker.pid.remote())
    dying = asker.ask.remote(queue)
    ray_.get(queue.was_asked.remote(1))
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(RayActorError):
        ray_.get(dying)
    successor = queue.next_job.remote(0)
    ray_.get(queue.was_asked.remote(2))
    ray_.get([queue.submit.remote(Job(number, "run", {})) for number in (1, 2)])
    numbers = set()
    for _ in range(2):
        delivery = ray_.get(successor)
        assert delivery.job is not None
        numbers.add(delivery.job.number)
        ray_.get(queue.finish.remote(0))
        successor = queue.next_job.remote(0)
    assert numbers == {1, 2}
    ray_.get(queue.close.remote())
    assert ray_.get(successor).closed


def test_a_queue_that_takes_no_further_call_is_left_all_the_same(
    tiny: Config,
    ray: None,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(groups, "JobQueue", Watched)
    monkeypatch.setattr(groups, "CLOSE_S", 1.0)
    monkeypatch.setattr(
        groups,
        "pinned_to_this_node",
        lambda actor, _: actor.options(num_cpus=0, max_concurrency=10),
    )
    left = Event()

    def group(_config: Config, queue: ActorHandle, number: int, _jobs: int, _name: str) -> None:
        with suppress(RayActorError):
            ray_.get(queue.next_job.remote(number))
        left.set()

    monkeypatch.setattr(groups, "_run_group", group)

    def leave() -> None:
        with worker_groups(tiny, 1, 1, "left") as queue:
            for _ in range(10):
                queue.wait_for_ever.remote()

    thread = Thread(target=leave, daemon=True)
    thread.start()
    thread.join(ENDLESS_S)
    assert not thread.is_alive()
    assert left.is_set()
