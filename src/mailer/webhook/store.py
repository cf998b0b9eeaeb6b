"""SQL of endpoints and of the lists of their deliveries. The caller owns the transaction."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Row,
    RowMapping,
    bindparam,
    delete,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.paging import Cursor, RowPage, fetch_page
from mailer.db.tables.webhook import webhook, webhook_delivery, webhook_event
from mailer.webhook.model import (
    MAX_WEBHOOKS,
    SECRET_OVERLAP,
    TEST_EVENT,
    Delivery,
    DeliveryNotFoundError,
    DisabledReason,
    TooManyWebhooksError,
    Webhook,
    WebhookNotFoundError,
)

WAITING = (
    select(func.count())
    .where(webhook_delivery.c.webhook_id == webhook.c.id, webhook_delivery.c.status == "waiting")
    .scalar_subquery()
    .label("waiting")
)
RENAMED = {"enabled": "is_enabled"}
"""Columns whose names differ from the field's."""
WEBHOOK_COLUMNS = [
    WAITING if name == "waiting" else webhook.c[RENAMED.get(name, name)].label(name)
    for name in Webhook.__struct_fields__
]
WEBHOOK_LOCK = text("SELECT pg_advisory_xact_lock(hashtext('webhook'))")


def _webhook_of(row: RowMapping) -> Webhook:
    return Webhook(**row)


async def list_all(connection: AsyncConnection) -> list[Webhook]:
    """Return all endpoints, newest first."""
    rows = await connection.execute(select(*WEBHOOK_COLUMNS).order_by(webhook.c.id.desc()))
    return [_webhook_of(row) for row in rows.mappings()]


async def get(connection: AsyncConnection, webhook_id: int, *, lock: bool = False) -> Webhook:
    """Return an endpoint; with `lock` nobody changes it until the end of the transaction.

    Raises `WebhookNotFoundError`.
    """
    statement = select(*WEBHOOK_COLUMNS).where(webhook.c.id == webhook_id)
    if lock:
        statement = statement.with_for_update(of=webhook)
    row = (await connection.execute(statement)).mappings().one_or_none()
    if row is None:
        raise WebhookNotFoundError
    return _webhook_of(row)


LOCK = text("SELECT FROM webhook WHERE id = ANY (:ids) ORDER BY id FOR NO KEY UPDATE").bindparams(
    bindparam("ids", type_=ARRAY(BigInteger))
)


async def lock(connection: AsyncConnection, ids: Sequence[int]) -> None:
    """Lock endpoints until the end of the transaction.

    Whoever changes both locks an endpoint before its deliveries, to avoid deadlocks.
    """
    await connection.execute(LOCK, {"ids": list(ids)})


async def get_secret(connection: AsyncConnection, webhook_id: int) -> bytes:
    """Return the secret of an endpoint; raises `WebhookNotFoundError`."""
    statement = select(webhook.c.secret).where(webhook.c.id == webhook_id)
    secret: bytes | None = (await connection.execute(statement)).scalar_one_or_none()
    if secret is None:
        raise WebhookNotFoundError
    return secret


async def create(connection: AsyncConnection, values: Mapping[str, Any]) -> int:
    """Create an endpoint and return its id; raises `TooManyWebhooksError`."""
    await connection.execute(WEBHOOK_LOCK)  # else two requests could both be the last that fits
    count = select(func.count()).select_from(webhook)
    if (await connection.execute(count)).scalar_one() >= MAX_WEBHOOKS:
        raise TooManyWebhooksError
    statement = insert(webhook).values(**values).returning(webhook.c.id)
    return int((await connection.execute(statement)).scalar_one())


async def change(connection: AsyncConnection, webhook_id: int, values: Mapping[str, Any]) -> None:
    """Change columns of an endpoint."""
    statement = update(webhook).where(webhook.c.id == webhook_id)
    await connection.execute(statement.values(**values, updated_at=func.now()))


