"""Mailings are held while the gateway's breaker is open; API and pages show since when and why.

Moments are around `AT`, in 2030: tests give the breaker its time. It opens after two failures, and
permits one request, the probe, `RESET` seconds later. Then it is half-open.
"""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.calls import DUE, NEW, create_mailing
from tests.asgi_client import inside
from tests.factories import (
    OPEN,
    add_clients,
    add_mailing,
    advance,
    create_channel,
    create_channels,
    do,
    execute,
    start_and_enqueue,
)

from mailer.app import create_app
from mailer.db.engine import create_engine
from mailer.gateway.breaker import Breaker
from mailer.gateway.channel import Channel, Channels
from mailer.gateway.protocol import Accepted, Outcome, TemporaryFailure, Unknown
from mailer.mailing import store
from mailer.mailing.activity import with_current_hold

AT = datetime(2030, 1, 15, 6, tzinfo=UTC)
RESET = 15.0
"""Seconds from the opening of the breaker to the first probe."""
AT_RESET = AT + timedelta(seconds=RESET)
OUTAGE = {"since": "2030-01-15T06:00:00Z", "reason": "http_503"}
"""The field `held` of the gateway after `open_breaker`."""
HELD = OUTAGE | {"until": None, "time_zone": None}
"""The field `held` of a running mailing after `open_breaker`."""
CLOSED = {"state": "up", "breaker": "closed", "held": None, "retry_at": None, "failures": 0}
"""The state of a gateway that works."""
ADDRESS = "/gateways/default"


@pytest.fixture
def channel() -> Channel:
    """The gateway of the application."""
    return create_channel(breaker_failures=2, breaker_reset=RESET)


@pytest.fixture
def breaker(channel: Channel) -> Breaker:
    """The breaker of that gateway."""
    return channel.breaker


@pytest.fixture
async def api(engine: AsyncEngine, channel: Channel) -> AsyncIterator[httpx.AsyncClient]:
    """The API of an application whose gateway has the breaker `breaker`."""
    transport = inside(create_app(engine, Channels([channel]), settings=OPEN))
    async with httpx.AsyncClient(transport=transport, base_url="http://mailer/api/v1") as client:
        yield client


def send(breaker: Breaker, outcome: Outcome, at: datetime = AT) -> None:
    """Act as if a request to the gateway had an outcome."""
    permit = breaker.acquire(at.timestamp())
    assert permit is not None
    breaker.record(permit, outcome, at.timestamp(), at)


def open_breaker(breaker: Breaker) -> None:
    """Open the breaker at the moment `AT`, by two failures."""
    send(breaker, Unknown("timeout"), AT - timedelta(seconds=9))
    send(breaker, TemporaryFailure("http_503"))


def begin_probe(breaker: Breaker) -> int:
    """Start the probe of an open breaker, which is half-open from now on; return its permit."""
    permit = breaker.acquire(AT_RESET.timestamp())
    assert permit is not None
    return permit


def end_probe(breaker: Breaker, probe: int, outcome: Outcome) -> None:
    breaker.record(probe, outcome, AT_RESET.timestamp(), AT_RESET)


async def get(api: httpx.AsyncClient, path: str) -> Any:
    """Return the JSON at a path."""
    answer = await api.get(path)
    assert answer.status_code == 200
    return answer.json()


