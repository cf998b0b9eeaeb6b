"""Forecasts for mailings, from counters in the database."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from sqlalchemy import QueuePool, event
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.event_timeout import EVENT_TIMEOUT
from tests.factories import (
    HOUR,
    add_clients,
    add_mailing,
    add_messages,
    create_channels,
    do,
    execute,
    start_and_enqueue,
)

from mailer.access.model import COMMAND_LINE
from mailer.admin.mailings import detail as mailing_page
from mailer.admin.mailings import preview as mailing_preview
from mailer.admin.system import overview
from mailer.forecast import service as forecast
from mailer.forecast.model import Shortfall
from mailer.forecast.tiers import Gateways, GatewayThroughput, by_name
from mailer.mailing import enqueuing, service, starting, store
from mailer.mailing.client_filter import AudienceLists
from mailer.mailing.errors import MailingNotFoundError
from mailer.mailing.model import MailingChange, NewMailing
from mailer.mailing.text_reach import TextReach, read_text_reach
from mailer.mailing.text_template import parse
from mailer.statistics import service as statistics

IDLE_CHECKS = 20
"""Consecutive checks without a connection in use, so that no further statement follows."""
TOLERANCE = timedelta(seconds=30)
"""Maximum difference between the test's time and the database's."""
ONE_A_SECOND = by_name(GatewayThroughput("default", 1, is_limited=True))
TEN_A_SECOND = by_name(GatewayThroughput("default", 10, is_limited=True))
"""The gateway of a worker, with a rate limit of ten messages a second."""
NO_GATEWAY = by_name()
NOT_MEASURED = by_name(GatewayThroughput("default", None))


def create_unsaved(**values: Any) -> NewMailing:
    """Return a mailing to all clients, from now on for six hours; `values` replace its fields."""
    now = datetime.now(UTC)
    defaults = {"datetime_start": now, "datetime_end": now + 6 * HOUR, "text": "Half price."}
    return NewMailing(**{**defaults, **values})


def window_around(middle: datetime) -> dict[str, str]:
    """Return the fields of a sending window from an hour before to an hour after a time in UTC."""
    opens, closes = (f"{middle + step:%H:%M:%S}" for step in (-HOUR, HOUR))
    return {"send_interval_time_start": opens, "send_interval_time_end": closes}


def is_after(time: datetime | None, seconds: float, since: datetime) -> bool:
    """Return whether `time` is about `seconds` after `since`."""
    return time is not None and abs(time - since - timedelta(seconds=seconds)) < TOLERANCE


async def test_the_forecast_of_a_form_counts_matching_clients_by_time_zone(
    engine: AsyncEngine,
) -> None:
    await add_clients(engine, 30, "916", "UTC")
    # ten hours ahead of UTC: the window opens there 13 hours from now, after the end
    await add_clients(engine, 20, "912", "Asia/Vladivostok")
    await add_clients(engine, 40, "999", "UTC")  # do not match
    now = datetime.now(UTC)
    codes = AudienceLists(operator_codes=["916", "912"])
    unsaved = create_unsaved(client_filter=codes, **window_around(now))

    expected = await forecast.of_unsaved(engine, unsaved, TEN_A_SECOND)

    assert expected.clients == 50
    assert expected.rate == 10
    [shortfall] = expected.shortfalls
    opens_at = (now + 13 * HOUR).replace(microsecond=0)
    assert shortfall == Shortfall("Asia/Vladivostok", 20, "no_window", opens_at)


async def test_more_workers_are_faster(engine: AsyncEngine) -> None:
    await add_clients(engine, 600)
    unsaved = create_unsaved()
    expected = await forecast.of_unsaved(engine, unsaved, ONE_A_SECOND, workers=3)
    assert expected.rate == 3
    assert is_after(expected.done_at, 600 / 3, unsaved.datetime_start)


@pytest.mark.parametrize("gateways", [NO_GATEWAY, NOT_MEASURED])
async def test_without_a_rate_only_sending_windows_count(
    engine: AsyncEngine, gateways: Gateways
) -> None:
    await add_clients(engine, 600)
    unsaved = create_unsaved()
    expected = await forecast.of_unsaved(engine, unsaved, gateways)
    assert expected.rate is None
    assert is_after(expected.done_at, 0, unsaved.datetime_start)


async def test_other_running_mailings_use_a_part_of_the_capacity(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 600)
    now = datetime.now(UTC)
    # each has 200 messages to send; the paused mailing uses no capacity
    for status in ("running", "paused"):
        other = await add_mailing(engine, clients=600, start=now, status=status)
        await add_messages(engine, other, clients[:200], "scheduled", at=now)
        await add_messages(engine, other, clients[200:], "delivered", at=now)
    await add_mailing(engine, clients=600, start=now + HOUR, status="scheduled")

    expected = await forecast.of_unsaved(engine, create_unsaved(), ONE_A_SECOND)

    # 600 messages of the unsaved and 200 of the other mailing, at one a second
    assert is_after(expected.done_at, 600 + 200, now)


async def test_clients_of_another_mailing_that_are_not_enqueued_yet_are_included(
    engine: AsyncEngine,
) -> None:
    clients = await add_clients(engine, 300)
    now = datetime.now(UTC)
    other = await add_mailing(engine, clients=300, start=now)
    await add_messages(engine, other, clients[:100], "scheduled", at=now)
    await execute(engine, "UPDATE mailing SET audience_cursor = 100")  # 200 are not enqueued yet

    expected = await forecast.of_unsaved(engine, create_unsaved(), ONE_A_SECOND)

    # as many messages of the unsaved as of the other mailing, at one a second
    assert is_after(expected.done_at, 300 + 300, now)


async def test_the_forecast_of_a_running_mailing_counts_its_waiting_messages(
    engine: AsyncEngine,
) -> None:
    moscow = await add_clients(engine, 300, "916", "Europe/Moscow")
    tokyo = await add_clients(engine, 300, "916", "Asia/Tokyo")
    now = datetime.now(UTC)
    mailing_id = await add_mailing(engine, clients=600, start=now - HOUR)
    await add_messages(engine, mailing_id, moscow[:100], "scheduled", at=now)
    await add_messages(engine, mailing_id, moscow[100:], "delivered", at=now)
    await add_messages(engine, mailing_id, tokyo[:20], "scheduled", "timeout", at=now)
    await add_messages(engine, mailing_id, tokyo[20:], "cancelled", "no_window", at=now)

    expected = await forecast.of_mailing(engine, mailing_id, ONE_A_SECOND)

    assert expected is not None
    assert expected.clients == 100 + 20
    assert expected.missed == 0
    assert is_after(expected.done_at, 100 + 20, now)


async def test_the_forecast_during_enqueuing_counts_all_clients_without_an_outcome(
    engine: AsyncEngine,
) -> None:
    await add_clients(engine, 2_000, "916", "Europe/Moscow")
    await add_clients(engine, 4_000, "916", "UTC")
    unsaved = create_unsaved()
    await service.create(engine, unsaved, COMMAND_LINE)
    [mailing_id] = await do(engine, starting.start_due)
    assert mailing_id is not None
    # the first chunk has 500 clients, the second one 5,000; of each, 250 messages are delivered
    for reached in (250, 500):
        await do(engine, enqueuing.enqueue_chunk)
        await execute(
            engine,
            """
            UPDATE message SET status = 'delivered', sent_at = now()
            WHERE id IN (SELECT id FROM message WHERE status = 'scheduled' LIMIT 250)""",
        )
        expected = await forecast.of_mailing(engine, mailing_id, TEN_A_SECOND)
        assert expected is not None
        assert expected.clients == 6_000 - reached
        assert is_after(expected.done_at, (6_000 - reached) / 10, unsaved.datetime_start)


async def test_the_forecast_of_a_scheduled_mailing_equals_that_of_its_form(
    engine: AsyncEngine,
) -> None:
    await add_clients(engine, 100, "916", "Europe/Moscow")
    await add_clients(engine, 50, "912")
    start = datetime.now(UTC) + HOUR
    unsaved = create_unsaved(
        datetime_start=start, client_filter="912", **window_around(start + HOUR / 2)
    )
    created = await service.create(engine, unsaved, COMMAND_LINE)
    expected = await forecast.of_unsaved(engine, unsaved, ONE_A_SECOND)
    assert expected.done_at == start + timedelta(seconds=50)
    assert await forecast.of_mailing(engine, created.id, ONE_A_SECOND) == expected


async def test_the_forecast_of_a_paused_mailing_is_only_for_changes_and_without_a_rate(
    engine: AsyncEngine,
) -> None:
    await add_clients(engine, 5)
    created = await service.create(engine, create_unsaved(), COMMAND_LINE)
    await service.pause(engine, created.id, COMMAND_LINE)

    assert await forecast.of_mailing(engine, created.id, ONE_A_SECOND) is None
    changes = MailingChange(text="Another text")
    of_changes = await forecast.of_mailing(engine, created.id, ONE_A_SECOND, changes=changes)
    assert of_changes is not None
    assert of_changes.rate is None


async def test_an_ended_mailing_has_no_forecast(engine: AsyncEngine) -> None:
    await add_clients(engine, 5)
    past_its_end = await add_mailing(engine)  # in 2020
    finished = await add_mailing(engine, start=datetime.now(UTC), status="finished")
    await service.create(engine, create_unsaved(), COMMAND_LINE)
    cancelled = await start_and_enqueue(engine)
    await service.cancel(engine, cancelled, COMMAND_LINE)
    for mailing_id in (past_its_end, finished, cancelled):
        assert await forecast.of_mailing(engine, mailing_id, ONE_A_SECOND) is None


async def test_the_forecast_of_an_unknown_mailing_is_an_error(engine: AsyncEngine) -> None:
    with pytest.raises(MailingNotFoundError):
        await forecast.of_mailing(engine, 10**6, ONE_A_SECOND)


async def test_a_forecast_reads_no_message_and_no_client(engine: AsyncEngine) -> None:
    clients = await add_clients(engine, 5)
    mailing_id = await add_mailing(engine, start=datetime.now(UTC), clients=5)
    await add_messages(engine, mailing_id, clients, "scheduled")
    async with engine.begin() as connection:
        await connection.exec_driver_sql("LOCK TABLE message, client IN ACCESS EXCLUSIVE MODE")
        expected = await forecast.of_mailing(engine, mailing_id, ONE_A_SECOND)
        assert expected is not None
        assert expected.clients == 5
        assert (await forecast.of_unsaved(engine, create_unsaved(), NO_GATEWAY)).clients == 5


# ---- connections and the event loop ----------------------------------------------------------
# The following functions are all that compute a forecast. Each gets a running mailing.


async def forecast_unsaved(engine: AsyncEngine, _: int) -> object:
    return await forecast.of_unsaved(engine, create_unsaved(), ONE_A_SECOND)


async def forecast_change(engine: AsyncEngine, mailing_id: int) -> object:
    changes = MailingChange(text="New")
    return await forecast.of_mailing(engine, mailing_id, ONE_A_SECOND, changes=changes)


async def read_statistics(engine: AsyncEngine, mailing_id: int) -> object:
    return await statistics.of_mailing(engine, mailing_id, channels=create_channels(gateway_rate=1))


async def read_page(engine: AsyncEngine, mailing_id: int) -> object:
    channels = create_channels(gateway_rate=1)
    return await mailing_page.read_mailing_page(engine, channels, mailing_id, receipt_wait=60)


async def read_overview(engine: AsyncEngine, _: int) -> object:
    return await overview.read_overview(engine, create_channels(gateway_rate=1))


async def read_preview(engine: AsyncEngine, mailing_id: int) -> object:
    async with engine.connect() as connection:
        before = await store.get(connection, mailing_id)
    changes = MailingChange(
        datetime_start=before.datetime_start,
        datetime_end=before.datetime_end + HOUR,
        client_filter=None,
    )
    channels = create_channels(gateway_rate=1)
    return await mailing_preview.build_preview(engine, changes, "Hi", "UTC", channels, before)


@pytest.mark.parametrize(
    "read_with_forecast",
    [forecast_unsaved, forecast_change, read_statistics, read_page, read_overview, read_preview],
)
async def test_no_connection_is_held_while_a_forecast_is_computed(
    engine: AsyncEngine, read_with_forecast: Callable[[AsyncEngine, int], Awaitable[object]]
) -> None:
    clients = await add_clients(engine, 30)
    now = datetime.now(UTC)
    mailing_id = await add_mailing(engine, clients=30, start=now - HOUR)
    await add_messages(engine, mailing_id, clients, "scheduled", at=now)
    checkins: list[object] = []
    event.listen(engine.sync_engine, "checkin", lambda *connection: checkins.append(connection))
    async with forecast.computation_lock():  # as if another forecast were being computed
        reading = asyncio.ensure_future(read_with_forecast(engine, mailing_id))
        idle_checks = 0
        async with asyncio.timeout(EVENT_TIMEOUT):
            while idle_checks < IDLE_CHECKS and not reading.done():
                await asyncio.sleep(0.01)
                connections_in_use = cast(QueuePool, engine.pool).checkedout()
                is_idle = bool(checkins) and not connections_in_use
                idle_checks = idle_checks + 1 if is_idle else 0
        assert not reading.done()
    assert await reading is not None


# ---- clients who do not get a text with placeholders -------------------------------------------


async def read_reach(engine: AsyncEngine) -> TextReach:
    return await read_text_reach(engine, parse("{{ name }}" * 8 + "x"), None, "marketing")


async def add_clients_with_names(engine: AsyncEngine) -> list[int]:
    """Add 40 clients: a third of 30 has no name, and in another time zone all names are long."""
    clients = await add_clients(engine, 30, "916", "UTC")
    clients += await add_clients(engine, 10, "912", "Asia/Vladivostok")
    await execute(
        engine,
        """UPDATE client SET fields = jsonb_build_object('name', CASE time_zone WHEN 'UTC'
            THEN 'Anna' ELSE repeat('x', 200) END) WHERE time_zone <> 'UTC' OR id % 3 > 0""",
    )
    return clients


async def test_clients_who_do_not_get_the_text_are_left_out_of_a_forecast(
    engine: AsyncEngine,
) -> None:
    await add_clients_with_names(engine)
    unsaved = create_unsaved()

    expected = await forecast.of_unsaved(
        engine, unsaved, ONE_A_SECOND, reach=await read_reach(engine)
    )

    assert (expected.missing_field, expected.text_too_long) == (10, 10)
    assert (expected.clients, expected.reached, expected.missed) == (20, 20, 0)
    assert not expected.is_complete
    assert not expected.is_text_estimated
    assert is_after(expected.done_at, 20, unsaved.datetime_start)


async def test_of_a_started_mailing_only_messages_that_have_ended_count(
    engine: AsyncEngine,
) -> None:
    clients = await add_clients_with_names(engine)
    now = datetime.now(UTC)
    mailing = await add_mailing(engine, clients=40, start=now)
    await add_messages(engine, mailing, clients[:4], "cancelled", at=now)
    await add_messages(engine, mailing, clients[4:], "scheduled", at=now)

    expected = await forecast.of_mailing(
        engine, mailing, ONE_A_SECOND, reach=await read_reach(engine)
    )

    assert expected is not None
    assert (expected.clients, expected.lost) == (36, 4)
    assert (expected.missing_field, expected.text_too_long) == (0, 0)
