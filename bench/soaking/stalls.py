"""Find the times in which the machine itself, or its disk, stops PostgreSQL.

Other programs of the machine may delay a commit for seconds. The soak commits a row of its own
again and again; no part of mailer locks it. If that takes long, it counts as a fault of PostgreSQL.
"""

import asyncio
import time

import asyncpg

from mailer.db.engine import is_unavailable
from soaking.journal import Fault, Journal

PROBE_INTERVAL = 0.2
"""Seconds between two commits."""
MIN_STALL = 0.5
"""Seconds of the shortest stall that counts. On an idle machine a commit takes milliseconds."""
PROBE = "UPDATE soak.probe SET at = clock_timestamp()"


async def watch_stalls(database_url: str, journal: Journal) -> None:
    """Record stalls as faults until cancelled."""
    connection: asyncpg.Connection | None = None
    while True:
        began = time.time()
        await asyncio.sleep(PROBE_INTERVAL)
        try:
            if connection is None:
                connection = await asyncpg.connect(database_url, timeout=5)
            await connection.execute(PROBE, timeout=30)
        except Exception as error:  # a connection that is lost early raises many kinds of errors
            if not is_unavailable(error):
                raise
            connection = None  # another fault, which is recorded
            continue
        now = time.time()
        if now - began - PROBE_INTERVAL > MIN_STALL:
            journal.faults.append(Fault("PostgreSQL stalled", began, now))
