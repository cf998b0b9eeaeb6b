"""What waits, as the metrics show it."""

from datetime import UTC, datetime, timedelta

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.asked import inside
from tests.sample import OPEN, add_clients, add_mailing, add_messages, execute

from mailer.app import create_app
from mailer.metrics import Backlog
from mailer.report import backlog

MINUTE = timedelta(minutes=1)


async def look(engine: AsyncEngine) -> Backlog:
    async with engine.connect() as connection:
        return await backlog.look(connection)


async def test_nothing_waits_in_an_empty_database(engine: AsyncEngine) -> None:
    assert await look(engine) == Backlog(0, 0, 0, 0, 0)


async def test_what_is_due_is_told_from_what_only_waits(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 6)
    now = datetime.now(UTC)
    running = await add_mailing(engine, start=now - 9 * MINUTE, clients=6)
    await add_messages(engine, running, clients[:2], "scheduled", at=now - 5 * MINUTE)
    await add_messages(engine, running, clients[2:5], "scheduled", at=now + 5 * MINUTE)
    await add_messages(engine, running, clients[5:], "delivered", at=now)
    paused = await add_mailing(engine, start=now - 9 * MINUTE, status="paused", clients=1)
    await add_messages(engine, paused, clients[:1], "scheduled", at=now - 8 * MINUTE)
    await add_mailing(engine, start=now + MINUTE, status="scheduled", clients=6)

    found = await look(engine)

    assert (found.waiting, found.due) == (5, 2)
    assert found.lag == pytest.approx(300, abs=10)


async def test_a_due_time_that_is_to_come_is_no_lag(engine: AsyncEngine) -> None:
    now = datetime.now(UTC)
    mailing_id = await add_mailing(engine, start=now, clients=1)
    await add_messages(
        engine, mailing_id, await add_clients(engine, 1), "scheduled", at=now + MINUTE
    )
    assert (await look(engine)).lag == 0


async def test_an_audience_shows_how_far_it_is_taken(engine: AsyncEngine) -> None:
    mailing_id = await add_mailing(engine, start=datetime.now(UTC), clients=9)
    await add_messages(engine, mailing_id, await add_clients(engine, 4), "delivered")
    await execute(engine, "UPDATE mailing SET audience_cursor = 4")

    found = await look(engine)

    assert (found.audience_clients, found.audience_taken_clients) == (9, 4)


async def test_metrics_show_it_and_that_the_database_is_there(engine: AsyncEngine) -> None:
    mailing_id = await add_mailing(engine, start=datetime.now(UTC), clients=3)
    await add_messages(engine, mailing_id, await add_clients(engine, 3), "scheduled")
    transport = inside(create_app(engine, settings=OPEN))
    async with httpx.AsyncClient(transport=transport, base_url="http://mailer") as api:
        shown = (await api.get("/metrics")).text.splitlines()
    assert {"mailer_database_up 1.0", "mailer_backlog_messages 3.0"} <= set(shown)
