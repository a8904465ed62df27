"""Ending a run once its epochs are no better, with scores that are made up."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from rich.console import Console

from raymed.config import Config
from raymed.launch.run import run_training
from raymed.sections import TrainingConfig
from raymed.training import loop
from raymed.training.checkpoint import MODEL_FILE, latest
from raymed.training.errors import Interrupted
from raymed.training.log import METRICS_FILE, read_metrics
from raymed.training.loop import train
from raymed.training.observer import Row, is_finished
from raymed.training.worker import Worker
from tests.support.metric_rows import untimed
from tests.support.recording import Recorder

ALONE = Worker(torch.device("cpu"))


def rows(scores: list[float], losses: list[float]) -> list[Row]:
    return [
        {"epoch": float(epoch), "score": score, "loss": loss}
        for epoch, (score, loss) in enumerate(zip(scores, losses, strict=True), start=1)
    ]


@pytest.mark.parametrize(
    ("scores", "losses", "patience", "last"),
    [
        ([0.1, 0.3, 0.2, 0.25, 0.4, 0.1], [9, 8, 7, 6, 5, 4], None, 6),
        ([0.1, 0.3, 0.2, 0.25, 0.4, 0.1], [9, 8, 7, 6, 5, 4], 3, 6),
        ([0.1, 0.3, 0.2, 0.25, 0.4, 0.1], [9, 8, 7, 6, 5, 4], 2, 4),
        ([0.1, 0.3, 0.2, 0.25, 0.4, 0.1], [9, 8, 7, 6, 5, 4], 1, 3),
        # Scores that are equal: a lower training loss is better, an equal one is not.
        ([0, 0, 0, 0, 0, 0], [9, 8, 7, 6, 5, 4], 1, 6),
        ([0, 0, 0, 0, 0, 0], [9, 8, 8, 8, 5, 4], 2, 4),
    ],
)
def test_which_epoch_is_the_last(
    scores: list[float], losses: list[float], patience: int | None, last: int
) -> None:
    history, training = rows(scores, losses), TrainingConfig(epochs=6, patience=patience)
    finished = [is_finished(history[:count], training) for count in range(len(history) + 1)]
    assert finished.index(True) == last


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The scores of the next epochs to be validated; the best is the second epoch's."""
    left = [0.1, 0.3, 0.2, 0.25, 0.9, 0.9, 0.9]
    real = loop.validate

    def scored(*arguments: Any) -> Any:
        found = real(*arguments)
        return found._replace(row=found.row | {"score": left.pop(0)})

    monkeypatch.setattr(loop, "validate", scored)
    return left


@pytest.fixture
def patient(tiny: Config, tmp_path: Path) -> Iterator[Config]:
    return tiny.override(
        {"training.epochs": 7, "training.patience": 2, "run.folder": str(tmp_path / "runs")}
    )


def test_a_run_ends_by_itself_and_is_then_finished(patient: Config, scores: list[float]) -> None:
    console = Console(file=io.StringIO(), width=80)
    best = run_training(patient, console)
    assert (best.epoch, best.history[-1]["score"], len(scores)) == (2, 0.3, 3)
    folder = Path(patient.run.folder, patient.run.name)
    assert [row["epochs_since_best"] for row in read_metrics(folder / METRICS_FILE)] == [0, 0, 1, 2]
    *_, fourth, end = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert fourth.startswith("epoch 4/7 ")
    assert end == (
        "training ends: the best epoch is 2, and the 2 after it (training.patience) were no better"
    )
    run_training(patient, console)
    assert len(scores) == 3
    *_, again = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert again == f"{folder}: already trained for 4 epochs; nothing to do"


def test_a_resumed_run_ends_after_the_same_epoch(
    patient: Config, scores: list[float], tmp_path: Path
) -> None:
    given, whole, recorder = list(scores), Recorder(), Recorder()
    train(patient, tmp_path / "whole", ALONE, whole)
    assert len(whole.rows) == 4
    scores[:] = given
    for end in ((3, 2), (4, 1)):
        recorder.ends = False
        recorder.at_step = lambda status, end=end: (status.epoch, status.done) == end
        with pytest.raises(Interrupted):
            train(patient, tmp_path / "run", ALONE, recorder)
    recorder.ends = False
    recorder.at_step = lambda _: False
    train(patient, tmp_path / "run", ALONE, recorder)
    assert untimed(recorder.rows) == untimed(whole.rows)
    ours, expected = (
        safetensors.torch.load_file(latest(tmp_path / name) / MODEL_FILE)
        for name in ("run", "whole")
    )
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


def test_a_run_asked_to_stop_after_its_last_epoch_is_finished(
    patient: Config, scores: list[float], tmp_path: Path
) -> None:
    recorder = Recorder()

    def ask_after_the_fourth(row: Row) -> None:
        recorder.ends = row["epoch"] == 4

    recorder.at_epoch = ask_after_the_fourth
    train(patient, tmp_path / "run", ALONE, recorder)
    assert len(recorder.rows) == 4
    assert len(scores) == 3
