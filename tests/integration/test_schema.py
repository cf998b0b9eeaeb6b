from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.db import access  # noqa: F401  # its tables are part of the schema
from mailer.db.migrate import is_current
from mailer.db.schema import metadata


async def test_migrations_lead_to_the_schema(engine: AsyncEngine) -> None:
    """What `alembic check` checks."""

    def differences(connection: Connection) -> list[object]:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        return list(compare_metadata(context, metadata))

    async with engine.connect() as connection:
        assert await connection.run_sync(differences) == []
        assert await is_current(connection)
