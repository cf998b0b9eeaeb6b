"""Delete expired sessions, pending sign-ins, throttle counters and stored idempotent responses."""

from datetime import timedelta

from sqlalchemy import ColumnElement, Table, delete, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.access import sessions
from mailer.access.login_throttle import KNOWN_NETWORK_LIFETIME
from mailer.db.tables.access import known_network, login_throttle, oidc_sign_in, session
from mailer.idempotency import store as idempotent_requests
from mailer.oidc.store import SIGN_IN_TIMEOUT

THROTTLE_RETENTION = timedelta(days=1)
"""The counter of failed sign-ins is deleted this long after the last failure."""


async def delete_expired(connection: AsyncConnection, limit: int) -> None:
    """Delete expired rows, at most `limit` of each table.

    The tables are those of sessions, pending sign-ins, throttle counters, known networks and
    idempotent requests.
    """
    now = func.now()
    await _delete(connection, session, ~sessions.is_open(), limit)
    await _delete(
        connection, oidc_sign_in, oidc_sign_in.c.created_at <= now - SIGN_IN_TIMEOUT, limit
    )
    await _delete(
        connection, login_throttle, login_throttle.c.updated_at <= now - THROTTLE_RETENTION, limit
    )
    await _delete(
        connection, known_network, known_network.c.seen_at <= now - KNOWN_NETWORK_LIFETIME, limit
    )
    await idempotent_requests.purge(connection, limit)


async def _delete(
    connection: AsyncConnection, table: Table, is_expired: ColumnElement[bool], limit: int
) -> None:
    """Delete up to `limit` expired rows of a table whose key is the column `digest`."""
    # rows that another worker is deleting are skipped, so that no worker waits
    expired_digests = (
        select(table.c.digest).where(is_expired).limit(limit).with_for_update(skip_locked=True)
    )
    await connection.execute(delete(table).where(table.c.digest.in_(expired_digests)))
