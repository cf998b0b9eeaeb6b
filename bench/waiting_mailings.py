"""What 50,000 mailings that wait cost the others, and mailer.

Half of them run, outside their window and each with a message of its own; half start tomorrow. In
one run, without them and with them: the first request to a new mailing and the processor time of
mailer and PostgreSQL that goes with it, a mailing to everybody, `/metrics`, the overview page,
memory, and processor time while nothing is sent. Limits: the ratios of the processor time of a new
mailing and of the mailing to everybody; times of some milliseconds are as noisy as the machine.
Takes about three minutes.
"""

import argparse
import asyncio
import statistics
import sys
import time
from datetime import UTC, datetime, timedelta

import msgspec
import uvloop

import harness
from many_mailings import TAG_ALL, Arrivals, mailer_and_arrivals, seconds_to_first

LIMIT = 2.0
TURNS = 20
REST = 15.0
"""Seconds over which processor time is taken, and before that for what is to be done at once."""
HOUR = timedelta(hours=1)
# The clocks of the clients are 3, 5 and 10 hours ahead of UTC; the window is 15 hours ahead.
ADD_MAILINGS = """
    INSERT INTO mailing (datetime_start, datetime_end, text, clients_count, status,
        send_interval_time_start, send_interval_time_end, audience_until, audience_cursor)
    SELECT now() + CASE WHEN n % 2 = 0 THEN interval '-1 hour' ELSE interval '1 day' END,
        now() + interval '3 days', repeat('Your order is ready. ', 10), 1,
        CASE WHEN n % 2 = 0 THEN 'running' ELSE 'scheduled' END, $2, $3,
        CASE WHEN n % 2 = 0 THEN (SELECT max(id) FROM client) END,
        CASE WHEN n % 2 = 0 THEN (SELECT max(id) FROM client) ELSE 0 END
    FROM generate_series(1, $1::bigint) AS n"""
ADD_LEDGERS = """
    INSERT INTO ledger (mailing_id) SELECT id FROM mailing
    WHERE NOT EXISTS (SELECT FROM ledger WHERE mailing_id = mailing.id)"""
ADD_MESSAGES = """
    INSERT INTO message (mailing_id, client_id, operator_code, time_zone, due_at)
    SELECT mailing.id, client.id, operator_code, time_zone, now() + interval '10 hours'
    FROM mailing CROSS JOIN (SELECT * FROM client ORDER BY id LIMIT 1) AS client
    WHERE mailing.status = 'running' AND mailing.send_interval_time_start IS NOT NULL"""


class Figures(msgspec.Struct, frozen=True):
    """What is measured, in seconds; bytes; and parts of a core."""

    first_request: float
    new_mailing_cpu: float
    mailing: float
    metrics: float
    overview: float
    memory: int
    mailer_cpu: float
    database_cpu: float


async def measure(mailer: harness.Mailer, arrivals: Arrivals) -> Figures:
    """Measure everything once the process has come to rest."""
    await mailer.database.execute("VACUUM ANALYZE")
    await seconds_to_first(mailer, arrivals)
    await asyncio.sleep(REST)
    began, (own, other) = time.monotonic(), cpu_seconds(mailer)
    await asyncio.sleep(REST)
    passed = time.monotonic() - began
    at_rest = cpu_seconds(mailer)
    first = [await seconds_to_first(mailer, arrivals) for _ in range(TURNS)]
    used = sum(cpu_seconds(mailer)) - sum(at_rest)
    began = time.monotonic()
    await mailer.finished((await mailer.add_mailing())["id"])
    return Figures(
        first_request=statistics.median(first),
        new_mailing_cpu=used / TURNS,
        mailing=time.monotonic() - began,
        metrics=await seconds_to_read(mailer, "/metrics"),
        overview=await seconds_to_read(mailer, "/"),
        memory=harness.memory(mailer.pid)[1],
        mailer_cpu=(at_rest[0] - own) / passed,
        database_cpu=(at_rest[1] - other) / passed,
    )


def cpu_seconds(mailer: harness.Mailer) -> tuple[float, float]:
    """Return the processor time that mailer and its PostgreSQL have used."""
    database = harness.postmaster_of(mailer.pid)
    return harness.cpu_seconds(mailer.pid), harness.server_cpu_seconds(database)


async def seconds_to_read(mailer: harness.Mailer, path: str) -> float:
    """Return the median time of a GET."""
    times = []
    for _ in range(TURNS):
        began = time.perf_counter()
        await mailer.read(path)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


async def main(mailings: int, clients: int) -> int:
    """Measure without and with that many mailings; return the exit status."""
    verdict = harness.Verdict()
    async with mailer_and_arrivals() as (mailer, arrivals):
        await mailer.add_clients(clients)
        await mailer.database.execute(TAG_ALL)
        without = await measure(mailer, arrivals)
        now = datetime.now(UTC)
        window = (now + 15 * HOUR).time(), (now + 16 * HOUR).time()
        await mailer.database.execute(ADD_MAILINGS, mailings, *window)
        await mailer.database.execute(ADD_LEDGERS)
        await mailer.database.execute(ADD_MESSAGES)
        beside = await measure(mailer, arrivals)
    print(f"{mailings:,} mailings that wait:")
    for name in ("new_mailing_cpu", "mailing"):
        pair = getattr(beside, name), getattr(without, name)
        ratio = pair[0] / pair[1]
        figure = f"{name}: {pair[0] * 1e3:.0f} ms, {pair[1] * 1e3:.0f} ms without, {ratio:.2f}"
        verdict.check(figure, limit=f"{LIMIT}", holds=ratio <= LIMIT)
    for name in ("first_request", "metrics", "overview"):
        pair = getattr(beside, name) * 1e3, getattr(without, name) * 1e3
        print(f"{name}: {pair[0]:.0f} ms, {pair[1]:.0f} ms without")
    print(f"memory: {beside.memory / 1e6:.0f} MB, {without.memory / 1e6:.0f} without")
    for name in ("mailer_cpu", "database_cpu"):
        print(f"{name} at rest: {getattr(beside, name):.1%}, {getattr(without, name):.1%} without")
    return verdict.status


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mailings", type=int, default=50_000)
    parser.add_argument("--clients", type=int, default=5_000)
    given = parser.parse_args()
    sys.exit(uvloop.run(main(given.mailings, given.clients)))
