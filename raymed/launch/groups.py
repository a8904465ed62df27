"""Long-lived worker groups that train run after run: a sweep's trials, or a table's runs.

Each is a Ray Train run of ``launch.workers`` workers. Libraries stay loaded and the dataset stays
mapped between runs, so a run costs little more than its training.
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

from raymed.config import SEARCH_DEFAULTS, Config
from raymed.errors import UsageError
from raymed.evaluation import evaluate
from raymed.launch.monitor import StopSignal, pinned_to_this_node
from raymed.launch.queue import ATTEMPTS, Delivery, Job, JobQueue
from raymed.launch.signals import defer_sigterm, sigterm_received
from raymed.launch.trainer import Preempted, run_workers, this_worker
from raymed.localisation import measure_attention
from raymed.run_folder import CONFIG_FILE, SCORED
from raymed.storage import AnyPath, as_path, atomic_write_text
from raymed.training.checkpoint import Checkpoint
from raymed.training.errors import Interrupted, TrainingFailed
from raymed.training.log import METRICS_FILE, read_metrics
from raymed.training.loop import train
from raymed.training.observer import Row, Status
from raymed.training.worker import Worker

CLOSE_S = 20.0
"""How long to wait for the queue when it is closed, in seconds."""


class TrialPruned(Exception):
    """No further epoch is wanted. Raised on all workers of a group at once."""


class QueueLost(Exception):
    """The queue has died. Raised on all workers of a group at once."""


@contextmanager
def worker_groups(config: Config, groups: int, jobs: int, name: str) -> Iterator[ActorHandle]:
    """Start worker groups, and shut them down at the end; yields the queue they take jobs from.

    Args:
        config: The configuration, which each job's values override.
        groups: Number of groups.
        jobs: Number of jobs that there will be.
        name: The name of what they train, such as a sweep's: their Ray Train runs are called
            ``NAME-group-0`` and so on.
    """
    queue = pinned_to_this_node(ray.remote(JobQueue), f"{name}-queue").remote(groups)
    threads = [
        Thread(target=_run_group, args=(config, queue, group, jobs, name), daemon=True)
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
            # It accepts no further calls; groups that find no queue shut down as well.
            ray.kill(queue)
        except RayActorError:
            pass
        for thread in threads:
            thread.join()
        # Left to garbage collection, it would outlive its runs in a process that continues.
        ray.kill(queue)


def _run_group(config: Config, queue: ActorHandle, group: int, jobs: int, name: str) -> None:
    """Run one group until the queue is closed; Ray Train restarts dead workers."""
    settings = {
        "config": config.model_dump(mode="json", by_alias=True),
        "queue": queue,
        "group": group,
    }
    try:
        # The queue limits the attempts per job, so this many failures are within bounds.
        run_workers(serve, settings, config, ATTEMPTS * jobs, name=f"{name}-group-{group}")
    # Any error at all: if the queue did not learn of it, the trials would wait forever.
    except Exception as error:
        reason = " ".join(str(error).split())
        with suppress(RayActorError):
            ray.get(queue.lose_group.remote(group, f"the workers cannot be kept running: {reason}"))


def serve(settings: dict[str, Any]) -> None:
    """What each worker of a group runs: job after job, until the queue is closed."""
    base = Config.model_validate(settings["config"])
    with suppress(QueueLost), defer_sigterm():
        _serve(base, this_worker(base), settings["queue"], settings["group"])


def _serve(base: Config, worker: Worker, queue: ActorHandle, group: int) -> None:
    # One for all jobs: a pending call left by each of them would fill the queue's slots.
    closing = StopSignal(queue.wait_until_closed.remote, if_lost=True) if worker.rank == 0 else None
    while True:
        delivery: Delivery = _from_first(worker, lambda: ray.get(queue.next_job.remote(group)))
        if delivery.closed:
            return
        if delivery.job is None:
            # A worker with a job trains one more step, and then gives the job back.
            if sigterm_received():
                raise Preempted
        else:
            try:
                failure = _train_job(delivery.job, base, worker, queue, closing)
            except UsageError as error:
                # Other workers may be waiting for this one in the middle of a step, so the group is
                # restarted, but without trying this job again.
                ray.get(queue.finish.remote(group, str(error)))
                raise
            _from_first(worker, partial(_finish, queue, group, failure))


def _finish(queue: ActorHandle, group: int, failure: str) -> None:
    ray.get(queue.finish.remote(group, failure))


def score(folder: AnyPath, data_path: str, split: str) -> None:
    """Score a finished run's best checkpoint, into ``scored/`` in the run's folder.

    Raises:
        UsageError: The checkpoint cannot be opened, or does not fit the dataset.
    """
    checkpoint = Checkpoint.open(folder)
    # The checkpoint's configuration has the threshold and the M that were found for it.
    config = checkpoint.config.override({"data.path": data_path})
    # The scores are written last: a run that has them is complete.
    measure_attention(checkpoint, config, split, folder / SCORED)
    evaluate(checkpoint, config, split, folder / SCORED)


class JobObserver:
    """The observer of a job: reports each epoch to the queue, and waits for permission to continue.

    Args:
        queue: The `JobQueue` actor.
        job: The job in training.
        worker: This worker of the group.
        closing: Set once the queue is closed; the first worker's only.
    """

    def __init__(
        self, queue: ActorHandle, job: Job, worker: Worker, closing: StopSignal | None
    ) -> None:
        self.queue = queue
        self.job = job
        self.worker = worker
        self.closing = closing

    def progress(self, status: Status) -> None:
        """Ignored: sweeps and tables show their runs' progress by epoch."""

    def epoch(self, row: Row) -> None:
        continues = _from_first(
            self.worker, lambda: ray.get(self.queue.report_epoch.remote(self.job.number, row))
        )
        if not continues:
            raise TrialPruned

    def warn(self, text: str) -> None:
        if self.worker.rank == 0:
            with suppress(RayActorError):
                ray.get(self.queue.warn.remote(self.job.number, text))

    def ending(self) -> bool:
        return sigterm_received() or self.closed()

    def closed(self) -> bool:
        """Whether the queue, rather than a signal to this worker, requests the stop."""
        return self.closing is not None and self.closing.is_set()


