"""The backlog of messages in the metrics."""

from datetime import UTC, datetime, timedelta

import httpx
import msgspec
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.asgi_client import inside
from tests.factories import OPEN, add_clients, add_mailing, add_messages, execute

from mailer.app import create_app
from mailer.statistics import backlog

MINUTE = timedelta(minutes=1)


async def read_backlog(engine: AsyncEngine) -> backlog.Backlog:
    async with engine.connect() as connection:
        return await backlog.get_backlog(connection)


async def test_the_backlog_of_an_empty_database_is_zero(engine: AsyncEngine) -> None:
    measured = await read_backlog(engine)
    assert set(msgspec.structs.astuple(measured)) == {0}


async def test_messages_of_running_mailings_without_a_result_are_the_backlog(
    engine: AsyncEngine,
) -> None:
    clients = await add_clients(engine, 6)
    now = datetime.now(UTC)
    running = await add_mailing(engine, start=now - 9 * MINUTE, clients=6)
    due, due_later, delivered = clients[:2], clients[2:5], clients[5:]
    await add_messages(engine, running, due, "scheduled", at=now - 5 * MINUTE)
    await add_messages(engine, running, due_later, "scheduled", at=now + 5 * MINUTE)
    await add_messages(engine, running, delivered, "delivered", at=now)
    # messages of other mailings do not count
    paused = await add_mailing(engine, start=now - 9 * MINUTE, status="paused", clients=1)
    await add_messages(engine, paused, clients[:1], "scheduled", at=now - 8 * MINUTE)
    await add_mailing(engine, start=now + MINUTE, status="scheduled", clients=6)

    measured = await read_backlog(engine)

    assert measured.waiting == len(due) + len(due_later)
    assert measured.due == len(due)
    assert measured.lag == pytest.approx(5 * 60, abs=10)


async def test_a_due_time_in_the_future_is_no_lag(engine: AsyncEngine) -> None:
    now = datetime.now(UTC)
    mailing_id = await add_mailing(engine, start=now, clients=1)
    await add_messages(
        engine, mailing_id, await add_clients(engine, 1), "scheduled", at=now + MINUTE
    )
    assert (await read_backlog(engine)).lag == 0


async def test_the_backlog_shows_how_many_clients_are_enqueued(engine: AsyncEngine) -> None:
    mailing_id = await add_mailing(engine, start=datetime.now(UTC), clients=9)
    await add_messages(engine, mailing_id, await add_clients(engine, 4), "delivered")
    await execute(engine, "UPDATE mailing SET audience_cursor = 4")

    measured = await read_backlog(engine)

    assert measured.audience_clients == 9
    assert measured.audience_enqueued_clients == 4


async def test_metrics_show_the_backlog_and_that_the_database_is_up(engine: AsyncEngine) -> None:
    mailing_id = await add_mailing(engine, start=datetime.now(UTC), clients=3)
    await add_messages(engine, mailing_id, await add_clients(engine, 3), "scheduled")
    transport = inside(create_app(engine, settings=OPEN))
    async with httpx.AsyncClient(transport=transport, base_url="http://mailer") as api:
        lines = (await api.get("/metrics")).text.splitlines()
    assert {"mailer_database_up 1.0", "mailer_backlog_messages 3.0"} <= set(lines)
