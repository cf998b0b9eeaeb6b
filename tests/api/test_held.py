"""A gateway that takes nothing: mailings, the API and the overview say so, since when and why."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.api.calls import DUE, NEW, create
from tests.asked import inside
from tests.sample import OPEN, add_clients, advance, begin, execute

from mailer.app import create_app
from mailer.gateway.breaker import Breaker
from mailer.gateway.port import Accepted, Outcome, Unavailable, Unknown

AT = datetime(2030, 1, 15, 6, tzinfo=UTC)
RESET = 15.0
HELD = {"since": "2030-01-15T06:00:00Z", "reason": "http_503"}
CALM = {"breaker": "closed", "held": None, "retry_at": None, "failures": 0}


@pytest.fixture
def breaker() -> Breaker:
    return Breaker(failures=2, reset=RESET)


@pytest.fixture
async def api(engine: AsyncEngine, breaker: Breaker) -> AsyncIterator[httpx.AsyncClient]:
    """The application with a gateway behind that breaker."""
    transport = inside(create_app(engine, breaker, settings=OPEN))
    async with httpx.AsyncClient(transport=transport, base_url="http://mailer/api/v1") as client:
        yield client


def send(breaker: Breaker, outcome: Outcome, at: datetime = AT) -> None:
    """Let a message go out and come to an outcome."""
    permit = breaker.begin(at.timestamp())
    assert permit is not None
    breaker.record(permit, outcome, at.timestamp(), at)


def fail(breaker: Breaker) -> None:
    """Open the breaker."""
    send(breaker, Unknown("timeout"), AT - timedelta(seconds=9))
    send(breaker, Unavailable("http_503"))


async def get(api: httpx.AsyncClient, path: str) -> Any:
    answer = await api.get(path)
    assert answer.status_code == 200
    return answer.json()


async def overview(api: httpx.AsyncClient) -> str:
    answer = await api.get("http://mailer/")
    assert answer.status_code == 200
    return " ".join(answer.text.split())


async def add_mailings(api: httpx.AsyncClient, engine: AsyncEngine) -> dict[str, int]:
    """A mailing in every state: their ids by state."""
    await add_clients(engine, 2)
    ids = {}
    for state in ("finished", "cancelled", "paused", "running"):
        ids[state] = (await create(api, DUE))["id"]
        await begin(engine)
        if state == "finished":
            await execute(engine, "UPDATE message SET status = 'delivered'")
            await advance(engine)
        elif state != "running":
            path = {"paused": "pause", "cancelled": "cancel"}[state]
            assert (await api.post(f"/mailings/{ids[state]}/{path}")).status_code == 200
    return ids | {"scheduled": (await create(api, NEW))["id"]}


# ---- mailings -------------------------------------------------------------------------------


async def test_running_mailings_are_held_while_the_gateway_takes_nothing_and_no_others(
    api: httpx.AsyncClient, engine: AsyncEngine, breaker: Breaker
) -> None:
    ids = await add_mailings(api, engine)
    fail(breaker)

    listed = {row["id"]: row for row in (await get(api, "/mailings"))["results"]}

    for state, mailing_id in ids.items():
        expected = HELD if state == "running" else None
        assert listed[mailing_id]["status"] == state
        assert listed[mailing_id]["held"] == expected
        assert (await get(api, f"/mailings/{mailing_id}"))["held"] == expected
    running = (await get(api, "/mailings?status=running"))["results"]
    assert [row["held"] for row in running] == [HELD]


async def test_mailings_are_not_held_while_the_gateway_takes_messages(
    api: httpx.AsyncClient, engine: AsyncEngine, breaker: Breaker
) -> None:
    ids = await add_mailings(api, engine)
    send(breaker, Unavailable("http_503"))  # one failure is not enough
    assert {row["held"] for row in (await get(api, "/mailings"))["results"]} == {None}
    assert (await get(api, f"/mailings/{ids['running']}"))["held"] is None


async def test_mailings_are_held_while_the_gateway_is_probed_and_no_more_after_a_success(
    api: httpx.AsyncClient, engine: AsyncEngine, breaker: Breaker
) -> None:
    address = f"/mailings/{(await add_mailings(api, engine))['running']}"
    fail(breaker)
    later = AT + timedelta(seconds=RESET)
    probe = breaker.begin(later.timestamp())
    assert probe is not None
    assert (await get(api, address))["held"] == HELD

    breaker.record(probe, Accepted(), later.timestamp(), later)

    assert (await get(api, address))["held"] is None


async def test_mailing_is_held_since_the_breaker_first_opened_for_the_reason_it_failed_last(
    api: httpx.AsyncClient, engine: AsyncEngine, breaker: Breaker
) -> None:
    address = f"/mailings/{(await add_mailings(api, engine))['running']}"
    fail(breaker)
    send(breaker, Unavailable("connection_failed"), AT + timedelta(seconds=RESET))
    assert (await get(api, address))["held"] == HELD | {"reason": "connection_failed"}


async def test_what_a_call_answers_says_that_the_mailing_is_held(
    api: httpx.AsyncClient, engine: AsyncEngine, breaker: Breaker
) -> None:
    ids = await add_mailings(api, engine)
    fail(breaker)
    address = f"/mailings/{ids['running']}"
    await execute(engine, "UPDATE message SET status = 'undelivered'")
    for method, path, body, held in (
        *(("PATCH", "", {"text": "x"}, HELD), ("POST", "/retry", None, HELD)),
        *(("POST", "/pause", None, None), ("POST", "/resume", None, HELD)),
        ("POST", "/cancel", None, None),
    ):
        answer = await api.request(method, f"{address}{path}", json=body)
        assert answer.status_code == 200
        assert answer.json()["held"] == held, path
    assert (await create(api, DUE))["held"] is None  # it has not begun


# ---- the gateway ----------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/gateway", "/gateway/"])
async def test_gateway_that_takes_messages_is_shown_closed(
    api: httpx.AsyncClient, breaker: Breaker, path: str
) -> None:
    assert await get(api, path) == CALM | {"is_set": True}
    send(breaker, Unavailable("http_503"))
    assert await get(api, path) == CALM | {"is_set": True, "failures": 1}
    send(breaker, Accepted())
    assert await get(api, path) == CALM | {"is_set": True}


async def test_gateway_that_takes_nothing_is_shown_open_until_it_is_probed(
    api: httpx.AsyncClient, breaker: Breaker
) -> None:
    fail(breaker)
    held = {"is_set": True, "held": HELD, "retry_at": "2030-01-15T06:00:15Z", "failures": 2}
    assert await get(api, "/gateway") == held | {"breaker": "open"}

    later = AT + timedelta(seconds=RESET)
    probe = breaker.begin(later.timestamp())
    assert await get(api, "/gateway") == held | {"breaker": "half_open"}

    assert probe is not None
    breaker.record(probe, Accepted(), later.timestamp(), later)
    assert await get(api, "/gateway") == CALM | {"is_set": True}


async def test_pause_that_a_gateway_asks_for_is_shown(
    api: httpx.AsyncClient, breaker: Breaker
) -> None:
    send(breaker, Unavailable("http_429", retry_after=90, affects_all=True))
    shown = await get(api, "/gateway")
    assert (shown["breaker"], shown["held"]["reason"]) == ("open", "http_429")
    assert shown["retry_at"] == "2030-01-15T06:01:30Z"


async def test_without_a_gateway_running_mailings_are_held_and_no_others(
    application: httpx.AsyncClient, api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    ids = await add_mailings(api, engine)
    assert await get(application, "/gateway") == CALM | {"is_set": False}
    listed = {row["id"]: row for row in (await get(application, "/mailings"))["results"]}
    for name, mailing_id in ids.items():
        held = None
        if name == "running":
            held = {"since": listed[mailing_id]["datetime_start"], "reason": "no_gateway"}
        assert listed[mailing_id]["held"] == held
        assert (await get(application, f"/mailings/{mailing_id}"))["held"] == held


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
async def test_gateway_can_only_be_looked_at(api: httpx.AsyncClient, method: str) -> None:
    answer = await api.request(method, "/gateway", json={"breaker": "closed"})
    assert answer.status_code == 405
    assert answer.headers["content-type"] == "application/problem+json"


# ---- the overview ---------------------------------------------------------------------------


async def test_overview_says_since_when_and_why_the_gateway_takes_nothing(
    api: httpx.AsyncClient, engine: AsyncEngine, breaker: Breaker
) -> None:
    await add_mailings(api, engine)
    assert "not taking messages" not in await overview(api)

    fail(breaker)

    page = await overview(api)
    assert 'the gateway answered 503, since <time datetime="2030-01-15T06:00:00Z"' in page
    assert 'Next try: <time datetime="2030-01-15T06:00:15Z"' in page
    later = AT + timedelta(seconds=RESET)
    probe = breaker.begin(later.timestamp())
    assert "not taking messages" in await overview(api)
    assert probe is not None
    breaker.record(probe, Accepted(), later.timestamp(), later)
    assert "not taking messages" not in await overview(api)


async def test_overview_says_that_no_gateway_is_set(application: httpx.AsyncClient) -> None:
    assert "No gateway is set, so nothing is sent." in await overview(application)
