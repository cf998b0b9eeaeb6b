"""What mailer costs while there is nothing to send: processor time, as a part of one core.

The real process on its embedded database, new for each of three states: no mailing at all; 100
mailings that start later; one that runs with 10,000 messages waiting for its window. Limit: under
1 % of a core for mailer over 30 s; PostgreSQL's is printed beside it. Takes about two minutes.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import harness

LIMIT = 0.01
LATER = 100
HOUR = timedelta(hours=1)
SETTLE = 5.0
"""Seconds for what a state leaves to do at once."""
WAITING = "SELECT scheduled FROM ledger WHERE mailing_id = $1"
NOWHERE = "http://127.0.0.1:9/"
"""A gateway that nothing should be sent to; it would refuse, and the breaker complain."""


async def no_mailing(_: harness.Mailer, clients: int) -> str:
    """Leave the database as it is."""
    return f"no mailing, {clients:,} clients"


async def later_mailings(mailer: harness.Mailer, clients: int) -> str:
    """Add mailings that start from tomorrow on, each at its own time."""
    for number in range(LATER):
        await mailer.add_mailing(starts_in=86_400 + 60 * number)
    return f"{LATER} mailings that start later, each for {clients:,} clients"


async def closed_window(mailer: harness.Mailer, clients: int) -> str:
    """Add a running mailing whose window is closed now in every client's time zone.

    Their clocks are 3, 5 and 10 hours ahead of UTC; the window is at a time 15 hours ahead.
    """
    now = datetime.now(UTC)
    mailing = await mailer.add_mailing(
        datetime_end=(now + 48 * HOUR).isoformat(),
        send_interval_time_start=f"{now + 15 * HOUR:%H:%M:%S}",
        send_interval_time_end=f"{now + 16 * HOUR:%H:%M:%S}",
    )
    async with asyncio.timeout(harness.PATIENCE):
        while await mailer.database.fetchval(WAITING, mailing["id"]) < clients:  # noqa: ASYNC110  # it happens in another process
            await asyncio.sleep(harness.PAUSE)
    return f"one mailing that runs, {clients:,} messages waiting for its window"


async def cost(
    state: Callable[[harness.Mailer, int], Awaitable[str]], clients: int, seconds: float
) -> tuple[str, float, float]:
    """Return a state's name, and the part of a core that mailer and PostgreSQL use in it."""
    async with harness.serve(NOWHERE) as mailer:
        await mailer.add_clients(clients)
        name = await state(mailer, clients)
        await mailer.database.execute("VACUUM ANALYZE")  # or autovacuum comes in between
        await mailer.checkpoint()
        await asyncio.sleep(SETTLE)
        database = harness.postmaster_of(mailer.pid)
        began = time.monotonic()
        own, other = harness.cpu_seconds(mailer.pid), harness.server_cpu_seconds(database)
        await asyncio.sleep(seconds)
        own = harness.cpu_seconds(mailer.pid) - own
        other = harness.server_cpu_seconds(database) - other
        passed = time.monotonic() - began
        return name, own / passed, other / passed


async def main(clients: int, seconds: float) -> int:
    """Measure each state and print its figures; return the exit status."""
    verdict = harness.Verdict()
    for state in (no_mailing, later_mailings, closed_window):
        name, own, other = await cost(state, clients, seconds)
        figure = f"{name}: mailer {own:.2%}, PostgreSQL {other:.2%}"
        verdict.check(figure, limit=f"under {LIMIT:.0%} for mailer", holds=own < LIMIT)
    return verdict.status


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=30)
    given = parser.parse_args()
    sys.exit(asyncio.run(main(given.clients, given.seconds)))
