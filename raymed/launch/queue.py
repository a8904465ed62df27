"""The queue between those who want runs trained and the worker groups that train them.

One Ray actor holds it. A sweep's trial submits a job and asks for its rows of metrics one by one;
asking for the next row is the leave to train the next epoch. A worker group takes a job, reports
rows, and waits for that leave, so ASHA's verdict on an epoch comes before the next one is begun. A
table's jobs are submitted free: they are trained to their end without leave, and then scored.
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
"""How long a group's question may stay open: its other workers wait for a job too, and one whose
worker died is answered to nobody."""
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
        warnings: of what went wrong while it was trained on, of a free one.
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
    last_error: str = ""
    warnings: list[str] = field(default_factory=list)

    @property
    def free(self) -> bool:
        """Whether it is trained to its end without leave."""
        return self.allowed == math.inf


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
    """Jobs waiting and in training; all methods are coroutines of one event loop.

    However many jobs there are, it holds only those that are not over: an ended job is forgotten
    once its trial, or the one who follows the free jobs, knows of it.

    Args:
        groups: numbers of the worker groups that will ask for jobs.
    """

    def __init__(self, groups: int) -> None:
        self.jobs: dict[int, Job] = {}
        self.news: dict[int, Job] = {}
        self.asked: dict[int, object] = {}
        self.waiting: deque[Job] = deque()
        self.in_training: dict[int, Job] = {}
        self.groups = set(range(groups))
        self.warned: list[tuple[str, str]] = []
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
            if self.closed or not self.groups:
                self._end(job, self.lost_reason)
            else:
                self.waiting.append(job)
            self.changed.notify_all()
            return 0

    async def next_row(self, number: int, known: int) -> tuple[Row | None, str]:
        """The row after the ``known`` first ones; None and the failure, if any, at the end."""
        async with self.changed:
            job = self.jobs.get(number)
            if job is None:
                return None, ""
            job.allowed = max(job.allowed, known)
            self.changed.notify_all()
            await self.changed.wait_for(lambda: len(job.rows) > known or job.ended)
            return (job.rows[known], "") if len(job.rows) > known else (None, job.failure)

    async def drain(self) -> list[Job]:
        """The free jobs of which there is news since it was last asked, each with what was new
        among its warnings."""
        news = [replace(job, rows=list(job.rows)) for job in self.news.values()]
        for job in self.news.values():
            job.warnings = []
            if job.ended:
                self.jobs.pop(job.number, None)
        self.news.clear()
        return news

    async def stop(self, number: int) -> None:
        """The trial is over: its job is not to train another epoch."""
        async with self.changed:
            if number in self.jobs:
                self._stop(self.jobs[number])
            self.changed.notify_all()

    async def next_job(self, group: int) -> Delivery:
        """What a group is to do next. A group that died is given its job again.

        A group asks once at a time. Where it asks anew, its worker died while the question before
        was open; a job given in answer to that one would be trained by nobody.
        """
        async with self.changed:
            question = self.asked[group] = object()
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
            await self._patiently(
                lambda: self.waiting or self.closed or self.asked[group] is not question
            )
            if self.closed:
                return Delivery(None, closed=True)
            if not self.waiting or self.asked[group] is not question:
                return Delivery(None)
            job = self.waiting.popleft()
            job.attempts += 1
            self.in_training[group] = job
            self._tell(job)
            return Delivery(job)

    async def report(self, number: int, row: Row) -> bool:
        """A group reports an epoch; True once the trial wants another, False if it does not.

        An epoch that it reported before, and then trained again because its workers died before
        the checkpoint was whole, is known.
        """
        async with self.changed:
            job = self.jobs.get(number)
            if job is None:
                return False
            if row["epoch"] > len(job.rows):
                job.rows.append(row)
                self._tell(job)
            self.changed.notify_all()
            await self.changed.wait_for(lambda: job.allowed >= len(job.rows) or job.stopped)
            return not job.stopped

    async def finish(self, group: int, failure: str = "") -> None:
        """A group is done with its job, if it still has one: several of its workers may say so."""
        async with self.changed:
            if group in self.in_training:
                self._end(self.in_training.pop(group), failure)
            self.changed.notify_all()

    async def refund_attempt(self, number: int) -> None:
        """A job's attempt was ended from outside, and does not count."""
        if number in self.jobs:
            self.jobs[number].attempts -= 1

    async def warn(self, number: int, words: str) -> None:
        """Something went wrong with a job, and its training goes on."""
        job = self.jobs.get(number)
        if job is not None and job.free:
            job.warnings.append(words)
            self._tell(job)
        elif job is not None:
            self.warned.append((job.folder, words))

    async def warnings(self) -> list[tuple[str, str]]:
        """What went wrong with trials since it was last asked: their folders, and the words."""
        warned, self.warned = self.warned, []
        return warned

    async def wait_until_closed(self) -> bool:
        """Whether all is over, and a job in training is to write a checkpoint and end; waits for
        that, but no longer than `PATIENCE_S`."""
        async with self.changed:
            await self._patiently(lambda: self.closed)
            return self.closed

    async def record_error(self, number: int, words: str) -> None:
        """A worker is about to die of a job."""
        if number in self.jobs:
            self.jobs[number].last_error = words

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
            while self.waiting:
                self._end(self.waiting.popleft(), "")
            for job in list(self.jobs.values()):
                self._stop(job)
            self.changed.notify_all()

    async def _patiently(self, come: Callable[[], object]) -> None:
        """Wait for it, for a while."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.changed.wait_for(come), PATIENCE_S)

    def _tell(self, job: Job) -> None:
        if job.free:
            self.news[job.number] = job

    def _stop(self, job: Job) -> None:
        job.stopped = True
        self._forget(job)

    def _end(self, job: Job, failure: str) -> None:
        job.ended = True
        job.failure = failure
        self._tell(job)
        self._forget(job)

    def _forget(self, job: Job) -> None:
        # A free job's end is still to be heard.
        if job.ended and job.stopped and not job.free:
            self.jobs.pop(job.number, None)
