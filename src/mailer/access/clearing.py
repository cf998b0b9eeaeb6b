"""Delete expired sessions, pending sign-ins, throttle counters and stored idempotent responses."""

from datetime import timedelta

from sqlalchemy import ColumnElement, Table, delete, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.access import sessions
from mailer.access.idempotency import store as claims
from mailer.access.oidc.store import LONGEST
from mailer.access.throttle import HOME
from mailer.db.access import home, session, sign_in, throttle

FAILURE = timedelta(days=1)
"""For so long after the last one failures are counted."""


async def clear(connection: AsyncConnection, most: int) -> None:
    """Delete sessions that have run out, sign-ins not ended, failures and answers of a day ago.

    And where nobody has signed in for long. Of each at most so many rows.
    """
    now = func.now()
    await _delete(connection, session, ~sessions.is_open(), most)
    # who has not come back from the OpenID provider by now will not
    await _delete(connection, sign_in, sign_in.c.created_at <= now - LONGEST, most)
    await _delete(connection, throttle, throttle.c.updated_at <= now - FAILURE, most)
    await _delete(connection, home, home.c.seen_at <= now - HOME, most)
    await claims.purge(connection, most)


async def _delete(
    connection: AsyncConnection, table: Table, is_over: ColumnElement[bool], most: int
) -> None:
    over = select(table.c.digest).where(is_over).limit(most).with_for_update(skip_locked=True)
    await connection.execute(delete(table).where(table.c.digest.in_(over)))
