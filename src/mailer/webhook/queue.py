"""SQL of deliveries as jobs: claims, results, expiry. The caller owns the transaction.

Several workers may run these statements at the same time: each skips the rows that another worker
has locked. A claim sets `attempt_at` to the end of its lease; if the worker dies, the delivery is
due again then. A result counts only if no other attempt has started since.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy import ARRAY, BigInteger, Integer, String, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.webhook.model import EVENT_RETENTION, RETRY_PERIOD

LEASE = 240
"""Seconds for which a claim is valid: longer than all requests of a worker to an endpoint take."""
MAX_WAITING_DELIVERIES = 10_000
"""Most deliveries that wait for one endpoint; the oldest ones beyond are dropped."""


class Endpoint(msgspec.Struct, frozen=True):
    """An enabled endpoint: where to send, and the keys to sign with."""

    id: int
    url: str
    keys: tuple[bytes, ...]
    is_failing: bool
    """Whether its last attempt has failed."""


SELECT_ENDPOINTS = text("""
    SELECT id, url, secret, failures > 0 AS is_failing,
        CASE WHEN previous_secret_until > now() THEN previous_secret END AS previous_secret
    FROM webhook WHERE is_enabled AND (SELECT sending_is_allowed()) ORDER BY id""")


async def read_endpoints(connection: AsyncConnection) -> list[Endpoint]:
    """Return the enabled endpoints; none while a restored database may not send."""
    return [
        Endpoint(
            row.id,
            row.url,
            tuple(key for key in (row.secret, row.previous_secret) if key is not None),
            row.is_failing,
        )
        for row in await connection.execute(SELECT_ENDPOINTS)
    ]


class ClaimedDelivery(msgspec.Struct, frozen=True):
    """A delivery that this worker is to attempt, with its event."""

    id: int
    webhook_id: int
    attempts: int
    """Including this one; with the id it identifies the claim."""
    event_id: UUID
    event_type: str
    event_at: datetime
    data: str
    """The field `data` of the payload, as JSON."""


# The subselect calls clock_timestamp() once, so that PostgreSQL uses it as an index condition.
CLAIM_DELIVERIES = text(f"""
    WITH due AS MATERIALIZED (
        SELECT delivery.id FROM unnest(:webhook_ids, :limits) AS wanted (webhook_id, number)
        CROSS JOIN LATERAL (
            SELECT id FROM webhook_delivery
            WHERE webhook_id = wanted.webhook_id AND status = 'waiting'
                AND attempt_at <= (SELECT clock_timestamp())
            ORDER BY attempt_at, id LIMIT wanted.number FOR UPDATE SKIP LOCKED) AS delivery
    ), claimed AS (
        UPDATE webhook_delivery SET attempts = attempts + 1, attempted_at = clock_timestamp(),
            error = NULL, response_status = NULL,
            attempt_at = clock_timestamp() + make_interval(secs => {LEASE})
        FROM due WHERE webhook_delivery.id = due.id
        RETURNING webhook_delivery.id, webhook_id, attempts, event_id
    )
    SELECT claimed.id, webhook_id, attempts, event_id, type, webhook_event.created_at,
        data::text
    FROM claimed JOIN webhook_event ON webhook_event.id = event_id
    ORDER BY claimed.id""").bindparams(  # noqa: S608  # a number
    bindparam("webhook_ids", type_=ARRAY(BigInteger)), bindparam("limits", type_=ARRAY(Integer))
)


async def claim(connection: AsyncConnection, limits: Mapping[int, int]) -> list[ClaimedDelivery]:
    """Claim due deliveries; `limits` is how many at most, by the id of the endpoint."""
    values = {"webhook_ids": list(limits), "limits": list(limits.values())}
    return [ClaimedDelivery(*row) for row in await connection.execute(CLAIM_DELIVERIES, values)]


class DeliveryResult(msgspec.Struct, frozen=True):
    """The result of an attempt."""

    claim: ClaimedDelivery
    error: str | None
    """None if the endpoint has the event."""
    response_status: int | None = None
    pause: float | None = None
    """Seconds until the next attempt; None if there is none."""


# An endpoint may be disabled or enabled again while an attempt runs, which changes nothing here. A
# delivery whose next attempt would be after `RETRY_PERIOD` ends now.
RECORD_DELIVERIES = text(f"""
    UPDATE webhook_delivery SET
        status = CASE WHEN result.error IS NULL THEN 'delivered'
            WHEN result.pause IS NULL OR clock_timestamp() + make_interval(secs => result.pause)
                > created_at + make_interval(secs => {RETRY_PERIOD.total_seconds()})
            THEN 'failed' ELSE 'waiting' END,
        attempt_at = clock_timestamp() + make_interval(secs => coalesce(result.pause, 0)),
        response_status = result.response_status, error = result.error
    FROM unnest(:ids, :attempts, :errors, :response_statuses, CAST(:pauses AS float8[]))
        AS result (id, attempts, error, response_status, pause)
    WHERE webhook_delivery.id = result.id AND webhook_delivery.attempts = result.attempts
        AND status = 'waiting'
    RETURNING status""").bindparams(  # noqa: S608  # a number
    bindparam("ids", type_=ARRAY(BigInteger)),
    bindparam("attempts", type_=ARRAY(Integer)),
    bindparam("errors", type_=ARRAY(String)),
    bindparam("response_statuses", type_=ARRAY(Integer)),
)


async def record_results(
    connection: AsyncConnection, results: Sequence[DeliveryResult]
) -> list[str]:
    """Store results; return the new status of each delivery whose claim was still valid.

    The caller has locked the endpoints.
    """
    ordered = sorted(results, key=lambda result: result.claim.id)  # one lock order for all workers
    values: dict[str, Any] = {
        "ids": [result.claim.id for result in ordered],
        "attempts": [result.claim.attempts for result in ordered],
        "errors": [result.error for result in ordered],
        "response_statuses": [result.response_status for result in ordered],
        "pauses": [result.pause for result in ordered],
    }
    return list(await connection.scalars(RECORD_DELIVERIES, values))


# Undo a claim whose attempt has not started.
RELEASE_DELIVERIES = text("""
    UPDATE webhook_delivery SET attempts = released.attempts - 1, attempt_at = clock_timestamp()
    FROM unnest(:ids, :attempts) AS released (id, attempts)
    WHERE webhook_delivery.id = released.id AND webhook_delivery.attempts = released.attempts
        AND status = 'waiting'""").bindparams(
    bindparam("ids", type_=ARRAY(BigInteger)), bindparam("attempts", type_=ARRAY(Integer))
)


async def release(connection: AsyncConnection, claims: Sequence[ClaimedDelivery]) -> None:
    """Make claimed deliveries whose attempts have not started due again."""
    ordered = sorted(claims, key=lambda claimed: claimed.id)
    values = {
        "ids": [claimed.id for claimed in ordered],
        "attempts": [claimed.attempts for claimed in ordered],
    }
    await connection.execute(RELEASE_DELIVERIES, values)


# ---- bounds and expiry -----------------------------------------------------------------------

EXPIRE_DELIVERIES = text(f"""
    UPDATE webhook_delivery SET status = 'failed', error = coalesce(error, 'expired')
    WHERE id = ANY (ARRAY(
        SELECT delivery.id FROM webhook CROSS JOIN LATERAL (
            SELECT id FROM webhook_delivery
            WHERE webhook_id = webhook.id AND status = 'waiting' AND attempt_at < now()
                AND created_at < now() - make_interval(secs => {RETRY_PERIOD.total_seconds()})
            LIMIT :limit FOR UPDATE SKIP LOCKED) AS delivery))""")  # noqa: S608  # a number
DROP_DELIVERIES = text(f"""
    WITH locked AS MATERIALIZED (
        SELECT id FROM webhook ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
    ), beyond AS MATERIALIZED (
        SELECT delivery.id FROM locked AS webhook CROSS JOIN LATERAL (
            SELECT id FROM webhook_delivery
            WHERE webhook_id = webhook.id AND status = 'waiting'
            ORDER BY id DESC OFFSET {MAX_WAITING_DELIVERIES} LIMIT :limit
            FOR UPDATE SKIP LOCKED) AS delivery
    ), dropped AS (
        UPDATE webhook_delivery SET status = 'failed', error = 'dropped'
        FROM beyond WHERE webhook_delivery.id = beyond.id AND status = 'waiting'
        RETURNING webhook_id
    )
    UPDATE webhook SET dropped = dropped + by_webhook.number
    FROM (SELECT webhook_id, count(*) AS number FROM dropped GROUP BY webhook_id) AS by_webhook
    WHERE webhook.id = by_webhook.webhook_id
    RETURNING webhook.id, by_webhook.number""")  # noqa: S608  # a number


async def expire(connection: AsyncConnection, limit: int) -> int:
    """End deliveries of events older than `RETRY_PERIOD`; return how many."""
    return (await connection.execute(EXPIRE_DELIVERIES, {"limit": limit})).rowcount


async def drop_beyond_limit(connection: AsyncConnection, limit: int) -> dict[int, int]:
    """End the oldest deliveries beyond `MAX_WAITING_DELIVERIES`; return how many, by endpoint."""
    return {
        row.id: row.number for row in await connection.execute(DROP_DELIVERIES, {"limit": limit})
    }


# Ids are assigned in the order of time, so the oldest deliveries have the lowest ids. Those of a
# deleted endpoint go with the others.
PURGE_DELIVERIES = text(f"""
    DELETE FROM webhook_delivery WHERE id = ANY (ARRAY(
        SELECT id FROM (SELECT id, created_at FROM webhook_delivery ORDER BY id LIMIT :limit) AS old
        WHERE created_at < now() - make_interval(secs => {EVENT_RETENTION.total_seconds()})))""")  # noqa: S608  # a number
PURGE_EVENTS = text(f"""
    DELETE FROM webhook_event WHERE id = ANY (ARRAY(
        SELECT id FROM webhook_event
        WHERE created_at < now() - make_interval(secs => {EVENT_RETENTION.total_seconds()})
        ORDER BY created_at LIMIT :limit FOR UPDATE SKIP LOCKED))""")  # noqa: S608  # a number


async def purge(connection: AsyncConnection, limit: int) -> None:
    """Delete up to `limit` events older than `EVENT_RETENTION`, and their deliveries."""
    await connection.execute(PURGE_DELIVERIES, {"limit": limit})
    await connection.execute(PURGE_EVENTS, {"limit": limit})


COUNT_WAITING = text("""
    SELECT coalesce(sum(waiting.number), 0)::bigint AS waiting,
        count(*) FILTER (WHERE NOT is_enabled AND disabled_reason <> 'user') AS disabled
    FROM webhook CROSS JOIN LATERAL (
        SELECT count(*) AS number FROM webhook_delivery
        WHERE webhook_id = webhook.id AND status = 'waiting') AS waiting""")


async def count_waiting(connection: AsyncConnection) -> tuple[int, int]:
    """Return the waiting deliveries, and the endpoints that mailer itself has disabled."""
    row = (await connection.execute(COUNT_WAITING)).one()
    return row.waiting, row.disabled
