"""Stop numbers: how it is known that no worker sends for a mailing any more.

Each worker holds one advisory lock, shared, on the number of the newest stop that it has applied.
After a change that stops a mailing is committed, a new number is drawn; when no worker is at a
lower one, all of them have read that change. See docs/decisions/0013.
"""

import asyncpg
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db import locks
from mailer.mailing.telling import tell

DRAW = text("SELECT nextval('stop_number')")


async def draw(connection: AsyncConnection) -> int:
    """Draw the number of a stop whose change is committed; workers hear of it at the commit."""
    await tell(connection)
    return int((await connection.execute(DRAW)).scalar_one())


# `pg_locks` shows a key's two halves; nobody else shares locks on keys of this range.
IS_APPLIED = text("""
    SELECT NOT EXISTS (
        SELECT FROM pg_locks
        WHERE locktype = 'advisory' AND objsubid = 1 AND mode = 'ShareLock' AND granted
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
            AND (classid::bigint << 32 | objid::bigint) >= :first
            AND (classid::bigint << 32 | objid::bigint) < :first + :number)""")


async def is_applied(connection: AsyncConnection, number: int) -> bool:
    """Whether every worker has applied the stop with this number."""
    asked = {"first": locks.STOP, "number": number}
    return bool((await connection.execute(IS_APPLIED, asked)).scalar_one())


# To be read in a statement before the one that reads the mailings: that one then sees the change of
# every stop up to this number.
NEWEST = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM stop_number"
LOCK = "SELECT pg_advisory_lock_shared($1)"
MOVE_LOCK = "SELECT pg_advisory_lock_shared($1), pg_advisory_unlock_shared($2)"


async def newest(connection: asyncpg.Connection) -> int:
    """Return the newest stop's number; 0 before the first."""
    number: int = await connection.fetchval(NEWEST)
    return number


async def mark_applied(connection: asyncpg.Connection, number: int, before: int | None) -> None:
    """Tell who stops mailings that this worker has applied all stops up to a number.

    `before` is the number that the connection has told before, None on a new one.
    """
    if before is None:
        await connection.execute(LOCK, locks.STOP + number)
    elif number != before:
        await connection.execute(MOVE_LOCK, locks.STOP + number, locks.STOP + before)
