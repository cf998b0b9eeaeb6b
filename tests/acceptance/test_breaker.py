"""While the gateway is down, busy, or rejects the token, no message loses an attempt.

The circuit breaker opens after several failures in a row. While it is open, only one request at a
time is sent to probe the gateway, and all mailings are held.
"""

import asyncio
import os
from datetime import datetime
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.event_timeout import EVENT_TIMEOUT
from tests.fault_servers import OK, http_response, read_request, served
from tests.processes import Gateways, MailerProcess, Mailers, until, until_true

from mailer.gateway.sandbox import Faults, SandboxGateway, SandboxRequest
from mailer.sample_data import new_mailing

OUTAGE = float(os.environ.get("TEST_OUTAGE", "3"))
"""Seconds without the gateway; by default short, `TEST_OUTAGE=120` tests the whole promise."""

PROBE_INTERVAL = 0.3  # seconds
QUICK = {
    "breaker_failures": "5",
    "breaker_reset": str(PROBE_INTERVAL),
    "retry_base": "0.2",
    "retry_cap": "1",
}
"""Settings under which the breaker opens and probes quickly."""
COUNT_WRONG_ATTEMPTS = """
    SELECT count(*) FROM message WHERE status = 'delivered' AND attempts <> 1 OR attempts > 1"""
"""Counts the messages that an outage has cost an attempt."""


async def until_held(mailer: MailerProcess, mailing_id: int) -> dict[str, Any]:
    """Wait until a mailing is held by the breaker, and return it."""

    async def find_held() -> dict[str, Any] | None:
        mailing = await mailer.mailing(mailing_id)
        # before the breaker opens, all failed messages may wait for their next attempt
        is_held = mailing["held"] and mailing["held"]["reason"] != "retry_pause"
        return mailing if is_held else None

    return await until(find_held)


@pytest.mark.timeout(OUTAGE + 300)
async def test_outage_costs_no_message_an_attempt(start_mailer: Mailers) -> None:
    requests: list[SandboxRequest] = []
    sandbox = SandboxGateway(Faults(latency=0.02), on_request=requests.append)
    async with sandbox.run() as url:
        mailer = await start_mailer(gateway_url=url, gateway_concurrency="5", **QUICK)
        await mailer.create_clients(300)
        created = await mailer.call("POST", "/mailings", new_mailing(on_unknown="hold"), 201)

        async def some_have_arrived() -> bool:
            return len(requests) >= 50

        await until_true(some_have_arrived)
    # the gateway has stopped at the end of the block
    requests_before = len(requests)

    held = await until_held(mailer, created["id"])
    assert held["held"]["reason"] in {"connection_failed", "connection_lost"}
    status = await mailer.call("GET", "/gateways/default")
    assert status["breaker"] in {"open", "half_open"}
    assert held["held"] == status["held"] | {"until": None, "time_zone": None}
    await asyncio.sleep(OUTAGE)
    assert (await mailer.mailing(created["id"]))["held"]["since"] == held["held"]["since"]
    opened_at = [
        datetime.fromisoformat(event["timestamp"])
        for event in mailer.events
        if event["event"] == "breaker_opened"
    ]
    # each failed probe opens the breaker again; two more for the first opening and for rounding
    seconds_open = (opened_at[-1] - opened_at[0]).total_seconds()
    assert len(opened_at) <= seconds_open / PROBE_INTERVAL + 2

    async with sandbox.run(port=urlsplit(url).port or 0):
        mailing = await mailer.finished(created["id"], within=EVENT_TIMEOUT + OUTAGE)
    # only the requests that were in flight when the gateway stopped, at most five, end as unknown
    assert mailing["unknown_messages"] <= 5
    assert mailing["delivered_messages"] == 300 - mailing["unknown_messages"]
    assert mailing["held"] is None
    assert await mailer.query(COUNT_WRONG_ATTEMPTS) == 0
    requests_after = len(requests) - requests_before
    assert requests_after <= 300 - requests_before + 5  # so at most five are repeats
    assert (await mailer.call("GET", "/gateways/default"))["breaker"] == "closed"


