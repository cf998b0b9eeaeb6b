"""SQL that reads and writes mailings as users see them. The caller owns the transaction.

The work of the dispatcher has SQL of its own: `starting.py`, `enqueuing.py`, `finishing.py` etc.
"""

from collections.abc import Sequence
from datetime import time
from typing import Any

import msgspec
from sqlalchemy import (
    ARRAY,
    BigInteger,
    Row,
    Select,
    and_,
    any_,
    case,
    func,
    insert,
    literal,
    not_,
    select,
    text,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.tables.mailing import mailing, mailing_counts
from mailer.db.tables.operation import origin
from mailer.mailing.client_filter import stored_filter
from mailer.mailing.errors import MailingNotFoundError
from mailer.mailing.model import Hold, Mailing
from mailer.mailing.text_template import parse, stored_field_names
from mailer.statuses import MESSAGE_STATUSES
from mailer.text import fold_label

MESSAGES_TOTAL = sum(
    (mailing_counts.c[name] for name in MESSAGE_STATUSES[1:]), mailing_counts.c[MESSAGE_STATUSES[0]]
)
CREATED_MESSAGES = case((mailing.c.purge_started_at.is_(None), MESSAGES_TOTAL), else_=0)
"""Messages that exist; 0 once retention has begun, when only counts are kept."""
IS_STARTED = mailing.c.audience_until.is_not(None)
"""Whether workers have started the mailing; `audience_until` is null before."""

# Conditions of partial indexes, spelled as there: with `IS false` PostgreSQL would scan all rows.
NOT_DELETED = mailing.c.deleted_at.is_(None)
IS_OPEN = and_(not_(mailing.c.is_closed), NOT_DELETED)
UNSETTLED = and_(not_(mailing.c.is_settled), NOT_DELETED)


def select_mailings() -> Select[Any]:
    """Return a select of the mailings that are not deleted, with their messages counted by status.

    Before its start a mailing has no messages. Its clients then count as scheduled messages, or as
    cancelled ones if it is cancelled. `to_mailing` reads a row of this select.
    """
    status_before_start = case((mailing.c.status == "cancelled", "cancelled"), else_="scheduled")
    counts = [
        case(
            (IS_STARTED, mailing_counts.c[name]),
            (status_before_start == name, mailing.c.clients_count),
            else_=0,
        ).label(f"{name}_messages")
        for name in MESSAGE_STATUSES
    ]
    # `max`, because a scalar subquery may return only one row
    held_since = select(func.max(origin.c.held_since)).scalar_subquery().label("held_since")
    return (
        select(mailing, CREATED_MESSAGES.label("created_messages"), *counts, held_since)
        .join_from(mailing, mailing_counts)
        .where(NOT_DELETED)
    )


def to_mailing(row: Row[Any]) -> Mailing:
    """Return the mailing in a row of `select_mailings`."""
    computed = {"held", "placeholders"}
    values = {
        name: getattr(row, name) for name in Mailing.__struct_fields__ if name not in computed
    }
    values["placeholders"] = stored_field_names(row.template)
    values["client_filter"] = stored_filter(row.client_filter)
    for name in ("send_interval_time_start", "send_interval_time_end"):
        values[name] = _format_time(values[name])
    if row.held_since is not None and row.status == "running":
        values["held"] = Hold(row.held_since, "restored")
    return Mailing(**values)


def _format_time(local: time | None) -> str | None:
    """Return a time of day in the API's format: `09:00`, or `09:00:30` when it has seconds."""
    if local is None:
        return None
    return local.isoformat("seconds" if local.second else "minutes")


async def create(connection: AsyncConnection, values: dict[str, Any], clients_count: int) -> int:
    """Create a mailing, and its row of counts with zeros; return the mailing's id.

    `values` are fields of the API; `clients_count` is the size of the audience now.
    """
    statement = insert(mailing).values(**_columns(values), clients_count=clients_count)
    created = await connection.execute(statement.returning(mailing.c.id))
    mailing_id: int = created.scalar_one()
    await connection.execute(insert(mailing_counts).values(mailing_id=mailing_id))
    return mailing_id


async def change(connection: AsyncConnection, mailing_id: int, values: dict[str, Any]) -> None:
    """Change a mailing; `values` are fields of the API, or other columns of `mailing`."""
    await connection.execute(
        update(mailing)
        .where(mailing.c.id == mailing_id)
        .values(**_columns(values), updated_at=func.now())
    )


def _columns(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of API fields as values of their columns; other values stay as they are."""
    columns = dict(values)
    if "labels" in columns:
        columns["label_keys"] = [fold_label(label) for label in columns["labels"]]
    if "text" in columns:
        columns["template"] = parse(columns["text"]).stored
    if "client_filter" in columns:
        columns["client_filter"] = msgspec.to_builtins(columns["client_filter"])
    for name in ("send_interval_time_start", "send_interval_time_end"):
        if columns.get(name) is not None:
            columns[name] = time.fromisoformat(columns[name])
    return columns


async def get(connection: AsyncConnection, mailing_id: int, *, lock: bool = False) -> Mailing:
    """Return a mailing; raises `MailingNotFoundError`. `lock` locks its row until the commit."""
    statement = select_mailings().where(mailing.c.id == mailing_id)
    if lock:
        statement = statement.with_for_update(of=mailing)
    row = (await connection.execute(statement)).one_or_none()
    if row is None:
        raise MailingNotFoundError
    return to_mailing(row)


async def get_many(connection: AsyncConnection, mailing_ids: Sequence[int]) -> list[Mailing]:
    """Return the existing mailings with these ids, newest first."""
    is_requested = mailing.c.id == any_(literal(list(mailing_ids), ARRAY(BigInteger)))
    rows = await connection.execute(
        select_mailings().where(is_requested).order_by(mailing.c.id.desc())
    )
    return [to_mailing(row) for row in rows]


async def is_started(connection: AsyncConnection, mailing_id: int) -> bool:
    """Return whether workers have started a mailing: the enqueuing of its audience has begun."""
    statement = select(IS_STARTED).where(mailing.c.id == mailing_id)
    return bool((await connection.execute(statement)).scalar_one())


async def list_upcoming(connection: AsyncConnection, limit: int) -> list[Mailing]:
    """Return up to `limit` mailings that have not started, the earliest start first."""
    statement = select_mailings().where(IS_OPEN, not_(IS_STARTED), mailing.c.status == "scheduled")
    ordered = statement.order_by(mailing.c.datetime_start, mailing.c.id).limit(limit)
    return [to_mailing(row) for row in await connection.execute(ordered)]


async def mark_deleted(connection: AsyncConnection, mailing_id: int) -> None:
    """Mark a mailing as deleted: it is hidden and not sent. Raises `MailingNotFoundError`.

    Its messages are deleted later, in chunks.
    """
    statement = update(mailing).where(mailing.c.id == mailing_id, NOT_DELETED)
    marked = await connection.execute(statement.values(deleted_at=func.now()))
    if marked.rowcount == 0:
        raise MailingNotFoundError


MAILINGS_CHANGED = "mailings_changed"
"""Name of the PostgreSQL notification that some mailing has changed."""


async def notify_mailings_changed(connection: AsyncConnection) -> None:
    """Notify all workers that a mailing has changed; PostgreSQL delivers it after the commit."""
    await connection.execute(text("SELECT pg_notify(:name, '')"), {"name": MAILINGS_CHANGED})
