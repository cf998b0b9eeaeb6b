"""Measure whether ten million finished messages in the database slow down sending.

Two real processes, each with its own embedded database, take turns to send to equally many clients
through one sink, 50 requests at once. One database holds ten million finished messages, the other
none. Limit: a median ratio of the rates of at least 0.95. Needs about 9 GB of free disk for ten
million messages (4 GB for the data, the rest for logs and to spare); takes about five minutes, half
of it to create the messages.
"""

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from statistics import median

import harness

MIN_RATIO = 0.95
CONCURRENCY = 50
ROW_BYTES = 350
"""Disk space of a finished message with its index entries; measured, and rounded up."""
SPARE_BYTES = 5 * 2**30
"""Disk space for the write-ahead logs of two databases, and for other programs."""

CREATE_MAILING = """
    WITH added AS (
        INSERT INTO mailing (datetime_start, datetime_end, text, status,
            clients_count, audience_cursor, audience_until)
        SELECT now() - interval '2 days', now() - interval '1 day', $1, 'finished',
            $2, max(id), max(id)
        FROM client RETURNING id
    )
    INSERT INTO mailing_counts (mailing_id) SELECT id FROM added RETURNING mailing_id"""
# Outcomes as on an ordinary day. Triggers update the counters once per statement, so that they
# agree with the rows here too, as `mailer verify` requires.
CREATE_MESSAGES = """
    INSERT INTO message (mailing_id, client_id, operator_code, time_zone, due_at, sent_at, attempts,
        status, reason, last_failure)
    SELECT $1, id, operator_code, time_zone, now() - interval '2 days',
        CASE WHEN id % 100 > 0 THEN now() - interval '2 days' END, sign(id % 100)::int,
        CASE id % 100 WHEN 0 THEN 'cancelled' WHEN 1 THEN 'undelivered' ELSE 'delivered' END,
        CASE id % 100 WHEN 0 THEN 'expired' WHEN 1 THEN 'rejected_400' END,
        CASE id % 100 WHEN 1 THEN 'rejected_400' END
    FROM client ORDER BY id LIMIT $2"""
SIZE = "SELECT pg_total_relation_size('message')"
# Keeps the empty database empty: removes the finished messages of a round before the next one.
EMPTY = "TRUNCATE message, mailing_counts, mailing, message_count, message_count_delta"


async def fill(mailer: harness.Mailer, messages: int, clients: int) -> None:
    """Create finished mailings for all clients, until there are `messages` finished messages."""
    began = time.monotonic()
    for start in range(0, messages, clients):
        count = min(clients, messages - start)
        async with mailer.database.transaction():  # mailer settles the mailing afterwards
            mailing_id = await mailer.database.fetchval(CREATE_MAILING, harness.TEXT, count)
            await mailer.database.execute(CREATE_MESSAGES, mailing_id, count)
    await mailer.database.execute("VACUUM ANALYZE")
    size = await mailer.database.fetchval(SIZE)
    seconds = time.monotonic() - began
    print(f"{messages:,} finished messages, {size / 2**30:.2f} GiB,", end=" ")
    print(f"{size / messages:.0f} bytes each, created in {seconds:.0f} s", flush=True)


async def main(messages: int, clients: int, rounds: int) -> int:
    """Run the rounds, print the rates and their ratio; return the exit status."""
    free, needed = shutil.disk_usage(tempfile.gettempdir()).free, messages * ROW_BYTES + SPARE_BYTES
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
        for mailer in (full, empty):
            await mailer.create_clients(clients)
        await fill(full, messages, clients)
        for index in range(rounds + 1):  # the first warms up
            rates = {}
            for mailer in (full, empty) if index % 2 else (empty, full):
                await mailer.checkpoint()  # else one may run while one process alone is measured
                rates[mailer] = (await harness.send_to_all(mailer, sink, clients)).rate
            await empty.database.execute(EMPTY)
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
