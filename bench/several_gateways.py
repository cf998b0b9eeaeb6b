"""Measure what several gateways cost and gain: waiting messages, two at once, and a dead first one.

- *Waiting*: 500,000 messages wait for a gateway that is out, all due before the others. The time of
  a mailing through another gateway, and of a claim, are compared with those without them.
- *Two at once*: two gateways that answer after 100 ms are compared with one.
- *Dead first*: a mailing whose first gateway is dead is compared with one that has only the second.
  The breaker's failures are all that the dead gateway costs, so their number must not grow.

All figures are compared within one run. Takes about four minutes.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import uvloop

import harness
from mailer.db.engine import DedicatedConnection
from mailer.message import store
from mailer.sample_data import SampleMailing, create_clients, create_mailings

MIN_RATE, MAX_CLAIM_TIME = 0.95, 1.2
MIN_GAIN = 1.9
MAX_FAILOVER_SECONDS = 1.0
OUT, OTHER = "903", "916"
"""Operator codes of the gateway that is out, and of the other one."""
LATENCY = 0.1  # seconds
CLOSED_PORT = "http://127.0.0.1:1/send/"
ROUNDS = 5
CLAIMS = 200
LEASE = timedelta(seconds=60)
# $1: the id of the mailing, $2: the operator code, $3: for how long the messages have been due.
INSERT_DUE = """
    INSERT INTO message (mailing_id, client_id, operator_code, time_zone, due_at, route)
    SELECT $1, id, operator_code, time_zone, now() - $3::interval,
        (SELECT route FROM operator_route WHERE operator_code = $2)
    FROM client WHERE operator_code = $2"""
COUNT_WAITING = "SELECT count(*) FROM message WHERE status = 'scheduled' AND operator_code = $1"
ROUTE = "SELECT route FROM operator_route WHERE operator_code = $1"
COUNT_ATTEMPTS = "SELECT sum(attempts) FROM message WHERE mailing_id = $1"


class Entry(NamedTuple):
    """A `[[gateway]]` of the file."""

    name: str
    url: str
    order: int = 1
    operator_codes: str = ""

    def __str__(self) -> str:
        codes = f'operator_codes = ["{self.operator_codes}"]\n' if self.operator_codes else ""
        return (
            f'[[gateway]]\nname = "{self.name}"\nkind = "json"\nurl = "{self.url}"\n'
            f'token = "{harness.TOKEN}"\norder = {self.order}\n{codes}'
        )


@asynccontextmanager
async def serve(*entries: Entry) -> AsyncIterator[harness.Mailer]:
    """Run mailer with these gateways."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        file = Path(folder) / "gateways.toml"
        file.write_text("\n".join(map(str, entries)))
        async with harness.serve(harness.NO_GATEWAY, gateways=file, breaker_reset=1) as mailer:
            yield mailer


async def seconds_of_mailing(mailer: harness.Mailer, client_filter: str | None = None) -> float:
    """Return the seconds from the creation of a mailing to its finish."""
    began = time.monotonic()
    created = await mailer.create_mailing(client_filter=client_filter)
    await mailer.wait_until_finished(created["id"])
    return time.monotonic() - began


async def measure_waiting(messages: int, clients: int, verdict: harness.Verdict) -> None:
    """Compare a mailing through a usable gateway without and with messages that wait."""
    async with harness.sink() as sink:
        entries = Entry("out", CLOSED_PORT, 1, OUT), Entry("other", sink.url, 1, OTHER)
        async with serve(*entries) as mailer:
            await create_clients(mailer.database, clients, operator_codes=(OTHER,))
            without = await median_mailing(mailer)
            claim_without = await median_claim(mailer)
            mailing_id = await create_waiting(mailer, messages)
            with_waiting = await median_mailing(mailer)
            claim_with = await median_claim(mailer, mailing_id)
            left = await mailer.database.fetchval(COUNT_WAITING, OUT)
            assert left == messages, f"{left} messages wait"  # noqa: S101  # of a benchmark
    rate = without / with_waiting
    verdict.check(
        f"rate beside {messages:,} waiting messages: {rate:.2f} of that without them",
        limit=f"at least {MIN_RATE}",
        holds=rate >= MIN_RATE,
    )
    claim = claim_with / claim_without
    verdict.check(
        f"claim: {claim_with * 1e3:.2f} and {claim_without * 1e3:.2f} ms, ratio {claim:.2f}",
        limit=f"at most {MAX_CLAIM_TIME}",
        holds=claim <= MAX_CLAIM_TIME,
    )


