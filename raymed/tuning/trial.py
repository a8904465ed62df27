"""A Tune trial: a thin client that submits a job and passes on what comes back.

It loads neither torch nor the data, so starting one costs little.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ray
from ray import tune
from ray.actor import ActorHandle
from ray.exceptions import RayActorError

from raymed.launch.queue import Job
from raymed.storage import AnyPath
from raymed.training.observer import Row, goodness

NUMBER = "trial"
"""Key under which a proposal carries Optuna's number of the trial, beside the searched keys."""
DECIDED = "decided"
"""Key for how many epochs were decided on in an earlier start of the sweep."""
FAILURE = "failure"
"""Key of a trial's last report if its training failed: why."""
LOST = "lost"
"""Key of its last report if the queue is no more, and the trial is to be taken up again."""


def run_trial(
    proposal: dict[str, Any],
    queue: ActorHandle,
    trials: AnyPath,
    objectives: Mapping[str, str],
) -> None:
    """Have one proposal trained, reporting each epoch to Tune.

    Args:
        proposal: what Optuna proposes, with the trial's number and the epochs decided on.
        queue: a `raymed.launch.queue.JobQueue`.
        trials: the folder that takes a folder for each trial.
        objectives: metrics of an epoch, each with ``max`` or ``min``.
    """
    number = proposal[NUMBER]
    values = {key: value for key, value in proposal.items() if key not in (NUMBER, DECIDED)}
    job = Job(number, str(trials / trial_name(number)), values)
    rows: list[Row] = []
    ending: dict[str, Any] = {}
    try:
        decided = max(proposal[DECIDED], ray.get(queue.submit.remote(job)))
        while True:
            row, failure = ray.get(queue.next_row.remote(number, len(rows)))
            if row is None:
                break
            rows.append(row)
            if len(rows) > decided:
                tune.report(with_best(rows, objectives))
        if failure:
            ending = {FAILURE: failure}
    except RayActorError:
        ending = {LOST: True}
    if ending:
        last = with_best(rows, objectives) if rows else _nothing(objectives)
        tune.report({**last, **ending})


def with_best(rows: Sequence[Row], objectives: Iterable[str]) -> dict[str, Any]:
    """The last epoch's metrics, and each objective at the best epoch so far."""
    best = max(rows, key=goodness)
    return {**rows[-1], **{at_best(name): best[name] for name in objectives}}


def at_best(objective: str) -> str:
    """The key of an objective at the best epoch so far."""
    return f"{objective}_at_best"


def _nothing(objectives: Mapping[str, str]) -> dict[str, Any]:
    worst = {"max": -math.inf, "min": math.inf}
    return {"epoch": 0, **{at_best(name): worst[mode] for name, mode in objectives.items()}}


def trial_name(number: int) -> str:
    """The name of a trial and of its folder, by Optuna's number: ``trial-004``."""
    return f"trial-{number:03d}"
