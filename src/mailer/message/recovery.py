"""SQL that repairs claims: release orphans, refund attempts, rescue messages of dead workers.

`RESCUE` also reads the table `mailing`, because the status after a rescue depends on the mailing's
`on_unknown`.
"""

from collections.abc import Collection, Sequence
from uuid import UUID

import asyncpg
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.engine import affected_rows
from mailer.message.model import ClaimedMessage
from mailer.message.store import (
    CLAIM_TIME,
    LAST_FIELD_VALUES,
    LAST_GATEWAY,
    LAST_TEXT_VERSION,
    ONLY_THIS_GATEWAY,
    add_failure,
)

EARLIER_RECEIPT_DECIDES = """(receipt_status = 'delivered'
        OR (receipt_status IS NOT NULL AND unknown_reason IS NOT NULL))"""
"""SQL for whether a receipt of an earlier attempt decides the status."""
# Like a result that releases a message: the attempt does not count, and the reason is the last
# failure again.
RELEASE_ORPHANED = f"""
    UPDATE message SET attempts = attempts - 1,
        status = CASE WHEN {EARLIER_RECEIPT_DECIDES} THEN receipt_status ELSE 'scheduled' END,
        reason = CASE WHEN {EARLIER_RECEIPT_DECIDES} THEN receipt_reason ELSE last_failure END,
        unknown_reason = CASE WHEN {EARLIER_RECEIPT_DECIDES} THEN NULL ELSE unknown_reason END,
        sent_at = CASE WHEN {EARLIER_RECEIPT_DECIDES} THEN coalesce(claimed_at, {CLAIM_TIME}) END,
        text_version = CASE WHEN unknown_reason IS NOT NULL THEN text_version
                            ELSE {LAST_TEXT_VERSION} END,
        field_values = CASE WHEN unknown_reason IS NOT NULL THEN field_values
                            ELSE {LAST_FIELD_VALUES} END,
        receipt_status = NULL, receipt_reason = NULL,
        gateway = {LAST_GATEWAY}, lease_owner = NULL, lease_expires_at = NULL, updated_at = now()
    WHERE status = 'sending' AND lease_owner = $1 AND id <> ALL($2::bigint[])"""  # noqa: S608  # likewise


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
# claimed again since; it gets no refund. DISTINCT: after a user's retry the attempts start again at
# 1, so two claims may have the same number. Only the newer one is in `message.attempts`.
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


# The delivery of a message whose lease has expired is unknown, unless a receipt has come. It ends
# as unknown if its mailing's `on_unknown` is `hold` or the attempt was the last one; else it is
# scheduled again.
# The conditions on `origin` rescue nothing until five seconds after a restart or promotion of the
# database: in that time the workers can write the results that they could not write before.
# (A restart or promotion makes the row of `origin` out of date; a worker then writes it again.)
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
        last_failure = 'lease_expired',
        unknown_reason = CASE WHEN receipt_status IS NULL THEN 'lease_expired' END,
        reason = CASE WHEN receipt_status IS NULL THEN 'lease_expired' ELSE receipt_reason END,
        retry_at = NULL, claimed_at = {CLAIM_TIME},
        failures = {add_failure("'lease_expired'")},
        sent_at = CASE WHEN ended OR receipt_status IS NOT NULL THEN {CLAIM_TIME} END,
        route = {ONLY_THIS_GATEWAY},
        status = coalesce(receipt_status, CASE WHEN ended THEN 'unknown' ELSE 'scheduled' END),
        receipt_status = NULL, receipt_reason = NULL,
        lease_owner = NULL, lease_expires_at = NULL, updated_at = now()
    FROM expired
    WHERE message.id = expired.id""")  # noqa: S608  # inserts expressions from above


async def rescue(connection: AsyncConnection, max_attempts: int, chunk: int) -> int:
    """Rescue up to `chunk` messages whose lease has expired; return how many.

    `max_attempts` is the number of attempts after which a message is not sent again.
    """
    rescued = await connection.execute(RESCUE, {"max_attempts": max_attempts, "chunk": chunk})
    return rescued.rowcount
