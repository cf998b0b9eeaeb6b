"""A running mailing that sends nothing says what it waits for, and until when.

It may wait for a sending window, for the next attempt of failed messages, or for the gateways of
its remaining clients. The API has this in `held`, and all pages say it in words.
"""

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.asgi_client import inside
from tests.factories import (
    HOUR,
    NOON,
    OPEN,
    UnusedGateway,
    add_clients,
    add_mailing,
    add_messages,
    channel_of,
    do,
    execute,
)

from mailer.app import create_app
from mailer.gateway import routes
from mailer.gateway.channel import Channels
from mailer.gateway.router import GatewayTables
from mailer.settings import Settings

ROUTE_BY_CODE = """
    UPDATE message SET route = (SELECT route FROM operator_route
        WHERE operator_route.operator_code IN (message.operator_code, '')
        ORDER BY operator_route.operator_code DESC LIMIT 1)"""
"""Gives each message the route of its operator code."""
CODES = {"main": ["916"], "beeline": ["903"], "tele2": ["903"]}
"""The gateways of the tests with their operator codes."""


@pytest.fixture
def channels() -> Channels:
    """The gateways `CODES`."""
    return Channels(
        channel_of(
            UnusedGateway(), Settings(gateway_rate=10), name=name, operator_codes=operator_codes
        )
        for name, operator_codes in CODES.items()
    )


@pytest.fixture
async def api(engine: AsyncEngine, channels: Channels) -> AsyncIterator[httpx.AsyncClient]:
    """The API of an application with these gateways."""
    await do(engine, lambda connection: routes.apply_routes(connection, CODES))
    transport = inside(create_app(engine, channels, settings=OPEN))
    async with httpx.AsyncClient(transport=transport, base_url="http://mailer/api/v1") as client:
        yield client


async def add_running_mailing(
    engine: AsyncEngine, code: str = "916", zone: str = "UTC", at: datetime = NOON, count: int = 1
) -> int:
    """Create a mailing that has run for an hour and lasts two days, with messages due at `at`."""
    clients = await add_clients(engine, count, code, zone)
    start = datetime.now(UTC).replace(microsecond=0) - HOUR
    mailing_id = await add_mailing(engine, clients=count, start=start, lasts=48 * HOUR)
    await execute(engine, f"UPDATE mailing SET created_at = datetime_start WHERE id = {mailing_id}")  # noqa: S608  # a number
    await add_messages(engine, mailing_id, clients, "scheduled", at=at)
    await execute(engine, ROUTE_BY_CODE)
    return mailing_id


async def get_held(api: httpx.AsyncClient, mailing_id: int) -> Any:
    """Return `held` of a mailing; it is the same wherever the API returns the mailing."""
    mailing = (await api.get(f"/mailings/{mailing_id}")).json()
    listed = (await api.get("/mailings")).json()["results"]
    [in_list] = [row for row in listed if row["id"] == mailing_id]
    changed = (await api.patch(f"/mailings/{mailing_id}", json={"on_unknown": "hold"})).json()
    assert mailing["held"] == in_list["held"] == changed["held"]
    return mailing["held"]


async def get_text(api: httpx.AsyncClient, path: str) -> str:
    """Return the text of a page, without elements."""
    page = await api.get(f"http://mailer{path}")
    assert page.status_code == 200
    return " ".join(re.sub(r"<[^>]*>", " ", page.text).split())


def in_api(moment: datetime) -> str:
    """Return a moment as the API shows it."""
    return moment.isoformat().replace("+00:00", "Z")


def pause(channels: Channels, *names: str) -> None:
    """Act as if users had paused these gateways, and no others."""
    channels.update(GatewayTables(routes={}, paused_at=dict.fromkeys(names, NOON)))


def hours_from_now(hours: float) -> datetime:
    return datetime.now(UTC).replace(microsecond=0) + hours * HOUR


# ---- sending windows and pauses ----------------------------------------------------------------


async def test_a_mailing_waits_for_the_next_opening_for_any_of_its_clients(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    first, later = hours_from_now(5), hours_from_now(9)
    mailing_id = await add_running_mailing(engine, "916", "Asia/Omsk", first)
    others = await add_clients(engine, 3, "903", "Europe/Moscow")
    await add_messages(engine, mailing_id, others, "scheduled", at=later)
    await execute(engine, ROUTE_BY_CODE)
    start = (await api.get(f"/mailings/{mailing_id}")).json()["datetime_start"]

    held = await get_held(api, mailing_id)

    assert held == {
        "since": start,
        "reason": "window_closed",
        "until": in_api(first),
        "time_zone": "Asia/Omsk",
    }
    for path in ("/", "/mailings", f"/mailings/{mailing_id}"):
        text = await get_text(api, path)
        assert "Waits The next sending window opens at" in text
        assert f"{first:%H:%M} (Asia/Omsk)." in text
        assert "Held" not in text
        assert "It is being sent" not in text
        assert "a second" not in text.partition("Forecast")[0]


async def test_it_has_waited_since_it_sent_last(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    mailing_id = await add_running_mailing(engine, at=hours_from_now(5), count=2)
    sent_at = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=20)
    [sent] = await add_clients(engine, 1)
    await add_messages(engine, mailing_id, [sent], "delivered", at=sent_at)
    assert (await get_held(api, mailing_id))["since"] == in_api(sent_at)


async def test_failed_messages_wait_for_their_next_attempt(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    until = hours_from_now(0.25)
    mailing_id = await add_running_mailing(engine, at=until)
    await execute(engine, "UPDATE message SET attempts = 1, retry_at = due_at")
    held = await get_held(api, mailing_id)
    assert (held["reason"], held["until"]) == ("retry_pause", in_api(until))
    assert held["time_zone"] is None
    for path in ("/", "/mailings", f"/mailings/{mailing_id}"):
        assert "Failed messages are retried from" in await get_text(api, path)
    assert "No estimate while it waits." in await get_text(api, f"/mailings/{mailing_id}")


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE message SET due_at = now() WHERE id = (SELECT min(id) FROM message)",
        """UPDATE message SET status = 'sending', lease_owner = gen_random_uuid(),
            lease_expires_at = now() + interval '1 hour'
            WHERE id = (SELECT min(id) FROM message)""",
        "UPDATE mailing SET audience_cursor = 1, audience_until = 9",  # due messages may come
        "UPDATE mailing SET status = 'paused'",
        "UPDATE message SET status = 'delivered', sent_at = now()",
    ],
    ids=["due", "being sent", "being enqueued", "paused", "done"],
)
async def test_a_mailing_that_sends_or_is_paused_is_not_held(
    api: httpx.AsyncClient, engine: AsyncEngine, change: str
) -> None:
    mailing_id = await add_running_mailing(engine, at=hours_from_now(5), count=2)
    assert (await api.get(f"/mailings/{mailing_id}")).json()["held"] is not None
    await execute(engine, change)
    assert (await api.get(f"/mailings/{mailing_id}")).json()["held"] is None


