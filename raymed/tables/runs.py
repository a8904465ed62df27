"""A table's runs: every system with every seed, trained side by side on Ray, each once."""

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from raymed.config import Config
from raymed.data.dataset import PreparedDataset
from raymed.errors import UsageError
from raymed.evaluation import SCORES_FILE
from raymed.launch.cluster import connected
from raymed.launch.groups import SCORED, score, worker_groups
from raymed.launch.queue import Job
from raymed.launch.run import claim, epochs_done, located, taken
from raymed.launch.trainer import check_room
from raymed.localisation import ATTENTION_FILE
from raymed.training.checkpoint import Checkpoint, latest
from raymed.training.loop import check

RUNS = "runs"
SPLIT = "test"
"""Tables are of this split; checkpoints are chosen on the validation split."""


@dataclass(frozen=True)
class Run:
    """A run of a table.

    Attributes:
        system: its name.
        seed: of its initial weights, order of images and dropout.
        config: of the run.
        folder: of the run.
        given: it was trained elsewhere, and is taken as it is.
    """

    system: str
    seed: int
    config: Config
    folder: Path
    given: bool = False

    @property
    def scored(self) -> bool:
        return (self.folder / SCORED / SCORES_FILE).is_file()

    def scores(self) -> dict[str, Any]:
        """What `raymed.evaluation.evaluate` left of it, and the attention's scores if any."""
        scores: dict[str, Any] = json.loads((self.folder / SCORED / SCORES_FILE).read_text())
        file = self.folder / SCORED / ATTENTION_FILE
        scores["attention"] = json.loads(file.read_text()) if file.is_file() else None
        return scores


def finished_runs(config: Config, systems: Sequence[str], console: Console) -> list[Run]:
    """Train and score what is not finished yet, and give all runs in the systems' order.

    Runs lie in ``run.folder/run.name/runs/SYSTEM-seed-N``, so several tables of one file share
    them; one that was interrupted goes on from its last checkpoint.

    Raises:
        UsageError: a setting or a run that is given does not fit, the cluster is too small, or
            runs failed; the others stay finished.
    """
    config = located(config)
    dataset = check(config)
    runs = list(_planned(config, systems, dataset))
    if taken(_folder(config)) and not (_folder(config) / RUNS).is_dir():
        raise UsageError(f"{_folder(config)}: exists and is no table's; choose another run.name")
    # Of the finished ones too: a table of runs of several configurations would compare nothing.
    for run in runs:
        if not run.given:
            claim(run.config)
            epochs_done(run.folder, dataset)
    waiting = [run for run in runs if not run.scored]
    if len(waiting) < len(runs):
        done = len(runs) - len(waiting)
        console.print(f"{done} of {len(runs)} runs are finished already", highlight=False)
    for run in waiting:
        if run.given:
            score(run.folder, run.config, SPLIT)
    waiting = [run for run in waiting if not run.given]
    if waiting:
        with connected(config.launch.address):
            groups = min(check_room(config), config.tune.groups or len(waiting), len(waiting))
            console.print(
                f"{len(waiting)} runs to train; worker groups: {groups}, of "
                f"{config.launch.workers} worker(s) each",
                highlight=False,
            )
            try:
                with worker_groups(config, _folder(config), groups, jobs=len(waiting)) as queue:
                    failures = _follow(queue, waiting, config, console)
            finally:
                shutil.rmtree(_folder(config) / "ray", ignore_errors=True)
        if failures:
            raise UsageError(
                f"{_folder(config)}: {len(failures)} of {len(runs)} runs failed; give the same "
                "command again to train these once more\n" + "\n".join(failures)
            )
    return runs


def _folder(config: Config) -> Path:
    return Path(config.run.folder) / config.run.name


