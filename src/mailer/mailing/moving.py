"""SQL that moves mailings on in time: what is to be done, and how it is begun and ended.

The caller owns the transaction. Where several processes look, each passes over what another has
locked.
"""

from collections.abc import Collection, Sequence
from datetime import datetime

import asyncpg
import msgspec
from sqlalchemy import ARRAY, BigInteger, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.ending import set_ended
from mailer.db.schema import KEPT_SINCE, LIVE, OVER_AT
from mailer.mailing import together
from mailer.mailing.model import RunningMailing, Status
from mailer.mailing.passing_over import PassedOver
from mailer.mailing.telling import tell
from mailer.mailing.window import Window
from mailer.message import tally

SLICE = 1_000
"""Live mailings of which one look asks whether they are through: all are, look by look."""

MAILING = """
    id, text, datetime_end, on_unknown, send_interval_time_start, send_interval_time_end,
    status = 'running' AND NOT replanning AND datetime_end > clock_timestamp(),
    status IN ('running', 'paused') AND NOT is_settled AND deleted_at IS NULL"""
UNDER_WAY = f"""
    SELECT {MAILING} FROM mailing
    WHERE {LIVE} AND status IN ('running', 'paused') AND id > $1 ORDER BY id LIMIT $2"""  # noqa: S608  # our own words
NOW = "SELECT clock_timestamp(), pg_current_snapshot()::text"
# Who wrote a row is in the row, by a trigger. What an earlier snapshot did not show was written by
# a transaction that was under way then, or has begun since. A row that is as it came from the dump
# of another server may bear the number of one that is still to begin here.
CHANGED = f"""
    SELECT {MAILING} FROM mailing
    WHERE changed_by = ANY (ARRAY(
            SELECT xid::text::bigint FROM pg_snapshot_xip($1::text::pg_snapshot) AS xid))
        OR (changed_by >= pg_snapshot_xmax($1::text::pg_snapshot)::text::bigint
            AND changed_by < pg_snapshot_xmax(pg_current_snapshot())::text::bigint)"""  # noqa: S608  # likewise

Known = dict[int, RunningMailing | None]
"""Mailings by id; None for one that has no requests any more."""


async def now(connection: asyncpg.Connection) -> tuple[datetime, str]:
    """Return the database's time, and a snapshot to ask for what has changed since."""
    [(moment, snapshot)] = await connection.fetch(NOW)
    return moment, snapshot


async def under_way(connection: asyncpg.Connection, after: int = 0, most: int = SLICE) -> Known:
    """Return mailings that have requests, or may have them now, in the order of their ids."""
    return _known(await connection.fetch(UNDER_WAY, after, most))


async def changed(connection: asyncpg.Connection, since: str) -> Known:
    """Return the mailings that have changed since a snapshot."""
    return _known(await connection.fetch(CHANGED, since))


def _known(rows: list[asyncpg.Record]) -> Known:
    return {
        mailing_id: RunningMailing(
            mailing_id, words, end, opens and Window(opens, closes), on_unknown, may_send
        )
        if is_under_way
        else None
        for mailing_id, words, end, on_unknown, opens, closes, may_send, is_under_way in rows
    }


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
    looked_up_to: int = 0
    """The last mailing of the slice that was asked whether it is through; 0 at the end of all."""

    @property
    def is_any(self) -> bool:
        """Whether there is anything to do now."""
        return any(
            (self.begins, self.takes, self.replans, self.retries, self.clears, self.finishes)
        )


IS_THROUGH = "audience_cursor = audience_until AND retry_before IS NULL AND NOT replanning"
ENDED_AT_ONCE = 1_000
"""Mailings past their end, the first to end first, whose messages are cleared: all, as they end."""

