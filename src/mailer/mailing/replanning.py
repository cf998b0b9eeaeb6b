"""Planning messages anew: after a change of their mailing, or of their client's time zone.

A change of a mailing goes over the messages that it has, chunk by chunk: the cursor is in the
mailing's row. It adds nobody. Those whom a new filter matches beside them are enqueued afterwards,
as when a mailing begins.
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

from mailer.db.ending import ended
from mailer.db.schema import FINISHED_IN_WINDOW, LIVE, client, message
from mailer.mailing import stopping
from mailer.mailing.audience import Plan, matches, plan, window_of
from mailer.mailing.model import ClientFilter
from mailer.mailing.passing_over import PassedOver
from mailer.mailing.telling import tell

log = structlog.get_logger()

CHUNK = 2_000
"""Messages that one transaction plans anew."""

# ---- after a change of the mailing ----------------------------------------------------------

# Another process that is at a mailing holds its row.
NEXT = text(f"""
    SELECT id, datetime_start, datetime_end, send_interval_time_start, send_interval_time_end,
        status, client_filter, filter_changed, replan_cursor, replan_stop, clock_timestamp() AS now
    FROM mailing WHERE {LIVE} AND replanning AND id <> ALL (:passed_over)
    ORDER BY replan_cursor, id LIMIT 1 FOR UPDATE SKIP LOCKED""").bindparams(  # noqa: S608  # our own words
    bindparam("passed_over", type_=ARRAY(BigInteger))
)
SET_STOP = text("UPDATE mailing SET replan_stop = :number WHERE id = :id")
IS_SENDING = text("SELECT sending > 0 FROM ledger WHERE mailing_id = :id")
# Each kind by an index that has its messages in order: a chunk costs the same wherever it is.
OPEN = text("""
    (SELECT id FROM message WHERE mailing_id = :mailing_id AND status = 'scheduled'
        AND id > :cursor ORDER BY id LIMIT :chunk)
    UNION ALL
    (SELECT id FROM message WHERE mailing_id = :mailing_id AND status = 'cancelled'
        AND reason = 'expired' AND id > :cursor ORDER BY id LIMIT :chunk)
    UNION ALL
    (SELECT id FROM message WHERE mailing_id = :mailing_id AND status = 'cancelled'
        AND reason = 'no_window' AND id > :cursor ORDER BY id LIMIT :chunk)
    ORDER BY id LIMIT :chunk""")
ADVANCE = text("UPDATE mailing SET replan_cursor = :cursor WHERE id = :id")
DONE = text("UPDATE mailing SET replanning = false, filter_changed = false WHERE id = :id")


async def replan_chunk(
    connection: AsyncConnection, chunk: int = CHUNK, passed_over: PassedOver | None = None
) -> int | None:
    """Replan up to `chunk` messages of a changed mailing; return its id.

    Sending stops during replanning, so that excluded messages are not sent. Mailings with active
    workers are left for later. A mailing whose data cannot be read is skipped from now on. None
    when nothing was replanned.
    """
    passed_over = PassedOver() if passed_over is None else passed_over
    mailing = await _next(connection, passed_over)
    if mailing is not None:
        with passed_over.on_error(mailing.id):
            async with connection.begin_nested():
                await _replan_chunk(connection, mailing, chunk)
            return int(mailing.id)
    return None


async def _replan_chunk(connection: AsyncConnection, mailing: Row[Any], chunk: int) -> None:
    looked_at = {"mailing_id": mailing.id, "cursor": mailing.replan_cursor, "chunk": chunk}
    # of one that is cancelled the messages are cancelled by another step
    is_cancelled = mailing.status == "cancelled"
    ids = [] if is_cancelled else list(await connection.scalars(OPEN, looked_at))
    if ids:
        await _replan(connection, mailing, ids)
    if len(ids) == chunk:
        await connection.execute(ADVANCE, {"id": mailing.id, "cursor": ids[-1]})
    else:
        await connection.execute(DONE, {"id": mailing.id})
        await tell(connection)  # it may be claimed from again


async def _next(connection: AsyncConnection, passed_over: PassedOver) -> Row[Any] | None:
    others = list(passed_over)
    while True:
        found = await connection.execute(NEXT, {"passed_over": others})
        mailing = found.one_or_none()
        if mailing is None or await _is_at_rest(connection, mailing):
            return mailing
        others.append(mailing.id)


async def _is_at_rest(connection: AsyncConnection, mailing: Row[Any]) -> bool:
    """Whether no worker sends for a mailing, nor can until it is planned anew.

    The change is committed, so that the number of its stop may be drawn; it stays in the row until
    the next change.
    """
    number = mailing.replan_stop
    if number is None:
        number = await stopping.draw(connection)
        await connection.execute(SET_STOP, {"id": mailing.id, "number": number})
    if not await stopping.is_applied(connection, number):
        return False
    # asked after every worker has stopped: a claim before that is seen
    return not (await connection.execute(IS_SENDING, {"id": mailing.id})).scalar_one()


async def _replan(connection: AsyncConnection, mailing: Row[Any], ids: list[int]) -> None:
    """Plan messages of a mailing anew; with a new filter those that it does not match end."""
    among = message.c.id == any_(bindparam("ids", ids, type_=ARRAY(BigInteger)))
    is_member = client.c.deleted_at.is_(None)
    if mailing.filter_changed:
        client_filter = msgspec.convert(mailing.client_filter, ClientFilter)
        is_member = and_(is_member, matches(client_filter)).is_(True)  # SQL's
    found = await connection.execute(
        select(message.c.id, client.c.time_zone, is_member.label("is_member"))
        .join_from(message, client, client.c.id == message.c.client_id)
        .where(among)
        .order_by(message.c.id)
        .with_for_update(of=message)  # in one order, as by everybody who changes many
    )
    rows = found.all()
    await _plan_anew(connection, mailing, [row for row in rows if row.is_member])
    strangers = [row.id for row in rows if not row.is_member]
    if mailing.filter_changed and strangers:
        of_them = message.c.id == any_(bindparam("ids", strangers, type_=ARRAY(BigInteger)))
        why: dict[str, ColumnElement[Any]] = {
            name: literal_column(sql) for name, sql in ended("'filter_changed'").items()
        }
        await connection.execute(
            update(message).where(of_them, message.c.status == "scheduled").values(why)
        )


# A message that was tried waits until the end at least, for only the end itself expires it, and a
# pause after a failed attempt is not cut short. What stays cancelled stays as it was: its outcome
# belongs to the day on which it happened.
PLAN_ANEW = text("""
    UPDATE message SET updated_at = now(),
        due_at = anew.due_at, status = anew.status, reason = anew.reason
    FROM unnest(:ids, :due_ats, :statuses, :reasons) AS planned (id, due_at, status, reason)
        JOIN message AS held ON held.id = planned.id
        CROSS JOIN LATERAL (SELECT held.status = 'scheduled'
            AND (held.reason IS NOT NULL OR held.unknown_reason IS NOT NULL)) AS known (is_tried)
        CROSS JOIN LATERAL (SELECT
            CASE WHEN is_tried THEN greatest(held.retry_at, planned.due_at)
                 ELSE planned.due_at END,
            CASE WHEN is_tried THEN 'scheduled' ELSE planned.status END,
            CASE WHEN is_tried THEN held.reason ELSE planned.reason END
        ) AS anew (due_at, status, reason)
    WHERE message.id = planned.id AND CASE message.status
        WHEN 'scheduled' THEN message.due_at <> anew.due_at OR anew.status <> 'scheduled'
        WHEN 'cancelled' THEN anew.status = 'scheduled'
            AND message.reason IN ('expired', 'no_window') END""").bindparams(
    bindparam("ids", type_=ARRAY(BigInteger)),
    bindparam("due_ats", type_=ARRAY(DateTime(timezone=True))),
    *(bindparam(name, type_=ARRAY(String)) for name in ("statuses", "reasons")),
)


async def _plan_anew(
    connection: AsyncConnection, mailing: Row[Any], rows: Sequence[Row[Any]]
) -> None:
    """Plan messages, which are locked, by the time zones in their rows."""
    plans = _plans(mailing, rows)
    planned = [plans[row.time_zone] for row in rows]
    if planned:
        await connection.execute(
            PLAN_ANEW,
            {
                "ids": [row.id for row in rows],
                "due_ats": [each.due_at for each in planned],
                "statuses": [each.status for each in planned],
                "reasons": [each.reason for each in planned],
            },
        )


def _plans(mailing: Row[Any], rows: Sequence[Row[Any]]) -> dict[str, Plan]:
    """Return the plan for each time zone of some rows."""
    window, start, end = window_of(mailing), mailing.datetime_start, mailing.datetime_end
    zones = {row.time_zone for row in rows}
    return {zone: plan(zone, window, start, end, mailing.now) for zone in zones}


# ---- after a change of a client's time zone -------------------------------------------------

MOST_LOOKS = 20_000
"""Messages that one transaction looks for: one for each client and mailing."""
# Without a window the time zone does not matter.
PLANNED_BY_ZONE = f"""
    {LIVE} AND audience_until IS NOT NULL AND status IN ('running', 'paused')
    AND send_interval_time_start IS NOT NULL AND datetime_end > clock_timestamp()"""
UNENDED = f"{FINISHED_IN_WINDOW} AND datetime_end > clock_timestamp()"
PLANNED = """
    id, datetime_start, datetime_end, send_interval_time_start, send_interval_time_end,
    status, clock_timestamp() AS now"""
# Each mailing costs a look for each client: one whose messages all are sent is left out.
HAS_OPEN = """
    EXISTS (SELECT FROM ledger
        WHERE mailing_id = mailing.id AND scheduled + sending + cancelled > 0)"""
# Nothing of these is left to send, and some of it only because of a time zone.
HAS_NO_WINDOW = f"""
    {UNENDED} AND EXISTS (SELECT FROM message
        WHERE mailing_id = mailing.id AND status = 'cancelled' AND reason = 'no_window')"""
IS_ANY_MOVED = text("SELECT EXISTS (SELECT FROM moved_client)")
# Who writes messages by the time zones of clients holds the row of the mailing: what was planned by
# a zone that has changed meanwhile is there when that is committed.
AFTER_WRITERS = text(f"""
    SELECT id FROM mailing WHERE {PLANNED_BY_ZONE}
        AND (audience_cursor < audience_until OR replanning OR retry_before IS NOT NULL)
    ORDER BY id FOR SHARE""")  # noqa: S608  # our own words
MAILINGS = text(f"""
    SELECT {PLANNED} FROM mailing WHERE {PLANNED_BY_ZONE} AND {HAS_OPEN}
    UNION ALL
    SELECT {PLANNED} FROM mailing WHERE {HAS_NO_WINDOW} AND {HAS_OPEN}""")  # noqa: S608  # our own words
# Before its messages are scheduled: what is settled is counted as it is at this moment.
REVIVE = text(f"""
    UPDATE mailing SET status = 'running', is_settled = false, updated_at = now()
    WHERE id = :id AND {UNENDED} RETURNING id""")  # noqa: S608  # our own words
TAKE = text("""
    DELETE FROM moved_client WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM moved_client LIMIT :most FOR UPDATE SKIP LOCKED))
    RETURNING client_id""")
PUT_BACK = text("INSERT INTO moved_client SELECT DISTINCT unnest(:clients)").bindparams(
    bindparam("clients", type_=ARRAY(BigInteger))
)
FIND = text("""
    SELECT message.id, message.mailing_id, message.client_id, message.status, client.time_zone
    FROM unnest(:clients) AS moved (id) JOIN client ON client.id = moved.id
        CROSS JOIN unnest(:mailings) AS mailing (id)
        JOIN message ON message.mailing_id = mailing.id AND message.client_id = client.id
    WHERE client.deleted_at IS NULL AND (message.status IN ('scheduled', 'sending')
        OR message.status = 'cancelled' AND message.reason = 'no_window')
    ORDER BY message.id FOR UPDATE OF message""").bindparams(
    *(bindparam(name, type_=ARRAY(BigInteger)) for name in ("clients", "mailings"))
)


async def replan_moved(connection: AsyncConnection, most_looks: int = MOST_LOOKS) -> int:
    """Plan the open messages of some clients anew whose time zone has changed.

    A mailing that has finished runs again when a message of it can be sent after all. Return how
    many clients were taken; 0 when none is left, or those that are left have messages
    on their way, which are planned anew when they are back.
    """
    if not (await connection.execute(IS_ANY_MOVED)).scalar_one():
        return 0
    mailings = {row.id: row for row in await connection.execute(MAILINGS)}
    most = max(1, min(CHUNK, most_looks // max(1, len(mailings))))
    clients = list(await connection.scalars(TAKE, {"most": most}))
    await connection.execute(AFTER_WRITERS)
    mailings = {row.id: row for row in await connection.execute(MAILINGS)}
    asked = {"clients": sorted(set(clients)), "mailings": list(mailings)}
    found = (await connection.execute(FIND, asked)).all()
    # those on their way may come back as the zone was when they were claimed
    put_back = {row.client_id for row in found if row.status == "sending"}
    # finished ones last: to revive one takes the row of what is settled, for which others wait
    is_finished = {row.id: row.status == "finished" for row in mailings.values()}
    for mailing_id in sorted({row.mailing_id for row in found}, key=lambda i: (is_finished[i], i)):
        rows = [r for r in found if r.mailing_id == mailing_id and r.status != "sending"]
        if is_finished[mailing_id]:
            put_back |= await _revive(connection, mailings[mailing_id], rows)
        else:
            await _plan_anew(connection, mailings[mailing_id], rows)
    if put_back:
        await connection.execute(PUT_BACK, {"clients": sorted(put_back)})
    if found:
        await tell(connection)
    return len(clients) - len(put_back)


async def _revive(
    connection: AsyncConnection, mailing: Row[Any], rows: Sequence[Row[Any]]
) -> set[int]:
    """Let a finished mailing run again if some of its messages can be sent after all.

    Return the clients to look at again, when it is no longer finished: retried, or deleted.
    """
    plans = _plans(mailing, rows)
    due = [row for row in rows if plans[row.time_zone].status == "scheduled"]
    if not due:
        return set()
    if (await connection.execute(REVIVE, {"id": mailing.id})).one_or_none() is None:
        return {row.client_id for row in due}
    await _plan_anew(connection, mailing, due)
    log.info("mailing_revived", mailing_id=mailing.id, messages=len(due))
    return set()


async def replan_all_moved(engine: AsyncEngine) -> None:
    """Plan the open messages of every client anew whose time zone has changed, chunk by chunk."""
    has_more = True
    while has_more:
        async with engine.begin() as connection:
            has_more = bool(await replan_moved(connection))
