"""Ray Train around the training loop: the worker function and the trainer."""

import signal
import tempfile
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.actor import ActorHandle
from ray.exceptions import RayActorError
from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch.config import _TorchBackend

from raymed.config import Config
from raymed.errors import UsageError
from raymed.launch.nodes import wait_for_nodes
from raymed.launch.termination import note_sigterm, noting
from raymed.launch.watch import WorkerObserver
from raymed.storage import AnyPath, as_path
from raymed.training.loop import train
from raymed.training.saving import TrainingEnded, TrainingStopped
from raymed.training.worker import Worker

RESIZE_S = 10.0
"""How often it is seen, in seconds, whether a run with too few workers can have more."""
WAIT_S = 10 * 365 * 24 * 3600
"""How long workers wait for one of them, in seconds: as long as it takes, since it may be scoring
or computing features alone. One that died is Ray Train's to notice."""
STARTS = 3
"""How often Ray Train is started anew where its own controller fails."""


class Preempted(RayActorError):
    """A worker was sent SIGTERM and has written a checkpoint; Ray starts the workers again.

    Ray knows by itself that nodes are drained, but not that a process on a node that stays was sent
    a signal. As an actor's death by preemption this counts as its own such deaths do: not against
    `max_failures`, and however often it comes.
    """

    def __init__(self) -> None:
        words = "a worker was sent SIGTERM; a checkpoint was written first"
        super().__init__(error_msg=words, preempted=True)


class _NotingBackend(_TorchBackend):
    """torch.distributed, on workers that note SIGTERM.

    A signal's handler is set in a process's main thread, and training runs in another.
    """

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(note_sigterm)
        super().on_start(worker_group, backend_config)


class _NotingConfig(TorchConfig):
    @property
    def backend_cls(self) -> type[_NotingBackend]:
        return _NotingBackend


def this_worker(config: Config) -> Worker:
    """The Ray Train worker that this is, with as many threads as it has processors."""
    torch.set_num_threads(config.launch.cpus_per_worker)
    context = ray.train.get_context()
    return Worker(ray.train.torch.get_device(), context.get_world_rank(), context.get_world_size())


def train_worker(job: dict[str, Any]) -> str | None:
    """What each Ray Train worker runs: the training loop.

    A failure that strikes all workers at once is returned in words, because Ray would start the
    workers again for an exception, only to see them fail alike.

    Raises:
        Preempted: a worker was sent SIGTERM; the run is to go on elsewhere.
    """
    config = Config.model_validate(job["config"])
    worker = this_worker(config)
    observer = WorkerObserver(job["watch"], worker.rank == 0)
    try:
        with noting():
            train(config, as_path(job["folder"]), worker, observer)
    except TrainingEnded:
        wanted = [observer.wanted()]
        if worker.world > 1:
            dist.broadcast_object_list(wanted)
        if not wanted[0]:
            raise Preempted from None
    except TrainingStopped as stopped:
        return str(stopped)
    return None


def fit(config: Config, folder: AnyPath, watch: ActorHandle) -> None:
    """Train one run on ``launch.workers`` workers and wait for its end.

    The run's own checkpoints are what a restart goes on from, so Ray's run is a new one each
    time and keeps no checkpoints of its own.

    Raises:
        UsageError: what a worker could not use, in its words.
        TrainingStopped: the loss diverged, or a checkpoint could not be written.
    """
    job = {
        "config": config.model_dump(mode="json", by_alias=True),
        "folder": str(folder.absolute()),
        "watch": watch,
    }
    before = signal.getsignal(signal.SIGINT)
    try:
        words = run_workers(train_worker, job, config, config.launch.max_failures)
    except WorkerGroupError as error:
        raise _in_words(error) from error
    except SystemExit:
        # Ray's answer to Ctrl-C, once it has ended the workers.
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, before)
    if words is not None:
        raise TrainingStopped(words)


