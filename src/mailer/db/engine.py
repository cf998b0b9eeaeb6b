"""Connections to PostgreSQL: the engine, dedicated connections, and classification of errors.

An engine is SQLAlchemy's pool of connections, for requests and periodic work. The tasks that claim
messages and record results, the hot loop, each keep a dedicated connection of the driver asyncpg.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import msgspec
from sqlalchemy import ExceptionContext, QueuePool, event
from sqlalchemy.exc import DBAPIError, DisconnectionError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from mailer.clock import elapsed
from mailer.db.url import read_url

# Keys of PostgreSQL's advisory locks, by which one worker at a time does some work.
MIGRATION_LOCK = -1
"""Held while the database is migrated."""
IMPORT_LOCK = -2
"""Held by the one import that is storing its lines."""
COUNTER_MERGE_LOCK = -3
"""Held while deltas of messages are merged into their counters."""
SEGMENT_MERGE_LOCK = -4
"""Held while deltas of clients are merged into the numbers of clients by segment."""
FIELD_MERGE_LOCK = -5
"""Held while deltas of clients are merged into the numbers of clients by field."""
CONTACT_LOCK = -8
"""Held by the one claim that compares its messages with the contact cap: the database function
`record_contacts` takes it."""
FIRST_STOP_LOCK = 1 << 62
"""First key of the locks for stop numbers: the key is FIRST_STOP_LOCK + number. Each worker holds
the lock of the newest stop that it has applied; see `mailer.mailing.stop_number`."""

POOL_TIMEOUT = 5.0
"""Seconds to wait for a free connection of a pool."""
STATEMENT_TIMEOUT = 10.0
"""Seconds that a statement of a request, or of the hot loop, may take."""
IDLE_IN_TRANSACTION_TIMEOUT = "2s"
"""Longest time between two statements of a transaction; then the server ends the session.

A worker that hangs inside a transaction keeps its rows locked. If that is the row of a mailing in
`mailing_counts`, no worker could record results of the mailing.
"""

ROLE_OVERRIDES = {
    "statement_timeout": "0",
    "lock_timeout": "0",
    "default_transaction_isolation": "read committed",
}
"""Settings of the session that replace those of the role or the database (ALTER ROLE ... SET).

Other values would abort a migration midway, or break statements that rely on READ COMMITTED.
"""

NEXT_HOST_ERRORS = (
    OSError,
    TimeoutError,
    asyncpg.CannotConnectNowError,
    asyncpg.TargetServerAttributeNotMatched,
)
"""Errors after which the next host of a URL is tried, as in libpq; a wrong password is not one."""


async def connect(
    url: str, *, statement_timeout: float | None = None, **server_settings: str
) -> asyncpg.Connection:
    """Open a connection to the first host of `url` that works, outside the pool.

    A statement that takes longer than `statement_timeout` seconds fails with TimeoutError, which
    counts as an unavailable database; None sets no limit. `server_settings` are settings of the
    session. Raises the error of a host if no host works.
    """
    target = read_url(url)
    settings = {
        "application_name": "mailer",
        **target.server_settings,
        "timezone": "UTC",
        **ROLE_OVERRIDES,
        "idle_in_transaction_session_timeout": IDLE_IN_TRANSACTION_TIMEOUT,
        "jit": "off",  # compiling would take longer than most of our statements
        "plan_cache_mode": "force_custom_plan",  # plan each execution for its own values
        **server_settings,
    }
    failures: list[Exception] = []
    for attempt in target.attempts:
        try:
            return await asyncpg.connect(
                **attempt,
                timeout=target.timeout,
                command_timeout=statement_timeout,
                server_settings=settings,
            )
        except NEXT_HOST_ERRORS as error:
            failures.append(error)
    # an error that may pass, if there is one: then the caller tries again; the error of a wrong
    # certificate is permanent
    transient = (error for error in failures if not isinstance(error, ssl.SSLCertVerificationError))
    raise next(transient, failures[0])


def create_engine(
    url: str, *, pool_size: int = 10, statement_timeout: float | None = None
) -> AsyncEngine:
    """Return an engine for `url`, in any form that libpq accepts; see `mailer.db.url`.

    It opens at most `pool_size` connections. `statement_timeout` is that of `connect`. A pooled
    connection that the server has closed is replaced before use, so a restart of the server makes
    no later request fail.
    """
    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=lambda: connect(url, statement_timeout=statement_timeout),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT,
        hide_parameters=True,  # errors must not show phones and texts
        json_deserializer=msgspec.json.decode,  # six times as fast for filters of thousands entries
    )
    event.listen(engine.sync_engine, "checkout", _replace_closed_connection)
    event.listen(engine.sync_engine, "handle_error", _keep_pool_on_disconnect)
    return engine


def _replace_closed_connection(connection: Any, *_: object) -> None:  # noqa: ANN401  # the dialect's adapter of asyncpg's
    """Make the pool replace a connection that the server has closed, before it is used.

    The driver knows that the connection is closed. SQLAlchemy's option `pool_pre_ping` would ask
    the server, which costs three more round trips.
    """
    if connection.driver_connection.is_closed():
        raise DisconnectionError


def _keep_pool_on_disconnect(context: ExceptionContext) -> None:
    """Make the pool drop only the connection that was lost.

    By default SQLAlchemy also drops all connections that are older than the loss, by the wall
    clock. If the clock is then set back, every new connection counts as older too, so that each use
    of the pool opens another one. Other lost connections are detected at their next use.
    """
    context.invalidate_pool_on_disconnect = False


def pool_usage(engine: AsyncEngine) -> tuple[int, int]:
    """Return the numbers of an engine's connections that are in use and idle."""
    pool = engine.pool
    return (pool.checkedout(), pool.checkedin()) if isinstance(pool, QueuePool) else (0, 0)


