"""What a run says on the console: a line for each epoch, and what happens on the way."""

from rich.console import Console

from raymed.config import Config
from raymed.launch.termination import noted
from raymed.progress import Throttle, format_progress
from raymed.training.observer import FEATURES, Row, Status


class Printer:
    """Prints what there is to say of a run; as an observer, of one that this process trains.

    Args:
        config: of the run.
        console: to print on.
        bar: whether a bar says already how far the run is.
    """

    def __init__(self, config: Config, console: Console, bar: bool = False) -> None:
        self.epochs = config.training.epochs
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
            self.say(f"training goes on with {status.workers} worker(s)")
        self.workers, self.doing = status.workers, status.doing
        self.far(format_progress(status_line(status, self.epochs), status.done, status.total))

    def far(self, line: str) -> None:
        """Say how far it is, where nothing else does and the last such line is long ago."""
        if not self.bar and self.pulse.due():
            self.say(line)

    def epoch(self, row: Row) -> None:
        # Workers that died after an epoch, and before its checkpoint was whole, repeat it.
        if row["epoch"] not in self.printed:
            self.say(epoch_line(row, self.epochs))
        self.printed.add(row["epoch"])

    def warn(self, text: str) -> None:
        self.say(f"warning: {text}")

    def ending(self) -> bool:
        return noted()

    def say(self, line: str) -> None:
        """Print it as it is: neither wrapped nor read as markup."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)


def status_line(status: Status, epochs: int) -> str:
    """What is being done."""
    if not status.epoch:
        return status.doing
    return f"epoch {status.epoch}/{epochs}, {status.doing or f'loss {status.loss:.2f}, steps'}"


def epoch_line(row: Row, epochs: int) -> str:
    """One epoch's metrics on one line."""
    scores = f"recall@5 {row['recall_5']:.3f}"
    if "cider" in row:
        scores = f"CIDEr {row['cider']:.3f}, {scores}, {row['distinct']:.0f} distinct"
    return (
        f"epoch {row['epoch']:.0f}/{epochs}  loss {row['loss']:.2f} (tag {row['loss_tag']:.2f}, "
        f"sent {row['loss_sent']:.2f}, word {row['loss_word']:.2f}, "
        f"attention {row['loss_attention']:.2f})  val {scores}  "
        f"{row['images_per_second']:.0f} images/s"
    )
