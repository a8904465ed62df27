"""Following a sweep on the console: a live table on a terminal, and a line for each trial's end."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import ray
from ray import tune
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError
from ray.tune.experiment import Trial
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from raymed.config import Config
from raymed.progress import Pulse
from raymed.storage import as_path
from raymed.tuning.leaderboard import TrialResult, shown
from raymed.tuning.study import objectives
from raymed.tuning.trial import DECIDED, FAILURE, LOST, NUMBER, at_best, trial_name

PATIENCE_S = 20.0
"""How long the queue may take to say what it was warned of."""
LOSSES = {"loss": "loss", "loss_tag": "tag", "loss_sent": "sent", "loss_word": "word"}


@dataclass
class Running:
    """A trial in training: its searched values, its last epoch, and when it was started."""

    values: Mapping[str, Any]
    row: dict[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)


class SweepProgress(tune.Callback):
    """Told by Tune of every trial's start, results and end; a context that shows them.

    Args:
        config: of the sweep.
        console: to print on.
        queue: told of every trial that is over.
        done: trials of an earlier start, best first.
    """

    def __init__(
        self,
        config: Config,
        console: Console,
        queue: ActorHandle,
        done: Sequence[TrialResult],
    ) -> None:
        self.config = config
        self.console = console
        self.queue = queue
        self.earlier = sum(one.state != "unfinished" for one in done)
        self.best: tuple[float, str] | None = None
        if done and done[0].best:
            self.best = done[0].objectives[0], done[0].trial
        self.ended = self.stopped = self.failed = 0
        self.lost = False
        self.running: dict[str, Running] = {}
        self.warned: set[str] = set()
        self.pulse = Pulse()
        self.began = time.monotonic()
        self.objective, self.mode = next(iter(objectives(config.tune).items()))
        self.called = "CIDEr" if self.objective in ("score", "cider") else self.objective
        self.live = Live(
            console=console, get_renderable=self._table, refresh_per_second=2, transient=True
        )

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.live.stop()
        self._pass_warnings_on()

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks with its own state; a terminal can't be, and need not be.
        return {}

    def on_step_end(self, **_: Any) -> None:
        # Tune calls it several times a second, whatever the trials do.
        if not self.console.is_terminal and self.pulse.due():
            self.console.print(self._state(), highlight=False, markup=False, soft_wrap=True)

    def on_trial_start(self, *, trial: Trial, **_: Any) -> None:
        values = {k: v for k, v in trial.config.items() if k not in (NUMBER, DECIDED)}
        self.running[_name(trial)] = Running(values)

    def on_trial_result(self, *, trial: Trial, result: dict[str, Any], **_: Any) -> None:
        self._pass_warnings_on()
        if LOST in result:
            self.lost = True
        elif FAILURE not in result:
            self.running[_name(trial)].row = result
            value, sign = result[at_best(self.objective)], 1 if self.mode == "max" else -1
            if self.best is None or sign * value > sign * self.best[0]:
                self.best = value, _name(trial)

    def on_trial_complete(self, *, trial: Trial, **_: Any) -> None:
        result = trial.last_result
        if LOST in result:
            self._over(trial)
        elif FAILURE in result:
            self.failed += 1
            self._ended(trial, f"failed: {result[FAILURE]}")
        else:
            early = result["epoch"] < self.config.training.epochs
            self.stopped += early
            value = result[at_best(self.objective)]
            note = ", stopped early" if early else ""
            self._ended(trial, f"{self.called} {value:.3f}, epoch {result['epoch']:.0f}{note}")

    def on_trial_error(self, *, trial: Trial, **_: Any) -> None:
        # Its training's own failures come as results; this is its client's, in Tune itself.
        self._ended(trial, "interrupted; the same command takes it up again")

    def _pass_warnings_on(self) -> None:
        try:
            warned = ray.get(self.queue.warnings.remote(), timeout=PATIENCE_S)
        # Of a queue that died the trials tell.
        except (RayActorError, GetTimeoutError):
            return
        for folder, words in warned:
            # What is wrong with the data or the machine, every trial warns of.
            if words in self.warned:
                continue
            self.warned.add(words)
            self._say(f"warning: {as_path(folder).name}: {words}")

    def _say(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _ended(self, trial: Trial, outcome: str) -> None:
        self._over(trial)
        self.ended += 1
        best = f"; best {self.best[0]:.3f} ({self.best[1]})" if self.best else ""
        seconds = time.monotonic() - self.began
        self._say(f"{seconds:4.0f} s  {_name(trial)}: {outcome}{best}")

    def _over(self, trial: Trial) -> None:
        # Where it was stopped early, its workers wait for leave to train another epoch.
        self.queue.stop.remote(trial.config[NUMBER])
        self.running.pop(_name(trial), None)

    def _state(self) -> str:
        """How far the sweep is, on a line."""
        done, trials = self.earlier + self.ended, self.config.tune.trials
        left = trials - done - len(self.running)
        seconds = time.monotonic() - self.began
        best = f"; best {self.called} {self.best[0]:.3f} ({self.best[1]})" if self.best else ""
        wait = ""
        if self.ended:
            wait = f", about {seconds / self.ended * (trials - done) / 60:.0f} min left"
        return (
            f"{done} of {trials} trials done ({self.stopped} stopped early, {self.failed} failed), "
            f"{len(self.running)} running, {left} left{best}; {seconds / 60:.0f} min so far{wait}"
        )

    def _table(self) -> Group:
        """Sweep and trials as they are at this moment."""
        table = Table(box=None, padding=(0, 2, 0, 0))
        for head in ("trial", "epoch", *LOSSES.values(), self.called, "s"):
            table.add_column(head, justify="left" if head == "trial" else "right", no_wrap=True)
        table.add_column("searched values")
        for name, one in list(self.running.items()):
            row = one.row
            table.add_row(
                name,
                f"{row.get('epoch', 0):.0f}/{self.config.training.epochs}",
                *(f"{row[key]:.2f}" if row else "-" for key in LOSSES),
                f"{row[at_best(self.objective)]:.3f}" if row else "-",
                f"{time.monotonic() - one.began:.0f}",
                shown(one.values),
            )
        return Group(self._state(), table)


def _name(trial: Trial) -> str:
    return trial_name(trial.config[NUMBER])