# Subqueries with OFFSET or LIMIT keep the planner to indexes: it takes those that wait for far less
# or far more than they are, and would walk over all of them.
MAYBE_THROUGH = f"""
    slice AS MATERIALIZED (
        SELECT id FROM mailing WHERE {LIVE} AND id > :after ORDER BY id LIMIT {SLICE}),
    through AS MATERIALIZED (
        SELECT one.id FROM (SELECT id FROM slice UNION SELECT unnest(:asked)) AS maybe
            CROSS JOIN LATERAL (
                SELECT FROM ledger WHERE mailing_id = maybe.id
                    AND scheduled = 0 AND sending = 0 OFFSET 0) AS counts
            CROSS JOIN LATERAL (
                SELECT id FROM mailing WHERE mailing.id = maybe.id
                    AND {LIVE} AND {IS_THROUGH} OFFSET 0) AS one
        LIMIT {4 * together.SLICE})"""  # noqa: S608  # our own words
OVER = f"""
    SELECT id, status FROM mailing
    WHERE {LIVE} AND audience_until IS NOT NULL AND {OVER_AT} <= (SELECT clock_timestamp())
    ORDER BY {OVER_AT} LIMIT {ENDED_AT_ONCE}"""  # noqa: S608  # likewise

# Each kind of work has an index that holds little else: a look costs the same however many mailings
# wait. What may be through is no more than a slice of all, and those that something became of.
LOOK = text(f"""
    WITH clock AS MATERIALIZED (SELECT clock_timestamp() AS at), {MAYBE_THROUGH}
    SELECT
        EXISTS (SELECT FROM mailing WHERE {LIVE} AND audience_until IS NULL
            AND datetime_start <= (SELECT at FROM clock) AND id <> ALL (:passed_over)) AS begins,
        EXISTS (SELECT FROM mailing WHERE {LIVE} AND audience_cursor < audience_until
            AND NOT replanning AND id <> ALL (:passed_over)) AS takes,
        EXISTS (SELECT FROM mailing WHERE {LIVE} AND replanning
            AND id <> ALL (:passed_over)) AS replans,
        EXISTS (SELECT FROM mailing WHERE {LIVE} AND retry_before IS NOT NULL
            AND id <> ALL (:passed_over)) AS retries,
        EXISTS (SELECT FROM ({OVER}) AS over CROSS JOIN LATERAL (
            SELECT FROM ledger WHERE mailing_id = over.id AND scheduled > 0 OFFSET 0) AS counts)
            AS clears,
        EXISTS (SELECT FROM through) AS finishes,
        extract(epoch FROM least(
            (SELECT min(datetime_start) FROM mailing WHERE {LIVE} AND audience_until IS NULL
                AND id <> ALL (:passed_over)),
            (SELECT min({OVER_AT}) FROM mailing WHERE {LIVE} AND audience_until IS NOT NULL
                AND {OVER_AT} > (SELECT at FROM clock)))
            - (SELECT at FROM clock))::float8 AS next_moment,
        (SELECT CASE WHEN count(*) = {SLICE} THEN max(id) ELSE 0 END FROM slice) AS looked_up_to
    """).bindparams(  # noqa: S608  # our own words
    *(bindparam(name, type_=ARRAY(BigInteger)) for name in ("asked", "passed_over"))
)


async def look(
    connection: AsyncConnection,
    after: int = 0,
    asked: Collection[int] = (),
    passed_over: Collection[int] = (),
) -> ToDo:
    """Return what is to be done now.

    Whether one is through is asked of `asked`, and of a slice of the mailings whose ids are larger
    than `after`. Those that are `passed_over` neither begin nor are taken, planned anew or retried.
    """
    given = {"after": after, "asked": list(asked), "passed_over": list(passed_over)}
    return ToDo(*(await connection.execute(LOOK, given)).one())


# One that is paused begins too: its audience is taken, and waits.
DUE = """
    SELECT id, client_filter FROM mailing
    WHERE {live} AND audience_until IS NULL AND datetime_start <= (SELECT clock_timestamp())
        AND id <> ALL (:passed_over)
    ORDER BY datetime_start {order}, id {order} LIMIT :most FOR UPDATE SKIP LOCKED"""
