"""SQL of the browser sessions of users. The caller owns the transaction."""

from datetime import datetime, timedelta

import msgspec
from sqlalchemy import ColumnElement, delete, func, insert, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.access.credentials import digest, new_secret
from mailer.access.model import Actor
from mailer.db.tables.access import session
from mailer.roles import SCOPE_BY_ROLE

IDLE_TIMEOUT = timedelta(hours=2)
"""A session ends after this time without requests. Polling by an open page does not count."""
MAX_LIFETIME = timedelta(hours=12)
"""Every session ends after this time."""
MAX_USER_AGENT_LENGTH = 200
"""Characters of the User-Agent header that are stored."""


class Session(msgspec.Struct, frozen=True):
    """A browser in which a user is signed in."""

    digest: bytes
    address: str | None
    user_agent: str | None
    created_at: datetime
    seen_at: datetime


SESSION_COLUMNS = [session.c[name] for name in Session.__struct_fields__]

AUTHENTICATE_SESSION = text("""
    WITH open_session AS (
        SELECT digest, user_id, name, role, seen_at FROM session
        JOIN app_user ON app_user.id = user_id
        WHERE digest = :digest AND disabled_at IS NULL
            AND seen_at > now() - CAST(:idle_timeout AS interval)
            AND session.created_at > now() - CAST(:max_lifetime AS interval)
    ), restart_idle_timeout AS (
        UPDATE session SET seen_at = now() FROM open_session
        WHERE session.digest = open_session.digest AND CAST(:renew AS boolean)
            AND open_session.seen_at < now() - interval '1 minute'
    )
    SELECT user_id, name, role FROM open_session""")
"""Returns the user of an open session, and with `renew` restarts its idle timeout.

`seen_at` is written at most once a minute, because a page sends many requests.
"""

CURRENT_ROLE_SQL = """
    SELECT role FROM session JOIN app_user ON app_user.id = user_id
    WHERE user_id = $1 AND digest = $2 AND disabled_at IS NULL
        AND session.created_at > clock_timestamp() - $3::interval"""
"""Returns the role that a session has at this moment, or no row if it has ended.

The parameters are the user's id, the digest of the session and `MAX_LIFETIME`. The idle timeout is
not checked: the session is in use while one of its requests is running.
"""


async def create(
    connection: AsyncConnection, user_id: int, address: str | None, user_agent: str
) -> str:
    """Create a session of a user; return the secret for its cookie."""
    secret = new_secret()
    await connection.execute(
        insert(session).values(
            digest=digest(secret),
            user_id=user_id,
            address=address,
            user_agent=user_agent[:MAX_USER_AGENT_LENGTH],
        )
    )
    return secret


async def authenticate(
    connection: AsyncConnection, secret: str, address: str | None, *, renew: bool = True
) -> Actor | None:
    """Return the user of an open session; None if the secret is unknown or the session has ended.

    `renew` restarts the idle timeout.
    """
    session_digest = digest(secret)
    parameters = {
        "digest": session_digest,
        "idle_timeout": IDLE_TIMEOUT,
        "max_lifetime": MAX_LIFETIME,
        "renew": renew,
    }
    row = (await connection.execute(AUTHENTICATE_SESSION, parameters)).one_or_none()
    if row is None:
        return None
    scope = SCOPE_BY_ROLE[row.role]
    return Actor("user", row.name, row.user_id, scope, address, session=session_digest)


async def list_of_user(connection: AsyncConnection, user_id: int) -> list[Session]:
    """Return the sessions of a user that have not expired, newest first."""
    statement = select(*SESSION_COLUMNS).where(session.c.user_id == user_id, is_open())
    rows = await connection.execute(statement.order_by(session.c.created_at.desc()))
    return [Session(**row) for row in rows.mappings()]


def is_open() -> ColumnElement[bool]:
    """Return the SQL condition that a row of `session` has not expired."""
    return (session.c.seen_at > func.now() - IDLE_TIMEOUT) & (
        session.c.created_at > func.now() - MAX_LIFETIME
    )


async def end(
    connection: AsyncConnection,
    user_id: int,
    only_digest: bytes | None = None,
    except_digest: bytes | None = None,
) -> int:
    """End sessions of a user and return how many ended.

    With `only_digest` end that session alone; with `except_digest` end all but that one.
    """
    statement = delete(session).where(session.c.user_id == user_id)
    if only_digest is not None:
        statement = statement.where(session.c.digest == only_digest)
    if except_digest is not None:
        statement = statement.where(session.c.digest != except_digest)
    return (await connection.execute(statement)).rowcount
