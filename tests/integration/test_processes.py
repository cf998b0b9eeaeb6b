"""Which processes are at work, and what is to be known of the database."""

import asyncio
import os
import socket
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit, urlunsplit

from sqlalchemy.ext.asyncio import AsyncEngine
from tests.patience import PATIENCE
from tests.sample import do, value

from mailer.db import facts, processes
from mailer.db.engine import connect
from mailer.db.migrate import newest
from mailer.db.processes import Process, at_work, session_name
from mailer.dispatch.loop_failures import LoopFailures
from mailer.dispatch.requests import Requests
from mailer.dispatch.watch import MailingWatch

SINCE = datetime(2026, 3, 4, 12, tzinfo=UTC)


async def url_of(engine: AsyncEngine, server_url: str) -> str:
    """Return the URL of the engine's database."""
    name = await value(engine, "SELECT current_database()")
    return urlunsplit(urlsplit(server_url)._replace(path=f"/{name}"))


async def until_at_work(engine: AsyncEngine, count: int) -> list[Process]:
    async with asyncio.timeout(PATIENCE):
        while len(found := await do(engine, at_work)) != count:
            await asyncio.sleep(0.05)
    return found


async def test_process_is_listed_once_however_many_sessions_it_has(
    engine: AsyncEngine, server_url: str
) -> None:
    url = await url_of(engine, server_url)
    first, second = session_name("one", 7, SINCE), session_name("two", 7, SINCE)
    sessions = [await connect(url, application_name=name) for name in (first, first, second)]
    others = [await connect(url), await connect(url, application_name="mailer-of-mine:7@1")]
    elsewhere = await connect(server_url, application_name=first)
    for session in (*sessions, *others, elsewhere):
        await session.execute("SELECT 1")

    assert await do(engine, at_work) == [Process("one", 7, SINCE), Process("two", 7, SINCE)]

    for session in sessions[:2]:
        await session.close()
    assert await until_at_work(engine, 1) == [Process("two", 7, SINCE)]
    for session in (*sessions[2:], *others, elsewhere):
        await session.close()


async def test_process_names_itself_while_it_follows_the_mailings(
    engine: AsyncEngine, server_url: str
) -> None:
    started_at = datetime.now(UTC)
    watch = MailingWatch(
        await url_of(engine, server_url), Requests(), LoopFailures(), lambda _: None
    )
    following = asyncio.create_task(watch.run())
    try:
        [process] = await until_at_work(engine, 1)
    finally:
        following.cancel()
    assert (process.host, process.pid) == (socket.gethostname(), os.getpid())
    assert started_at - timedelta(seconds=1) <= process.since <= datetime.now(UTC)

    await until_at_work(engine, 0)


async def test_process_that_asks_nothing_any_more_is_not_at_work(
    engine: AsyncEngine, server_url: str
) -> None:
    session = await connect(
        await url_of(engine, server_url), application_name=session_name("one", 7, SINCE)
    )
    await session.execute("SELECT 1")
    await asyncio.sleep(0.3)
    assert await do(engine, lambda db: at_work(db, timedelta(seconds=0.2))) == []
    assert len(await do(engine, lambda db: at_work(db, timedelta(hours=1)))) == 1
    await session.close()


def test_name_fits_whatever_the_machine_is_called() -> None:
    name = session_name("ö" * 300, 4_194_304, SINCE)
    assert len(name.encode()) == processes.LONGEST
    assert name.endswith(":4194304@1772625600")


async def test_facts_of_the_database_tell_its_schema_and_size(engine: AsyncEngine) -> None:
    told = await do(engine, facts.look)

    assert told.applied == told.newest == newest()
    assert told.version == await value(engine, "SHOW server_version")
    assert 2**20 < told.size < 2**30
