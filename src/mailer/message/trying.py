"""*Try now*: end the pauses of the gateway and of what failed, at every worker."""

from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.access import audit
from mailer.access.model import Actor

CHANNEL = "gateway"
"""Where PostgreSQL's NOTIFY tells every worker that the gateway is to be tried."""
CHUNK = 5_000
"""Messages that one transaction makes due."""
CHUNKS_LIMIT = 200
"""Transactions; what waits beyond a million messages waits for its pause to end."""

NOTIFY = text("SELECT pg_notify(:channel, ''), now()")
# Messages that fail after this moment keep their pause. The window is checked again before sending.
END_PAUSES = text("""
    UPDATE message SET due_at = now(), retry_at = NULL, updated_at = now()
    WHERE id = ANY (ARRAY(
        SELECT id FROM message
        WHERE status = 'scheduled' AND retry_at > now() AND updated_at <= :since
        LIMIT :chunk FOR UPDATE SKIP LOCKED))""")


async def try_now(engine: AsyncEngine, by: Actor) -> None:
    """Have the next message probe the gateway now, and what waits after a failure be due."""
    async with engine.begin() as connection:
        since = await _notify(connection)
        await audit.record(connection, by, "gateway_tried", audit.Target("gateway"))
    for _ in range(CHUNKS_LIMIT):
        async with engine.begin() as connection:
            ended = await connection.execute(END_PAUSES, {"since": since, "chunk": CHUNK})
            await _notify(connection)
        if ended.rowcount < CHUNK:
            break


async def _notify(connection: AsyncConnection) -> datetime:
    """Tell every worker, once this transaction is committed; return its moment."""
    row = (await connection.execute(NOTIFY, {"channel": CHANNEL})).one()
    moment: datetime = row[1]
    return moment
