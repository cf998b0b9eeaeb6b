"""Migration of the database to the newest schema, and the check whether it is current."""

from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.db import origin
from mailer.db.engine import MIGRATION_LOCK

PACKAGED_MIGRATIONS = Path(__file__).parent / "migrations"
"""Folder of the migrations in an installed wheel; a checkout does not have it."""
CHECKOUT_MIGRATIONS = Path(__file__).parents[3] / "alembic"
"""Folder of the migrations in a checkout of the repository."""


class UnknownSchemaError(Exception):
    """The database has the schema of a newer mailer or of another program."""


async def migrate(engine: AsyncEngine) -> None:
    """Bring the database to the newest schema, and record its origin.

    A lock lets one process at a time migrate; the others wait for it. Raises `UnknownSchemaError`.
    """
    async with engine.begin() as connection:
        # No limit for the time between two statements: on a busy machine it may be seconds, and no
        # worker waits for rows that a migration has locked.
        await connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        await connection.execute(
            text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK}
        )
        await connection.run_sync(_upgrade)
        await origin.update(connection)


async def is_current(connection: AsyncConnection) -> bool:
    """Return whether the database has the newest schema."""
    return await get_applied(connection) == get_newest()


async def get_applied(connection: AsyncConnection) -> str | None:
    """Return the revision that is applied to the database; None when there is none."""
    return await connection.run_sync(_get_revision)


@cache
def get_newest() -> str | None:
    """Return the newest revision that this version of mailer has."""
    return ScriptDirectory.from_config(_config()).get_current_head()


def _get_revision(connection: Connection) -> str | None:
    """Return the revision in Alembic's table `alembic_version`."""
    return MigrationContext.configure(connection).get_current_revision()


def _upgrade(connection: Connection) -> None:
    """Run the migrations that the database lacks; raises `UnknownSchemaError`."""
    config = _config()
    config.attributes["connection"] = connection  # alembic/env.py uses it
    applied_heads = MigrationContext.configure(connection).get_current_heads()
    scripts = ScriptDirectory.from_config(config)
    for revision in applied_heads:
        try:
            scripts.get_revision(revision)
        except CommandError as error:
            raise UnknownSchemaError(
                f"this database has the schema {revision} of a newer mailer, or of another program;"
                f" this mailer knows {get_newest()}: run the newer one, or use another database"
            ) from error
    command.upgrade(config, "head")


def _config() -> Config:
    """Return the configuration of Alembic, which says where the migrations are."""
    config = Config()
    folder = PACKAGED_MIGRATIONS if PACKAGED_MIGRATIONS.exists() else CHECKOUT_MIGRATIONS
    config.set_main_option("script_location", str(folder).replace("%", "%%"))  # % is special in it
    return config
