"""Replan messages after a change of their mailing: its end, its sending window or its filter.

The existing messages get new due times in chunks. `replan_cursor` in the mailing's row is the id of
the last message that is replanned. Nothing is sent meanwhile. Clients whom a new filter also
matches are enqueued afterwards, by `enqueuing.py`.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    DateTime,
    Row,
    String,
    and_,
    any_,
    bindparam,
    literal_column,
    select,
    text,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.tables.client import client
from mailer.db.tables.mailing import OPEN_MAILING
from mailer.db.tables.message import message
from mailer.gateway.routes import JOIN_OPERATOR_ROUTE, ROUTE, keep_routes
from mailer.mailing import stop_number
from mailer.mailing.audience import filter_condition
from mailer.mailing.client_filter import ClientFilter
from mailer.mailing.ending import end_columns
from mailer.mailing.planning import plan_by_zone
from mailer.mailing.skipped import SkippedMailings
from mailer.mailing.store import notify_mailings_changed

REPLAN_BATCH = 2_000
"""Messages that one transaction replans."""

# A mailing whose row another worker has locked is skipped.
NEXT_MAILING_TO_REPLAN = text(f"""
    SELECT id, datetime_start, datetime_end, send_interval_time_start, send_interval_time_end,
        status, client_filter, filter_changed, replan_cursor, replan_stop, route,
        clock_timestamp() AS now
    FROM mailing WHERE {OPEN_MAILING} AND is_replanning AND id <> ALL (:skipped)
    ORDER BY replan_cursor, id LIMIT 1 FOR UPDATE SKIP LOCKED""").bindparams(  # noqa: S608  # no user input
    bindparam("skipped", type_=ARRAY(BigInteger))
)
STORE_STOP_NUMBER = text("UPDATE mailing SET replan_stop = :number WHERE id = :id")
HAS_REQUESTS_IN_FLIGHT = text("SELECT sending > 0 FROM mailing_counts WHERE mailing_id = :id")
# The next chunk: messages that are scheduled, and those that were cancelled because of the end or
# the window. One index scan per status and reason returns messages in order, so that all chunks
# cost the same.
REPLANNABLE = text("""
    (SELECT id FROM message WHERE mailing_id = :mailing_id AND status = 'scheduled'
        AND id > :cursor ORDER BY id LIMIT :chunk)
    UNION ALL
    (SELECT id FROM message WHERE mailing_id = :mailing_id AND status = 'cancelled'
        AND reason = 'expired' AND id > :cursor ORDER BY id LIMIT :chunk)
    UNION ALL
    (SELECT id FROM message WHERE mailing_id = :mailing_id AND status = 'cancelled'
        AND reason = 'no_window' AND id > :cursor ORDER BY id LIMIT :chunk)
    ORDER BY id LIMIT :chunk""")
MOVE_REPLAN_CURSOR = text("UPDATE mailing SET replan_cursor = :cursor WHERE id = :id")
FINISH_REPLAN = text(
    "UPDATE mailing SET is_replanning = false, filter_changed = false WHERE id = :id"
)


def request_columns(*, has_new_filter: bool) -> dict[str, Any]:
    """Return the values of columns that make workers replan the messages of a mailing."""
    columns = {"is_replanning": True, "replan_cursor": 0, "replan_stop": None}
    if has_new_filter:
        # never set to false here: an earlier new filter may not be applied yet
        columns["filter_changed"] = True
    return columns


async def replan_chunk(
    connection: AsyncConnection, chunk: int = REPLAN_BATCH, skipped: SkippedMailings | None = None
) -> int | None:
    """Replan up to `chunk` messages of one changed mailing; return the mailing's id.

    Sending for the mailing stops first, so that no message is sent to a client whom a new filter
    excludes. A mailing for which a worker still sends is left for later. A mailing whose data
    cannot be read is added to `skipped`. Return None when nothing was replanned.
    """
    skipped = SkippedMailings() if skipped is None else skipped
    await keep_routes(connection)
    mailing = await _lock_next_mailing(connection, skipped)
    if mailing is not None:
        with skipped.on_error(mailing.id):
            async with connection.begin_nested():
                await _replan_chunk_of(connection, mailing, chunk)
            return int(mailing.id)
    return None


async def _lock_next_mailing(
    connection: AsyncConnection, skipped: SkippedMailings
) -> Row[Any] | None:
    """Lock and return the next mailing to replan for which no worker sends; None without one."""
    excluded_ids = list(skipped)
    while True:
        rows = await connection.execute(NEXT_MAILING_TO_REPLAN, {"skipped": excluded_ids})
        mailing = rows.one_or_none()
        if mailing is None or await _is_stopped(connection, mailing):
            return mailing
        excluded_ids.append(mailing.id)


async def _is_stopped(connection: AsyncConnection, mailing: Row[Any]) -> bool:
    """Return whether no worker sends for a mailing, so that none will before it is replanned.

    The first call after the change draws a stop number and stores it in the row. A worker that has
    applied this stop has read `is_replanning`, and claims no messages of the mailing.
    """
    number = mailing.replan_stop
    if number is None:
        number = await stop_number.next_number(connection)
        await connection.execute(STORE_STOP_NUMBER, {"id": mailing.id, "number": number})
    if not await stop_number.is_applied(connection, number):
        return False
    # read after all workers have stopped, so that earlier claims are included
    rows = await connection.execute(HAS_REQUESTS_IN_FLIGHT, {"id": mailing.id})
    return not rows.scalar_one()


async def _replan_chunk_of(connection: AsyncConnection, mailing: Row[Any], chunk: int) -> None:
    """Replan the next messages of a locked mailing; when none is left, let it send again."""
    parameters = {"mailing_id": mailing.id, "cursor": mailing.replan_cursor, "chunk": chunk}
    # messages of a cancelled mailing are ended by `finishing.end_scheduled_messages`
    is_cancelled = mailing.status == "cancelled"
    ids = [] if is_cancelled else list(await connection.scalars(REPLANNABLE, parameters))
    if ids:
        await _replan_or_exclude(connection, mailing, ids)
    if len(ids) == chunk:
        await connection.execute(MOVE_REPLAN_CURSOR, {"id": mailing.id, "cursor": ids[-1]})
    else:
        await connection.execute(FINISH_REPLAN, {"id": mailing.id})
        await notify_mailings_changed(connection)  # its messages may be claimed again


async def _replan_or_exclude(
    connection: AsyncConnection, mailing: Row[Any], message_ids: list[int]
) -> None:
    """Replan messages of a mailing; end those whose clients a new filter does not match."""
    is_member = client.c.deleted_at.is_(None)
    if mailing.filter_changed:
        client_filter = msgspec.convert(mailing.client_filter, ClientFilter)
        is_member = and_(is_member, filter_condition(client_filter)).is_(True)  # null is false
    messages = await connection.execute(
        select(message.c.id, client.c.time_zone, is_member.label("is_member"))
        .join_from(message, client, client.c.id == message.c.client_id)
        .where(_has_id(message_ids))
        .order_by(message.c.id)
        .with_for_update(of=message)  # ordered as in other bulk changes, against deadlocks
    )
    rows = messages.all()
    await replan_messages(connection, mailing, [row for row in rows if row.is_member])
    excluded_ids = [row.id for row in rows if not row.is_member]
    if mailing.filter_changed and excluded_ids:
        values: dict[str, ColumnElement[Any]] = {
            name: literal_column(sql) for name, sql in end_columns("'filter_changed'").items()
        }
        is_excluded = and_(_has_id(excluded_ids), message.c.status == "scheduled")
        await connection.execute(update(message).where(is_excluded).values(values))


def _has_id(message_ids: list[int]) -> ColumnElement[bool]:
    return message.c.id == any_(bindparam("ids", message_ids, type_=ARRAY(BigInteger)))


HAS_OPTED_OUT = """EXISTS (
    SELECT FROM client JOIN mailing ON mailing.id = {message}.mailing_id
    WHERE client.id = {message}.client_id AND opted_out_at IS NOT NULL AND purpose = 'marketing')"""
"""SQL for whether the client of a message has opted out, and its mailing respects that. `{message}`
is the name of the row of `message`."""
# Applies the plans to messages that are scheduled, or were cancelled because of the end or the
# window. `existing` is the message itself: LATERAL cannot refer to the table that is updated.
# Exceptions:
# - A message that was tried stays scheduled. Only the mailing's end itself expires it.
# - The pause of such a message after its failed attempt is not shortened.
# - A message that stays cancelled is not written, because its outcome belongs to the day on which
#   it happened. For the same reason an unchanged message is not written.
# - A cancelled message stays so if its client has opted out meanwhile. A scheduled one is cancelled
#   by its next claim.
# Gateways may have changed since a message was cancelled, so its route is determined again.
REPLAN = text(f"""
    UPDATE message SET updated_at = now(),
        due_at = replanned.due_at, status = replanned.status, reason = replanned.reason,
        route = CASE message.status WHEN 'scheduled' THEN message.route
                ELSE {ROUTE.format(mailing_route="(:mailing_route)::int")} END
    FROM unnest(:ids, :due_ats, :statuses, :reasons) AS planned (id, due_at, status, reason)
        JOIN message AS existing ON existing.id = planned.id
        {JOIN_OPERATOR_ROUTE.format(operator_code="existing.operator_code")}
        CROSS JOIN LATERAL (SELECT existing.status = 'scheduled'
            AND (existing.reason IS NOT NULL OR existing.unknown_reason IS NOT NULL)
            ) AS tried (is_tried)
        CROSS JOIN LATERAL (SELECT
            CASE WHEN is_tried THEN greatest(existing.retry_at, planned.due_at)
                 ELSE planned.due_at END,
            CASE WHEN is_tried THEN 'scheduled' ELSE planned.status END,
            CASE WHEN is_tried THEN existing.reason ELSE planned.reason END
        ) AS replanned (due_at, status, reason)
    WHERE message.id = planned.id AND CASE message.status
        WHEN 'scheduled' THEN message.due_at <> replanned.due_at
            OR replanned.status <> 'scheduled'
        WHEN 'cancelled' THEN replanned.status = 'scheduled'
            AND message.reason IN ('expired', 'no_window')
            AND NOT {HAS_OPTED_OUT.format(message="existing")} END""").bindparams(  # noqa: S608  # no user input
    bindparam("ids", type_=ARRAY(BigInteger)),
    bindparam("due_ats", type_=ARRAY(DateTime(timezone=True))),
    *(bindparam(name, type_=ARRAY(String)) for name in ("statuses", "reasons")),
)


async def replan_messages(
    connection: AsyncConnection, mailing: Row[Any], messages: Sequence[Row[Any]]
) -> None:
    """Replan locked messages of a mailing: rows with the columns `id` and `time_zone`.

    The caller's transaction has called `keep_routes`.
    """
    if not messages:
        return
    plans = plan_by_zone(mailing, {row.time_zone for row in messages})
    planned = [plans[row.time_zone] for row in messages]
    await connection.execute(
        REPLAN,
        {
            "ids": [row.id for row in messages],
            "due_ats": [plan.due_at for plan in planned],
            "statuses": [plan.status for plan in planned],
            "reasons": [plan.reason for plan in planned],
            "mailing_route": mailing.route,
        },
    )
