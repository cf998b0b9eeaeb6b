"""The database errors that mean that the database is unavailable."""

import asyncpg
import pytest
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from mailer.db.engine import is_unavailable

WRONG_ARGUMENT = type("DataError", (asyncpg.InterfaceError, ValueError), {})("expected an int")
"""An InterfaceError as asyncpg raises it for wrong arguments; a retry would not help."""


def wrapped(error: Exception) -> DBAPIError:
    """Wrap an error as SQLAlchemy's asyncpg dialect does."""
    translated = Exception("translated")
    translated.__cause__ = error
    return DBAPIError("SELECT", None, translated)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(),
        FileNotFoundError(),  # the Unix socket of a server that is down
        TimeoutError(),
        PoolTimeoutError(),
        asyncpg.AdminShutdownError(),
        asyncpg.CannotConnectNowError(),
        asyncpg.ConnectionDoesNotExistError(),
        asyncpg.DeadlockDetectedError(),
        asyncpg.DiskFullError(),
        asyncpg.IdleInTransactionSessionTimeoutError(),
        asyncpg.InterfaceError("closed"),
        asyncpg.InternalClientError(),
        asyncpg.ReadOnlySQLTransactionError(),
        asyncpg.SerializationError(),
        asyncpg.TooManyConnectionsError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_error_that_a_retry_may_solve_means_unavailable(error: Exception) -> None:
    assert is_unavailable(error)
    assert is_unavailable(wrapped(error))


@pytest.mark.parametrize(
    "error",
    [
        ValueError(),
        asyncpg.CheckViolationError(),
        asyncpg.UniqueViolationError(),
        asyncpg.UndefinedTableError(),
        WRONG_ARGUMENT,
    ],
    ids=lambda error: type(error).__name__,
)
def test_error_that_a_retry_would_not_solve_does_not_mean_unavailable(error: Exception) -> None:
    assert not is_unavailable(error)
