"""Forecasts of mailings whose clients have different gateways."""

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.forms import NEW_FORM, preview_form
from tests.asgi_client import inside
from tests.factories import (
    HOUR,
    OPEN,
    UnusedGateway,
    add_clients,
    add_mailing,
    add_messages,
    channel_of,
    execute,
)

from mailer.access.model import COMMAND_LINE
from mailer.app import create_app
from mailer.forecast import service as forecast
from mailer.forecast.tiers import GatewayThroughput, by_name
from mailer.gateway import routes
from mailer.gateway.channel import Channels
from mailer.gateway.router import GatewayTables
from mailer.mailing import service
from mailer.mailing.model import MailingChange, NewMailing
from mailer.settings import Settings
from mailer.statistics import service as statistics

TOLERANCE = timedelta(seconds=30)
"""Maximum difference between the test's time and the database's."""
OPERATOR_CODES = {"main": None, "beeline": ["903"], "spare": ["903", "999"]}
"""The gateways of the tests, with their operator codes."""
MAIN = GatewayThroughput("main", 10)
BEELINE = GatewayThroughput("beeline", 2)
SPARE = GatewayThroughput("spare", 1, order=2)
GATEWAYS = by_name(MAIN, BEELINE, SPARE)


@pytest.fixture
async def engine(engine: AsyncEngine) -> AsyncEngine:
    """Clients with operator code 903 have three gateways; 999 has two; the others have one."""
    async with engine.begin() as connection:
        await routes.apply_routes(connection, OPERATOR_CODES)
    return engine


def create_unsaved(**values: Any) -> NewMailing:
    """Return a mailing to all clients, from now on for six hours; `values` replace its fields."""
    now = datetime.now(UTC)
    defaults = {"datetime_start": now, "datetime_end": now + 6 * HOUR, "text": "Half price."}
    return NewMailing(**{**defaults, **values})


def is_after(time: datetime | None, seconds: float, since: datetime) -> bool:
    """Return whether `time` is about `seconds` after `since`."""
    return time is not None and abs(time - since - timedelta(seconds=seconds)) < TOLERANCE


async def test_each_operator_code_is_sent_by_its_own_gateways(engine: AsyncEngine) -> None:
    await add_clients(engine, 3_000, "916")
    await add_clients(engine, 6_000, "903")
    unsaved = create_unsaved()

    expected = await forecast.of_unsaved(engine, unsaved, GATEWAYS)

    # 916 gets 5 a second of the gateway main and is done after 600 s. Until then, 903 gets 5 of it
    # and 2 of beeline: 4,200 messages; its remaining 1,800 messages get 12 a second.
    assert is_after(expected.done_at, 600 + 1_800 / 12, unsaved.datetime_start)
    assert expected.rate == 12


async def test_gateways_of_a_higher_order_count_only_when_the_others_are_out(
    engine: AsyncEngine,
) -> None:
    await add_clients(engine, 600, "903")
    unsaved = create_unsaved()
    in_outage = await forecast.of_unsaved(engine, unsaved, by_name(SPARE))
    assert is_after(in_outage.done_at, 600, unsaved.datetime_start)
    usual = await forecast.of_unsaved(engine, unsaved, GATEWAYS)
    assert is_after(usual.done_at, 600 / 12, unsaved.datetime_start)


async def test_a_mailing_with_a_gateway_of_its_own_uses_no_other(engine: AsyncEngine) -> None:
    await add_clients(engine, 600, "916")
    unsaved = create_unsaved(gateway="beeline")
    expected = await forecast.of_unsaved(engine, unsaved, GATEWAYS)
    assert is_after(expected.done_at, 600 / 2, unsaved.datetime_start)
    assert expected.rate == 2


async def test_clients_whose_gateways_are_out_are_not_promised_anything(
    engine: AsyncEngine,
) -> None:
    await add_clients(engine, 600, "903")
    await add_clients(engine, 100, "916")

    expected = await forecast.of_unsaved(engine, create_unsaved(), by_name(BEELINE))

    assert (expected.clients, expected.reached) == (700, 600)
    assert (expected.without_gateway, expected.done_at) == (100, None)


