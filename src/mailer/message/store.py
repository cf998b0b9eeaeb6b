"""SQL of the job table: claim, finish, rescue; and its pages.

The three statements of the hot loop go to asyncpg directly, each a transaction of its own. The
ledger moves with them, by trigger.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import msgspec
from sqlalchemy import Row, case, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.paging import Position, Slice, fetch_slice
from mailer.db.schema import MESSAGE_STATUSES, client, message
from mailer.message.model import (
    FIRST_DUE,
    ClaimedMessage,
    Failure,
    FinishedMessage,
    Message,
    MessageNotFoundError,
    Story,
)

SHOWN = [
    func.coalesce(message.c.sent_at, message.c.due_at).label(name)
    if name == "datetime_send"
    else message.c[name]
    for name in Message.__struct_fields__
]


async def page(
    connection: AsyncConnection,
    mailing_id: int,
    position: Position,
    count: int | None = None,
    **equal: str | int,
) -> Slice:
    """Return a page of a mailing's messages whose columns equal what is given.

    They are counted unless their `count` is known.
    """
    rows = select(*SHOWN).where(
        message.c.mailing_id == mailing_id,
        *(message.c[name] == value for name, value in equal.items()),
    )
    # the indexes with the status before the id give each status in order; of a client there is one
    is_told_apart = equal.keys().isdisjoint(("status", "client_id"))
    branches = [message.c.status == each for each in MESSAGE_STATUSES if is_told_apart]
    return await fetch_slice(
        connection, rows, message.c.id, position, count=count, branches=branches
    )


def to_message(row: Row[Any]) -> Message:
    """Return the message that a row of `page` stands for."""
    return Message(**row._asdict())


# What is being sent was last changed by its claim; only then does it have a lease. The row of a
# client who is deleted stays, without a phone.
CLAIMED_AT = case((message.c.status == "sending", message.c.updated_at), else_=message.c.claimed_at)
TOLD = [
    *SHOWN,
    *(
        message.c[name]
        for name in ("due_at", "retry_at", "sent_at", "lease_expires_at", "failures")
    ),
    *(message.c[name] for name in ("operator_code", "time_zone")),
    CLAIMED_AT.label("claimed_at"),
    client.c.phone,
]


async def story(connection: AsyncConnection, mailing_id: int, message_id: int) -> Story:
    """Return all that is known of a message of a mailing; raises `MessageNotFoundError`."""
    found = await connection.execute(
        select(*TOLD)
        .join_from(message, client, client.c.id == message.c.client_id, isouter=True)
        .where(message.c.mailing_id == mailing_id, message.c.id == message_id)
    )
    row = found.mappings().one_or_none()
    if row is None:
        raise MessageNotFoundError
    failures = msgspec.convert(row["failures"] or (), tuple[Failure, ...])
    return Story(**{**row, "failures": failures})


Place = tuple[datetime, int]
"""Where a message stands among those of its mailing that wait: when it is due, and its id."""
START: Place = (FIRST_DUE, 0)

# Every mailing gives up to a share of what is due, oldest first, so that a large one cannot keep
# a small one waiting. The index holds only what is scheduled, and each claim goes on behind the
# last one's place: the cost does not grow with what is done, also while a snapshot that somebody
# holds keeps what was claimed in the index. Rows that another process is claiming are passed over.
# The time is asked once, as a select: an index is not searched for what a volatile function
# returns, and would be walked to its end.
# Once too it is asked whether this database may send at all: a restored one may not.
CLAIM = """
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
            AND NOT mailing.replanning AND mailing.deleted_at IS NULL
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
    after: Mapping[int, Place],
    share: int,
    owner: UUID,
    lease: timedelta,
) -> list[ClaimedMessage]:
    """Claim up to `share` due messages of each mailing for `owner`, under a lease.

    Of each mailing those after a place: `START`, or where the last claim has ended.
    """
    due_ats, ids = [place[0] for place in after.values()], [place[1] for place in after.values()]
    rows = await connection.fetch(CLAIM, list(after), share, owner, lease, due_ats, ids)
    return [ClaimedMessage(*row) for row in rows]


# Fenced: only who holds the very lease that the claim was made under may write its outcome; a
# message handed back and claimed again has the same owner and attempt, but another lease. A lease
# means that the message is being sent; to ask for the state too would invite a plan that walks
# over all that were. An attempt that was made, unlike a message handed back, counts or has failed;
# the claim was the last change before. Of the failures those before the newest twenty go.
FINISH = """
    UPDATE message SET status = done.status, attempts = done.attempts,
        reason = CASE WHEN done.status = 'scheduled' THEN coalesce(done.reason, last_failure)
                      ELSE done.reason END,
        last_failure = coalesce(done.failure, last_failure),
        unknown_reason = CASE WHEN done.status IN ('scheduled', 'unknown')
                              THEN coalesce(done.unknown_reason, message.unknown_reason) END,
        claimed_at = CASE WHEN done.attempts = done.claimed OR done.failure IS NOT NULL
                          THEN message.updated_at ELSE message.claimed_at END,
        failures = CASE WHEN done.failure IS NULL THEN failures ELSE
            CASE WHEN jsonb_array_length(failures) >= 20 THEN failures - 0
                 ELSE coalesce(failures, '[]') END
            || jsonb_build_object('attempt', message.attempts, 'claimed_at', message.updated_at,
                'ended_at', now(), 'reason', done.failure) END,
        due_at = coalesce(done.due_at, message.due_at), retry_at = done.retry_at,
        sent_at = CASE WHEN done.status = 'unknown' THEN coalesce(done.sent_at, claimed_at,
                       message.updated_at) ELSE done.sent_at END,
        lease_owner = NULL, lease_expires_at = NULL, updated_at = now()
    FROM unnest($2::bigint[], $3::int[], $4::timestamptz[], $5::text[], $6::text[], $7::int[],
        $8::timestamptz[], $9::timestamptz[], $10::text[], $11::text[], $12::timestamptz[])
        AS done (id, claimed, leased_until, status, reason, attempts, due_at, sent_at, failure,
            unknown_reason, retry_at)
    WHERE message.id = done.id AND message.lease_owner = $1
        AND message.attempts = done.claimed AND message.lease_expires_at = done.leased_until
    RETURNING message.id"""


