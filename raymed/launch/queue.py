"""The queue between those who want runs trained and the worker groups that train them.

One Ray actor holds it. A sweep's trial submits a job and asks for its rows of metrics one by one;
asking for the next row is the leave to train the next epoch. A worker group takes a job, reports
rows, and waits for that leave, so ASHA's verdict on an epoch comes before the next one is begun. A
table's jobs are submitted free: they are trained to their end without leave, and then scored.
"""

import asyncio
import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from raymed.training.observer import Row

PATIENCE_S = 20.0
"""How long a group's question for a job may stay open; the other workers wait for its answer."""
ATTEMPTS = 3
"""How often a job is delivered, at most, when the workers that train it die."""


@dataclass
class Job:
    """One run to train.

    Attributes:
        number: the job's.
        folder: of the run; its last part is the run's name.
        values: dotted keys of the configuration and their values.
        score: the split on which the trained run is to be scored, if any.
        rows: reported so far, one per epoch.
        allowed: rows after which the trial has given leave to go on.
        attempts: how often it was delivered to a group.
        stopped: no further epoch is wanted.
        ended: no further row will come.
        failure: why it ended, if it failed.
        warnings: of what went wrong while it was trained on.
        complaint: the last words of workers that died of it.
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
    complaint: str = ""
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Delivery:
    """What a group is told: a job, or that there is none yet (None), or that it may leave.

    Attributes:
        job: to train, from its last checkpoint if it has one.
        closed: there will be none.
    """

    job: Job | None
    closed: bool = False


class JobQueue:
    """Jobs waiting, in training and ended; all methods are coroutines of one event loop.

    Args:
        groups: numbers of the worker groups that will ask for jobs.
    """

    def __init__(self, groups: int) -> None:
        self.jobs: dict[int, Job] = {}
        self.waiting: deque[Job] = deque()
        self.in_training: dict[int, Job] = {}
        self.groups = set(range(groups))
        self.closed = False
        self.lost_reason = ""
        self.changed = asyncio.Condition()

    async def submit(self, job: Job, free: bool = False) -> int:
        """A run is to be trained; a free one needs no leave for its epochs.

        Returns how many of its epochs were decided on: more than none where the trial that
        submitted it has died, and its successor submits it again.
        """
        async with self.changed:
            if job.number in self.jobs:
                return int(self.jobs[job.number].allowed)
            self.jobs[job.number] = job
            if free:
                job.allowed = math.inf
            if self.groups:
                self.waiting.append(job)
            else:
                self._end(job, self.lost_reason)
            self.changed.notify_all()
            return 0

    async def next_row(self, number: int, known: int) -> tuple[Row | None, str]:
        """The row after the ``known`` first ones; None and the failure, if any, at the end."""
        job = self.jobs[number]
        async with self.changed:
            job.allowed = max(job.allowed, known)
            self.changed.notify_all()
            await self.changed.wait_for(lambda: len(job.rows) > known or job.ended)
            return (job.rows[known], "") if len(job.rows) > known else (None, job.failure)

    async def states(self) -> list[Job]:
        """All jobs, as far as they are."""
        return list(self.jobs.values())

    async def stop(self, number: int) -> None:
        """The trial is over: its job is not to train another epoch."""
        async with self.changed:
            if number in self.jobs:
                self.jobs[number].stopped = True
            self.changed.notify_all()

    async def next_job(self, group: int) -> Delivery:
        """What a group is to do next. A group that died is given its job again."""
        async with self.changed:
            unfinished = self.in_training.pop(group, None)
            if unfinished is not None:
                if unfinished.attempts >= ATTEMPTS:
                    why = f" ({unfinished.complaint})" if unfinished.complaint else ""
                    self._end(unfinished, f"its workers died {ATTEMPTS} times{why}")
                elif unfinished.stopped:
                    self._end(unfinished, "")
                else:
                    self.waiting.appendleft(unfinished)
                self.changed.notify_all()
            try:
                await asyncio.wait_for(
                    self.changed.wait_for(lambda: self.waiting or self.closed), PATIENCE_S
                )
            except TimeoutError:
                return Delivery(None)
            if not self.waiting:
                return Delivery(None, closed=True)
            job = self.waiting.popleft()
            job.attempts += 1
            self.in_training[group] = job
            return Delivery(job)

    async def report(self, number: int, row: Row) -> bool:
        """A group reports an epoch; True once the trial wants another, False if it does not.

        An epoch that it reported before, and then trained again because its workers died before
        the checkpoint was whole, is known.
        """
        job = self.jobs[number]
        async with self.changed:
            if row["epoch"] > len(job.rows):
                job.rows.append(row)
            self.changed.notify_all()
            await self.changed.wait_for(lambda: job.allowed >= len(job.rows) or job.stopped)
            return not job.stopped

    async def finish(self, group: int, failure: str = "") -> None:
        """A group is done with its job, if it still has one: several of its workers may say so."""
        async with self.changed:
            if group in self.in_training:
                self._end(self.in_training.pop(group), failure)
            self.changed.notify_all()

    async def forgive(self, number: int) -> None:
        """A job's attempt was ended from outside, and does not count."""
        self.jobs[number].attempts -= 1

    async def warn(self, number: int, words: str) -> None:
        """Something went wrong with a job, and its training goes on."""
        self.jobs[number].warnings.append(words)

    async def until_closed(self) -> None:
        """All is over, and a job in training is to write a checkpoint and end."""
        async with self.changed:
            await self.changed.wait_for(lambda: self.closed)

    async def complain(self, number: int, words: str) -> None:
        """A worker is about to die of a job."""
        self.jobs[number].complaint = words

    async def lose_group(self, group: int, reason: str) -> None:
        """A group will not come back; without any group left, every job fails."""
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
        """All is over: jobs stop at their next report, and groups that ask are sent home."""
        async with self.changed:
            self.closed = True
            self.waiting.clear()
            for job in self.jobs.values():
                job.stopped = True
            self.changed.notify_all()

    def _end(self, job: Job, failure: str) -> None:
        job.ended = True
        job.failure = failure
