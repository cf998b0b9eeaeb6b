"""Whether a snapshot that somebody holds, as a backup does, makes sending dearer by the message.

One mailing is claimed and finished to its end by the statements of the hot loop, without a gateway,
while another session holds a snapshot from before: nothing that is dead may be removed, and every
index keeps it. What a batch costs in the last tenth is compared with the first: processor time of
the session's server process, which a busy machine changes less than the time that passes. Limit: a
ratio of at most 1.5, of claims and of both. Takes about half a minute.
"""

import argparse
import asyncio
import os
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from uuid import uuid4

import asyncpg

import harness
from mailer.db.embedded import embedded_postgres
from mailer.db.engine import OwnConnection, create_engine
from mailer.db.migrate import migrate
from mailer.message import store
from mailer.message.model import FinishedMessage

LIMIT = 1.5
LEASE = timedelta(seconds=60)
ADD_MAILING = """
    WITH added AS (
        INSERT INTO mailing (datetime_start, datetime_end, text, status,
            clients_count, audience_cursor, audience_until)
        SELECT now() - interval '1 minute', now() + interval '1 day', 'Hello', 'running', $1, $1, $1
        RETURNING id
    )
    INSERT INTO ledger (mailing_id) SELECT id FROM added RETURNING mailing_id"""
ADD_MESSAGES = """
    INSERT INTO message (mailing_id, client_id, operator_code, time_zone, due_at)
    SELECT $1, id, operator_code, time_zone, now() - interval '1 minute' FROM client ORDER BY id"""


async def send(url: str, mailing_id: int, batch: int) -> tuple[list[float], list[float]]:
    """Claim and finish all of a mailing; return what each claim cost, and each batch, seconds."""
    own = OwnConnection(url)
    connection = await own.get()
    server = connection.get_server_pid()
    owner, place = uuid4(), store.START
    claiming, all_of_it = [], []
    while True:
        began = harness.exact_cpu_seconds(server)
        claims = await store.claim(connection, {mailing_id: place}, batch, owner, LEASE)
        claimed = harness.exact_cpu_seconds(server)
        if not claims:
            break
        place = max((claim.due_at, claim.id) for claim in claims)
        now = datetime.now(UTC)  # only to be stored
        done = [FinishedMessage(one, "delivered", one.attempts, sent_at=now) for one in claims]
        await store.finish(connection, owner, done)
        claiming.append(claimed - began)
        all_of_it.append(harness.exact_cpu_seconds(server) - began)
    own.close()
    return claiming, all_of_it


def ratio_of(times: list[float]) -> tuple[float, float, float]:
    """Return the medians of the first and the last tenth, and their ratio."""
    tenth = max(1, len(times) // 10)
    first, last = median(times[:tenth]), median(times[-tenth:])
    return first, last, last / first


async def main(messages: int, batch: int) -> int:
    """Send beside a snapshot that is held, and print what it cost; return the exit status."""
    verdict = harness.Verdict()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        os.chmod(folder, 0o755)  # noqa: PTH101, S103  # PostgreSQL's user passes through
        async with embedded_postgres(Path(folder)) as url:
            engine = create_engine(url)
            await migrate(engine)
            await engine.dispose()
            database = await asyncpg.connect(url)
            await database.execute(harness.ADD_CLIENTS, messages)
            mailing_id = await database.fetchval(ADD_MAILING, messages)
            await database.execute(ADD_MESSAGES, mailing_id)
            await database.execute("VACUUM ANALYZE")
            holder = await asyncpg.connect(url)
            async with holder.transaction(isolation="repeatable_read", readonly=True):
                await holder.fetchval("SELECT count(*) FROM client")
                claiming, all_of_it = await send(url, mailing_id, batch)
            await holder.close()
            await database.close()
    for name, times in (("claim", claiming), ("claim and finish", all_of_it)):
        first, last, ratio = ratio_of(times)
        figure = f"{name:<17} {first * 1e3:5.2f} ms at first, {last * 1e3:5.2f} at last"
        verdict.check(f"{figure}, {ratio:.2f}", limit=f"{LIMIT}", holds=ratio <= LIMIT)
    return verdict.status


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=100)
    given = parser.parse_args()
    sys.exit(asyncio.run(main(given.messages, given.batch)))
