"""The rate of sending: never over the limit, and shared fairly between mailings."""

import time

from tests.processes import Gateways, Mailers

from mailer.sample_data import new_mailing

RATE = 150
SLACK = 0.02
"""Seconds for which unused starts are kept."""


async def test_rate_limit_is_never_exceeded(start_gateway: Gateways, start_mailer: Mailers) -> None:
    """Requests are seen after they were sent, so this also holds on a slow machine."""
    gateway = await start_gateway(latency=0.05)
    mailer = await start_mailer(**gateway.settings, gateway_rate=str(RATE))
    await mailer.create_clients(5_000)
    began = time.monotonic()
    await mailer.call("POST", "/mailings", new_mailing(), 201)
    await gateway.until_received(5 * RATE)

    for number, request in enumerate(gateway.received):
        assert number <= RATE * (request.monotonic - began + SLACK) + 1


async def test_unsent_messages_do_not_count_towards_the_rate_limit(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway()
    mailer = await start_mailer(**gateway.settings, gateway_rate="0.5")
    await mailer.create_clients(100)
    first = await mailer.call("POST", "/mailings", new_mailing(), 201)
    await gateway.until_received(1)
    await mailer.call("POST", "/mailings", new_mailing(), 201)

    # ten messages of the first mailing are claimed and wait
    await mailer.call("POST", f"/mailings/{first['id']}/pause")
    before = len(gateway.received)
    await gateway.until_received(before + 1)
    last, following = gateway.received[before - 1 : before + 1]
    # at most five intervals of the rate; the ten messages would have used ten
    assert following.monotonic - last.monotonic < 5 / 0.5


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
