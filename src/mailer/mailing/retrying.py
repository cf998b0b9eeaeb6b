"""Retry a mailing at a user's request: schedule its undelivered and unknown messages again.

This is done in chunks. In the mailing's row, `retry_before` is the time of the request, null when
there is none, and `retry_cursor` is the id of the last message that was considered.
"""

from typing import Any

import msgspec
from sqlalchemy import (
    ARRAY,
    BigInteger,
    DateTime,
    Executable,
    Row,
    any_,
    bindparam,
    func,
    select,
    text,
    true,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.sql import one_of
from mailer.db.tables.client import client
from mailer.db.tables.mailing import OPEN_MAILING
from mailer.db.tables.message import message
from mailer.gateway.routes import JOIN_OPERATOR_ROUTE, ROUTE, keep_routes
from mailer.mailing.audience import filter_condition
from mailer.mailing.client_filter import ClientFilter
from mailer.mailing.planning import plan_by_zone
from mailer.mailing.skipped import SkippedMailings
from mailer.mailing.store import notify_mailings_changed
from mailer.statuses import RETRYABLE

# The mailing with the lowest cursor comes first, so that a small one does not wait for a large one.
# A mailing whose row another worker has locked is skipped.
NEXT_MAILING_TO_RETRY = text(f"""
    SELECT id, datetime_start, datetime_end, send_interval_time_start, send_interval_time_end,
        client_filter, retry_before, retry_cursor, route,
        purpose = 'marketing' AS respects_opt_outs, clock_timestamp() AS now
    FROM mailing
    WHERE retry_before IS NOT NULL AND {OPEN_MAILING} AND id <> ALL (:skipped)
    ORDER BY retry_cursor, retry_before LIMIT 1 FOR UPDATE SKIP LOCKED""").bindparams(  # noqa: S608  # no user input
    bindparam("skipped", type_=ARRAY(BigInteger))
)
# One index scan per status returns messages in order, so that all chunks cost the same.
FIND_BY_STATUS = """
    (SELECT id FROM message WHERE mailing_id = :mailing_id AND status = '{status}'
        AND id > :cursor ORDER BY id LIMIT :chunk)"""
FIND_RETRYABLE = text(
    " UNION ALL ".join(FIND_BY_STATUS.format(status=status) for status in RETRYABLE)
    + " ORDER BY id LIMIT :chunk"
)
# Gateways may have changed since the message ended, so its route is determined again; but a message
# with delivery unknown stays with its gateway.
SCHEDULE_AGAIN = text(f"""
    UPDATE message SET status = 'scheduled', reason = NULL, due_at = planned.due_at,
        attempts = 0, last_failure = NULL, retry_at = NULL, sent_at = NULL, updated_at = now(),
        route = CASE WHEN message.unknown_reason IS NULL
                     THEN {ROUTE.format(mailing_route="(:mailing_route)::int")}
                     ELSE message.route END
    FROM unnest(:ids, :due_ats) AS planned (id, due_at)
        JOIN message AS existing ON existing.id = planned.id
        {JOIN_OPERATOR_ROUTE.format(operator_code="existing.operator_code")}
    WHERE message.id = planned.id AND {one_of("message.status", RETRYABLE)}""").bindparams(  # noqa: S608  # no user input
    bindparam("ids", type_=ARRAY(BigInteger)),
    bindparam("due_ats", type_=ARRAY(DateTime(timezone=True))),
)
MOVE_RETRY_CURSOR = text("UPDATE mailing SET retry_cursor = :cursor WHERE id = :id")
FINISH_RETRY = text("UPDATE mailing SET retry_before = NULL WHERE id = :id")


def request_columns() -> dict[str, Any]:
    """Return the values of columns that make workers retry the messages of a mailing."""
    return {
        "retry_before": func.clock_timestamp(),
        "retry_cursor": 0,
        "is_closed": False,
        "is_settled": False,
    }


async def retry_chunk(
    connection: AsyncConnection, chunk: int, skipped: SkippedMailings | None = None
) -> bool:
    """Schedule up to `chunk` messages of one mailing again; return False when no mailing needs it.

    Messages that cannot be sent before the mailing's end keep their status. A mailing whose data
    cannot be read is added to `skipped`.
    """
    skipped = SkippedMailings() if skipped is None else skipped
    await keep_routes(connection)
    rows = await connection.execute(NEXT_MAILING_TO_RETRY, {"skipped": list(skipped)})
    mailing = rows.one_or_none()
    if mailing is not None:
        with skipped.on_error(mailing.id):
            async with connection.begin_nested():
                await _retry_chunk_of(connection, mailing, chunk)
            return True
    return False


async def _retry_chunk_of(connection: AsyncConnection, mailing: Row[Any], chunk: int) -> None:
    """Schedule the next messages of a locked mailing; when none is left, end the retry."""
    parameters = {"mailing_id": mailing.id, "cursor": mailing.retry_cursor, "chunk": chunk}
    ids = list(await connection.scalars(FIND_RETRYABLE, parameters))
    messages = (await connection.execute(_select_to_retry(mailing, ids))).all()
    plans = plan_by_zone(mailing, {row.time_zone for row in messages})
    sendable = [row for row in messages if plans[row.time_zone].status == "scheduled"]
    if sendable:
        parameters = {
            "ids": [row.id for row in sendable],
            "due_ats": [plans[row.time_zone].due_at for row in sendable],
            "mailing_route": mailing.route,
        }
        await connection.execute(SCHEDULE_AGAIN, parameters)
    if len(ids) == chunk:
        await connection.execute(MOVE_RETRY_CURSOR, {"id": mailing.id, "cursor": ids[-1]})
    else:
        await connection.execute(FINISH_RETRY, {"id": mailing.id})
    await notify_mailings_changed(connection)


def _select_to_retry(mailing: Row[Any], ids: list[int]) -> Executable:
    """Return a select of the ids and time zones of messages to retry, which it locks.

    Of the messages `ids`, these are the ones that ended before the retry was requested and whose
    clients still belong to the audience and have not opted out. They are locked in the order of
    their ids, as in other bulk changes, to avoid deadlocks.
    """
    return (
        select(message.c.id, client.c.time_zone)
        .join_from(message, client, client.c.id == message.c.client_id)
        .where(
            message.c.id == any_(bindparam("ids", ids, type_=ARRAY(BigInteger))),
            message.c.status.in_(RETRYABLE),
            message.c.updated_at <= mailing.retry_before,
            client.c.deleted_at.is_(None),
            client.c.opted_out_at.is_(None) if mailing.respects_opt_outs else true(),
            filter_condition(msgspec.convert(mailing.client_filter, ClientFilter)),
        )
        .order_by(message.c.id)
        .with_for_update(of=message)
    )
