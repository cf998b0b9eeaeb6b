"""SQL of mailings. The caller owns the transaction."""

from datetime import time
from typing import Any

import msgspec
from sqlalchemy import Row, Select, case, func, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.paging import Position, Slice, fetch_slice
from mailer.db.schema import MESSAGE_STATUSES, ledger, mailing
from mailer.mailing.audience import count, window_of
from mailer.mailing.model import (
    ClientFilter,
    Mailing,
    MailingNotFoundError,
    RunningMailing,
    Status,
)
from mailer.mailing.telling import tell

CREATED = sum((ledger.c[name] for name in MESSAGE_STATUSES[1:]), ledger.c[MESSAGE_STATUSES[0]])
IS_BEGUN = mailing.c.audience_until.is_not(None)
ALIVE = mailing.c.deleted_at.is_(None)


def select_mailings() -> Select[Any]:
    """Return a select of mailings as they are shown.

    Before a mailing begins it has no messages: those it will have count as scheduled.
    """
    scheduled = case((IS_BEGUN, ledger.c.scheduled), else_=mailing.c.clients_count)
    counts = [ledger.c[name].label(f"{name}_messages") for name in MESSAGE_STATUSES[1:]]
    return (
        select(
            mailing,
            CREATED.label("created_messages"),
            scheduled.label("scheduled_messages"),
            *counts,
        )
        .join_from(mailing, ledger)
        .where(ALIVE)
    )


def to_mailing(row: Row[Any]) -> Mailing:
    """Return the mailing that a row of `page` or `get` stands for."""
    values = {name: getattr(row, name) for name in Mailing.__struct_fields__}
    values["client_filter"] = msgspec.convert(row.client_filter, ClientFilter)
    for name in ("send_interval_time_start", "send_interval_time_end"):
        values[name] = _clock(values[name])
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


async def has_begun(connection: AsyncConnection, mailing_id: int) -> bool:
    """Whether a mailing's audience is being or has been taken."""
    statement = select(IS_BEGUN).where(mailing.c.id == mailing_id)
    return bool((await connection.execute(statement)).scalar_one())


async def page(
    connection: AsyncConnection, position: Position, status: Status | None = None
) -> Slice:
    """Return a page of mailings, those with a status if one is given."""
    rows = select_mailings()
    if status is not None:
        rows = rows.where(mailing.c.status == status)
    return await fetch_slice(connection, rows, mailing.c.id, position)


async def mark_deleted(connection: AsyncConnection, mailing_id: int) -> None:
    """Take a mailing out of sight and of sending; raises `MailingNotFoundError`.

    Its messages go later, in chunks.
    """
    statement = update(mailing).where(mailing.c.id == mailing_id, ALIVE)
    marked = await connection.execute(statement.values(deleted_at=func.now()))
    if marked.rowcount == 0:
        raise MailingNotFoundError


# ---- what the dispatcher does with them ------------------------------------------------------


async def running(connection: AsyncConnection) -> list[RunningMailing]:
    """Return the mailings whose messages may be sent now."""
    statement = select(mailing).where(
        mailing.c.status == "running",
        ALIVE,
        mailing.c.replanning.is_(False),
        mailing.c.datetime_end > func.clock_timestamp(),
    )
    return [
        RunningMailing(row.id, row.text, row.datetime_end, window_of(row), row.on_unknown)
        for row in await connection.execute(statement)
    ]


DUE = text("""
    SELECT id, client_filter FROM mailing
    WHERE status = 'scheduled' AND deleted_at IS NULL AND datetime_start <= clock_timestamp()
    ORDER BY datetime_start LIMIT 1 FOR UPDATE SKIP LOCKED""")
# Clients that join from now on have larger ids than the audience's end.
BEGIN = text("""
    UPDATE mailing SET status = 'running', clients_count = :clients_count,
        audience_until = coalesce((SELECT max(id) FROM client), 0), updated_at = now()
    WHERE id = :id AND status = 'scheduled'""")


async def begin_due(connection: AsyncConnection) -> int | None:
    """Begin one mailing whose start has come and return its id, or None when there is none."""
    due = (await connection.execute(DUE)).one_or_none()
    if due is None:
        return None
    clients_count = await count(connection, msgspec.convert(due.client_filter, ClientFilter))
    await connection.execute(BEGIN, {"id": due.id, "clients_count": clients_count})
    await tell(connection)
    return int(due.id)


# Seconds until a mailing begins or ends, by the database's clock.
NEXT_MOMENT = text("""
    SELECT extract(epoch FROM min(moment) - clock_timestamp())::float8 FROM (
        SELECT min(datetime_start) AS moment FROM mailing
        WHERE status = 'scheduled' AND deleted_at IS NULL
        UNION ALL
        SELECT min(datetime_end) FROM mailing
        WHERE status IN ('running', 'paused') AND deleted_at IS NULL
            AND datetime_end > clock_timestamp()
    ) AS moments""")


async def seconds_to_next_moment(connection: AsyncConnection) -> float | None:
    """Return the seconds until a mailing is to begin or to end; None when none is."""
    seconds: float | None = (await connection.execute(NEXT_MOMENT)).scalar_one()
    return seconds


EXPIRE = text("""
    UPDATE message SET status = 'cancelled', reason = 'expired', updated_at = now()
    WHERE status = 'scheduled' AND id IN (
        SELECT message.id FROM message JOIN mailing ON mailing.id = message.mailing_id
        WHERE mailing.status IN ('running', 'paused') AND mailing.deleted_at IS NULL
            AND mailing.datetime_end <= clock_timestamp() AND message.status = 'scheduled'
        LIMIT :chunk FOR UPDATE OF message SKIP LOCKED)""")


async def expire(connection: AsyncConnection, chunk: int) -> int:
    """Cancel up to `chunk` messages of mailings whose end has come; return how many."""
    return (await connection.execute(EXPIRE, {"chunk": chunk})).rowcount


FINISH = text("""
    UPDATE mailing SET status = 'finished', updated_at = now()
    FROM ledger
    WHERE ledger.mailing_id = mailing.id AND ledger.scheduled = 0 AND ledger.sending = 0
        AND mailing.status IN ('running', 'paused') AND mailing.deleted_at IS NULL
        AND mailing.audience_cursor = mailing.audience_until
    RETURNING mailing.id""")


async def finish(connection: AsyncConnection) -> list[int]:
    """Finish the mailings that have nothing left to send and return their ids."""
    return list((await connection.execute(FINISH)).scalars())


PURGE_MESSAGES = text("""
    DELETE FROM message WHERE id IN (
        SELECT message.id FROM message JOIN mailing ON mailing.id = message.mailing_id
        WHERE mailing.deleted_at IS NOT NULL AND message.status <> 'sending'
        LIMIT :chunk FOR UPDATE OF message SKIP LOCKED)""")
PURGE_MAILINGS = text("""
    DELETE FROM mailing WHERE deleted_at IS NOT NULL
        AND NOT EXISTS (SELECT FROM message WHERE mailing_id = mailing.id)""")


async def purge(connection: AsyncConnection, chunk: int) -> int:
    """Delete up to `chunk` messages of deleted mailings, then the mailings; return how many."""
    purged = (await connection.execute(PURGE_MESSAGES, {"chunk": chunk})).rowcount
    if purged < chunk:
        await connection.execute(PURGE_MAILINGS)
    return purged
