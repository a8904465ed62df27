"""The queue of jobs between the clients that submit them and the worker groups that train them.

It is a Ray actor. A sweep's trial submits a job and requests its rows of metrics one by one;
requesting the next row gives permission to train the next epoch. A worker group takes a job,
reports rows, and waits for that permission, so ASHA decides on an epoch before the next one starts.
A table's jobs are submitted as free: they train to the end without permission, and are then scored.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from raymed.training.observer import Row

PATIENCE_S = 20.0
"""How long a group's call may stay pending: a call whose worker died is never collected, and the
group's other workers wait for its answer too."""
ATTEMPTS = 3
"""How often a job is delivered at most, if the workers that train it die."""


@dataclass
class Job:
    """One run to train.

    Attributes:
        number: Job number.
        folder: The run's folder, whose last part is the run's name.
        values: Dotted keys of the configuration and their values.
        score: The split on which to score the trained run, if any.
        rows: Metrics reported so far, one row per epoch.
        allowed: Number of rows after which the trial has permitted another epoch.
        attempts: How often the job was delivered to a group.
        stopped: Whether no further epoch is wanted.
        ended: Whether no further row will come.
        failure: Why the job failed; empty unless it did.
        last_error: The last error of workers that died of the job.
        warnings: Warnings of a free job.
    """

    number: int
    folder: str
    values: dict[str, Any]
    score: str | None = None
    rows: list[Row] = field(default_factory=list)
    allowed: float = 0
    attempts: int = 0
    stopped: bool = False
    ended: bool = False
    failure: str = ""
    last_error: str = ""
    warnings: list[str] = field(default_factory=list)

    @property
    def free(self) -> bool:
        """Whether the job trains to the end without permission."""
        return self.allowed == math.inf


@dataclass(frozen=True)
class Delivery:
    """The answer to a group that requests a job.

    Attributes:
        job: The job to train, from its last checkpoint if it has one; None if there is none yet.
        closed: Whether there will be no more jobs.
    """

    job: Job | None
    closed: bool = False