async def finish(
    connection: asyncpg.Connection, owner: UUID, finished: Sequence[FinishedMessage]
) -> set[int]:
    """Write what became of claimed messages; return those that still were under the lease."""
    in_order = sorted(finished, key=lambda done: done.claim.id)  # as all lock who change many
    columns = zip(
        *(
            (
                *(done.claim.id, done.claim.attempts, done.claim.lease_expires_at),
                *(done.status, done.reason, done.attempts, done.due_at, done.sent_at),
                *(done.last_failure, done.unknown_reason, done.retry_at),
            )
            for done in in_order
        ),
        strict=True,
    )
    # what nobody has goes empty: each value costs, and unnest() fills up with nulls
    given = [() if column.count(None) == len(column) else column for column in columns]
    return {row[0] for row in await connection.fetch(FINISH, owner, *given)}


LET_GO = """
    UPDATE message SET status = 'scheduled', reason = last_failure, attempts = attempts - 1,
        lease_owner = NULL, lease_expires_at = NULL, updated_at = now()
    WHERE status = 'sending' AND lease_owner = $1 AND id <> ALL($2::bigint[])"""


async def let_go(connection: asyncpg.Connection, owner: UUID, held: Collection[int]) -> int:
    """Release messages leased by `owner` that are not in `held` (claims whose answer was lost)."""
    tag = await connection.execute(LET_GO, owner, list(held))
    return int(tag.rpartition(" ")[2])


# The failures before the breaker opened were the gateway's: what they cost is given back, to those
# that nobody has claimed since. A message may be among them more than once.
GIVE_BACK = """
    UPDATE message SET attempts = message.attempts - failed.times, updated_at = now()
    FROM (SELECT id, max(attempts) AS attempts, count(DISTINCT attempts) AS times
          FROM unnest($1::bigint[], $2::int[]) AS each (id, attempts) GROUP BY id) AS failed
    WHERE message.id = failed.id AND message.attempts = failed.attempts
        AND message.status = 'scheduled'"""


async def give_back(connection: asyncpg.Connection, failed: Sequence[ClaimedMessage]) -> None:
    """Give back the attempts of these claims to messages that wait again after the last of them."""
    attempts = [claim.attempts for claim in failed]
    await connection.execute(GIVE_BACK, [claim.id for claim in failed], attempts)


# The delivery of a message whose lease has expired is unknown: where the mailing says `hold`, and
# after the last attempt, it ends as unknown. After a restart or promotion of the database the
# owners come first: they may have outcomes that they could not write meanwhile. Either makes the
# origin out of date, until its row is written anew.
RESCUE = text("""
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
        failures = CASE WHEN jsonb_array_length(failures) >= 20 THEN failures - 0
                        ELSE coalesce(failures, '[]') END
            || jsonb_build_object('attempt', message.attempts, 'claimed_at', message.updated_at,
                'ended_at', now(), 'reason', 'lease_expired'),
        sent_at = CASE WHEN ended THEN message.updated_at END,
        status = CASE WHEN ended THEN 'unknown' ELSE 'scheduled' END,
        lease_owner = NULL, lease_expires_at = NULL, updated_at = now()
    FROM expired
    WHERE message.id = expired.id""")


async def rescue(connection: AsyncConnection, max_attempts: int, chunk: int) -> int:
    """Take up to `chunk` messages from owners whose lease has expired; return how many."""
    rescued = await connection.execute(RESCUE, {"max_attempts": max_attempts, "chunk": chunk})
    return rescued.rowcount


FIRST_WAITING = """
    SELECT asked.id, first.due_at, first.id,
        extract(epoch FROM first.due_at - clock_timestamp())::float8
    FROM unnest($1::bigint[], $2::timestamptz[]) AS asked (id, since) CROSS JOIN LATERAL (
        SELECT due_at, id FROM message
        WHERE mailing_id = asked.id AND status = 'scheduled' AND due_at >= asked.since
        ORDER BY due_at, id LIMIT 1) AS first
    WHERE (SELECT sending_is_allowed())"""


async def first_waiting(
    connection: asyncpg.Connection, since: Mapping[int, datetime | None]
) -> list[tuple[int, Place, float]]:
    """Return the first message of each mailing that waits: its place, and seconds until it is due.

    Of each those that are due since a moment, or all; mailings of which none waits, or may be
    sent, are left out.
    """
    moments = [moment or FIRST_DUE for moment in since.values()]
    rows = await connection.fetch(FIRST_WAITING, list(since), moments)
    return [(mailing, (due_at, id_), seconds) for mailing, due_at, id_, seconds in rows]
