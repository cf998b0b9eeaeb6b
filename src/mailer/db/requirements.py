"""Requirements that a database must meet, and classification of errors at the start.

At the start mailer waits when an error may pass, and ends with a message when a setting is wrong.
"""

import ssl

import asyncpg
import msgspec
from alembic.util import CommandError
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.db.engine import cause_of, is_fatal, is_unavailable
from mailer.db.migrate import UnknownSchemaError

MIN_VERSION = 150_000
"""PostgreSQL 15, in the form of PostgreSQL's setting `server_version_num`."""


class UnsuitableDatabaseError(Exception):
    """The database does not meet the requirements."""


class ReadOnlyError(Exception):
    """The database is read-only; mailer waits until it is not."""


PERMANENT_ERRORS = (
    asyncpg.InvalidAuthorizationSpecificationError,  # unknown user, wrong password, pg_hba.conf
    asyncpg.InvalidCatalogNameError,  # no such database
    asyncpg.InvalidSchemaNameError,  # a search_path without a schema to create in
    asyncpg.InsufficientPrivilegeError,
    asyncpg.UndefinedObjectError,  # an unknown server option
    asyncpg.InvalidParameterValueError,
    asyncpg.CantChangeRuntimeParamError,
    asyncpg.ClientConfigurationError,
    ssl.SSLCertVerificationError,
    CommandError,  # of Alembic: its table `alembic_version` has impossible contents
    UnicodeError,  # an invalid host name
    UnsuitableDatabaseError,
    UnknownSchemaError,
)
"""Errors that mean a wrong setting; waiting does not help."""
FOREIGN_SCHEMA_ERRORS = (asyncpg.DuplicateTableError, asyncpg.DuplicateObjectError)
"""Errors of a migration when another program has tables with the same names."""
NO_TLS_TEXT = "rejected SSL upgrade"
"""Part of asyncpg's message for a server without TLS, for which asyncpg has no error class."""

ERROR_SENTENCES: dict[type[Exception], str] = {
    ReadOnlyError: "The database is read-only; mailer waits until it is not.",
    asyncpg.ReadOnlySQLTransactionError: "The database is read-only; mailer waits until it is not.",
    asyncpg.CannotConnectNowError: "The database is starting or stopping; mailer waits for it.",
    asyncpg.TooManyConnectionsError: "The database has no free connection; mailer waits for one.",
    asyncpg.DiskFullError: "The disk of the database is full; mailer waits for free space.",
}
"""Errors that may pass, with sentences for everybody: they name no host, user or database."""
UNREACHABLE = "The database cannot be reached; mailer waits for it."
"""The sentence for any other error that may pass."""


class WaitReason(msgspec.Struct, frozen=True):
    """Why the database cannot be used now; mailer waits and tries again."""

    sentence: str
    """For everybody: it names no host, user or database."""
    detail: str
    """For the log: the error of PostgreSQL or the network, in one line."""


SELECT_PROPERTIES = text("""
    SELECT current_setting('server_version_num')::int AS version,
        current_setting('server_version') AS shown_version,
        current_setting('server_encoding') AS encoding,
        pg_is_in_recovery() OR current_setting('transaction_read_only')::bool AS is_read_only""")


async def ensure_suitable(engine: AsyncEngine) -> None:
    """Check the version and encoding of PostgreSQL, and that the database is writable.

    Raises `UnsuitableDatabaseError` or `ReadOnlyError`.
    """
    async with engine.connect() as connection:
        properties = (await connection.execute(SELECT_PROPERTIES)).one()
    if properties.version < MIN_VERSION:
        raise UnsuitableDatabaseError(
            f"PostgreSQL {properties.shown_version} is too old; use 15 or newer"
        )
    if properties.encoding != "UTF8":
        raise UnsuitableDatabaseError(
            f"this database has the encoding {properties.encoding}, which cannot hold every text;"
            " create it with ENCODING 'UTF8' TEMPLATE template0"
        )
    if properties.is_read_only:
        raise ReadOnlyError("a standby, or default_transaction_read_only is on")


def classify_error(error: Exception) -> WaitReason | str | None:
    """Return what an error means that was raised while the database was opened.

    A `WaitReason` means that the error may pass. A text describes a permanent error, such as a
    wrong setting. None means any other error, which is a bug in mailer.
    """
    cause = (cause_of(error) if isinstance(error, DBAPIError) else None) or error
    detail = " ".join(str(cause).split()) or type(cause).__name__
    if isinstance(cause, FOREIGN_SCHEMA_ERRORS):
        return f"this database has tables that mailer did not create: {detail}"
    if isinstance(cause, asyncpg.PostgresSyntaxError) and is_fatal(cause):
        return detail  # in `options` of the URL: no statement has been sent yet
    if isinstance(cause, PERMANENT_ERRORS) or (
        isinstance(cause, ConnectionError) and NO_TLS_TEXT in detail
    ):
        return detail
    for kind, sentence in ERROR_SENTENCES.items():
        if isinstance(cause, kind):
            return WaitReason(sentence, detail)
    return WaitReason(UNREACHABLE, detail) if is_unavailable(error) else None