async def test_late_success_at_the_start_of_an_outage_costs_no_message_an_attempt(
    start_mailer: Mailers,
) -> None:
    """Requests 2 to 9 fail. The first one succeeds, but only after the failures of 2, 3 and 4.

    Though a success came between the failures, all of them belong to the outage.
    """
    requests = 0
    three_have_failed, first_has_succeeded = asyncio.Event(), asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        requests += 1
        number = requests
        if number == 1:
            await three_have_failed.wait()
            await asyncio.sleep(0.1)  # so mailer has read the earlier responses
        elif number > 4:
            await first_has_succeeded.wait()
            await asyncio.sleep(0.1)
        await read_request(reader)
        status, body = (500, b"") if 1 < number <= 9 else (200, OK)
        writer.write(http_response(status, body, "Connection: close"))
        await writer.drain()
        if number == 1:
            first_has_succeeded.set()
        elif number == 4:
            three_have_failed.set()

    async with served(talk) as url:
        mailer = await start_mailer(
            gateway_url=url, gateway_concurrency="4", **QUICK | {"retry_base": "0.05"}
        )
        await mailer.create_clients(12)
        created = await mailer.call("POST", "/mailings", new_mailing(), 201)
        assert (await mailer.finished(created["id"]))["delivered_messages"] == 12
    assert len([event for event in mailer.events if event["event"] == "breaker_opened"]) == 1
    assert await mailer.query(COUNT_WRONG_ATTEMPTS) == 0


async def test_wrong_token_holds_all_mailings_at_once_and_fails_no_message(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway()
    settings = gateway.settings | {"gateway_token": "wrong", "gateway_concurrency": "5"}
    mailer = await start_mailer(**settings, **QUICK)
    await mailer.create_clients(50)
    created = await mailer.call("POST", "/mailings", new_mailing(), 201)

    held = await until_held(mailer, created["id"])
    assert held["held"]["reason"] == "http_401"
    await gateway.until_received(5 + 2)  # the first five at once, and two probes
    await mailer.stop()
    first, last = gateway.received[0].monotonic, gateway.received[-1].monotonic
    # five at once, one probe in each interval, and one more for rounding
    assert len(gateway.received) <= 5 + (last - first) / PROBE_INTERVAL + 1
    assert await mailer.query("SELECT max(attempts) FROM message") == 0

    second = await start_mailer(**gateway.settings)
    assert (await second.finished(created["id"]))["delivered_messages"] == 50


async def test_retry_after_pauses_all_requests_to_the_gateway(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway(rate_limit=20)  # more requests a second get 429 and Retry-After
    mailer = await start_mailer(
        **gateway.settings, gateway_concurrency="10", retry_attempts="2", retry_base="0.1"
    )
    await mailer.create_clients(60)
    created = await mailer.call("POST", "/mailings", new_mailing(), 201)
    mailing = await mailer.finished(created["id"])

    assert mailing["delivered_messages"] == 60
    limited_at = [request.monotonic for request in gateway.received if request.kind == "limited"]
    assert limited_at
    for at in limited_at:  # in the second after it, only requests arrive that were in flight then
        early = [request for request in gateway.received if at < request.monotonic < at + 0.9]
        assert len(early) < 10


async def test_no_request_starts_during_a_slow_probe(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway(hang_rate=1.0)  # never answers, so each request times out
    mailer = await start_mailer(
        **gateway.settings | QUICK, gateway_concurrency="5", gateway_timeout="0.5", lease="3"
    )
    await mailer.create_clients(30)
    await mailer.call("POST", "/mailings", new_mailing(), 201)
    await gateway.until_received(10 + 3)  # before the breaker opens, and as probes

    probe_starts = [
        datetime.fromisoformat(event["timestamp"])
        for event in mailer.events
        if event["event"] == "breaker_half_open"
    ]
    assert len(probe_starts) >= 2
    for earlier, later in pairwise(probe_starts):
        assert (later - earlier).total_seconds() >= 0.5  # the timeout of the earlier probe
    # at most ten started before the breaker opened: five, and others when these timed out
    assert len(gateway.received) <= 10 + len(probe_starts)


async def test_held_mailing_shows_since_when_and_why(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway(error_rate=1.0, seed=1)
    mailer = await start_mailer(**gateway.settings | QUICK | {"breaker_reset": "30"})
    await mailer.create_clients(20)
    created_at = datetime.now().astimezone()
    created = await mailer.call("POST", "/mailings", new_mailing(), 201)
    later = await mailer.call("POST", "/mailings", new_mailing(starts_in=600), 201)

    held = (await until_held(mailer, created["id"]))["held"]
    assert created_at <= datetime.fromisoformat(held["since"]) <= datetime.now().astimezone()
    assert held["reason"].startswith("http_50")
    listed = (await mailer.call("GET", "/mailings"))["results"]
    assert {mailing["id"]: mailing["held"] for mailing in listed} == {
        created["id"]: held,
        later["id"]: None,
    }
    async with mailer.session.get("/metrics") as metrics:
        state = 'mailer_gateway_breaker_state{gateway="default",state="open"} 1.0'
        assert state in await metrics.text()
    async with mailer.session.get("/") as page:
        status = held["reason"].removeprefix("http_")
        assert f"the gateway answered {status}, since" in await page.text()