def breaker_part(gateway: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a gateway that its breaker determines."""
    return {name: gateway[name] for name in CLOSED}


async def get_overview(api: httpx.AsyncClient) -> str:
    """Return the HTML of the first page, with blanks instead of line breaks."""
    answer = await api.get("http://mailer/")
    assert answer.status_code == 200
    return " ".join(answer.text.split())


async def add_mailings(api: httpx.AsyncClient, engine: AsyncEngine) -> dict[str, int]:
    """Create a mailing in every status; return their ids by status."""
    await add_clients(engine, 2)
    ids = {}
    for status in ("finished", "cancelled", "paused", "running"):
        ids[status] = (await create_mailing(api, DUE))["id"]
        await start_and_enqueue(engine)
        if status == "finished":
            await execute(engine, "UPDATE message SET status = 'delivered'")
            await advance(engine)
        elif status != "running":
            action = {"paused": "pause", "cancelled": "cancel"}[status]
            assert (await api.post(f"/mailings/{ids[status]}/{action}")).status_code == 200
    return ids | {"scheduled": (await create_mailing(api, NEW))["id"]}


# ---- mailings -------------------------------------------------------------------------------


async def test_only_running_mailings_are_held_while_the_breaker_is_open(
    api: httpx.AsyncClient, engine: AsyncEngine, breaker: Breaker
) -> None:
    ids = await add_mailings(api, engine)
    open_breaker(breaker)

    listed = {row["id"]: row for row in (await get(api, "/mailings"))["results"]}

    for status, mailing_id in ids.items():
        expected = HELD if status == "running" else None
        assert listed[mailing_id]["status"] == status
        assert listed[mailing_id]["held"] == expected
        assert (await get(api, f"/mailings/{mailing_id}"))["held"] == expected
    running = (await get(api, "/mailings?status=running"))["results"]
    assert [row["held"] for row in running] == [HELD]


async def test_a_mailing_is_held_since_its_start_if_the_breaker_opened_before(
    api: httpx.AsyncClient, engine: AsyncEngine, breaker: Breaker
) -> None:
    address = f"/mailings/{(await add_mailings(api, engine))['running']}"
    open_breaker(breaker)
    start = "2030-01-15T07:00:00Z"
    await execute(engine, f"UPDATE mailing SET datetime_start = '{start}'")  # noqa: S608  # a time of the test
    assert (await get(api, address))["held"] == HELD | {"since": start}


async def test_mailings_are_not_held_while_the_breaker_is_closed(
    api: httpx.AsyncClient, engine: AsyncEngine, breaker: Breaker
) -> None:
    ids = await add_mailings(api, engine)
    send(breaker, TemporaryFailure("http_503"))  # one failure is not enough
    assert {row["held"] for row in (await get(api, "/mailings"))["results"]} == {None}
    assert (await get(api, f"/mailings/{ids['running']}"))["held"] is None


async def test_mailings_are_held_while_the_breaker_is_half_open_until_a_success(
    api: httpx.AsyncClient, engine: AsyncEngine, breaker: Breaker
) -> None:
    address = f"/mailings/{(await add_mailings(api, engine))['running']}"
    open_breaker(breaker)
    probe = begin_probe(breaker)
    assert (await get(api, address))["held"] == HELD

    end_probe(breaker, probe, Accepted())

    assert (await get(api, address))["held"] is None


async def test_held_shows_when_the_breaker_first_opened_and_the_last_failure(
    api: httpx.AsyncClient, engine: AsyncEngine, breaker: Breaker
) -> None:
    address = f"/mailings/{(await add_mailings(api, engine))['running']}"
    open_breaker(breaker)
    end_probe(breaker, begin_probe(breaker), TemporaryFailure("connection_failed"))
    assert (await get(api, address))["held"] == HELD | {"reason": "connection_failed"}


async def test_responses_to_changes_show_whether_the_mailing_is_held(
    api: httpx.AsyncClient, engine: AsyncEngine, breaker: Breaker
) -> None:
    ids = await add_mailings(api, engine)
    open_breaker(breaker)
    address = f"/mailings/{ids['running']}"
    await execute(engine, "UPDATE message SET status = 'undelivered'")

    changed = await api.patch(address, json={"text": "x"})
    assert changed.json()["held"] == HELD
    for action, held in (("retry", HELD), ("pause", None), ("resume", HELD), ("cancel", None)):
        answer = await api.post(f"{address}/{action}")
        assert answer.status_code == 200
        assert answer.json()["held"] == held, action
    assert (await create_mailing(api, DUE))["held"] is None  # not started


# ---- the gateway ----------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/gateways/default", "/gateways/default/"])
async def test_a_working_gateway_is_shown_with_a_closed_breaker(
    api: httpx.AsyncClient, breaker: Breaker, path: str
) -> None:
    assert breaker_part(await get(api, path)) == CLOSED
    send(breaker, TemporaryFailure("http_503"))
    assert breaker_part(await get(api, path)) == CLOSED | {"failures": 1}
    send(breaker, Accepted())
    assert breaker_part(await get(api, path)) == CLOSED


async def test_a_failing_gateway_is_shown_with_an_open_then_half_open_breaker(
    api: httpx.AsyncClient, breaker: Breaker
) -> None:
    open_breaker(breaker)
    held = {"state": "out", "held": OUTAGE, "retry_at": "2030-01-15T06:00:15Z", "failures": 2}
    assert breaker_part(await get(api, ADDRESS)) == held | {"breaker": "open"}

    probe = begin_probe(breaker)
    assert breaker_part(await get(api, ADDRESS)) == held | {"breaker": "half_open"}

    end_probe(breaker, probe, Accepted())
    assert breaker_part(await get(api, ADDRESS)) == CLOSED


async def test_a_pause_requested_by_the_gateway_is_shown(
    api: httpx.AsyncClient, breaker: Breaker
) -> None:
    send(breaker, TemporaryFailure("http_429", retry_after=90, affects_all=True))
    gateway = await get(api, ADDRESS)
    assert (gateway["breaker"], gateway["held"]["reason"]) == ("open", "http_429")
    assert gateway["retry_at"] == "2030-01-15T06:01:30Z"


async def test_without_a_gateway_only_running_mailings_are_held(
    application: httpx.AsyncClient, api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    ids = await add_mailings(api, engine)
    assert await get(application, "/gateways") == []
    listed = {row["id"]: row for row in (await get(application, "/mailings"))["results"]}
    for status, mailing_id in ids.items():
        held = None
        if status == "running":
            since = max(listed[mailing_id]["datetime_start"], listed[mailing_id]["created_at"])
            held = {"since": since, "reason": "no_gateway", "until": None, "time_zone": None}
        assert listed[mailing_id]["held"] == held
        assert (await get(application, f"/mailings/{mailing_id}"))["held"] == held


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("path", ["/gateways", ADDRESS])
async def test_gateways_cannot_be_created_changed_or_deleted(
    api: httpx.AsyncClient, method: str, path: str
) -> None:
    answer = await api.request(method, path, json={"breaker": "closed"})
    assert answer.status_code == 405
    assert answer.headers["content-type"] == "application/problem+json"


# ---- the overview ---------------------------------------------------------------------------


async def test_the_overview_shows_since_when_and_why_the_breaker_is_open(
    api: httpx.AsyncClient, engine: AsyncEngine, breaker: Breaker
) -> None:
    await add_mailings(api, engine)
    assert "not accepting messages" not in await get_overview(api)

    open_breaker(breaker)

    page = await get_overview(api)
    assert 'the gateway answered 503, since <time datetime="2030-01-15T06:00:00Z"' in page
    assert 'Next attempt: <time datetime="2030-01-15T06:00:15Z"' in page
    probe = begin_probe(breaker)
    assert "not accepting messages" in await get_overview(api)
    end_probe(breaker, probe, Accepted())
    assert "not accepting messages" not in await get_overview(api)


async def test_the_overview_shows_that_no_gateway_is_configured(
    application: httpx.AsyncClient,
) -> None:
    assert "No gateway is configured, so nothing is sent." in await get_overview(application)


async def test_a_change_is_answered_also_if_the_database_is_lost_after_it(
    engine: AsyncEngine,
) -> None:
    mailing_id = await add_mailing(engine, clients=1)
    mailing = await do(engine, lambda connection: store.get(connection, mailing_id))
    lost = create_engine("postgresql://127.0.0.1:1/")
    answered = await with_current_hold(lost, mailing, Channels())
    assert answered.held is not None
    assert answered.held.reason == "no_gateway"
    assert await with_current_hold(lost, mailing, create_channels()) == mailing
    await lost.dispose()
