"""SQL that reads the audit log, newest first. The caller owns the transaction."""

from datetime import datetime
from typing import Any, ClassVar

import msgspec
from sqlalchemy import Row, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.access.audit import Target
from mailer.access.model import Kind
from mailer.db.access import audit
from mailer.db.paging import Position, Slice, fetch_slice

MOST_COUNTED = 10_000
"""Entries that are counted; one more stands for "more than that"."""


class Who(msgspec.Struct, frozen=True):
    """Who did something: a key, an account, the command line, or anybody where nobody is asked."""

    kind: Kind
    id: int | None
    name: str
    """What the key or account was called then."""


class Entry(msgspec.Struct, frozen=True):
    """Something that was done, and how the thing was before and is after it.

    Of a change only the fields that changed are told; never a phone, a tag or a secret.
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
    actor: Who
    address: str | None
    """The IP address that it came from; null at the command line."""
    action: str
    target: Target
    before: dict[str, Any] | None
    after: dict[str, Any] | None


def to_entry(row: Row[Any]) -> Entry:
    """Return the entry that a row of `page` stands for."""
    return Entry(
        row.id,
        row.at,
        Who(row.actor_kind, row.actor_id, row.actor),
        row.address,
        row.action,
        Target(row.target_kind, row.target_id),
        row.before,
        row.after,
    )


async def page(connection: AsyncConnection, position: Position, **equal: str | int) -> Slice:
    """Return a page of the entries whose columns equal what is given.

    The log only grows: no more than `MOST_COUNTED` + 1 are counted.
    """
    rows = select(audit).filter_by(**equal)
    counted = rows.with_only_columns(audit.c.id).limit(MOST_COUNTED + 1).subquery()
    count = (await connection.execute(select(func.count()).select_from(counted))).scalar_one()
    return await fetch_slice(connection, rows, audit.c.id, position, count=count)
