"""Training several runs at a time, each to its end, on worker groups; reporting as they finish."""

import json
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError
from rich.console import Console

from raymed.config import Config
from raymed.data.dataset import PreparedDataset
from raymed.errors import UsageError
from raymed.launch.cluster import connected
from raymed.launch.groups import worker_groups
from raymed.launch.queue import Job
from raymed.launch.trainer import check_room
from raymed.predictions_file import SCORES_FILE
from raymed.progress import Progress
from raymed.reports.model_card import write_model_card
from raymed.run_folder import RunFolder
from raymed.storage import AnyPath, as_path

POLL_S = 0.5
"""Interval at which the queue is asked for progress, in seconds."""


def require_worker_groups(config: Config, what: str) -> None:
    """Check that the configuration asks for a fixed number of Ray Train workers.

    Args:
        config: What the runs have in common.
        what: The kind of runs, such as ``sweep``, for the message.

    Raises:
        UsageError: It does not.
    """
    if config.launch.workers == 0:
        raise UsageError(
            "launch.workers: 0 trains in the calling process, which only a single run can do; "
            f"{what} runs are Ray Train runs, so set it to 1 or more"
        )
    if not isinstance(config.launch.workers, int):
        raise UsageError(
            f"launch.workers: {list(config.launch.workers)} lets the number of workers change, "
            f"which only a single run can do; the worker groups of {what} runs have a fixed size: "
            f"set it to one number, such as {config.launch.workers[0]}"
        )


def is_scored(run: RunFolder) -> bool:
    """Whether a run is finished, its scores on a split included."""
    return (run.scored / SCORES_FILE).is_file()


def read_scores(run: RunFolder) -> dict[str, Any]:
    """What `raymed.evaluation.evaluate` wrote of a finished run."""
    scores: dict[str, Any] = json.loads((run.scored / SCORES_FILE).read_text())
    return scores


def initialise_runs(runs: Mapping[RunFolder, Config], dataset: PreparedDataset) -> None:
    """Store the configurations of runs that are to be compared, the finished ones included.

    A comparison with a run of another configuration would compare nothing.

    Args:
        runs: Each run's configuration.
        dataset: The dataset that they are trained on.

    Raises:
        UsageError: A folder has other content, or a run of other settings or data.
    """
    for run, config in runs.items():
        run.initialise(config)
        run.resumed_from(dataset)


def train_in_parallel(
    runs: Mapping[RunFolder, Config],
    base: Config,
    folder: AnyPath,
    split: str | None,
    outcome: Callable[[RunFolder], str],
    console: Console,
    name: str,
) -> None:
    """Train runs that are not finished yet, as many at a time as there is room for.

    Args:
        runs: Each run's configuration.
        base: What these have in common: workers, their number, the cluster.
        folder: The folder above the runs, for messages.
        split: The split to score each run on when it is finished, if any.
        outcome: Describes a finished run.
        console: Gets a line for each run that ends.
        name: The name of the runs together, which Ray shows.

    Raises:
        UsageError: There is no room, runs failed, or the queue died; the others stay finished.
    """
    with connected(base.launch.address):
        room = check_room(base, base.tune.groups or 1)
        groups = min(room, base.tune.groups or len(runs), len(runs))
        _say(
            console,
            f"{len(runs)} runs to train; worker groups: {groups}, of {base.launch.workers} "
            "worker(s) each",
        )
        try:
            with worker_groups(base, groups, jobs=len(runs), name=name) as queue:
                failures = run_jobs(queue, runs, base, split, outcome, console)
        except RayActorError as error:
            raise UsageError(
                f"{folder}: the queue of runs died, perhaps because memory ran out; run the same "
                "command again to resume them from their last checkpoints"
            ) from error
    if failures:
        raise UsageError(
            f"{folder}: {len(failures)} of {len(runs)} runs failed; run the same command again to "
            "retry them\n" + "\n".join(failures)
        )


def run_jobs(
    queue: ActorHandle,
    runs: Mapping[RunFolder, Config],
    base: Config,
    split: str | None,
    outcome: Callable[[RunFolder], str],
    console: Console,
    first: int = 0,
) -> list[str]:
    """Have running worker groups train runs to their ends.

    Args:
        queue: The queue that the worker groups take jobs from.
        runs: Each run's configuration.
        base: The worker groups' own configuration.
        split: The split to score each run on when it is finished, if any.
        outcome: Describes a finished run.
        console: Gets a line for each run that ends.
        first: The first job's number; no other job of the queue may have a number from there on.

    Returns:
        The runs that failed and why, a line each.

    Raises:
        RayActorError: The queue died.
    """
    tree = base.model_dump(mode="json", by_alias=True)
    for number, (run, config) in enumerate(runs.items(), start=first):
        job = Job(number, str(run.path), _differences(config, tree), split)
        ray.get(queue.submit.remote(job, free=True))
    return _report(queue, len(runs), outcome, console)


def _report(
    queue: ActorHandle, count: int, outcome: Callable[[RunFolder], str], console: Console
) -> list[str]:
    """Print a line when a run ends, until all have; returns the failures, a line each."""
    began = time.monotonic()
    ended = 0
    running: dict[int, str] = {}
    failures = []
    with Progress("runs", count, console) as progress:
        while ended < count:
            time.sleep(POLL_S)
            updates: list[Job] = ray.get(queue.drain.remote())
            for job in updates:
                run = RunFolder(as_path(job.folder))
                name = run.path.name
                for text in job.warnings:
                    _say(console, f"warning: {name}: {text}")
                running[job.number] = f"{name} epoch {len(job.rows)}"
                if job.ended:
                    ended += 1
                    del running[job.number]
                    result = f"failed: {job.failure}" if job.failure else outcome(run)
                    if job.failure:
                        failures.append(f"  {name}: {result}")
                    else:
                        write_model_card(run.path, partial(_say, console))
                    _say(console, f"{time.monotonic() - began:4.0f} s  {name}: {result}")
            progress.update(ended, ", ".join(running.values()) or "runs")
    return failures


def _differences(config: Config, base: dict[str, Any]) -> dict[str, Any]:
    """The dotted keys in which a configuration differs from the worker groups' own."""
    return {
        f"{section}.{key}": value
        for section, values in config.model_dump(mode="json", by_alias=True).items()
        for key, value in values.items()
        if value != base[section][key]
    }


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)
