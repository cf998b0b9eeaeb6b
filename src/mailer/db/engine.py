"""The way to PostgreSQL: one engine a process, and the errors that mean it is away."""

import asyncio

import asyncpg
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

CONNECT_TIMEOUT = 5.0
"""Seconds to wait for a new connection."""


async def connect(url: str) -> asyncpg.Connection:
    """Open a connection outside the pool, for what must keep one: LISTEN and its locks."""
    return await asyncpg.connect(
        url,
        timeout=CONNECT_TIMEOUT,
        server_settings={
            "application_name": "mailer",
            "timezone": "UTC",
            "jit": "off",
            "plan_cache_mode": "force_custom_plan",
        },
    )


def create_engine(url: str, *, pool_size: int = 10) -> AsyncEngine:
    """Return an engine for `url`, in any form that libpq and asyncpg take.

    Connections are checked before use, so that a restarted server costs no request.
    """
    return create_async_engine(
        "postgresql+asyncpg://",
        async_creator=lambda: connect(url),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=CONNECT_TIMEOUT,
        pool_pre_ping=True,
        hide_parameters=True,  # they hold phones and texts
    )


async def raw(connection: AsyncConnection) -> asyncpg.Connection:
    """Return the asyncpg connection under `connection`, outside any transaction.

    For the hot loop alone, where every statement is a transaction of its own: a batch through it
    costs half of what it does through the dialect.
    """
    pooled = await connection.get_raw_connection()
    driver = pooled.driver_connection
    if not isinstance(driver, asyncpg.Connection):
        raise TypeError(f"expected an asyncpg connection, got {type(driver).__name__}")
    return driver


def cause_of(error: DBAPIError) -> BaseException | None:
    """Return what asyncpg raised, under the dialect's wrapping."""
    return error.orig and (error.orig.__cause__ or error.orig)


def is_away(error: BaseException) -> bool:
    """Whether `error` means that the database cannot be reached now, and not that it refused."""
    if isinstance(error, DBAPIError):
        if error.connection_invalidated or isinstance(error, OperationalError | InterfaceError):
            return True
        cause = cause_of(error)
        return cause is not None and is_away(cause)
    return isinstance(
        error,
        OSError
        | asyncio.TimeoutError
        | PoolTimeoutError
        | asyncpg.PostgresConnectionError
        | asyncpg.InterfaceError
        | asyncpg.AdminShutdownError
        | asyncpg.CrashShutdownError
        | asyncpg.CannotConnectNowError
        | asyncpg.TooManyConnectionsError,
    )
