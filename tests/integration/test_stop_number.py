"""Stop numbers: detecting that no worker sends for a stopped mailing any more.

A stop draws a number. A worker publishes the number of the newest stop that it has applied.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncEngine
from tests.event_timeout import EVENT_TIMEOUT
from tests.factories import (
    add_due_messages,
    add_mailing,
    add_mailings,
    behind_all_stops,
    do,
    value,
)
from tests.processes import until_true

from mailer.access.model import COMMAND_LINE
from mailer.clock import elapsed
from mailer.dispatch.in_flight import InFlightRequests
from mailer.dispatch.loop_failures import LoopFailures
from mailer.dispatch.running_mailings import STALE_AFTER, RunningMailings
from mailer.mailing import service, stop_number
from mailer.sample_data import SampleMailing

MANY = 300
"""Running mailings in a test for which their number must not matter."""
COUNT_LOCKS = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock'"
"""Number of stop numbers that workers publish, each by a shared advisory lock."""


@asynccontextmanager
async def running_worker(database_url: str, mailing_count: int) -> AsyncIterator[RunningMailings]:
    """Track the running mailings as a worker does; yield when it has read `mailing_count`."""
    mailings = RunningMailings(
        database_url, InFlightRequests(), LoopFailures(), on_change=lambda _: None
    )
    task = asyncio.create_task(mailings.run())

    async def has_read_all() -> bool:
        return len(mailings.running) == mailing_count

    await until_true(has_read_all)
    try:
        yield mailings
    finally:
        task.cancel()
        await asyncio.wait({task})


async def is_applied(engine: AsyncEngine, number: int) -> bool:
    """Return whether every worker has applied the stop with this number."""
    return await do(engine, lambda db: stop_number.is_applied(db, number))


async def wait_until_applied(engine: AsyncEngine, number: int) -> None:
    await until_true(lambda: is_applied(engine, number))


async def test_a_worker_holds_one_lock_for_any_number_of_mailings(
    engine: AsyncEngine, shared_database_url: str
) -> None:
    running = SampleMailing(start=datetime.now(UTC))
    await add_mailings(engine, *[running] * MANY)
    async with running_worker(shared_database_url, MANY), running_worker(shared_database_url, MANY):
        assert await value(engine, COUNT_LOCKS) == 2
        number = await do(engine, stop_number.next_number)
        await wait_until_applied(engine, number)
        assert await value(engine, COUNT_LOCKS) == 2


async def test_a_stop_is_applied_when_the_mailing_is_removed_and_no_claim_is_running(
    engine: AsyncEngine, shared_database_url: str
) -> None:
    mailing_id = await add_due_messages(engine, 1)
    async with running_worker(shared_database_url, 1) as mailings:
        async with mailings.claiming:
            pausing = asyncio.create_task(service.pause(engine, mailing_id, COMMAND_LINE))

            async def is_removed() -> bool:
                return not mailings.running

            await until_true(is_removed)
            number = await do(engine, stop_number.next_number)
            assert not await is_applied(engine, number)
            assert not pausing.done()
        await wait_until_applied(engine, number)
        assert (await pausing).status == "paused"


async def test_a_stop_waits_for_every_worker_but_not_for_dead_ones(
    engine: AsyncEngine, shared_database_url: str
) -> None:
    async with running_worker(shared_database_url, 0):
        async with behind_all_stops(engine):  # another worker, which dies at the end of the block
            number = await do(engine, stop_number.next_number)
            assert not await is_applied(engine, number)
        await wait_until_applied(engine, number)


async def test_a_suspended_worker_sends_nothing_until_the_server_has_answered(
    engine: AsyncEngine, shared_database_url: str
) -> None:
    """Its session may have ended during the suspension, so that stops count as applied."""
    await add_due_messages(engine, 1)
    async with running_worker(shared_database_url, 1) as mailings:

        async def is_current() -> bool:
            return mailings.is_current(elapsed())

        await until_true(is_current)
        after_suspension = elapsed() + STALE_AFTER
        assert not mailings.is_current(after_suspension)


def test_a_worker_that_was_never_connected_sends_nothing() -> None:
    mailings = RunningMailings("", InFlightRequests(), LoopFailures(), on_change=lambda _: None)
    assert not mailings.is_current(elapsed())


async def test_a_worker_that_starts_after_a_stop_has_applied_it(
    engine: AsyncEngine, shared_database_url: str
) -> None:
    number = await do(engine, stop_number.next_number)
    async with running_worker(shared_database_url, 0):

        async def is_connected() -> bool:
            return bool(await value(engine, COUNT_LOCKS) == 1)

        await until_true(is_connected)
        assert await is_applied(engine, number)


async def test_pausing_a_scheduled_mailing_does_not_wait_for_workers(
    engine: AsyncEngine,
) -> None:
    start = datetime.now(UTC) + timedelta(minutes=30)
    mailing_id = await add_mailing(engine, start=start, status="scheduled")
    async with behind_all_stops(engine), asyncio.timeout(EVENT_TIMEOUT):
        paused = await service.pause(engine, mailing_id, COMMAND_LINE)
    assert paused.status == "paused"
