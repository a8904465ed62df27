"""What training returns."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from raymed.metrics.table import ranked_score
from raymed.run_folder import RunFolder
from raymed.storage import AnyPath
from raymed.training.checkpoint import Checkpoint
from raymed.training.observer import Row

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class TrainedRun:
    """A trained run, which `raymed.load` and `raymed.evaluate` take like the path of its folder.

    Attributes:
        folder: The run's folder.
        best: The checkpoint of the best epoch by validation score.
    """

    folder: AnyPath
    best: Checkpoint

    @classmethod
    def of(cls, best: Checkpoint) -> "TrainedRun":
        """The run whose best checkpoint this is."""
        return cls(best.path.parent.parent, best)

    @property
    def score(self) -> str:
        """The best epoch's validation score, for people."""
        return ranked_score(self.best.history[-1])

    def history(self) -> list[Row]:
        """The metrics of each epoch so far, as in ``metrics.csv``."""
        return RunFolder(self.folder).history()

    def dataframe(self) -> "pandas.DataFrame":
        """The metrics of each epoch, a row each."""
        import pandas

        return pandas.DataFrame(self.history()).astype({"epoch": int})

    def __fspath__(self) -> str:
        # So that the run itself can be given wherever its folder can.
        return str(self.folder)

    def __repr__(self) -> str:
        return f"TrainedRun({str(self.folder)!r}: epoch {self.best.epoch}, {self.score})"
