"""How it is known that no worker sends for a mailing any more."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy.ext.asyncio import AsyncEngine
from tests.patience import PATIENCE
from tests.processes import until
from tests.sample import add_due_messages, behind_all_stops, do, execute, value

from mailer.access.model import COMMAND_LINE
from mailer.clock import elapsed
from mailer.dispatch.loop_failures import LoopFailures
from mailer.dispatch.requests import Requests
from mailer.dispatch.watch import STALE, MailingWatch
from mailer.mailing import service, stopping

MANY = 300
LOCKS = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock'"
ADD_MAILINGS = f"""
    INSERT INTO mailing (datetime_start, datetime_end, text, clients_count, status, audience_until,
        audience_cursor)
    SELECT now(), now() + interval '1 hour', 'Hello', 0, 'running', 0, 0
    FROM generate_series(1, {MANY})"""  # noqa: S608  # of a test


@asynccontextmanager
async def at_work(database_url: str, running: int) -> AsyncIterator[MailingWatch]:
    """Follow the mailings as a worker does, of which so many run."""
    watch = MailingWatch(database_url, Requests(), LoopFailures(), lambda _: None)
    following = asyncio.create_task(watch.run())

    async def is_running() -> bool | None:
        return len(watch.running) == running or None

    await until(is_running)
    try:
        yield watch
    finally:
        following.cancel()
        await asyncio.wait({following})


async def is_applied(engine: AsyncEngine, number: int) -> bool:
    return await do(engine, lambda db: stopping.is_applied(db, number))


async def until_applied(engine: AsyncEngine, number: int) -> None:
    async def look() -> bool | None:
        return await is_applied(engine, number) or None

    await until(look)


async def test_worker_holds_one_lock_however_many_mailings_run(
    engine: AsyncEngine, shared_database_url: str
) -> None:
    await execute(engine, ADD_MAILINGS)
    async with at_work(shared_database_url, MANY), at_work(shared_database_url, MANY):
        assert await value(engine, LOCKS) == 2
        number = await do(engine, stopping.draw)
        await until_applied(engine, number)
        assert await value(engine, LOCKS) == 2


async def test_stop_is_applied_when_the_mailing_is_dropped_and_no_claim_is_under_way(
    engine: AsyncEngine, shared_database_url: str
) -> None:
    mailing_id = await add_due_messages(engine, 1)
    async with at_work(shared_database_url, 1) as watch:
        async with watch.claiming:
            pausing = asyncio.create_task(service.pause(engine, mailing_id, COMMAND_LINE))

            async def is_dropped() -> bool | None:
                return not watch.running or None

            await until(is_dropped)
            number = await do(engine, stopping.draw)
            assert not await is_applied(engine, number)
            assert not pausing.done()
        await until_applied(engine, number)
        assert (await pausing).status == "paused"


async def test_every_worker_must_have_applied_a_stop_and_one_that_is_gone_keeps_nobody_waiting(
    engine: AsyncEngine, shared_database_url: str
) -> None:
    async with at_work(shared_database_url, 0):
        async with behind_all_stops(engine):
            number = await do(engine, stopping.draw)
            await asyncio.sleep(0)
            assert not await is_applied(engine, number)
        await until_applied(engine, number)


async def test_worker_that_was_suspended_sends_nothing_until_the_server_has_answered(
    engine: AsyncEngine, shared_database_url: str
) -> None:
    """Its session may have ended meanwhile, and stops count as applied."""
    await add_due_messages(engine, 1)
    async with at_work(shared_database_url, 1) as watch:

        async def is_current() -> bool | None:
            return watch.is_current(elapsed()) or None

        await until(is_current)
        assert not watch.is_current(elapsed() + STALE)
    assert not MailingWatch("", Requests(), LoopFailures(), lambda _: None).is_current(elapsed())


async def test_worker_that_comes_after_a_stop_has_applied_it(
    engine: AsyncEngine, shared_database_url: str
) -> None:
    number = await do(engine, stopping.draw)
    async with at_work(shared_database_url, 0):

        async def is_there() -> bool | None:
            return await value(engine, LOCKS) == 1 or None

        await until(is_there)
        assert await is_applied(engine, number)


async def test_mailing_that_has_not_begun_is_paused_though_a_worker_stands_still(
    engine: AsyncEngine,
) -> None:
    mailing_id = await add_due_messages(engine, 1, status="running")
    await execute(
        engine,
        "UPDATE mailing SET status = 'scheduled', audience_until = NULL, audience_cursor = 0,"
        " datetime_start = now() + interval '30 minutes'",
    )
    async with behind_all_stops(engine), asyncio.timeout(PATIENCE):
        paused = await service.pause(engine, mailing_id, COMMAND_LINE)
    assert paused.status == "paused"
