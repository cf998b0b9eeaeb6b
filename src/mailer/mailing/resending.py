"""Sending again what was given up, chunk by chunk: how far it is stands in the mailing's row."""

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
    select,
    text,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.schema import client, message
from mailer.mailing.audience import matches, plan, window_of
from mailer.mailing.model import ClientFilter
from mailer.mailing.passing_over import PassedOver
from mailer.mailing.telling import tell

# The one that is least far first, so that a small one does not wait for a large one.
NEXT = text("""
    SELECT id, datetime_start, datetime_end, send_interval_time_start, send_interval_time_end,
        client_filter, retry_before, retry_cursor, clock_timestamp() AS now
    FROM mailing
    WHERE retry_before IS NOT NULL AND NOT is_settled AND deleted_at IS NULL
        AND id <> ALL (:passed_over)
    ORDER BY retry_cursor, retry_before LIMIT 1 FOR UPDATE SKIP LOCKED""").bindparams(
    bindparam("passed_over", type_=ARRAY(BigInteger))
)
# Each status by the index that has its messages in order: a chunk costs the same wherever it is.
GIVEN_UP = text("""
    (SELECT id FROM message WHERE mailing_id = :mailing_id AND status = 'undelivered'
        AND id > :cursor ORDER BY id LIMIT :chunk)
    UNION ALL
    (SELECT id FROM message WHERE mailing_id = :mailing_id AND status = 'unknown'
        AND id > :cursor ORDER BY id LIMIT :chunk)
    ORDER BY id LIMIT :chunk""")
SCHEDULE = text("""
    UPDATE message SET status = 'scheduled', reason = NULL, due_at = planned.due_at,
        attempts = 0, last_failure = NULL, retry_at = NULL, sent_at = NULL, updated_at = now()
    FROM unnest(:ids, :due_ats) AS planned (id, due_at)
    WHERE message.id = planned.id AND message.status IN ('undelivered', 'unknown')""").bindparams(
    bindparam("ids", type_=ARRAY(BigInteger)),
    bindparam("due_ats", type_=ARRAY(DateTime(timezone=True))),
)
ADVANCE = text("UPDATE mailing SET retry_cursor = :cursor WHERE id = :id")
DONE = text("UPDATE mailing SET retry_before = NULL WHERE id = :id")


async def resend_chunk(
    connection: AsyncConnection, chunk: int, passed_over: PassedOver | None = None
) -> bool:
    """Schedule up to `chunk` messages of a mailing again; False when none was gone through.

    What cannot be sent before the end stays what it is. A mailing whose messages cannot be
    scheduled is passed over from now on.
    """
    passed_over = PassedOver() if passed_over is None else passed_over
    found = await connection.execute(NEXT, {"passed_over": list(passed_over)})
    mailing = found.one_or_none()
    if mailing is not None:
        with passed_over.on_error(mailing.id):
            async with connection.begin_nested():
                await _resend_chunk(connection, mailing, chunk)
            return True
    return False


async def _resend_chunk(connection: AsyncConnection, mailing: Row[Any], chunk: int) -> None:
    looked_at = {"mailing_id": mailing.id, "cursor": mailing.retry_cursor, "chunk": chunk}
    ids = list(await connection.scalars(GIVEN_UP, looked_at))
    given_up = (await connection.execute(_wanted(mailing, ids))).all()
    window, start, end = window_of(mailing), mailing.datetime_start, mailing.datetime_end
    zones = {row.time_zone for row in given_up}
    plans = {zone: plan(zone, window, start, end, mailing.now) for zone in zones}
    due = [row for row in given_up if plans[row.time_zone].status == "scheduled"]
    if due:
        due_ats = [plans[row.time_zone].due_at for row in due]
        await connection.execute(SCHEDULE, {"ids": [row.id for row in due], "due_ats": due_ats})
    if len(ids) == chunk:
        await connection.execute(ADVANCE, {"id": mailing.id, "cursor": ids[-1]})
    else:
        await connection.execute(DONE, {"id": mailing.id})
    await tell(connection)


def _wanted(mailing: Row[Any], ids: list[int]) -> Executable:
    """Return a select of those that were given up before the retry, and their time zones.

    Only those of clients who still belong to the audience. They are locked in one order, as by
    everybody who changes many.
    """
    return (
        select(message.c.id, client.c.time_zone)
        .join_from(message, client, client.c.id == message.c.client_id)
        .where(
            message.c.id == any_(bindparam("ids", ids, type_=ARRAY(BigInteger))),
            message.c.status.in_(("undelivered", "unknown")),
            message.c.updated_at <= mailing.retry_before,
            client.c.deleted_at.is_(None),
            matches(msgspec.convert(mailing.client_filter, ClientFilter)),
        )
        .order_by(message.c.id)
        .with_for_update(of=message)
    )
