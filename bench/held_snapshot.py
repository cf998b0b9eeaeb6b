"""Measure whether sending costs more while another session holds a snapshot, as a backup does.

The snapshot keeps PostgreSQL from removing dead rows and their index entries. Without a gateway,
the benchmark claims all messages of one mailing and records their results, by the statements of the
dispatcher. It compares the cost of a batch in the last tenth with that in the first: processor time
of the session's PostgreSQL backend, which a busy machine changes less than elapsed time. Limit: a
ratio of at most 1.5, for claims alone and for claims with results. Takes about half a minute.
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
from mailer.db.engine import DedicatedConnection, create_engine
from mailer.db.migrate import migrate
from mailer.embedded_postgres.cluster import embedded_postgres
from mailer.message import store
from mailer.message.model import MessageResult
from mailer.sample_data import SCHEDULED, SampleMailing, create_mailings, create_messages

MAX_RATIO = 1.5
LEASE = timedelta(seconds=60)
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)


async def send(url: str, mailing_id: int, batch: int) -> tuple[list[float], list[float]]:
    """Claim all messages of a mailing and record their results, in batches.

    Return the backend's processor seconds of each claim, and of each batch (claim and results).
    """
    dedicated = DedicatedConnection(url)
    connection = await dedicated.get()
    backend = connection.get_server_pid()
    owner, cursor = uuid4(), store.FIRST_CURSOR
    claim_costs, batch_costs = [], []
    while True:
        before = harness.exact_cpu_seconds(backend)
        claims = await store.claim(connection, {mailing_id: cursor}, batch, owner, LEASE)
        claimed = harness.exact_cpu_seconds(backend)
        if not claims:
            break
        cursor = max((claim.due_at, claim.id) for claim in claims)
        now = datetime.now(UTC)  # stored, not compared
        results = [
            MessageResult(claim, "delivered", claim.attempts, sent_at=now) for claim in claims
        ]
        await store.record_results(connection, owner, results)
        claim_costs.append(claimed - before)
        batch_costs.append(harness.exact_cpu_seconds(backend) - before)
    dedicated.close()
    return claim_costs, batch_costs


def compare_tenths(costs: list[float]) -> tuple[float, float, float]:
    """Return the medians of the first and the last tenth, and their ratio."""
    tenth = max(1, len(costs) // 10)
    first, last = median(costs[:tenth]), median(costs[-tenth:])
    return first, last, last / first


async def main(messages: int, batch: int) -> int:
    """Send while a snapshot is held, and print the costs; return the exit status."""
    verdict = harness.Verdict()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        os.chmod(folder, 0o755)  # noqa: PTH101, S103  # PostgreSQL's own user must enter it
        async with embedded_postgres(Path(folder)) as url:
            engine = create_engine(url)
            await migrate(engine)
            await engine.dispose()
            database = await asyncpg.connect(url)
            clients = await harness.create_clients(database, messages)
            start = datetime.now(UTC) - MINUTE
            mailing = SampleMailing(start=start, lasts=24 * HOUR, clients=messages)
            [mailing_id] = await create_mailings(database, mailing)
            await create_messages(database, mailing_id, clients, SCHEDULED, at=start)
            await database.execute("VACUUM ANALYZE")
            holder = await asyncpg.connect(url)
            async with holder.transaction(isolation="repeatable_read", readonly=True):
                await holder.fetchval("SELECT count(*) FROM client")
                claim_costs, batch_costs = await send(url, mailing_id, batch)
            await holder.close()
            await database.close()
    limit = f"at most {MAX_RATIO}"
    for name, costs in (("claims", claim_costs), ("claims and results", batch_costs)):
        first, last, ratio = compare_tenths(costs)
        figure = f"{name:<18} first tenth {first * 1e3:5.2f} ms a batch, last {last * 1e3:5.2f}"
        verdict.check(f"{figure}, ratio {ratio:.2f}", limit=limit, holds=ratio <= MAX_RATIO)
    return verdict.status


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=100)
    args = parser.parse_args()
    sys.exit(asyncio.run(main(args.messages, args.batch)))
