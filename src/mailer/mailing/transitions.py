"""SQL for the lifecycle of mailings: find pending work, start, end, finish and purge mailings.

The caller owns the transaction. Several workers may run these statements at the same time: each
skips the rows that another worker has locked.
"""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Literal

import asyncpg
import msgspec
from sqlalchemy import ARRAY, BigInteger, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.sql import add_up
from mailer.db.tables.mailing import ENDED_AT, OPEN_MAILING, RETENTION_START, UNSETTLED_MAILING
from mailer.mailing import small_audiences
from mailer.mailing.ending import end_set_clause
from mailer.mailing.model import RunningMailing
from mailer.mailing.skipped import SkippedMailings
from mailer.mailing.store import notify_mailings_changed
from mailer.mailing.window import SendingWindow
from mailer.message import counters
from mailer.statuses import NOT_FINAL, OPEN, MailingStatus

UNSETTLED_BATCH = 1_000
"""Mailings that one statement reads. The next call reads the following ones."""

RUNNING_COLUMNS = f"""
    id, text, datetime_end, on_unknown, send_interval_time_start, send_interval_time_end,
    status = 'running' AND NOT is_replanning AND datetime_end > clock_timestamp(),
    status IN ('running', 'paused') AND {OPEN_MAILING}"""
ACTIVE_MAILINGS = f"""
    SELECT {RUNNING_COLUMNS} FROM mailing
    WHERE {OPEN_MAILING} AND status IN ('running', 'paused') AND id > $1
    ORDER BY id LIMIT $2"""  # noqa: S608  # no user input
DATABASE_NOW = "SELECT clock_timestamp(), pg_current_snapshot()::text"
# A trigger writes the id of the changing transaction into `changed_by`. A change that an earlier
# snapshot did not show was made by a transaction that was in progress then or has started since. A
# row restored from another server's dump may hold the id of a transaction that has not started on
# this server yet: the last condition excludes it.
CHANGED_MAILINGS = f"""
    SELECT {RUNNING_COLUMNS} FROM mailing
    WHERE changed_by = ANY (ARRAY(
            SELECT xid::text::bigint FROM pg_snapshot_xip($1::text::pg_snapshot) AS xid))
        OR (changed_by >= pg_snapshot_xmax($1::text::pg_snapshot)::text::bigint
            AND changed_by < pg_snapshot_xmax(pg_current_snapshot())::text::bigint)"""  # noqa: S608  # no user input

MailingsById = dict[int, RunningMailing | None]
"""Mailings by id; None for one that is not running or paused, or is closed or deleted."""


async def database_now(connection: asyncpg.Connection) -> tuple[datetime, str]:
    """Return the database's time, and a snapshot for `read_changed`."""
    [(moment, snapshot)] = await connection.fetch(DATABASE_NOW)
    return moment, snapshot


async def read_active(
    connection: asyncpg.Connection, after: int = 0, limit: int = UNSETTLED_BATCH
) -> MailingsById:
    """Return up to `limit` running or paused mailings with ids above `after`, by ascending id."""
    return _by_id(await connection.fetch(ACTIVE_MAILINGS, after, limit))


async def read_changed(connection: asyncpg.Connection, since: str) -> MailingsById:
    """Return the mailings that have changed since a snapshot."""
    return _by_id(await connection.fetch(CHANGED_MAILINGS, since))


def _by_id(rows: list[asyncpg.Record]) -> MailingsById:
    return {
        mailing_id: RunningMailing(
            mailing_id,
            message_text,
            end,
            opens and SendingWindow(opens, closes),
            on_unknown,
            may_send,
        )
        if is_active
        else None
        for (
            mailing_id,
            message_text,
            end,
            on_unknown,
            opens,
            closes,
            may_send,
            is_active,
        ) in rows
    }


class PendingWork(msgspec.Struct, frozen=True):
    """The kinds of work that mailings need now."""

    must_start: bool
    """The start of a mailing has come."""
    must_enqueue: bool
    """A started mailing has clients to enqueue."""
    must_replan: bool
    """A mailing has messages to replan."""
    must_retry: bool
    """A mailing has messages to retry at a user's request."""
    must_end_messages: bool
    """A mailing that has ended or is cancelled still has scheduled messages."""
    must_finish: bool
    """A mailing can be closed, because it has nothing left to send, or a closed one settled."""
    seconds_until_next: float | None
    """Seconds until the next start or end of a mailing; None when there is none."""
    last_checked_id: int = 0
    """Id of the last mailing that this call checked for `must_finish`; 0 after the last of all.

    The next call continues after it."""

    @property
    def has_work(self) -> bool:
        """Return whether there is work now."""
        return any(
            (
                self.must_start,
                self.must_enqueue,
                self.must_replan,
                self.must_retry,
                self.must_end_messages,
                self.must_finish,
            )
        )


