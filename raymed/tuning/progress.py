"""Following a sweep on the console: a line for each trial that ends, a bar for them all."""

import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ray import cloudpickle, tune
from ray.actor import ActorHandle
from ray.tune.experiment import Trial
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from raymed.config import Config
from raymed.tuning.trial import NUMBER, trial_name, why_failed

METRIC = "best_score"
"""What trials are ranked by: the highest validation score so far, as each epoch reports it."""


class SweepProgress(tune.Callback):
    """Told by Tune of every trial's start, results and end; a context that shows the bar.

    Args:
        config: of the sweep.
        console: to print on.
        queue: told of every trial that is over.
    """

    def __init__(self, config: Config, console: Console, queue: ActorHandle) -> None:
        self.queue = queue
        self.epochs = config.training.epochs
        self.console = console
        self.running: dict[str, int] = {}
        self.best: tuple[float, str] | None = None
        self.began = time.monotonic()
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("trials", total=config.tune.trials)

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks with its own state; a terminal can't be, and need not be.
        return {}

    def on_trial_start(self, *, trial: Trial, **_: Any) -> None:
        self.running[_name(trial)] = 0
        self._describe()

    def on_trial_result(self, *, trial: Trial, result: dict[str, Any], **_: Any) -> None:
        self.running[_name(trial)] = int(result["epoch"])
        if self.best is None or result[METRIC] > self.best[0]:
            self.best = result[METRIC], _name(trial)
        self._describe()

    def on_trial_complete(self, *, trial: Trial, **_: Any) -> None:
        result = trial.last_result
        epoch = int(result.get("epoch", 0))
        note = "" if epoch >= self.epochs else ", stopped early"
        self._ended(trial, f"score {result.get(METRIC, float('nan')):.3f}, epoch {epoch}{note}")

    def on_trial_error(self, *, trial: Trial, **_: Any) -> None:
        # Tune copies it to the trial's folder, where `get_pickled_error` looks, only later.
        file = trial.pickled_error_file
        reason = (
            why_failed(cloudpickle.loads(Path(file).read_bytes())) if file else "in Tune itself"
        )
        self._ended(trial, f"failed: {reason}")

    def _ended(self, trial: Trial, outcome: str) -> None:
        # Where ASHA has ended it, its workers wait for leave to train another epoch.
        self.queue.stop.remote(trial.config[NUMBER])
        self.running.pop(_name(trial), None)
        self.bar.advance(self.task)
        best = f"; best {self.best[0]:.3f} ({self.best[1]})" if self.best else ""
        seconds = time.monotonic() - self.began
        line = f"{seconds:4.0f} s  {_name(trial)}: {outcome}{best}"
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)
        self._describe()

    def _describe(self) -> None:
        running = ", ".join(
            f"{one} epoch {epoch}/{self.epochs}" for one, epoch in self.running.items()
        )
        self.bar.update(self.task, description=running or "trials")


def _name(trial: Trial) -> str:
    return trial_name(trial.config[NUMBER])
