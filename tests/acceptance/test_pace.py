"""How fast it goes: never over the rate, and a fair share for everybody."""

import time

from tests.acceptance.test_main_job import a_mailing, add_clients
from tests.processes import Gateways, Mailers

RATE = 150
SLACK = 0.02
"""Seconds of the rate that may be caught up."""


async def test_no_more_is_sent_than_the_rate_allows(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    """A request is seen when it arrives or later: so this holds however slow the machine is."""
    gateway = await start_gateway(latency=0.05)
    mailer = await start_mailer(**gateway.settings, gateway_rate=str(RATE))
    await add_clients(mailer, 5_000)
    began = time.monotonic()
    await mailer.call("POST", "/mailings", a_mailing(), 201)
    await gateway.until_taken(5 * RATE)

    for number, taken in enumerate(gateway.taken):
        assert number <= RATE * (taken.monotonic - began + SLACK) + 1


async def test_what_is_not_sent_takes_no_turn_from_others(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway()
    mailer = await start_mailer(**gateway.settings, gateway_rate="0.5")
    await add_clients(mailer, 100)
    first = await mailer.call("POST", "/mailings", a_mailing(), 201)
    await gateway.until_taken(1)
    await mailer.call("POST", "/mailings", a_mailing(), 201)

    await mailer.call("POST", f"/mailings/{first['id']}/pause")  # ten of it are claimed, and wait
    before = len(gateway.taken)
    await gateway.until_taken(before + 1)
    last, following = gateway.taken[before - 1 : before + 1]
    assert following.monotonic - last.monotonic < 5 / 0.5  # turns; the ten would have taken more


async def test_a_small_mailing_does_not_wait_for_a_large_one(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway(latency=0.05)
    mailer = await start_mailer(**gateway.settings)
    await add_clients(mailer, 40_000)
    await mailer.query("UPDATE client SET tag = 'few' WHERE id > 39990 RETURNING id")
    large = await mailer.call("POST", "/mailings", a_mailing(), 201)
    await gateway.until_taken(1_000)

    small = await mailer.call("POST", "/mailings", a_mailing(client_filter="few"), 201)
    assert (await mailer.finished(small["id"]))["delivered_messages"] == 10
    left = await mailer.mailing(large["id"])
    assert left["status"] == "running"
    assert left["delivered_messages"] < 20_000  # more than half was still to be sent