async def test_operator_codes_and_time_zones_of_an_audience_are_counted_jointly(
    engine: AsyncEngine,
) -> None:
    # clients with the only usable gateway are all in the time zone whose window opens too late
    await add_clients(engine, 600, "916", "UTC")
    await add_clients(engine, 30, "903", "Asia/Vladivostok")
    now = datetime.now(UTC)
    opens, closes = (f"{now + step:%H:%M:%S}" for step in (-HOUR, HOUR))
    unsaved = create_unsaved(send_interval_time_start=opens, send_interval_time_end=closes)

    expected = await forecast.of_unsaved(engine, unsaved, by_name(BEELINE))

    [shortfall] = expected.shortfalls
    assert (shortfall.time_zone, shortfall.clients) == ("Asia/Vladivostok", 30)
    assert (expected.reached, expected.without_gateway) == (0, 600)


async def test_the_remaining_messages_of_a_mailing_are_split_by_their_operator_codes(
    engine: AsyncEngine,
) -> None:
    now = datetime.now(UTC)
    done = await add_clients(engine, 3_000, "903")
    waiting = await add_clients(engine, 300, "903", "Europe/Moscow")
    others = await add_clients(engine, 100, "916", "Asia/Omsk")
    mailing_id = await add_mailing(engine, clients=3_400, start=now - HOUR)
    await add_messages(engine, mailing_id, done, "delivered", at=now)
    await add_messages(engine, mailing_id, waiting + others, "scheduled", at=now)

    expected = await forecast.of_mailing(engine, mailing_id, by_name(BEELINE))

    assert expected is not None
    assert (expected.clients, expected.reached) == (400, 300)
    assert expected.without_gateway == 100


async def test_the_split_of_a_mailing_being_enqueued_or_replanned_is_that_of_its_audience(
    engine: AsyncEngine,
) -> None:
    now = datetime.now(UTC)
    enqueued = await add_clients(engine, 100, "903")
    await add_clients(engine, 300, "916")
    mailing_id = await add_mailing(engine, clients=400, start=now - HOUR)
    await add_messages(engine, mailing_id, enqueued, "scheduled", at=now)
    only_beeline = by_name(BEELINE)
    later = MailingChange(datetime_end=now + 9 * HOUR)

    replanned = await forecast.of_mailing(engine, mailing_id, only_beeline, changes=later)
    await execute(engine, "UPDATE mailing SET audience_cursor = 100")
    expected = await forecast.of_mailing(engine, mailing_id, only_beeline)

    for result in (replanned, expected):
        assert result is not None
        assert (result.clients, result.without_gateway) == (400, 300)


async def test_a_filter_that_matches_nobody_any_more_loses_no_message(engine: AsyncEngine) -> None:
    now = datetime.now(UTC)
    clients = await add_clients(engine, 60, "903")
    mailing_id = await add_mailing(engine, clients=90, start=now - HOUR)
    await add_messages(engine, mailing_id, clients, "scheduled", at=now)
    await execute(
        engine, """UPDATE mailing SET audience_cursor = 100, client_filter = '{"tags": ["none"]}'"""
    )
    expected = await forecast.of_mailing(engine, mailing_id, GATEWAYS)
    assert expected is not None
    assert (expected.clients, expected.without_gateway) == (60, 0)


async def test_other_mailings_use_the_gateways_of_their_own_clients(engine: AsyncEngine) -> None:
    now = datetime.now(UTC)
    one, both = await add_clients(engine, 600, "916"), await add_clients(engine, 600, "999")
    for clients in (one, both):
        other = await add_mailing(engine, clients=600, start=now)
        await add_messages(engine, other, clients, "scheduled", at=now)
    with_gateway = await add_mailing(engine, clients=600, start=now)
    await add_messages(engine, with_gateway, one, "scheduled", at=now)
    await execute(engine, f"UPDATE mailing SET gateway = 'spare' WHERE id = {with_gateway}")  # noqa: S608  # a number
    gateways = by_name(GatewayThroughput("main", 1), GatewayThroughput("spare", 1))

    expected = await forecast.of_unsaved(engine, create_unsaved(client_filter="916"), gateways)

    # The second mailing uses both gateways and shares the first one with two mailings, the second
    # one with one. So it gets 1/3 + 1/2 a second and is done after 720 s. By then, 240 messages of
    # this mailing are sent; the remaining 360 get half of the rate.
    assert expected.clients == 600
    assert is_after(expected.done_at, 720 + 360 * 2, now)


