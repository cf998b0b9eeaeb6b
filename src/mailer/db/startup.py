"""Opening of the database that the settings name, for `mailer serve` and for other commands.

To open a database means to start it if it is embedded, to wait until it can be used, to check it
and to migrate it.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Self, TypeVar

import msgspec
import structlog
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.clock import database_clock, elapsed, sample_wall_clock
from mailer.db.engine import create_engine
from mailer.db.migrate import migrate
from mailer.db.requirements import WaitReason, classify_error, ensure_suitable
from mailer.db.url import read_url
from mailer.embedded_postgres.cluster import embedded_postgres
from mailer.errors import StartError, UnavailableError
from mailer.settings import Settings

log = structlog.get_logger()

Result = TypeVar("Result")

COMMAND_TIMEOUT = 30.0
"""Seconds that a command waits for the database; `mailer serve` waits without limit."""
RETRY_INTERVAL = 1.0  # seconds
STARTUP_LOG_INTERVAL = 30.0
"""Seconds between two log lines while the database stays unavailable."""


class DatabaseSource(msgspec.Struct, frozen=True):
    """Where the database is: at `url`, or embedded in the folder `data_dir` when `url` is None."""

    url: str | None
    data_dir: Path

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the source that the settings define."""
        return cls(settings.database_url, Path(settings.data_dir))

    def __repr__(self) -> str:  # without the URL, which may hold a password
        return f"DatabaseSource({self.variable})"

    @property
    def variable(self) -> str:
        """The environment variable that defines the source."""
        return "MAILER_DATABASE_URL" if self.url else "MAILER_DATA_DIR"


@contextlib.asynccontextmanager
async def provide_database_url(
    source: DatabaseSource, *, share: bool = False
) -> AsyncIterator[str]:
    """Yield the URL of the database; start the embedded one when the source has no URL.

    The database at a configured URL need not be reachable yet. With `share`, an embedded database
    that another mailer runs is used. Raises `StartError`, and `UnavailableError` when the embedded
    database cannot start now.
    """
    if source.url is not None:
        try:
            read_url(source.url)
        except ValueError as error:
            raise StartError(f"{source.variable}: {error}") from None
        yield source.url
        return
    async with embedded_postgres(source.data_dir, share=share) as url:
        yield url


@contextlib.asynccontextmanager
async def open_database(
    source: DatabaseSource, *, share: bool = False
) -> AsyncIterator[tuple[str, AsyncEngine]]:
    """Yield the URL of the migrated database and an engine for it. For commands.

    `share` is that of `provide_database_url`. Raises `StartError`, and `UnavailableError` when the
    database does not become ready within `COMMAND_TIMEOUT`.
    """
    async with provide_database_url(source, share=share) as url:
        engine = create_engine(url)
        try:
            await prepare_database(engine, source, timeout=COMMAND_TIMEOUT)
            yield url, engine
        finally:
            await engine.dispose()


async def run_on_database(
    source: DatabaseSource, work: Callable[[AsyncEngine], Awaitable[Result]]
) -> Result:
    """Return the result of `work` on the database; a running mailer may use it at the same time."""
    async with open_database(source, share=True) as (_, engine):
        return await work(engine)


async def migrate_only(source: DatabaseSource) -> None:
    """Bring the database to the newest schema; raises `StartError` and `UnavailableError`."""
    async with open_database(source, share=True):
        log.info("migrated")


async def sample_clock(engine: AsyncEngine) -> None:
    """Read the clock of the database, and correct `database_clock` by it.

    mailer plans everything by that clock, not by the clock of this machine.
    """
    async with engine.connect() as connection:
        requested_at = elapsed()
        database_time = (await connection.execute(select(func.clock_timestamp()))).scalar_one()
        database_clock.sample(requested_at, database_time, received_at=elapsed())


async def prepare_database(
    engine: AsyncEngine,
    source: DatabaseSource,
    *,
    timeout: float | None = None,  # noqa: ASYNC109  # no attempt is cancelled: the limit is checked between attempts
    on_wait: Callable[[WaitReason], None] | None = None,
    on_ready: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Wait for the database, check it, migrate it, and sample its clock.

    `on_wait` is called with the reason after each failed attempt. `on_ready` is called at the end;
    it may use the database, and if that fails, everything is tried again. Raises `StartError` for
    an error that does not pass by waiting, and `UnavailableError` after `timeout` seconds; None
    waits without limit.
    """
    now = asyncio.get_running_loop().time
    started_at, logged_at = now(), float("-inf")
    while (reason := await _try_to_prepare(engine, source, on_ready)) is not None:
        if timeout is not None and now() - started_at >= timeout:
            raise UnavailableError(f"the database did not become ready: {reason.detail}")
        if now() - logged_at >= STARTUP_LOG_INTERVAL:
            logged_at = now()
            log.warning("database_unavailable", at="start", reason=reason.detail)
        if on_wait is not None:
            on_wait(reason)
        await engine.dispose()  # a pooled session may be on a standby, or have outdated settings
        await asyncio.sleep(RETRY_INTERVAL)
    await sample_wall_clock()  # the reference by which the first step of the clock is detected


async def _try_to_prepare(
    engine: AsyncEngine, source: DatabaseSource, on_ready: Callable[[], Awaitable[None]] | None
) -> WaitReason | None:
    """Prepare the database once; return None when it is ready, else why to wait for it.

    Raises `StartError` for an error that does not pass by waiting.
    """
    try:
        await ensure_suitable(engine)
        await migrate(engine)
        await sample_clock(engine)
        if on_ready is not None:
            await on_ready()
    except Exception as error:  # an unavailable database raises many kinds of errors
        cause = classify_error(error)
        match cause:
            case WaitReason():
                return cause
            case str():
                raise StartError(f"{source.variable}: {cause}") from error
            case None:
                raise
    return None
