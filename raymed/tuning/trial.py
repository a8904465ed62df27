"""A Tune trial: a thin client that submits a job and passes on what comes back.

It loads neither torch nor the data, so starting one costs little.
"""

from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.actor import ActorHandle
from ray.exceptions import RayTaskError

from raymed.launch.queue import Job

TRIALS = "trials"
"""The folder of a sweep's trials, below its own."""
NUMBER = "trial"
"""Key under which a proposal carries Optuna's number of the trial, beside the searched keys."""


class TrialFailed(Exception):
    """The trial's training failed; the message says why."""


def run_trial(proposal: dict[str, Any], queue: ActorHandle, trials: Path, keys: list[str]) -> None:
    """Have one proposal trained, reporting each epoch to Tune.

    Args:
        proposal: what Optuna proposes.
        queue: a `raymed.launch.queue.JobQueue`.
        trials: the folder that takes a folder for each trial.
        keys: the searched keys; the rest of a proposal is Optuna's own bookkeeping.

    Raises:
        TrialFailed: in the words of the worker that could not go on.
    """
    number = proposal[NUMBER]
    values = {key: proposal[key] for key in keys}
    ray.get(queue.submit.remote(Job(number, str(trials / trial_name(number)), values)))
    known = 0
    while True:
        row, failure = ray.get(queue.next_row.remote(number, known))
        if row is None:
            break
        known += 1
        tune.report(row)
    if failure:
        raise TrialFailed(failure)


def trial_name(number: int) -> str:
    """The name of a trial and of its folder, by Optuna's number: ``trial-004``."""
    return f"trial-{number:03d}"


def why_failed(error: Exception) -> str:
    """The words of a trial's failure, out of Ray's account of where it was raised."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    return " ".join(str(cause).split()) or type(cause).__name__
