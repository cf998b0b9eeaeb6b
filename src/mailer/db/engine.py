"""The way to PostgreSQL: one engine a process, and the errors that mean it is away."""

import asyncio
import ssl
from typing import Any

import asyncpg
import msgspec
from sqlalchemy import ExceptionContext, QueuePool, event
from sqlalchemy.exc import DBAPIError, DisconnectionError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from mailer.db.url import read_url

POOL_TIMEOUT = 5.0
"""Seconds to wait for a connection of a pool."""
PATIENCE = 10.0
"""Seconds that a statement of a request, or of the hot loop, may take."""
IDLE_IN_TRANSACTION = "2s"
"""How long a transaction may wait for its next statement. A process that stands still within one
holds its rows, and with a mailing's ledger all who send for it: the server then ends it."""


NO_LIMITS_OF_THE_ROLE = {
    "statement_timeout": "0",
    "lock_timeout": "0",
    "default_transaction_isolation": "read committed",
}
"""What a role or a database may be set to elsewhere: it would end a migration half-way, or refuse
what the statements here rest on."""


NEXT_HOST = (
    OSError,
    TimeoutError,
    asyncpg.CannotConnectNowError,
    asyncpg.TargetServerAttributeNotMatched,
)
"""What makes libpq try the next host of a URL; a wrong password does not."""


async def connect(
    url: str, *, patience: float | None = None, **server_settings: str
) -> asyncpg.Connection:
    """Open a connection to the first host of `url` that works, outside the pool.

    A statement may take `patience` seconds, then it counts as the database being away; None is
    for work that takes as long as it takes.
    """
    target = read_url(url)
    settings = {
        "application_name": "mailer",
        **target.server_settings,
        "timezone": "UTC",
        **NO_LIMITS_OF_THE_ROLE,
        "idle_in_transaction_session_timeout": IDLE_IN_TRANSACTION,
        "jit": "off",
        "plan_cache_mode": "force_custom_plan",
        **server_settings,
    }
    failures: list[Exception] = []
    for attempt in target.attempts:
        try:
            return await asyncpg.connect(
                **attempt,
                timeout=target.timeout,
                command_timeout=patience,
                server_settings=settings,
            )
        except NEXT_HOST as error:
            failures.append(error)
    # an error that may pass comes before a certificate that stays wrong
    passing = (each for each in failures if not isinstance(each, ssl.SSLCertVerificationError))
    raise next(passing, failures[0])


def create_engine(url: str, *, pool_size: int = 10, patience: float | None = None) -> AsyncEngine:
    """Return an engine for `url`, in any form that libpq takes: see `mailer.db.url`.

    A statement may take `patience` seconds, as with `connect`. Connections that the server has
    closed are opened anew before use, so that one that was restarted costs no request.
    """
    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=lambda: connect(url, patience=patience),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT,
        hide_parameters=True,  # they hold phones and texts
        json_deserializer=msgspec.json.decode,  # filters of thousands of entries: six times as fast
    )
    event.listen(engine.sync_engine, "checkout", _refuse_closed)
    event.listen(engine.sync_engine, "handle_error", _keep_other_connections)
    return engine


def _refuse_closed(connection: Any, *_: object) -> None:  # noqa: ANN401  # the dialect's, over asyncpg's
    """Have the pool open a new connection in the place of one that the server has closed.

    That is known here, without asking the server, which would cost three more round trips.
    """
    if connection.driver_connection.is_closed():
        raise DisconnectionError


def _keep_other_connections(context: ExceptionContext) -> None:
    """Have the pool drop only the connection that was lost.

    To drop all that are older SQLAlchemy compares times of the wall clock: once that is set back,
    every connection counts as older, and each use of the pool opens a new one. Connections that the
    server has closed are found at their next use.
    """
    context.invalidate_pool_on_disconnect = False


def pool_usage(engine: AsyncEngine) -> tuple[int, int]:
    """Return how many connections of an engine are in use, and how many are idle."""
    pool = engine.pool
    return (pool.checkedout(), pool.checkedin()) if isinstance(pool, QueuePool) else (0, 0)


async def raw(connection: AsyncConnection) -> asyncpg.Connection:
    """Return the asyncpg connection under `connection`, outside any transaction: for COPY."""
    pooled = await connection.get_raw_connection()
    driver = pooled.driver_connection
    if not isinstance(driver, asyncpg.Connection):
        raise TypeError(f"expected an asyncpg connection, got {type(driver).__name__}")
    return driver


IN_INDEX_ORDER = {"enable_bitmapscan": "off", "enable_seqscan": "off", "enable_sort": "off"}


class OwnConnection:
    """A connection that one task of the hot loop keeps, opened anew when it was lost.

    Its plans read an index in its order, whatever the statistics say: they are always late for a
    table that fills and empties within seconds, and a bitmap walks over all that was done before.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: asyncpg.Connection | None = None

    async def get(self) -> asyncpg.Connection:
        """Return the connection, open and outside any transaction."""
        if self._connection is None or self._connection.is_closed():
            self._connection = await connect(self._url, patience=PATIENCE, **IN_INDEX_ORDER)
        return self._connection

    def close(self) -> None:
        """Let go of it, at once."""
        if self._connection is not None:
            self._connection.terminate()


def cause_of(error: DBAPIError) -> BaseException | None:
    """Return what asyncpg raised, under the dialect's wrapping."""
    return error.orig and (error.orig.__cause__ or error.orig)


def violates(error: IntegrityError, constraint: str) -> bool:
    """Whether it is this constraint, or unique index, that `error` comes from."""
    cause = cause_of(error)
    return (
        isinstance(cause, asyncpg.IntegrityConstraintViolationError)
        and cause.constraint_name == constraint
    )


PASSING = (
    OSError,
    asyncio.TimeoutError,
    PoolTimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # what a connection that is cut early may raise
    asyncpg.PostgresConnectionError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.OperatorInterventionError,  # shut down, crashed, starting, or told to cancel
    asyncpg.InsufficientResourcesError,  # too many connections, disk full, out of memory
    asyncpg.TransactionRollbackError,  # deadlock, serialization
    asyncpg.ReadOnlySQLTransactionError,  # a standby, until the failover is through
)
"""What says that the database cannot do it now, and may do it when asked again."""


def is_away(error: BaseException) -> bool:
    """Whether `error` means that the database cannot do its work now, and not that it refused."""
    if isinstance(error, DBAPIError):
        cause = cause_of(error)
        return error.connection_invalidated or (cause is not None and is_away(cause))
    # asyncpg's word for an argument of the wrong type is an InterfaceError too
    return is_fatal(error) or (isinstance(error, PASSING) and not isinstance(error, ValueError))


ABOUT_DATA = (
    ValueError,  # asyncpg's word for an argument that it cannot encode
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,  # a row or a statement that is too large
)
"""Errors that come from the values of a statement: it fails again with the same values."""


def is_about_data(error: DBAPIError) -> bool:
    """Return whether the database refused the values of a statement."""
    return isinstance(cause_of(error), ABOUT_DATA)


def is_fatal(error: BaseException) -> bool:
    """Whether the server ended the session with `error`, or let none begin.

    The database may be closed to sessions for now, or the password be changed.
    """
    return isinstance(error, asyncpg.PostgresError) and error.severity_en in {"FATAL", "PANIC"}
