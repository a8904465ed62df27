"""A table's runs: every system with every seed, each trained once, in parallel on Ray."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from raymed.absolute_paths import with_absolute_paths
from raymed.config import Config
from raymed.data.dataset import PreparedDataset
from raymed.errors import UsageError
from raymed.launch.groups import score
from raymed.launch.parallel_runs import (
    initialise_runs,
    is_scored,
    read_scores,
    require_worker_groups,
    train_in_parallel,
)
from raymed.localisation import ATTENTION_FILE
from raymed.metrics.table import ranked_score
from raymed.run_folder import RunFolder, TableFolder
from raymed.storage import AnyPath, as_path
from raymed.training.observer import is_finished
from raymed.training.setup import check

SPLIT = "test"
"""The split of all tables; checkpoints are chosen on the validation split."""


@dataclass(frozen=True)
class Run:
    """A run of a table.

    Attributes:
        system: The name of its system.
        seed: Seed of its initial weights, its order of images and its dropout.
        config: Its configuration.
        folder: Where it lies.
        given: It was trained elsewhere, and is used as it is.
    """

    system: str
    seed: int
    config: Config
    folder: AnyPath
    given: bool = False

    @property
    def scored(self) -> bool:
        """Whether the run is finished, its scores included."""
        return is_scored(RunFolder(self.folder))

    def scores(self) -> dict[str, Any]:
        """What `raymed.evaluation.evaluate` wrote, and the scores of the attention if any."""
        folder = RunFolder(self.folder)
        scores = read_scores(folder)
        file = folder.scored / ATTENTION_FILE
        scores["attention"] = json.loads(file.read_text()) if file.is_file() else None
        return scores


def finished_runs(config: Config, systems: Sequence[str], console: Console) -> list[Run]:
    """Train and score the runs that are not finished, and return all of them, system by system.

    Runs lie in ``run.folder/run.name/runs/SYSTEM-seed-N``, so several tables of one file share
    them. A run that was interrupted resumes from its last checkpoint.

    Raises:
        UsageError: A setting or a given run does not fit, the folder is in use, the cluster is too
            small, or runs failed; the others stay finished.
    """
    config = with_absolute_paths(config)
    dataset = check(config)
    table = TableFolder.of(config)
    runs = list(_planned(config, table, systems, dataset))
    table.refuse_foreign()
    with table.lock():
        own = {RunFolder(run.folder): run.config for run in runs if not run.given}
        initialise_runs(own, dataset)
        unfinished = [run for run in runs if not run.scored]
        if len(unfinished) < len(runs):
            done = len(runs) - len(unfinished)
            console.print(f"{done} of {len(runs)} runs are finished already", highlight=False)
        _finish(unfinished, config, table, console)
    return runs


def _finish(runs: Sequence[Run], config: Config, table: TableFolder, console: Console) -> None:
    """Score the given runs; train and score the others."""
    for run in runs:
        if run.given:
            score(run.folder, config.data.path, SPLIT)
    own = {RunFolder(run.folder): run for run in runs if not run.given}
    if own:
        train_in_parallel(
            {folder: run.config for folder, run in own.items()},
            config,
            table.path,
            SPLIT,
            lambda folder: _outcome(own[folder]),
            console,
            name=config.run.name,
        )


def _planned(
    config: Config, table: TableFolder, systems: Sequence[str], dataset: PreparedDataset
) -> Iterator[Run]:
    require_worker_groups(config, "table")
    for system in systems:
        given = config.table.runs.get(system, ())
        for path in given:
            trained = _fitting(RunFolder(as_path(path)), system, dataset)
            # It is scored on this table's dataset, wherever that lay when the run was trained.
            own = trained.override({"data.path": config.data.path})
            yield Run(system, own.training.seed, own, as_path(path).absolute(), given=True)
        for seed in () if given else config.table.seeds:
            name = f"{system}-seed-{seed}"
            values = {
                **config.table.systems.get(system, {}),
                "model.system": system,
                "training.seed": seed,
                "run.folder": str(table.runs),
                "run.name": name,
                "table.runs": {},
                "table.systems": {},
            }
            one = config.override(values, f"table.systems.{system}")
            check(one)
            yield Run(system, seed, one, table.runs / name)


def _fitting(run: RunFolder, system: str, dataset: PreparedDataset) -> Config:
    """The configuration of a given run, once it is known to fit the table."""
    key = f"table.runs.{system}: {run.path}"
    last = run.last_checkpoint()
    if last is None:
        raise UsageError(f"{key} is not a run folder: it has no checkpoints")
    found, wanted = last.config.model.system, last.config.training.epochs
    if found != system:
        raise UsageError(f"{key} is a run of {found}")
    if last.content_hash != dataset.info.content_hash:
        raise UsageError(f"{key} was trained on a different dataset than {dataset.path}")
    if not is_finished(last.history, last.config.training):
        raise UsageError(
            f"{key} is not finished ({last.epoch} of {wanted} epochs); resume it with "
            "`raymed train`"
        )
    return last.config


def _outcome(run: Run) -> str:
    scores = run.scores()["rows"][run.system]
    distinct = "" if scores["distinct"] is None else f", {scores['distinct']} distinct"
    return f"{SPLIT} {ranked_score(scores)}{distinct}"
