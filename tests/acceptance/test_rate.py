"""The rate of requests: never over the limit, and shared fairly between mailings."""

import time

from tests.processes import Gateways, Mailers

from mailer.sample_data import new_mailing

RATE = 150  # requests a second
SLACK = 0.02
"""Seconds; a request that starts late by up to this time does not delay the next ones."""


async def test_rate_limit_is_never_exceeded(start_gateway: Gateways, start_mailer: Mailers) -> None:
    """The gateway sees a request after it was sent, so this also holds on a slow machine."""
    gateway = await start_gateway(latency=0.05)
    mailer = await start_mailer(**gateway.settings, gateway_rate=str(RATE))
    await mailer.create_clients(5_000)
    started_at = time.monotonic()
    await mailer.call("POST", "/mailings", new_mailing(), 201)
    await gateway.until_received(5 * RATE)

    for earlier_requests, request in enumerate(gateway.received):
        assert earlier_requests <= RATE * (request.monotonic - started_at + SLACK) + 1


async def test_unsent_messages_do_not_count_towards_the_rate_limit(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    interval = 2  # seconds between requests
    gateway = await start_gateway()
    mailer = await start_mailer(**gateway.settings, gateway_rate=str(1 / interval))
    await mailer.create_clients(100)
    first = await mailer.call("POST", "/mailings", new_mailing(), 201)
    await gateway.until_received(1)
    await mailer.call("POST", "/mailings", new_mailing(), 201)

    # ten messages of the first mailing are claimed and wait
    await mailer.call("POST", f"/mailings/{first['id']}/pause")
    count_at_pause = len(gateway.received)
    await gateway.until_received(count_at_pause + 1)
    last_before, first_after = gateway.received[count_at_pause - 1 : count_at_pause + 1]
    # if the ten messages counted, the next request would have to wait for ten intervals
    assert first_after.monotonic - last_before.monotonic < 5 * interval


async def test_small_mailing_does_not_wait_for_a_large_one(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway(latency=0.05)
    mailer = await start_mailer(**gateway.settings)
    await mailer.create_clients(40_000)
    await mailer.query("UPDATE client SET tag = 'few' WHERE id > 39990 RETURNING id")
    large = await mailer.call("POST", "/mailings", new_mailing(), 201)
    await gateway.until_received(1_000)

    small = await mailer.call("POST", "/mailings", new_mailing(client_filter="few"), 201)
    assert (await mailer.finished(small["id"]))["delivered_messages"] == 10
    mailing = await mailer.mailing(large["id"])
    assert mailing["status"] == "running"
    assert mailing["delivered_messages"] < 20_000  # more than half is still to be sent


async def test_an_attempt_that_waits_for_the_rate_limit_starts_with_its_request(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway()
    mailer = await start_mailer(**gateway.settings, gateway_rate="2")
    await mailer.create_clients(6)  # one claim
    created = await mailer.call("POST", "/mailings", new_mailing(), 201)
    await mailer.finished(created["id"])
    in_order = await mailer.query(
        """SELECT (SELECT claimed_at FROM message ORDER BY sent_at DESC LIMIT 1) > min(sent_at)
            AND bool_and(claimed_at <= sent_at) FROM message"""
    )
    assert in_order is True
