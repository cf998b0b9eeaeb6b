"""Whatever dies, nothing is lost, and nothing is repeated but what was in flight."""

import asyncio
import os
import signal
from pathlib import Path

import pytest
from tests.acceptance.test_main_job import a_mailing, add_clients
from tests.patience import PATIENCE
from tests.processes import Gateways, MailerProcess, Mailers, until

from mailer.db.embedded import embedded_postgres

AWAY = float(os.environ.get("TEST_OUTAGE", "4"))
"""Seconds that the database is away: a few in CI, `TEST_OUTAGE=60` for the whole promise."""

QUICK = {"gateway_concurrency": "10", "gateway_timeout": "1", "lease": "3"}
HELD = "SELECT coalesce(array_agg(id), '{}') FROM message WHERE status = 'sending'"
BREAK = """
    SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()"""


async def test_five_kills_lose_nothing_and_repeat_no_more_than_was_in_flight(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway(latency=0.02)
    mailer = await start_mailer(**gateway.settings, **QUICK)
    await add_clients(mailer, 2_000)
    created = await mailer.call("POST", "/mailings", a_mailing(), 201)

    in_flight = 0
    for kill in range(1, 6):
        await gateway.until_taken(300 * kill)
        await mailer.stop(signal.SIGKILL)
        held = set(await mailer.query(HELD))  # on the wire, answered within the last moment, or new
        in_flight += len(held)
        mailer = await start_mailer(**gateway.settings, **QUICK)
    mailing = await mailer.finished(created["id"])

    assert mailing["delivered_messages"] == mailing["clients_count"] == 2_000
    assert len(set(gateway.ids)) == 2_000
    assert gateway.sandbox.counts.repeats <= in_flight
    assert gateway.sandbox.counts.overlaps == 0


async def test_a_kill_leaves_in_doubt_what_is_to_be_held(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway(latency=0.1)
    mailer = await start_mailer(**gateway.settings, **QUICK)
    await add_clients(mailer, 500)
    created = await mailer.call("POST", "/mailings", a_mailing(on_unknown="hold"), 201)
    await gateway.until_taken(100)
    await mailer.stop(signal.SIGKILL)
    held = await mailer.query("SELECT count(*) FROM message WHERE status = 'sending'")

    second = await start_mailer(**gateway.settings, **QUICK)
    mailing = await second.finished(created["id"])
    assert mailing["unknown_messages"] == held
    assert mailing["delivered_messages"] == 500 - held
    assert gateway.sandbox.counts.repeats == 0

    await second.call("POST", f"/mailings/{created['id']}/retry")
    assert (await second.finished(created["id"]))["delivered_messages"] == 500


async def test_lost_connections_lose_nothing_and_repeat_nothing(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway(latency=0.01)
    mailer = await start_mailer(**gateway.settings, **QUICK | {"lease": "10"})
    await add_clients(mailer, 2_000)
    created = await mailer.call("POST", "/mailings", a_mailing(on_unknown="hold"), 201)
    for count in range(250, 1_750, 250):
        await gateway.until_taken(count)
        await mailer.query(BREAK)
    mailing = await mailer.finished(created["id"])

    assert mailing["delivered_messages"] == 2_000  # and none unknown
    assert len(gateway.ids) == 2_000


@pytest.mark.timeout(AWAY + 300)
@pytest.mark.parametrize("lease", ["60", "3"])  # longer than the database is away, and shorter
async def test_a_database_that_goes_away_while_sending_costs_nothing(
    data_dir: Path, start_gateway: Gateways, start_mailer: Mailers, lease: str
) -> None:
    gateway = await start_gateway(latency=0.02)
    settings = gateway.settings | QUICK | {"lease": lease}
    async with embedded_postgres(data_dir) as url:
        mailer = await start_mailer(**settings, database_url=url)
        await add_clients(mailer, 1_500)
        created = await mailer.call("POST", "/mailings", a_mailing(on_unknown="hold"), 201)
        await gateway.until_taken(500)
    # the block's end has stopped the server
    await asyncio.sleep(AWAY)
    assert mailer.process.returncode is None
    taken = len(gateway.taken)
    assert taken < 1_500

    async with embedded_postgres(data_dir):

        async def is_ready() -> bool | None:
            async with mailer.session.get("/health/ready") as answer:
                return answer.status == 200 or None

        await until(is_ready)
        mailing = await mailer.finished(created["id"], PATIENCE + AWAY)
        assert mailing["delivered_messages"] == 1_500
        assert len(gateway.ids) == 1_500
        assert await mailer.stop() == 0


async def test_a_process_dies_and_the_others_take_over(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway(latency=0.05)
    first, second, third = await asyncio.gather(
        *(start_mailer(**gateway.settings, **QUICK) for _ in range(3))
    )
    await add_clients(first, 1_000)
    created = await first.call("POST", "/mailings", a_mailing(), 201)
    await gateway.until_taken(300)
    await first.stop(signal.SIGKILL)
    await gateway.until_taken(600)
    await second.stop(signal.SIGKILL)
    held: MailerProcess = third
    mailing = await held.finished(created["id"])

    assert mailing["delivered_messages"] == 1_000
    assert len(set(gateway.ids)) == 1_000
    assert gateway.sandbox.counts.overlaps == 0
