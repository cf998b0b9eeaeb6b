"""How many clients there are of each kind: what counts pages and audiences without reading them.

As with tallies: a folded row for all clients who are alike in what a filter asks for, and the
moves that are not folded yet.
"""

from sqlalchemy import ColumnElement, Subquery, func, select, text, union_all
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db import locks
from mailer.db.schema import directory, directory_move

CLIENTS: Subquery = union_all(select(directory), select(directory_move)).subquery("directory")
"""Kinds of clients, each in one row or several, and how many they are: `clients`, by the sum."""


async def count(connection: AsyncConnection, *conditions: ColumnElement[bool]) -> int:
    """Return how many clients meet conditions on `CLIENTS`."""
    statement = select(func.coalesce(func.sum(CLIENTS.c.clients), 0)).where(*conditions)
    return int((await connection.execute(statement)).scalar_one())


async def count_by_zone(
    connection: AsyncConnection, *conditions: ColumnElement[bool]
) -> dict[str, int]:
    """Return how many clients meet conditions on `CLIENTS`, by time zone."""
    clients = func.sum(CLIENTS.c.clients)
    zone = CLIENTS.c.time_zone
    statement = select(zone, clients).where(*conditions).group_by(zone).having(clients > 0)
    return {found: int(count) for found, count in await connection.execute(statement)}


# One process folds at a time; what others add meanwhile waits for the next fold.
LOCK = {"lock": locks.DIRECTORY}
TRY_LOCK = text("""
    SELECT EXISTS (SELECT FROM directory_move) AND pg_try_advisory_xact_lock(:lock)""")
FOLD = text("""
    WITH moved AS (
        DELETE FROM directory_move
        WHERE ctid = ANY (ARRAY(SELECT ctid FROM directory_move LIMIT :chunk))
        RETURNING *)
    INSERT INTO directory (operator_code, tag, time_zone, clients)
    SELECT operator_code, tag, time_zone, sum(clients) FROM moved
    GROUP BY operator_code, tag, time_zone
    ON CONFLICT (operator_code, tag, time_zone)
        DO UPDATE SET clients = directory.clients + excluded.clients
    RETURNING clients""")
EMPTY = text("DELETE FROM directory WHERE clients = 0")


async def fold(connection: AsyncConnection, chunk: int) -> None:
    """Fold up to `chunk` moves, unless another process does."""
    if not (await connection.execute(TRY_LOCK, LOCK)).scalar_one():
        return
    if 0 in (await connection.scalars(FOLD, {"chunk": chunk})).all():
        await connection.execute(EMPTY)