async def remove(connection: AsyncConnection, webhook_id: int) -> None:
    """Delete an endpoint and its waiting deliveries; the others are deleted when they are old."""
    await connection.execute(delete(webhook).where(webhook.c.id == webhook_id))
    await connection.execute(
        delete(webhook_delivery).where(
            webhook_delivery.c.webhook_id == webhook_id, webhook_delivery.c.status == "waiting"
        )
    )


ENABLED = {
    "is_enabled": True,
    "disabled_at": None,
    "disabled_reason": None,
    "failures": 0,
    "failing_since": None,
}
"""Values of the columns of an endpoint that is enabled again."""


def disabled(reason: DisabledReason) -> dict[str, Any]:
    """Return the values of the columns of an endpoint that is disabled now."""
    return {"is_enabled": False, "disabled_at": func.now(), "disabled_reason": reason}


def rotated(secret: bytes) -> dict[str, Any]:
    """Return the values of the columns of an endpoint with a new secret.

    The former one is the previous one. A secret that was the previous one before is not used any
    more.
    """
    return {
        "secret": secret,
        "previous_secret": webhook.c.secret,
        "previous_secret_until": func.now() + SECRET_OVERLAP,
    }


# ---- health of an endpoint -------------------------------------------------------------------


class EndpointHealth(NamedTuple):
    """The consecutive failures of an endpoint."""

    failures: int
    failing_since: datetime
    now: datetime


# The row is written only if a failure precedes the success, or once a minute: it is read by each
# statement that may cause an event, and each version of it costs these a little.
RECORD_SUCCESS = text("""
    UPDATE webhook SET failures = 0, failing_since = NULL, last_success_at = now()
    WHERE id = :id AND (failures > 0 OR last_success_at IS NULL
        OR last_success_at < now() - interval '1 minute')""")
RECORD_FAILURES = text("""
    UPDATE webhook SET failures = failures + :number,
        failing_since = coalesce(failing_since, now())
    WHERE id = :id AND is_enabled
    RETURNING failures, failing_since, now() AS now""")


async def record_success(connection: AsyncConnection, webhook_id: int) -> None:
    """Record that an endpoint works."""
    await connection.execute(RECORD_SUCCESS, {"id": webhook_id})


async def record_failures(
    connection: AsyncConnection, webhook_id: int, number: int
) -> EndpointHealth | None:
    """Record failed attempts; return the consecutive ones, or None if it is not enabled."""
    values = {"id": webhook_id, "number": number}
    row = (await connection.execute(RECORD_FAILURES, values)).one_or_none()
    return None if row is None else EndpointHealth(*row)


# ---- deliveries ------------------------------------------------------------------------------

DELIVERIES = select(
    webhook_delivery.c.id,
    webhook_delivery.c.event_id,
    webhook_event.c.type.label("event"),
    webhook_delivery.c.status,
    webhook_delivery.c.attempts,
    webhook_delivery.c.response_status,
    webhook_delivery.c.error,
    webhook_delivery.c.attempted_at,
    webhook_delivery.c.attempt_at,
    webhook_delivery.c.created_at,
).join(webhook_event, webhook_event.c.id == webhook_delivery.c.event_id)
MAX_COUNTED_DELIVERIES = 10_000
"""Deliveries that a page counts exactly; if there are more, its count is one more than this."""


async def page_of_deliveries(
    connection: AsyncConnection, webhook_id: int, cursor: Cursor, **column_values: str
) -> RowPage:
    """Return a page of an endpoint's deliveries, newest first."""
    conditions = [
        webhook_delivery.c.webhook_id == webhook_id,
        *(webhook_delivery.c[name] == value for name, value in column_values.items()),
    ]
    ids = select(webhook_delivery.c.id).where(*conditions)
    counted = ids.limit(MAX_COUNTED_DELIVERIES + 1).subquery()
    count = (await connection.execute(select(func.count()).select_from(counted))).scalar_one()
    rows = DELIVERIES.where(*conditions)
    return await fetch_page(connection, rows, webhook_delivery.c.id, cursor, count=count)


