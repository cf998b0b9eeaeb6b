"""Runs migrations on a connection that mailer hands over, or on MAILER_DATABASE_URL."""

import asyncio
import os

from alembic import context
from sqlalchemy import Connection

from mailer.db.engine import create_engine
from mailer.db.tables import metadata
from mailer.errors import StartError
from mailer.settings import read_settings


def run(connection: Connection) -> None:
    """Run the migrations of the command, all in the caller's transaction."""
    context.configure(connection=connection, target_metadata=metadata, compare_server_default=True)
    with context.begin_transaction():
        context.run_migrations()


async def run_alone() -> None:
    """Connect to the database of the settings, for the command `alembic`."""
    url = read_settings(os.environ).database_url
    if url is None:
        message = "set MAILER_DATABASE_URL to the database to work on"
        raise StartError(message)
    engine = create_engine(url)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(run)
    finally:
        await engine.dispose()


given = context.config.attributes.get("connection")
if given is None:
    asyncio.run(run_alone())
else:
    run(given)
