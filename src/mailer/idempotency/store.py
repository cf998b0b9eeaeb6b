"""SQL of requests with an Idempotency-Key: claims, results and first responses.

A claim has a lease, which the worker renews while it processes the request. Every change of the row
is fenced: it has the UUID of the attempt in its condition, and so changes nothing once another
attempt has the claim. The caller owns the transaction; single statements need none.
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.access.model import Actor
from mailer.db.engine import AnyConnection, execute_driver_sql
from mailer.idempotency.model import (
    Acquired,
    ClaimLostError,
    Continued,
    IdempotencyClaim,
    IdempotencyRecord,
    InUse,
)


def owner_of(actor: Actor) -> str:
    """Return the owner of an actor's keys, such as `user:7`.

    Different owners may use the same key for different requests.
    """
    return actor.kind if actor.id is None else f"{actor.kind}:{actor.id}"


# A key expires after 24 hours, but not while its request is still being processed.
HAS_EXPIRED = "created_at < now() - interval '24 hours' AND leased_until < now()"
OWN_CLAIM = "owner = :owner AND key = :key AND attempt = :attempt"
# Inserts nothing if the key has a row. ON CONFLICT DO NOTHING does not wait for a lock on that row,
# which the transaction of the first request may hold.
#
# synchronous_commit is off to save a disk flush. A crash of the server may then lose the claim, but
# with it the work of the request, which is committed later.
INSERT_CLAIM = text("""
    INSERT INTO idempotency (owner, key, attempt, leased_until)
    SELECT :owner, :key, CAST(:attempt AS uuid), now() + :lease
    FROM set_config('synchronous_commit', 'off', true)
    ON CONFLICT DO NOTHING""")
SELECT_RECORD = text(f"""
    SELECT attempt, digest, status, media_type, body,
        status IS NULL AND leased_until < now() AS is_free, {HAS_EXPIRED} AS has_expired
    FROM idempotency WHERE owner = :owner AND key = :key""")  # noqa: S608  # our own condition
DELETE_EXPIRED_RECORD = text(f"""
    DELETE FROM idempotency
    WHERE owner = :owner AND key = :key AND {HAS_EXPIRED}""")  # noqa: S608  # our own condition
# Replaces an attempt whose lease has expired and that has stored no response. If the transaction of
# that attempt's work is still open, the statement waits for it, and then returns its result. The
# 24 hours count from the first claim if there is a result, and else from now.
RECLAIM = text("""
    UPDATE idempotency SET attempt = :attempt, leased_until = now() + :lease,
        created_at = CASE WHEN result IS NULL THEN now() ELSE created_at END
    WHERE owner = :owner AND key = :key AND attempt = :previous_attempt
        AND status IS NULL AND leased_until < now()
    RETURNING digest, result, created_at""")


async def acquire(
    connection: AsyncConnection, claim: IdempotencyClaim, lease: timedelta
) -> Acquired | Continued | InUse:
    """Acquire a claim for `lease`, unless its key is in use.

    Starts again when another request changes the key's row between two statements.
    """
    parameters = {"owner": claim.owner, "key": claim.key, "attempt": claim.attempt, "lease": lease}
    while (await connection.execute(INSERT_CLAIM, parameters)).rowcount == 0:
        record = await get_record(connection, claim)
        if record is None:
            continue
        if record.has_expired:
            await connection.execute(DELETE_EXPIRED_RECORD, parameters)
            continue
        if not record.is_free:
            return InUse(record)
        fence = {"previous_attempt": record.attempt}
        row = (await connection.execute(RECLAIM, parameters | fence)).one_or_none()
        if row is not None:
            return Continued(row.created_at, row.digest, row.result)
    return Acquired()


async def get_record(
    connection: AsyncConnection, claim: IdempotencyClaim
) -> IdempotencyRecord | None:
    """Return the record of a claim's key; None if there is none."""
    parameters = {"owner": claim.owner, "key": claim.key}
    row = (await connection.execute(SELECT_RECORD, parameters)).mappings().one_or_none()
    return None if row is None else IdempotencyRecord(**row)


# The next four statements change a row only if the claim is not lost, and no response is stored.
RENEW_CLAIM = text(f"""
    UPDATE idempotency SET leased_until = now() + :lease
    WHERE {OWN_CLAIM} AND status IS NULL""")  # noqa: S608  # our own condition
RELEASE_CLAIM = text(f"""
    UPDATE idempotency SET leased_until = now()
    WHERE {OWN_CLAIM} AND status IS NULL""")  # noqa: S608  # our own condition
# A request without a result leaves no row, so that its repeat starts from the beginning.
DELETE_CLAIM = text(f"""
    DELETE FROM idempotency
    WHERE {OWN_CLAIM} AND status IS NULL AND result IS NULL""")  # noqa: S608  # our own condition
