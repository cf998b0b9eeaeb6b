"""SQL that moves mailings on in time: what is to be done, and how it is begun and ended.

The caller owns the transaction. Where several processes look, each passes over what another has
locked.
"""

from datetime import datetime

import asyncpg
import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.ending import set_ended
from mailer.db.schema import KEPT_SINCE
from mailer.mailing.audience import count
from mailer.mailing.model import ClientFilter, RunningMailing, Status
from mailer.mailing.telling import tell
from mailer.mailing.window import Window
from mailer.message import tally

UNDER_WAY = """
    SELECT clock_timestamp(), id, text, datetime_end, on_unknown,
        send_interval_time_start, send_interval_time_end,
        status = 'running' AND NOT replanning AND datetime_end > clock_timestamp()
    FROM (SELECT) AS always LEFT JOIN mailing ON status IN ('running', 'paused')
        AND NOT is_settled AND deleted_at IS NULL"""


async def under_way(connection: asyncpg.Connection) -> tuple[datetime, list[RunningMailing]]:
    """Return the database's time, and the mailings that have requests, or may have them now."""
    rows = await connection.fetch(UNDER_WAY)
    mailings = [
        RunningMailing(
            mailing_id, words, end, opens and Window(opens, closes), on_unknown, may_send
        )
        for _, mailing_id, words, end, on_unknown, opens, closes, may_send in rows
        if mailing_id is not None
    ]
    return rows[0][0], mailings


class ToDo(msgspec.Struct, frozen=True):
    """What is to be done for some mailing now."""

    begins: bool
    """One is to begin."""
    takes: bool
    """Of one's audience there is more to take."""
    replans: bool
    """One's messages are to be planned anew."""
    retries: bool
    """One's messages are to be sent again."""
    clears: bool
    """One has ended or is cancelled, and messages of it still wait."""
    finishes: bool
    """One has nothing left to do."""
    next_moment: float | None
    """Seconds until one is to begin or to end; None when none is."""

    @property
    def is_any(self) -> bool:
        """Whether there is anything to do now."""
        return any(
            (self.begins, self.takes, self.replans, self.retries, self.clears, self.finishes)
        )


# Only live mailings are looked at, by an index that holds no others.
LOOK = text("""
    SELECT
        coalesce(bool_or(audience_until IS NULL AND datetime_start <= at), false) AS begins,
        coalesce(bool_or(audience_cursor < audience_until AND NOT replanning), false) AS takes,
        coalesce(bool_or(replanning), false) AS replans,
        coalesce(bool_or(retry_before IS NOT NULL), false) AS retries,
        coalesce(bool_or(scheduled > 0 AND (status = 'cancelled' OR datetime_end <= at)), false)
            AS clears,
        coalesce(bool_or(scheduled = 0 AND sending = 0 AND audience_cursor = audience_until
            AND retry_before IS NULL AND NOT replanning), false) AS finishes,
        extract(epoch FROM min(CASE WHEN audience_until IS NULL THEN datetime_start
            WHEN datetime_end > at THEN datetime_end END) - min(at))::float8 AS next_moment
    FROM mailing JOIN ledger ON mailing_id = id CROSS JOIN (SELECT clock_timestamp() AS at) AS clock
    WHERE NOT is_settled AND deleted_at IS NULL""")


async def look(connection: AsyncConnection) -> ToDo:
    """Return what is to be done now."""
    return ToDo(*(await connection.execute(LOOK)).one())


# One that is paused begins too: its audience is taken, and waits.
DUE = text("""
    SELECT id, client_filter FROM mailing
    WHERE NOT is_settled AND deleted_at IS NULL AND audience_until IS NULL
        AND datetime_start <= clock_timestamp()
    ORDER BY datetime_start LIMIT 1 FOR UPDATE SKIP LOCKED""")
# Clients that join from now on are not in the snapshot, whenever their ids were given.
BEGIN = text("""
    UPDATE mailing SET status = CASE status WHEN 'scheduled' THEN 'running' ELSE status END,
        clients_count = :clients_count,
        audience_until = coalesce((SELECT max(id) FROM client), 0),
        audience_snapshot = pg_current_snapshot()::text, updated_at = now()
    WHERE id = :id AND audience_until IS NULL""")


async def begin_due(connection: AsyncConnection) -> int | None:
    """Begin one mailing whose start has come and return its id, or None when there is none."""
    due = (await connection.execute(DUE)).one_or_none()
    if due is None:
        return None
    clients_count = await count(connection, msgspec.convert(due.client_filter, ClientFilter))
    await connection.execute(BEGIN, {"id": due.id, "clients_count": clients_count})
    await tell(connection)
    return int(due.id)