def to_delivery(row: Row[*tuple[Any, ...]]) -> Delivery:
    """Convert a row of `page_of_deliveries`."""
    values = {name: getattr(row, name) for name in Delivery.__struct_fields__ if hasattr(row, name)}
    is_paused = row.status == "waiting" and (row.error is not None or not row.attempts)
    next_attempt_at = row.attempt_at if is_paused else None
    return Delivery(**values, next_attempt_at=next_attempt_at)


ADD_TEST = text(f"""
    WITH event AS (
        INSERT INTO webhook_event (type, data)
        VALUES ('{TEST_EVENT}', json_build_object('webhook_id', (:id)::bigint))
        RETURNING id
    )
    INSERT INTO webhook_delivery (webhook_id, event_id) SELECT :id, id FROM event
    RETURNING id""")  # noqa: S608  # a constant


async def add_test(connection: AsyncConnection, webhook_id: int) -> Delivery:
    """Create an event `test` for one endpoint, and return its delivery."""
    delivery_id = (await connection.execute(ADD_TEST, {"id": webhook_id})).scalar_one()
    return await get_delivery(connection, webhook_id, delivery_id)


async def get_delivery(connection: AsyncConnection, webhook_id: int, delivery_id: int) -> Delivery:
    """Return a delivery of an endpoint; raises `DeliveryNotFoundError`."""
    statement = DELIVERIES.where(
        webhook_delivery.c.webhook_id == webhook_id, webhook_delivery.c.id == delivery_id
    )
    row = (await connection.execute(statement)).one_or_none()
    if row is None:
        raise DeliveryNotFoundError
    return to_delivery(row)


# Attempts start again from the first. While an attempt runs, a new one would deliver twice: then
# the delivery is due anyway, unless the attempt succeeds.
AGAIN = """
    UPDATE webhook_delivery SET status = 'waiting', attempts = 0, attempt_at = now(), error = NULL
    WHERE webhook_id = :webhook_id AND {condition}
    RETURNING id"""
REDELIVER_ONE = text(AGAIN.format(condition="id = :delivery_id AND status <> 'waiting'"))
REDELIVER_FAILED = text(AGAIN.format(condition="status = 'failed' AND created_at >= :since"))
RETRY_WAITING_NOW = text("""
    UPDATE webhook_delivery SET attempt_at = now()
    WHERE webhook_id = :webhook_id AND status = 'waiting' AND attempt_at > now()
        AND error IS NOT NULL""")


async def redeliver_one(connection: AsyncConnection, webhook_id: int, delivery_id: int) -> int:
    """Make a delivery due again; return 1, or 0 if it is waiting anyway.

    Raises `DeliveryNotFoundError`.
    """
    await get_delivery(connection, webhook_id, delivery_id)
    values = {"webhook_id": webhook_id, "delivery_id": delivery_id}
    return (await connection.execute(REDELIVER_ONE, values)).rowcount


async def redeliver_failed(connection: AsyncConnection, webhook_id: int, since: datetime) -> int:
    """Make all failed deliveries of events since a time due again; return how many."""
    values = {"webhook_id": webhook_id, "since": since}
    return (await connection.execute(REDELIVER_FAILED, values)).rowcount


async def retry_waiting_now(connection: AsyncConnection, webhook_id: int) -> None:
    """End the pauses of an endpoint's deliveries."""
    await connection.execute(RETRY_WAITING_NOW, {"webhook_id": webhook_id})


def audited(values: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return fields of an endpoint for the audit log; the query of a URL may hold a key."""
    fields = {name: values[name] for name in names if name in values}
    if isinstance(url := fields.get("url"), str):
        fields["url"] = url.partition("?")[0]
    return fields