class JobQueue:
    """Jobs waiting and in training; all methods are coroutines of one event loop.

    It holds unfinished jobs only: an ended job is dropped once its trial, or the client that drains
    the free jobs, has been notified.

    Args:
        groups: Number of worker groups that will request jobs.
    """

    def __init__(self, groups: int) -> None:
        self.jobs: dict[int, Job] = {}
        self.updated: dict[int, Job] = {}
        self.requests: dict[int, object] = {}
        self.waiting: deque[Job] = deque()
        self.in_training: dict[int, Job] = {}
        self.groups = set(range(groups))
        self.warned: list[tuple[str, str]] = []
        self.closed = False
        self.lost_reason = ""
        self.changed = asyncio.Condition()

    async def submit(self, job: Job, free: bool = False) -> int:
        """Submit a run to be trained; a free one needs no permission for its epochs.

        Returns the number of epochs that were already permitted: more than 0 if the trial's client
        died and its successor submits the job again.
        """
        async with self.changed:
            if job.number in self.jobs:
                return int(self.jobs[job.number].allowed)
            self.jobs[job.number] = job
            if free:
                job.allowed = math.inf
            if self.closed or not self.groups:
                self._end(job, self.lost_reason)
            else:
                self.waiting.append(job)
            self.changed.notify_all()
            return 0

    async def next_row(self, number: int, known: int) -> tuple[Row | None, str]:
        """Wait for the row after the first ``known``; at the end None and the failure, if any."""
        async with self.changed:
            job = self.jobs.get(number)
            if job is None:
                return None, ""
            job.allowed = max(job.allowed, known)
            self.changed.notify_all()
            await self.changed.wait_for(lambda: len(job.rows) > known or job.ended)
            return (job.rows[known], "") if len(job.rows) > known else (None, job.failure)

    async def drain(self) -> list[Job]:
        """The free jobs that changed since the last call, each with its new warnings only."""
        updates = [replace(job, rows=list(job.rows)) for job in self.updated.values()]
        for job in self.updated.values():
            job.warnings = []
            if job.ended:
                self.jobs.pop(job.number, None)
        self.updated.clear()
        return updates

    async def stop(self, number: int) -> None:
        """The trial has ended: its job must not train another epoch."""
        async with self.changed:
            if number in self.jobs:
                self._stop(self.jobs[number])
            self.changed.notify_all()

    async def next_job(self, group: int) -> Delivery:
        """The next job of a group; a group that died gets its job again.

        A group makes one request at a time. If it makes another, its worker died while the previous
        request was pending, and a job delivered in answer to that one would be lost.
        """
        async with self.changed:
            request = self.requests[group] = object()
            unfinished = self.in_training.pop(group, None)
            if unfinished is not None:
                if unfinished.attempts >= ATTEMPTS:
                    why = f" ({unfinished.last_error})" if unfinished.last_error else ""
                    self._end(unfinished, f"its workers died {ATTEMPTS} times{why}")
                elif unfinished.stopped:
                    self._end(unfinished, "")
                else:
                    self.waiting.appendleft(unfinished)
            self.changed.notify_all()
            await self._wait_briefly(
                lambda: self.waiting or self.closed or self.requests[group] is not request
            )
            if self.closed:
                return Delivery(None, closed=True)
            if not self.waiting or self.requests[group] is not request:
                return Delivery(None)
            job = self.waiting.popleft()
            job.attempts += 1
            self.in_training[group] = job
            self._mark_updated(job)
            return Delivery(job)

    async def report_epoch(self, number: int, row: Row) -> bool:
        """Add an epoch's metrics; returns whether to train another epoch, once that is decided.

        An epoch that was reported before, and trained again because the workers died before its
        checkpoint was complete, is not added twice.
        """
        async with self.changed:
            job = self.jobs.get(number)
            if job is None:
                return False
            if row["epoch"] > len(job.rows):
                job.rows.append(row)
                self._mark_updated(job)
            self.changed.notify_all()
            await self.changed.wait_for(lambda: job.allowed >= len(job.rows) or job.stopped)
            return not job.stopped

    async def finish(self, group: int, failure: str = "") -> None:
        """A group has finished its job, if it still has one: several workers may report it."""
        async with self.changed:
            if group in self.in_training:
                self._end(self.in_training.pop(group), failure)
            self.changed.notify_all()

    async def refund_attempt(self, number: int) -> None:
        """A job's attempt was interrupted from outside, and does not count."""
        if number in self.jobs:
            self.jobs[number].attempts -= 1

    async def warn(self, number: int, text: str) -> None:
        """Add a warning about a job whose training continues."""
        job = self.jobs.get(number)
        if job is not None and job.free:
            job.warnings.append(text)
            self._mark_updated(job)
        elif job is not None:
            self.warned.append((job.folder, text))

    async def warnings(self) -> list[tuple[str, str]]:
        """Warnings of trials since the last call: their folders and the texts."""
        warned, self.warned = self.warned, []
        return warned

    async def wait_until_closed(self) -> bool:
        """Whether the queue is closed, so that a job in training is to write a checkpoint and stop;
        waits up to `PATIENCE_S` for that."""
        async with self.changed:
            await self._wait_briefly(lambda: self.closed)
            return self.closed

    async def record_error(self, number: int, text: str) -> None:
        """Record the error of which a worker is about to die."""
        if number in self.jobs:
            self.jobs[number].last_error = text

    async def lose_group(self, group: int, reason: str) -> None:
        """A group will not return; once no group is left, every job fails."""
        async with self.changed:
            self.groups.discard(group)
            if group in self.in_training:
                self._end(self.in_training.pop(group), reason)
            if not self.groups:
                self.lost_reason = reason
                while self.waiting:
                    self._end(self.waiting.popleft(), reason)
            self.changed.notify_all()

    async def close(self) -> None:
        """Close the queue: jobs stop at their next report, and idle groups shut down."""
        async with self.changed:
            self.closed = True
            while self.waiting:
                self._end(self.waiting.popleft(), "")
            for job in list(self.jobs.values()):
                self._stop(job)
            self.changed.notify_all()

    async def _wait_briefly(self, condition: Callable[[], object]) -> None:
        """Wait for a condition, but no longer than `PATIENCE_S`."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.changed.wait_for(condition), PATIENCE_S)

    def _mark_updated(self, job: Job) -> None:
        if job.free:
            self.updated[job.number] = job

    def _stop(self, job: Job) -> None:
        job.stopped = True
        self._drop_if_over(job)

    def _end(self, job: Job, failure: str) -> None:
        job.ended = True
        job.failure = failure
        self._mark_updated(job)
        self._drop_if_over(job)

    def _drop_if_over(self, job: Job) -> None:
        # The end of a free job has yet to be drained.
        if job.ended and job.stopped and not job.free:
            self.jobs.pop(job.number, None)
