"""SQL of requests under an Idempotency-Key: who works on one, what it did, its first answer.

A claim is a lease, as with messages: who holds it renews it while the request is worked on, and
everything that is written is fenced by the attempt. The caller owns the transaction; none is needed
around a single statement.
"""

from datetime import datetime, timedelta
from typing import Any

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.access.model import Actor, Claim


class Standing(msgspec.Struct, frozen=True):
    """What stands under a key that another request has taken."""

    attempt: object
    digest: bytes | None
    status: int | None
    """Of the first answer; None while there is none."""
    media_type: str | None
    body: bytes | None
    """None of an answer that was erased."""
    is_free: bool
    """Whether nobody works on it any more, and nobody has answered it."""
    is_over: bool
    """Whether it is so old that it does not count."""


def owner_of(actor: Actor) -> str:
    """Return whose keys they are: nobody meets the key or the answer of another."""
    return actor.kind if actor.id is None else f"{actor.kind}:{actor.id}"


# An answer counts for a day. What is still worked on then is left to who works on it.
IS_OVER = "created_at < now() - interval '24 hours' AND taken_until < now()"
MINE = "owner = :owner AND key = :key AND attempt = :attempt"
# Waits for no row's lock, which the transaction of the request's own work may hold; nor for the
# disk: what the request does is written after it, and is not kept by a server that lost it.
BEGIN = text("""
    INSERT INTO idempotency (owner, key, attempt, taken_until)
    SELECT :owner, :key, CAST(:attempt AS uuid), now() + :lease
    FROM set_config('synchronous_commit', 'off', true)
    ON CONFLICT DO NOTHING""")
LOOK = text(f"""
    SELECT attempt, digest, status, media_type, body,
        status IS NULL AND taken_until < now() AS is_free, {IS_OVER} AS is_over
    FROM idempotency WHERE owner = :owner AND key = :key""")  # noqa: S608  # our own condition
CLEAR = text(f"""
    DELETE FROM idempotency
    WHERE owner = :owner AND key = :key AND {IS_OVER}""")  # noqa: S608  # likewise
# A late attempt may be about to commit: this waits for it, and then finds what it did. The day
# counts from when that was.
TAKE_OVER = text("""
    UPDATE idempotency SET attempt = :attempt, taken_until = now() + :lease,
        created_at = CASE WHEN effect IS NULL THEN now() ELSE created_at END
    WHERE owner = :owner AND key = :key AND attempt = :before
        AND status IS NULL AND taken_until < now()
    RETURNING digest, effect, created_at""")


async def take(
    connection: AsyncConnection, claim: Claim, lease: timedelta
) -> Standing | datetime | None:
    """Take a claim for `lease`: return None when it is new, and what stands there when it is not.

    A claim that was taken over, from who died or gave it up, is told by the moment when it was
    first taken; it then has the digest and the effect that were written down.
    """
    given = {"owner": claim.owner, "key": claim.key, "attempt": claim.attempt, "lease": lease}
    while (await connection.execute(BEGIN, given)).rowcount == 0:
        standing = await look(connection, claim)
        if standing is None:
            continue
        if standing.is_over:
            await connection.execute(CLEAR, given)
            continue
        if not standing.is_free:
            return standing
        before = {"before": standing.attempt}
        row = (await connection.execute(TAKE_OVER, given | before)).one_or_none()
        if row is not None:
            claim.digest, claim.effect = row.digest, row.effect
            taken_at: datetime = row.created_at
            return taken_at
    return None


async def look(connection: AsyncConnection, claim: Claim) -> Standing | None:
    """Return what stands under a claim's key."""
    given = {"owner": claim.owner, "key": claim.key}
    row = (await connection.execute(LOOK, given)).mappings().one_or_none()
    return None if row is None else Standing(**row)


RENEW = text(f"""
    UPDATE idempotency SET taken_until = now() + :lease
    WHERE {MINE} AND status IS NULL""")  # noqa: S608  # our own condition
GIVE_UP = text(f"""
    UPDATE idempotency SET taken_until = now()
    WHERE {MINE} AND status IS NULL""")  # noqa: S608  # likewise
# What did nothing leaves no row: its next repeat begins anew.
DROP = text(f"""
    DELETE FROM idempotency
    WHERE {MINE} AND status IS NULL AND effect IS NULL""")  # noqa: S608  # likewise
ANSWER = text(f"""
    UPDATE idempotency SET taken_until = now(), digest = :digest, status = :status,
        media_type = :media_type, body = :body
    WHERE {MINE} AND status IS NULL""")  # noqa: S608  # likewise


async def renew(connection: AsyncConnection, claim: Claim, lease: timedelta) -> bool:
    """Keep a claim for another `lease`; False when it is lost."""
    return (await connection.execute(RENEW, _mine(claim) | {"lease": lease})).rowcount == 1


async def give_up(connection: AsyncConnection, claim: Claim) -> None:
    """Let the next who repeats the request work on it, from where it stands."""
    if (await connection.execute(DROP, _mine(claim))).rowcount == 0:
        await connection.execute(GIVE_UP, _mine(claim))


MOST_REFUSALS = 1000
"""Refusals of one owner that are kept at a time."""
COUNT_REFUSALS = text("""
    SELECT count(*) FROM (
        SELECT FROM idempotency WHERE owner = :owner AND status >= 400 LIMIT :most) AS kept""")


async def may_keep_refusal(connection: AsyncConnection, claim: Claim) -> bool:
    """Return whether the owner of a claim has fewer refusals kept than `MOST_REFUSALS`."""
    given = {"owner": claim.owner, "most": MOST_REFUSALS}
    return bool((await connection.execute(COUNT_REFUSALS, given)).scalar_one() < MOST_REFUSALS)


async def answer(
    connection: AsyncConnection, claim: Claim, status: int, media_type: str | None, body: bytes
) -> bool:
    """Keep the first answer; False when the claim is lost, or what it made is erased already."""
    given = {"digest": claim.digest, "status": status, "media_type": media_type, "body": body}
    return (await connection.execute(ANSWER, _mine(claim) | given)).rowcount == 1


def _mine(claim: Claim) -> dict[str, Any]:
    return {"owner": claim.owner, "key": claim.key, "attempt": claim.attempt}


# An array: a plan may run what stands in an IN again for each row, and delete more than a chunk.
PURGE = text(f"""
    DELETE FROM idempotency WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM idempotency WHERE {IS_OVER}
        ORDER BY created_at LIMIT :chunk FOR UPDATE SKIP LOCKED))""")  # noqa: S608  # likewise


async def purge(connection: AsyncConnection, chunk: int) -> int:
    """Delete up to `chunk` answers that count no more; return how many."""
    return (await connection.execute(PURGE, {"chunk": chunk})).rowcount
