"""Measure how fast a change of gateways takes effect while thousands of mailings are open.

1,500 running mailings have 100 scheduled messages each, due later. Another mailing is being sent. A
gateway is then added to the file, and mailer gets SIGHUP. The benchmark measures

- the time until the database has the new routes,
- the time until all scheduled messages have them,
- the rate of sending meanwhile, compared with the seconds before.

Takes about a minute.
"""

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import asyncpg
import uvloop

import harness
from mailer.sample_data import SCHEDULED, SampleMailing, create_mailings, create_messages

MAX_APPLY_SECONDS = 3.0
"""A periodic job applies the routes within a second; on a busy machine it may take longer."""
MAX_REROUTE_SECONDS = 20.0
MIN_RATE = 0.7
MESSAGES_PER_MAILING = 100
LATENCY = 0.02
"""Seconds until the gateway's answer, so that sending alone does not use all processor time."""
SECONDS_BEFORE = 5.0
"""Seconds of sending with which the rate during the change is compared."""
TIMEOUT = 300.0
"""Seconds to wait for the new routes."""
ENTRY = '[[gateway]]\nname = "{name}"\nkind = "json"\nurl = "{url}"\ntoken = "{token}"\n'
HAS_NEW_ROUTES = """
    SELECT count(*) = 1 FROM operator_route JOIN route ON route.id = operator_route.route
    WHERE gateways = '{first,second}'"""
IS_QUEUE_EMPTY = "SELECT NOT EXISTS (SELECT FROM rerouting)"
COUNT_OLD = """
    SELECT count(*) FROM message WHERE status = 'scheduled'
        AND route <> (SELECT route FROM operator_route WHERE operator_code = '')"""
IS_ENQUEUED = "SELECT audience_cursor = audience_until FROM mailing WHERE id = $1"
COUNT_SENT = "SELECT delivered FROM mailing_counts WHERE mailing_id = $1"


async def create_open_mailings(database: asyncpg.Connection, count: int) -> None:
    """Create running mailings whose messages are due in an hour."""
    now = await database.fetchval("SELECT now()")
    sample = SampleMailing(start=now, clients=MESSAGES_PER_MAILING)
    async with database.transaction():  # else mailer finishes them before they have messages
        ids = await create_mailings(database, *[sample] * count)
        clients = range(1, MESSAGES_PER_MAILING + 1)
        for mailing_id in ids:
            await create_messages(
                database, mailing_id, clients, SCHEDULED, at=now + timedelta(hours=1)
            )
    await database.execute("VACUUM ANALYZE")


async def wait_for(database: asyncpg.Connection, query: str, *values: object) -> None:
    """Wait until a query returns a value that is true."""
    async with asyncio.timeout(TIMEOUT):
        while not await database.fetchval(query, *values):  # noqa: ASYNC110  # another process changes it
            await asyncio.sleep(harness.POLL_INTERVAL)


async def measure(
    mailer: harness.Mailer, change_gateways: Callable[[], None], mailings: int, clients: int
) -> tuple[float, float, float]:
    """Return the seconds until the new routes, until all messages have them, and the rate ratio."""
    await create_open_mailings(mailer.database, mailings)
    await mailer.create_clients(clients)
    sending = await mailer.create_mailing()
    await wait_for(mailer.database, IS_ENQUEUED, sending["id"])

    async def sent() -> int:
        return int(await mailer.database.fetchval(COUNT_SENT, sending["id"]))

    began, sent_before = time.monotonic(), await sent()
    await asyncio.sleep(SECONDS_BEFORE)
    rate_before = (await sent() - sent_before) / (time.monotonic() - began)
    changed, sent_before = time.monotonic(), await sent()
    change_gateways()
    await wait_for(mailer.database, HAS_NEW_ROUTES)
    applied = time.monotonic() - changed
    await wait_for(mailer.database, IS_QUEUE_EMPTY)
    rerouted = time.monotonic() - changed
    rate = (await sent() - sent_before) / rerouted
    old = await mailer.database.fetchval(COUNT_OLD)
    assert not old, f"{old} messages have old routes"  # noqa: S101  # of a benchmark
    assert await sent() < clients, "sending ended early"  # noqa: S101  # likewise
    print(f"{rate_before:,.0f} messages a second before the change, {rate:,.0f} meanwhile")
    return applied, rerouted, rate / rate_before


def reload(mailer: harness.Mailer, file: Path, entries: str) -> None:
    """Write the file of gateways, and make mailer read it again."""
    file.write_text(entries)
    os.kill(mailer.pid, signal.SIGHUP)


async def main(mailings: int, clients: int) -> int:
    """Measure the change; return the exit status."""
    verdict = harness.Verdict()
    async with harness.sink(LATENCY) as sink:
        first, second = (
            ENTRY.format(name=name, url=sink.url, token=harness.TOKEN)
            for name in ("first", "second")
        )
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            file = Path(folder) / "gateways.toml"
            file.write_text(first)
            async with harness.serve(harness.NO_GATEWAY, gateways=file) as mailer:
                change_gateways = partial(reload, mailer, file, first + second)
                applied, rerouted, ratio = await measure(mailer, change_gateways, mailings, clients)
    verdict.check(
        f"new routes after {applied:.1f} s",
        limit=f"at most {MAX_APPLY_SECONDS} s",
        holds=applied <= MAX_APPLY_SECONDS,
    )
    verdict.check(
        f"all messages of {mailings:,} mailings have them after {rerouted:.1f} s",
        limit=f"at most {MAX_REROUTE_SECONDS} s",
        holds=rerouted <= MAX_REROUTE_SECONDS,
    )
    verdict.check(
        f"rate of sending meanwhile: {ratio:.2f} of that before",
        limit=f"at least {MIN_RATE}",
        holds=ratio >= MIN_RATE,
    )
    return verdict.status


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mailings", type=int, default=1_500, help="open mailings")
    parser.add_argument("--clients", type=int, default=120_000, help="clients of the other mailing")
    args = parser.parse_args()
    sys.exit(uvloop.run(main(args.mailings, args.clients)))
