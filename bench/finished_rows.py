"""Whether sending slows down with what was sent before: ten million finished messages, or none.

Two real processes, each with an embedded database of its own, one of them filled beforehand, send
in turns to as many clients through one sink, 50 at once. Limit: a median ratio of at least 0.95.
Needs about 4 GB of disk for ten million; takes about five minutes, half of them to fill.
"""

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from statistics import median

import harness

LIMIT = 0.95
CONCURRENCY = 50
ROW_BYTES = 350
"""Of disk, for a finished message with its part of the indexes; measured, and rounded up."""
SPARE_BYTES = 5 * 2**30
"""Of disk, for two databases' logs of changes, and for whoever else is on it."""

ADD_FINISHED_MAILING = """
    WITH added AS (
        INSERT INTO mailing (datetime_start, datetime_end, text, status,
            clients_count, audience_cursor, audience_until)
        SELECT now() - interval '2 days', now() - interval '1 day', $1, 'finished',
            $2, max(id), max(id)
        FROM client RETURNING id
    )
    INSERT INTO ledger (mailing_id) SELECT id FROM added RETURNING mailing_id"""
# Outcomes as an ordinary day brings them. The triggers move the ledger, once a statement, so that
# what `mailer verify` looks at is right here too.
ADD_FINISHED_MESSAGES = """
    INSERT INTO message (mailing_id, client_id, operator_code, time_zone, due_at, sent_at, attempts,
        status, reason, last_failure)
    SELECT $1, id, operator_code, time_zone, now() - interval '2 days',
        CASE WHEN id % 100 > 0 THEN now() - interval '2 days' END, sign(id % 100)::int,
        CASE id % 100 WHEN 0 THEN 'cancelled' WHEN 1 THEN 'undelivered' ELSE 'delivered' END,
        CASE id % 100 WHEN 0 THEN 'expired' WHEN 1 THEN 'rejected_400' END,
        CASE id % 100 WHEN 1 THEN 'rejected_400' END
    FROM client ORDER BY id LIMIT $2"""
SIZE = "SELECT pg_total_relation_size('message')"
# What is empty stays empty: the finished messages of one turn are gone before the next.
EMPTY = "TRUNCATE message, ledger, mailing, tally, tally_move"


async def fill(mailer: harness.Mailer, messages: int, clients: int) -> None:
    """Add finished mailings for all clients, set by set, until there are that many messages."""
    began = time.monotonic()
    for start in range(0, messages, clients):
        count = min(clients, messages - start)
        async with mailer.database.transaction():  # then the process settles it
            mailing_id = await mailer.database.fetchval(ADD_FINISHED_MAILING, harness.TEXT, count)
            await mailer.database.execute(ADD_FINISHED_MESSAGES, mailing_id, count)
    await mailer.database.execute("VACUUM ANALYZE")
    size = await mailer.database.fetchval(SIZE)
    seconds = time.monotonic() - began
    print(f"{messages:,} finished messages, {size / 2**30:.2f} GiB,", end=" ")
    print(f"{size / messages:.0f} bytes each, added in {seconds:.0f} s", flush=True)


async def main(messages: int, clients: int, turns: int) -> int:
    """Take turns and print the rates and their ratio; return the exit status."""
    free, needed = shutil.disk_usage(tempfile.gettempdir()).free, messages * ROW_BYTES + SPARE_BYTES
    if free < needed:
        print(f"{tempfile.gettempdir()} has {free / 2**30:.1f} GiB free,", end=" ")
        print(f"and {messages:,} messages need {needed / 2**30:.1f}: set TMPDIR, or --messages")
        return 1
    verdict = harness.Verdict()
    ratios = []
    async with (
        harness.sink() as sink,
        harness.serve(sink.url, gateway_concurrency=CONCURRENCY) as full,
        harness.serve(sink.url, gateway_concurrency=CONCURRENCY) as empty,
    ):
        for mailer in (full, empty):
            await mailer.add_clients(clients)
        await fill(full, messages, clients)
        for turn in range(turns + 1):  # the first warms up
            rates = {}
            for mailer in (full, empty) if turn % 2 else (empty, full):
                await mailer.checkpoint()  # so that none falls into one turn and not the other
                rates[mailer] = (await harness.send_to_all(mailer, sink, clients)).rate
            await empty.database.execute(EMPTY)
            if turn:
                ratios.append(rates[full] / rates[empty])
                print(f"turn {turn}: {rates[empty]:,.0f} messages a second with none,", end=" ")
                print(f"{rates[full]:,.0f} with {messages:,}, ratio {ratios[-1]:.2f}", flush=True)
    ratio = median(ratios)
    verdict.check(f"median ratio {ratio:.2f}", limit=f"at least {LIMIT}", holds=ratio >= LIMIT)
    return verdict.status


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=10_000_000, help="finished before")
    parser.add_argument("--clients", type=int, default=50_000, help="sent to in each turn")
    parser.add_argument("--turns", type=int, default=5)
    given = parser.parse_args()
    sys.exit(asyncio.run(main(given.messages, given.clients, given.turns)))
