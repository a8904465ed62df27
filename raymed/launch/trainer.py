"""Ray Train around the training loop: the worker function and the trainer."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray
import ray.train
import ray.train.torch
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchTrainer

from raymed.config import Config
from raymed.errors import UsageError
from raymed.launch.nodes import wait_for_nodes
from raymed.training.loop import TrainingStopped, Worker, train


def train_worker(job: dict[str, Any]) -> str | None:
    """What each Ray Train worker runs: the training loop, reporting to Ray.

    A failure that strikes all workers at once is returned in words, because Ray would start the
    workers again for an exception, only to see them fail alike.
    """
    config = Config.model_validate(job["config"])
    if config.launch.workers:
        torch.set_num_threads(config.launch.cpus_per_worker)
    context = ray.train.get_context()
    worker = Worker(
        ray.train.torch.get_device(), context.get_world_rank(), context.get_world_size()
    )
    try:
        train(config, Path(job["folder"]), worker, report=ray.train.report)
    except TrainingStopped as stopped:
        return str(stopped)
    return None


def fit(config: Config, folder: Path) -> None:
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
    }
    trainer = build_trainer(train_worker, job, config, folder, config.launch.max_failures)
    before = signal.getsignal(signal.SIGINT)
    try:
        result = trainer.fit()
    except WorkerGroupError as error:
        raise _in_words(error) from error
    except SystemExit:
        # Ray's answer to Ctrl-C, once it has ended the workers.
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, before)
        shutil.rmtree(folder / "ray", ignore_errors=True)
    if result.return_value is not None:
        raise TrainingStopped(result.return_value)


def build_trainer(
    function: Callable[[dict[str, Any]], Any],
    settings: dict[str, Any],
    config: Config,
    folder: Path,
    max_failures: int,
) -> TorchTrainer:
    """A Ray Train run of a worker function, with a name of its own: Ray never takes up an old one.

    Args:
        function: what each worker runs, given ``settings``.
        settings: plain values and actor handles.
        config: says how many workers, and what they reserve.
        folder: Ray's own state is kept below it, in ``ray/``.
        max_failures: how often the workers are started again.
    """
    return TorchTrainer(
        function,
        train_loop_config=settings,
        scaling_config=scaling(config),
        run_config=RunConfig(
            name=uuid4().hex,
            storage_path=str(folder.absolute() / "ray"),
            failure_config=FailureConfig(max_failures=max_failures),
        ),
    )


def scaling(config: Config) -> ScalingConfig:
    """Workers and what each reserves; a GPU each where Ray sees enough and nothing else is said."""
    launch = config.launch
    gpus = launch.gpus_per_worker
    if gpus is None:
        seen = ray.cluster_resources().get("GPU", 0) if launch.workers else 0
        gpus = 1 if launch.workers and seen >= launch.workers else 0
    return ScalingConfig(
        num_workers=launch.workers,
        use_gpu=gpus > 0,
        resources_per_worker={"CPU": launch.cpus_per_worker, **({"GPU": gpus} if gpus else {})},
    )


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
    plan = scaling(config)
    if config.launch.wait_minutes:
        bundles = [dict(plan.resources_per_worker or {})] * (config.launch.workers * groups)
        wait_for_nodes(bundles, config.launch.wait_minutes)
    wanted = plan.total_resources
    there = ray.cluster_resources()
    for resource, amount in wanted.items():
        if there.get(resource, 0) < amount:
            raise UsageError(
                f"launch.workers: {config.launch.workers} workers need {amount:g} {resource}, and "
                f"the cluster has {there.get(resource, 0):g}: lower launch.workers or "
                f"launch.{resource.lower()}s_per_worker, or add nodes (of a cluster that adds them "
                "by itself, raise launch.wait_minutes)"
            )
    return int(min(there[resource] // amount for resource, amount in wanted.items() if amount))


def _in_words(error: WorkerGroupError) -> Exception:
    """A worker's UsageError as such; else Ray's error as it is."""
    for failure in error.worker_failures.values():
        cause: BaseException | None = failure
        while cause is not None:
            if isinstance(cause, UsageError):
                return UsageError(str(cause))
            cause = getattr(cause, "cause", None) or cause.__cause__
    return error
