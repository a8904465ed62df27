"""Whoever watches a run: what training reports to it, and what it asks of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from raymed.sections import TrainingConfig

Row = dict[str, float]
"""The metrics of one epoch."""


def goodness(row: Row) -> tuple[float, float]:
    """The key by which a run's epochs are compared; the greatest is the best.

    The validation score and, where scores are equal, the lower training loss: where the score
    cannot distinguish epochs (CIDEr is 0 on a validation split of one study), the first epoch need
    not be the best.
    """
    return row["score"], -row["loss"]


def best_epoch(rows: Sequence[Row]) -> int:
    """The number, from 1, of the best epoch so far; the earliest one if several are equal."""
    return max(range(len(rows)), key=lambda index: goodness(rows[index])) + 1


def best_so_far(rows: Sequence[Row]) -> Row:
    """The metrics of the best epoch so far."""
    return rows[best_epoch(rows) - 1]


def epochs_since_best(rows: Sequence[Row]) -> int:
    """How many epochs the last one is after the best one so far."""
    return int(rows[-1]["epoch"] - best_so_far(rows)["epoch"])


def is_finished(rows: Sequence[Row], training: TrainingConfig) -> bool:
    """Whether a run has trained all its epochs, or so many as its patience allows.

    Args:
        rows: The metrics of the run's epochs; those of the best and the last one suffice.
        training: The training section of its configuration.
    """
    if not rows or rows[-1]["epoch"] >= training.epochs:
        return bool(rows)
    return training.patience is not None and epochs_since_best(rows) >= training.patience


FEATURES = "computing the frozen encoder's features"
"""`Status.doing` before the first epoch of a run with a frozen encoder."""


@dataclass(frozen=True)
class Status:
    """The progress of a run.

    Attributes:
        epoch: The epoch being trained or validated, from 1; 0 before the first.
        done: Steps of the epoch that are done, or units of the other work that ``doing`` names.
        total: How many there are.
        loss: The last step's loss.
        workers: The number of data-parallel workers.
        doing: What is done other than training; empty while it trains.
    """

    epoch: int
    done: int
    total: int
    loss: float = 0.0
    workers: int = 1
    doing: str = ""


class Observer(Protocol):
    """Watches a run. Each worker calls its own; the first worker's speaks for the run."""

    def progress(self, status: Status) -> None:
        """Report progress. Called at every step, so it must cost next to nothing."""

    def epoch(self, row: Row) -> None:
        """Report a finished epoch, on every worker with the same row. May raise to end the run."""

    def warn(self, text: str) -> None:
        """Report a problem that does not stop training. May be called from another thread."""

    def ending(self) -> bool:
        """Whether the run is to save a checkpoint and stop. Called on every worker, every step."""
