"""Training several runs side by side on worker groups, each to its end, and following them."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError
from rich.console import Console

from raymed.config import Config
from raymed.errors import UsageError
from raymed.launch.cluster import connected
from raymed.launch.groups import worker_groups
from raymed.launch.queue import Job
from raymed.launch.trainer import check_room
from raymed.progress import Progress
from raymed.storage import AnyPath, as_path


def train_in_parallel(
    runs: Mapping[AnyPath, Config],
    base: Config,
    folder: AnyPath,
    split: str | None,
    outcome: Callable[[AnyPath], str],
    console: Console,
) -> None:
    """Train runs as far as they are not trained, as many at a time as there is room for.

    Args:
        runs: configurations by the runs' folders.
        base: what they have in common: workers, their number, the cluster.
        folder: of them all, named where something is wrong.
        split: on which each is to be scored in the end, if any.
        outcome: of a finished run, in words.
        console: gets a line for each run that ends.

    Raises:
        UsageError: there is no room, runs failed, or the queue died; the others stay finished.
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
            with worker_groups(base, groups, jobs=len(runs)) as queue:
                failures = _follow(queue, runs, base, split, outcome, console)
        except RayActorError as error:
            raise UsageError(
                f"{folder}: the queue of runs died, perhaps for want of memory; the same command "
                "goes on from their last checkpoints"
            ) from error
    if failures:
        raise UsageError(
            f"{folder}: {len(failures)} of {len(runs)} runs failed; give the same command again to "
            "train these once more\n" + "\n".join(failures)
        )


def _follow(
    queue: ActorHandle,
    runs: Mapping[AnyPath, Config],
    base: Config,
    split: str | None,
    outcome: Callable[[AnyPath], str],
    console: Console,
) -> list[str]:
    """Submit the runs and say when each ends; the failures, in words."""
    tree = base.model_dump(mode="json", by_alias=True)
    for number, (folder, config) in enumerate(runs.items()):
        job = Job(number, str(folder), _altered(config, tree), split)
        ray.get(queue.submit.remote(job, free=True))
    began = time.monotonic()
    ended = 0
    running: dict[int, str] = {}
    failures = []
    with Progress("runs", len(runs), console) as progress:
        while ended < len(runs):
            time.sleep(0.5)
            news: list[Job] = ray.get(queue.heard.remote())
            for job in news:
                folder = as_path(job.folder)
                for text in job.warnings:
                    _say(console, f"warning: {folder.name}: {text}")
                running[job.number] = f"{folder.name} epoch {len(job.rows)}"
                if job.ended:
                    ended += 1
                    del running[job.number]
                    said = f"failed: {job.failure}" if job.failure else outcome(folder)
                    if job.failure:
                        failures.append(f"  {folder.name}: {said}")
                    _say(console, f"{time.monotonic() - began:4.0f} s  {folder.name}: {said}")
            progress.update(ended, ", ".join(running.values()) or "runs")
    return failures


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _altered(config: Config, base: dict[str, Any]) -> dict[str, Any]:
    """The dotted keys in which a configuration differs from the one the groups know."""
    return {
        f"{section}.{key}": value
        for section, values in config.model_dump(mode="json", by_alias=True).items()
        for key, value in values.items()
        if value != base[section][key]
    }
