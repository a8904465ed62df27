"""The sweep: Optuna proposes, Ray Train worker groups train, bad trials are stopped early.

What is to be known of a sweep lies in its folder: the study, and each trial's checkpoints. So the
same command takes it up again, whatever was killed.
"""

import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import optuna
from ray import tune
from ray.actor import ActorHandle
from ray.util import get_node_ip_address
from rich.console import Console

from raymed.absolute_paths import with_absolute_paths
from raymed.config import NO_SWEEP, Config
from raymed.data.dataset import PreparedDataset
from raymed.errors import UsageError
from raymed.evaluation import Baseline, baseline_scores
from raymed.launch.cluster import connected
from raymed.launch.groups import worker_groups
from raymed.launch.parallel_runs import require_worker_groups
from raymed.launch.trainer import check_room
from raymed.run_folder import TRIALS, SweepFolder
from raymed.sections import TAGS_ONLY
from raymed.storage import AnyPath, user_output
from raymed.training.observer import Row
from raymed.training.setup import check
from raymed.tuning.leaderboard import (
    LEADERBOARD_FILE,
    TrialResult,
    leaderboard_table,
    ranked_trials,
    write_leaderboard,
)
from raymed.tuning.progress import SweepProgress
from raymed.tuning.search import StudySearch
from raymed.tuning.space import size
from raymed.tuning.stopping import build_scheduler, remind
from raymed.tuning.study import (
    REPEATED,
    asked,
    begun,
    claim_study,
    objectives,
    refuse_anothers,
)
from raymed.tuning.trial import NUMBER, run_trial, trial_name

BEST_FILE = "best.yaml"
RESTARTS = 3
"""How often a sweep goes on by itself, at most, when its queue dies."""
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

    folder: AnyPath
    results: list[TrialResult]
    baselines: dict[str, Baseline]

    @property
    def leaderboard(self) -> AnyPath:
        return self.folder / LEADERBOARD_FILE

    @property
    def best_config(self) -> AnyPath:
        """The best trial's configuration, as `raymed train` takes it."""
        return self.folder / BEST_FILE

    @property
    def best(self) -> AnyPath:
        """The folder of the best trial's run."""
        return SweepFolder(self.folder).trial(self.results[0].trial).path


def run_sweep(config: Config, console: Console) -> Sweep:
    """Run a sweep, or take it up; write leaderboard.parquet and best.yaml to its folder.

    Raises:
        UsageError: the space is empty, the folder is another sweep's or in use, a trial would not
            fit the cluster or the dataset, or no trial has reported a score.
    """
    config = with_absolute_paths(config)
    dataset = check_sweep(config)
    sweep = SweepFolder.of(config)
    folder = sweep.path
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sweep.refuse_changed(config)
    refuse_anothers(config, folder)
    with sweep.open(config):
        study = claim_study(config, folder, dataset, partial(_say, console))
        _say_what_is_done(study, config, console)
        baselines = baseline_scores(dataset, "val", config.data.validation_images)
        if _left(study, config):
            _quiet()
            with connected(config.launch.address):
                _run_trials(study, config, folder, console)
        results = ranked_trials(study, config, folder)
        if not results or results[0].score is None:
            reason = f"; the first {results[0].reason}" if results else ""
            raise UsageError(f"{folder}: no trial has reported a score{reason}")
        write_leaderboard(folder / LEADERBOARD_FILE, results, config)
        best = config.override({**results[0].values, "run.name": f"{config.run.name}-best"})
        with user_output(folder / BEST_FILE) as partial_file:
            partial_file.write_text(best.override(NO_SWEEP).to_yaml(), encoding="utf-8")
    repeats = sum(REPEATED in trial.user_attrs for trial in asked(study))
    if repeats:
        _say(
            console,
            f"{repeats} proposals had the values of an earlier trial and were not trained again",
        )
    left = _left(study, config)
    if left:
        _say(
            console,
            f"interrupted: {left} of {_wanted(config)} trials left; the same command goes on",
        )
    console.print(leaderboard_table(results, baselines))
    return Sweep(folder, results, baselines)


def check_sweep(config: Config) -> PreparedDataset:
    """See that there is something to search, and that every proposal will fit the dataset.

    Raises:
        UsageError: naming the key.
    """
    if not config.tune.space:
        raise UsageError(
            "tune.space: is empty; name a key to search, such as "
            "`tune.space.loss.tag={log_uniform: [0.1, 10]}`"
        )
    require_worker_groups(config, "sweep")
    _check_objectives(config)
    dataset = check(config)
    dimension = config.tune.space.get("model.top_tags")
    if dimension is not None:
        check(config.override({"model.top_tags": max(dimension.extremes())}))
    return dataset


def _check_objectives(config: Config) -> None:
    """See that every trial has each objective, and that they mean the same in all of them."""
    dimension = config.tune.space.get("model.system")
    searched = [*dimension.extremes()] if dimension else []
    if dimension is None or dimension.when:
        searched.append(config.model.system)
    tags_only = [system for system in searched if system in TAGS_ONLY]
    key = f"{'tune.space: ' if dimension else ''}model.system"
    wanted = objectives(config.tune)
    if "cider" in wanted and tags_only:
        raise UsageError(
            f"tune.objectives: cider: {tags_only[0]} ({key}) writes no report and has no CIDEr; "
            "give other systems, or tune.objectives={recall_5: max}"
        )
    if "score" in wanted and 0 < len(tags_only) < len(searched):
        other = next(system for system in searched if system not in TAGS_ONLY)
        raise UsageError(
            f"{key}: the score of {tags_only[0]} is the tag recall@5 and that of {other} the "
            "CIDEr, which cannot be compared; search systems of one kind, or set "
            "tune.objectives={recall_5: max}"
        )


