"""The lifecycle: the background loop that starts, enqueues and finishes mailings."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from itertools import takewhile

from sqlalchemy.ext.asyncio import AsyncEngine
from tests.event_timeout import EVENT_TIMEOUT
from tests.factories import add_delivered_mailing, add_mailing, add_mailings, execute, value
from tests.statements import recorded_statements

from mailer.dispatch.lifecycle import Lifecycle
from mailer.dispatch.loop_failures import LoopFailures
from mailer.mailing import mailing_batches
from mailer.sample_data import SampleMailing

COUNT_FINISHED = "SELECT count(*) FROM mailing WHERE status = 'finished'"
FINISH_MARK = "is_closed = true"
"""Part of the statement that finishes mailings, and of no other one."""
CHECK_MARK = "last_checked_id"
"""Part of the statement that finds pending work, and of no other one."""


def create_lifecycle(engine: AsyncEngine) -> Lifecycle:
    return Lifecycle(engine, LoopFailures(), on_messages=lambda _: None, is_sending=lambda: False)


@asynccontextmanager
async def running_in_background(lifecycle: Lifecycle) -> AsyncIterator[None]:
    """Run a lifecycle during the `with` block, which must end within `EVENT_TIMEOUT`."""
    task = asyncio.create_task(lifecycle.run())
    try:
        async with asyncio.timeout(EVENT_TIMEOUT):
            yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def add_running(engine: AsyncEngine, count: int) -> None:
    """Create running mailings that are never finished: each has an open message by its counts."""
    running = SampleMailing(start=datetime.now(UTC), clients=1)
    await add_mailings(engine, *[running] * count)
    await execute(engine, "UPDATE mailing_counts SET scheduled = 1")


async def test_a_failure_for_one_mailing_does_not_stop_the_others(
    engine: AsyncEngine,
) -> None:
    broken = await add_mailing(engine, clients=2)
    unreadable_filter = "client_filter = '{\"no\": 1}', audience_cursor = 0"
    await execute(engine, f"UPDATE mailing SET {unreadable_filter} WHERE id = {broken}")  # noqa: S608  # values of the test
    delivered = await add_delivered_mailing(engine)

    async with running_in_background(create_lifecycle(engine)):
        while await value(engine, COUNT_FINISHED) == 0:
            await asyncio.sleep(0.05)

    assert await value(engine, f"SELECT status FROM mailing WHERE id = {delivered}") == "finished"  # noqa: S608  # a number


async def test_a_wake_during_the_cancellation_does_not_prevent_it(engine: AsyncEngine) -> None:
    lifecycle = create_lifecycle(engine)
    task = asyncio.create_task(lifecycle.run())
    await asyncio.sleep(0.3)  # it waits for work now, or is about to
    lifecycle.wake()
    await asyncio.sleep(0)  # the wait has ended, but the task does not run yet
    task.cancel()
    await asyncio.wait([task], timeout=EVENT_TIMEOUT)
    assert task.cancelled()


async def test_a_mailing_without_open_messages_finishes_before_thousands_of_others_are_checked(
    engine: AsyncEngine,
) -> None:
    await add_running(engine, 2_000)
    delivered = await add_delivered_mailing(engine)
    lifecycle = create_lifecycle(engine)
    lifecycle.check_finished([delivered])
    lifecycle.check_finished(range(1, delivered))  # all others
    lifecycle.check_finished([delivered])  # again: the one that was added last is checked first

    with recorded_statements(engine) as statements:
        async with running_in_background(lifecycle):
            while not any(FINISH_MARK in statement for statement in statements):
                await asyncio.sleep(0.05)

    before_finish = list(takewhile(lambda statement: FINISH_MARK not in statement, statements))
    assert sum(CHECK_MARK in statement for statement in before_finish) == 1


async def test_mailings_with_results_finish_before_all_others_are_checked(
    engine: AsyncEngine,
) -> None:
    await add_running(engine, 4_000)  # to check all takes four iterations
    count = 2 * mailing_batches.MAILINGS_PER_BATCH
    lifecycle = create_lifecycle(engine)
    lifecycle.check_finished([await add_mailing(engine) for _ in range(count)])
    checks_before_finished = 0  # checks until all `count` mailings are finished

    with recorded_statements(engine) as statements:
        async with running_in_background(lifecycle):
            while checks_before_finished <= 2:
                # counted before the query, so that all of these checks are before its answer
                checks = sum(CHECK_MARK in statement for statement in statements)
                if await value(engine, COUNT_FINISHED) == count:
                    break
                checks_before_finished = checks
                await asyncio.sleep(0.01)

    assert checks_before_finished <= 2
