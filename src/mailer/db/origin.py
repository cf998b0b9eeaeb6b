"""The origin of the database: the record of the server, database and timeline where it last ran.

When the database runs elsewhere than its origin says, it was moved, copied or restored. Then
message ids continue in a new range. A restored database also gets a restore hold: it sends nothing
until an admin confirms. The rules are SQL functions of the migration, so that no statement can
bypass them.
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
    """Time of the newest work that the database records. What was done later, before the restore,
    is lost. None when there is no work."""


UPDATE_ORIGIN = text("SELECT update_origin()")


async def update(connection: AsyncConnection) -> bool:
    """Record where the database runs now; return whether its origin has changed.

    No savepoint may be open: in it PostgreSQL writes rows under the savepoint's own id instead of
    the transaction's, and then the SQL function raises an error.
    """
    return bool((await connection.execute(UPDATE_ORIGIN)).scalar_one())


async def is_sending_allowed(connection: asyncpg.Connection) -> bool:
    """Return whether messages may be claimed: the origin is recorded, and there is no hold."""
    is_allowed: bool = await connection.fetchval("SELECT sending_is_allowed()")
    return is_allowed


SELECT_HOLD = text("SELECT held_since, data_until FROM origin WHERE held_since IS NOT NULL")


async def get_hold(connection: AsyncConnection) -> RestoreHold | None:
    """Return the restore hold of this database; None when it may send."""
    row = (await connection.execute(SELECT_HOLD)).one_or_none()
    return None if row is None else RestoreHold(row.held_since, row.data_until)


# The row of the origin names the transaction that wrote it; otherwise the database would count as
# restored again.
ALLOW_SENDING = text("""
    UPDATE origin SET held_since = NULL, written_by = pg_current_xact_id()::xid::text::bigint
    WHERE held_since = :since AND origin_is_current()""").bindparams(
    bindparam("since", type_=DateTime(timezone=True))
)


async def allow_sending(connection: AsyncConnection, since: datetime) -> bool:
    """End the restore hold that started at `since`.

    Returns False when there is no such hold: it was ended already, or the database was restored
    again, which started another hold.
    """
    return (await connection.execute(ALLOW_SENDING, {"since": since})).rowcount > 0
