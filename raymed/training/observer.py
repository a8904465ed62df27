"""What training tells the one who watches it, and is told by them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

Row = dict[str, float]
"""The metrics of one epoch."""


def goodness(row: Row) -> tuple[float, float]:
    """By what epochs of a run are compared, the greatest being the best.

    The validation score; of equal scores, the lower training loss: where the score cannot tell
    epochs apart (CIDEr is 0 on a validation split of one study), the first need not be the best.
    """
    return row["score"], -row["loss"]


def best_epoch(rows: Sequence[Row]) -> int:
    """The number, from 1, of the best epoch so far; the earliest one if several are equal."""
    return max(range(len(rows)), key=lambda index: goodness(rows[index])) + 1


def best_so_far(rows: Sequence[Row]) -> Row:
    """The metrics of the best epoch so far."""
    return rows[best_epoch(rows) - 1]


FEATURES = "computing the frozen encoder's features"
"""What is done before the first epoch where the encoder is frozen."""


@dataclass(frozen=True)
class Status:
    """How far a run is.

    Attributes:
        epoch: that is being trained or validated, from 1; 0 before the first one.
        done: steps of the epoch that are done, or as much of what is done meanwhile.
        total: of how many.
        loss: of the last step.
        workers: that train.
        doing: what is done meanwhile; empty: training.
    """

    epoch: int
    done: int
    total: int
    loss: float = 0.0
    workers: int = 1
    doing: str = ""


class Observer(Protocol):
    """Who watches a run. Each worker has one; but for `epoch`, only the first one's is told."""

    def progress(self, status: Status) -> None:
        """How far it is; called at every step, so it must cost next to nothing."""

    def epoch(self, row: Row) -> None:
        """An epoch is over; called on every worker with the same row. May raise, to end the run."""

    def warn(self, text: str) -> None:
        """Something went wrong, and training goes on. May be called from another thread."""

    def ending(self) -> bool:
        """Whether the run is to write a checkpoint and end; asked of every worker at every step."""
