"""Worker groups that stay up for a whole sweep and train one trial after the other.

Each is a Ray Train run of ``launch.workers`` workers. Libraries stay loaded and the data set
mapped between trials, so a trial costs its training and little else.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.actor import ActorHandle

from raymed.config import Config
from raymed.errors import UsageError
from raymed.launch.run import CONFIG_FILE
from raymed.launch.trainer import build_trainer
from raymed.training.checkpoint import Row
from raymed.training.log import METRICS_FILE, read_metrics, replace
from raymed.training.loop import TrainingStopped, Worker, train
from raymed.tuning.queue import ATTEMPTS, Delivery, Job, JobQueue

TRIALS = "trials"


class TrialEnded(Exception):
    """The trial wants no further epoch; raised on all workers of a group at once."""


@contextmanager
def worker_groups(config: Config, sweep_folder: Path, groups: int) -> Iterator[ActorHandle]:
    """Start so many groups, and send them home in the end; gives the queue they take jobs from."""
    queue = ray.remote(JobQueue).options(num_cpus=0, max_concurrency=1000).remote(groups)
    threads = [
        Thread(target=_keep_up, args=(config, sweep_folder, queue, group), daemon=True)
        for group in range(groups)
    ]
    for thread in threads:
        thread.start()
    try:
        yield queue
    finally:
        ray.get(queue.close.remote())
        for thread in threads:
            thread.join()


def _keep_up(config: Config, sweep_folder: Path, queue: ActorHandle, group: int) -> None:
    """Run one group until the sweep is over; Ray Train starts dead workers again."""
    settings = {
        "config": config.model_dump(mode="json", by_alias=True),
        "folder": str(sweep_folder),
        "queue": queue,
        "group": group,
    }
    # The queue limits a job's attempts; no group is given up while it keeps to that.
    failures = ATTEMPTS * config.tune.trials
    trainer = build_trainer(serve, settings, config, sweep_folder, failures)
    try:
        trainer.fit()
    # Whatever it is: without word of it, the trials would wait for ever.
    except Exception as error:
        reason = " ".join(str(error).split())
        ray.get(queue.lose_group.remote(group, f"the workers cannot be kept running: {reason}"))


def serve(settings: dict[str, Any]) -> None:
    """What each worker of a group runs: job after job, until there is none."""
    sweep = Config.model_validate(settings["config"])
    torch.set_num_threads(sweep.launch.cpus_per_worker)
    context = ray.train.get_context()
    worker = Worker(
        ray.train.torch.get_device(), context.get_world_rank(), context.get_world_size()
    )
    queue, group = settings["queue"], settings["group"]
    while True:
        delivery: Delivery = _from_first(worker, lambda: ray.get(queue.next_job.remote(group)))
        if delivery.closed:
            return
        if delivery.job is not None:
            try:
                failure = _train_job(delivery.job, sweep, Path(settings["folder"]), worker, queue)
            except UsageError as error:
                # Others may be waiting for this worker in the middle of a step, so the group is
                # started anew; but not to try this job again.
                ray.get(queue.finish.remote(group, str(error)))
                raise
            if worker.rank == 0:
                ray.get(queue.finish.remote(group, failure))


def _train_job(
    job: Job, sweep: Config, sweep_folder: Path, worker: Worker, queue: ActorHandle
) -> str:
    """Train one trial, from its last checkpoint if it has one; why it failed, or nothing."""
    name = trial_name(job.number)
    folder = sweep_folder / TRIALS / name
    run = {"run.folder": str(folder.parent), "run.name": name, "tune.space": {}}
    config = sweep.override(job.values | run)

    def report(row: Row) -> None:
        go_on = _from_first(worker, lambda: ray.get(queue.report.remote(job.number, row)))
        if not go_on:
            raise TrialEnded

    if worker.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        replace(folder / CONFIG_FILE, config.to_yaml())
    try:
        # Workers that died after an epoch was saved and before it was reported left its row here.
        for row in read_metrics(folder / METRICS_FILE)[len(job.rows) :]:
            report(row)
        train(config, folder, worker, report)
    except TrialEnded:
        return ""
    except TrainingStopped as stopped:
        return str(stopped)
    except UsageError as error:
        if worker.world > 1:
            raise
        return str(error)
    except RuntimeError as error:
        # Out of memory, say. Alone, a worker can go on with the next trial; others may be waiting
        # for this one in the middle of a step, so the group is started anew and tries again.
        if worker.world > 1:
            raise
        return f"{type(error).__name__}: {error}"
    finally:
        if worker.device.type == "cuda":
            torch.cuda.empty_cache()
    return ""


def _from_first(worker: Worker, ask: Any) -> Any:
    """What the first worker's question is answered with, on every worker."""
    answer = [ask() if worker.rank == 0 else None]
    if worker.world > 1:
        dist.broadcast_object_list(answer)
    return answer[0]


def trial_name(number: int) -> str:
    """The name of a trial and of its folder, by Optuna's number: ``trial-004``."""
    return f"trial-{number:03d}"
