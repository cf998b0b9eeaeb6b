"""SQL of mailings as people see and change them. The caller owns the transaction."""

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
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.paging import Position, Slice, fetch_slice
from mailer.db.schema import MESSAGE_STATUSES, ledger, mailing, origin, settled
from mailer.gateway.breaker import Hold
from mailer.mailing.model import Mailing, MailingNotFoundError, Status, kept_filter
from mailer.mailing.search import count as count_found
from mailer.mailing.search import find

COUNTED = sum((ledger.c[name] for name in MESSAGE_STATUSES[1:]), ledger.c[MESSAGE_STATUSES[0]])
CREATED = case((mailing.c.retired_at.is_(None), COUNTED), else_=0)
"""The messages that there are: of a mailing past its retention only the counts are kept."""
IS_BEGUN = mailing.c.audience_until.is_not(None)
ALIVE = mailing.c.deleted_at.is_(None)
LIVE = and_(not_(mailing.c.is_settled), ALIVE)
"""What an index holds, in the words that PostgreSQL knows it by: `IS false` reads every mailing."""
SETTLED = {"finished": settled.c.finished, "cancelled": settled.c.cancelled_mailings}


def select_mailings() -> Select[Any]:
    """Return a select of mailings as they are shown.

    Before a mailing begins it has no messages: those it will have count as scheduled, and as
    cancelled when it will not begin.
    """
    yet = case((mailing.c.status == "cancelled", "cancelled"), else_="scheduled")
    counts = [
        case((IS_BEGUN, ledger.c[name]), (yet == name, mailing.c.clients_count), else_=0).label(
            f"{name}_messages"
        )
        for name in MESSAGE_STATUSES
    ]
    held_since = select(func.max(origin.c.held_since)).scalar_subquery().label("held_since")
    return (
        select(mailing, CREATED.label("created_messages"), *counts, held_since)
        .join_from(mailing, ledger)
        .where(ALIVE)
    )


def to_mailing(row: Row[Any]) -> Mailing:
    """Return the mailing that a row of `page` or `get` stands for."""
    values = {name: getattr(row, name) for name in Mailing.__struct_fields__ if name != "held"}
    values["client_filter"] = kept_filter(row.client_filter)
    for name in ("send_interval_time_start", "send_interval_time_end"):
        values[name] = _clock(values[name])
    if row.held_since is not None and row.status == "running":
        values["held"] = Hold(row.held_since, "restored")
    return Mailing(**values)


def _clock(of_day: time | None) -> str | None:
    if of_day is None:
        return None
    return of_day.isoformat("seconds" if of_day.second else "minutes")


async def add(connection: AsyncConnection, values: dict[str, Any], clients_count: int) -> int:
    """Add a mailing with an empty ledger and return its id."""
    statement = insert(mailing).values(**_columns(values), clients_count=clients_count)
    added = await connection.execute(statement.returning(mailing.c.id))
    mailing_id: int = added.scalar_one()
    await connection.execute(insert(ledger).values(mailing_id=mailing_id))
    return mailing_id


async def change(connection: AsyncConnection, mailing_id: int, values: dict[str, Any]) -> None:
    """Change columns of a mailing."""
    await connection.execute(
        update(mailing)
        .where(mailing.c.id == mailing_id)
        .values(**_columns(values), updated_at=func.now())
    )


def _columns(values: dict[str, Any]) -> dict[str, Any]:
    columns = dict(values)
    if "client_filter" in columns:
        columns["client_filter"] = msgspec.to_builtins(columns["client_filter"])
    for name in ("send_interval_time_start", "send_interval_time_end"):
        if columns.get(name) is not None:
            columns[name] = time.fromisoformat(columns[name])
    return columns


async def get(connection: AsyncConnection, mailing_id: int, *, lock: bool = False) -> Mailing:
    """Return a mailing; raises `MailingNotFoundError`. `lock` keeps it so until the commit."""
    statement = select_mailings().where(mailing.c.id == mailing_id)
    if lock:
        statement = statement.with_for_update(of=mailing)
    row = (await connection.execute(statement)).one_or_none()
    if row is None:
        raise MailingNotFoundError
    return to_mailing(row)


async def of_ids(connection: AsyncConnection, mailing_ids: Sequence[int]) -> list[Mailing]:
    """Return those of these mailings that there are, newest first."""
    is_asked = mailing.c.id == any_(literal(list(mailing_ids), ARRAY(BigInteger)))
    rows = await connection.execute(select_mailings().where(is_asked).order_by(mailing.c.id.desc()))
    return [to_mailing(row) for row in rows]


async def has_begun(connection: AsyncConnection, mailing_id: int) -> bool:
    """Whether a mailing's audience is being or has been taken."""
    statement = select(IS_BEGUN).where(mailing.c.id == mailing_id)
    return bool((await connection.execute(statement)).scalar_one())


async def page(
    connection: AsyncConnection,
    position: Position,
    status: Status | None = None,
    search: str | None = None,
) -> Slice:
    """Return a page of mailings, those with a status and those a search finds if they are given.

    How a search finds, and how far what it finds is counted, says `mailer.mailing.search`.
    """
    rows = select_mailings()
    if status is not None:
        rows = rows.where(mailing.c.status == status)
    if search is not None:
        found = await find(connection, search, status, position)
        rows = rows.where(mailing.c.id == any_(literal(found, ARRAY(BigInteger))))
    known = await count(connection, status, search)
    return await fetch_slice(connection, rows, mailing.c.id, position, count=known)


async def count(
    connection: AsyncConnection, status: Status | None = None, search: str | None = None
) -> int:
    """Count mailings, those with a status and those a search finds if they are given.

    What is settled is counted already; of a search no more than `search.MOST_COUNTED` + 1 are.
    """
    if search is not None:
        return await count_found(connection, search, status)
    live = select(func.count()).where(LIVE)
    done = sum(SETTLED.values(), literal(0))
    if status is not None:
        live = live.where(mailing.c.status == status)
        done = SETTLED.get(status, literal(0))
    statement = select(live.scalar_subquery() + done).select_from(settled)
    return int((await connection.execute(statement)).scalar_one())


async def next_to_start(connection: AsyncConnection, limit: int) -> list[Mailing]:
    """Return up to `limit` mailings that have not begun, the first to start first."""
    statement = select_mailings().where(LIVE, not_(IS_BEGUN), mailing.c.status == "scheduled")
    in_order = statement.order_by(mailing.c.datetime_start, mailing.c.id).limit(limit)
    return [to_mailing(row) for row in await connection.execute(in_order)]


async def mark_deleted(connection: AsyncConnection, mailing_id: int) -> None:
    """Take a mailing out of sight and of sending; raises `MailingNotFoundError`.

    Its messages go later, in chunks.
    """
    statement = update(mailing).where(mailing.c.id == mailing_id, ALIVE)
    marked = await connection.execute(statement.values(deleted_at=func.now()))
    if marked.rowcount == 0:
        raise MailingNotFoundError
