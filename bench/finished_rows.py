"""Measure whether ten million finished messages in the database slow down sending.

Two real processes, each with its own embedded database, take turns to send to equally many clients
through one sink, 50 requests at once. One database contains ten million finished messages, the
other none. Limit: the median rate with the finished messages is at least 0.95 of that without.

Needs about 9 GB of free disk for ten million messages: 4 GB for the data, the rest for PostgreSQL's
write-ahead logs and as a reserve. Takes about five minutes, half of it to create the messages.
"""

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from statistics import median

import harness
from mailer.sample_data import SampleMailing, SampleResult, create_mailings, create_messages

MIN_RATIO = 0.95
CONCURRENCY = 50
ROW_BYTES = 350
"""Disk space of a finished message with its index entries; measured, and rounded up."""
RESERVE_BYTES = 5 * 2**30
"""Disk space for the write-ahead logs of two databases, and for other programs."""

RESULTS: list[SampleResult] = [
    ("cancelled", "expired"),
    ("undelivered", "rejected_400"),
    *[("delivered", None)] * 98,
]
"""Results of each hundred finished messages, status and reason, as on an ordinary day."""
DAY = timedelta(days=1)
SELECT_SIZE = "SELECT pg_total_relation_size('message')"
"""Returns the bytes of the message table with its indexes."""
EMPTY_TABLES = (
    "TRUNCATE message, mailing_counts, mailing_text, mailing, message_count, message_count_delta"
)
"""Run after each round in the database without finished messages, so that it has none again."""


async def fill(mailer: harness.Mailer, messages: int, clients: list[int]) -> None:
    """Create finished mailings until there are `messages` finished messages.

    `clients` are the ids of all clients; they are the audience of each mailing.
    """
    began = time.monotonic()
    for created in range(0, messages, len(clients)):
        audience = clients[: messages - created]
        start = datetime.now(UTC) - 2 * DAY
        mailing = SampleMailing(start=start, lasts=DAY, status="finished", clients=len(audience))
        async with mailer.database.transaction():  # mailer settles the mailing afterwards
            [mailing_id] = await create_mailings(mailer.database, mailing)
            await create_messages(mailer.database, mailing_id, audience, *RESULTS, at=start)
    await mailer.database.execute("VACUUM ANALYZE")
    size = await mailer.database.fetchval(SELECT_SIZE)
    seconds = time.monotonic() - began
    print(f"{messages:,} finished messages, {size / 2**30:.2f} GiB,", end=" ")
    print(f"{size / messages:.0f} bytes each, created in {seconds:.0f} s", flush=True)


async def main(messages: int, clients: int, rounds: int) -> int:
    """Run the rounds, print the rates and their ratio; return the exit status."""
    free = shutil.disk_usage(tempfile.gettempdir()).free
    needed = messages * ROW_BYTES + RESERVE_BYTES
    if free < needed:
        print(f"{tempfile.gettempdir()} has {free / 2**30:.1f} GiB free,", end=" ")
        print(f"but {messages:,} messages need {needed / 2**30:.1f}: set TMPDIR or --messages")
        return 1
    verdict = harness.Verdict()
    ratios = []
    async with (
        harness.sink() as sink,
        harness.serve(sink.url, gateway_concurrency=CONCURRENCY) as full,
        harness.serve(sink.url, gateway_concurrency=CONCURRENCY) as empty,
    ):
        await empty.create_clients(clients)
        await fill(full, messages, await full.create_clients(clients))
        for index in range(rounds + 1):  # round 0 warms up and does not count
            rates = {}
            for mailer in (full, empty) if index % 2 else (empty, full):
                await mailer.checkpoint()  # else one may run while one process alone is measured
                rates[mailer] = (await harness.send_to_all(mailer, sink, clients)).rate
            await empty.database.execute(EMPTY_TABLES)
            if index:
                ratios.append(rates[full] / rates[empty])
                print(f"round {index}: {rates[empty]:,.0f} messages a second without,", end=" ")
                print(f"{rates[full]:,.0f} with {messages:,}, ratio {ratios[-1]:.2f}", flush=True)
    ratio = median(ratios)
    limit = f"at least {MIN_RATIO}"
    verdict.check(f"median ratio {ratio:.2f}", limit=limit, holds=ratio >= MIN_RATIO)
    return verdict.status


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=10_000_000, help="finished messages")
    parser.add_argument("--clients", type=int, default=50_000, help="messages in each round")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    sys.exit(asyncio.run(main(args.messages, args.clients, args.rounds)))