HAS_NOTHING_PENDING = (
    "audience_cursor = audience_until AND retry_before IS NULL AND NOT is_replanning"
)
MAX_ENDED = 1_000
"""Ended mailings that one statement considers, the earliest end first."""

# A mailing without an open message is closed when no other work is pending. It is settled when all
# its messages are final: then, or later when the last of them has become final.
#
# OFFSET and LIMIT in the subqueries force the planner to use indexes. It misjudges how many
# mailings wait, and would otherwise scan all of them.
MAYBE_FINISHED = f"""
    batch AS MATERIALIZED (
        SELECT id FROM mailing WHERE {UNSETTLED_MAILING} AND id > :after
        ORDER BY id LIMIT {UNSETTLED_BATCH}),
    nothing_left AS MATERIALIZED (
        SELECT unsettled.id FROM (SELECT id FROM batch UNION SELECT unnest(:check_ids)) AS checked
            CROSS JOIN LATERAL (
                SELECT {add_up(NOT_FINAL)} = 0 AS are_final FROM mailing_counts
                WHERE mailing_id = checked.id AND {add_up(OPEN)} = 0 OFFSET 0) AS counts
            CROSS JOIN LATERAL (
                SELECT id FROM mailing WHERE mailing.id = checked.id AND {UNSETTLED_MAILING}
                    AND CASE WHEN is_closed THEN are_final ELSE {HAS_NOTHING_PENDING} END
                OFFSET 0) AS unsettled
        LIMIT {4 * small_audiences.MAILINGS_PER_BATCH})"""  # noqa: S608  # no user input
ENDED_OPEN = f"""
    SELECT id, status FROM mailing
    WHERE {OPEN_MAILING} AND audience_until IS NOT NULL
        AND {ENDED_AT} <= (SELECT clock_timestamp())
    ORDER BY {ENDED_AT} LIMIT {MAX_ENDED}"""  # noqa: S608  # no user input

# Each kind of work has a partial index, so that the cost does not grow with the number of waiting
# mailings. Only a batch of all mailings, and those whose messages changed, are checked for
# `must_finish`.
FIND_PENDING_WORK = text(f"""
    WITH clock AS MATERIALIZED (SELECT clock_timestamp() AS at), {MAYBE_FINISHED}
    SELECT
        EXISTS (SELECT FROM mailing WHERE {OPEN_MAILING} AND audience_until IS NULL
            AND datetime_start <= (SELECT at FROM clock) AND id <> ALL (:skipped)) AS must_start,
        EXISTS (SELECT FROM mailing WHERE {OPEN_MAILING} AND audience_cursor < audience_until
            AND NOT is_replanning AND id <> ALL (:skipped)) AS must_enqueue,
        EXISTS (SELECT FROM mailing WHERE {OPEN_MAILING} AND is_replanning
            AND id <> ALL (:skipped)) AS must_replan,
        EXISTS (SELECT FROM mailing WHERE {OPEN_MAILING} AND retry_before IS NOT NULL
            AND id <> ALL (:skipped)) AS must_retry,
        EXISTS (SELECT FROM ({ENDED_OPEN}) AS ended CROSS JOIN LATERAL (
            SELECT FROM mailing_counts
            WHERE mailing_id = ended.id AND scheduled > 0 OFFSET 0) AS counts)
            AS must_end_messages,
        EXISTS (SELECT FROM nothing_left) AS must_finish,
        extract(epoch FROM least(
            (SELECT min(datetime_start) FROM mailing
                WHERE {OPEN_MAILING} AND audience_until IS NULL AND id <> ALL (:skipped)),
            (SELECT min({ENDED_AT}) FROM mailing
                WHERE {OPEN_MAILING} AND audience_until IS NOT NULL
                AND {ENDED_AT} > (SELECT at FROM clock)))
            - (SELECT at FROM clock))::float8 AS seconds_until_next,
        (SELECT CASE WHEN count(*) = {UNSETTLED_BATCH} THEN max(id) ELSE 0 END FROM batch)
            AS last_checked_id
    """).bindparams(  # noqa: S608  # no user input
    *(bindparam(name, type_=ARRAY(BigInteger)) for name in ("check_ids", "skipped"))
)


