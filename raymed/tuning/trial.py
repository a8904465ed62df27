"""A trial's proposal and its outcome, and how they travel through Ray Tune.

Tune wants a dictionary for a trial's settings and another for each of its results. The types here
convert themselves; all other code handles the types only. The dictionaries hold plain values, which
Ray's own callbacks can log.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from ray.tune.result import TRAINING_ITERATION

from raymed.sections import TrainingConfig
from raymed.training.checkpoint_paths import CHECKPOINT_PATH
from raymed.training.observer import Row, best_so_far, is_finished
from raymed.tuning.space import Values

EPOCH = "epoch"
OBJECTIVE = "objective"
"""Keys of a result that Tune's schedulers and its search algorithm read."""
TRIAL, DECIDED = "trial", "decided"
"""Keys of a Tune trial's settings beside the searched ones, which contain a dot."""


def trial_name(number: int) -> str:
    """Name of a trial and of its folder, from Optuna's number of it: ``trial-004``."""
    return f"trial-{number:03d}"


@dataclass(frozen=True)
class Proposal:
    """What the study proposes for a trial.

    Attributes:
        number: Optuna's number of the trial.
        values: Dotted keys of the configuration and the values to try.
        decided: Number of epochs after which an earlier start of the sweep had decided whether to
            train the next one; 0 for a new trial.
    """

    number: int
    values: Values
    decided: int = 0

    @property
    def name(self) -> str:
        """The trial's name."""
        return trial_name(self.number)

    def to_config(self) -> dict[str, Any]:
        """The settings of a Tune trial."""
        return {**self.values, TRIAL: self.number, DECIDED: self.decided}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """The proposal in a Tune trial's settings."""
        values = {key: value for key, value in config.items() if key not in (TRIAL, DECIDED)}
        return cls(config[TRIAL], values, config[DECIDED])


@dataclass(frozen=True)
class Outcome:
    """What has come of a trial so far; reported to Tune after each epoch.

    Attributes:
        last: Metrics of the last epoch; empty before the first.
        best: Metrics of the best epoch so far; empty before the first.
        failure: Why training failed; empty unless it did.
        queue_lost: Whether the queue has died, so that the trial is to be resumed later.
    """

    last: Row
    best: Row
    failure: str = ""
    queue_lost: bool = False

    @classmethod
    def of(cls, rows: Sequence[Row], failure: str = "", queue_lost: bool = False) -> Self:
        """The outcome of the epochs trained so far."""
        if not rows:
            return cls({}, {}, failure, queue_lost)
        return cls(rows[-1], best_so_far(rows), failure, queue_lost)

    @property
    def epoch(self) -> int:
        """Number of the last epoch; 0 before the first."""
        return int(self.last.get("epoch", 0))

    def is_finished(self, training: TrainingConfig) -> bool:
        """Whether the trial trained to its end, rather than being stopped before."""
        return bool(self.last) and is_finished([self.best, self.last], training)

    @property
    def is_score(self) -> bool:
        """Whether this reports an epoch's metrics, and neither a failure nor a lost queue."""
        return not self.failure and not self.queue_lost

    def to_result(self, objectives: Mapping[str, str], checkpoint_path: str = "") -> dict[str, Any]:
        """A Tune result.

        Args:
            objectives: ``max`` or ``min`` by metric; Tune compares trials by the first one.
            checkpoint_path: The checkpoint of the best epoch so far; empty if there is none.
        """
        metric, mode = next(iter(objectives.items()))
        # Before the first epoch: Tune refuses a result without its metric.
        worst = -math.inf if mode == "max" else math.inf
        result = {
            **self.last,
            EPOCH: self.epoch,
            OBJECTIVE: self.best.get(metric, worst),
            # Of a resumed trial, Tune by itself would count the epochs of this start only.
            TRAINING_ITERATION: self.epoch,
            # Tune hands nested dictionaries to its search algorithm in this flat form.
            **{f"last/{key}": value for key, value in self.last.items()},
            **{f"best/{key}": value for key, value in self.best.items()},
            "failure": self.failure,
            "queue_lost": self.queue_lost,
        }
        return result | ({CHECKPOINT_PATH: checkpoint_path} if checkpoint_path else {})

    @classmethod
    def from_result(cls, result: Mapping[str, Any]) -> Self:
        """The outcome in a Tune result."""
        last, best = (
            {key.removeprefix(kind): value for key, value in result.items() if key.startswith(kind)}
            for kind in ("last/", "best/")
        )
        return cls(last, best, result["failure"], result["queue_lost"])