def _planned(config: Config, systems: Sequence[str], dataset: PreparedDataset) -> Iterator[Run]:
    if config.launch.workers == 0:
        raise UsageError(
            "launch.workers: 0 trains in the calling process, which is for a single run; a "
            "table's runs are Ray Train runs, so set it to 1 or more"
        )
    for system in systems:
        given = config.table.runs.get(system, ())
        for folder in given:
            trained = _fitting(Path(folder), system, dataset)
            # It is scored on this table's data set, wherever it lay when it was trained.
            here = trained.override({"data.path": config.data.path})
            yield Run(system, here.training.seed, here, Path(folder).absolute(), given=True)
        for seed in () if given else config.table.seeds:
            name = f"{system}-seed-{seed}"
            values = {
                **config.table.systems.get(system, {}),
                "model.system": system,
                "training.seed": seed,
                "run.folder": str(_folder(config) / RUNS),
                "run.name": name,
                "table.runs": {},
                "table.systems": {},
            }
            one = config.override(values, f"table.systems.{system}")
            check(one)
            yield Run(system, seed, one, _folder(config) / RUNS / name)


def _fitting(run: Path, system: str, dataset: PreparedDataset) -> Config:
    """The configuration of a run that is given, once it is sure that the table can take it."""
    last = latest(run)
    if last is None:
        raise UsageError(f"table.runs.{system}: {run} is no run's folder: it has no checkpoints")
    checkpoint = Checkpoint.open(last)
    found, wanted = checkpoint.config.model.system, checkpoint.config.training.epochs
    if found != system:
        raise UsageError(f"table.runs.{system}: {run} is a run of {found}")
    if checkpoint.content_hash != dataset.info.content_hash:
        raise UsageError(
            f"table.runs.{system}: {run} was trained on another data set than {dataset.path}"
        )
    if checkpoint.epoch < wanted:
        raise UsageError(
            f"table.runs.{system}: {run} is not finished ({checkpoint.epoch} of {wanted} epochs); "
            "take it up by `raymed train`"
        )
    return checkpoint.config


def _follow(
    queue: ActorHandle, waiting: Sequence[Run], config: Config, console: Console
) -> list[str]:
    """Have the runs trained and scored, saying when each ends; the failures, in words."""
    base = config.model_dump(mode="json", by_alias=True)
    for number, run in enumerate(waiting):
        job = Job(number, str(run.folder), _altered(run.config, base), SPLIT)
        ray.get(queue.submit.remote(job, free=True))
    began = time.monotonic()
    ended: set[int] = set()
    failures = []
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    task = bar.add_task("runs", total=len(waiting))
    with bar:
        while len(ended) < len(waiting):
            time.sleep(0.5)
            jobs: list[Job] = ray.get(queue.states.remote())
            running = [j for j in jobs if j.attempts and not j.ended]
            names = [f"{Path(j.folder).name} epoch {len(j.rows)}" for j in running]
            for job in jobs:
                if job.ended and job.number not in ended:
                    ended.add(job.number)
                    run = waiting[job.number]
                    line = f"{run.folder.name}: {_outcome(job, run)}"
                    if job.failure:
                        failures.append(f"  {line}")
                    seconds = time.monotonic() - began
                    console.print(
                        f"{seconds:4.0f} s  {line}", highlight=False, markup=False, soft_wrap=True
                    )
            bar.update(task, completed=len(ended), description=", ".join(names) or "runs")
    return failures


def _outcome(job: Job, run: Run) -> str:
    if job.failure:
        return f"failed: {job.failure}"
    scores = run.scores()["rows"][run.system]
    if scores["cider"] is None:
        return f"test recall@5 {scores['recall_5']:.3f}"
    return f"test CIDEr {scores['cider']:.3f}, {scores['distinct']} distinct"


def _altered(config: Config, base: dict[str, Any]) -> dict[str, Any]:
    """The dotted keys in which a configuration differs from the one the groups know."""
    return {
        f"{section}.{key}": value
        for section, values in config.model_dump(mode="json", by_alias=True).items()
        for key, value in values.items()
        if value != base[section][key]
    }
