"""What a database must be for mailer, and which of its faults may pass."""

import ssl

import asyncpg
import msgspec
from alembic.util import CommandError
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.db.engine import cause_of, is_away, is_fatal
from mailer.db.migrate import UnknownSchemaError

MIN_VERSION = 150_000
"""As `server_version_num` has it."""


class UnfitError(Exception):
    """The database cannot be used."""


class ReadOnlyError(Exception):
    """The database is read-only; mailer waits until it is not."""


WRONG = (
    asyncpg.InvalidAuthorizationSpecificationError,  # unknown user, wrong password, pg_hba.conf
    asyncpg.InvalidCatalogNameError,  # no such database
    asyncpg.InvalidSchemaNameError,  # a search_path without a schema to create in
    asyncpg.InsufficientPrivilegeError,
    asyncpg.UndefinedObjectError,  # an option that the server does not know
    asyncpg.InvalidParameterValueError,
    asyncpg.CantChangeRuntimeParamError,
    asyncpg.ClientConfigurationError,
    ssl.SSLCertVerificationError,
    CommandError,  # of Alembic, whose own table says what cannot be
    UnicodeError,  # of a host that can be no name
    UnfitError,
    UnknownSchemaError,
)
"""What says that the setting is wrong: waiting does not change it."""
FOREIGN = (asyncpg.DuplicateTableError, asyncpg.DuplicateObjectError)
"""What a migration raises where another program has tables of the same names."""
NO_TLS = "rejected SSL upgrade"
"""Words of asyncpg, which has no error of its own for a server without TLS."""


SENTENCES: dict[type[Exception], str] = {
    ReadOnlyError: "The database is read-only; mailer waits until it is not.",
    asyncpg.ReadOnlySQLTransactionError: "The database is read-only; mailer waits until it is not.",
    asyncpg.CannotConnectNowError: "The database is starting or stopping; mailer waits for it.",
    asyncpg.TooManyConnectionsError: "The database has no connection free; mailer waits for one.",
    asyncpg.DiskFullError: "The disk of the database is full; mailer waits for room.",
}
"""What may pass, in words for everybody."""
UNREACHABLE = "The database cannot be reached; mailer waits for it."


class WaitReason(msgspec.Struct, frozen=True):
    """Why the database cannot be used now, and may be later."""

    sentence: str
    """For everybody: names no host, user or database."""
    detail: str
    """For the log: what PostgreSQL or the network said, in one line."""


PROPERTIES = text("""
    SELECT current_setting('server_version_num')::int AS version,
        current_setting('server_version') AS shown_version,
        current_setting('server_encoding') AS encoding,
        pg_is_in_recovery() OR current_setting('transaction_read_only')::bool AS is_read_only""")


async def ensure_fit(engine: AsyncEngine) -> None:
    """Raise `UnfitError` or `ReadOnlyError` for a database that cannot hold what mailer writes."""
    async with engine.connect() as connection:
        found = (await connection.execute(PROPERTIES)).one()
    if found.version < MIN_VERSION:
        raise UnfitError(f"PostgreSQL {found.shown_version} is too old; use 15 or newer")
    if found.encoding != "UTF8":
        raise UnfitError(
            f"this database has the encoding {found.encoding}, which cannot hold every text;"
            " create it with ENCODING 'UTF8' TEMPLATE template0"
        )
    if found.is_read_only:
        raise ReadOnlyError("a standby, or default_transaction_read_only is on")


def explain(error: Exception) -> WaitReason | str | None:
    """Return what an error while the database is opened means.

    A reason to wait; or a sentence on a fault that waiting does not change; or None, for an error
    of our own.
    """
    cause = (cause_of(error) if isinstance(error, DBAPIError) else None) or error
    detail = " ".join(str(cause).split()) or type(cause).__name__
    if isinstance(cause, FOREIGN):
        return f"this database has tables that mailer did not create: {detail}"
    if isinstance(cause, asyncpg.PostgresSyntaxError) and is_fatal(cause):
        return detail  # in the options of the URL: no statement has been sent yet
    if isinstance(cause, WRONG) or (isinstance(cause, ConnectionError) and NO_TLS in detail):
        return detail
    for kind, sentence in SENTENCES.items():
        if isinstance(cause, kind):
            return WaitReason(sentence, detail)
    return WaitReason(UNREACHABLE, detail) if is_away(error) else None
