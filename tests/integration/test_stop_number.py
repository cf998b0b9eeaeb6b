"""Stop numbers: detecting that no worker sends for a stopped mailing any more.

A stop draws a number. A worker publishes the number of the newest stop that it has applied.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from sqlalchemy.ext.asyncio import AsyncEngine
from tests.event_timeout import EVENT_TIMEOUT
from tests.factories import add_due_messages, add_mailings, behind_all_stops, do, execute, value
from tests.processes import until

from mailer.access.model import COMMAND_LINE
from mailer.clock import elapsed
from mailer.dispatch.in_flight import InFlightRequests
from mailer.dispatch.loop_failures import LoopFailures
from mailer.dispatch.running_mailings import STALE_AFTER, RunningMailings
from mailer.mailing import service, stop_number
from mailer.sample_data import SampleMailing

MANY = 300
COUNT_LOCKS = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock'"


@asynccontextmanager
async def running_worker(database_url: str, mailing_count: int) -> AsyncIterator[RunningMailings]:
    """Track the running mailings as a worker does; yield when it has read `mailing_count`."""
    mailings = RunningMailings(database_url, InFlightRequests(), LoopFailures(), lambda _: None)
    task = asyncio.create_task(mailings.run())

    async def is_running() -> bool | None:
        return len(mailings.running) == mailing_count or None

    await until(is_running)
    try:
        yield mailings
    finally:
        task.cancel()
        await asyncio.wait({task})


async def is_applied(engine: AsyncEngine, number: int) -> bool:
    """Return whether every worker has applied the stop with this number."""
    return await do(engine, lambda db: stop_number.is_applied(db, number))


async def wait_until_applied(engine: AsyncEngine, number: int) -> None:
    async def check() -> bool | None:
        return await is_applied(engine, number) or None

    await until(check)


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

            async def is_removed() -> bool | None:
                return not mailings.running or None

            await until(is_removed)
            number = await do(engine, stop_number.next_number)
            assert not await is_applied(engine, number)
            assert not pausing.done()
        await wait_until_applied(engine, number)
        assert (await pausing).status == "paused"


async def test_a_stop_waits_for_every_worker_but_not_for_dead_ones(
    engine: AsyncEngine, shared_database_url: str
) -> None:
    async with running_worker(shared_database_url, 0):
        async with behind_all_stops(engine):  # another worker, until the end of the block
            number = await do(engine, stop_number.next_number)
            await asyncio.sleep(0)
            assert not await is_applied(engine, number)
        await wait_until_applied(engine, number)


async def test_a_suspended_worker_sends_nothing_until_the_server_has_answered(
    engine: AsyncEngine, shared_database_url: str
) -> None:
    """Its session may have ended during the suspension, so that stops count as applied."""
    await add_due_messages(engine, 1)
    async with running_worker(shared_database_url, 1) as mailings:

        async def is_current() -> bool | None:
            return mailings.is_current(elapsed()) or None

        await until(is_current)
        after_suspension = elapsed() + STALE_AFTER
        assert not mailings.is_current(after_suspension)


def test_a_worker_that_was_never_connected_sends_nothing() -> None:
    mailings = RunningMailings("", InFlightRequests(), LoopFailures(), lambda _: None)
    assert not mailings.is_current(elapsed())


async def test_a_worker_that_starts_after_a_stop_has_applied_it(
    engine: AsyncEngine, shared_database_url: str
) -> None:
    number = await do(engine, stop_number.next_number)
    async with running_worker(shared_database_url, 0):

        async def is_connected() -> bool | None:
            return await value(engine, COUNT_LOCKS) == 1 or None

        await until(is_connected)
        assert await is_applied(engine, number)


async def test_pausing_a_scheduled_mailing_does_not_wait_for_workers(
    engine: AsyncEngine,
) -> None:
    mailing_id = await add_due_messages(engine, 1, status="running")
    await execute(
        engine,
        "UPDATE mailing SET status = 'scheduled', audience_until = NULL, audience_cursor = 0,"
        " datetime_start = now() + interval '30 minutes'",
    )
    async with behind_all_stops(engine), asyncio.timeout(EVENT_TIMEOUT):
        paused = await service.pause(engine, mailing_id, COMMAND_LINE)
    assert paused.status == "paused"
