"""The sweep: Optuna proposes, Ray Train worker groups train, ASHA stops bad trials early."""

import logging
import os
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from ray import tune
from ray.actor import ActorHandle
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch
from rich.console import Console

from raymed.config import Config
from raymed.data.dataset import PreparedDataset
from raymed.errors import UsageError
from raymed.evaluation import Baseline, baseline_scores
from raymed.launch.cluster import connected
from raymed.launch.groups import worker_groups
from raymed.launch.run import located, taken
from raymed.launch.trainer import check_room
from raymed.training.checkpoint import best_epoch
from raymed.training.log import METRICS_FILE, read_metrics, replace
from raymed.training.loop import check
from raymed.tuning.leaderboard import (
    LEADERBOARD_FILE,
    TrialResult,
    leaderboard_table,
    ranked,
    write_leaderboard,
)
from raymed.tuning.progress import METRIC, SweepProgress
from raymed.tuning.space import propose
from raymed.tuning.trial import NUMBER, TRIALS, run_trial, trial_name, why_failed

SWEEP_FILE = "sweep.yaml"
BEST_FILE = "best.yaml"
STUDY_FILE = "optuna.journal"
ROOM_TO_WRITE = 2**20
"""Bytes; with less, a disk is full."""
NOISY = (
    "ray.tune.tune",
    "ray.tune.execution.experiment_state",
    "ray.tune.analysis.experiment_analysis",
    "ray.train._internal.syncer",
)


@dataclass(frozen=True)
class Sweep:
    """A finished sweep: its folder, its trials from best to worst, the baselines' scores."""

    folder: Path
    results: list[TrialResult]
    baselines: dict[str, Baseline]

    @property
    def leaderboard(self) -> Path:
        return self.folder / LEADERBOARD_FILE

    @property
    def best_config(self) -> Path:
        """The best trial's configuration, as `raymed train` takes it."""
        return self.folder / BEST_FILE

    @property
    def best(self) -> Path:
        """The folder of the best trial's run."""
        return self.folder / TRIALS / self.results[0].trial


def run_sweep(config: Config, console: Console) -> Sweep:
    """Run a sweep and write leaderboard.parquet, best.yaml and Optuna's study to its folder.

    Raises:
        UsageError: the space is empty, the folder is taken, a trial would not fit the cluster or
            the data set, or no trial has reported a score.
    """
    config = located(config)
    dataset = check_sweep(config)
    folder = Path(config.run.folder) / config.run.name
    if taken(folder):
        raise UsageError(
            f"{folder}: already holds a run or a sweep; choose another run.name, or delete it"
        )
    try:
        (folder / TRIALS).mkdir(parents=True)
        replace(folder / SWEEP_FILE, config.to_yaml())
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written ({error.strerror})") from error
    _quiet()
    baselines = baseline_scores(dataset, "val", config.data.validation_images)
    with connected(config.launch.address):
        room = check_room(config)
        groups = min(room, config.tune.groups or room, config.tune.trials)
        console.print(
            f"{config.tune.trials} trials over {', '.join(config.tune.space)}; worker groups: "
            f"{groups}, of {config.launch.workers} worker(s) each"
        )
        with (
            worker_groups(config, folder, groups, jobs=config.tune.trials) as queue,
            SweepProgress(config, console, queue) as progress,
        ):
            grid = _outcome(_tuner(config, folder, groups, queue, progress), folder)
    shutil.rmtree(folder / "ray", ignore_errors=True)
    results = ranked([_result(folder, config, one) for one in grid])
    if results[0].score is None:
        raise UsageError(f"{folder}: no trial has reported a score; the first {results[0].reason}")
    write_leaderboard(folder / LEADERBOARD_FILE, results)
    best = config.override(results[0].values | {"run.name": f"{config.run.name}-best"})
    replace(folder / BEST_FILE, best.override({"tune.space": {}}).to_yaml())
    if len(results) < config.tune.trials:
        console.print(f"interrupted after {len(results)} of {config.tune.trials} trials")
    console.print(leaderboard_table(results, baselines))
    return Sweep(folder, results, baselines)


