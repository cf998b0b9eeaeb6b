"""Where the database is: which server, database and timeline, and whether it may send from there.

The rules stand in the functions of the migration, so that no statement passes by them.
"""

from datetime import datetime

import asyncpg
import msgspec
from sqlalchemy import DateTime, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection


class Hold(msgspec.Struct, frozen=True):
    """A restored database that sends nothing until a person agrees."""

    since: datetime
    data_until: datetime | None
    """The newest trace of work in it: what was done later it does not know."""


UPDATE = text("SELECT update_origin()")


async def update(connection: AsyncConnection) -> bool:
    """Note where the database is; return whether it has moved since it was last noted.

    Another place has other message ids. No savepoint may be open.
    """
    return bool((await connection.execute(UPDATE)).scalar_one())


async def is_sending_allowed(connection: asyncpg.Connection) -> bool:
    """Return whether messages may be claimed: the origin is current, and nothing is held."""
    is_allowed: bool = await connection.fetchval("SELECT sending_is_allowed()")
    return is_allowed


HOLD = text("SELECT held_since, data_until FROM origin WHERE held_since IS NOT NULL")


async def hold(connection: AsyncConnection) -> Hold | None:
    """Return why nothing is sent from this database; None when it may send."""
    row = (await connection.execute(HOLD)).one_or_none()
    return None if row is None else Hold(row.held_since, row.data_until)


RELEASE = text("""
    UPDATE origin SET held_since = NULL, written_by = pg_current_xact_id()::xid::text::bigint
    WHERE held_since = :since AND origin_is_current()""").bindparams(
    bindparam("since", type_=DateTime(timezone=True))
)


async def release(connection: AsyncConnection, since: datetime) -> bool:
    """Let the database send; False unless it still is held as it was at the moment `since`."""
    return (await connection.execute(RELEASE, {"since": since})).rowcount > 0
