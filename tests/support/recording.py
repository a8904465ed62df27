"""An observer of a run that keeps what it is told, for tests that train in their own process."""

from collections.abc import Callable
from dataclasses import dataclass, field

from raymed.training.observer import FEATURES, Row, Status


@dataclass
class Recorder:
    """What a run said.

    Attributes:
        at_epoch: called with each epoch's row, after it was kept; may raise.
        at_step: called at every step with how far the run is; True: the run is to end.
        rows: of the epochs.
        warnings: in words.
        statuses: of every step, and of a frozen encoder's features.
        works: of what else was done.
    """

    at_epoch: Callable[[Row], None] = lambda _: None
    at_step: Callable[[Status], bool] = lambda _: False
    rows: list[Row] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    statuses: list[Status] = field(default_factory=list)
    works: list[Status] = field(default_factory=list)
    ends: bool = False

    def progress(self, status: Status) -> None:
        if status.doing not in ("", FEATURES):
            self.works.append(status)
            return
        self.statuses.append(status)
        self.ends = self.ends or self.at_step(status)

    def epoch(self, row: Row) -> None:
        self.rows.append(row)
        self.at_epoch(row)

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def ending(self) -> bool:
        return self.ends
