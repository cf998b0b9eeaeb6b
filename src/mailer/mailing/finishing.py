"""Finish mailings: end their scheduled messages after their end, then close and settle them.

The caller owns the transaction. Several workers may run these statements at the same time: each
skips the rows that another worker has locked.
"""

from collections.abc import Sequence
from typing import Literal

from sqlalchemy import ARRAY, BigInteger, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.schema import ENDED_AT, OPEN_MAILING, UNSETTLED_MAILING
from mailer.db.sql import add_up
from mailer.mailing import mailing_batches
from mailer.message.ending import end_set_clause
from mailer.statuses import NOT_FINAL, OPEN, MailingStatus

UNSETTLED_BATCH = 1_000
"""Unsettled mailings that one statement checks. The next call checks the following ones."""
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
        LIMIT {4 * mailing_batches.MAILINGS_PER_BATCH})"""  # noqa: S608  # no user input
ENDED_OPEN = f"""
    SELECT id, status FROM mailing
    WHERE {OPEN_MAILING} AND audience_until IS NOT NULL
        AND {ENDED_AT} <= (SELECT clock_timestamp())
    ORDER BY {ENDED_AT} LIMIT {MAX_ENDED}"""  # noqa: S608  # no user input

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
        ORDER BY mailing.id LIMIT {mailing_batches.MAILINGS_PER_BATCH}
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
    At most `mailing_batches.MAILINGS_PER_BATCH` are changed in one call, because the start of other
    mailings waits for it.
    """
    rows = await connection.execute(FINISH, {"after": after, "check_ids": list(check_ids)})
    return [(row.id, row.change) for row in rows]
