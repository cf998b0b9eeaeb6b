"""Brings a database to the newest schema, and tells whether it is there."""

from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.db import locks, origin

INSTALLED = Path(__file__).parent / "migrations"
"""Where a wheel carries them; a checkout has them at its top."""
CHECKOUT = Path(__file__).parents[3] / "alembic"


class UnknownSchemaError(Exception):
    """The database has a schema of a newer mailer, or of another program."""


async def migrate(engine: AsyncEngine) -> None:
    """Bring the database to the newest schema, and note where it is.

    Processes that start together take turns. Raises `UnknownSchemaError`.
    """
    async with engine.begin() as connection:
        # on a busy machine seconds may lie between two statements, and nobody waits for its rows
        await connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        await connection.execute(
            text("SELECT pg_advisory_xact_lock(:key)"), {"key": locks.MIGRATION}
        )
        await connection.run_sync(_upgrade)
        await origin.update(connection)


async def is_current(connection: AsyncConnection) -> bool:
    """Whether the database has the newest schema."""
    return await applied(connection) == newest()


async def applied(connection: AsyncConnection) -> str | None:
    """Return the revision that the database has; None when it has none."""
    return await connection.run_sync(_revision)


@cache
def newest() -> str | None:
    """Return the newest revision that this program carries."""
    return ScriptDirectory.from_config(_config()).get_current_head()


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _upgrade(connection: Connection) -> None:
    config = _config()
    config.attributes["connection"] = connection
    found = MigrationContext.configure(connection).get_current_heads()
    known = ScriptDirectory.from_config(config)
    for revision in found:
        try:
            known.get_revision(revision)
        except CommandError as error:
            raise UnknownSchemaError(
                f"this database has the schema {revision} of a newer mailer, or of another program;"
                f" this mailer knows {newest()}: run the newer one, or use another database"
            ) from error
    command.upgrade(config, "head")


def _config() -> Config:
    config = Config()
    folder = INSTALLED if INSTALLED.exists() else CHECKOUT
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    return config
