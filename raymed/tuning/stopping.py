"""Stopping bad trials early: Tune's schedulers, and replaying to them what an earlier start saw."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from raymed.config import Config
from raymed.training.observer import Row
from raymed.tuning.study import objectives
from raymed.tuning.trial import EPOCH, OBJECTIVE, Outcome


def build_scheduler(config: Config) -> TrialScheduler:
    """The scheduler that decides after each epoch of a trial whether it trains another one."""
    mode = next(iter(objectives(config.tune).values()))
    grace = min(config.tune.grace_epochs, config.training.epochs)
    common = {"time_attr": EPOCH, "metric": OBJECTIVE, "mode": mode, "grace_period": grace}
    if config.tune.stopping == "asha":
        return ASHAScheduler(
            max_t=config.training.epochs, reduction_factor=config.tune.reduction_factor, **common
        )
    return MedianStoppingRule(**common) if config.tune.stopping == "median" else FIFOScheduler()


def replay(
    scheduler: TrialScheduler,
    trial_id: str,
    rows: Sequence[Row],
    objectives: Mapping[str, str],
) -> None:
    """Show a scheduler the epochs of a trial that were decided on in an earlier start.

    Args:
        scheduler: From `build_scheduler`.
        trial_id: Tune's id of a resumed trial; any other text for a finished one.
        rows: Metrics of the epochs.
        objectives: ``max`` or ``min`` by metric.
    """
    trial: Any = _FinishedTrial(trial_id)
    controller: Any = _IdleController()
    scheduler.on_trial_add(controller, trial)
    stopped = False
    for count in range(1, len(rows) + 1):
        result = Outcome.of(rows[:count]).to_result(objectives)
        if stopped and isinstance(scheduler, MedianStoppingRule):
            # It refuses results of a trial that it would stop now that it sees them all at once.
            scheduler.on_trial_complete(controller, trial, result)
        else:
            stopped |= scheduler.on_trial_result(controller, trial, result) == TrialScheduler.STOP


@dataclass(frozen=True)
class _FinishedTrial:
    """What a scheduler needs of a trial."""

    trial_id: str


class _IdleController:
    """What a scheduler needs of Tune's controller."""

    def get_live_trials(self) -> list[Any]:
        return []
