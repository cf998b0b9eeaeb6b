"""The rate and the priority of mailings, with mailer processes and a sandbox gateway."""

import time
from collections.abc import Sequence

from tests.processes import Gateways, LoopLag, Mailers

from mailer.sample_data import new_mailing

RATE = 20  # messages a second
TOLERANCE = 4
"""Messages in a second above the rate: slots of the last 0.05 s that were not used, and requests
that took longer than others to reach the gateway."""


def most_in_a_second(moments: Sequence[float], lag: float) -> int:
    """Return the largest number of moments in any second less `lag`."""
    return max(
        sum(moment <= later < moment + 1 - lag for later in moments[index:])
        for index, moment in enumerate(moments)
    )


async def test_two_workers_together_keep_the_rate_of_a_mailing(
    start_gateway: Gateways, start_mailer: Mailers, lag: LoopLag
) -> None:
    gateway = await start_gateway(latency=0.02)
    mailer = await start_mailer(**gateway.settings)
    await start_mailer(**gateway.settings)
    await mailer.create_clients(200)
    await mailer.call("POST", "/mailings", new_mailing(rate=RATE), 201)
    await gateway.until_received(5 * RATE + 1)
    moments = [request.monotonic for request in gateway.received]
    assert most_in_a_second(moments, lag.longest) <= RATE + TOLERANCE
    seconds = moments[5 * RATE] - moments[0]
    assert 0.9 * 5 <= seconds <= 1.1 * 5 + 10 * lag.longest


async def test_retries_count_towards_the_rate_of_a_mailing(
    start_gateway: Gateways, start_mailer: Mailers, lag: LoopLag
) -> None:
    gateway = await start_gateway(error_rate=0.5, seed=1)
    mailer = await start_mailer(
        **gateway.settings, retry_base="0.01", retry_cap="0.02", breaker_failures="1000"
    )
    await mailer.create_clients(30)
    await mailer.call("POST", "/mailings", new_mailing(rate=RATE), 201)
    await gateway.until_received(2 * RATE)
    moments = [request.monotonic for request in gateway.received]
    assert len(gateway.ids) > len(set(gateway.ids))
    assert most_in_a_second(moments, lag.longest) <= RATE + TOLERANCE


async def test_a_new_rate_of_a_running_mailing_acts_at_once(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway()
    mailer = await start_mailer(**gateway.settings)
    await mailer.create_clients(300)
    created = await mailer.call("POST", "/mailings", new_mailing(rate=0.01), 201)
    await gateway.until_received(1)  # the next slot is in 100 seconds
    await mailer.call("PATCH", f"/mailings/{created['id']}", {"rate": 100})
    await gateway.until_received(100)
    await mailer.call("PATCH", f"/mailings/{created['id']}", {"rate": None})
    assert (await mailer.finished(created["id"]))["delivered_messages"] == 300


async def test_messages_that_are_not_sent_use_no_slot_of_the_rate(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway()
    mailer = await start_mailer(**gateway.settings)
    await mailer.create_clients(50 * RATE)
    text = "Dear {{ name }}"  # no client has this field
    started = time.monotonic()
    created = await mailer.call("POST", "/mailings", new_mailing(rate=RATE, text=text), 201)
    assert (await mailer.finished(created["id"]))["cancelled_messages"] == 50 * RATE
    assert time.monotonic() - started < 50 / 2


async def test_a_slow_mailing_delays_no_other(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway()
    mailer = await start_mailer(**gateway.settings)
    await mailer.create_clients(3_000)
    slow = await mailer.call("POST", "/mailings", new_mailing(rate=1), 201)
    await gateway.until_received(1)
    fast = await mailer.call("POST", "/mailings", new_mailing(), 201)
    assert (await mailer.finished(fast["id"]))["delivered_messages"] == 3_000
    mailing = await mailer.mailing(slow["id"])
    assert mailing["held"] is None  # it sends, although rarely
    assert mailing["delivered_messages"] < 100


async def test_a_mailing_of_high_priority_is_done_while_a_low_one_has_sent_little(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway(latency=0.05)
    mailer = await start_mailer(**gateway.settings, gateway_concurrency="10")
    await mailer.create_clients(500)
    low = await mailer.call("POST", "/mailings", new_mailing(priority="low"), 201)
    await gateway.until_received(1)
    high = await mailer.call("POST", "/mailings", new_mailing(priority="high"), 201)
    await mailer.finished(high["id"])
    statement = "SELECT array_agg(id) FROM message WHERE mailing_id = $1"
    ids_of_high = set(await mailer.query(statement, high["id"]))
    are_high = [message_id in ids_of_high for message_id in gateway.ids]
    first, last = are_high.index(True), len(are_high) - are_high[::-1].index(True)
    sent_of_low = are_high[first:last].count(False)
    assert 0 < sent_of_low < 500 / 4  # about one in 16
    await mailer.call("PATCH", f"/mailings/{low['id']}", {"priority": "high"})
    assert (await mailer.finished(low["id"]))["delivered_messages"] == 500
