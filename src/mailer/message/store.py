"""SQL of the job table: claim and release messages, record results, rescue messages.

The functions with a connection of asyncpg belong to the sending loop. Each of their statements is a
transaction of its own. Triggers update the table `mailing_counts` in the same transactions.

`CLAIM_DUE` and `RESCUE` also read the table `mailing`, although that package is a layer above: a
claim is right only if the mailing may send at the moment of the claim, and so in one statement.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from uuid import UUID

import asyncpg
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.engine import affected_rows
from mailer.message.model import EARLIEST_DUE, ClaimedMessage, MessageResult

MAX_FAILURES = 20
"""Failed attempts of a message that are kept: the newest ones."""

ClaimCursor = tuple[datetime, int]
"""Position of a message in its mailing's order of claims: `due_at` and `id`."""
FIRST_CURSOR: ClaimCursor = (EARLIEST_DUE, 0)
"""The position before all messages."""

# $1, $5 and $6 are the ids of mailings, and the due time and id of the last message that was
# claimed of each ("last"). `due` are at most $2 messages of each mailing, oldest first, so that a
# large mailing does not delay a small one.
# The index holds scheduled messages only, and a claim starts after the mailing's cursor. So the
# cost does not grow with the number of messages done, even while an old snapshot keeps claimed rows
# in the index. Rows that another worker is claiming are skipped.
# The subselects call volatile functions once. Without one around clock_timestamp(), PostgreSQL
# would not use it as an index condition and would scan the index to its end. A restored database
# may not send: then nothing is claimed.
CLAIM_DUE = """
    WITH due AS MATERIALIZED (
        SELECT message.id, message.client_id
        FROM unnest($1::bigint[], $5::timestamptz[], $6::bigint[])
            AS last (mailing_id, due_at, id)
        JOIN mailing ON mailing.id = last.mailing_id
        CROSS JOIN LATERAL (
            SELECT id, client_id FROM message
            WHERE message.mailing_id = last.mailing_id
                AND status = 'scheduled' AND message.due_at <= (SELECT clock_timestamp())
                AND (message.due_at, message.id) > (last.due_at, last.id)
            ORDER BY message.due_at, message.id LIMIT $2 FOR UPDATE SKIP LOCKED
        ) AS message
        WHERE mailing.status = 'running'
            AND NOT mailing.is_replanning AND mailing.deleted_at IS NULL
            AND mailing.datetime_end > clock_timestamp() AND (SELECT sending_is_allowed())
    )
    UPDATE message SET status = 'sending', reason = NULL, attempts = attempts + 1,
        lease_owner = $3, lease_expires_at = clock_timestamp() + $4, updated_at = now()
    FROM due JOIN client ON client.id = due.client_id
    WHERE message.id = due.id
    RETURNING message.id, message.mailing_id, message.attempts, message.lease_expires_at,
        client.phone, client.time_zone, message.unknown_reason, message.due_at,
        message.last_failure"""


async def claim(
    connection: asyncpg.Connection,
    after: Mapping[int, ClaimCursor],
    share: int,
    owner: UUID,
    lease: timedelta,
) -> list[ClaimedMessage]:
    """Claim up to `share` due messages of each mailing for the worker `owner`, for `lease`.

    `after` maps the id of each mailing to its claim cursor; only messages after the cursor are
    claimed. The cursor is `FIRST_CURSOR` or the position of the last message of an earlier claim.
    """
    due_ats, ids = [last[0] for last in after.values()], [last[1] for last in after.values()]
    rows = await connection.fetch(CLAIM_DUE, list(after), share, owner, lease, due_ats, ids)
    return [ClaimedMessage(*row) for row in rows]


def add_failure(reason: str) -> str:
    """Return an SQL expression for `failures` with a failure of the current attempt at the end.

    `reason` is an SQL expression. The last change of the message before this one was its claim, so
    `updated_at` is the time of the claim. `failures - 0` is without the oldest failure.
    """
    return f"""
        CASE WHEN jsonb_array_length(failures) >= {MAX_FAILURES} THEN failures - 0
             ELSE coalesce(failures, '[]') END
        || jsonb_build_object('attempt', message.attempts, 'claimed_at', message.updated_at,
            'ended_at', now(), 'reason', {reason})"""


