"""The work as a PgQueuer user writes it: `enqueue` puts in a job a message, `work` does them.

The ways of its documentation ("Performance Tuning", "Shared Resources"): asyncpg, a connection of
its own for the queue and a pool for the jobs, the recommended autovacuum settings, one HTTP session
for all, uvloop. A job carries all that its request needs. The queue's tables are durable, as they
are by default and as mailer's are.
"""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import asyncpg
import pgqueuer  # type: ignore[import-not-found]  # it is in the peers' venv only
import uvloop
from pgqueuer import PgQueuer, Queries
from pgqueuer.models import Job  # type: ignore[import-not-found]  # likewise

DATABASE_URL = os.environ["PEER_DATABASE_URL"]
SINK_URL = os.environ["PEER_SINK_URL"]
TOKEN = os.environ["PEER_TOKEN"]
CONCURRENCY = int(os.environ["PEER_CONCURRENCY"])
BATCH_SIZE = 50
MOST_TASKS = 100
"""Jobs claimed at a time, finished but unrecorded ones among them, so more than the requests.

Twice the batch is the least that it allows. Without a limit it claims all there are, and slows
down the more wait; a `concurrency_limit` of the entry point costs more in each claim.
"""
POOL_SIZE = 20
JOBS = 1000
"""Jobs that one statement puts in."""

MESSAGES = "SELECT id, phone, text FROM message ORDER BY id"
DELIVERED = "UPDATE message SET status = 'delivered', delivered_at = now() WHERE id = $1"


@asynccontextmanager
async def worker() -> AsyncIterator[PgQueuer]:
    """Give `pgqueuer run` the queue with its one entry point."""
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
            async with session.post(f"{SINK_URL}{number}", data=job.payload) as answer:
                if (await answer.json())["code"] != 0:
                    raise RuntimeError("the sink refused a message")
            await pool.execute(DELIVERED, number)

        queue.entrypoint("send")(send)
        yield queue
    await connection.close()


async def enqueue() -> None:
    """Put in a job for each message, into new tables."""
    connection = await asyncpg.connect(DATABASE_URL)
    queries = Queries.from_asyncpg_connection(connection)
    if await queries.schema_is_installed():
        await queries.uninstall()
    await queries.install()
    await queries.optimize_autovacuum()
    payloads = [json.dumps(dict(row)).encode() for row in await connection.fetch(MESSAGES)]
    for start in range(0, len(payloads), JOBS):
        part = payloads[start : start + JOBS]
        await queries.enqueue(["send"] * len(part), part, [0] * len(part))
    await connection.close()


def work() -> None:
    """Do jobs until SIGTERM, as `pgqueuer run` does."""
    uvloop.run(pgqueuer.run(worker, batch_size=BATCH_SIZE, max_concurrent_tasks=MOST_TASKS))


if __name__ == "__main__":
    if sys.argv[1] == "enqueue":
        asyncio.run(enqueue())
    else:
        work()