async def asyncpg_connection(connection: AsyncConnection) -> asyncpg.Connection:
    """Return the connection of asyncpg that `connection` uses. It must be outside a transaction.

    It is for what SQLAlchemy lacks, such as COPY.
    """
    pooled = await connection.get_raw_connection()
    driver = pooled.driver_connection
    if not isinstance(driver, asyncpg.Connection):
        raise TypeError(f"expected an asyncpg connection, got {type(driver).__name__}")
    return driver


AnyConnection = AsyncConnection | asyncpg.Connection
"""A connection of SQLAlchemy, or of asyncpg, which is faster."""


async def execute_driver_sql(connection: AnyConnection, sql: str, values: tuple[Any, ...]) -> int:
    """Execute a statement with parameters $1, $2, ... and return the number of rows it wrote."""
    if isinstance(connection, AsyncConnection):
        return (await connection.exec_driver_sql(sql, values)).rowcount
    return affected_rows(await connection.execute(sql, *values))


async def fetch_driver_sql(
    connection: AnyConnection, sql: str, values: tuple[Any, ...]
) -> list[tuple[Any, ...]]:
    """Execute a statement with parameters $1, $2, ... and return its rows."""
    if isinstance(connection, AsyncConnection):
        return [tuple(row) for row in await connection.exec_driver_sql(sql, values)]
    return [tuple(row) for row in await connection.fetch(sql, *values)]


def affected_rows(command_tag: str) -> int:
    """Return the number of rows in PostgreSQL's command tag, such as INSERT 0 5 or UPDATE 5."""
    return int(command_tag.rpartition(" ")[2])


INDEX_ORDER_PLANS = {
    "enable_bitmapscan": "off",
    "enable_seqscan": "off",
    "enable_sort": "off",
    "plan_cache_mode": "force_generic_plan",
}
"""Settings of PostgreSQL that leave its planner only plans which read an index in order.

Such a plan is right for all values, so a statement is not planned again for each execution: that
would take as long as the claim of a hundred messages, with the plans of the triggers."""
SET_INDEX_ORDER_PLANS = "; ".join(f"SET LOCAL {k} = {v}" for k, v in INDEX_ORDER_PLANS.items())
"""Makes these settings those of the current transaction."""
MAX_PLAN_AGE = 1.0
"""Seconds for which a plan is used. One that was made for a small table reads all of it, and would
still do so after the table has grown."""
DISCARD_PLANS = "DISCARD PLANS"


