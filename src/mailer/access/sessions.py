"""SQL of sessions: how people stay signed in. The caller owns the transaction."""

from datetime import datetime, timedelta

import msgspec
from sqlalchemy import ColumnElement, delete, func, insert, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.access.model import SCOPE_OF, Actor
from mailer.access.secret import digest, new_secret
from mailer.db.access import session

IDLE = timedelta(hours=2)
"""After so long without a request, but for those that open pages send by themselves, it ends."""
LONGEST = timedelta(hours=12)
"""After so long every session ends."""
BROWSER = 200
"""Characters kept of what a browser says it is."""


class Session(msgspec.Struct, frozen=True):
    """A browser that somebody is signed in with."""

    digest: bytes
    address: str | None
    browser: str | None
    created_at: datetime
    seen_at: datetime


SHOWN = [session.c[name] for name in Session.__struct_fields__]
# How long ago it was seen is written once a minute at most: a page asks many times.
USE = text("""
    WITH found AS (
        SELECT digest, account_id, name, role, seen_at FROM session
        JOIN account ON account.id = account_id
        WHERE digest = :digest AND disabled_at IS NULL
            AND seen_at > now() - CAST(:idle AS interval)
            AND session.created_at > now() - CAST(:longest AS interval)
    ), seen AS (
        UPDATE session SET seen_at = now() FROM found
        WHERE session.digest = found.digest AND CAST(:renew AS boolean)
            AND found.seen_at < now() - interval '1 minute'
    )
    SELECT account_id, name, role FROM found""")


STILL = """
    SELECT role FROM session JOIN account ON account.id = account_id
    WHERE account_id = $1 AND digest = $2 AND disabled_at IS NULL
        AND session.created_at > clock_timestamp() - $3::interval"""
"""What a session opens at this moment; while its own request goes on it is not idle."""


async def begin(
    connection: AsyncConnection, account_id: int, address: str | None, browser: str
) -> str:
    """Begin a session of an account; return what its cookie shows."""
    secret = new_secret()
    await connection.execute(
        insert(session).values(
            digest=digest(secret),
            account_id=account_id,
            address=address,
            browser=browser[:BROWSER],
        )
    )
    return secret


async def use(
    connection: AsyncConnection, secret: str, address: str | None, *, renew: bool = True
) -> Actor | None:
    """Return who is signed in; None when it opens nothing, or nothing any more.

    `renew` is whether it counts as a sign of life, which puts off the end of an idle session.
    """
    known = digest(secret)
    given = {"digest": known, "idle": IDLE, "longest": LONGEST, "renew": renew}
    row = (await connection.execute(USE, given)).one_or_none()
    if row is None:
        return None
    scope = SCOPE_OF[row.role]
    return Actor("account", row.name, row.account_id, scope, address, session=known)


async def of_account(connection: AsyncConnection, account_id: int) -> list[Session]:
    """Return the open sessions of an account, the newest first."""
    statement = select(*SHOWN).where(session.c.account_id == account_id, is_open())
    found = await connection.execute(statement.order_by(session.c.created_at.desc()))
    return [Session(**row) for row in found.mappings()]


def is_open() -> ColumnElement[bool]:
    """Whether a session has not run out."""
    return (session.c.seen_at > func.now() - IDLE) & (session.c.created_at > func.now() - LONGEST)


async def end(
    connection: AsyncConnection,
    account_id: int,
    known: bytes | None = None,
    but: bytes | None = None,
) -> int:
    """End one session of an account, or all of them `but` one; return how many they were."""
    statement = delete(session).where(session.c.account_id == account_id)
    if known is not None:
        statement = statement.where(session.c.digest == known)
    if but is not None:
        statement = statement.where(session.c.digest != but)
    return (await connection.execute(statement)).rowcount
