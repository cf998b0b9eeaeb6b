"""Measure how much 50,000 waiting mailings slow down other mailings and mailer itself.

Half of the waiting mailings run, outside their sending window and with one message each; the other
half starts tomorrow. One run measures without and with them: the time to the first request of a new
mailing, the processor time of mailer and PostgreSQL for a new mailing, the time of a mailing to all
clients, `/metrics`, the overview page, memory, and processor time while nothing is sent.

Limits: with the waiting mailings, the processor time of a new mailing and the time of the mailing
to all clients are at most twice as long. The other figures have no limits: times of a few
milliseconds vary too much from run to run. Takes about three minutes.
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
from mailer.sample_data import SampleMailing, create_mailings
from many_mailings import TAG_CLIENTS_BY_ID, Arrivals, mailer_and_arrivals, seconds_to_first

MAX_RATIO = 2.0
ROUNDS = 20
IDLE_SECONDS = 15.0
"""Seconds to wait until mailer is idle, and then to measure processor time while it is."""
HOUR = timedelta(hours=1)
# One message for each mailing, in one statement: one statement a mailing would take minutes.
CREATE_MESSAGES = """
    INSERT INTO message (mailing_id, client_id, operator_code, time_zone, due_at)
    SELECT mailing_id, client.id, operator_code, time_zone, $3
    FROM client CROSS JOIN unnest($1::bigint[]) AS mailing_id
    WHERE client.id = $2"""


class Figures(msgspec.Struct, frozen=True):
    """Times in seconds, memory in bytes, and processor time while idle in parts of a core."""

    first_request: float
    new_mailing_cpu: float
    mailing: float
    metrics: float
    overview: float
    memory: int
    idle_mailer_cpu: float
    idle_database_cpu: float


async def measure(mailer: harness.Mailer, arrivals: Arrivals) -> Figures:
    """Measure everything once mailer is idle."""
    await mailer.database.execute("VACUUM ANALYZE")
    await seconds_to_first(mailer, arrivals)
    await asyncio.sleep(IDLE_SECONDS)
    began, (mailer_before, database_before) = time.monotonic(), cpu_seconds(mailer)
    await asyncio.sleep(IDLE_SECONDS)
    elapsed = time.monotonic() - began
    mailer_after, database_after = cpu_seconds(mailer)
    first = [await seconds_to_first(mailer, arrivals) for _ in range(ROUNDS)]
    used = sum(cpu_seconds(mailer)) - (mailer_after + database_after)
    began = time.monotonic()
    await mailer.wait_until_finished((await mailer.create_mailing())["id"])
    return Figures(
        first_request=statistics.median(first),
        new_mailing_cpu=used / ROUNDS,
        mailing=time.monotonic() - began,
        metrics=await seconds_to_get(mailer, "/metrics"),
        overview=await seconds_to_get(mailer, "/"),
        memory=harness.memory(mailer.pid)[1],
        idle_mailer_cpu=(mailer_after - mailer_before) / elapsed,
        idle_database_cpu=(database_after - database_before) / elapsed,
    )


async def create_waiting(mailer: harness.Mailer, count: int, client: int) -> None:
    """Create mailings outside their sending window, with one message each, and later mailings.

    The clients' clocks are 3, 5 and 10 hours ahead of UTC; the window opens where it is 15.
    """
    now = datetime.now(UTC)
    running = SampleMailing(
        start=now - HOUR,
        lasts=73 * HOUR,
        clients=1,
        text="Your order is ready. " * 10,
        opens=(now + 15 * HOUR).time(),
        closes=(now + 16 * HOUR).time(),
    )
    later = msgspec.structs.replace(
        running, start=now + 24 * HOUR, lasts=48 * HOUR, status="scheduled"
    )
    async with mailer.database.transaction():
        await create_mailings(mailer.database, *[later] * (count - count // 2))
        ids = await create_mailings(mailer.database, *[running] * (count // 2))
        await mailer.database.execute(CREATE_MESSAGES, ids, client, now + 10 * HOUR)


def cpu_seconds(mailer: harness.Mailer) -> tuple[float, float]:
    """Return the processor seconds that mailer and its PostgreSQL have used."""
    database = harness.postmaster_of(mailer.pid)
    return harness.cpu_seconds(mailer.pid), harness.server_cpu_seconds(database)


async def seconds_to_get(mailer: harness.Mailer, path: str) -> float:
    """Return the median seconds of a GET."""
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        await mailer.get(path)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


async def main(mailings: int, clients: int) -> int:
    """Measure without and with `mailings` waiting mailings; return the exit status."""
    verdict = harness.Verdict()
    async with mailer_and_arrivals() as (mailer, arrivals):
        client, *_ = await mailer.create_clients(clients)
        await mailer.database.execute(TAG_CLIENTS_BY_ID)
        without = await measure(mailer, arrivals)
        await create_waiting(mailer, mailings, client)
        with_waiting = await measure(mailer, arrivals)
    print(f"with and without {mailings:,} waiting mailings:")
    for name in ("new_mailing_cpu", "mailing"):
        figures = getattr(with_waiting, name), getattr(without, name)
        ratio = figures[0] / figures[1]
        figure = f"{name}: {figures[0] * 1e3:.0f} and {figures[1] * 1e3:.0f} ms, ratio {ratio:.2f}"
        verdict.check(figure, limit=f"at most {MAX_RATIO}", holds=ratio <= MAX_RATIO)
    for name in ("first_request", "metrics", "overview"):
        figures = getattr(with_waiting, name) * 1e3, getattr(without, name) * 1e3
        print(f"{name}: {figures[0]:.0f} and {figures[1]:.0f} ms")
    print(f"memory: {with_waiting.memory / 1e6:.0f} and {without.memory / 1e6:.0f} MB")
    for name in ("idle_mailer_cpu", "idle_database_cpu"):
        print(
            f"{name}: {getattr(with_waiting, name):.1%} and {getattr(without, name):.1%} of a core"
        )
    return verdict.status


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mailings", type=int, default=50_000)
    parser.add_argument("--clients", type=int, default=5_000)
    args = parser.parse_args()
    sys.exit(uvloop.run(main(args.mailings, args.clients)))