class DedicatedConnection:
    """A connection that one task of the hot loop keeps for itself; it is reopened after a loss.

    Its statements always read an index in order. PostgreSQL chooses plans by its statistics of the
    table. For a table that fills and empties within seconds these are always outdated, and a plan
    with a bitmap scan would read all finished messages.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: asyncpg.Connection | None = None
        self._planned_at = 0.0

    async def get(self) -> asyncpg.Connection:
        """Return the connection, open and outside any transaction."""
        if self._connection is None or self._connection.is_closed():
            self._connection = await connect(
                self._url, statement_timeout=STATEMENT_TIMEOUT, **INDEX_ORDER_PLANS
            )
        if elapsed() - self._planned_at > MAX_PLAN_AGE:
            await self._connection.execute(DISCARD_PLANS)
            self._planned_at = elapsed()
        return self._connection

    def close(self) -> None:
        """Close the connection at once, without waiting for the server."""
        if self._connection is not None:
            self._connection.terminate()


@asynccontextmanager
async def index_order_transaction(engine: AsyncEngine) -> AsyncIterator[asyncpg.Connection]:
    """Begin a transaction on a connection of the pool, with the plans of the hot loop."""
    async with engine.connect() as pooled:
        connection = await asyncpg_connection(pooled)
        async with connection.transaction():
            await connection.execute(SET_INDEX_ORDER_PLANS)
            if elapsed() - pooled.info.get("planned_at", 0.0) > MAX_PLAN_AGE:
                await connection.execute(DISCARD_PLANS)
                pooled.info["planned_at"] = elapsed()
            yield connection


def cause_of(error: DBAPIError) -> BaseException | None:
    """Return the exception of asyncpg that SQLAlchemy has wrapped."""
    return error.orig and (error.orig.__cause__ or error.orig)


def violates(error: IntegrityError, constraint: str) -> bool:
    """Return whether `error` comes from this constraint or unique index."""
    cause = cause_of(error)
    return (
        isinstance(cause, asyncpg.IntegrityConstraintViolationError)
        and cause.constraint_name == constraint
    )


TRANSIENT_ERRORS = (
    OSError,
    asyncio.TimeoutError,
    PoolTimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # may be raised when a connection is lost while it is opened
    asyncpg.PostgresConnectionError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.OperatorInterventionError,  # shutdown, crash, start, or a cancelled statement
    asyncpg.InsufficientResourcesError,  # too many connections, disk full, out of memory
    asyncpg.TransactionRollbackError,  # deadlock, serialization failure
    asyncpg.ReadOnlySQLTransactionError,  # a standby, until the failover is complete
)
"""Errors that may pass: the database cannot do the work now, but may be able to later."""


def is_unavailable(error: BaseException) -> bool:
    """Return whether `error` means that the database cannot work now.

    Otherwise the database has refused the statement, or the error has another origin.
    """
    if isinstance(error, DBAPIError):
        cause = cause_of(error)
        return error.connection_invalidated or (cause is not None and is_unavailable(cause))
    # asyncpg raises an InterfaceError for a lost connection, but also for an argument of the wrong
    # type: then it is a ValueError too
    return is_fatal(error) or (
        isinstance(error, TRANSIENT_ERRORS) and not isinstance(error, ValueError)
    )


DATA_ERRORS = (
    ValueError,  # an argument that asyncpg cannot encode
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,  # a row or a statement that is too large
)
"""Errors caused by the values of a statement, which fails again with the same values."""


def is_data_error(error: DBAPIError) -> bool:
    """Return whether the database refused the values of a statement."""
    return isinstance(cause_of(error), DATA_ERRORS)


def is_rolled_back(error: Exception) -> bool:
    """Return whether the transaction was rolled back, as after a deadlock, and may be repeated."""
    cause = cause_of(error) if isinstance(error, DBAPIError) else error
    return isinstance(cause, asyncpg.TransactionRollbackError)


def is_fatal(error: BaseException) -> bool:
    """Return whether the server ended the session with `error` or refused to open one.

    For example the database does not accept sessions for now, or the password was changed.
    """
    return isinstance(error, asyncpg.PostgresError) and error.severity_en in {"FATAL", "PANIC"}


@asynccontextmanager
async def snapshot(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Yield a read-only connection whose statements all see the database at the same moment.

    Messages and their counts change in one transaction, so that in a snapshot they agree.
    """
    async with engine.connect() as connection:
        await connection.execution_options(
            isolation_level="REPEATABLE READ", postgresql_readonly=True
        )
        yield connection