async def test_mailings_without_messages_yet_are_assumed_to_be_split_alike(
    engine: AsyncEngine,
) -> None:
    now = datetime.now(UTC)
    await add_clients(engine, 300, "903")
    await add_mailing(engine, clients=300, start=now)
    await execute(engine, "UPDATE mailing SET audience_cursor = 1, audience_until = 301")
    expected = await forecast.of_unsaved(engine, create_unsaved(), by_name(BEELINE))
    assert is_after(expected.done_at, 300, now)  # each of both gets one a second


async def test_the_forecast_of_a_scheduled_mailing_equals_that_of_its_form(
    engine: AsyncEngine,
) -> None:
    await add_clients(engine, 100, "903", "Europe/Moscow")
    await add_clients(engine, 50, "916")
    unsaved = create_unsaved(datetime_start=datetime.now(UTC) + HOUR)
    created = await service.create(engine, unsaved, COMMAND_LINE)
    expected = await forecast.of_unsaved(engine, unsaved, GATEWAYS)
    assert await forecast.of_mailing(engine, created.id, GATEWAYS) == expected


# ---- what users see --------------------------------------------------------------------------


def channels_with_paused(*paused: str) -> Channels:
    """Return the channels of the tests; users have paused the gateways `paused`."""
    channels = Channels(
        channel_of(
            UnusedGateway(), Settings(gateway_rate=2), name=name, operator_codes=operator_codes
        )
        for name, operator_codes in OPERATOR_CODES.items()
    )
    channels.update(GatewayTables(routes={}, paused_at=dict.fromkeys(paused, datetime.now(UTC))))
    return channels


@pytest.mark.parametrize(
    ("paused", "expected"),
    [
        (
            ["main"],
            [
                "It is not known when 1 of 61 clients will get it",
                "1 client has no usable gateway now: each one that may be used is out or paused",
                "At 4 messages a second, the configured limit.",
                "1 of 61 clients will get it. See the reasons under Forecast.",
            ],
        ),
        (
            ["beeline", "spare", "main"],  # as without any gateway
            ["The sending windows of all clients open in time", "The sending rate is not known"],
        ),
        ([], ["All clients will get it by"]),
    ],
)
async def test_the_preview_shows_clients_without_a_usable_gateway(
    engine: AsyncEngine, paused: list[str], expected: list[str]
) -> None:
    await add_clients(engine, 60, "903")
    await add_clients(engine, 1, "916")
    app = create_app(engine, channels_with_paused(*paused), settings=OPEN)
    async with httpx.AsyncClient(transport=inside(app)) as client:
        preview = await preview_form(client, NEW_FORM)
    for text in expected:
        assert text in preview


async def test_without_a_gateway_for_some_clients_there_is_no_expected_end(
    engine: AsyncEngine,
) -> None:
    now = datetime.now(UTC)
    clients = await add_clients(engine, 60, "903") + await add_clients(engine, 1, "916")
    mailing_id = await add_mailing(engine, clients=61, start=now)
    await add_messages(engine, mailing_id, clients, "scheduled", at=now)
    await execute(
        engine,
        """UPDATE message SET route = (SELECT route FROM operator_route
            WHERE operator_route.operator_code IN (message.operator_code, '')
            ORDER BY operator_route.operator_code DESC LIMIT 1)""",
    )
    ends = [
        (await statistics.of_mailing(engine, mailing_id, channels=channels)).expected_end
        for channels in (channels_with_paused(), channels_with_paused("main"))
    ]
    assert ends[0] is not None
    assert ends[1] is None
