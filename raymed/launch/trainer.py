"""Ray Train around the training loop: the worker function and the trainer."""

import signal
import tempfile
from collections.abc import Callable
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.actor import ActorHandle
from ray.exceptions import RayActorError
from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer

from raymed.config import Config
from raymed.errors import UsageError
from raymed.launch.autoscaling import wait_for_nodes
from raymed.launch.monitor import WorkerObserver
from raymed.launch.signals import (
    Terminated,
    defer_sigterm,
    install_sigterm_handler,
    restored_handlers,
)
from raymed.storage import AnyPath, as_path
from raymed.training.checkpoint_paths import CHECKPOINT_PATH, checkpoint_name, checkpoints_of
from raymed.training.errors import Interrupted, TrainingFailed
from raymed.training.loop import train
from raymed.training.observer import Row
from raymed.training.worker import Worker

RESIZE_S = 10.0
"""How often to check whether a run with fewer workers than wanted can have more, in seconds."""
WAIT_S = 10 * 365 * 24 * 3600
"""How long workers wait for one another, in seconds: indefinitely, since one of them may be scoring
or computing features alone. Dead workers are detected by Ray Train."""
STARTS = 3
"""How often Ray Train is started at most if its own controller fails."""


class Preempted(RayActorError):
    """A worker received SIGTERM and has written a checkpoint; Ray restarts the workers.

    Ray detects drained nodes by itself, but not a signal sent to a process on a node that stays.
    Raised as an actor's death by preemption, it never counts against `max_failures`.
    """

    def __init__(self) -> None:
        text = "a worker received SIGTERM; a checkpoint was written first"
        super().__init__(error_msg=text, preempted=True)


# Ray's class has no public name, but a public property returns it.
_TorchBackend: Any = TorchConfig().backend_cls


class _SigtermBackend(_TorchBackend):
    """torch.distributed, on workers that can defer SIGTERM.

    A signal handler can only be installed in a process's main thread, where this runs; training
    runs in another one.
    """

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(install_sigterm_handler)
        super().on_start(worker_group, backend_config)


class _SigtermConfig(TorchConfig):
    @property
    def backend_cls(self) -> type[_SigtermBackend]:
        return _SigtermBackend


def this_worker(config: Config) -> Worker:
    """This Ray Train worker, with as many threads as it has reserved CPUs."""
    torch.set_num_threads(config.launch.cpus_per_worker)
    context = ray.train.get_context()
    return Worker(ray.train.torch.get_device(), context.get_world_rank(), context.get_world_size())


class TrainObserver(WorkerObserver):
    """A worker's observer that also reports each epoch's metrics to Ray Train.

    Ray Train waits until all workers have reported an epoch. It gets no checkpoint, which it would
    copy to a storage of its own, but the path of ours, which is being written at that time.

    Args:
        monitor: The `RunMonitor` actor.
        first: Whether this is the run's first worker.
        folder: The run's folder.
    """

    def __init__(self, monitor: ActorHandle, first: bool, folder: AnyPath) -> None:
        super().__init__(monitor, first)
        self.folder = folder

    def epoch(self, row: Row) -> None:
        super().epoch(row)
        path = checkpoints_of(self.folder) / checkpoint_name(int(row["epoch"]))
        ray.train.report({**row, CHECKPOINT_PATH: str(path)})


def train_worker(job: dict[str, Any]) -> str | None:
    """What each Ray Train worker runs: the training loop.

    A failure of all workers at once is returned as text: for an exception Ray would restart the
    workers, only for them to fail in the same way.

    Raises:
        Preempted: A worker received SIGTERM; the run is to resume elsewhere.
    """
    config = Config.model_validate(job["config"])
    worker = this_worker(config)
    folder = as_path(job["folder"])
    observer = TrainObserver(job["monitor"], worker.rank == 0, folder)
    try:
        with defer_sigterm():
            train(config, folder, worker, observer)
    except Interrupted:
        requested = [observer.stop_requested()]
        if worker.world > 1:
            dist.broadcast_object_list(requested)
        if not requested[0]:
            raise Preempted from None
    except TrainingFailed as stopped:
        return str(stopped)
    return None


