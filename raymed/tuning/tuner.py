"""Running Ray Tune over a sweep's trials: how it is set up, and kept quiet."""

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import optuna
from ray import tune
from ray.actor import ActorHandle
from ray.util import get_node_ip_address

from raymed.config import Config
from raymed.errors import UsageError
from raymed.run_folder import TRIALS, SweepFolder
from raymed.storage import AnyPath
from raymed.training.observer import Row
from raymed.tuning.client import run_trial
from raymed.tuning.progress import SweepProgress
from raymed.tuning.search import StudySearch
from raymed.tuning.stopping import build_scheduler, replay
from raymed.tuning.study import objectives, started_trials, trials_left
from raymed.tuning.trial import Proposal, trial_name

MAX_FAILURES = 3
"""How often Tune starts the client of one trial again."""
DISK_FULL = 2**20
"""Free bytes below which a disk counts as full."""
NOISY_LOGGERS = (
    "ray.tune.tune",
    "ray.tune.execution.experiment_state",
    "ray.tune.analysis.experiment_analysis",
    "ray.train._internal.syncer",
)


def run_tuner(
    study: optuna.Study,
    config: Config,
    folder: AnyPath,
    groups: int,
    queue: ActorHandle,
    progress: SweepProgress,
    callbacks: Sequence[tune.Callback],
) -> tune.ResultGrid:
    """Run the trials that are left, until all have ended or the queue is lost.

    Args:
        study: The sweep's study.
        config: The sweep's configuration.
        folder: The sweep's folder.
        groups: Number of worker groups, and so of trials at a time.
        queue: The queue that the worker groups take jobs from.
        progress: Shows the trials' progress.
        callbacks: More callbacks for Tune.

    Returns:
        Tune's results of these trials. The folder of its own files, which they name, is gone.

    Raises:
        UsageError: The disk that holds Tune's own state is full.
    """
    with tempfile.TemporaryDirectory(prefix="raymed-", ignore_cleanup_errors=True) as state:
        tuner = tune.Tuner(
            _trainable(config, folder, queue),
            tune_config=_tune_config(study, config, folder, groups),
            run_config=tune.RunConfig(
                name=config.run.name,
                storage_path=state,
                verbose=0,
                callbacks=[progress, *callbacks],
                stop=_StopWhenLost(progress),
                failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
            ),
        )
        try:
            return tuner.fit()
        except Exception as error:
            # Tune meets a full disk in many places, each of which fails in its own way.
            if shutil.disk_usage(state).free < DISK_FULL:
                raise UsageError(
                    f"{state}: no space left on the disk; free some space and run the same "
                    "command again: the trials resume from their last checkpoints"
                ) from error
            raise


def silence_tune() -> None:
    """Keep Tune's own output from mixing with ours."""
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    # We do not read Tune's own record of the sweep, so its errors about that are of no interest.
    os.environ["TUNE_PRINT_ALL_TRIAL_ERRORS"] = "0"
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    for name in NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _trainable(config: Config, folder: AnyPath, queue: ActorHandle) -> Callable[..., None]:
    client = partial(
        run_trial, queue=queue, trials=folder / TRIALS, objectives=objectives(config.tune)
    )
    # A trial only waits: a CPU reserved for it would be missing to the workers. Ray requires some
    # reservation, so it is a little memory, on this node, where Tune's state is.
    resources = {"memory": 2**20, f"node:{get_node_ip_address()}": 0.001}
    trainable: Callable[..., None] = tune.with_resources(client, resources)
    return trainable


def _tune_config(
    study: optuna.Study, config: Config, folder: AnyPath, groups: int
) -> tune.TuneConfig:
    """What to search and when to stop; both know the epochs trained in earlier starts."""
    scheduler = build_scheduler(config)

    def history(number: int) -> list[Row]:
        return SweepFolder(folder).trial(trial_name(number)).history()

    wanted = objectives(config.tune)
    for trial in started_trials(study):
        if trial.state.is_finished() and (rows := history(trial.number)):
            replay(scheduler, trial_name(trial.number), rows, wanted)
    return tune.TuneConfig(
        search_alg=StudySearch(
            study,
            config.tune,
            config.training,
            history=history,
            replay=partial(replay, scheduler, objectives=wanted),
        ),
        scheduler=scheduler,
        num_samples=trials_left(study, config.tune),
        max_concurrent_trials=groups,
        reuse_actors=True,
        trial_name_creator=lambda trial: Proposal.from_config(trial.config).name,
        trial_dirname_creator=lambda trial: Proposal.from_config(trial.config).name,
    )


class _StopWhenLost(tune.Stopper):
    """Stops all trials once one of them has found that the queue has died."""

    def __init__(self, progress: SweepProgress) -> None:
        self.progress = progress

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:  # noqa: ARG002
        return False

    def stop_all(self) -> bool:
        return self.progress.queue_lost
