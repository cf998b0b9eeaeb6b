"""Measure how much 50,000 waiting mailings slow down other mailings and mailer itself.

Half of the waiting mailings run, outside their sending window and with one message each; the other
half starts tomorrow. One run measures first without them, then with them:

- for a new mailing to one client: the time to its first request, and the processor time of mailer
  and PostgreSQL;
- the time of a mailing to all clients;
- the time of `/metrics` and of the overview page;
- the memory of mailer, and processor time while nothing is sent.

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
from typing import NamedTuple

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
# Creates one message for each mailing, in one statement, because a statement for each would take
# minutes. Parameters: $1 the ids of the mailings, $2 the id of the client, $3 the due time.
CREATE_MESSAGES = """
    INSERT INTO message (mailing_id, client_id, operator_code, time_zone, due_at)
    SELECT mailing_id, client.id, operator_code, time_zone, $3
    FROM client CROSS JOIN unnest($1::bigint[]) AS mailing_id
    WHERE client.id = $2"""


class Figures(msgspec.Struct, frozen=True):
    """What is measured without and with the waiting mailings. Times are in seconds."""

    first_request: float
    """Time from the API's answer to the first request of a new mailing, median."""
    new_mailing_cpu: float
    """Processor time of mailer and PostgreSQL for a new mailing to one client, mean."""
    mailing_to_all: float
    """Time of a mailing to all clients, from its creation to its finish."""
    metrics: float
    """Time of a GET of /metrics, median."""
    overview: float
    """Time of a GET of the overview page, median."""
    memory: int
    """Proportional memory of mailer, in bytes."""
    idle_mailer_cpu: float
    idle_database_cpu: float
    """Part of a core that mailer and PostgreSQL use while nothing is sent."""


async def measure(mailer: harness.Mailer, arrivals: Arrivals) -> Figures:
    """Measure everything once mailer is idle."""
    await mailer.database.execute("VACUUM ANALYZE")
    await seconds_to_first(mailer, arrivals)  # to warm up
    await asyncio.sleep(IDLE_SECONDS)
    idle_began, idle_before = time.monotonic(), cpu_seconds(mailer)
    await asyncio.sleep(IDLE_SECONDS)
    idle_seconds, idle_after = time.monotonic() - idle_began, cpu_seconds(mailer)
    first_requests = [await seconds_to_first(mailer, arrivals) for _ in range(ROUNDS)]
    new_mailings_cpu = sum(cpu_seconds(mailer)) - sum(idle_after)
    mailing_began = time.monotonic()
    await mailer.wait_until_finished((await mailer.create_mailing())["id"])
    return Figures(
        first_request=statistics.median(first_requests),
        new_mailing_cpu=new_mailings_cpu / ROUNDS,
        mailing_to_all=time.monotonic() - mailing_began,
        metrics=await seconds_to_get(mailer, "/metrics"),
        overview=await seconds_to_get(mailer, "/"),
        memory=harness.memory(mailer.pid).proportional,
        idle_mailer_cpu=(idle_after.mailer - idle_before.mailer) / idle_seconds,
        idle_database_cpu=(idle_after.database - idle_before.database) / idle_seconds,
    )


async def create_waiting(mailer: harness.Mailer, count: int, client: int) -> None:
    """Create `count` mailings: half run outside their sending window, the others start later.

    Each running mailing has one message, for the client with the id `client`. The clients' clocks
    are 3, 5 and 10 hours ahead of UTC. The window is open for an hour at the time that a clock 15
    hours ahead of UTC shows now, so it opens in five hours at the earliest.
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


class CpuSeconds(NamedTuple):
    """Processor seconds that mailer and its PostgreSQL have used since their start."""

    mailer: float
    database: float


def cpu_seconds(mailer: harness.Mailer) -> CpuSeconds:
    """Read the processor seconds of mailer and its PostgreSQL."""
    database = harness.postmaster_of(mailer.pid)
    return CpuSeconds(harness.cpu_seconds(mailer.pid), harness.server_cpu_seconds(database))


async def seconds_to_get(mailer: harness.Mailer, path: str) -> float:
    """Return the median of the seconds that several GETs of a path take."""
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
    for name in ("new_mailing_cpu", "mailing_to_all"):
        seconds_with, seconds_without = getattr(with_waiting, name), getattr(without, name)
        ratio = seconds_with / seconds_without
        times = f"{seconds_with * 1e3:.0f} and {seconds_without * 1e3:.0f} ms"
        figure = f"{name}: {times}, ratio {ratio:.2f}"
        verdict.check(figure, limit=f"at most {MAX_RATIO}", holds=ratio <= MAX_RATIO)
    for name in ("first_request", "metrics", "overview"):
        seconds_with, seconds_without = getattr(with_waiting, name), getattr(without, name)
        print(f"{name}: {seconds_with * 1e3:.0f} and {seconds_without * 1e3:.0f} ms")
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
