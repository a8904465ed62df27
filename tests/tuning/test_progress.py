"""What a sweep shows while it runs; its callbacks are called as Tune calls them."""

import io
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from rich.console import Console

from raymed import progress as module
from raymed.config import Config
from raymed.tuning.progress import SweepProgress
from raymed.tuning.trial import Outcome, Proposal

CONFIG = Config().override(
    {
        "tune.trials": 10,
        "training.epochs": 4,
        "tune.space": {"loss.tag": {"uniform": [0, 9]}, "model.top_tags": {"integer": [1, 9]}},
    }
)


class Queue:
    """Records which jobs are stopped, and gives the warnings that it was made with."""

    def __init__(self, *warned: list[tuple[str, str]]) -> None:
        self.stopped: list[int] = []
        self.stop = SimpleNamespace(remote=self.stopped.append)
        self.warned = [*warned]
        self.warnings = SimpleNamespace(remote=lambda: self.warned.pop(0) if self.warned else [])


@pytest.fixture(autouse=True)
def _answers_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "get", lambda answer, **_: answer)


def row(epoch: int, score: float) -> dict[str, float]:
    losses = {"loss": 9.5, "loss_tag": 2.25, "loss_sent": 1.5, "loss_word": 7.75}
    return {"epoch": epoch, "score": score, "cider": score, **losses}


def result(*rows: dict[str, float], **end: Any) -> dict[str, Any]:
    return Outcome.of(rows, **end).to_result({"score": "max"})


def trial(number: int, last_result: dict[str, Any] | None = None) -> Any:
    proposal = Proposal(number, {"loss.tag": number / 2, "model.top_tags": number})
    return SimpleNamespace(config=proposal.to_config(), last_result=last_result)


def test_live_table_and_lines() -> None:
    queue: Any = Queue()
    console = Console(file=io.StringIO(), force_terminal=True, width=130, color_system=None)
    with SweepProgress(CONFIG, console, queue, done=[]) as progress:
        for number in range(5):
            progress.on_trial_start(trial=trial(number))
        rows = [row(1, 0.5), row(2, 0.25)]
        progress.on_trial_result(trial=trial(0), result=result(rows[0]))
        progress.on_trial_result(trial=trial(0), result=result(*rows))
        progress.on_trial_result(trial=trial(1), result=result(row(1, 0.125)))
        progress.on_trial_complete(trial=trial(2, result(row(4, 0.75))))
        progress.on_trial_complete(trial=trial(3, result(row(2, 0.1))))
        failed = result(row(1, 0.2), failure="diverged")
        progress.on_trial_complete(trial=trial(4, failed))
    with console.capture() as captured:
        console.print(progress._table())
    *state, head, first, second = captured.get().splitlines()
    title = " ".join(" ".join(state).split())
    assert "3 of 10 trials done (1 stopped early, 1 failed), 2 running, 5 left" in title
    # Only results count for the best: what a trial ends with came as its last result before.
    assert "best CIDEr 0.500 (trial-000)" in title
    assert head.split()[:8] == ["trial", "epoch", "loss", "tag", "sent", "word", "CIDEr", "s"]
    assert first.split()[:7] == ["trial-000", "2/4", "9.50", "2.25", "1.50", "7.75", "0.500"]
    assert second.split()[:7] == ["trial-001", "1/4", "9.50", "2.25", "1.50", "7.75", "0.125"]
    assert first.rstrip().endswith("loss.tag 0, model.top_tags 0")
    assert "0 min so far, about 0 min left" in title
    written = console.file.getvalue()  # type: ignore[attr-defined]
    assert "trial-002: CIDEr 0.750, epoch 4; best" in written
    assert "trial-003: CIDEr 0.100, epoch 2, stopped early; best" in written
    assert "trial-004: failed: diverged; best" in written
    assert queue.stopped == [2, 3, 4]


def test_a_trial_that_patience_ends_is_not_called_stopped() -> None:
    queue: Any = Queue()
    console = Console(file=io.StringIO(), width=130)
    config = CONFIG.override({"training.patience": 1})
    with SweepProgress(config, console, queue, done=[]) as progress:
        for number, scores in enumerate([(0.5, 0.25), (0.25, 0.5)]):
            progress.on_trial_start(trial=trial(number))
            rows = [row(epoch, score) for epoch, score in enumerate(scores, start=1)]
            progress.on_trial_complete(trial=trial(number, result(*rows)))
    first, second = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert first.endswith("trial-000: CIDEr 0.500, epoch 2")
    assert second.endswith("trial-001: CIDEr 0.500, epoch 2, stopped early")


def test_a_lost_queue_does_not_end_a_trial() -> None:
    queue: Any = Queue()
    console = Console(file=io.StringIO(), width=130)
    with SweepProgress(CONFIG, console, queue, done=[]) as progress:
        progress.on_trial_start(trial=trial(0))
        ending = result(row(1, 0.5), queue_lost=True)
        progress.on_trial_result(trial=trial(0), result=ending)
        progress.on_trial_complete(trial=trial(0, ending))
    assert progress.queue_lost
    assert progress.ended == 0
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]


def test_off_a_terminal_it_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    queue: Any = Queue()
    console = Console(file=io.StringIO(), width=30)
    with SweepProgress(CONFIG, console, queue, done=[]) as progress:
        progress.on_trial_start(trial=trial(0))
        progress.on_step_end(iteration=1, trials=[])
        assert console.file.getvalue() == ""  # type: ignore[attr-defined]
        monkeypatch.setattr(module, "INTERVAL_S", 0)
        progress.on_step_end(iteration=2, trials=[])
    assert console.file.getvalue() == (  # type: ignore[attr-defined]
        "0 of 10 trials done (0 stopped early, 0 failed), 1 running, 9 left; 0 min so far\n"
    )


def test_what_trials_warn_of_is_printed_once() -> None:
    slow, full = "computes in bfloat16, slowly", "metrics.csv: no space left"
    queue: Any = Queue(
        [("/runs/a/trials/trial-000", slow)],
        [],
        [("s3://b/trial-001", full), ("b/trial-002", slow)],
    )
    console = Console(file=io.StringIO(), width=40)
    with SweepProgress(CONFIG, console, queue, done=[]) as progress:
        progress.on_trial_start(trial=trial(0))
        for epoch in (1, 2):
            progress.on_trial_result(trial=trial(0), result=result(row(epoch, 0.5)))
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert printed == f"warning: trial-000: {slow}\nwarning: trial-001: {full}\n"
