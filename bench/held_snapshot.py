"""Measure whether sending costs more while another session keeps a snapshot open, as a backup does.

While a snapshot is open, PostgreSQL cannot remove old versions of rows and their index entries, so
they become more and more. The benchmark claims all messages of one mailing and records their
results, with the SQL statements of the dispatcher and without a gateway.

It compares the cost of a batch in the last tenth of the batches with that in the first. The cost is
the processor time of the PostgreSQL process of this connection, which a busy machine changes less
than elapsed time. Limit: a ratio of at most 1.5, for claims alone and for claims with results.
Takes about half a minute.
"""

import argparse
import asyncio
import os
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import NamedTuple
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
ROUTE = 1
"""Id of the route with the gateway `default` alone."""
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)


class BatchCosts(NamedTuple):
    """Processor seconds that PostgreSQL used for each batch, in order."""

    claims: list[float]
    claims_with_results: list[float]


async def send(url: str, mailing_id: int, batch: int) -> BatchCosts:
    """Claim all messages of a mailing and record their results, `batch` messages at once."""
    dedicated = DedicatedConnection(url)
    connection = await dedicated.get()
    backend = connection.get_server_pid()
    owner, cursor = uuid4(), store.FIRST_CURSOR
    target = store.ClaimTarget(owner, LEASE, "default")
    costs = BatchCosts([], [])
    while True:
        cpu_before = harness.exact_cpu_seconds(backend)
        source = store.ClaimSource(ROUTE, {mailing_id: cursor}, {mailing_id: batch})
        claims = await store.claim(connection, source, target)
        cpu_after_claim = harness.exact_cpu_seconds(backend)
        if not claims:
            break
        cursor = max((claim.due_at, claim.id) for claim in claims)
        now = datetime.now(UTC)  # stored, not compared
        results = [
            MessageResult(claim, "delivered", claim.attempts, sent_at=now) for claim in claims
        ]
        await store.record_results(connection, owner, results)
        costs.claims.append(cpu_after_claim - cpu_before)
        costs.claims_with_results.append(harness.exact_cpu_seconds(backend) - cpu_before)
    dedicated.close()
    return costs


def tenth_medians(costs: list[float]) -> tuple[float, float]:
    """Return the median of the first tenth of the costs, and that of the last tenth."""
    tenth = max(1, len(costs) // 10)
    return median(costs[:tenth]), median(costs[-tenth:])


async def main(messages: int, batch: int) -> int:
    """Send while a snapshot is open, and print the costs; return the exit status."""
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
            backup = await asyncpg.connect(url)
            async with backup.transaction(isolation="repeatable_read", readonly=True):
                await backup.fetchval("SELECT count(*) FROM client")  # this opens the snapshot
                costs = await send(url, mailing_id, batch)
            await backup.close()
            await database.close()
    limit = f"at most {MAX_RATIO}"
    for name, batch_costs in (
        ("claims", costs.claims),
        ("claims and results", costs.claims_with_results),
    ):
        first, last = tenth_medians(batch_costs)
        ratio = last / first
        figure = f"{name:<18} first tenth {first * 1e3:5.2f} ms a batch, last {last * 1e3:5.2f}"
        verdict.check(f"{figure}, ratio {ratio:.2f}", limit=limit, holds=ratio <= MAX_RATIO)
    return verdict.status


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=100, help="messages in a claim")
    args = parser.parse_args()
    sys.exit(asyncio.run(main(args.messages, args.batch)))
