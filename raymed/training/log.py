"""What a run leaves to be read: metrics.csv, TensorBoard scalars and its progress."""

import csv
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raymed.errors import UsageError
from raymed.training.checkpoint import Row

METRICS_FILE = "metrics.csv"
PROGRESS_FILE = "progress.json"


class RunLog:
    """Writes a run's log files; one per run, on its first worker.

    Args:
        folder: of the run.
        steps: optimiser steps per epoch.
        history: rows of the epochs already done, where a run is taken up again.
    """

    def __init__(self, folder: Path, steps: int, history: list[Row]) -> None:
        # Importing it takes a second, so only the worker that writes does.
        from torch.utils.tensorboard import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        if history:
            # A run that was killed between its checkpoint and its log lacks the last row.
            write_metrics(folder / METRICS_FILE, history)
        self.folder = folder
        self.steps = steps
        self.written = 0.0
        self.board: SummaryWriter = SummaryWriter(
            str(folder / "tensorboard"), purge_step=len(history) + 1
        )

    def progress(self, epoch: int, step: int, loss: float) -> None:
        """Say how far the epoch is, a few times a second at most.

        Raises:
            UsageError: the file cannot be written (no space left, say).
        """
        if time.monotonic() - self.written > 0.3:
            self.written = time.monotonic()
            state = {"epoch": epoch, "step": step, "steps": self.steps, "loss": loss}
            with _writing(self.folder):
                replace(self.folder / PROGRESS_FILE, json.dumps(state))

    def epoch(self, history: list[Row]) -> None:
        """Write the table of all epochs, and the last one's scalars to TensorBoard.

        Raises:
            UsageError: a file cannot be written (no space left, say).
        """
        row = history[-1]
        with _writing(self.folder):
            write_metrics(self.folder / METRICS_FILE, history)
            for name, value in row.items():
                if name != "epoch":
                    self.board.add_scalar(name, value, int(row["epoch"]))
            self.board.flush()


def write_metrics(path: Path, history: list[Row]) -> None:
    """All rows as CSV, whole or not at all."""
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(history[-1]))
        writer.writeheader()
        writer.writerows(history)
    partial.replace(path)


def read_metrics(path: Path) -> list[Row]:
    """The rows of a metrics table; none while there is no table yet."""
    try:
        with path.open(newline="") as file:
            return [
                {key: float(value) for key, value in row.items()} for row in csv.DictReader(file)
            ]
    except FileNotFoundError:
        return []


def replace(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old text or the new one, never a part."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"{folder}: cannot be written ({error.strerror or error}). Make room and give the "
            "same command again: the run goes on from its last whole checkpoint"
        ) from error
