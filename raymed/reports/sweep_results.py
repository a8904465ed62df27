"""What a sweep's page and plots are drawn from: plain values, without Optuna or Ray."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from raymed.config import Config
from raymed.reports.confirmation import Confirmation
from raymed.training.checkpoint import Checkpoint
from raymed.training.observer import Row

STATES = ("completed", "stopped", "failed", "unfinished")
"""The states of a trial, in the order in which they are counted on the page."""


@dataclass(frozen=True)
class TrialResult:
    """One trial, as the study and the trial's own metrics record it.

    Attributes:
        number: Optuna's number of the trial.
        trial: The trial's name, which is also the name of its folder below ``trials/``.
        values: The searched keys and the values tried.
        state: ``completed``, ``stopped`` early, ``failed``, or ``unfinished``.
        evaluated: Whether the study holds the trial's final objectives: those of completed trials,
            and with several objectives also of trials stopped early.
        epochs: Number of reported epochs.
        best: Metrics of the epoch with the highest validation score; empty if there is none.
        objectives: The objectives at that epoch; the first one ranks the trials. Empty if unknown.
        pareto: Whether no other evaluated trial is better in one objective and at least as good in
            all others.
        seconds: Time spent on training and validation.
        reason: Why the trial failed; empty unless it did.
    """

    number: int
    trial: str
    values: Mapping[str, Any]
    state: str
    evaluated: bool
    epochs: int
    best: Row
    objectives: tuple[float, ...]
    pareto: bool
    seconds: float
    reason: str = ""

    @property
    def score(self) -> float | None:
        """The highest validation score; None if no epoch was reported."""
        return self.best.get("score")


@dataclass(frozen=True)
class Importances:
    """How much each searched key decides whether a trial is among the best.

    Attributes:
        shares: Share of the importance by key, in descending order; they sum to 1.
        best: Number of trials that count as the best.
        trials: Number of trials compared.
    """

    shares: Mapping[str, float]
    best: int
    trials: int


@dataclass(frozen=True)
class SweepResults:
    """The contents of a sweep's folder.

    Attributes:
        config: The configuration that the sweep was started with.
        objectives: ``max`` or ``min`` by metric; the first metric ranks the trials.
        trials: The started trials, best first.
        trials_wanted: Number of trials that the sweep is to have.
        last_change: When a trial last started or ended.
        histories: Rows of metrics by trial, best trial first.
        checkpoints: The best checkpoint of each trial that has one, best trial first.
        unreadable: Which checkpoints could not be opened, and why; empty if none.
        importances: Importances of the searched keys, or why there are none.
        confirmation: What the confirmation found, or why there is none.
    """

    config: Config
    objectives: Mapping[str, str]
    trials: Sequence[TrialResult]
    trials_wanted: int
    last_change: datetime
    histories: Mapping[str, Sequence[Row]]
    checkpoints: Mapping[str, Checkpoint]
    unreadable: str
    importances: Importances | str
    confirmation: Confirmation | str

    @property
    def best(self) -> str | None:
        """The first trial of the leaderboard, if any trial has reported a score."""
        return self.trials[0].trial if self.trials[0].best else None
