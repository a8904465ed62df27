"""Monitoring a run that Ray trains: an actor between its workers and the driver."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raymed.launch.signals import sigterm_received
from raymed.training.observer import Row, Status

INTERVAL_S = 0.3
"""Least time between two progress updates of a worker."""
PATIENCE_S = 20.0
"""How long a call of a worker may stay pending. A call whose worker died is never collected, and an
actor can have only so many pending calls."""


@dataclass
class Update:
    """What the workers of a run have published.

    Attributes:
        status: How far the run is; None while that is unknown.
        rows: Metrics of the epochs that ended since the last update.
        warnings: Warnings since the last update.
    """

    status: Status | None = None
    rows: list[Row] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


class RunMonitor:
    """The actor: collects the workers' updates, and passes on the request to stop."""

    def __init__(self) -> None:
        self.pending = Update()
        self.stopping = asyncio.Event()

    async def publish(self, update: Update) -> None:
        """Add an update of a worker."""
        self.pending.status = update.status or self.pending.status
        self.pending.rows += update.rows
        self.pending.warnings += update.warnings

    async def drain(self) -> Update:
        """Everything published since the last call."""
        update = self.pending
        self.pending = Update(update.status)
        return update

    async def stop(self) -> None:
        """Request the workers to write a checkpoint and stop."""
        self.stopping.set()

    async def wait_for_stop(self) -> bool:
        """Whether the workers are to stop; waits up to `PATIENCE_S` for that."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.stopping.wait(), PATIENCE_S)
        return self.stopping.is_set()


def start_monitor(run: str) -> ActorHandle:
    """Start a run's actor on this node: the workers' nodes may disappear at any time."""
    return pinned_to_this_node(ray.remote(RunMonitor), f"{run}-monitor").remote()


def pinned_to_this_node(actor: Any, name: str) -> Any:
    """An actor class whose actor starts on the node of the calling process.

    Args:
        actor: The class.
        name: The actor's name in Ray, to which a few random digits are added: an actor that is
            being removed still occupies its name.
    """
    name = f"{name}-{uuid4().hex[:6]}"
    node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # Many calls may be waiting at a time, and they must not block others.
    return actor.options(name=name, num_cpus=0, max_concurrency=1000, scheduling_strategy=node)


class WorkerObserver:
    """A worker's observer: the first worker publishes to the monitor.

    Training continues if the monitor has died.

    Args:
        monitor: The `RunMonitor` actor.
        first: Whether this is the run's first worker.
    """

    def __init__(self, monitor: ActorHandle, first: bool) -> None:
        self.monitor = monitor
        self.first = first
        self.published = 0.0
        self.signal = StopSignal(monitor.wait_for_stop.remote, if_lost=False) if first else None

    def progress(self, status: Status) -> None:
        if self.first and time.monotonic() - self.published > INTERVAL_S:
            self.published = time.monotonic()
            self.monitor.publish.remote(Update(status))

    def epoch(self, row: Row) -> None:
        self._publish(Update(rows=[row]))

    def warn(self, text: str) -> None:
        self._publish(Update(warnings=[text]))

    def ending(self) -> bool:
        return sigterm_received() or self.stop_requested()

    def stop_requested(self) -> bool:
        """Whether the monitor, rather than a signal to this worker, requests the stop."""
        return self.signal is not None and self.signal.is_set()

    def _publish(self, update: Update) -> None:
        if self.first:
            with suppress(RayActorError):
                ray.get(self.monitor.publish.remote(update))


class StopSignal:
    """Whether an actor requests a stop. One call to it stays pending, so checking is cheap.

    Args:
        wait: The actor's method, which returns True once a stop is requested, and False if it has
            to be called again.
        if_lost: Whether the actor's death counts as a request.
    """

    def __init__(self, wait: Callable[[], ObjectRef], if_lost: bool) -> None:
        self.wait = wait
        self.if_lost = if_lost
        self.pending: ObjectRef | None = wait()
        self.received = False

    def is_set(self) -> bool:
        """Whether a stop was requested."""
        if self.pending is not None and ray.wait([self.pending], timeout=0)[0]:
            answered, self.pending = self.pending, None
            try:
                self.received = ray.get(answered)
            except RayActorError:
                self.received = self.if_lost
            else:
                self.pending = None if self.received else self.wait()
        return self.received
