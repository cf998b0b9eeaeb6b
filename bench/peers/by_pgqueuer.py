"""Sending with PgQueuer, written as its users do: `enqueue` adds the jobs, `work` runs them.

It follows PgQueuer's documentation ("Performance Tuning", "Shared Resources"): asyncpg, a separate
connection for the queue and a pool for the jobs, the recommended autovacuum settings, one HTTP
session for all jobs, uvloop. Each message has one job, which carries all data of its request. The
queue's tables are durable, which is the default and the same as mailer's.
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
MAX_TASKS = 100
"""Jobs claimed at the same time, including those done but not yet recorded.

So this is more than the requests at once. The minimum allowed is twice the batch. Without this
limit PgQueuer claims all jobs, and the more jobs wait, the slower it is; a `concurrency_limit` of
the entry point makes each claim more expensive.
"""
POOL_SIZE = 20
JOBS_PER_STATEMENT = 1000
"""Jobs enqueued by one statement."""

MESSAGES = "SELECT id, phone, text FROM message ORDER BY id"
DELIVERED = "UPDATE message SET status = 'delivered', delivered_at = now() WHERE id = $1"


@asynccontextmanager
async def worker() -> AsyncIterator[PgQueuer]:
    """Yield the queue with its only entry point, for `pgqueuer.run`."""
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
            await pool.execute(DELIVERED, number)

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
    payloads = [json.dumps(dict(row)).encode() for row in await connection.fetch(MESSAGES)]
    for start in range(0, len(payloads), JOBS_PER_STATEMENT):
        batch = payloads[start : start + JOBS_PER_STATEMENT]
        await queries.enqueue(["send"] * len(batch), batch, [0] * len(batch))
    await connection.close()


def work() -> None:
    """Run jobs until SIGTERM, as the command `pgqueuer run` does."""
    uvloop.run(pgqueuer.run(worker, batch_size=BATCH_SIZE, max_concurrent_tasks=MAX_TASKS))


if __name__ == "__main__":
    if sys.argv[1] == "enqueue":
        asyncio.run(enqueue())
    else:
        work()