async def find_pending_work(
    connection: AsyncConnection,
    after: int = 0,
    check_ids: Collection[int] = (),
    skipped: Collection[int] = (),
) -> PendingWork:
    """Return which work is pending now.

    `must_finish` covers the mailings `check_ids` and the next `UNSETTLED_BATCH` mailings with
    ids above `after`. The mailings `skipped` are ignored for start, enqueue, replan and retry.
    """
    values = {"after": after, "check_ids": list(check_ids), "skipped": list(skipped)}
    return PendingWork(*(await connection.execute(FIND_PENDING_WORK, values)).one())


# A paused mailing is started too: its audience is enqueued, and its messages wait.
DUE_MAILINGS = """
    SELECT id, client_filter FROM mailing
    WHERE {live} AND audience_until IS NULL AND datetime_start <= (SELECT clock_timestamp())
        AND id <> ALL (:skipped)
    ORDER BY datetime_start {order}, id {order} LIMIT :limit FOR UPDATE SKIP LOCKED"""
DUE_MAILINGS_BY_ORDER = [
    text(DUE_MAILINGS.format(live=OPEN_MAILING, order=order)).bindparams(
        bindparam("skipped", type_=ARRAY(BigInteger))
    )
    for order in ("DESC", "ASC")
]
# The snapshot excludes clients that are committed later, even when their ids were assigned before.
START = text("""
    UPDATE mailing SET status = CASE status WHEN 'scheduled' THEN 'running' ELSE status END,
        clients_count = due.clients_count,
        audience_until = coalesce((SELECT max(id) FROM client), 0),
        audience_snapshot = pg_current_snapshot()::text, updated_at = now()
    FROM unnest(:ids, :counts) AS due (id, clients_count)
    WHERE mailing.id = due.id AND audience_until IS NULL""").bindparams(
    bindparam("ids", type_=ARRAY(BigInteger)), bindparam("counts", type_=ARRAY(BigInteger))
)


async def start_due(
    connection: AsyncConnection,
    limit: int = small_audiences.MAILINGS_PER_BATCH,
    skipped: SkippedMailings | None = None,
) -> list[int]:
    """Start up to `limit` mailings whose start has come; return their ids.

    A few mailings with the latest start come first, then those with the earliest start. A mailing
    whose filter cannot be read is skipped from now on.
    """
    skipped = SkippedMailings() if skipped is None else skipped
    filters, numbers = small_audiences.Filters(), dict[int, int]()
    for due in await small_audiences.lock_mailings(
        connection, DUE_MAILINGS_BY_ORDER, limit, skipped
    ):
        if filters.is_full:
            break
        with skipped.on_error(due.id):
            numbers[due.id] = filters.add(due.client_filter)
    if numbers:
        counts = await small_audiences.count(connection, filters)
        clients = [counts.get(number, 0) for number in numbers.values()]
        await connection.execute(START, {"ids": list(numbers), "counts": clients})
        await notify_mailings_changed(connection)
    return list(numbers)


END_REASON = "CASE waiting.status WHEN 'cancelled' THEN 'mailing_cancelled' ELSE 'expired' END"
END_WAITING = text(f"""
    WITH waiting AS MATERIALIZED (
        SELECT message.id, ended.status FROM ({ENDED_OPEN}) AS ended
        CROSS JOIN LATERAL (
            SELECT id FROM message
            WHERE message.mailing_id = ended.id AND message.status = 'scheduled'
            LIMIT :chunk FOR UPDATE SKIP LOCKED) AS message
        LIMIT :chunk
    )
    UPDATE message SET {end_set_clause(END_REASON)}
    FROM waiting WHERE message.id = waiting.id""")  # noqa: S608  # no user input


async def end_scheduled_messages(connection: AsyncConnection, chunk: int) -> bool:
    """End up to `chunk` scheduled messages of mailings that have ended or are cancelled.

    Return whether there were any. Messages become `cancelled`, or `unknown` when their delivery is
    unknown.
    """
    return (await connection.execute(END_WAITING, {"chunk": chunk})).rowcount > 0


