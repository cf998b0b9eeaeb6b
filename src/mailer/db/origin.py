"""Origin of the database: its server, database and timeline, and whether it may send from there.

The origin shows whether the database was copied or restored. The rules are SQL functions of the
migration, so that no statement can bypass them.
"""

from datetime import datetime

import asyncpg
import msgspec
from sqlalchemy import DateTime, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection


class RestoreHold(msgspec.Struct, frozen=True):
    """The state of a restored database that sends nothing until an admin confirms."""

    since: datetime
    data_until: datetime | None
    """Time of the newest work recorded in the database; later work is not in it."""


UPDATE = text("SELECT update_origin()")


async def update(connection: AsyncConnection) -> bool:
    """Record the current origin; return whether it differs from the recorded one.

    After a change of origin new messages get ids from another range. No savepoint may be open.
    """
    return bool((await connection.execute(UPDATE)).scalar_one())


async def is_sending_allowed(connection: asyncpg.Connection) -> bool:
    """Return whether messages may be claimed: origin current, no restore hold."""
    is_allowed: bool = await connection.fetchval("SELECT sending_is_allowed()")
    return is_allowed


SELECT_HOLD = text("SELECT held_since, data_until FROM origin WHERE held_since IS NOT NULL")


async def get_hold(connection: AsyncConnection) -> RestoreHold | None:
    """Return the restore hold of this database; None when it may send."""
    row = (await connection.execute(SELECT_HOLD)).one_or_none()
    return None if row is None else RestoreHold(row.held_since, row.data_until)


ALLOW_SENDING = text("""
    UPDATE origin SET held_since = NULL, written_by = pg_current_xact_id()::xid::text::bigint
    WHERE held_since = :since AND origin_is_current()""").bindparams(
    bindparam("since", type_=DateTime(timezone=True))
)


async def allow_sending(connection: AsyncConnection, since: datetime) -> bool:
    """End the restore hold that began at `since`; return False when that hold is not in force.

    It is not when sending was allowed already, or when the database was restored again.
    """
    return (await connection.execute(ALLOW_SENDING, {"since": since})).rowcount > 0
