"""The job queue as plain asyncio, without Ray."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from raymed.launch import queue as queue_module
from raymed.launch.queue import ATTEMPTS, Delivery, Job, JobQueue


def play(scene: Coroutine[Any, Any, None]) -> None:
    """Run a scene to its end; one that waits for ever fails instead."""
    asyncio.run(asyncio.wait_for(scene, timeout=5))


async def waits(task: asyncio.Task[Any]) -> bool:
    """Whether a question is still open once everyone has had their turn."""
    for _ in range(20):
        await asyncio.sleep(0)
    return not task.done()


async def number_for(queue: JobQueue, group: int) -> int:
    delivery = await queue.next_job(group)
    assert delivery.job is not None
    return delivery.job.number


def test_jobs_go_out_in_the_order_they_came_in() -> None:
    async def scene() -> None:
        queue = JobQueue(2)
        for number in (4, 2, 7):
            await queue.submit(Job(number, "run", {"loss.tag": number}))
        delivery = await queue.next_job(0)
        assert delivery.job is not None
        assert (delivery.job.number, delivery.job.values) == (4, {"loss.tag": 4})
        assert await number_for(queue, 1) == 2
        await queue.finish(0)
        assert await number_for(queue, 0) == 7

    play(scene())


def test_a_group_waits_for_a_job() -> None:
    async def scene() -> None:
        queue = JobQueue(1)
        asked = asyncio.create_task(queue.next_job(0))
        assert await waits(asked)
        await queue.submit(Job(3, "run", {}))
        delivery = await asked
        assert delivery.job is not None
        assert delivery.job.number == 3

    play(scene())


def test_a_group_is_answered_now_and_then_that_there_is_no_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(queue_module, "PATIENCE_S", 0.01)

    async def scene() -> None:
        queue = JobQueue(1)
        assert await queue.next_job(0) == Delivery(None)
        # The queue works on after the question was given up.
        await queue.submit(Job(1, "run", {}))
        assert await number_for(queue, 0) == 1

    play(scene())


def test_the_next_epoch_waits_for_the_trials_leave() -> None:
    async def scene() -> None:
        queue = JobQueue(1)
        await queue.submit(Job(1, "run", {}))
        await queue.next_job(0)
        first = asyncio.create_task(queue.next_row(1, 0))
        assert await waits(first)
        reported = asyncio.create_task(queue.report_epoch(1, {"epoch": 1}))
        assert await first == ({"epoch": 1}, "")
        # The trial thinks about the row; the group waits.
        assert await waits(reported)
        second = asyncio.create_task(queue.next_row(1, 1))
        assert await reported is True
        assert await waits(second)
        again = asyncio.create_task(queue.report_epoch(1, {"epoch": 2}))
        assert await second == ({"epoch": 2}, "")
        assert await waits(again)
        third = asyncio.create_task(queue.next_row(1, 2))
        assert await again is True
        await queue.finish(0)
        assert await third == (None, "")

    play(scene())


def test_a_failure_reaches_its_trial_after_the_rows() -> None:
    async def scene() -> None:
        queue = JobQueue(1)
        await queue.submit(Job(1, "run", {}))
        await queue.next_job(0)
        reported = asyncio.create_task(queue.report_epoch(1, {"epoch": 1}))
        assert await waits(reported)
        await queue.finish(0, "out of memory")
        await queue.finish(0, "said by another worker as well")
        assert await queue.next_row(1, 0) == ({"epoch": 1}, "")
        assert await queue.next_row(1, 1) == (None, "out of memory")
        assert await reported is True

    play(scene())


def test_a_stopped_trial_gets_no_further_epoch() -> None:
    async def scene() -> None:
        queue = JobQueue(1)
        await queue.stop(9)  # of a trial that never came to submit: nothing to stop
        await queue.submit(Job(1, "run", {}))
        await queue.next_job(0)
        reported = asyncio.create_task(queue.report_epoch(1, {"epoch": 1}))
        assert await waits(reported)
        await queue.stop(1)
        assert await reported is False
        # A trial may be stopped while its group is in the middle of an epoch, too.
        assert await queue.report_epoch(1, {"epoch": 2}) is False

    play(scene())


def test_a_group_that_died_gets_its_job_again_before_others() -> None:
    async def scene() -> None:
        queue = JobQueue(2)
        for number in (1, 2, 3):
            await queue.submit(Job(number, "run", {}))
        assert [await number_for(queue, 0), await number_for(queue, 1)] == [1, 2]
        reported = asyncio.create_task(queue.report_epoch(1, {"epoch": 1}))
        assert await waits(reported)
        # Group 0 has not finished, and asks: it died. What it had reported comes with the job.
        delivery = await queue.next_job(0)
        assert delivery.job is not None
        assert (delivery.job.number, delivery.job.rows) == (1, [{"epoch": 1}])
        assert delivery.job.attempts == 2
        assert not delivery.job.ended

    play(scene())


def test_a_job_whose_workers_keep_dying_fails_and_the_next_one_comes() -> None:
    async def scene() -> None:
        queue = JobQueue(1)
        await queue.submit(Job(1, "run", {}))
        await queue.submit(Job(2, "run", {}))
        for _ in range(ATTEMPTS):
            assert await number_for(queue, 0) == 1
        assert await number_for(queue, 0) == 2
        assert await queue.next_row(1, 0) == (None, f"its workers died {ATTEMPTS} times")

    play(scene())


def test_a_stopped_job_is_not_tried_again() -> None:
    async def scene() -> None:
        queue = JobQueue(1)
        await queue.submit(Job(1, "run", {}))
        await queue.submit(Job(2, "run", {}))
        assert await number_for(queue, 0) == 1
        await queue.stop(1)
        assert await number_for(queue, 0) == 2
        assert await queue.next_row(1, 0) == (None, "")

    play(scene())


def test_without_any_group_left_every_job_fails() -> None:
    async def scene() -> None:
        queue = JobQueue(2)
        for number in (1, 2, 3):
            await queue.submit(Job(number, "run", {}))
        await number_for(queue, 0)
        await number_for(queue, 1)
        third = asyncio.create_task(queue.next_row(3, 0))
        await queue.lose_group(0, "a node is gone")
        assert await queue.next_row(1, 0) == (None, "a node is gone")
        # One group is left to train what waits.
        assert await waits(third)
        await queue.lose_group(1, "the other node is gone")
        assert await queue.next_row(2, 0) == (None, "the other node is gone")
        assert await third == (None, "the other node is gone")
        await queue.submit(Job(4, "run", {}))
        assert await queue.next_row(4, 0) == (None, "the other node is gone")

    play(scene())


def test_closing_sends_everyone_home() -> None:
    async def scene() -> None:
        queue = JobQueue(2)
        await queue.submit(Job(1, "run", {}))
        await number_for(queue, 0)
        reported = asyncio.create_task(queue.report_epoch(1, {"epoch": 1}))
        asked = asyncio.create_task(queue.next_job(1))
        assert await waits(reported)
        assert await waits(asked)
        await queue.close()
        assert await asked == Delivery(None, closed=True)
        # What is in training stops after its epoch.
        assert await reported is False
        await queue.finish(0)
        assert await queue.next_job(0) == Delivery(None, closed=True)

    play(scene())


def test_jobs_of_a_sweep_that_was_broken_off_are_not_begun() -> None:
    async def scene() -> None:
        queue = JobQueue(1)
        await queue.submit(Job(1, "run", {}))
        await queue.submit(Job(2, "run", {}))
        assert await number_for(queue, 0) == 1
        await queue.close()
        await queue.finish(0)
        assert await queue.next_job(0) == Delivery(None, closed=True)

    play(scene())


def test_a_free_job_trains_on_without_leave() -> None:
    async def scene() -> None:
        queue = JobQueue(1)
        await queue.submit(Job(1, "run", {}, "test"), free=True)
        delivery = await queue.next_job(0)
        assert delivery.job is not None
        assert delivery.job.score == "test"
        for epoch in range(1, 4):
            assert await queue.report_epoch(1, {"epoch": epoch}) is True
        (job,) = await queue.drain()
        assert [row["epoch"] for row in job.rows] == [1, 2, 3]
        assert not job.ended
        await queue.finish(0)
        (job,) = await queue.drain()
        assert job.ended
        assert job.failure == ""

    play(scene())


def test_a_free_job_whose_group_died_stays_free_and_keeps_its_rows() -> None:
    async def scene() -> None:
        queue = JobQueue(1)
        await queue.submit(Job(1, "run", {}), free=True)
        assert await number_for(queue, 0) == 1
        assert await queue.report_epoch(1, {"epoch": 1}) is True
        delivery = await queue.next_job(0)
        assert delivery.job is not None
        assert (delivery.job.attempts, delivery.job.rows) == (2, [{"epoch": 1}])
        assert await queue.report_epoch(1, {"epoch": 2}) is True

    play(scene())


def test_draining_gives_only_what_is_new_of_free_jobs() -> None:
    async def scene() -> None:
        queue = JobQueue(1)
        for number in (5, 6, 7):
            await queue.submit(Job(number, f"run-{number}", {}), free=True)
        assert await queue.drain() == []
        assert await number_for(queue, 0) == 5
        await queue.warn(5, "the disk is slow")
        await queue.finish(0, "diverged")
        assert await number_for(queue, 0) == 6
        assert [(j.folder, j.ended, j.failure, j.warnings) for j in await queue.drain()] == [
            ("run-5", True, "diverged", ["the disk is slow"]),
            ("run-6", False, "", []),
        ]
        assert await queue.drain() == []
        await queue.warn(6, "the disk is slow")
        await queue.report_epoch(6, {"epoch": 1})
        assert [(j.number, j.warnings) for j in await queue.drain()] == [(6, ["the disk is slow"])]
        await queue.report_epoch(6, {"epoch": 2})
        assert [(j.number, j.rows, j.warnings) for j in await queue.drain()] == [
            (6, [{"epoch": 1}, {"epoch": 2}], [])
        ]

    play(scene())


def test_a_job_is_forgotten_once_everyone_knows_that_it_is_over() -> None:
    async def scene() -> None:
        queue = JobQueue(1)
        # A trial that comes to its end, and one that is stopped early; each stop is the driver's.
        for number in (1, 2):
            await queue.submit(Job(number, "run", {}))
            assert await number_for(queue, 0) == number
            reported = asyncio.create_task(queue.report_epoch(number, {"epoch": 1}))
            assert await queue.next_row(number, 0) == ({"epoch": 1}, "")
            if number == 1:
                last = asyncio.create_task(queue.next_row(1, 1))
                assert await reported is True
                await queue.finish(0)
                assert await last == (None, "")
                # Its trial may have died before it was told, and then it is asked for again.
                assert await queue.next_row(1, 1) == (None, "")
                await queue.stop(1)
            else:
                await queue.stop(2)
                assert await reported is False
                await queue.finish(0)
        await queue.submit(Job(3, "run", {}), free=True)
        assert await number_for(queue, 0) == 3
        await queue.finish(0)
        assert list(queue.jobs) == [3]
        assert [job.number for job in await queue.drain()] == [3]
        assert not queue.jobs
        assert not queue.in_training
        # What comes too late is of no consequence.
        await queue.warn(1, "late")
        assert await queue.report_epoch(2, {"epoch": 2}) is False
        assert await queue.next_row(2, 1) == (None, "")

    play(scene())


def test_a_job_is_not_given_to_a_worker_that_died_while_it_asked() -> None:
    async def scene() -> None:
        queue = JobQueue(1)
        dead = asyncio.create_task(queue.next_job(0))
        assert await waits(dead)
        alive = asyncio.create_task(queue.next_job(0))
        assert await waits(alive)
        for number in (1, 2):
            await queue.submit(Job(number, "run", {}))
        assert await dead == Delivery(None)
        delivery = await alive
        assert delivery.job is not None
        assert (delivery.job.number, delivery.job.attempts) == (1, 1)
        await queue.finish(0)
        assert await number_for(queue, 0) == 2

    play(scene())


def test_a_job_that_a_dead_worker_was_given_goes_to_its_successor() -> None:
    async def scene() -> None:
        queue = JobQueue(1)
        dead = asyncio.create_task(queue.next_job(0))
        assert await waits(dead)
        for number in (1, 2):
            await queue.submit(Job(number, "run", {}))
        assert (await dead).job is not None
        assert await number_for(queue, 0) == 1
        await queue.finish(0)
        assert await number_for(queue, 0) == 2

    play(scene())


def test_closing_stops_a_free_job_at_its_next_report() -> None:
    async def scene() -> None:
        queue = JobQueue(1)
        await queue.submit(Job(1, "run", {}), free=True)
        await queue.submit(Job(2, "run", {}), free=True)
        assert await number_for(queue, 0) == 1
        assert await queue.report_epoch(1, {"epoch": 1}) is True
        await queue.close()
        assert await queue.report_epoch(1, {"epoch": 2}) is False
        await queue.finish(0)
        assert await queue.next_job(0) == Delivery(None, closed=True)

    play(scene())


def test_free_jobs_end_with_the_reason_when_no_group_is_left() -> None:
    async def scene() -> None:
        queue = JobQueue(1)
        for number in (1, 2):
            await queue.submit(Job(number, "run", {}), free=True)
        assert await number_for(queue, 0) == 1
        await queue.lose_group(0, "a node is gone")
        await queue.submit(Job(3, "run", {}), free=True)
        states = [(job.ended, job.failure) for job in await queue.drain()]
        assert states == [(True, "a node is gone")] * 3

    play(scene())


def test_a_trials_warnings_are_passed_on_once_even_after_its_end() -> None:
    async def scene() -> None:
        queue = JobQueue(1)
        await queue.submit(Job(3, "runs/trial-003", {}))
        assert await number_for(queue, 0) == 3
        await queue.warn(3, "slow")
        await queue.stop(3)
        await queue.finish(0)
        await queue.warn(3, "late")
        assert await queue.warnings() == [("runs/trial-003", "slow")]
        assert await queue.warnings() == await queue.drain() == []

    play(scene())