def fit(config: Config, folder: AnyPath, monitor: ActorHandle) -> None:
    """Train one run on ``launch.workers`` workers, and wait until it ends.

    A restart resumes from the run's own checkpoints, so Ray's run is a new one each time and keeps
    no checkpoints.

    Raises:
        UsageError: A worker raised it.
        TrainingFailed: The loss diverged, or a checkpoint could not be written.
    """
    job = {
        "config": config.model_dump(mode="json", by_alias=True),
        "folder": str(folder.absolute()),
        "monitor": monitor,
    }
    try:
        with restored_handlers(signal.SIGINT):
            failure = run_workers(
                train_worker, job, config, config.launch.max_failures, name=config.run.name
            )
    except WorkerGroupError as error:
        raise _usage_error(error) from error
    except Terminated:
        raise
    except SystemExit:
        # Ray raises it on Ctrl-C, once it has stopped the workers.
        raise KeyboardInterrupt from None
    if failure is not None:
        raise TrainingFailed(failure)


def run_workers(
    function: Callable[[dict[str, Any]], Any],
    settings: dict[str, Any],
    config: Config,
    max_failures: int,
    name: str,
) -> Any:
    """Run a function on Ray Train workers, and return the first worker's result.

    The state of Ray Train's run is kept in a temporary folder, a new one for each call: nothing of
    it is needed afterwards, and a run of the same name in the same folder would be taken for done.

    Args:
        function: What each worker runs, given ``settings``.
        settings: Plain values and actor handles.
        config: Sets the number of workers and what they reserve.
        max_failures: How often the workers are restarted, preemptions not counted.
        name: The name of the Ray Train run, as its dashboard shows it.

    Raises:
        WorkerGroupError: They failed more often than that.
    """
    for start in range(1, STARTS + 1):
        with tempfile.TemporaryDirectory(prefix="raymed-") as folder:
            trainer = TorchTrainer(
                function,
                train_loop_config=settings,
                torch_config=_SigtermConfig(timeout_s=WAIT_S),
                scaling_config=scaling(config),
                run_config=RunConfig(
                    name=name,
                    storage_path=folder,
                    failure_config=FailureConfig(max_failures=max_failures),
                ),
            )
            try:
                return trainer.fit().return_value
            except ControllerError:
                # A worker died while its group was starting; Ray Train does not retry that.
                if start == STARTS:
                    raise
    raise AssertionError


def scaling(config: Config) -> ScalingConfig:
    """Ray Train's scaling configuration for the ``launch`` section."""
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
    """The least and the greatest number of workers of a run."""
    workers = config.launch.workers
    return workers if isinstance(workers, tuple) else (workers, workers)


def check_room(config: Config, groups: int = 1) -> int:
    """Number of runs of this configuration that the cluster can train at a time.

    Args:
        config: The runs' configuration; with `launch.wait_minutes`, nodes are waited for.
        groups: Greatest number of concurrent runs for which nodes are waited for.

    Raises:
        UsageError: Not even one fits. Ray would wait forever for the missing CPUs or GPUs.
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
    available = ray.cluster_resources()
    for resource, amount in wanted.items():
        if available.get(resource, 0) < amount:
            raise UsageError(
                f"launch.workers: {fewest} workers need {amount:g} {resource}, and "
                f"the cluster has {available.get(resource, 0):g}: lower launch.workers or "
                f"launch.{resource.lower()}s_per_worker{_without(resource)}, or add nodes (on "
                "an autoscaling cluster, raise launch.wait_minutes)"
            )
    # In floating point, 0.6 / 0.2 is a little less than 3.
    return int(min(available[resource] / amount + 1e-6 for resource, amount in wanted.items()))


def describe_workers(config: Config) -> str:
    """A run's workers and what they reserve, in words."""
    fewest, most = fewest_and_most(config)
    each = scaling(config).resources_per_worker or {}
    count = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    gpus = f"{each['GPU']:g} GPU" if each.get("GPU") else "no GPU"
    return f"training on {count} worker(s), each with {each['CPU']:g} CPU and {gpus}"


def _without(resource: str) -> str:
    return " (0 trains on CPUs)" if resource == "GPU" else ""


def _usage_error(error: WorkerGroupError) -> Exception:
    """The worker's UsageError behind Ray's error, if there is one; else Ray's error itself."""
    for failure in error.worker_failures.values():
        cause: BaseException | None = failure
        while cause is not None:
            if isinstance(cause, UsageError):
                return UsageError(str(cause))
            cause = getattr(cause, "cause", None) or cause.__cause__
    return error
