"""API routes of webhooks."""

from http import HTTPStatus
from typing import Annotated, Any

from litestar import Controller, Request, delete, get, patch, post
from litestar.di import NamedDependency
from litestar.params import JSONBody, Parameter
from msgspec import UNSET, Meta, UnsetType
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access.model import Actor
from mailer.idempotency.model import IdempotencyClaim
from mailer.validation import MAX_ID
from mailer.web.body import JsonBody, reject_body
from mailer.web.paging import Page, page_of
from mailer.web.query import PageQuery, accepts_query
from mailer.webhook import service
from mailer.webhook.addresses import AddressPolicy
from mailer.webhook.model import (
    Delivery,
    DeliveryStatus,
    NewWebhook,
    RedeliveredEvents,
    Redelivery,
    Webhook,
    WebhookChange,
    WebhookWithSecret,
)
from mailer.webhook.store import to_delivery

WebhookId = Annotated[int, Parameter(ge=1, le=MAX_ID, description="The webhook's id.")]
WEBHOOK_ACTION_OPTIONS: dict[str, Any] = {
    "required_scope": "admin",
    "status_code": HTTPStatus.OK,
    "before_request": reject_body,
    "dto": None,
}
"""Options of routes that act on a webhook without a request body."""


class DeliveryQuery(PageQuery, frozen=True, kw_only=True):
    """Query parameters of the list of deliveries."""

    status: (
        Annotated[DeliveryStatus, Meta(extra={"rule": "must be waiting, delivered or failed"})]
        | UnsetType
    ) = UNSET


class WebhookController(Controller):
    """Webhooks: URLs to which mailer sends events.

    Requests follow the Standard Webhooks specification.
    """

    path = "/webhooks"
    tags = ("webhooks",)
    dto = JsonBody
    return_dto = None

    @get(required_scope="admin")
    async def list_webhooks(self, engine: NamedDependency[AsyncEngine]) -> list[Webhook]:
        """List all webhooks, newest first. There are 20 at most."""
        return await service.list_webhooks(engine)

    @post(required_scope="admin")
    async def create_webhook(
        self,
        engine: NamedDependency[AsyncEngine],
        webhook_addresses: NamedDependency[AddressPolicy],
        by: NamedDependency[Actor],
        claim: NamedDependency[IdempotencyClaim | None],
        data: JSONBody[NewWebhook],
    ) -> WebhookWithSecret:
        """Create a webhook. Only this response and that of a rotation have the secret.

        409 when there are 20 webhooks already.
        """
        return await service.create(engine, webhook_addresses, data, by, claim)

    @get("/{webhook_id:int}", required_scope="admin")
    async def get_webhook(
        self, engine: NamedDependency[AsyncEngine], webhook_id: WebhookId
    ) -> Webhook:
        """Return a webhook, without its secret."""
        return await service.get(engine, webhook_id)

    @patch("/{webhook_id:int}", required_scope="admin")
    async def change_webhook(
        self,
        engine: NamedDependency[AsyncEngine],
        webhook_addresses: NamedDependency[AddressPolicy],
        by: NamedDependency[Actor],
        webhook_id: WebhookId,
        data: JSONBody[WebhookChange],
    ) -> Webhook:
        """Change the given fields of a webhook, or enable or disable it."""
        return await service.change(engine, webhook_addresses, webhook_id, data, by)

    @delete("/{webhook_id:int}", required_scope="admin")
    async def delete_webhook(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        webhook_id: WebhookId,
    ) -> None:
        """Delete a webhook. What waits for it is not sent."""
        await service.delete(engine, webhook_id, by)

    @post("/{webhook_id:int}/rotate-secret", **WEBHOOK_ACTION_OPTIONS)
    async def rotate_secret(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        claim: NamedDependency[IdempotencyClaim | None],
        webhook_id: WebhookId,
    ) -> WebhookWithSecret:
        """Create a new secret. For 24 hours requests are signed with both the new and the old one.

        A rotation within these 24 hours ends the use of the oldest secret.
        """
        return await service.rotate_secret(engine, webhook_id, by, claim)

    @post("/{webhook_id:int}/test", **WEBHOOK_ACTION_OPTIONS)
    async def test_webhook(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        claim: NamedDependency[IdempotencyClaim | None],
        webhook_id: WebhookId,
    ) -> Delivery:
        """Send the event `test`. The list of deliveries shows the result, usually within seconds.

        409 when the webhook is disabled.
        """
        return await service.send_test(engine, webhook_id, by, claim)

    @get("/{webhook_id:int}/deliveries", required_scope="admin", **accepts_query(DeliveryQuery))
    async def list_deliveries(
        self,
        engine: NamedDependency[AsyncEngine],
        request: Request[Any, Any, Any],
        webhook_id: WebhookId,
        query_params: NamedDependency[DeliveryQuery],
    ) -> Page[Delivery]:
        """List the deliveries of a webhook in the last four days, newest first.

        `count` is at most 10,001, which means more than 10,000.
        """
        page = await service.list_deliveries(
            engine, webhook_id, query_params.position, **query_params.filters()
        )
        return page_of(page, request, to_delivery)

    @post("/{webhook_id:int}/redeliver", required_scope="admin", status_code=HTTPStatus.OK)
    async def redeliver(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        claim: NamedDependency[IdempotencyClaim | None],
        webhook_id: WebhookId,
        data: JSONBody[Redelivery],
    ) -> RedeliveredEvents:
        """Deliver one delivery again, or all failed ones of events since a time.

        The events keep their ids. 409 when the webhook is disabled.
        """
        return RedeliveredEvents(await service.redeliver(engine, webhook_id, data, by, claim))