STORE_RESPONSE = text(f"""
    UPDATE idempotency SET leased_until = now(), digest = :digest, status = :status,
        media_type = :media_type, body = :body
    WHERE {OWN_CLAIM} AND status IS NULL""")  # noqa: S608  # our own condition


async def renew(connection: AsyncConnection, claim: IdempotencyClaim, lease: timedelta) -> bool:
    """Renew a claim for another `lease`; return False if the claim is lost."""
    renewed = await connection.execute(RENEW_CLAIM, _claim_parameters(claim) | {"lease": lease})
    return renewed.rowcount == 1


async def release(connection: AsyncConnection, claim: IdempotencyClaim) -> None:
    """End a claim: a repeat then continues with its result, or else starts from the beginning."""
    if (await connection.execute(DELETE_CLAIM, _claim_parameters(claim))).rowcount == 0:
        await connection.execute(RELEASE_CLAIM, _claim_parameters(claim))


# Executed in the transaction of the work. Changes no row if another attempt has the claim now, or
# has done the work. So only one attempt of a request can commit its work.
COMPLETE = """
    UPDATE idempotency SET result = $1, client_id = $2, digest = $3
    WHERE owner = $4 AND key = $5 AND attempt = $6 AND result IS NULL"""


async def complete(
    connection: AnyConnection,
    claim: IdempotencyClaim | None,
    result: Mapping[str, Any],
    *,
    client_id: int | None = None,
) -> None:
    """Store what a request did, in the transaction that did it; do nothing without a claim.

    A repeat whose first response was lost finds `result` in its claim. `client_id` is a client that
    the request created. Raises `ClaimLostError` if another attempt of the request has done the work
    or continues it; the transaction must then be rolled back.
    """
    if claim is None:
        return
    stored = msgspec.json.encode(result).decode()
    values = (stored, client_id, claim.digest, claim.owner, claim.key, claim.attempt)
    if await execute_driver_sql(connection, COMPLETE, values) == 0:
        raise ClaimLostError


MAX_STORED_REFUSALS = 1000
"""Refusals (4xx) that are stored for one owner at a time."""
# Counts no further than to :limit.
COUNT_REFUSALS = text("""
    SELECT count(*) FROM (
        SELECT FROM idempotency WHERE owner = :owner AND status >= 400 LIMIT :limit) AS refusals""")


async def can_store_refusal(connection: AsyncConnection, claim: IdempotencyClaim) -> bool:
    """Return whether the owner of a claim has fewer than `MAX_STORED_REFUSALS` stored refusals."""
    parameters = {"owner": claim.owner, "limit": MAX_STORED_REFUSALS}
    count = (await connection.execute(COUNT_REFUSALS, parameters)).scalar_one()
    return bool(count < MAX_STORED_REFUSALS)


async def store_response(
    connection: AsyncConnection,
    claim: IdempotencyClaim,
    status: int,
    media_type: str | None,
    body: bytes,
) -> bool:
    """Store the first response, and end the claim.

    Returns False, and stores nothing, if the claim is lost or the created client has been erased.
    """
    values = {"digest": claim.digest, "status": status, "media_type": media_type, "body": body}
    stored = await connection.execute(STORE_RESPONSE, _claim_parameters(claim) | values)
    return stored.rowcount == 1


# The stored response to the request that created the client holds personal data: a status of 409
# without a body replaces it. The digest of the request's body could be reversed by trying every
# phone: random bytes replace it.
ERASE_OF_CLIENT = text("""
    UPDATE idempotency SET status = 409, media_type = NULL, body = NULL,
        digest = uuid_send(gen_random_uuid())
    WHERE client_id = :client_id""")


async def erase_of_client(connection: AsyncConnection, client_id: int) -> None:
    """Erase the stored response to the request that created a client."""
    await connection.execute(ERASE_OF_CLIENT, {"client_id": client_id})


def _claim_parameters(claim: IdempotencyClaim) -> dict[str, Any]:
    return {"owner": claim.owner, "key": claim.key, "attempt": claim.attempt}


# ARRAY, not IN: PostgreSQL may run the subquery of IN again for each row, and delete more than a
# chunk. SKIP LOCKED: rows that are being changed are left for later.
PURGE = text(f"""
    DELETE FROM idempotency WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM idempotency WHERE {HAS_EXPIRED}
        ORDER BY created_at LIMIT :chunk FOR UPDATE SKIP LOCKED))""")  # noqa: S608  # our own condition


async def purge(connection: AsyncConnection, chunk: int) -> int:
    """Delete up to `chunk` expired rows; return how many were deleted."""
    return (await connection.execute(PURGE, {"chunk": chunk})).rowcount
