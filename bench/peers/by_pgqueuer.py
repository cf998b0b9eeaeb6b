"""Sending with PgQueuer, as a user of PgQueuer would write it, for `against_peers.py`.

As a script with the argument `enqueue`, it enqueues a job for each message; with `work`, it runs
the jobs.

It follows PgQueuer's documentation ("Performance Tuning", "Shared Resources"): asyncpg, a separate
connection for the queue and a pool for the jobs, the recommended autovacuum settings, one HTTP
session for all jobs, uvloop. A job contains all data of its request. The queue's tables survive a
power failure, which is PgQueuer's default and the same as mailer's.
"""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import asyncpg
import pgqueuer  # type: ignore[import-not-found]  # only in the peers' venv
import uvloop
from pgqueuer import PgQueuer, Queries
from pgqueuer.models import Job  # type: ignore[import-not-found]  # likewise

DATABASE_URL = os.environ["PEER_DATABASE_URL"]
SINK_URL = os.environ["PEER_SINK_URL"]
TOKEN = os.environ["PEER_TOKEN"]
CONCURRENCY = int(os.environ["PEER_CONCURRENCY"])
BATCH_SIZE = 50
"""Jobs that PgQueuer claims with one statement."""
MAX_TASKS = 100
"""Most jobs claimed at the same time, including those done but not yet recorded.

PgQueuer allows no less than twice the batch. Without this limit it claims all jobs, and the more
jobs wait, the slower it becomes. The alternative, a `concurrency_limit` of the entry point, makes
each claim more expensive.
"""
POOL_SIZE = 20
"""Database connections of the jobs."""
JOBS_PER_STATEMENT = 1000
"""Jobs enqueued by one statement."""

SELECT_MESSAGES = "SELECT id, phone, text FROM message ORDER BY id"
MARK_DELIVERED = "UPDATE message SET status = 'delivered', delivered_at = now() WHERE id = $1"


@asynccontextmanager
async def worker() -> AsyncIterator[PgQueuer]:
    """Yield the queue with its only entry point, which sends one message, for `pgqueuer.run`."""
    connection = await asyncpg.connect(DATABASE_URL)
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    connector = aiohttp.TCPConnector(limit=CONCURRENCY)
    async with (
        asyncpg.create_pool(DATABASE_URL, min_size=POOL_SIZE, max_size=POOL_SIZE) as pool,
        aiohttp.ClientSession(connector=connector, headers=headers) as session,
    ):
        queue = PgQueuer.from_asyncpg_connection(connection)

        async def send(job: Job) -> None:
            number = json.loads(job.payload)["id"]
            async with session.post(f"{SINK_URL}{number}", data=job.payload) as response:
                if (await response.json())["code"] != 0:
                    raise RuntimeError("the sink rejected a message")
            await pool.execute(MARK_DELIVERED, number)

        queue.entrypoint("send")(send)
        yield queue
    await connection.close()


async def enqueue() -> None:
    """Enqueue a job for each message, in new tables."""
    connection = await asyncpg.connect(DATABASE_URL)
    queries = Queries.from_asyncpg_connection(connection)
    if await queries.schema_is_installed():
        await queries.uninstall()
    await queries.install()
    await queries.optimize_autovacuum()
    payloads = [json.dumps(dict(row)).encode() for row in await connection.fetch(SELECT_MESSAGES)]
    for start in range(0, len(payloads), JOBS_PER_STATEMENT):
        batch = payloads[start : start + JOBS_PER_STATEMENT]
        priorities = [0] * len(batch)
        await queries.enqueue(["send"] * len(batch), batch, priorities)
    await connection.close()


def work() -> None:
    """Run jobs until SIGTERM, as the command `pgqueuer run` does."""
    uvloop.run(pgqueuer.run(worker, batch_size=BATCH_SIZE, max_concurrent_tasks=MAX_TASKS))


if __name__ == "__main__":
    if sys.argv[1] == "enqueue":
        asyncio.run(enqueue())
    else:
        work()
