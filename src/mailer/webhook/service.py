"""Use cases of webhooks: create, change, delete, rotate the secret, test, deliver again.

Each change writes its audit log entry in the transaction that makes the change.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import structlog
from msgspec import UNSET
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.access import audit
from mailer.access.model import Actor
from mailer.db.paging import Cursor, RowPage
from mailer.errors import FieldError, InvalidError
from mailer.idempotency.do_once import do_once
from mailer.idempotency.model import IdempotencyClaim
from mailer.urls import split_url
from mailer.webhook import store
from mailer.webhook.addresses import AddressPolicy, HostNotFoundError, PrivateAddressError
from mailer.webhook.model import (
    Delivery,
    NewWebhook,
    Redelivery,
    Webhook,
    WebhookChange,
    WebhookDisabledError,
    WebhookWithSecret,
)
from mailer.webhook.signature import new_secret, show_secret

log = structlog.get_logger()

AUDITED = ("name", "url", "events")
"""Fields of an endpoint in the audit log."""


async def ensure_allowed(policy: AddressPolicy, url: str) -> None:
    """Raise `InvalidError` if events may not be sent to a URL.

    Without the setting for private addresses it must be https, and all addresses of its host must
    be public. They are checked again at each connection.
    """
    if policy.allows_private:
        return
    parts = split_url(url, ("https", "http"))
    if parts.scheme != "https":
        raise InvalidError([FieldError("url", "must start with https://")])
    try:
        await policy.find(parts.hostname or "", parts.port or 443)
    except PrivateAddressError:
        rule = "leads to an address that is not public, such as one of a local network"
        raise InvalidError([FieldError("url", rule)]) from None
    except HostNotFoundError:
        raise InvalidError([FieldError("url", "has a host without an address")]) from None


async def list_webhooks(engine: AsyncEngine) -> list[Webhook]:
    """Return all endpoints, newest first."""
    async with engine.connect() as connection:
        return await store.list_all(connection)


async def get(engine: AsyncEngine, webhook_id: int) -> Webhook:
    """Return an endpoint; raises `WebhookNotFoundError`."""
    async with engine.connect() as connection:
        return await store.get(connection, webhook_id)


async def create(
    engine: AsyncEngine,
    policy: AddressPolicy,
    new: NewWebhook,
    actor: Actor,
    claim: IdempotencyClaim | None = None,
) -> WebhookWithSecret:
    """Create an endpoint with a new secret.

    Raises `InvalidError` if its URL is not allowed, and `TooManyWebhooksError`.
    """
    await ensure_allowed(policy, new.url)
    values = msgspec.structs.asdict(new)

    async def work(connection: AsyncConnection) -> int:
        webhook_id = await store.create(connection, values | {"secret": new_secret()})
        after = store.audited(values, AUDITED)
        await _record(connection, actor, "webhook_created", webhook_id, after=after)
        return webhook_id

    return await _with_secret(engine, claim, work, "webhook_created")


async def rotate_secret(
    engine: AsyncEngine, webhook_id: int, actor: Actor, claim: IdempotencyClaim | None = None
) -> WebhookWithSecret:
    """Give an endpoint a new secret; requests are signed with both for `SECRET_OVERLAP`.

    Raises `WebhookNotFoundError`.
    """

    async def work(connection: AsyncConnection) -> int:
        await store.get(connection, webhook_id, lock=True)
        await store.change(connection, webhook_id, store.rotated(new_secret()))
        await _record(connection, actor, "webhook_secret_rotated", webhook_id)
        return webhook_id

    return await _with_secret(engine, claim, work, "webhook_secret_rotated")


async def _with_secret(
    engine: AsyncEngine,
    claim: IdempotencyClaim | None,
    work: Callable[[AsyncConnection], Awaitable[int]],
    event: str,
) -> WebhookWithSecret:
    """Do `work` once, which returns the id of an endpoint; return that with its secret."""
    async with engine.begin() as connection:
        done = await do_once(connection, claim, lambda: work(connection))
        webhook_id = done.result["id"]
        webhook = await store.get(connection, webhook_id)
        secret = await store.get_secret(connection, webhook_id)
    if not done.is_repeat:
        log.info(event, webhook_id=webhook_id)
    return WebhookWithSecret(**msgspec.structs.asdict(webhook), secret=show_secret(secret))


async def change(
    engine: AsyncEngine,
    policy: AddressPolicy,
    webhook_id: int,
    changes: WebhookChange,
    actor: Actor,
) -> Webhook:
    """Change the given fields of an endpoint; raises `WebhookNotFoundError`, `InvalidError`."""
    if changes.url is not UNSET:
        await ensure_allowed(policy, changes.url)
    given = {
        name: value for name, value in msgspec.structs.asdict(changes).items() if value is not UNSET
    }
    async with engine.begin() as connection:
        before = await store.get(connection, webhook_id, lock=True)
        changed = {name: value for name, value in given.items() if value != getattr(before, name)}
        if given.get("enabled"):  # also ends the pauses of an endpoint that is enabled already
            await store.retry_waiting_now(connection, webhook_id)
        if changed:
            await store.change(connection, webhook_id, _columns(changed))
            names = tuple(changed)
            await _record(
                connection,
                actor,
                "webhook_changed",
                webhook_id,
                before=store.audited(msgspec.structs.asdict(before), names),
                after=store.audited(changed, names),
            )
        after = await store.get(connection, webhook_id)
    if changed:
        log.info("webhook_changed", webhook_id=webhook_id, fields=sorted(changed))
    return after


def _columns(changed: dict[str, Any]) -> dict[str, Any]:
    """Return the columns of an endpoint for changed fields of the API."""
    columns = {name: value for name, value in changed.items() if name != "enabled"}
    match changed.get("enabled"):
        case True:
            columns |= store.ENABLED
        case False:
            columns |= store.disabled("user")
        case _:
            pass
    return columns


async def delete(engine: AsyncEngine, webhook_id: int, actor: Actor) -> None:
    """Delete an endpoint; what waits for it is not sent. Raises `WebhookNotFoundError`."""
    async with engine.begin() as connection:
        webhook = await store.get(connection, webhook_id, lock=True)
        await store.remove(connection, webhook_id)
        before = store.audited(msgspec.structs.asdict(webhook), AUDITED)
        await _record(connection, actor, "webhook_deleted", webhook_id, before=before)
    log.info("webhook_deleted", webhook_id=webhook_id)


async def list_deliveries(
    engine: AsyncEngine, webhook_id: int, cursor: Cursor, **column_values: str
) -> RowPage:
    """Return a page of an endpoint's deliveries; raises `WebhookNotFoundError`."""
    async with engine.connect() as connection:
        await store.get(connection, webhook_id)
        return await store.page_of_deliveries(connection, webhook_id, cursor, **column_values)


