"""What backlog and holds find out about the first due message of a mailing, over all its routes."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from tests.factories import (
    UnusedGateway,
    add_clients,
    add_mailing,
    add_messages,
    channel_of,
    do,
    execute,
)

from mailer.gateway import routes
from mailer.gateway.channel import Channels
from mailer.mailing import store
from mailer.mailing.activity import with_holds
from mailer.settings import Settings
from mailer.statistics import backlog

MINUTE = timedelta(minutes=1)
ROUTES = 4
"""Number of routes with messages."""
CHANNELS = Channels(
    channel_of(UnusedGateway(), Settings(), name=f"gateway-{n}") for n in range(ROUTES)
)
"""The gateways of these routes."""
TUPLES_READ = text("""
    SELECT coalesce(sum(seq_tup_read + idx_tup_fetch), 0)::int
    FROM pg_stat_xact_user_tables WHERE relname = 'message'""")


@pytest.fixture
async def route_ids(engine: AsyncEngine) -> list[int]:
    """The ids of `ROUTES` routes."""
    async with engine.begin() as connection:
        return [await routes.find_route(connection, [f"gateway-{n}"]) for n in range(ROUTES)]


async def add_scheduled(
    engine: AsyncEngine, mailing_id: int, count: int, route: int, due_at: datetime
) -> None:
    """Create clients with the time zone `Etc/GMT+{route}`, and a scheduled message to each."""
    clients = await add_clients(engine, count, time_zone=f"Etc/GMT+{route % 10}")
    await add_messages(engine, mailing_id, clients, "scheduled", at=due_at)
    await execute(
        engine,
        f"UPDATE message SET route = {route} WHERE client_id >= {clients[0]}",  # noqa: S608  # numbers
    )


async def test_a_mailing_waits_for_the_first_due_message_of_all_routes(
    engine: AsyncEngine, route_ids: list[int]
) -> None:
    now = datetime.now(UTC)
    mailing_id = await add_mailing(engine, start=now - MINUTE, clients=6)
    first, second, third, _ = route_ids
    await add_scheduled(engine, mailing_id, 2, first, now + 3 * MINUTE)
    await add_scheduled(engine, mailing_id, 2, second, now + 2 * MINUTE)
    await add_scheduled(engine, mailing_id, 2, third, now + 4 * MINUTE)

    async with engine.connect() as connection:
        mailing = await store.get(connection, mailing_id)
        [mailing] = await with_holds(connection, [mailing], CHANNELS)

    assert mailing.held is not None
    assert mailing.held.until == now + 2 * MINUTE
    assert mailing.held.time_zone == f"Etc/GMT+{second % 10}"


async def test_the_backlog_counts_due_messages_of_all_routes(
    engine: AsyncEngine, route_ids: list[int]
) -> None:
    now = datetime.now(UTC)
    mailing_id = await add_mailing(engine, start=now - 9 * MINUTE, clients=7)
    first, second, third, _ = route_ids
    await add_scheduled(engine, mailing_id, 1, first, now - 2 * MINUTE)
    await add_scheduled(engine, mailing_id, 2, second, now - 6 * MINUTE)
    await add_scheduled(engine, mailing_id, 4, third, now + 4 * MINUTE)

    async with engine.connect() as connection:
        measured = await backlog.get_backlog(connection)

    assert (measured.waiting, measured.due) == (7, 3)
    assert measured.lag == pytest.approx(6 * 60, abs=30)


async def read_backlog(connection: AsyncConnection, _: int) -> None:
    await backlog.get_backlog(connection)


async def read_hold(connection: AsyncConnection, mailing_id: int) -> None:
    mailing = await store.get(connection, mailing_id)
    [mailing] = await with_holds(connection, [mailing], CHANNELS)
    assert mailing.held is not None


@pytest.mark.parametrize("read", [read_backlog, read_hold])
async def test_messages_that_are_not_due_are_not_read(
    engine: AsyncEngine,
    route_ids: list[int],
    read: Callable[[AsyncConnection, int], Awaitable[None]],
) -> None:
    later = datetime.now(UTC) + 5 * MINUTE
    mailing_id = await add_mailing(engine, start=later - 6 * MINUTE, clients=2_000)
    for route in route_ids:
        await add_scheduled(engine, mailing_id, 500, route, later)
    # the indexes must be the cheapest way, as in a large table
    await execute(engine, "ANALYZE message")

    async def count_read(connection: AsyncConnection) -> int:
        await connection.execute(text("SET LOCAL enable_seqscan = off"))
        before = (await connection.execute(TUPLES_READ)).scalar_one()
        await read(connection, mailing_id)
        return int((await connection.execute(TUPLES_READ)).scalar_one() - before)

    assert await do(engine, count_read) <= ROUTES
