"""What a run leaves to be read: metrics.csv and TensorBoard's files."""

import csv
import io
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from raymed.config import Config
from raymed.errors import UsageError
from raymed.generation import Report
from raymed.storage import AnyPath, RemotePath, atomic_path, atomic_write_text, reason
from raymed.training.observer import Row

METRICS_FILE = "metrics.csv"
BOARD = "tensorboard"
"""The folder of a run for TensorBoard's files."""
HPARAMS = (
    "loss.tag",
    "loss.sent",
    "loss.word",
    "loss.attention",
    "generation.stop_threshold",
    "model.top_tags",
    "training.learning_rate",
    "training.encoder_learning_rate",
    "training.batch_size",
    "training.seed",
    "model.system",
    "model.hidden_size",
    "model.embedding_size",
)
"""Keys by which TensorBoard compares runs: what sweeps search, and what else tells runs apart."""
HEAT = np.array([255, 96, 0])
"""The colour, RGB, of visual attention."""
OPACITY = 0.6
"""Of the heat at a sentence's strongest region; elsewhere in proportion."""


@dataclass(frozen=True)
class Sample:
    """A validation image's report beside the ground truth.

    Attributes:
        name: the image's.
        image: uint8 [H, W].
        report: the generated one.
        alpha: visual attention [S, N] of at least as many sentences as the report has; None of a
            system that does not attend to regions.
        truth: sentences of the report that a person wrote.
        tags: the image's.
    """

    name: str
    image: np.ndarray
    report: Report
    alpha: np.ndarray | None
    truth: Sequence[str]
    tags: Sequence[str]


class RunLog:
    """Writes a run's log files; one per run, on its first worker. Leaving it closes them.

    Args:
        folder: of the run. TensorBoard's files grow line by line, which an object store's cannot:
            they are then written here, and copied there after each epoch.
        history: rows of the epochs already done, where a run is taken up again.
        config: of the run.
    """

    def __init__(self, folder: AnyPath, history: list[Row], config: Config) -> None:
        # Importing it takes a second, so only the worker that writes does.
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        if history:
            # A run that was killed between its checkpoint and its log lacks the last row.
            with _writing(folder):
                write_metrics(folder / METRICS_FILE, history)
        self.folder = folder
        self.local = (
            Path(tempfile.mkdtemp(prefix="raymed-")) if isinstance(folder, RemotePath) else folder
        )
        with _writing(folder):
            self.board: SummaryWriter = SummaryWriter(
                str(self.local / BOARD), purge_step=len(history) + 1
            )
        # The metric is a scalar of every epoch, so that a run that is stopped early has it too.
        # `add_hparams` would list it as a second run, in a folder of its own.
        tree = config.model_dump(mode="json")
        values = {key: tree[section][name] for key in HPARAMS for section, name in [key.split(".")]}
        experiment, started, self.finished = hparams(values, {"best_score": 0.0})
        for summary in (experiment, started):
            self.board._get_file_writer().add_summary(summary)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # What ended a run says more than what its log has to say of a full disk; and a run whose
        # checkpoints are whole is no worse for it.
        with suppress(OSError, UsageError):
            if kind is None:
                self.board._get_file_writer().add_summary(self.finished)
            self.board.close()
            self._copy_board()
        if self.local != self.folder:
            shutil.rmtree(self.local, ignore_errors=True)

    def epoch(self, history: list[Row], samples: Sequence[Sample]) -> None:
        """Write the table of all epochs, and the last one's scalars and samples to TensorBoard.

        Raises:
            UsageError: a file cannot be written (no space left, say).
        """
        row = history[-1]
        step = int(row["epoch"])
        with _writing(self.folder):
            write_metrics(self.folder / METRICS_FILE, history)
            for name, value in row.items():
                if name != "epoch":
                    self.board.add_scalar(name, value, step)
            for one in samples:
                self.board.add_text(f"report/{one.name}", side_by_side(one), step)
                if one.alpha is not None:
                    self.board.add_image(
                        f"attention/{one.name}", attention_strip(one), step, dataformats="HWC"
                    )
            self.board.flush()
            self._copy_board()

    def _copy_board(self) -> None:
        if isinstance(self.folder, RemotePath):
            for file in (self.local / BOARD).iterdir():
                with atomic_path(self.folder / BOARD / file.name) as copy:
                    shutil.copyfile(file, copy)


def side_by_side(sample: Sample) -> str:
    """A report and its ground truth as a Markdown table, a sentence to a row, the tags first."""
    tags = [tag for tag, _ in sample.report.tags[:5]]
    written = [", ".join(tags), *sample.report.sentences]
    truth = [", ".join(sample.tags), *sample.truth]
    rows = [("generated", "ground truth"), ("---", "---")]
    rows += zip_longest(written, truth, fillvalue="")
    cells = [[text.replace("|", "\\|") for text in row] for row in rows]
    return "\n".join(f"| {ours} | {theirs} |" for ours, theirs in cells)


def attention_strip(sample: Sample) -> np.ndarray:
    """The film, then for each sentence the film with its attention over it.

    Returns:
        uint8 [H, (1 + sentences) * W, 3].
    """
    assert sample.alpha is not None
    height, width = sample.image.shape
    film = np.repeat(sample.image[:, :, None].astype(np.float32), 3, axis=2)
    panels = [film]
    for alpha in sample.alpha[: len(sample.report.sentences)]:
        side = round(len(alpha) ** 0.5)
        rows, columns = (np.arange(size) * side // size for size in (height, width))
        heat = alpha.reshape(side, side)[np.ix_(rows, columns)] / alpha.max()
        opacity = OPACITY * heat[:, :, None]
        panels.append(film * (1 - opacity) + HEAT * opacity)
    strip: np.ndarray = np.concatenate(panels, axis=1).round().astype(np.uint8)
    return strip


def write_metrics(path: AnyPath, history: list[Row]) -> None:
    """All rows as CSV, whole or not at all."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(history[-1]))
    writer.writeheader()
    writer.writerows(history)
    atomic_write_text(path, text.getvalue())


def read_metrics(path: AnyPath) -> list[Row]:
    """The rows of a metrics table; none while there is no table yet."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    rows = csv.DictReader(io.StringIO(text, newline=""))
    return [{key: float(value) for key, value in row.items()} for row in rows]


@contextmanager
def _writing(folder: AnyPath) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"{folder}: its metrics cannot be written ({reason(error)}). Make room, or see to it "
            "that it can be reached; they are written again with the next epoch"
        ) from error