# Fenced: a result is stored only while the message has exactly the lease of its claim. Owner and
# attempt are not enough: a message that was released and claimed again can have both as before.
# A lease implies the status `sending`. The status is not in the condition, because it could make
# the planner scan all messages that were ever in that status.
# `claimed_at` is set only when the attempt was made: then it counts, or it has a failure. The last
# change before this one was the claim, so `updated_at` is the time of the claim.
RECORD_RESULTS = f"""
    UPDATE message SET status = result.status, attempts = result.attempts,
        reason = CASE WHEN result.status = 'scheduled' THEN coalesce(result.reason, last_failure)
                      ELSE result.reason END,
        last_failure = coalesce(result.failure, last_failure),
        unknown_reason = CASE WHEN result.status IN ('scheduled', 'unknown')
                              THEN coalesce(result.unknown_reason, message.unknown_reason) END,
        claimed_at = CASE WHEN result.attempts = result.claimed_attempts
                            OR result.failure IS NOT NULL
                          THEN message.updated_at ELSE message.claimed_at END,
        failures = CASE WHEN result.failure IS NULL THEN failures
                        ELSE {add_failure("result.failure")} END,
        due_at = coalesce(result.due_at, message.due_at), retry_at = result.retry_at,
        sent_at = CASE WHEN result.status = 'unknown' THEN coalesce(result.sent_at, claimed_at,
                       message.updated_at) ELSE result.sent_at END,
        lease_owner = NULL, lease_expires_at = NULL, updated_at = now()
    FROM unnest($2::bigint[], $3::int[], $4::timestamptz[], $5::text[], $6::text[], $7::int[],
        $8::timestamptz[], $9::timestamptz[], $10::text[], $11::text[], $12::timestamptz[])
        AS result (id, claimed_attempts, leased_until, status, reason, attempts, due_at, sent_at,
            failure, unknown_reason, retry_at)
    WHERE message.id = result.id AND message.lease_owner = $1
        AND message.attempts = result.claimed_attempts
        AND message.lease_expires_at = result.leased_until
    RETURNING message.id"""  # noqa: S608  # inserts an expression from above


async def record_results(
    connection: asyncpg.Connection, owner: UUID, results: Sequence[MessageResult]
) -> set[int]:
    """Store results of messages that `owner` has claimed; return the ids of the stored ones.

    A result is not stored when the lease of its claim is no longer valid.
    """
    ordered = sorted(results, key=lambda result: result.claim.id)  # one lock order for all writers
    columns = zip(  # $2 to $12 of the statement
        *(
            (
                *(result.claim.id, result.claim.attempts, result.claim.lease_expires_at),
                *(result.status, result.reason, result.attempts, result.due_at, result.sent_at),
                *(result.last_failure, result.unknown_reason, result.retry_at),
            )
            for result in ordered
        ),
        strict=True,
    )
    # A column of nulls only is sent as an empty array, because sending each value costs time;
    # unnest() fills the shorter arrays with nulls.
    arrays = [() if column.count(None) == len(column) else column for column in columns]
    return {row[0] for row in await connection.fetch(RECORD_RESULTS, owner, *arrays)}


RELEASE_ORPHANED = """
    UPDATE message SET status = 'scheduled', reason = last_failure, attempts = attempts - 1,
        lease_owner = NULL, lease_expires_at = NULL, updated_at = now()
    WHERE status = 'sending' AND lease_owner = $1 AND id <> ALL($2::bigint[])"""


async def release_orphaned(
    connection: asyncpg.Connection, owner: UUID, unrecorded: Collection[int]
) -> int:
    """Release the orphans of the worker `owner`; return their number.

    Orphans were claimed by a statement whose answer was lost with the connection. These are the
    messages leased by `owner` whose ids are not in `unrecorded`, the claims that it knows.
    """
    return affected_rows(await connection.execute(RELEASE_ORPHANED, owner, list(unrecorded)))