TO_BEGIN = [
    text(DUE.format(live=LIVE, order=order)).bindparams(
        bindparam("passed_over", type_=ARRAY(BigInteger))
    )
    for order in ("DESC", "ASC")
]
# Clients that join from now on are not in the snapshot, whenever their ids were given.
BEGIN = text("""
    UPDATE mailing SET status = CASE status WHEN 'scheduled' THEN 'running' ELSE status END,
        clients_count = due.clients_count,
        audience_until = coalesce((SELECT max(id) FROM client), 0),
        audience_snapshot = pg_current_snapshot()::text, updated_at = now()
    FROM unnest(:ids, :counts) AS due (id, clients_count)
    WHERE mailing.id = due.id AND audience_until IS NULL""").bindparams(
    bindparam("ids", type_=ARRAY(BigInteger)), bindparam("counts", type_=ARRAY(BigInteger))
)


async def begin_due(
    connection: AsyncConnection,
    most: int = together.SLICE,
    passed_over: PassedOver | None = None,
) -> list[int]:
    """Begin up to `most` mailings whose start has come; return their ids.

    Those that start latest first, then the earliest. One whose filter cannot be read is passed over
    from now on.
    """
    passed_over = PassedOver() if passed_over is None else passed_over
    filters, numbers = together.Filters(), dict[int, int]()
    for due in await together.lock_slice(connection, TO_BEGIN, most, passed_over):
        if filters.is_full:
            break
        with passed_over.on_error(due.id):
            numbers[due.id] = filters.add(due.client_filter)
    if numbers:
        counts = await together.count(connection, filters)
        clients = [counts.get(number, 0) for number in numbers.values()]
        await connection.execute(BEGIN, {"ids": list(numbers), "counts": clients})
        await tell(connection)
    return list(numbers)


WHY_ENDED = "CASE waiting.status WHEN 'cancelled' THEN 'mailing_cancelled' ELSE 'expired' END"
CLEAR = text(f"""
    WITH waiting AS MATERIALIZED (
        SELECT message.id, over.status FROM ({OVER}) AS over
        CROSS JOIN LATERAL (
            SELECT id FROM message
            WHERE message.mailing_id = over.id AND message.status = 'scheduled'
            LIMIT :chunk FOR UPDATE SKIP LOCKED) AS message
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
FINISH = text(f"""
    WITH {MAYBE_THROUGH},
    done AS MATERIALIZED (
        SELECT mailing.id FROM through JOIN mailing ON mailing.id = through.id
            JOIN ledger ON ledger.mailing_id = mailing.id
        WHERE ledger.scheduled = 0 AND ledger.sending = 0 AND {LIVE} AND {IS_THROUGH}
        ORDER BY mailing.id LIMIT {together.SLICE}
        FOR NO KEY UPDATE OF mailing, ledger SKIP LOCKED
    )
    UPDATE mailing SET is_settled = true, updated_at = now(),
        status = CASE mailing.status WHEN 'cancelled' THEN 'cancelled' ELSE 'finished' END
    FROM done WHERE mailing.id = done.id
    RETURNING mailing.id, mailing.status""").bindparams(  # noqa: S608  # our own words
    bindparam("asked", type_=ARRAY(BigInteger))
)


async def finish(
    connection: AsyncConnection, after: int = 0, asked: Sequence[int] = ()
) -> list[tuple[int, Status]]:
    """Settle mailings that are through, among the same as `look`; return their ids and how.

    One slice at a time: the next mailing to begin waits for it.
    """
    found = await connection.execute(FINISH, {"after": after, "asked": list(asked)})
    return [(row.id, row.status) for row in found]


# An array: a plan may run what stands in an IN again for each row, and delete more than a chunk.
PURGE_MESSAGES = text("""
    DELETE FROM message WHERE id = ANY (ARRAY(
        SELECT message.id FROM message JOIN mailing ON mailing.id = message.mailing_id
        WHERE mailing.deleted_at IS NOT NULL AND message.status <> 'sending'
        LIMIT :chunk FOR UPDATE OF message SKIP LOCKED))""")
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
    DELETE FROM message WHERE id = ANY (ARRAY(
        SELECT id FROM message WHERE mailing_id = :mailing_id ORDER BY client_id LIMIT :chunk))""")
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
