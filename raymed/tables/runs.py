"""A table's runs: every system with every seed, trained side by side on Ray, each once."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich.console import Console

from raymed.config import Config
from raymed.data.dataset import PreparedDataset
from raymed.errors import UsageError
from raymed.evaluation import SCORES_FILE
from raymed.launch.groups import SCORED, score
from raymed.launch.parallel_runs import train_in_parallel
from raymed.launch.run import (
    claim,
    last_checkpoint,
    located,
    require_worker_groups,
    run_folder,
    taken,
)
from raymed.localisation import ATTENTION_FILE
from raymed.locks import folder_lock
from raymed.storage import AnyPath, as_path
from raymed.training.checkpoint import Checkpoint, latest
from raymed.training.setup import check

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
    folder: AnyPath
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
        UsageError: a setting or a run that is given does not fit, the folder is in use, the
            cluster is too small, or runs failed; the others stay finished.
    """
    config = located(config)
    dataset = check(config)
    runs = list(_planned(config, systems, dataset))
    if taken(run_folder(config)) and not (run_folder(config) / RUNS).is_dir():
        raise UsageError(f"{run_folder(config)}: exists and is no table's; choose another run.name")
    with folder_lock(run_folder(config)):
        # Of the finished ones too: a table of runs of several configurations would compare nothing.
        for run in runs:
            if not run.given:
                claim(run.config)
                last_checkpoint(run.folder, dataset)
        waiting = [run for run in runs if not run.scored]
        if len(waiting) < len(runs):
            done = len(runs) - len(waiting)
            console.print(f"{done} of {len(runs)} runs are finished already", highlight=False)
        for run in waiting:
            if run.given:
                score(run.folder, config.data.path, SPLIT)
        waiting = [run for run in waiting if not run.given]
        if waiting:
            train_in_parallel(
                {run.folder: run.config for run in waiting},
                config,
                run_folder(config),
                SPLIT,
                partial(_outcome, {run.folder: run for run in waiting}),
                console,
            )
    return runs


def _planned(config: Config, systems: Sequence[str], dataset: PreparedDataset) -> Iterator[Run]:
    require_worker_groups(config, "table")
    for system in systems:
        given = config.table.runs.get(system, ())
        for folder in given:
            trained = _fitting(as_path(folder), system, dataset)
            # It is scored on this table's dataset, wherever it lay when it was trained.
            here = trained.override({"data.path": config.data.path})
            yield Run(system, here.training.seed, here, as_path(folder).absolute(), given=True)
        for seed in () if given else config.table.seeds:
            name = f"{system}-seed-{seed}"
            values = {
                **config.table.systems.get(system, {}),
                "model.system": system,
                "training.seed": seed,
                "run.folder": str(run_folder(config) / RUNS),
                "run.name": name,
                "table.runs": {},
                "table.systems": {},
            }
            one = config.override(values, f"table.systems.{system}")
            check(one)
            yield Run(system, seed, one, run_folder(config) / RUNS / name)


def _fitting(run: AnyPath, system: str, dataset: PreparedDataset) -> Config:
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
            f"table.runs.{system}: {run} was trained on another dataset than {dataset.path}"
        )
    if checkpoint.epoch < wanted:
        raise UsageError(
            f"table.runs.{system}: {run} is not finished ({checkpoint.epoch} of {wanted} epochs); "
            "take it up by `raymed train`"
        )
    return checkpoint.config


def _outcome(runs: Mapping[AnyPath, Run], folder: AnyPath) -> str:
    run = runs[folder]
    scores = run.scores()["rows"][run.system]
    if scores["cider"] is None:
        return f"test recall@5 {scores['recall_5']:.3f}"
    return f"test CIDEr {scores['cider']:.3f}, {scores['distinct']} distinct"