# `failed` has one row for each message: the attempts of its newest failed claim, and the number of
# its failed attempts (`times`). A message with another number of attempts, or another status, was
# claimed again since; it gets no refund.
REFUND_ATTEMPTS = """
    UPDATE message SET attempts = message.attempts - failed.times, updated_at = now()
    FROM (SELECT id, max(attempts) AS attempts, count(DISTINCT attempts) AS times
          FROM unnest($1::bigint[], $2::int[]) AS claim (id, attempts) GROUP BY id) AS failed
    WHERE message.id = failed.id AND message.attempts = failed.attempts
        AND message.status = 'scheduled'"""


async def refund_attempts(connection: asyncpg.Connection, failed: Sequence[ClaimedMessage]) -> None:
    """Refund the attempts of failed claims to messages that were not claimed again since.

    The failures belong to an outage of the gateway. `failed` may have several of one message.
    """
    attempts = [claim.attempts for claim in failed]
    await connection.execute(REFUND_ATTEMPTS, [claim.id for claim in failed], attempts)


# The delivery of a message whose lease has expired is unknown. It ends as unknown if the mailing
# says `hold` or the attempt was the last one; else it is scheduled again. After a restart or
# promotion of the database nothing is rescued for five seconds: the owners may have results that
# they could not write before. A restart or promotion makes the row of `origin` out of date, until
# it is written again.
RESCUE = text(f"""
    WITH expired AS MATERIALIZED (
        SELECT message.id, on_unknown = 'hold' OR attempts >= :max_attempts AS ended
        FROM message JOIN mailing ON mailing.id = mailing_id
        WHERE message.status = 'sending' AND lease_expires_at <= (SELECT clock_timestamp())
            AND (SELECT origin_is_current()) AND EXISTS (SELECT FROM origin
                WHERE moved_at < clock_timestamp() - interval '5 seconds')
        LIMIT :chunk FOR UPDATE OF message SKIP LOCKED
    )
    UPDATE message SET
        last_failure = 'lease_expired', unknown_reason = 'lease_expired',
        reason = 'lease_expired', retry_at = NULL, claimed_at = message.updated_at,
        failures = {add_failure("'lease_expired'")},
        sent_at = CASE WHEN ended THEN message.updated_at END,
        status = CASE WHEN ended THEN 'unknown' ELSE 'scheduled' END,
        lease_owner = NULL, lease_expires_at = NULL, updated_at = now()
    FROM expired
    WHERE message.id = expired.id""")  # noqa: S608  # inserts an expression from above


async def rescue(connection: AsyncConnection, max_attempts: int, chunk: int) -> int:
    """Rescue up to `chunk` messages whose lease has expired; return how many.

    `max_attempts` is the number of attempts after which a message is not sent again.
    """
    rescued = await connection.execute(RESCUE, {"max_attempts": max_attempts, "chunk": chunk})
    return rescued.rowcount


FIRST_WAITING = """
    SELECT asked.mailing_id, first.due_at, first.id,
        extract(epoch FROM first.due_at - clock_timestamp())::float8
    FROM unnest($1::bigint[], $2::timestamptz[]) AS asked (mailing_id, since) CROSS JOIN LATERAL (
        SELECT due_at, id FROM message
        WHERE mailing_id = asked.mailing_id AND status = 'scheduled' AND due_at >= asked.since
        ORDER BY due_at, id LIMIT 1) AS first
    WHERE (SELECT sending_is_allowed())"""


async def first_waiting(
    connection: asyncpg.Connection, since: Mapping[int, datetime | None]
) -> list[tuple[int, ClaimCursor, float]]:
    """Return the first scheduled message of each mailing, in the order of claims.

    `since` maps the id of each mailing to a moment; messages due before that moment are ignored.
    None stands for no such moment. Each entry of the result is the mailing's id, the message's
    position, and the seconds until the message is due (negative when it is due already). Mailings
    without such a message are left out. The result is empty while this database may not send.
    """
    moments = [moment or EARLIEST_DUE for moment in since.values()]
    rows = await connection.fetch(FIRST_WAITING, list(since), moments)
    return [(mailing_id, (due_at, id_), seconds) for mailing_id, due_at, id_, seconds in rows]