async def median_mailing(mailer: harness.Mailer) -> float:
    """Return the median seconds of a mailing to the clients of the usable gateway."""
    await mailer.database.execute("VACUUM ANALYZE")
    await seconds_of_mailing(mailer, client_filter=OTHER)  # to warm up
    return statistics.median(
        [await seconds_of_mailing(mailer, client_filter=OTHER) for _ in range(ROUNDS)]
    )


async def create_waiting(mailer: harness.Mailer, count: int) -> int:
    """Create clients of the gateway that is out, and a running mailing with a message for each.

    Return the id of the mailing.
    """
    await create_clients(mailer.database, count, operator_codes=(OUT,))
    now = await mailer.database.fetchval("SELECT now()")
    waiting = SampleMailing(start=now, lasts=timedelta(days=1), clients=count)
    async with mailer.database.transaction():  # else mailer finishes it before it has messages
        [mailing_id] = await create_mailings(mailer.database, waiting)
        await mailer.database.execute(INSERT_DUE, mailing_id, OUT, timedelta(hours=1))
    return mailing_id


async def median_claim(mailer: harness.Mailer, mailing_id: int | None = None) -> float:
    """Return the median seconds of a claim of ten messages for the usable gateway.

    The messages are due now. They belong to the mailing `mailing_id`, or else to a new one. All of
    this is in a transaction that is undone, so that mailer itself claims none of them.
    """
    dedicated = DedicatedConnection(mailer.database_url)
    connection = await dedicated.get()
    transaction = connection.transaction()
    await transaction.start()
    if mailing_id is None:
        now = await connection.fetchval("SELECT now()")
        sample = SampleMailing(start=now, lasts=timedelta(days=1))
        [mailing_id] = await create_mailings(connection, sample)
    await connection.execute(INSERT_DUE, mailing_id, OTHER, timedelta())
    route = await connection.fetchval(ROUTE, OTHER)
    source = store.ClaimSource(route, {mailing_id: store.FIRST_CURSOR}, {mailing_id: 10})
    target = store.ClaimTarget(uuid4(), LEASE, "other")
    seconds = []
    for _ in range(CLAIMS):
        began = time.perf_counter()
        claims = await store.claim(connection, source, target)
        seconds.append(time.perf_counter() - began)
        assert len(claims) == source.shares[mailing_id]  # noqa: S101  # of a benchmark
    await transaction.rollback()
    dedicated.close()
    return statistics.median(seconds)


async def measure_two(clients: int, verdict: harness.Verdict) -> None:
    """Compare two gateways that answer after 100 ms with one of them."""
    async with harness.sink(LATENCY) as first, harness.sink(LATENCY) as second:
        seconds = {}
        for entries in ([Entry("a", first.url)], [Entry("a", first.url), Entry("b", second.url)]):
            async with serve(*entries) as mailer:
                await harness.create_clients(mailer.database, clients)
                times = [await seconds_of_mailing(mailer) for _ in range(ROUNDS)]
                seconds[len(entries)] = statistics.median(times)
    gain = seconds[1] / seconds[2]
    verdict.check(
        f"two gateways of {LATENCY * 1e3:.0f} ms: {gain:.2f} times the rate of one",
        limit=f"at least {MIN_GAIN}",
        holds=gain >= MIN_GAIN,
    )


async def measure_failover(clients: int, verdict: harness.Verdict) -> None:
    """Compare a mailing around a dead first gateway with one that has only the second."""
    async with harness.sink() as sink:
        alive = Entry("alive", sink.url, 2)
        seconds = {}
        for entries in ([alive], [Entry("dead", CLOSED_PORT, 1), alive]):
            async with serve(*entries) as mailer:
                await harness.create_clients(mailer.database, clients)
                began = time.monotonic()
                created = await mailer.create_mailing()
                await mailer.wait_until_finished(created["id"])
                seconds[len(entries)] = time.monotonic() - began
                attempts = await mailer.database.fetchval(COUNT_ATTEMPTS, created["id"])
                assert attempts == clients, f"{attempts} attempts"  # noqa: S101  # of a benchmark
    extra = seconds[2] - seconds[1]
    verdict.check(
        f"dead first gateway: {seconds[2]:.1f} s, without it {seconds[1]:.1f} s",
        limit=f"at most {MAX_FAILOVER_SECONDS} s more, and no attempt more",
        holds=extra <= MAX_FAILOVER_SECONDS,
    )


async def main(messages: int, clients: int) -> int:
    """Run the three measurements; return the exit status."""
    verdict = harness.Verdict()
    await measure_waiting(messages, clients, verdict)
    await measure_two(clients, verdict)
    await measure_failover(clients, verdict)
    return verdict.status


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=500_000, help="messages that wait")
    parser.add_argument("--clients", type=int, default=10_000, help="clients of other mailings")
    args = parser.parse_args()
    sys.exit(uvloop.run(main(args.messages, args.clients)))
