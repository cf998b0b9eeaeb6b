"""Stop numbers: find out when no worker sends for a stopped mailing any more.

A stop is a change after which no request of a mailing may start, such as a pause.

1. The change is committed. Then its caller draws a stop number from a sequence (`next_number`).
2. Each worker reads the newest stop number (`get_newest`), then all changed mailings. It aborts
   what it must not send, and then publishes that it has applied all stops up to this number
   (`mark_applied`).
3. When no worker has published a lower number, all workers have applied the stop (`is_applied`).

A worker publishes a number by holding a shared advisory lock of PostgreSQL, whose key is
`FIRST_STOP_LOCK` plus the number. The lock ends with its session: nobody waits for a dead worker.
See docs/decisions/0013.
"""

import asyncpg
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.engine import FIRST_STOP_LOCK
from mailer.mailing.store import notify_mailings_changed

NEXT_NUMBER = text("SELECT nextval('stop_number')")


async def next_number(connection: AsyncConnection) -> int:
    """Draw the number of a stop whose change is committed.

    Workers are notified when the caller's transaction is committed.
    """
    await notify_mailings_changed(connection)
    return int((await connection.execute(NEXT_NUMBER)).scalar_one())


# Whether no worker holds the lock of a lower number. `pg_locks` shows the 64 bits of a key as two
# halves, `classid` and `objid`, with `objsubid` 1. No other code takes shared locks on keys in this
# range.
IS_APPLIED = text("""
    SELECT NOT EXISTS (
        SELECT FROM pg_locks
        WHERE locktype = 'advisory' AND objsubid = 1 AND mode = 'ShareLock' AND granted
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
            AND (classid::bigint << 32 | objid::bigint) >= :first
            AND (classid::bigint << 32 | objid::bigint) < :first + :number)""")


async def is_applied(connection: AsyncConnection, number: int) -> bool:
    """Return whether every worker has applied the stop with this number."""
    values = {"first": FIRST_STOP_LOCK, "number": number}
    return bool((await connection.execute(IS_APPLIED, values)).scalar_one())


# Must be read before the mailings, by another statement. The mailings then include the changes of
# all stops up to this number.
NEWEST = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM stop_number"
HOLD_NUMBER = "SELECT pg_advisory_lock_shared($1)"
# In this order, so that some number is published at any time.
REPLACE_NUMBER = "SELECT pg_advisory_lock_shared($1), pg_advisory_unlock_shared($2)"


async def get_newest(connection: asyncpg.Connection) -> int:
    """Return the number of the newest stop; 0 before the first stop."""
    number: int = await connection.fetchval(NEWEST)
    return number


async def mark_applied(connection: asyncpg.Connection, number: int, previous: int | None) -> None:
    """Publish, by an advisory lock, that this worker has applied all stops up to `number`.

    `previous` is the number that the same connection published last; None on a new connection.
    """
    key = FIRST_STOP_LOCK + number
    if previous is None:
        await connection.execute(HOLD_NUMBER, key)
    elif number != previous:
        await connection.execute(REPLACE_NUMBER, key, FIRST_STOP_LOCK + previous)
