"""Worker groups that stay up and train one run after the other: a sweep's trials, a table's runs.

Each is a Ray Train run of ``launch.workers`` workers. Libraries stay loaded and the dataset
mapped between them, so a run costs its training and little else.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from threading import Thread
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError

from raymed.config import NO_SWEEP, Config
from raymed.errors import UsageError
from raymed.evaluation import evaluate
from raymed.launch.queue import ATTEMPTS, Delivery, Job, JobQueue
from raymed.launch.termination import noted, noting
from raymed.launch.trainer import Preempted, run_workers, this_worker
from raymed.launch.watch import End, here
from raymed.localisation import measure_attention
from raymed.run_folder import CONFIG_FILE, SCORED
from raymed.storage import AnyPath, as_path, atomic_write_text
from raymed.training.checkpoint import Checkpoint
from raymed.training.log import METRICS_FILE, read_metrics
from raymed.training.loop import train
from raymed.training.observer import Row, Status
from raymed.training.saving import TrainingEnded, TrainingStopped
from raymed.training.worker import Worker

CLOSE_S = 20.0
"""How long the queue may take to answer when it is closed."""


class JobEnded(Exception):
    """No further epoch is wanted; raised on all workers of a group at once."""


class QueueLost(Exception):
    """The queue is no more; raised on all workers of a group at once."""


@contextmanager
def worker_groups(config: Config, groups: int, jobs: int) -> Iterator[ActorHandle]:
    """Start so many groups, and send them home in the end; gives the queue they take jobs from.

    Args:
        config: what a job's values alter.
        groups: how many.
        jobs: how many there will be.
    """
    queue = here(ray.remote(JobQueue)).remote(groups)
    threads = [
        Thread(target=_keep_up, args=(config, queue, group, jobs), daemon=True)
        for group in range(groups)
    ]
    for thread in threads:
        thread.start()
    try:
        yield queue
    finally:
        try:
            ray.get(queue.close.remote(), timeout=CLOSE_S)
        except GetTimeoutError:
            # It takes no further call; a group that finds no queue leaves as well.
            ray.kill(queue)
        except RayActorError:
            pass
        for thread in threads:
            thread.join()
        # Left to the garbage collector, it would outlive its runs in a process that goes on.
        ray.kill(queue)


def _keep_up(config: Config, queue: ActorHandle, group: int, jobs: int) -> None:
    """Run one group until the queue is closed; Ray Train starts dead workers again."""
    settings = {
        "config": config.model_dump(mode="json", by_alias=True),
        "queue": queue,
        "group": group,
    }
    try:
        # The queue limits a job's attempts; no group is given up while it keeps to that.
        run_workers(serve, settings, config, max_failures=ATTEMPTS * jobs)
    # Whatever it is: without word of it, the trials would wait for ever.
    except Exception as error:
        reason = " ".join(str(error).split())
        with suppress(RayActorError):
            ray.get(queue.lose_group.remote(group, f"the workers cannot be kept running: {reason}"))


def serve(settings: dict[str, Any]) -> None:
    """What each worker of a group runs: job after job, until there is none."""
    base = Config.model_validate(settings["config"])
    with suppress(QueueLost), noting():
        _serve(base, this_worker(base), settings["queue"], settings["group"])


def _serve(base: Config, worker: Worker, queue: ActorHandle, group: int) -> None:
    # One for all jobs: what each of them left open would fill the queue's slots.
    end = End(queue.until_closed.remote, if_lost=True) if worker.rank == 0 else None
    while True:
        delivery: Delivery = _from_first(worker, lambda: ray.get(queue.next_job.remote(group)))
        if delivery.closed:
            return
        if delivery.job is None:
            # With a job, it would be trained for a step, and then given back.
            if noted():
                raise Preempted
        else:
            try:
                failure = _train_job(delivery.job, base, worker, queue, end)
            except UsageError as error:
                # Others may be waiting for this worker in the middle of a step, so the group is
                # started anew; but not to try this job again.
                ray.get(queue.finish.remote(group, str(error)))
                raise
            _from_first(worker, partial(_finish, queue, group, failure))


def _finish(queue: ActorHandle, group: int, failure: str) -> None:
    ray.get(queue.finish.remote(group, failure))


def score(folder: AnyPath, data_path: str, split: str) -> None:
    """Leave the scores of a finished run's best checkpoint in its folder, in ``scored/``.

    Raises:
        UsageError: the checkpoint cannot be opened, or does not fit the dataset.
    """
    checkpoint = Checkpoint.open(folder)
    # The checkpoint's own configuration has the threshold and the M that were found for it.
    config = checkpoint.config.override({"data.path": data_path})
    # The scores come last: where they lie, a run is whole.
    measure_attention(checkpoint, config, split, folder / SCORED)
    evaluate(checkpoint, config, split, folder / SCORED)


class JobObserver:
    """The observer of a job: each epoch is reported to the queue, and waits for leave to go on.

    Args:
        queue: the actor.
        job: in training.
        worker: of the group.
        end: of all jobs; the first worker's.
    """

    def __init__(self, queue: ActorHandle, job: Job, worker: Worker, end: End | None) -> None:
        self.queue = queue
        self.job = job
        self.worker = worker
        self.end = end

    def progress(self, status: Status) -> None:
        """A sweep and a table follow their runs by epochs."""

    def epoch(self, row: Row) -> None:
        go_on = _from_first(
            self.worker, lambda: ray.get(self.queue.report.remote(self.job.number, row))
        )
        if not go_on:
            raise JobEnded

    def warn(self, text: str) -> None:
        if self.worker.rank == 0:
            with suppress(RayActorError):
                ray.get(self.queue.warn.remote(self.job.number, text))

    def ending(self) -> bool:
        return noted() or self.closed()

    def closed(self) -> bool:
        """Whether all is over, rather than this worker being sent a signal."""
        return self.end is not None and self.end.wanted()


def _train_job(job: Job, base: Config, worker: Worker, queue: ActorHandle, end: End | None) -> str:
    """Train one run, from its last checkpoint if it has one; why it failed, or nothing."""
    folder = as_path(job.folder)
    run = {"run.folder": str(folder.parent), "run.name": folder.name}
    config = base.override(job.values | run | NO_SWEEP)
    observer = JobObserver(queue, job, worker, end)
    if worker.rank == 0:
        atomic_write_text(folder / CONFIG_FILE, config.to_yaml())
    try:
        # Workers that died after an epoch was saved and before it was reported left its row here.
        for row in read_metrics(folder / METRICS_FILE)[len(job.rows) :]:
            observer.epoch(row)
        train(config, folder, worker, observer)
        if job.score and worker.rank == 0:
            score(folder, config.data.path, job.score)
    except JobEnded:
        return ""
    except TrainingEnded:
        if _from_first(worker, observer.closed):
            return ""
        _from_first(worker, lambda: ray.get(queue.forgive.remote(job.number)))
        raise Preempted from None
    except TrainingStopped as stopped:
        return str(stopped)
    except UsageError as error:
        if worker.world > 1:
            raise
        return str(error)
    except QueueLost:
        raise
    except Exception as error:
        # Out of memory, say. Alone, a worker can go on with the next trial; others may be waiting
        # for this one in the middle of a step, so the group is started anew and tries again.
        words = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if worker.world == 1:
            return words
        ray.get(queue.complain.remote(job.number, words))
        raise
    finally:
        if worker.device.type == "cuda":
            torch.cuda.empty_cache()
    return ""


def _from_first(worker: Worker, ask: Callable[[], Any]) -> Any:
    """What the first worker's question is answered with, on every worker."""
    answer, lost = None, False
    if worker.rank == 0:
        try:
            answer = ask()
        except RayActorError:
            lost = True
    told = [answer, lost]
    if worker.world > 1:
        dist.broadcast_object_list(told)
    if told[1]:
        raise QueueLost
    return told[0]
