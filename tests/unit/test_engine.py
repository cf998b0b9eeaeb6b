import asyncpg
import pytest
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from mailer.db.engine import is_away

WRONG_ARGUMENT = type("DataError", (asyncpg.InterfaceError, ValueError), {})("expected an int")
"""As asyncpg makes it: an InterfaceError that no other server would help."""


def wrapped(error: Exception) -> DBAPIError:
    """As SQLAlchemy's dialect does it."""
    translated = Exception("translated")
    translated.__cause__ = error
    return DBAPIError("SELECT", None, translated)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(),
        FileNotFoundError(),  # the socket of a server that is down
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
def test_what_may_work_when_asked_again_is_the_database_being_away(error: Exception) -> None:
    assert is_away(error)
    assert is_away(wrapped(error))


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
def test_a_refusal_is_not(error: Exception) -> None:
    assert not is_away(error)
