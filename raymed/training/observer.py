"""What training tells the one who watches it, and is told by them."""

from dataclasses import dataclass
from typing import Protocol

Row = dict[str, float]
"""The metrics of one epoch."""


@dataclass(frozen=True)
class Status:
    """How far a run is.

    Attributes:
        epoch: that is being trained, from 1; 0 while a frozen encoder's features are computed.
        done: steps of the epoch that are done, or images whose features are known.
        total: of how many.
        loss: of the last step.
        workers: that train.
    """

    epoch: int
    done: int
    total: int
    loss: float = 0.0
    workers: int = 1


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
