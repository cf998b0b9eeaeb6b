"""Opens the database that the settings name, as every command and the service itself do."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import structlog
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.clock import database_clock, elapsed, sample_wall_clock
from mailer.db.embedded import embedded_postgres
from mailer.db.engine import create_engine
from mailer.db.fitness import WaitReason, ensure_fit, explain
from mailer.db.migrate import migrate
from mailer.db.url import read_url
from mailer.errors import StartError, UnavailableError
from mailer.settings import Settings

log = structlog.get_logger()

Result = TypeVar("Result")

COMMAND_TIMEOUT = 30.0
"""Seconds that a command waits for a database; the service waits without end."""
RETRY_INTERVAL = 1.0  # seconds
LOG_REPEAT_INTERVAL = 30.0
"""Seconds after which a database that is still away is worth another line."""


@contextlib.asynccontextmanager
async def located_database(settings: Settings, *, share: bool = False) -> AsyncIterator[str]:
    """Give the URL of the database, which need not answer yet; embedded if none is set.

    With `share` an embedded one that another mailer runs will do. Raises `StartError`, and
    `UnavailableError` when the embedded one cannot start now.
    """
    if settings.database_url is not None:
        try:
            read_url(settings.database_url)
        except ValueError as error:
            raise StartError(f"MAILER_DATABASE_URL: {error}") from None
        yield settings.database_url
        return
    async with embedded_postgres(Path(settings.data_dir), share=share) as url:
        yield url


@contextlib.asynccontextmanager
async def open_database(
    settings: Settings, *, share: bool = False
) -> AsyncIterator[tuple[str, AsyncEngine]]:
    """Give the URL of the database and an engine on it, migrated; for a command.

    `share` is that of `located_database`. Raises `StartError`, and `UnavailableError` when the
    database does not answer within COMMAND_TIMEOUT.
    """
    async with located_database(settings, share=share) as url:
        engine = create_engine(url)
        try:
            await prepare_database(engine, settings, timeout=COMMAND_TIMEOUT)
            yield url, engine
        finally:
            await engine.dispose()


async def on_database(
    settings: Settings, work: Callable[[AsyncEngine], Awaitable[Result]]
) -> Result:
    """Do something on the database, which a running mailer may use meanwhile."""
    async with open_database(settings, share=True) as (_, engine):
        return await work(engine)


async def migrate_only(settings: Settings) -> None:
    """Bring the database to the newest schema; raises `StartError` and `UnavailableError`."""
    async with open_database(settings, share=True):
        log.info("migrated")


async def sample_clock(engine: AsyncEngine) -> None:
    """Learn the database's time, which all that promises a time asks for."""
    async with engine.connect() as connection:
        asked_at = elapsed()
        shown = (await connection.execute(select(func.clock_timestamp()))).scalar_one()
        database_clock.sample(asked_at, shown, elapsed())


async def prepare_database(
    engine: AsyncEngine,
    settings: Settings,
    *,
    timeout: float | None = None,  # noqa: ASYNC109  # the time between attempts is ours
    on_wait: Callable[[WaitReason], None] | None = None,
    on_ready: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Wait for the database, check it, bring it to the newest schema and learn its time.

    `on_ready` is called at the end; when the database fails in it, all is tried again. `on_wait` is
    called after each attempt that failed, with the reason. Raises `StartError` for what waiting
    does not change, and `UnavailableError` after `timeout` seconds; None waits without end.
    """
    setting = "MAILER_DATABASE_URL" if settings.database_url else "MAILER_DATA_DIR"
    now = asyncio.get_running_loop().time
    began_at, logged_at = now(), float("-inf")
    while (reason := await _try_to_prepare(engine, setting, on_ready)) is not None:
        if timeout is not None and now() - began_at >= timeout:
            raise UnavailableError(f"the database did not become ready: {reason.detail}")
        if now() - logged_at >= LOG_REPEAT_INTERVAL:
            logged_at = now()
            log.warning("database_away", at="start", reason=reason.detail)
        if on_wait is not None:
            on_wait(reason)
        await engine.dispose()  # a kept session may be on a standby, or have outdated settings
        await asyncio.sleep(RETRY_INTERVAL)
    await sample_wall_clock()  # so that its first step is noticed, too


async def _try_to_prepare(
    engine: AsyncEngine, setting: str, on_ready: Callable[[], Awaitable[None]] | None
) -> WaitReason | None:
    """Return None when the database is ready, else why it may be later; raises `StartError`."""
    try:
        await ensure_fit(engine)
        await migrate(engine)
        await sample_clock(engine)
        if on_ready is not None:
            await on_ready()
    except Exception as error:
        verdict = explain(error)
        match verdict:
            case WaitReason():
                return verdict
            case str():
                raise StartError(f"{setting}: {verdict}") from error
            case None:
                raise
    return None
