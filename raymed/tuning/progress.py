"""A sweep's progress on the console: a live table on a terminal, a line for each finished trial."""

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
from raymed.metrics.table import objective_metric
from raymed.model.systems import system_class
from raymed.progress import Throttle
from raymed.reports.sweep_results import TrialResult
from raymed.storage import as_path
from raymed.tuning.leaderboard import format_values
from raymed.tuning.study import objectives
from raymed.tuning.trial import Outcome, Proposal

PATIENCE_S = 20.0
"""How long to wait for the queue's warnings, in seconds."""
LOSSES = {"loss": "loss", "loss_tag": "tag", "loss_sent": "sent", "loss_word": "word"}


@dataclass
class RunningTrial:
    """A trial in training: its searched values, its outcome so far, and when it started."""

    values: Mapping[str, Any]
    outcome: Outcome = field(default_factory=lambda: Outcome.of([]))
    started: float = field(default_factory=time.monotonic)


class SweepProgress(tune.Callback):
    """Receives every trial's start, results and end from Tune, and shows them inside a context.

    Args:
        config: The sweep's configuration.
        console: The console to print on.
        queue: The queue, whose job of every trial that ends is stopped.
        done: Trials of earlier starts, best first.
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
        self.queue_lost = False
        self.running: dict[str, RunningTrial] = {}
        self.warned: set[str] = set()
        self.pulse = Throttle()
        self.started = time.monotonic()
        self.objective, self.mode = next(iter(objectives(config.tune).items()))
        dimension = config.tune.space.get("model.system")
        systems = dimension.extremes() if dimension else (config.model.system,)
        writes_reports = any(system_class(name).writes_reports for name in systems)
        self.label = objective_metric(self.objective, writes_reports).label
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
        self._print_warnings()

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks with its own state, but a terminal cannot be pickled.
        return {}

    def on_step_end(self, **_: Any) -> None:
        # Tune calls it several times a second, whatever the trials do.
        if not self.console.is_terminal and self.pulse.due():
            self._print(self._summary())

    def on_trial_start(self, *, trial: Trial, **_: Any) -> None:
        proposal = Proposal.from_config(trial.config)
        self.running[proposal.name] = RunningTrial(proposal.values)

    def on_trial_result(self, *, trial: Trial, result: dict[str, Any], **_: Any) -> None:
        self._print_warnings()
        outcome = Outcome.from_result(result)
        if outcome.queue_lost:
            self.queue_lost = True
        elif not outcome.failure:
            name = Proposal.from_config(trial.config).name
            self.running[name].outcome = outcome
            value, sign = outcome.best[self.objective], 1 if self.mode == "max" else -1
            if self.best is None or sign * value > sign * self.best[0]:
                self.best = value, name

    def on_trial_complete(self, *, trial: Trial, **_: Any) -> None:
        outcome = Outcome.from_result(trial.last_result)
        if outcome.queue_lost:
            self._remove(trial)
        elif outcome.failure:
            self.failed += 1
            self._end(trial, f"failed: {outcome.failure}")
        else:
            early = not outcome.is_finished(self.config.training)
            self.stopped += early
            value = outcome.best[self.objective]
            note = ", stopped early" if early else ""
            self._end(trial, f"{self.label} {value:.3f}, epoch {outcome.epoch}{note}")

    def on_trial_error(self, *, trial: Trial, **_: Any) -> None:
        # Failures of training come as results; this is one of the trial's client, in Tune itself.
        self._end(trial, "interrupted; run the same command again to resume it")

    def _print_warnings(self) -> None:
        try:
            warned = ray.get(self.queue.warnings.remote(), timeout=PATIENCE_S)
        # If the queue has died, the trials report it.
        except (RayActorError, GetTimeoutError):
            return
        for folder, text in warned:
            # Every trial warns of what is wrong with the data or the machine.
            if text in self.warned:
                continue
            self.warned.add(text)
            self._print(f"warning: {as_path(folder).name}: {text}")

    def _print(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _end(self, trial: Trial, text: str) -> None:
        self._remove(trial)
        self.ended += 1
        best = f"; best {self.best[0]:.3f} ({self.best[1]})" if self.best else ""
        seconds = time.monotonic() - self.started
        self._print(f"{seconds:4.0f} s  {Proposal.from_config(trial.config).name}: {text}{best}")

    def _remove(self, trial: Trial) -> None:
        proposal = Proposal.from_config(trial.config)
        # If it was stopped early, its workers wait for permission to train another epoch.
        self.queue.stop.remote(proposal.number)
        self.running.pop(proposal.name, None)

    def _summary(self) -> str:
        """The sweep's progress on one line."""
        done, trials = self.earlier + self.ended, self.config.tune.trials
        left = trials - done - len(self.running)
        seconds = time.monotonic() - self.started
        best = f"; best {self.label} {self.best[0]:.3f} ({self.best[1]})" if self.best else ""
        wait = ""
        if self.ended:
            wait = f", about {seconds / self.ended * (trials - done) / 60:.0f} min left"
        return (
            f"{done} of {trials} trials done ({self.stopped} stopped early, {self.failed} failed), "
            f"{len(self.running)} running, {left} left{best}; {seconds / 60:.0f} min so far{wait}"
        )

    def _table(self) -> Group:
        """The sweep and its running trials at this moment."""
        table = Table(box=None, padding=(0, 2, 0, 0))
        for head in ("trial", "epoch", *LOSSES.values(), self.label, "s"):
            table.add_column(head, justify="left" if head == "trial" else "right", no_wrap=True)
        table.add_column("searched values")
        for name, one in list(self.running.items()):
            last = one.outcome.last
            table.add_row(
                name,
                f"{one.outcome.epoch}/{self.config.training.epochs}",
                *(f"{last[key]:.2f}" if last else "-" for key in LOSSES),
                f"{one.outcome.best[self.objective]:.3f}" if last else "-",
                f"{time.monotonic() - one.started:.0f}",
                format_values(one.values),
            )
        return Group(self._summary(), table)
