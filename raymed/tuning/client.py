"""What runs in a Tune trial: a thin client that submits a job and passes on what comes back.

It loads neither torch nor the data, so starting one costs little.
"""

from collections.abc import Mapping
from typing import Any

import ray
from ray import tune
from ray.actor import ActorHandle
from ray.exceptions import RayActorError

from raymed.launch.queue import Job
from raymed.storage import AnyPath, as_path
from raymed.training.checkpoint_paths import best_checkpoint_path
from raymed.training.observer import Row
from raymed.tuning.trial import Outcome, Proposal


def run_trial(
    config: dict[str, Any], queue: ActorHandle, trials: AnyPath, objectives: Mapping[str, str]
) -> None:
    """Have a proposal trained, and report each epoch to Tune.

    Args:
        config: Settings of the Tune trial, which hold the proposal.
        queue: The `raymed.launch.queue.JobQueue`.
        trials: The folder that holds one folder per trial.
        objectives: ``max`` or ``min`` by metric.
    """
    proposal = Proposal.from_config(config)
    job = Job(proposal.number, str(trials / proposal.name), proposal.values)
    rows: list[Row] = []
    try:
        decided = max(proposal.decided, ray.get(queue.submit.remote(job)))
        while True:
            row, failure = ray.get(queue.next_row.remote(job.number, len(rows)))
            if row is None:
                break
            rows.append(row)
            if len(rows) > decided:
                path = best_checkpoint_path(as_path(job.folder), rows)
                tune.report(Outcome.of(rows).to_result(objectives, str(path)))
        final = Outcome.of(rows, failure=failure)
    except RayActorError:
        final = Outcome.of(rows, queue_lost=True)
    if not final.is_score:
        tune.report(final.to_result(objectives))