async def test_the_estimate_of_a_mailing_between_its_windows_is_after_the_next_opening(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    opens = hours_from_now(2).replace(minute=0, second=0)
    mailing_id = await add_running_mailing(engine, at=opens)
    await execute(
        engine,
        f"""UPDATE mailing SET send_interval_time_start = '{opens:%H:%M}',
            send_interval_time_end = '{opens + HOUR:%H:%M}'""",  # noqa: S608  # times of the test
    )
    assert (await get_held(api, mailing_id))["until"] == in_api(opens)
    statistics = (await api.get(f"/mailings/{mailing_id}/statistics")).json()
    assert opens <= datetime.fromisoformat(statistics["expected_end"]) < opens + HOUR / 60
    page = await get_text(api, f"/mailings/{mailing_id}")
    assert re.search(rf"All clients will get it by [^.]*{opens:%H}:00", page)


# ---- gateways of the clients -------------------------------------------------------------------


async def test_a_mailing_is_held_while_all_gateways_of_its_clients_are_out(
    api: httpx.AsyncClient, engine: AsyncEngine, channels: Channels
) -> None:
    mailing_id = await add_running_mailing(engine, "903")
    pause(channels, "beeline")
    assert await get_held(api, mailing_id) is None

    pause(channels, "beeline", "tele2")

    held = await get_held(api, mailing_id)
    assert (held["reason"], held["until"]) == ("no_gateway_for_clients", None)
    for path in ("/", "/mailings", f"/mailings/{mailing_id}"):
        text = await get_text(api, path)
        assert "Held No gateway can be used for the clients who wait" in text
        assert "It is being sent" not in text
        assert "finishes at about" not in text
    assert "No estimate while it waits." in await get_text(api, f"/mailings/{mailing_id}")
    statistics = (await api.get(f"/mailings/{mailing_id}/statistics")).json()
    assert statistics["expected_end"] is None
    [message] = (await api.get(f"/mailings/{mailing_id}/messages")).json()["results"]
    assert "It waits until a gateway for this client can be used." in await get_text(
        api, f"/mailings/{mailing_id}/messages/{message['id']}"
    )


async def test_a_mailing_is_held_if_no_gateway_takes_the_operator_codes_of_its_clients(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    mailing_id = await add_running_mailing(engine, "999")
    assert (await get_held(api, mailing_id))["reason"] == "no_gateway_for_clients"


async def test_clients_of_another_gateway_end_the_wait(
    api: httpx.AsyncClient, engine: AsyncEngine, channels: Channels
) -> None:
    until = hours_from_now(3)
    mailing_id = await add_running_mailing(engine, "903")
    [other] = await add_clients(engine, 1, "916")
    await add_messages(engine, mailing_id, [other], "scheduled", at=until)
    await execute(engine, ROUTE_BY_CODE)
    pause(channels, "beeline", "tele2")
    held = await get_held(api, mailing_id)
    assert (held["reason"], held["until"]) == ("no_gateway_for_clients", in_api(until))

    await execute(engine, "UPDATE message SET due_at = now() WHERE operator_code = '916'")

    assert await get_held(api, mailing_id) is None


async def test_all_gateways_out_is_told_rather_than_a_closed_window(
    api: httpx.AsyncClient, engine: AsyncEngine, channels: Channels
) -> None:
    mailing_id = await add_running_mailing(engine, at=hours_from_now(5))
    pause(channels, *(each.name for each in channels))
    assert (await get_held(api, mailing_id))["reason"] == "gateway_paused"


# ---- the estimate and what is lost -------------------------------------------------------------


async def test_nobody_is_told_that_all_clients_get_it_when_some_are_lost(
    api: httpx.AsyncClient, engine: AsyncEngine, channels: Channels
) -> None:
    mailing_id = await add_running_mailing(engine)
    lost = await add_clients(engine, 4)
    await add_messages(engine, mailing_id, lost, "cancelled", "no_window", at=datetime.now(UTC))
    path = f"/mailings/{mailing_id}"
    page = await get_text(api, path)
    assert "1 remaining client will get it by" in page
    assert "4 clients will not get it: the mailing ends before their sending window opens." in page
    assert "All clients" not in page.partition("Forecast")[2]

    for channel in channels:  # no gateway was measured yet, so that only windows count
        channel.throughput = type(channel.throughput)(1)
    page = await get_text(api, path)
    assert "The sending windows of all remaining clients open in time" in page
