"""Opens the database that the settings name, as every command and the service itself do."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import asyncpg
import structlog
from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.clock import database_clock, elapsed
from mailer.db.embedded import embedded_postgres
from mailer.db.engine import cause_of, create_engine, is_away
from mailer.db.migrate import migrate
from mailer.errors import StartError
from mailer.settings import Settings

log = structlog.get_logger()

Result = TypeVar("Result")

DATABASE_PATIENCE = 30.0
"""Seconds to wait at the start for a database that is still starting."""
WRONG_URL = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientPrivilegeError,
)
"""What PostgreSQL says to a wrong user, password or database."""


@contextlib.asynccontextmanager
async def open_database(
    settings: Settings, *, share: bool = False
) -> AsyncIterator[tuple[str, AsyncEngine]]:
    """Give the URL of the database, embedded if none is set, and an engine on it, migrated.

    With `share` an embedded one that another mailer runs will do. Raises `StartError`.
    """
    async with contextlib.AsyncExitStack() as stack:
        url = settings.database_url
        if url is None:
            folder = Path(settings.data_dir)
            url = await stack.enter_async_context(embedded_postgres(folder, share=share))
        engine = create_engine(url)
        stack.push_async_callback(engine.dispose)
        await _migrate_patiently(engine)
        await sample_clock(engine)
        yield url, engine


async def on_database(
    settings: Settings, work: Callable[[AsyncEngine], Awaitable[Result]]
) -> Result:
    """Do something on the database, which a running mailer may use meanwhile."""
    async with open_database(settings, share=True) as (_, engine):
        return await work(engine)


async def migrate_only(settings: Settings) -> None:
    """Bring the database to the newest schema; raises `StartError`."""
    async with open_database(settings, share=True):
        log.info("migrated")


async def sample_clock(engine: AsyncEngine) -> None:
    """Learn the database's time, which all that promises a time asks for."""
    async with engine.connect() as connection:
        asked_at = elapsed()
        shown = (await connection.execute(select(func.clock_timestamp()))).scalar_one()
        database_clock.sample(asked_at, shown, elapsed())


async def _migrate_patiently(engine: AsyncEngine) -> None:
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + DATABASE_PATIENCE
    while True:
        try:
            await migrate(engine)
        except Exception as error:
            if isinstance(cause := _cause(error), WRONG_URL):
                raise StartError(f"MAILER_DATABASE_URL: {cause}") from error
            if not is_away(error):
                raise
            if loop.time() >= give_up_at:
                raise StartError(f"the database cannot be reached: {cause}") from error
            log.warning("database_away", at="start")
            await asyncio.sleep(1)
        else:
            return


def _cause(error: Exception) -> BaseException | None:
    return cause_of(error) if isinstance(error, DBAPIError) else error
