"""A gateway that is down, busy, or does not know the token is left alone, and costs nobody."""

import asyncio
import os
from datetime import datetime
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.acceptance.test_main_job import a_mailing, add_clients
from tests.patience import PATIENCE
from tests.processes import Gateways, MailerProcess, Mailers, until
from tests.wire import OK, answer, request_of, served

from mailer.gateway.sandbox import Faults, SandboxGateway, Taken

OUTAGE = float(os.environ.get("TEST_OUTAGE", "3"))
"""Seconds that the gateway is away: a few in CI, `TEST_OUTAGE=120` for the whole promise."""

QUICK = {"breaker_failures": "5", "breaker_reset": "0.3", "retry_base": "0.2", "retry_cap": "1"}
ATTEMPTS = """
    SELECT count(*) FROM message WHERE status = 'delivered' AND attempts <> 1 OR attempts > 1"""


async def until_held(mailer: MailerProcess, mailing_id: int) -> dict[str, Any]:
    async def look() -> dict[str, Any] | None:
        mailing = await mailer.mailing(mailing_id)
        return mailing if mailing["held"] else None

    return await until(look)


@pytest.mark.timeout(OUTAGE + 300)
async def test_an_outage_costs_no_message_an_attempt(start_mailer: Mailers) -> None:
    taken: list[Taken] = []
    sandbox = SandboxGateway(Faults(latency=0.02), on_taken=taken.append)
    async with sandbox.run() as url:
        mailer = await start_mailer(gateway_url=url, gateway_concurrency="5", **QUICK)
        await add_clients(mailer, 300)
        created = await mailer.call("POST", "/mailings", a_mailing(on_unknown="hold"), 201)

        async def some_sent() -> bool | None:
            return len(taken) >= 50 or None

        await until(some_sent)
    # the block's end has stopped the gateway
    before = len(taken)

    held = await until_held(mailer, created["id"])
    assert held["held"]["reason"] in {"connection_failed", "connection_lost"}
    status = await mailer.call("GET", "/gateway")
    assert status["breaker"] in {"open", "half_open"}
    assert status["held"] == held["held"]
    await asyncio.sleep(OUTAGE)
    assert (await mailer.mailing(created["id"]))["held"]["since"] == held["held"]["since"]
    opened = [event for event in mailer.events if event["event"] == "breaker_opened"]
    probed = datetime.fromisoformat(opened[-1]["timestamp"])
    away = (probed - datetime.fromisoformat(opened[0]["timestamp"])).total_seconds()
    assert len(opened) <= 2 + away / 0.3  # one probe each 0.3 s

    async with sandbox.run(port=urlsplit(url).port or 0):
        mailing = await mailer.finished(created["id"], PATIENCE + OUTAGE)
    # those on the wire when it went down are in doubt; nobody else has noticed anything
    assert mailing["unknown_messages"] <= 5
    assert mailing["delivered_messages"] == 300 - mailing["unknown_messages"]
    assert mailing["held"] is None
    assert await mailer.query(ATTEMPTS) == 0
    assert len(taken) - before <= 300 - before + 5
    assert (await mailer.call("GET", "/gateway"))["breaker"] == "closed"


