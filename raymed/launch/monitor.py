"""Watching a run that Ray trains: an actor between its workers and the one who started it."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raymed.launch.signals import sigterm_received
from raymed.training.observer import Row, Status

INTERVAL_S = 0.3
"""How often a worker says how far it is, at most."""
PATIENCE_S = 20.0
"""How long a worker's question may stay open. One whose worker died is answered to nobody, and an
actor has only so many calls that may be open at a time."""


@dataclass
class Update:
    """What there is to say of a run.

    Attributes:
        status: how far it is, once that is known.
        rows: of the epochs that ended since it was last asked.
        warnings: of what went wrong since then.
    """

    status: Status | None = None
    rows: list[Row] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


class RunMonitor:
    """The actor: keeps what the workers say, and tells them when they are to end."""

    def __init__(self) -> None:
        self.kept = Update()
        self.ended = asyncio.Event()

    async def say(self, news: Update) -> None:
        self.kept.status = news.status or self.kept.status
        self.kept.rows += news.rows
        self.kept.warnings += news.warnings

    async def drain(self) -> Update:
        """The news since it was last asked."""
        news = self.kept
        self.kept = Update(news.status)
        return news

    async def end(self) -> None:
        """The workers are to write a checkpoint and end."""
        self.ended.set()

    async def wait_for_end(self) -> bool:
        """Whether the workers are to end; waits for that, but no longer than `PATIENCE_S`."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.ended.wait(), PATIENCE_S)
        return self.ended.is_set()


def start_monitor() -> ActorHandle:
    """The actor, on this node: a node of workers may be gone at any time."""
    return pinned_to_this_node(ray.remote(RunMonitor)).remote()


def pinned_to_this_node(actor: Any) -> Any:
    """An actor's class, to be started on the node of the process that starts it."""
    node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # Many callers may wait for a thing at a time, and that must not stop others' calls.
    return actor.options(num_cpus=0, max_concurrency=1000, scheduling_strategy=node)


class WorkerObserver:
    """A worker's observer: the first one tells the watch; each knows when it is to end.

    A watch that is no more is no reason to stop training.

    Args:
        watch: the actor.
        first: whether it is the run's first worker.
    """

    def __init__(self, monitor: ActorHandle, first: bool) -> None:
        self.monitor = monitor
        self.first = first
        self.said = 0.0
        self.end = StopSignal(monitor.wait_for_end.remote, if_lost=False) if self.first else None

    def progress(self, status: Status) -> None:
        if self.first and time.monotonic() - self.said > INTERVAL_S:
            self.said = time.monotonic()
            self.monitor.say.remote(Update(status))

    def epoch(self, row: Row) -> None:
        self._say(Update(rows=[row]))

    def warn(self, text: str) -> None:
        self._say(Update(warnings=[text]))

    def ending(self) -> bool:
        return sigterm_received() or self.wanted()

    def wanted(self) -> bool:
        """Whether the watch, rather than a signal to this worker, wants the end."""
        return self.end is not None and self.end.wanted()

    def _say(self, news: Update) -> None:
        if self.first:
            with suppress(RayActorError):
                ray.get(self.monitor.say.remote(news))


class StopSignal:
    """Whether an actor wants the end; one question to it is open, so asking costs next to nothing.

    Args:
        ask: the actor's method, which answers by True once the end is wanted, and by False where
            it has to be asked again.
        if_lost: whether the end is wanted once the actor is no more.
    """

    def __init__(self, ask: Callable[[], ObjectRef], if_lost: bool) -> None:
        self.ask = ask
        self.if_lost = if_lost
        self.asked: ObjectRef | None = ask()
        self.came = False

    def wanted(self) -> bool:
        if self.asked is not None and ray.wait([self.asked], timeout=0)[0]:
            answered, self.asked = self.asked, None
            try:
                self.came = ray.get(answered)
            except RayActorError:
                self.came = self.if_lost
            else:
                self.asked = None if self.came else self.ask()
        return self.came
