"""How fast it goes: an even rate, and a fair share for everybody."""

import time
from itertools import pairwise

from tests.acceptance.test_main_job import a_mailing, add_clients
from tests.processes import Gateways, Mailers

RATE = 150
SECONDS = 10.0


async def test_the_rate_is_even_and_exact_over_ten_seconds(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway(latency=0.05)
    mailer = await start_mailer(**gateway.settings, gateway_rate=str(RATE))
    await add_clients(mailer, 5_000)
    await mailer.call("POST", "/mailings", a_mailing(), 201)
    await gateway.until_taken(int(RATE * 1.5))  # a second and a half to come to its pace
    first = len(gateway.taken)
    await gateway.until_taken(first + int(RATE * SECONDS))

    moments = [taken.monotonic for taken in gateway.taken[first:]]
    count = sum(moment < moments[0] + SECONDS for moment in moments)
    assert abs(count / (RATE * SECONDS) - 1) <= 0.02
    second = [
        sum(start <= m < start + 1 for m in moments) for start in moments[: -RATE - 10 : RATE]
    ]
    assert all(abs(messages / RATE - 1) <= 0.1 for messages in second), second
    assert max(later - earlier for earlier, later in pairwise(moments)) < 0.25


async def test_what_is_not_sent_takes_no_turn_from_others(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway()
    mailer = await start_mailer(**gateway.settings, gateway_rate="5")
    await add_clients(mailer, 100)
    first = await mailer.call("POST", "/mailings", a_mailing(), 201)
    await gateway.until_taken(1)
    await mailer.call("POST", "/mailings", a_mailing(), 201)

    await mailer.call("POST", f"/mailings/{first['id']}/pause")  # ten of it are claimed, and wait
    before, paused_at = len(gateway.taken), time.monotonic()
    await gateway.until_taken(before + 1)
    assert time.monotonic() - paused_at < 0.6


async def test_a_small_mailing_does_not_wait_for_a_large_one(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway(latency=0.05)
    mailer = await start_mailer(**gateway.settings)
    await add_clients(mailer, 100_000)
    await mailer.query("UPDATE client SET tag = 'few' WHERE id > 99990 RETURNING id")
    large = await mailer.call("POST", "/mailings", a_mailing(), 201)
    await gateway.until_taken(1_000)

    started_at = time.monotonic()
    small = await mailer.call("POST", "/mailings", a_mailing(client_filter="few"), 201)
    mailing = await mailer.finished(small["id"])
    assert time.monotonic() - started_at < 2
    assert mailing["delivered_messages"] == 10
    assert (await mailer.mailing(large["id"]))["status"] == "running"
