"""A run's lines on the console: one for each epoch, and notices in between."""

from rich.console import Console

from raymed.config import Config
from raymed.launch.signals import sigterm_received
from raymed.metrics.table import summary
from raymed.progress import Throttle, format_progress
from raymed.training.observer import FEATURES, Row, Status


class Printer:
    """Prints a run's progress; also the observer of a run that this process trains.

    Args:
        config: The run's configuration.
        console: The console to print on.
        bar: Whether a bar already shows how far the run is.
    """

    def __init__(self, config: Config, console: Console, bar: bool = False) -> None:
        self.epochs = config.training.epochs
        self.patience = config.training.patience
        self.console = console
        self.bar = bar
        self.printed: set[float] = set()
        self.workers = 0
        self.doing = ""
        self.pulse = Throttle()

    def progress(self, status: Status) -> None:
        if status.doing == FEATURES != self.doing:
            self.say(f"{FEATURES} of {status.total} images")
        elif self.workers not in (0, status.workers):
            self.say(f"training continues with {status.workers} worker(s)")
        self.workers, self.doing = status.workers, status.doing
        self.far(format_progress(status_line(status, self.epochs), status.done, status.total))

    def far(self, line: str) -> None:
        """Print how far the run is, if nothing else shows it and the last such line is long ago."""
        if not self.bar and self.pulse.due():
            self.say(line)

    def epoch(self, row: Row) -> None:
        # Workers that died after an epoch but before its checkpoint was complete repeat it.
        if row["epoch"] not in self.printed:
            self.say(epoch_line(row, self.epochs))
            since = row.get("epochs_since_best", 0)
            if self.patience and since >= self.patience and row["epoch"] < self.epochs:
                self.say(
                    f"training ends: the best epoch is {row['epoch'] - since:.0f}, and the "
                    f"{self.patience} after it (training.patience) were no better"
                )
        self.printed.add(row["epoch"])

    def warn(self, text: str) -> None:
        self.say(f"warning: {text}")

    def ending(self) -> bool:
        return sigterm_received()

    def say(self, line: str) -> None:
        """Print a line verbatim: neither wrapped nor parsed as markup."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)


def status_line(status: Status, epochs: int) -> str:
    """What the run is doing."""
    if not status.epoch:
        return status.doing
    return f"epoch {status.epoch}/{epochs}, {status.doing or f'loss {status.loss:.2f}, steps'}"


def epoch_line(row: Row, epochs: int) -> str:
    """One epoch's metrics on one line."""
    rewards = (
        f"reward {row['reward']:.2f} (greedy {row['reward_greedy']:.2f})  "
        if "reward" in row
        else ""
    )
    return (
        f"epoch {row['epoch']:.0f}/{epochs}  loss {row['loss']:.2f} (tag {row['loss_tag']:.2f}, "
        f"sent {row['loss_sent']:.2f}, word {row['loss_word']:.2f}, "
        f"attention {row['loss_attention']:.2f})  {rewards}val {summary(row)}  "
        f"{row['images_per_second']:.0f} images/s"
    )
