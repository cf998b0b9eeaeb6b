"""SQL that reads the audit log. The caller owns the transaction."""

from datetime import datetime
from typing import Any, ClassVar

import msgspec
from sqlalchemy import Row, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.access.audit import Target
from mailer.access.model import ActorKind
from mailer.db.paging import Cursor, RowPage, fetch_page
from mailer.db.tables.access import audit

MAX_COUNTED_ENTRIES = 10_000
"""Entries that a page counts exactly; if there are more, its count is one more than this."""


class AuditedActor(msgspec.Struct, frozen=True):
    """The author of an action.

    An API key, a user, the command line, mailer itself (`system`), or an anonymous request: one
    without authentication, such as a failed sign-in.
    """

    kind: ActorKind
    id: int | None
    name: str
    """The name of the key or the user at that time."""


class AuditEntry(msgspec.Struct, frozen=True):
    """An action, and fields of its target before and after it.

    For a change only the changed fields are included. Of a phone only the last two digits are
    shown (`***67`), and of a tag nothing (`***`). Secrets are never included.
    """

    EXAMPLE: ClassVar[dict[str, Any]] = {
        "id": 7,
        "at": "2030-01-15T08:00:00Z",
        "actor": {"kind": "key", "id": 3, "name": "shop"},
        "address": "192.0.2.7",
        "action": "mailing_paused",
        "target": {"kind": "mailing", "id": 12},
        "before": {"status": "running"},
        "after": {"status": "paused"},
    }

    id: int
    at: datetime
    actor: AuditedActor
    address: str | None
    """The IP address of the request; null for the command line."""
    action: str
    target: Target
    before: dict[str, Any] | None
    after: dict[str, Any] | None


def to_entry(row: Row[Any]) -> AuditEntry:
    """Convert a row of `page` to an entry."""
    return AuditEntry(
        row.id,
        row.at,
        AuditedActor(row.actor_kind, row.actor_id, row.actor),
        row.address,
        row.action,
        Target(row.target_kind, row.target_id),
        row.before,
        row.after,
    )


async def page(
    connection: AsyncConnection, position: Cursor, **column_values: str | int
) -> RowPage:
    """Return a page of the entries whose columns equal `column_values`, newest first.

    At most `MAX_COUNTED_ENTRIES` + 1 entries are counted: the log only grows, and counting a long
    one would be slow.
    """
    rows = select(audit).filter_by(**column_values)
    counted_ids = rows.with_only_columns(audit.c.id).limit(MAX_COUNTED_ENTRIES + 1).subquery()
    count = (await connection.execute(select(func.count()).select_from(counted_ids))).scalar_one()
    return await fetch_page(connection, rows, audit.c.id, position, count=count)
