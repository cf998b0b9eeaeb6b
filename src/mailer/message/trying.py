"""The action *Try now*: let all workers probe the gateway, and end delays of failed messages."""

from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.access import audit
from mailer.access.model import Actor

TRY_NOW = "try_now"
"""Name of the PostgreSQL notification that makes every worker try the gateway now."""
TRY_NOW_BATCH = 5_000
"""Messages that one transaction makes due."""
MAX_BATCHES = 200
"""Most transactions of one request. If more than a million messages wait, the rest keep waiting."""

# The notification has no content. The second column is the time of the transaction.
NOTIFY = text("SELECT pg_notify(:name, ''), now()")
# Makes up to :chunk messages due that wait after a failed attempt. Messages that fail after :since
# keep their delay. A message may become due outside its sending window: the window is checked again
# before a message is sent.
END_DELAYS = text("""
    UPDATE message SET due_at = now(), retry_at = NULL, updated_at = now()
    WHERE id = ANY (ARRAY(
        SELECT id FROM message
        WHERE status = 'scheduled' AND retry_at > now() AND updated_at <= :since
        LIMIT :chunk FOR UPDATE SKIP LOCKED))""")


async def try_now(engine: AsyncEngine, actor: Actor) -> None:
    """Allow a probe of the gateway now, and make messages due that wait after a failure."""
    async with engine.begin() as connection:
        since = await _notify(connection)
        await audit.record(connection, actor, "gateway_tried", audit.Target("gateway"))
    for _ in range(MAX_BATCHES):
        async with engine.begin() as connection:
            ended = await connection.execute(END_DELAYS, {"since": since, "chunk": TRY_NOW_BATCH})
            await _notify(connection)  # so that workers claim these messages now
        if ended.rowcount < TRY_NOW_BATCH:
            break


async def _notify(connection: AsyncConnection) -> datetime:
    """Notify every worker when this transaction commits; return the transaction's time."""
    row = (await connection.execute(NOTIFY, {"name": TRY_NOW})).one()
    transaction_time: datetime = row[1]
    return transaction_time