def _train_job(
    job: Job, base: Config, worker: Worker, queue: ActorHandle, closing: StopSignal | None
) -> str:
    """Train one run, from its last checkpoint if it has one; returns why it failed, or nothing."""
    folder = as_path(job.folder)
    run = {"run.folder": str(folder.parent), "run.name": folder.name}
    config = base.override(job.values | run | SEARCH_DEFAULTS)
    observer = JobObserver(queue, job, worker, closing)
    if worker.rank == 0:
        atomic_write_text(folder / CONFIG_FILE, config.to_yaml())
    try:
        # If workers died after saving an epoch and before reporting it, its row is found here.
        for row in read_metrics(folder / METRICS_FILE)[len(job.rows) :]:
            observer.epoch(row)
        train(config, folder, worker, observer)
        if job.score and worker.rank == 0:
            score(folder, config.data.path, job.score)
    except TrialPruned:
        return ""
    except Interrupted:
        if _from_first(worker, observer.closed):
            return ""
        _from_first(worker, lambda: ray.get(queue.refund_attempt.remote(job.number)))
        raise Preempted from None
    except TrainingFailed as stopped:
        return str(stopped)
    except UsageError as error:
        if worker.world > 1:
            raise
        return str(error)
    except QueueLost:
        raise
    except Exception as error:
        # Out of memory, for example. A single worker can continue with the next job; but other
        # workers may be waiting for this one in the middle of a step, so their group is restarted
        # and tries again.
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if worker.world == 1:
            return text
        ray.get(queue.record_error.remote(job.number, text))
        raise
    finally:
        if worker.device.type == "cuda":
            torch.cuda.empty_cache()
    return ""


def _from_first(worker: Worker, ask: Callable[[], Any]) -> Any:
    """The answer that the first worker gets, on every worker.

    Raises:
        QueueLost: The queue has died.
    """
    answer, lost = None, False
    if worker.rank == 0:
        try:
            answer = ask()
        except RayActorError:
            lost = True
    shared = [answer, lost]
    if worker.world > 1:
        dist.broadcast_object_list(shared)
    if shared[1]:
        raise QueueLost
    return shared[0]
