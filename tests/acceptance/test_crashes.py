"""No crash loses a message, and only requests in flight are repeated."""

import asyncio
import os
import signal
from pathlib import Path

import pytest
from tests.event_timeout import EVENT_TIMEOUT
from tests.processes import Gateways, MailerProcess, Mailers
from tests.servers import CLOSE_CONNECTIONS

from mailer.embedded_postgres.cluster import embedded_postgres
from mailer.sample_data import new_mailing

OUTAGE = float(os.environ.get("TEST_OUTAGE", "4"))
"""Seconds without the database; by default short, `TEST_OUTAGE=60` tests the whole promise."""

QUICK = {"gateway_concurrency": "10", "gateway_timeout": "1", "lease": "3"}
"""Settings under which the messages of a dead process are rescued after three seconds."""
CLAIMED_IDS = "SELECT coalesce(array_agg(id), '{}') FROM message WHERE status = 'sending'"


async def test_five_kills_lose_no_message_and_repeat_only_requests_in_flight(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway(latency=0.02)
    mailer = await start_mailer(**gateway.settings, **QUICK)
    await mailer.create_clients(2_000)
    created = await mailer.call("POST", "/mailings", new_mailing(), 201)

    may_repeat = 0
    for kill in range(1, 6):
        await gateway.until_received(300 * kill)
        await mailer.stop(signal.SIGKILL)
        # requests in flight, requests whose result is not recorded yet, and new claims
        may_repeat += len(await mailer.query(CLAIMED_IDS))
        mailer = await start_mailer(**gateway.settings, **QUICK)
    mailing = await mailer.finished(created["id"])

    assert mailing["delivered_messages"] == mailing["clients_count"] == 2_000
    assert len(set(gateway.ids)) == 2_000
    assert gateway.sandbox.counts.repeats <= may_repeat
    assert gateway.sandbox.counts.overlaps == 0


async def test_messages_in_flight_at_a_kill_end_as_unknown_if_on_unknown_is_hold(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway(latency=0.1)
    mailer = await start_mailer(**gateway.settings, **QUICK)
    await mailer.create_clients(500)
    created = await mailer.call("POST", "/mailings", new_mailing(on_unknown="hold"), 201)
    await gateway.until_received(100)
    await mailer.stop(signal.SIGKILL)
    claimed = await mailer.query("SELECT count(*) FROM message WHERE status = 'sending'")

    second = await start_mailer(**gateway.settings, **QUICK)
    mailing = await second.finished(created["id"])
    assert mailing["unknown_messages"] == claimed
    assert mailing["delivered_messages"] == 500 - claimed
    assert gateway.sandbox.counts.repeats == 0

    await second.call("POST", f"/mailings/{created['id']}/retry")
    assert (await second.finished(created["id"]))["delivered_messages"] == 500


async def test_closed_database_connections_lose_and_repeat_no_message(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway(latency=0.01)
    mailer = await start_mailer(**gateway.settings, **QUICK | {"lease": "10"})
    await mailer.create_clients(2_000)
    created = await mailer.call("POST", "/mailings", new_mailing(on_unknown="hold"), 201)
    for count in range(250, 1_750, 250):
        await gateway.until_received(count)
        await mailer.query(CLOSE_CONNECTIONS)
    mailing = await mailer.finished(created["id"])

    assert mailing["delivered_messages"] == 2_000  # so none is unknown
    assert len(gateway.ids) == 2_000


@pytest.mark.timeout(OUTAGE + 300)
@pytest.mark.parametrize("lease", ["60", "3"])  # seconds: longer and shorter than the outage
async def test_database_outage_while_sending_loses_and_repeats_no_message(
    data_dir: Path, start_gateway: Gateways, start_mailer: Mailers, lease: str
) -> None:
    gateway = await start_gateway(latency=0.02)
    settings = gateway.settings | QUICK | {"lease": lease}
    async with embedded_postgres(data_dir) as url:
        mailer = await start_mailer(**settings, database_url=url)
        await mailer.create_clients(1_500)
        created = await mailer.call("POST", "/mailings", new_mailing(on_unknown="hold"), 201)
        await gateway.until_received(500)
    # the server has stopped at the end of the block
    await asyncio.sleep(OUTAGE)
    assert mailer.process.returncode is None
    assert len(gateway.received) < 1_500

    async with embedded_postgres(data_dir):
        await mailer.until_ready()
        mailing = await mailer.finished(created["id"], within=EVENT_TIMEOUT + OUTAGE)
        assert mailing["delivered_messages"] == 1_500
        assert len(gateway.ids) == 1_500
        assert await mailer.stop() == 0


async def test_remaining_workers_send_the_messages_of_killed_ones(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway(latency=0.05)
    first, second, third = await asyncio.gather(
        *(start_mailer(**gateway.settings, **QUICK) for _ in range(3))
    )
    await first.create_clients(1_000)
    created = await first.call("POST", "/mailings", new_mailing(), 201)
    await gateway.until_received(300)
    await first.stop(signal.SIGKILL)
    await gateway.until_received(600)
    await second.stop(signal.SIGKILL)
    remaining: MailerProcess = third
    mailing = await remaining.finished(created["id"])

    assert mailing["delivered_messages"] == 1_000
    assert len(set(gateway.ids)) == 1_000
    assert gateway.sandbox.counts.overlaps == 0