def _outcome(tuner: tune.Tuner, folder: Path) -> tune.ResultGrid:
    try:
        return tuner.fit()
    except Exception as error:
        # Tune meets a full disk in many places, and each fails in a way of its own.
        if shutil.disk_usage(folder).free < ROOM_TO_WRITE:
            raise UsageError(
                f"{folder}: no space left on the disk; the trials so far lie in {TRIALS}/. Make "
                "room, and start the sweep with another run.name"
            ) from error
        raise


def check_sweep(config: Config) -> PreparedDataset:
    """See that there is something to search, and that every proposal will fit the data set.

    Raises:
        UsageError: naming the key.
    """
    if not config.tune.space:
        raise UsageError(
            "tune.space: is empty; name a key to search, such as "
            "`tune.space.loss.tag={log_uniform: [0.1, 10]}`"
        )
    if config.launch.workers == 0:
        raise UsageError(
            "launch.workers: 0 trains in the calling process, which is for a single run; a "
            "sweep's trials are Ray Train runs, so set it to 1 or more"
        )
    dataset = check(config)
    dimension = config.tune.space.get("model.top_tags")
    if dimension is not None:
        check(config.override({"model.top_tags": max(dimension.extremes())}))
    return dataset


def _quiet() -> None:
    """What Tune and Optuna say of themselves would stand between our own lines."""
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    # A failed trial's reason stands on our line for it and in the leaderboard; and Tune's own
    # record of the sweep, which it may complain about, is not what we read.
    os.environ["TUNE_PRINT_ALL_TRIAL_ERRORS"] = "0"
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def _tuner(
    config: Config, folder: Path, groups: int, queue: ActorHandle, progress: SweepProgress
) -> tune.Tuner:
    search = OptunaSearch(
        space=partial(propose, space=config.tune.space),
        metric=METRIC,
        mode="max",
        sampler=optuna.samplers.TPESampler(
            seed=config.tune.seed, n_startup_trials=config.tune.startup_trials
        ),
        study_name=config.run.name,
        storage=JournalStorage(JournalFileBackend(str(folder / STUDY_FILE))),
    )
    scheduler = ASHAScheduler(
        time_attr="epoch",
        metric=METRIC,
        mode="max",
        max_t=config.training.epochs,
        grace_period=min(config.tune.grace_epochs, config.training.epochs),
        reduction_factor=config.tune.reduction_factor,
    )
    trial = partial(run_trial, queue=queue, trials=folder / TRIALS, keys=list(config.tune.space))
    return tune.Tuner(
        # A trial only waits: a processor reserved for it would be one that the workers lack. Ray
        # wants something reserved, so it is a little memory.
        tune.with_resources(trial, {"memory": 2**20}),
        tune_config=tune.TuneConfig(
            search_alg=search,
            scheduler=scheduler,
            num_samples=config.tune.trials,
            max_concurrent_trials=groups,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial_name(trial.config[NUMBER]),
        ),
        run_config=tune.RunConfig(
            name="tune", storage_path=str(folder / "ray"), verbose=0, callbacks=[progress]
        ),
    )


def _result(folder: Path, config: Config, one: tune.Result) -> TrialResult:
    """A trial as its own metrics table tells it."""
    name = Path(one.path).name
    history = read_metrics(folder / TRIALS / name / METRICS_FILE)
    best = history[best_epoch(history) - 1] if history else None
    finished = len(history) >= config.training.epochs
    return TrialResult(
        trial=name,
        values=_searched(config, one.config or {}),
        state="failed" if one.error else "completed" if finished else "stopped",
        epochs=len(history),
        score=best["score"] if best else None,
        cider=best.get("cider") if best else None,
        recall_5=best["recall_5"] if best else None,
        seconds=sum(row["seconds"] for row in history),
        reason=why_failed(one.error) if one.error else "",
    )


def _searched(config: Config, proposal: dict[str, Any]) -> dict[str, Any]:
    """The proposed configuration keys, without the number and Optuna's questions about ``or``."""
    return {key: proposal[key] for key in config.tune.space if key in proposal}