# Lock the mailing and its counts together, so that both are current. Counts read before the lock
# could miss messages that a retry has scheduled meanwhile.
FINISH = text(f"""
    WITH {MAYBE_FINISHED},
    done AS MATERIALIZED (
        SELECT mailing.id, is_closed AS was_closed, {add_up(NOT_FINAL)} = 0 AS is_settled
        FROM nothing_left JOIN mailing ON mailing.id = nothing_left.id
            JOIN mailing_counts ON mailing_counts.mailing_id = mailing.id
        WHERE {add_up(OPEN)} = 0 AND {UNSETTLED_MAILING}
            AND CASE WHEN is_closed THEN {add_up(NOT_FINAL)} = 0 ELSE {HAS_NOTHING_PENDING} END
        ORDER BY mailing.id LIMIT {small_audiences.MAILINGS_PER_BATCH}
        FOR NO KEY UPDATE OF mailing, mailing_counts SKIP LOCKED
    )
    UPDATE mailing SET is_closed = true, is_settled = done.is_settled, updated_at = now(),
        status = CASE mailing.status WHEN 'cancelled' THEN 'cancelled' ELSE 'finished' END
    FROM done WHERE mailing.id = done.id
    RETURNING mailing.id,
        CASE WHEN was_closed THEN 'settled' ELSE mailing.status END AS change""").bindparams(  # noqa: S608  # no user input
    bindparam("check_ids", type_=ARRAY(BigInteger))
)


async def finish(
    connection: AsyncConnection, after: int = 0, check_ids: Sequence[int] = ()
) -> list[tuple[int, MailingStatus | Literal["settled"]]]:
    """Close mailings that have nothing left to send, and settle those whose messages are all final.

    Return their ids, each with the final status of a mailing that is closed now, settled or not, or
    with `settled` for one that was closed before. Checks the same mailings as `find_pending_work`.
    At most `small_audiences.MAILINGS_PER_BATCH` are changed in one call, because the start of other
    mailings waits for it.
    """
    rows = await connection.execute(FINISH, {"after": after, "check_ids": list(check_ids)})
    return [(row.id, row.change) for row in rows]


# `= ANY (ARRAY(...))` instead of `IN`: a query plan may run a subquery of `IN` once per row, and
# then delete more than a chunk.
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
    """Delete up to `chunk` messages of deleted mailings; return how many.

    When no more messages are left, delete the mailings too.
    """
    purged = (await connection.execute(PURGE_MESSAGES, {"chunk": chunk})).rowcount
    if purged < chunk:
        mailing_ids = (await connection.scalars(PURGE_MAILINGS)).all()
        if mailing_ids:
            await counters.delete(connection, list(mailing_ids))
    return purged


NEXT_TO_EXPIRE = text(f"""
    UPDATE mailing SET purge_started_at = coalesce(purge_started_at, now()) WHERE id = (
        SELECT id FROM mailing
        WHERE is_settled AND NOT is_purged AND deleted_at IS NULL
            AND {RETENTION_START} < now() - make_interval(days => :days)
        ORDER BY {RETENTION_START} LIMIT 1 FOR UPDATE SKIP LOCKED)
    RETURNING id""")  # noqa: S608  # no user input
DELETE_MESSAGES = text("""
    DELETE FROM message WHERE id = ANY (ARRAY(
        SELECT id FROM message WHERE mailing_id = :mailing_id ORDER BY client_id LIMIT :chunk))""")
MARK_EMPTIED = text("UPDATE mailing SET is_purged = true WHERE id = :mailing_id")


async def delete_expired_messages(connection: AsyncConnection, days: int, chunk: int) -> int:
    """Delete up to `chunk` messages of a mailing past its retention; return how many.

    Retention lasts `days` from the mailing's end, or from the last change of its counts when that
    is later; for a cancelled mailing, always from that last change. Counts and statistics are kept.
    """
    mailing_id = (await connection.execute(NEXT_TO_EXPIRE, {"days": days})).scalar_one_or_none()
    if mailing_id is None:
        return 0
    deleted = await connection.execute(DELETE_MESSAGES, {"mailing_id": mailing_id, "chunk": chunk})
    if deleted.rowcount < chunk:
        await connection.execute(MARK_EMPTIED, {"mailing_id": mailing_id})
    return deleted.rowcount
