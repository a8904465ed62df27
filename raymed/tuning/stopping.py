"""Stopping bad trials early: Tune's schedulers, and what they are told of an earlier start."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from raymed.config import Config
from raymed.training.observer import Row
from raymed.tuning.study import objectives
from raymed.tuning.trial import at_best, with_best


def build_scheduler(config: Config) -> TrialScheduler:
    """Who decides, after each epoch of a trial, whether it trains another one."""
    name, mode = next(iter(objectives(config.tune).items()))
    grace = min(config.tune.grace_epochs, config.training.epochs)
    common = {"time_attr": "epoch", "metric": at_best(name), "mode": mode, "grace_period": grace}
    if config.tune.stopping == "asha":
        return ASHAScheduler(
            max_t=config.training.epochs, reduction_factor=config.tune.reduction_factor, **common
        )
    return MedianStoppingRule(**common) if config.tune.stopping == "median" else FIFOScheduler()


def replay(
    scheduler: TrialScheduler, trial_id: str, rows: Sequence[Row], names: Iterable[str]
) -> None:
    """Tell a scheduler of the epochs of a trial that were decided on in an earlier start.

    Args:
        scheduler: of `build_scheduler`.
        trial_id: Tune's, where the trial goes on; else any of its own.
        rows: of the epochs.
        names: of the objectives.
    """
    trial: Any = _Earlier(trial_id)
    controller: Any = _NothingLive()
    scheduler.on_trial_add(controller, trial)
    stopped = False
    for count in range(1, len(rows) + 1):
        result = with_best(rows[:count], names)
        if stopped and isinstance(scheduler, MedianStoppingRule):
            # It refuses results of a trial that it would stop now, told of all at once.
            scheduler.on_trial_complete(controller, trial, result)
        else:
            stopped |= scheduler.on_trial_result(controller, trial, result) == TrialScheduler.STOP


@dataclass(frozen=True)
class _Earlier:
    """What a scheduler needs of a trial."""

    trial_id: str


class _NothingLive:
    """What a scheduler needs of Tune's controller."""

    def get_live_trials(self) -> list[Any]:
        return []
