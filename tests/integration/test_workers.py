"""The list of active workers, and the version, schema and size of the database."""

import asyncio
import os
import socket
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit, urlunsplit

from sqlalchemy.ext.asyncio import AsyncEngine
from tests.event_timeout import EVENT_TIMEOUT
from tests.factories import do, value

from mailer.db import database_info, workers
from mailer.db.engine import connect
from mailer.db.migrate import get_newest
from mailer.db.workers import Worker, active_workers, own_session_name, session_name
from mailer.dispatch.in_flight import InFlightRequests
from mailer.dispatch.loop_failures import LoopFailures
from mailer.dispatch.running_mailings import RunningMailings

SINCE = datetime(2026, 3, 4, 12, tzinfo=UTC)
"""The start of every worker in the tests."""
PID = 7
"""The process id of every worker in the tests."""


async def url_of(engine: AsyncEngine, server_url: str) -> str:
    """Return the URL of the engine's database."""
    name = await value(engine, "SELECT current_database()")
    return urlunsplit(urlsplit(server_url)._replace(path=f"/{name}"))


async def wait_for_workers(engine: AsyncEngine, count: int) -> list[Worker]:
    """Wait until `count` workers are active; return them."""
    async with asyncio.timeout(EVENT_TIMEOUT):
        while len(active := await do(engine, active_workers)) != count:
            await asyncio.sleep(0.05)
    return active


async def test_a_worker_is_listed_once_for_any_number_of_sessions(
    engine: AsyncEngine, server_url: str
) -> None:
    url = await url_of(engine, server_url)
    name_one, name_two = (
        session_name("one", pid=7, since=SINCE),
        session_name("two", pid=7, since=SINCE),
    )
    sessions_of_one = [await connect(url, application_name=name_one) for _ in range(2)]
    session_of_two = await connect(url, application_name=name_two)
    sessions_of_no_worker = [
        await connect(url),
        await connect(url, application_name="mailer-of-mine:7@1"),
        await connect(server_url, application_name=name_one),  # of another database
    ]
    for session in (*sessions_of_one, session_of_two, *sessions_of_no_worker):
        await session.execute("SELECT 1")

    assert await do(engine, active_workers) == [
        Worker("one", PID, SINCE),
        Worker("two", PID, SINCE),
    ]

    for session in sessions_of_one:
        await session.close()
    assert await wait_for_workers(engine, 1) == [Worker("two", PID, SINCE)]
    for session in (session_of_two, *sessions_of_no_worker):
        await session.close()


async def test_a_worker_is_listed_while_it_follows_the_mailings(
    engine: AsyncEngine, server_url: str
) -> None:
    mailings = RunningMailings(
        await url_of(engine, server_url),
        InFlightRequests(),
        LoopFailures(),
        on_change=lambda _: None,
    )
    task = asyncio.create_task(mailings.run())
    try:
        [worker] = await wait_for_workers(engine, 1)
    finally:
        task.cancel()
    assert (worker.host, worker.pid) == (socket.gethostname(), os.getpid())
    assert worker.since <= datetime.now(UTC)
    assert worker.session_name == own_session_name()

    await wait_for_workers(engine, 0)


async def test_a_session_without_recent_queries_is_not_an_active_worker(
    engine: AsyncEngine, server_url: str
) -> None:
    session = await connect(
        await url_of(engine, server_url), application_name=session_name("one", pid=7, since=SINCE)
    )
    await session.execute("SELECT 1")
    await asyncio.sleep(0.3)
    within_a_moment, within_an_hour = timedelta(seconds=0.2), timedelta(hours=1)
    assert await do(engine, lambda db: active_workers(db, within_a_moment)) == []
    assert len(await do(engine, lambda db: active_workers(db, within_an_hour))) == 1
    await session.close()


def test_a_long_host_name_is_shortened_in_the_session_name() -> None:
    largest_pid = 4_194_304
    name = session_name("ö" * 300, pid=largest_pid, since=SINCE)
    assert len(name.encode()) == workers.MAX_SESSION_NAME_BYTES
    assert name.endswith(f":{largest_pid}@{int(SINCE.timestamp())}")


async def test_database_info_has_schema_version_and_size(engine: AsyncEngine) -> None:
    info = await do(engine, database_info.get_database_info)

    assert info.applied == info.newest == get_newest()
    assert info.version == await value(engine, "SHOW server_version")
    assert 2**20 < info.size < 2**30  # bytes: from a megabyte to a gigabyte