def run_workers(
    function: Callable[[dict[str, Any]], Any],
    settings: dict[str, Any],
    config: Config,
    max_failures: int,
) -> Any:
    """Run a function on Ray Train workers, and return what the first worker's gives.

    Each time it is a Ray Train run with a name of its own, and its own state lies in a temporary
    folder: nothing of it is needed afterwards.

    Args:
        function: what each worker runs, given ``settings``.
        settings: plain values and actor handles.
        config: says how many workers, and what they reserve.
        max_failures: how often the workers are started again, those preempted apart.

    Raises:
        WorkerGroupError: they failed more often.
    """
    for start in range(1, STARTS + 1):
        with tempfile.TemporaryDirectory(prefix="raymed-") as folder:
            trainer = TorchTrainer(
                function,
                train_loop_config=settings,
                torch_config=_NotingConfig(timeout_s=WAIT_S),
                scaling_config=scaling(config),
                run_config=RunConfig(
                    name=uuid4().hex,
                    storage_path=folder,
                    failure_config=FailureConfig(max_failures=max_failures),
                ),
            )
            try:
                return trainer.fit().return_value
            except ControllerError:
                # A worker that dies while its group is being started; Ray Train gives up at once.
                if start == STARTS:
                    raise
    raise AssertionError


def scaling(config: Config) -> ScalingConfig:
    """What ``launch`` asks Ray Train for."""
    launch = config.launch
    fewest, most = fewest_and_most(config)
    gpus = launch.gpus_per_worker
    if gpus is None:
        gpus = 1 if ray.cluster_resources().get("GPU", 0) else 0
    return ScalingConfig(
        num_workers=most if fewest == most else (fewest, most),
        use_gpu=gpus > 0,
        resources_per_worker={"CPU": launch.cpus_per_worker, **({"GPU": gpus} if gpus else {})},
        elastic_resize_monitor_interval_s=RESIZE_S,
    )


def fewest_and_most(config: Config) -> tuple[int, int]:
    """How many workers a run may have."""
    workers = config.launch.workers
    return workers if isinstance(workers, tuple) else (workers, workers)


def check_room(config: Config, groups: int = 1) -> int:
    """How many runs of this configuration the cluster can train at a time.

    Args:
        config: of the runs; where `launch.wait_minutes` says so, nodes are waited for.
        groups: how many runs at a time nodes are waited for, at most.

    Raises:
        UsageError: not even one. Ray would wait for ever for the missing processors or GPUs.
    """
    if config.launch.workers == 0:
        return 1
    fewest, _ = fewest_and_most(config)
    bundle = {
        name: amount
        for name, amount in (scaling(config).resources_per_worker or {}).items()
        if amount
    }
    if config.launch.wait_minutes:
        wait_for_nodes([bundle] * fewest * groups, config.launch.wait_minutes)
    wanted = {name: fewest * amount for name, amount in bundle.items()}
    there = ray.cluster_resources()
    for resource, amount in wanted.items():
        if there.get(resource, 0) < amount:
            raise UsageError(
                f"launch.workers: {fewest} workers need {amount:g} {resource}, and "
                f"the cluster has {there.get(resource, 0):g}: lower launch.workers or "
                f"launch.{resource.lower()}s_per_worker{_without(resource)}, or add nodes (of a "
                "cluster that adds them by itself, raise launch.wait_minutes)"
            )
    # A fifth of a GPU is a little more than 0.2 of it.
    return int(min(there[resource] / amount + 1e-6 for resource, amount in wanted.items()))


def describe_workers(config: Config) -> str:
    """What a run's workers have, in words."""
    fewest, most = fewest_and_most(config)
    each = scaling(config).resources_per_worker or {}
    count = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    gpus = f"{each['GPU']:g} GPU" if each.get("GPU") else "no GPU"
    return f"training on {count} worker(s), each with {each['CPU']:g} CPU and {gpus}"


def _without(resource: str) -> str:
    return " (0 trains on CPUs)" if resource == "GPU" else ""


def _in_words(error: WorkerGroupError) -> Exception:
    """A worker's UsageError as such; else Ray's error as it is."""
    for failure in error.worker_failures.values():
        cause: BaseException | None = failure
        while cause is not None:
            if isinstance(cause, UsageError):
                return UsageError(str(cause))
            cause = getattr(cause, "cause", None) or cause.__cause__
    return error