def _say_what_is_done(study: optuna.Study, config: Config, console: Console) -> None:
    trials, wanted = begun(study), _wanted(config)
    if wanted < config.tune.trials:
        _say(
            console,
            f"tune.space has {wanted} different points, so there are {wanted} trials, "
            f"not {config.tune.trials}",
        )
    if trials:
        running = sum(not trial.state.is_finished() for trial in trials)
        done = len(trials) - running
        taken_up = min(running, _left(study, config))
        _say(
            console,
            (f"{done} of {wanted}" if done <= wanted else f"{done}")
            + " trials are done already"
            + (f", {taken_up} go on from their last checkpoint" if taken_up else "")
            + (f"; tune.trials is {wanted}, so there is none to add" if done > wanted else ""),
        )


def _wanted(config: Config) -> int:
    """How many trials there can be: no two have the same values."""
    return size(config.tune.space, config.tune.trials)


def _left(study: optuna.Study, config: Config) -> int:
    """Trials that are not at their end, those not yet proposed included."""
    done = sum(trial.state.is_finished() for trial in begun(study))
    return max(_wanted(config) - done, 0)


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _run_trials(study: optuna.Study, config: Config, folder: AnyPath, console: Console) -> None:
    room = check_room(config, config.tune.groups or 1)
    for _ in range(RESTARTS):
        left = _left(study, config)
        groups = min(room, config.tune.groups or room, left)
        console.print(
            f"{left} trials over {', '.join(config.tune.space)}; worker groups: {groups}, of "
            f"{config.launch.workers} worker(s) each",
            highlight=False,
        )
        done = ranked_trials(study, config, folder)
        with (
            worker_groups(config, groups, jobs=left) as queue,
            SweepProgress(config, console, queue, done) as progress,
            tempfile.TemporaryDirectory(prefix="raymed-", ignore_cleanup_errors=True) as state,
        ):
            _fit(_tuner(study, config, folder, state, groups, queue, progress, done), state)
        if not progress.lost:
            return
        console.print("the queue of trials died; going on from their last checkpoints")
    raise UsageError(
        f"{folder}: the queue of trials died {RESTARTS} times, perhaps for want of memory; the "
        "same command goes on from their last checkpoints"
    )


def _fit(tuner: tune.Tuner, state: str) -> None:
    try:
        tuner.fit()
    except Exception as error:
        # Tune meets a full disk in many places, and each fails in a way of its own.
        if shutil.disk_usage(state).free < ROOM_TO_WRITE:
            raise UsageError(
                f"{state}: no space left on the disk; make room, and give the same command "
                "again: the trials go on from their last checkpoints"
            ) from error
        raise


def _quiet() -> None:
    """What Tune says of itself would stand between our own lines."""
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    # Tune's own record of the sweep, which it may complain about, is not what we read.
    os.environ["TUNE_PRINT_ALL_TRIAL_ERRORS"] = "0"
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _tuner(
    study: optuna.Study,
    config: Config,
    folder: AnyPath,
    state: str,
    groups: int,
    queue: ActorHandle,
    progress: SweepProgress,
    done: Sequence[TrialResult],
) -> tune.Tuner:
    names = list(objectives(config.tune))
    scheduler = build_scheduler(config)

    def history(trial: str) -> list[Row]:
        return SweepFolder(folder).trial(trial).history()

    for one in done:
        if one.state != "unfinished" and one.epochs:
            remind(scheduler, one.trial, history(one.trial), names)
    search = StudySearch(
        study,
        config.tune,
        config.training.epochs,
        history=lambda number: history(trial_name(number)),
        remind=partial(remind, scheduler, names=names),
    )
    trial = partial(
        run_trial, queue=queue, trials=folder / TRIALS, objectives=objectives(config.tune)
    )
    return tune.Tuner(
        # A trial only waits: a processor reserved for it would be one that the workers lack. Ray
        # wants something reserved, so it is a little memory; of this node, where Tune's state is.
        tune.with_resources(trial, {"memory": 2**20, f"node:{get_node_ip_address()}": 0.001}),
        tune_config=tune.TuneConfig(
            search_alg=search,
            scheduler=scheduler,
            num_samples=_left(study, config),
            max_concurrent_trials=groups,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial_name(trial.config[NUMBER]),
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=state,
            verbose=0,
            callbacks=[progress],
            stop=_WhenLost(progress),
            failure_config=tune.FailureConfig(max_failures=RESTARTS),
        ),
    )


class _WhenLost(tune.Stopper):
    """Ends all trials once one has found that the queue is no more."""

    def __init__(self, progress: SweepProgress) -> None:
        self.progress = progress

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:  # noqa: ARG002
        return False

    def stop_all(self) -> bool:
        return self.progress.lost