async def send_test(
    engine: AsyncEngine, webhook_id: int, actor: Actor, claim: IdempotencyClaim | None = None
) -> Delivery:
    """Create an event `test` for an endpoint, and return its delivery, which a worker attempts.

    Raises `WebhookNotFoundError` and `WebhookDisabledError`.
    """

    async def work(connection: AsyncConnection) -> int:
        await _lock_enabled(connection, webhook_id)
        delivery = await store.add_test(connection, webhook_id)
        await _record(connection, actor, "webhook_tested", webhook_id)
        return delivery.id

    async with engine.begin() as connection:
        done = await do_once(connection, claim, lambda: work(connection))
        return await store.get_delivery(connection, webhook_id, done.result["id"])


async def redeliver(
    engine: AsyncEngine,
    webhook_id: int,
    redelivery: Redelivery,
    actor: Actor,
    claim: IdempotencyClaim | None = None,
) -> int:
    """Deliver one delivery or failed ones again; return how many are due now.

    Raises `WebhookNotFoundError`, `WebhookDisabledError` and `DeliveryNotFoundError`.
    """
    delivery_id, since = redelivery.delivery_id, redelivery.failed_since

    async def work(connection: AsyncConnection) -> int:
        await _lock_enabled(connection, webhook_id)
        number = 0
        if delivery_id is not UNSET:
            number = await store.redeliver_one(connection, webhook_id, delivery_id)
        elif since is not UNSET:
            number = await store.redeliver_failed(connection, webhook_id, since)
        after = {"deliveries": number}
        await _record(connection, actor, "webhook_redelivered", webhook_id, after=after)
        return number

    async with engine.begin() as connection:
        done = await do_once(
            connection,
            claim,
            lambda: work(connection),
            result_of=lambda number: {"deliveries": number},
        )
    number = int(done.result["deliveries"])
    if not done.is_repeat:
        log.info("webhook_redelivered", webhook_id=webhook_id, deliveries=number)
    return number


async def _lock_enabled(connection: AsyncConnection, webhook_id: int) -> None:
    """Lock an endpoint that is enabled."""
    if not (await store.get(connection, webhook_id, lock=True)).enabled:
        raise WebhookDisabledError


async def _record(  # noqa: PLR0913  # the fields of an entry
    connection: AsyncConnection,
    actor: Actor,
    action: str,
    webhook_id: int,
    *,
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
) -> None:
    """Write an audit log entry about an endpoint."""
    target = audit.Target("webhook", webhook_id)
    await audit.record(connection, actor, action, target, before=before, after=after)
