"""Stop numbers: find out when no worker sends for a stopped mailing any more.

Each worker holds a shared advisory lock whose key encodes the number of the newest stop that it has
applied. After the change that stops a mailing is committed, the caller draws a new number. When no
worker holds a lower number, all workers have read the change. See docs/decisions/0013.
"""

import asyncpg
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.engine import FIRST_STOP_LOCK
from mailer.mailing.store import notify_mailings_changed

NEXT_NUMBER = text("SELECT nextval('stop_number')")


async def next_number(connection: AsyncConnection) -> int:
    """Draw the number of a stop whose change is committed, and notify workers at the commit."""
    await notify_mailings_changed(connection)
    return int((await connection.execute(NEXT_NUMBER)).scalar_one())


# `pg_locks` shows a key as two halves. No other code takes shared locks on keys in this range.
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


# Read the number in an earlier statement than the mailings: those then include the changes of all
# stops up to this number.
NEWEST = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM stop_number"
LOCK_STOP_NUMBER = "SELECT pg_advisory_lock_shared($1)"
MOVE_LOCK = "SELECT pg_advisory_lock_shared($1), pg_advisory_unlock_shared($2)"


async def get_newest(connection: asyncpg.Connection) -> int:
    """Return the number of the newest stop; 0 before the first stop."""
    number: int = await connection.fetchval(NEWEST)
    return number


async def mark_applied(connection: asyncpg.Connection, number: int, previous: int | None) -> None:
    """Publish, by an advisory lock, that this worker has applied all stops up to `number`.

    `previous` is the number that the same connection published last; None on a new connection.
    """
    if previous is None:
        await connection.execute(LOCK_STOP_NUMBER, FIRST_STOP_LOCK + number)
    elif number != previous:
        await connection.execute(MOVE_LOCK, FIRST_STOP_LOCK + number, FIRST_STOP_LOCK + previous)
