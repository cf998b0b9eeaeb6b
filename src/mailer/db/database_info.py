"""Information about the database for operators: version, size, schema and fingerprint."""

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db import migrate


class DatabaseInfo(msgspec.Struct, frozen=True):
    """What the page of the system shows about the database."""

    version: str
    """As the server reports it: `18.1`, perhaps with an addition of its package."""
    size: int
    """Bytes on disk of all tables and indexes."""
    applied: str | None
    """The newest migration applied to the database; None when there is none."""
    newest: str | None
    """The newest migration that this version of mailer has."""


# The size is read from the file system: a few milliseconds, however many rows there are.
SELECT_INFO = text("SELECT current_setting('server_version'), pg_database_size(current_database())")


async def get_database_info(connection: AsyncConnection) -> DatabaseInfo:
    """Return the version, size and migrations of the database."""
    version, size = (await connection.execute(SELECT_INFO)).one()
    return DatabaseInfo(version, size, await migrate.get_applied(connection), migrate.get_newest())


# The server's identifier comes from its initdb; the oid is the database's number in the server.
SELECT_FINGERPRINT = text("""
    SELECT left(md5(concat_ws('/', system_identifier(), oid)), 8) FROM pg_database
    WHERE datname = current_database()""")


async def get_fingerprint(connection: AsyncConnection) -> str:
    """Return eight characters that identify this database. A promoted standby has the same ones."""
    return str((await connection.execute(SELECT_FINGERPRINT)).scalar_one())
