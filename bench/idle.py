"""Measure how much processor time mailer uses while there is nothing to send.

A new real process on a new embedded database is measured in each of three states: no mailing; 100
mailings that start later; one running mailing with 10,000 messages that wait for its sending
window. Limit: under 1 % of a core for mailer, over 30 s; the processor time of PostgreSQL is
printed beside it. Takes about two minutes.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import harness

MAX_CPU = 0.01
"""Part of one core that mailer may use."""
LATER_MAILINGS = 100
HOUR = timedelta(hours=1)
SETTLE = 5.0
"""Seconds to wait before the measurement, until mailer has reacted to the new state."""
COUNT_SCHEDULED = "SELECT scheduled FROM mailing_counts WHERE mailing_id = $1"
UNUSED_GATEWAY = "http://127.0.0.1:9/"
"""No server listens here. If mailer sent anything, the benchmark would print its warnings."""


async def no_mailing(_: harness.Mailer, clients: int) -> str:
    """Leave the database as it is."""
    return f"no mailing, {clients:,} clients"


async def later_mailings(mailer: harness.Mailer, clients: int) -> str:
    """Create mailings that start from tomorrow on, at different times."""
    for number in range(LATER_MAILINGS):
        await mailer.create_mailing(starts_in=86_400 + 60 * number)
    return f"{LATER_MAILINGS} mailings that start later, each for {clients:,} clients"


async def closed_window(mailer: harness.Mailer, clients: int) -> str:
    """Create a running mailing whose sending window is closed now for every client.

    The clients' clocks are 3, 5 and 10 hours ahead of UTC. The window is open for an hour at the
    time that a clock 15 hours ahead of UTC shows now, so it opens in five hours at the earliest.
    """
    now = datetime.now(UTC)
    mailing = await mailer.create_mailing(
        datetime_end=(now + 48 * HOUR).isoformat(),
        send_interval_time_start=f"{now + 15 * HOUR:%H:%M:%S}",
        send_interval_time_end=f"{now + 16 * HOUR:%H:%M:%S}",
    )
    async with asyncio.timeout(harness.PROCESS_TIMEOUT):
        while await mailer.database.fetchval(COUNT_SCHEDULED, mailing["id"]) < clients:  # noqa: ASYNC110  # another process changes it
            await asyncio.sleep(harness.POLL_INTERVAL)
    return f"one running mailing, {clients:,} messages waiting for its sending window"


class IdleUse(NamedTuple):
    """The parts of a core that mailer and its PostgreSQL use in a state."""

    state: str
    mailer: float
    database: float


async def measure(
    set_up: Callable[[harness.Mailer, int], Awaitable[str]], clients: int, seconds: float
) -> IdleUse:
    """Measure the processor use of a new process in a state, over `seconds`.

    `set_up` brings mailer into the state and returns the name of the state.
    """
    async with harness.serve(UNUSED_GATEWAY) as mailer:
        await mailer.create_clients(clients)
        name = await set_up(mailer, clients)
        await mailer.database.execute("VACUUM ANALYZE")  # else autovacuum may run meanwhile
        await mailer.checkpoint()
        await asyncio.sleep(SETTLE)
        database = harness.postmaster_of(mailer.pid)
        began = time.monotonic()
        mailer_before = harness.cpu_seconds(mailer.pid)
        database_before = harness.server_cpu_seconds(database)
        await asyncio.sleep(seconds)
        mailer_seconds = harness.cpu_seconds(mailer.pid) - mailer_before
        database_seconds = harness.server_cpu_seconds(database) - database_before
        elapsed = time.monotonic() - began
        return IdleUse(name, mailer_seconds / elapsed, database_seconds / elapsed)


async def main(clients: int, seconds: float) -> int:
    """Measure each state and print its figures; return the exit status."""
    verdict = harness.Verdict()
    for set_up in (no_mailing, later_mailings, closed_window):
        use = await measure(set_up, clients, seconds)
        figure = f"{use.state}: mailer {use.mailer:.2%}, PostgreSQL {use.database:.2%} of a core"
        limit = f"under {MAX_CPU:.0%} for mailer"
        verdict.check(figure, limit=limit, holds=use.mailer < MAX_CPU)
    return verdict.status


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=30)
    args = parser.parse_args()
    sys.exit(asyncio.run(main(args.clients, args.seconds)))
