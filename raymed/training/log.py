"""A run's log: metrics.csv and TensorBoard's event files."""

import csv
import io
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Self

import numpy as np

from raymed.config import Config
from raymed.errors import UsageError
from raymed.generation import Report
from raymed.storage import AnyPath, RemotePath, atomic_path, atomic_write_text, reason
from raymed.training.observer import Row

METRICS_FILE = "metrics.csv"
TENSORBOARD_FOLDER = "tensorboard"
"""The folder of TensorBoard's event files in a run's folder."""
HPARAMS = (
    "loss.tag",
    "loss.sent",
    "loss.word",
    "loss.attention",
    "generation.stop_threshold",
    "model.top_tags",
    "training.objective",
    "training.learning_rate",
    "training.encoder_learning_rate",
    "training.batch_size",
    "training.seed",
    "model.system",
    "model.hidden_size",
    "model.embedding_size",
)
"""The keys by which TensorBoard compares runs: those that sweeps search, and others that matter."""


@dataclass(frozen=True)
class Sample:
    """A validation example's generated report and its ground truth.

    Attributes:
        name: The name of the image, or of a study's images.
        images: The I images, uint8 [I, H, W].
        report: The generated report.
        alpha: Visual attention [S, I N] of at least as many sentences as the report has; None for a
            system that does not attend to regions.
        truth: The sentences of the report written by a person.
        tags: The image's tags.
    """

    name: str
    images: np.ndarray
    report: Report
    alpha: np.ndarray | None
    truth: Sequence[str]
    tags: Sequence[str]


class RunLog:
    """Writes a run's log files, on the run's first worker; a context manager that closes them.

    Args:
        folder: The run's folder. Event files are appended to, which object stores do not support:
            for those they are written to a local folder, and copied after each epoch.
        history: The metrics of the epochs already done, if the run is resumed.
        config: The run's configuration.
    """

    def __init__(self, folder: AnyPath, history: list[Row], config: Config) -> None:
        # Takes a second to import, which only the worker that writes spends.
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        if history:
            # The log of a run killed between checkpoint and log lacks the last row.
            with _writing(folder):
                write_metrics(folder / METRICS_FILE, history)
        self.folder = folder
        self.local = (
            Path(tempfile.mkdtemp(prefix="raymed-")) if isinstance(folder, RemotePath) else folder
        )
        with _writing(folder):
            self.board: SummaryWriter = SummaryWriter(
                str(self.local / TENSORBOARD_FOLDER), purge_step=len(history) + 1
            )
        # `best_score` is logged after every epoch, so a run stopped early has it too. `add_hparams`
        # would list a second run, in a folder of its own.
        tree = config.model_dump(mode="json")
        values = {key: tree[section][name] for key in HPARAMS for section, name in [key.split(".")]}
        experiment, started, self.finished = hparams(values, {"best_score": 0.0})
        for summary in (experiment, started):
            self.board._get_file_writer().add_summary(summary)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # A full disk must not mask the error that ended the run, nor fail a run whose checkpoints
        # are complete.
        with suppress(OSError, UsageError):
            if kind is None:
                self.board._get_file_writer().add_summary(self.finished)
            self.board.close()
            self._copy_board()
        if self.local != self.folder:
            shutil.rmtree(self.local, ignore_errors=True)

    def epoch(self, history: list[Row], samples: Sequence[Sample]) -> None:
        """Write the metrics of all epochs, and the last epoch's scalars and samples to TensorBoard.

        Raises:
            UsageError: A file cannot be written, for example because the disk is full.
        """
        row = history[-1]
        step = int(row["epoch"])
        with _writing(self.folder):
            write_metrics(self.folder / METRICS_FILE, history)
            for name, value in row.items():
                if name != "epoch":
                    self.board.add_scalar(name, value, step)
            for sample in samples:
                self.board.add_text(f"report/{sample.name}", report_and_truth(sample), step)
                self._add_attention(sample, step)
            self.board.flush()
            self._copy_board()

    def _add_attention(self, sample: Sample, step: int) -> None:
        if sample.alpha is None:
            return
        # Matplotlib, which has the colours, is loaded when the first sample is drawn.
        from raymed.reports.overlay import attention_strip

        of_sentences = sample.alpha[: len(sample.report.sentences)]
        count = len(sample.images)
        side = round((of_sentences.shape[1] / count) ** 0.5)
        strip = attention_strip(sample.images, of_sentences.reshape(-1, count, side, side))
        self.board.add_image(f"attention/{sample.name}", strip, step, dataformats="HWC")

    def _copy_board(self) -> None:
        if isinstance(self.folder, RemotePath):
            for file in (self.local / TENSORBOARD_FOLDER).iterdir():
                with atomic_path(self.folder / TENSORBOARD_FOLDER / file.name) as copy:
                    shutil.copyfile(file, copy)


def report_and_truth(sample: Sample) -> str:
    """A report and its ground truth as a Markdown table: a row of tags, then one per sentence."""
    tags = [tag for tag, _ in sample.report.tags[:5]]
    written = [", ".join(tags), *sample.report.sentences]
    truth = [", ".join(sample.tags), *sample.truth]
    rows = [("generated", "ground truth"), ("---", "---")]
    rows += zip_longest(written, truth, fillvalue="")
    cells = [[text.replace("|", "\\|") for text in row] for row in rows]
    return "\n".join(f"| {ours} | {theirs} |" for ours, theirs in cells)


def write_metrics(path: AnyPath, history: list[Row]) -> None:
    """Write all rows as CSV, atomically."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(history[-1]))
    writer.writeheader()
    writer.writerows(history)
    atomic_write_text(path, text.getvalue())


def read_metrics(path: AnyPath) -> list[Row]:
    """Read the rows of metrics.csv; there are none while the file does not exist."""
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
            f"{folder}: the metrics cannot be written ({reason(error)}). Free disk space, or check "
            "that the folder is reachable; they are written again after the next epoch"
        ) from error
