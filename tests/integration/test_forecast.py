"""What is to be expected of mailings, from what the database has counted."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from sqlalchemy import QueuePool, event
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.patience import PATIENCE
from tests.sample import add_clients, add_mailing, add_messages, begin, do, execute

from mailer.access.model import COMMAND_LINE
from mailer.admin import mailing as mailing_page
from mailer.admin import mailing_preview, overview
from mailer.gateway.breaker import Breaker
from mailer.gateway.pace import Pace
from mailer.mailing import audience, moving, service, store
from mailer.mailing.forecast import Shortfall
from mailer.mailing.model import AudienceLists, MailingChange, MailingNotFoundError, NewMailing
from mailer.report import forecast, statistics

HOUR = timedelta(hours=1)
STEADY = 20
"""Looks in a row that find no connection in use, so that the next statement is not just ahead."""
SOON = timedelta(seconds=30)
"""What may pass between a test's look at its clock and the database's at its own."""


def a_draft(**given: Any) -> NewMailing:
    now = datetime.now(UTC)
    plan = {"datetime_start": now, "datetime_end": now + 6 * HOUR, "text": "Half price."}
    return NewMailing(**{**plan, **given})


def hours_around(moment: datetime) -> dict[str, str]:
    """Return a window of two hours of UTC, with a moment in its middle."""
    opens, closes = (f"{moment + step:%H:%M:%S}" for step in (-HOUR, HOUR))
    return {"send_interval_time_start": opens, "send_interval_time_end": closes}


def in_seconds(found: datetime | None, seconds: float, since: datetime) -> bool:
    return found is not None and abs(found - since - timedelta(seconds=seconds)) < SOON


async def test_a_draft_counts_those_who_match_by_their_zones(engine: AsyncEngine) -> None:
    await add_clients(engine, 30, "916", "UTC")
    await add_clients(engine, 20, "912", "Asia/Vladivostok")  # ten hours ahead
    await add_clients(engine, 40, "999", "UTC")
    now = datetime.now(UTC)
    codes = AudienceLists(operator_codes=["916", "912"])
    draft = a_draft(client_filter=codes, **hours_around(now))

    found = await forecast.of_draft(engine, draft, Pace(50, 10))

    assert (found.clients, found.rate) == (50, 10)
    [missed] = found.shortfalls
    opens_at = (now + 13 * HOUR).replace(microsecond=0)
    assert missed == Shortfall("Asia/Vladivostok", 20, "no_window", opens_at)


async def test_more_processes_are_faster(engine: AsyncEngine) -> None:
    await add_clients(engine, 600)
    draft = a_draft()
    found = await forecast.of_draft(engine, draft, Pace(50, 1), processes=3)
    assert found.rate == 3
    assert in_seconds(found.done_at, 200, draft.datetime_start)


@pytest.mark.parametrize("pace", [None, Pace(50)])
async def test_without_a_pace_windows_alone_decide(engine: AsyncEngine, pace: Pace | None) -> None:
    await add_clients(engine, 600)
    draft = a_draft()
    found = await forecast.of_draft(engine, draft, pace)
    assert found.rate is None
    assert in_seconds(found.done_at, 0, draft.datetime_start)


async def test_others_under_way_take_their_part(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 600)
    now = datetime.now(UTC)
    for status in ("running", "paused"):  # one that is paused takes none
        other = await add_mailing(engine, clients=600, start=now, status=status)
        await add_messages(engine, other, clients[:200], "scheduled", at=now)
        await add_messages(engine, other, clients[200:], "delivered", at=now)
    await add_mailing(engine, clients=600, start=now + HOUR, status="scheduled")

    found = await forecast.of_draft(engine, a_draft(), Pace(50, 1))

    assert in_seconds(found.done_at, 800, now)


async def test_an_other_whose_audience_is_taken_still_has_the_rest(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 300)
    now = datetime.now(UTC)
    other = await add_mailing(engine, clients=300, start=now)
    await add_messages(engine, other, clients[:100], "scheduled", at=now)
    await execute(engine, "UPDATE mailing SET audience_cursor = 100")

    found = await forecast.of_draft(engine, a_draft(), Pace(50, 1))

    assert in_seconds(found.done_at, 600, now)


async def test_a_mailing_under_way_has_those_left_who_wait(engine: AsyncEngine) -> None:
    moscow = await add_clients(engine, 300, "916", "Europe/Moscow")
    tokyo = await add_clients(engine, 300, "916", "Asia/Tokyo")
    now = datetime.now(UTC)
    mailing_id = await add_mailing(engine, clients=600, start=now - HOUR)
    await add_messages(engine, mailing_id, moscow[:100], "scheduled", at=now)
    await add_messages(engine, mailing_id, moscow[100:], "delivered", at=now)
    await add_messages(engine, mailing_id, tokyo[:20], "scheduled", "timeout", at=now)
    await add_messages(engine, mailing_id, tokyo[20:], "cancelled", "no_window", at=now)

    found = await forecast.of_mailing(engine, mailing_id, Pace(50, 1))

    assert found is not None
    assert (found.clients, found.missed) == (120, 0)
    assert in_seconds(found.done_at, 120, now)


async def test_a_mailing_whose_audience_is_taken_has_all_without_an_outcome(
    engine: AsyncEngine,
) -> None:
    await add_clients(engine, 2_000, "916", "Europe/Moscow")
    await add_clients(engine, 4_000, "916", "UTC")
    draft = a_draft()
    await service.create(engine, draft, COMMAND_LINE)
    [mailing_id] = await do(engine, moving.begin_due)
    assert mailing_id is not None
    for reached in (250, 500):  # of the first chunk of 500, and of 5,500
        await do(engine, audience.take_chunk)
        await execute(
            engine,
            """
            UPDATE message SET status = 'delivered', sent_at = now()
            WHERE id IN (SELECT id FROM message WHERE status = 'scheduled' LIMIT 250)""",
        )
        found = await forecast.of_mailing(engine, mailing_id, Pace(50, 10))
        assert found is not None
        assert found.clients == 6_000 - reached
        assert in_seconds(found.done_at, 600 - reached / 10, draft.datetime_start)


async def test_a_mailing_that_has_not_begun_is_as_its_draft(engine: AsyncEngine) -> None:
    await add_clients(engine, 100, "916", "Europe/Moscow")
    await add_clients(engine, 50, "912")
    start = datetime.now(UTC) + HOUR
    draft = a_draft(datetime_start=start, client_filter="912", **hours_around(start + HOUR / 2))
    created = await service.create(engine, draft, COMMAND_LINE)
    pace = Pace(50, 1)
    expected = await forecast.of_draft(engine, draft, pace)
    assert expected.done_at == start + timedelta(seconds=50)
    assert await forecast.of_mailing(engine, created.id, pace) == expected
    await service.pause(engine, created.id, COMMAND_LINE)
    assert await forecast.of_mailing(engine, created.id, pace) is None
    changes = MailingChange(text="Another text")
    by_hours = await forecast.of_mailing(engine, created.id, pace, changes=changes)
    assert by_hours is not None
    assert by_hours.rate is None


async def test_of_a_mailing_that_has_ended_nothing_is_expected(engine: AsyncEngine) -> None:
    await add_clients(engine, 5)
    pace = Pace(50, 1)
    long_ago = await add_mailing(engine)
    finished = await add_mailing(engine, start=datetime.now(UTC), status="finished")
    await service.create(engine, a_draft(), COMMAND_LINE)
    cancelled = await begin(engine)
    await service.cancel(engine, cancelled, COMMAND_LINE)
    for mailing_id in (long_ago, finished, cancelled):
        assert await forecast.of_mailing(engine, mailing_id, pace) is None
    with pytest.raises(MailingNotFoundError):
        await forecast.of_mailing(engine, 10**6, pace)


async def test_no_message_and_no_client_is_read(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 5)
    mailing_id = await add_mailing(engine, start=datetime.now(UTC), clients=5)
    await add_messages(engine, mailing_id, clients, "scheduled")
    async with engine.begin() as connection:
        await connection.exec_driver_sql("LOCK TABLE message, client IN ACCESS EXCLUSIVE MODE")
        found = await forecast.of_mailing(engine, mailing_id, Pace(50, 1))
        assert found is not None
        assert found.clients == 5
        assert (await forecast.of_draft(engine, a_draft(), None)).clients == 5


# ---- connections and the event loop ----------------------------------------------------------


async def of_draft(engine: AsyncEngine, _: int) -> object:
    return await forecast.of_draft(engine, a_draft(), Pace(50, 1))


async def of_change(engine: AsyncEngine, mailing_id: int) -> object:
    return await forecast.of_mailing(engine, mailing_id, Pace(50, 1), 1, MailingChange(text="New"))


async def of_statistics(engine: AsyncEngine, mailing_id: int) -> object:
    return await statistics.of_mailing(engine, mailing_id, breaker=Breaker(5, 60), pace=Pace(50, 1))


async def of_page(engine: AsyncEngine, mailing_id: int) -> object:
    return await mailing_page.look(engine, Breaker(5, 60), Pace(50, 1), mailing_id)


async def of_overview(engine: AsyncEngine, _: int) -> object:
    return await overview.look(engine, Breaker(5, 60), Pace(50, 1))


async def of_preview(engine: AsyncEngine, mailing_id: int) -> object:
    async with engine.connect() as connection:
        before = await store.get(connection, mailing_id)
    changes = MailingChange(
        datetime_start=before.datetime_start,
        datetime_end=before.datetime_end + HOUR,
        client_filter=None,
    )
    return await mailing_preview.look(engine, changes, "Hi", "UTC", Pace(50, 1), before)


@pytest.mark.parametrize(
    "look", [of_draft, of_change, of_statistics, of_page, of_overview, of_preview]
)
async def test_no_connection_is_held_while_a_forecast_is_computed(
    engine: AsyncEngine, look: Callable[[AsyncEngine, int], Awaitable[object]]
) -> None:
    clients = await add_clients(engine, 30)
    now = datetime.now(UTC)
    mailing_id = await add_mailing(engine, clients=30, start=now - HOUR)
    await add_messages(engine, mailing_id, clients, "scheduled", at=now)
    read: list[object] = []
    event.listen(engine.sync_engine, "checkin", lambda *connection: read.append(connection))
    async with forecast.turn():  # somebody else's forecast is computed, and this one waits
        looking = asyncio.ensure_future(look(engine, mailing_id))
        free = 0
        async with asyncio.timeout(PATIENCE):
            while free < STEADY and not looking.done():
                await asyncio.sleep(0.01)
                free = free + 1 if read and not cast(QueuePool, engine.pool).checkedout() else 0
        assert not looking.done()
    assert await looking is not None
