"""Progress off a terminal: lines at regular intervals, even if the work does not advance."""

import io
from threading import Event
from typing import Any

import pytest
from rich.console import Console

from raymed import progress as module
from raymed.config import Config
from raymed.launch.printer import Printer
from raymed.progress import Progress, format_progress, report_progress_to, track
from raymed.training.observer import FEATURES, Status


@pytest.fixture
def always_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INTERVAL_S", 0)
    # The work itself advances; the ticker has nothing to do.
    monkeypatch.setattr(module, "TICK_S", 3600)


def lines_of(console: Console) -> list[str]:
    file: Any = console.file
    return file.getvalue().splitlines()


@pytest.fixture
def log() -> Console:
    return Console(file=io.StringIO(), width=40)


@pytest.mark.usefixtures("always_due")
def test_a_line_shows_done_and_total(log: Console) -> None:
    assert list(track("abcd", "writing [b]reports", 4, log)) == [*"abcd"]
    assert lines_of(log) == [
        "writing [b]reports: 1 of 4 (25%)",
        "writing [b]reports: 2 of 4 (50%)",
        "writing [b]reports: 3 of 4 (75%)",
        "writing [b]reports: 4 of 4 (100%)",
    ]
    assert format_progress("reading images", 12_000, None) == "reading images: 12,000 so far"


def test_no_line_before_it_is_due(log: Console) -> None:
    assert len(list(track(range(999), "counting", 999, log))) == 999
    assert lines_of(log) == []


def test_a_step_that_does_not_advance_still_prints_lines(
    log: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "INTERVAL_S", 0)
    monkeypatch.setattr(module, "TICK_S", 0.001)
    printed = Event()
    monkeypatch.setattr(log, "print", lambda *_, **__: printed.set())
    with Progress("waiting for another process", 10, log):
        assert printed.wait(60)


@pytest.mark.usefixtures("always_due")
def test_a_terminal_shows_a_bar_and_no_lines() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=90)
    with Progress("reading images", None, console) as progress:
        progress.update(total=8)
        progress.advance(3)
        progress._bar.refresh()  # type: ignore[union-attr]
    written = console.file.getvalue()  # type: ignore[attr-defined]
    assert "3/8" in written
    assert "(38%)" not in written


@pytest.mark.usefixtures("always_due")
def test_progress_sent_to_a_sink_is_not_printed(log: Console) -> None:
    seen = []
    with report_progress_to(lambda *state: seen.append(state)):
        list(track("ab", "hashing", 2, log))
    assert seen == [("hashing", 0, 2), ("hashing", 1, 2), ("hashing", 2, 2)]
    assert lines_of(log) == []


@pytest.mark.usefixtures("always_due")
def test_a_run_prints_its_progress_within_an_epoch(log: Console) -> None:
    printer = Printer(Config().override({"training.epochs": 30}), log)
    printer.progress(Status(0, 8, 80, doing=FEATURES))
    printer.progress(Status(2, 5, 20, loss=4.25))
    printer.progress(Status(2, 3, 4, doing="validating, batches"))
    assert lines_of(log) == [
        f"{FEATURES} of 80 images",
        f"{FEATURES}: 8 of 80 (10%)",
        "epoch 2/30, loss 4.25, steps: 5 of 20 (25%)",
        "epoch 2/30, validating, batches: 3 of 4 (75%)",
    ]


@pytest.mark.usefixtures("always_due")
def test_no_line_is_printed_beside_a_bar(log: Console) -> None:
    printer = Printer(Config(), log, bar=True)
    printer.progress(Status(2, 5, 20, loss=4.25))
    assert lines_of(log) == []