async def test_an_answer_on_its_way_as_the_gateway_goes_down_does_not_make_it_dear(
    start_mailer: Mailers,
) -> None:
    """A success that began before the first failures comes between them and the others."""
    requests = 0
    three_failed, is_answered = asyncio.Event(), asyncio.Event()

    async def going_down(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        requests += 1
        number = requests
        if number == 1:
            await three_failed.wait()
            await asyncio.sleep(0.1)
        elif number > 4:
            await is_answered.wait()
            await asyncio.sleep(0.1)
        await request_of(reader)
        status, body = (500, b"") if 1 < number <= 9 else (200, OK)
        writer.write(answer(status, body, "Connection: close"))
        await writer.drain()
        if number == 1:
            is_answered.set()
        elif number == 4:
            three_failed.set()

    async with served(going_down) as url:
        mailer = await start_mailer(
            gateway_url=url, gateway_concurrency="4", **QUICK | {"retry_base": "0.05"}
        )
        await add_clients(mailer, 12)
        created = await mailer.call("POST", "/mailings", a_mailing(), 201)
        assert (await mailer.finished(created["id"]))["delivered_messages"] == 12
    assert len([event for event in mailer.events if event["event"] == "breaker_opened"]) == 1
    assert await mailer.query(ATTEMPTS) == 0


async def test_a_wrong_token_holds_all_at_once_and_fails_no_message(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway()
    settings = gateway.settings | {"gateway_token": "wrong", "gateway_concurrency": "5"}
    mailer = await start_mailer(**settings, **QUICK)
    await add_clients(mailer, 50)
    created = await mailer.call("POST", "/mailings", a_mailing(), 201)

    held = await until_held(mailer, created["id"])
    assert held["held"]["reason"] == "http_401"
    await gateway.until_taken(5 + 2)  # what began together, and two probes
    await mailer.stop()
    first, last = gateway.taken[0].monotonic, gateway.taken[-1].monotonic
    assert len(gateway.taken) <= 5 + 1 + (last - first) / 0.3  # a probe each 0.3 s
    assert await mailer.query("SELECT max(attempts) FROM message") == 0

    second = await start_mailer(**gateway.settings)
    assert (await second.finished(created["id"]))["delivered_messages"] == 50


async def test_retry_after_is_obeyed_for_the_whole_gateway(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway(rate_limit=20)
    mailer = await start_mailer(
        **gateway.settings, gateway_concurrency="10", retry_attempts="2", retry_base="0.1"
    )
    await add_clients(mailer, 60)
    created = await mailer.call("POST", "/mailings", a_mailing(), 201)
    mailing = await mailer.finished(created["id"])

    assert mailing["delivered_messages"] == 60
    limited = [taken.monotonic for taken in gateway.taken if taken.kind == "limited"]
    assert limited
    for moment in limited:  # but for what was on its way, nothing comes within the second
        early = [t for t in gateway.taken if moment < t.monotonic < moment + 0.9]
        assert len(early) < 10


async def test_a_probe_that_hangs_keeps_all_others_back(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway(hang_rate=1.0)
    mailer = await start_mailer(
        **gateway.settings | QUICK, gateway_concurrency="5", gateway_timeout="0.5", lease="3"
    )
    await add_clients(mailer, 30)
    await mailer.call("POST", "/mailings", a_mailing(), 201)
    await gateway.until_taken(13)

    probes = [
        datetime.fromisoformat(event["timestamp"])
        for event in mailer.events
        if event["event"] == "breaker_probes"
    ]
    assert len(probes) >= 2
    assert all((later - earlier).total_seconds() >= 0.5 for earlier, later in pairwise(probes))
    assert len(gateway.taken) <= 10 + len(probes)  # ten began before it opened


async def test_a_held_mailing_says_since_when_and_why(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway(error_rate=1.0, seed=1)
    mailer = await start_mailer(**gateway.settings | QUICK | {"breaker_reset": "30"})
    await add_clients(mailer, 20)
    asked_at = datetime.now().astimezone()
    created = await mailer.call("POST", "/mailings", a_mailing(), 201)
    later = await mailer.call("POST", "/mailings", a_mailing(starts_in=600), 201)

    held = (await until_held(mailer, created["id"]))["held"]
    assert asked_at <= datetime.fromisoformat(held["since"]) <= datetime.now().astimezone()
    assert held["reason"].startswith("http_50")
    listed = (await mailer.call("GET", "/mailings"))["results"]
    assert {mailing["id"]: mailing["held"] for mailing in listed} == {
        created["id"]: held,
        later["id"]: None,
    }
    async with mailer.session.get("/metrics") as answer:
        assert 'mailer_gateway_breaker_state{state="open"} 1.0' in await answer.text()
    async with mailer.session.get("/") as answer:
        status = held["reason"].removeprefix("http_")
        assert f"the gateway answered {status}, since" in await answer.text()
