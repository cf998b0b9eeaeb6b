"""What an operator asks of the database first."""

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db import migrate


class DatabaseFacts(msgspec.Struct, frozen=True):
    """Which PostgreSQL it is, how large the database, and which schema it has."""

    version: str
    """As the server tells it: `18.1`, or with what its packager adds."""
    size: int
    """Bytes on disk, all tables and indexes."""
    applied: str | None
    """The migration that the database has."""
    newest: str | None
    """The newest migration that this program has."""


# Asks the file system for each table's size: some milliseconds, whatever is in them.
LOOK = text("SELECT current_setting('server_version'), pg_database_size(current_database())")


async def look(connection: AsyncConnection) -> DatabaseFacts:
    """Return the database's facts."""
    version, size = (await connection.execute(LOOK)).one()
    return DatabaseFacts(version, size, await migrate.applied(connection), migrate.newest())


MARK = text("""
    SELECT left(md5(concat_ws('/', system_identifier(), oid)), 8) FROM pg_database
    WHERE datname = current_database()""")


async def mark(connection: AsyncConnection) -> str:
    """Return eight characters that tell this database from others, and stay after a promotion."""
    return str((await connection.execute(MARK)).scalar_one())