WHY_ENDED = "CASE waiting.status WHEN 'cancelled' THEN 'mailing_cancelled' ELSE 'expired' END"
CLEAR = text(f"""
    WITH waiting AS MATERIALIZED (
        SELECT message.id, mailing.status
        FROM mailing CROSS JOIN LATERAL (
            SELECT id FROM message
            WHERE message.mailing_id = mailing.id AND message.status = 'scheduled'
            LIMIT :chunk FOR UPDATE SKIP LOCKED) AS message
        WHERE NOT mailing.is_settled AND mailing.deleted_at IS NULL
            AND (mailing.status = 'cancelled' OR mailing.datetime_end <= clock_timestamp())
        LIMIT :chunk
    )
    UPDATE message SET {set_ended(WHY_ENDED)}
    FROM waiting WHERE message.id = waiting.id""")  # noqa: S608  # our own words


async def clear(connection: AsyncConnection, chunk: int) -> bool:
    """End up to `chunk` messages that wait for mailings which have ended or are cancelled.

    They are cancelled, and those whose delivery is unknown stay unknown.
    """
    return (await connection.execute(CLEAR, {"chunk": chunk})).rowcount > 0


# Both rows are locked, so that both are as they are now: a ledger read before its mailing was
# locked might not know of the messages that have been scheduled again meanwhile.
FINISH = text("""
    WITH done AS MATERIALIZED (
        SELECT mailing.id FROM mailing JOIN ledger ON ledger.mailing_id = mailing.id
        WHERE ledger.scheduled = 0 AND ledger.sending = 0
            AND NOT mailing.is_settled AND mailing.deleted_at IS NULL
            AND mailing.audience_cursor = mailing.audience_until AND mailing.retry_before IS NULL
            AND NOT mailing.replanning
        ORDER BY mailing.id LIMIT 500 FOR NO KEY UPDATE SKIP LOCKED
    )
    UPDATE mailing SET is_settled = true, updated_at = now(),
        status = CASE mailing.status WHEN 'cancelled' THEN 'cancelled' ELSE 'finished' END
    FROM done WHERE mailing.id = done.id
    RETURNING mailing.id, mailing.status""")


async def finish(connection: AsyncConnection) -> list[tuple[int, Status]]:
    """Settle mailings that have nothing left to do; return their ids and how they ended.

    Some hundreds at a time: each updates the one row of what is settled.
    """
    return [(row.id, row.status) for row in await connection.execute(FINISH)]


PURGE_MESSAGES = text("""
    DELETE FROM message WHERE id IN (
        SELECT message.id FROM message JOIN mailing ON mailing.id = message.mailing_id
        WHERE mailing.deleted_at IS NOT NULL AND message.status <> 'sending'
        LIMIT :chunk FOR UPDATE OF message SKIP LOCKED)""")
PURGE_MAILINGS = text("""
    DELETE FROM mailing WHERE deleted_at IS NOT NULL
        AND NOT EXISTS (SELECT FROM message WHERE mailing_id = mailing.id)
    RETURNING id""")


async def purge(connection: AsyncConnection, chunk: int) -> int:
    """Delete up to `chunk` messages of deleted mailings, then the mailings; return how many."""
    purged = (await connection.execute(PURGE_MESSAGES, {"chunk": chunk})).rowcount
    if purged < chunk:
        gone = (await connection.scalars(PURGE_MAILINGS)).all()
        if gone:
            await tally.drop(connection, list(gone))
    return purged


RETIRE = text(f"""
    UPDATE mailing SET retired_at = coalesce(retired_at, now()) WHERE id = (
        SELECT id FROM mailing
        WHERE is_settled AND NOT is_emptied AND deleted_at IS NULL
            AND {KEPT_SINCE} < now() - make_interval(days => :days)
        ORDER BY {KEPT_SINCE} LIMIT 1 FOR UPDATE SKIP LOCKED)
    RETURNING id""")  # noqa: S608  # our own words
EMPTY = text("""
    DELETE FROM message WHERE id IN (
        SELECT id FROM message WHERE mailing_id = :mailing_id ORDER BY client_id LIMIT :chunk)""")
MARK_EMPTIED = text("UPDATE mailing SET is_emptied = true WHERE id = :mailing_id")


async def retire(connection: AsyncConnection, days: int, chunk: int) -> int:
    """Delete up to `chunk` messages of a mailing past its retention; return how many.

    The `days` count from the mailing's end, or from its last change of counts when that is later;
    one that was cancelled has ended then. Its ledger and its tallies stay.
    """
    mailing_id = (await connection.execute(RETIRE, {"days": days})).scalar_one_or_none()
    if mailing_id is None:
        return 0
    emptied = await connection.execute(EMPTY, {"mailing_id": mailing_id, "chunk": chunk})
    if emptied.rowcount < chunk:
        await connection.execute(MARK_EMPTIED, {"mailing_id": mailing_id})
    return emptied.rowcount
