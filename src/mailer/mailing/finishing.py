"""Finish mailings: cancel what they must not send any more, then close and settle them.

- When a mailing has reached its end or was cancelled, its scheduled messages are ended in chunks.
- A mailing is *closed* when nothing more will be sent: it has no open message (`OPEN`), and no work
  such as a retry is pending.
- A closed mailing is *settled* when all its messages are final: nothing will change any more,
  unless a user acts. A draft is closed but never settled: it has not ended.

The caller owns the transaction. Several workers may run these statements at the same time: each
skips the rows that another worker has locked.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from sqlalchemy import ARRAY, BigInteger, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.sql import add_up
from mailer.db.tables.mailing import ENDED_AT, OPEN_MAILING, UNSETTLED_MAILING
from mailer.mailing import mailing_batches
from mailer.mailing.ending import end_set_clause
from mailer.statuses import NOT_FINAL, OPEN, MailingStatus

# ---- end scheduled messages -----------------------------------------------------------------

MAX_ENDED = 1_000
"""Mailings that `ENDED_OPEN_MAILINGS` returns at most."""

# Mailings that must not send any more but are not closed yet, the earliest end first. `ENDED_AT` is
# `-infinity` for a cancelled mailing. `audience_until` is null before the start: a mailing that was
# never started has no messages. The clock is in a subquery, which is evaluated once, so that an
# index can be used.
ENDED_OPEN_MAILINGS = f"""
    SELECT id, status FROM mailing
    WHERE {OPEN_MAILING} AND audience_until IS NOT NULL
        AND {ENDED_AT} <= (SELECT clock_timestamp())
    ORDER BY {ENDED_AT} LIMIT {MAX_ENDED}"""  # noqa: S608  # no user input
END_REASON = "CASE to_end.status WHEN 'cancelled' THEN 'mailing_cancelled' ELSE 'expired' END"
# The first LIMIT bounds the messages of one mailing, the second one those of all mailings.
END_SCHEDULED_MESSAGES = text(f"""
    WITH to_end AS MATERIALIZED (
        SELECT message.id, ended.status FROM ({ENDED_OPEN_MAILINGS}) AS ended
        CROSS JOIN LATERAL (
            SELECT id FROM message
            WHERE message.mailing_id = ended.id AND message.status = 'scheduled'
            LIMIT :chunk FOR UPDATE SKIP LOCKED) AS message
        LIMIT :chunk
    )
    UPDATE message SET {end_set_clause(END_REASON)}
    FROM to_end WHERE message.id = to_end.id""")  # noqa: S608  # no user input


async def end_scheduled_messages(connection: AsyncConnection, chunk: int) -> bool:
    """End up to `chunk` scheduled messages of mailings that have ended or are cancelled.

    Return whether there were any. A message becomes `cancelled`, or `unknown` if an earlier attempt
    may have delivered it.
    """
    return (await connection.execute(END_SCHEDULED_MESSAGES, {"chunk": chunk})).rowcount > 0


# ---- close and settle mailings --------------------------------------------------------------

UNSETTLED_BATCH = 1_000
"""Unsettled mailings that one statement checks. The next call checks the following ones."""

# The whole audience is enqueued, no retry is in progress, and the messages are not to be replanned.
NO_WORK_IS_PENDING = (
    "audience_cursor = audience_until AND retry_before IS NULL AND NOT is_replanning"
)
HAS_NO_OPEN_MESSAGE = f"{add_up(OPEN)} = 0"
"""Condition on a row of `mailing_counts`."""
# Of the messages that are `sent`, those whose receipt is not awaited any more are final. Unlike
# EXISTS, ORDER BY makes the planner use the index of awaited receipts: while these are a large part
# of the table, it takes a scan of the table to be faster, which reads all of it if none is awaited.
ALL_ARE_FINAL = f"""(({add_up(NOT_FINAL)}) = sent AND (sent = 0 OR (
    SELECT message.id FROM message WHERE message.mailing_id = mailing_counts.mailing_id
        AND message.status = 'sent' AND message.reason IS NULL
    ORDER BY message.sent_at LIMIT 1) IS NULL))"""  # noqa: S608  # no user input
"""Condition on a row of `mailing_counts`."""

MAY_FINISH = f"{UNSETTLED_MAILING} AND status <> 'draft'"

# Two common table expressions for a WITH clause.
#
# - `next_unsettled`: the next batch of unsettled mailings, those with ids above `:after`.
# - `finishable`: the mailings of that batch and of `:check_ids` that can be closed, or, if they are
#   closed already, settled. More than one call finishes, because some of them may be locked.
#
# OFFSET and LIMIT in the subqueries force the planner to use indexes. It misjudges how many
# mailings wait, and would otherwise scan all of them.
FINISHABLE_MAILINGS = f"""
    next_unsettled AS MATERIALIZED (
        SELECT id FROM mailing WHERE {UNSETTLED_MAILING} AND id > :after
        ORDER BY id LIMIT {UNSETTLED_BATCH}),
    finishable AS MATERIALIZED (
        SELECT unsettled.id
        FROM (SELECT id FROM next_unsettled UNION SELECT unnest(:check_ids)) AS checked
            CROSS JOIN LATERAL (
                SELECT {ALL_ARE_FINAL} AS are_final FROM mailing_counts
                WHERE mailing_id = checked.id AND {HAS_NO_OPEN_MESSAGE} OFFSET 0) AS counts
            CROSS JOIN LATERAL (
                SELECT id FROM mailing WHERE mailing.id = checked.id AND {MAY_FINISH}
                    AND CASE WHEN is_closed THEN are_final ELSE {NO_WORK_IS_PENDING} END
                OFFSET 0) AS unsettled
        LIMIT {4 * mailing_batches.MAILINGS_PER_BATCH})"""  # noqa: S608  # no user input

# Locks each mailing together with its counts. PostgreSQL checks the conditions again on the newest
# versions of the locked rows: a mailing that was retried since the statement began is not finished.
FINISH = text(f"""
    WITH {FINISHABLE_MAILINGS},
    locked AS MATERIALIZED (
        SELECT mailing.id, is_closed AS was_closed, {ALL_ARE_FINAL} AS is_settled
        FROM finishable JOIN mailing ON mailing.id = finishable.id
            JOIN mailing_counts ON mailing_counts.mailing_id = mailing.id
        WHERE {HAS_NO_OPEN_MESSAGE} AND {MAY_FINISH}
            AND CASE WHEN is_closed THEN {ALL_ARE_FINAL} ELSE {NO_WORK_IS_PENDING} END
        ORDER BY mailing.id LIMIT {mailing_batches.MAILINGS_PER_BATCH}
        FOR NO KEY UPDATE OF mailing, mailing_counts SKIP LOCKED
    )
    UPDATE mailing SET is_closed = true, is_settled = locked.is_settled, updated_at = now(),
        status = CASE mailing.status WHEN 'cancelled' THEN 'cancelled' ELSE 'finished' END
    FROM locked WHERE mailing.id = locked.id
    RETURNING mailing.id,
        CASE WHEN was_closed THEN 'settled' ELSE mailing.status END AS change""").bindparams(  # noqa: S608  # no user input
    bindparam("check_ids", type_=ARRAY(BigInteger))
)


class FinishedMailing(NamedTuple):
    """A mailing that was closed or settled now."""

    id: int
    change: MailingStatus | Literal["settled"]
    """If it was closed now, perhaps also settled: its status, `finished` or `cancelled`. If it had
    been closed before: `settled`."""


async def finish(
    connection: AsyncConnection, after: int = 0, check_ids: Sequence[int] = ()
) -> list[FinishedMailing]:
    """Close mailings that have nothing left to send, and settle those whose messages are all final.

    Checks the mailings `check_ids`, and the next `UNSETTLED_BATCH` mailings with ids above `after`.
    At most `mailing_batches.MAILINGS_PER_BATCH` are changed in one call, because the start of other
    mailings waits for it.
    """
    rows = await connection.execute(FINISH, {"after": after, "check_ids": list(check_ids)})
    return [FinishedMailing(row.id, row.change) for row in rows]
