"""Replan messages after a change of their mailing or of their client's time zone.

After a change of a mailing, its existing messages are replanned in chunks. The progress is stored
in the mailing's row as `replan_cursor`. Replanning adds no clients: clients whom a new filter also
matches are enqueued afterwards, as at the start of a mailing.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
import structlog
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
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.db.schema import FINISHED_IN_WINDOW, OPEN_MAILING, client, message
from mailer.db.sql import add_up
from mailer.mailing import stop_number
from mailer.mailing.audience import Plan, filter_condition, plan, window_of
from mailer.mailing.client_filter import ClientFilter
from mailer.mailing.skipped import SkippedMailings
from mailer.mailing.store import notify_mailings_changed
from mailer.message.ending import end_columns
from mailer.statuses import OPEN

log = structlog.get_logger()

REPLAN_BATCH = 2_000
"""Messages that one transaction replans."""

# ---- after a change of the mailing ----------------------------------------------------------

# A mailing whose row another worker has locked is skipped.
NEXT_MAILING_TO_REPLAN = text(f"""
    SELECT id, datetime_start, datetime_end, send_interval_time_start, send_interval_time_end,
        status, client_filter, filter_changed, replan_cursor, replan_stop, clock_timestamp() AS now
    FROM mailing WHERE {OPEN_MAILING} AND is_replanning AND id <> ALL (:skipped)
    ORDER BY replan_cursor, id LIMIT 1 FOR UPDATE SKIP LOCKED""").bindparams(  # noqa: S608  # no user input
    bindparam("skipped", type_=ARRAY(BigInteger))
)
SET_STOP = text("UPDATE mailing SET replan_stop = :number WHERE id = :id")
IS_SENDING = text("SELECT sending > 0 FROM mailing_counts WHERE mailing_id = :id")
# One index scan per status and reason returns messages in order, so that all chunks cost the same.
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


async def replan_chunk(
    connection: AsyncConnection, chunk: int = REPLAN_BATCH, skipped: SkippedMailings | None = None
) -> int | None:
    """Replan up to `chunk` messages of a changed mailing; return its id.

    Sending stops during replanning, so that excluded messages are not sent. Mailings for which a
    worker still sends are left for later. A mailing whose data cannot be read is skipped from now
    on. Return None when nothing was replanned.
    """
    skipped = SkippedMailings() if skipped is None else skipped
    mailing = await _lock_next_mailing(connection, skipped)
    if mailing is not None:
        with skipped.on_error(mailing.id):
            async with connection.begin_nested():
                await _replan_chunk(connection, mailing, chunk)
            return int(mailing.id)
    return None


async def _replan_chunk(connection: AsyncConnection, mailing: Row[Any], chunk: int) -> None:
    values = {"mailing_id": mailing.id, "cursor": mailing.replan_cursor, "chunk": chunk}
    # messages of a cancelled mailing are ended by `finishing.end_scheduled_messages`
    is_cancelled = mailing.status == "cancelled"
    ids = [] if is_cancelled else list(await connection.scalars(REPLANNABLE, values))
    if ids:
        await _replan(connection, mailing, ids)
    if len(ids) == chunk:
        await connection.execute(MOVE_REPLAN_CURSOR, {"id": mailing.id, "cursor": ids[-1]})
    else:
        await connection.execute(FINISH_REPLAN, {"id": mailing.id})
        await notify_mailings_changed(connection)  # its messages may be claimed again


async def _lock_next_mailing(
    connection: AsyncConnection, skipped: SkippedMailings
) -> Row[Any] | None:
    """Return the next mailing to replan for which no worker sends."""
    excluded = list(skipped)
    while True:
        rows = await connection.execute(NEXT_MAILING_TO_REPLAN, {"skipped": excluded})
        mailing = rows.one_or_none()
        if mailing is None or await _is_stopped(connection, mailing):
            return mailing
        excluded.append(mailing.id)


async def _is_stopped(connection: AsyncConnection, mailing: Row[Any]) -> bool:
    """Return whether no worker sends for a mailing, or can before it is replanned.

    The change of the mailing is committed, so its stop number may be drawn. The number stays in the
    row until the next change.
    """
    number = mailing.replan_stop
    if number is None:
        number = await stop_number.next_number(connection)
        await connection.execute(SET_STOP, {"id": mailing.id, "number": number})
    if not await stop_number.is_applied(connection, number):
        return False
    # read after all workers have stopped, so that earlier claims are included
    return not (await connection.execute(IS_SENDING, {"id": mailing.id})).scalar_one()


async def _replan(connection: AsyncConnection, mailing: Row[Any], ids: list[int]) -> None:
    """Replan messages of a mailing; end those whose clients a new filter does not match."""
    is_in_chunk = message.c.id == any_(bindparam("ids", ids, type_=ARRAY(BigInteger)))
    is_member = client.c.deleted_at.is_(None)
    if mailing.filter_changed:
        client_filter = msgspec.convert(mailing.client_filter, ClientFilter)
        is_member = and_(is_member, filter_condition(client_filter)).is_(True)  # null is false
    messages = await connection.execute(
        select(message.c.id, client.c.time_zone, is_member.label("is_member"))
        .join_from(message, client, client.c.id == message.c.client_id)
        .where(is_in_chunk)
        .order_by(message.c.id)
        .with_for_update(of=message)  # ordered as in other bulk changes, against deadlocks
    )
    rows = messages.all()
    await _replan_messages(connection, mailing, [row for row in rows if row.is_member])
    excluded = [row.id for row in rows if not row.is_member]
    if mailing.filter_changed and excluded:
        is_excluded = message.c.id == any_(bindparam("ids", excluded, type_=ARRAY(BigInteger)))
        values: dict[str, ColumnElement[Any]] = {
            name: literal_column(sql) for name, sql in end_columns("'filter_changed'").items()
        }
        await connection.execute(
            update(message).where(is_excluded, message.c.status == "scheduled").values(values)
        )


# A message that was tried stays scheduled, because only the mailing's end itself expires it. Its
# pause after a failed attempt is not shortened. A message that stays cancelled is not written,
# because its outcome belongs to the day on which it happened.
REPLAN = text("""
    UPDATE message SET updated_at = now(),
        due_at = replanned.due_at, status = replanned.status, reason = replanned.reason
    FROM unnest(:ids, :due_ats, :statuses, :reasons) AS planned (id, due_at, status, reason)
        JOIN message AS existing ON existing.id = planned.id
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
            AND message.reason IN ('expired', 'no_window') END""").bindparams(
    bindparam("ids", type_=ARRAY(BigInteger)),
    bindparam("due_ats", type_=ARRAY(DateTime(timezone=True))),
    *(bindparam(name, type_=ARRAY(String)) for name in ("statuses", "reasons")),
)


async def _replan_messages(
    connection: AsyncConnection, mailing: Row[Any], rows: Sequence[Row[Any]]
) -> None:
    """Replan locked messages by the time zones in their rows."""
    plans = _plans(mailing, rows)
    planned = [plans[row.time_zone] for row in rows]
    if planned:
        await connection.execute(
            REPLAN,
            {
                "ids": [row.id for row in rows],
                "due_ats": [plan.due_at for plan in planned],
                "statuses": [plan.status for plan in planned],
                "reasons": [plan.reason for plan in planned],
            },
        )


def _plans(mailing: Row[Any], rows: Sequence[Row[Any]]) -> dict[str, Plan]:
    """Return a plan for each time zone in `rows`."""
    window, start, end = window_of(mailing), mailing.datetime_start, mailing.datetime_end
    zones = {row.time_zone for row in rows}
    return {zone: plan(zone, window, start, end, mailing.now) for zone in zones}


# ---- after a change of a client's time zone -------------------------------------------------

MAX_LOOKUPS = 20_000
"""Messages that one transaction searches for: one for each pair of client and mailing."""
# Without a window the time zone does not matter.
HAS_WINDOW = f"""
    {OPEN_MAILING} AND audience_until IS NOT NULL AND status IN ('running', 'paused')
    AND send_interval_time_start IS NOT NULL AND datetime_end > clock_timestamp()"""
FINISHED_BEFORE_END = f"{FINISHED_IN_WINDOW} AND datetime_end > clock_timestamp()"
PLAN_COLUMNS = """
    id, datetime_start, datetime_end, send_interval_time_start, send_interval_time_end,
    status, clock_timestamp() AS now"""
# Each mailing costs one lookup per client, so mailings whose messages are all sent are left out.
HAS_REPLANNABLE_MESSAGES = f"""
    EXISTS (SELECT FROM mailing_counts
        WHERE mailing_id = mailing.id AND {add_up((*OPEN, "cancelled"))} > 0)"""
# Finished mailings of which some messages were cancelled only because of a time zone.
IS_REOPENABLE = f"""
    {FINISHED_BEFORE_END} AND EXISTS (SELECT FROM message
        WHERE mailing_id = mailing.id AND status = 'cancelled' AND reason = 'no_window')"""
HAS_MOVED_CLIENTS = text("SELECT EXISTS (SELECT FROM client_to_replan)")
# Transactions that write messages by the time zones of clients lock the row of the mailing. Waiting
# for that lock makes messages visible that were planned by an old time zone.
WAIT_FOR_WRITERS = text(f"""
    SELECT id FROM mailing WHERE {HAS_WINDOW}
        AND (audience_cursor < audience_until OR is_replanning OR retry_before IS NOT NULL)
    ORDER BY id FOR SHARE""")  # noqa: S608  # no user input
MAILINGS = text(f"""
    SELECT {PLAN_COLUMNS} FROM mailing WHERE {HAS_WINDOW} AND {HAS_REPLANNABLE_MESSAGES}
    UNION ALL
    SELECT {PLAN_COLUMNS} FROM mailing WHERE {IS_REOPENABLE} AND {HAS_REPLANNABLE_MESSAGES}""")  # noqa: S608  # no user input
# Runs before messages are scheduled, because it subtracts the mailing's current counts from the
# totals of settled mailings.
REOPEN_MAILING = text(f"""
    UPDATE mailing SET status = 'running', is_closed = false, is_settled = false, updated_at = now()
    WHERE id = :id AND {FINISHED_BEFORE_END} RETURNING id""")  # noqa: S608  # no user input
TAKE_MOVED_CLIENTS = text("""
    DELETE FROM client_to_replan WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM client_to_replan LIMIT :limit FOR UPDATE SKIP LOCKED))
    RETURNING client_id""")
RESTORE_MOVED_CLIENTS = text(
    "INSERT INTO client_to_replan SELECT DISTINCT unnest(:clients)"
).bindparams(bindparam("clients", type_=ARRAY(BigInteger)))
FIND_MESSAGES = text("""
    SELECT message.id, message.mailing_id, message.client_id, message.status, client.time_zone
    FROM unnest(:clients) AS moved (id) JOIN client ON client.id = moved.id
        CROSS JOIN unnest(:mailings) AS mailing (id)
        JOIN message ON message.mailing_id = mailing.id AND message.client_id = client.id
    WHERE client.deleted_at IS NULL AND (message.status IN ('scheduled', 'sending')
        OR message.status = 'cancelled' AND message.reason = 'no_window')
    ORDER BY message.id FOR UPDATE OF message""").bindparams(
    *(bindparam(name, type_=ARRAY(BigInteger)) for name in ("clients", "mailings"))
)


async def replan_moved(connection: AsyncConnection, max_lookups: int = MAX_LOOKUPS) -> int:
    """Replan the open messages of some clients whose time zone has changed.

    A finished mailing runs again when a message of it can be sent after all. Return how many
    clients are done; 0 when none is left, or when the rest have messages in flight, which are
    replanned after their attempts end.
    """
    if not (await connection.execute(HAS_MOVED_CLIENTS)).scalar_one():
        return 0
    mailings = {row.id: row for row in await connection.execute(MAILINGS)}
    limit = max(1, min(REPLAN_BATCH, max_lookups // max(1, len(mailings))))
    clients = list(await connection.scalars(TAKE_MOVED_CLIENTS, {"limit": limit}))
    await connection.execute(WAIT_FOR_WRITERS)
    mailings = {row.id: row for row in await connection.execute(MAILINGS)}
    values = {"clients": sorted(set(clients)), "mailings": list(mailings)}
    messages = (await connection.execute(FIND_MESSAGES, values)).all()
    # messages in flight may be scheduled again by the time zone that they were claimed with
    clients_to_repeat = {row.client_id for row in messages if row.status == "sending"}
    # finished mailings last: reopening one locks the row of settled totals, which delays others
    is_finished = {row.id: row.status == "finished" for row in mailings.values()}
    mailing_ids = {row.mailing_id for row in messages}
    for mailing_id in sorted(mailing_ids, key=lambda id_: (is_finished[id_], id_)):
        rows = [r for r in messages if r.mailing_id == mailing_id and r.status != "sending"]
        if is_finished[mailing_id]:
            clients_to_repeat |= await _reopen(connection, mailings[mailing_id], rows)
        else:
            await _replan_messages(connection, mailings[mailing_id], rows)
    if clients_to_repeat:
        await connection.execute(RESTORE_MOVED_CLIENTS, {"clients": sorted(clients_to_repeat)})
    if messages:
        await notify_mailings_changed(connection)
    return len(clients) - len(clients_to_repeat)


async def _reopen(
    connection: AsyncConnection, mailing: Row[Any], rows: Sequence[Row[Any]]
) -> set[int]:
    """Reopen a finished mailing if some of its messages can be sent after all.

    Return the clients to repeat, when the mailing was retried or deleted meanwhile.
    """
    plans = _plans(mailing, rows)
    due = [row for row in rows if plans[row.time_zone].status == "scheduled"]
    if not due:
        return set()
    if (await connection.execute(REOPEN_MAILING, {"id": mailing.id})).one_or_none() is None:
        return {row.client_id for row in due}
    await _replan_messages(connection, mailing, due)
    log.info("mailing_reopened", mailing_id=mailing.id, messages=len(due))
    return set()


async def replan_all_moved(engine: AsyncEngine) -> None:
    """Replan the open messages of all clients whose time zone has changed, in chunks."""
    has_more = True
    while has_more:
        async with engine.begin() as connection:
            has_more = bool(await replan_moved(connection))
