"""The page of a webhook with its deliveries, its form, and the actions on it."""

from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, NamedTuple

from litestar import Controller, Request, Response, get, post
from litestar.di import NamedDependency
from litestar.exceptions import NotFoundException
from litestar.params import FromPath, Parameter
from litestar.response import Redirect, ServerSentEvent
from litestar.status_codes import HTTP_200_OK, HTTP_400_BAD_REQUEST
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access.model import Actor
from mailer.admin.form import Form, validate
from mailer.admin.listing import EMPTY_PAGE, page_links, read_list_query
from mailer.admin.live import LiveUpdates, Sections
from mailer.admin.render import PageContext, redirect_with_flash
from mailer.admin.webhooks.fields import form_of, read_webhook_form, values_of
from mailer.admin.webhooks.index import PATH, page_of, secret_page
from mailer.clock import database_clock
from mailer.db.paging import Cursor
from mailer.errors import InvalidError
from mailer.validation import MAX_ID
from mailer.web.query import Limit
from mailer.webhook import service
from mailer.webhook.addresses import AddressPolicy
from mailer.webhook.api import DeliveryQuery, WebhookId
from mailer.webhook.model import EVENT_TYPES, Redelivery, WebhookChange, WebhookNotFoundError
from mailer.webhook.store import MAX_COUNTED_DELIVERIES, to_delivery

SECTIONS = ("state", "deliveries")
"""The sections that are updated live: the names of their templates, and their ids in the HTML."""
DELIVERIES_ON_PAGE = 50
DeliveryId = Annotated[int, Parameter(ge=1, le=MAX_ID, description="The delivery's id.")]
EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
"""A time before all events."""


class DeliveryListQuery(DeliveryQuery, frozen=True, kw_only=True):
    """Filters of the deliveries on the page: those of the API, with fewer on a page."""

    limit: Limit = DELIVERIES_ON_PAGE


class WebhookAction(NamedTuple):
    """An action on a webhook, such as to disable it."""

    call: Callable[[AsyncEngine, AddressPolicy, int, Actor], Awaitable[Any]]
    """Carries it out."""
    flash: str
    """The confirmation on the next page: a key of `flash.html`."""


async def _enable(engine: AsyncEngine, policy: AddressPolicy, webhook_id: int, by: Actor) -> None:
    await service.change(engine, policy, webhook_id, WebhookChange(enabled=True), by)


async def _disable(engine: AsyncEngine, policy: AddressPolicy, webhook_id: int, by: Actor) -> None:
    await service.change(engine, policy, webhook_id, WebhookChange(enabled=False), by)


async def _send_test(engine: AsyncEngine, _: AddressPolicy, webhook_id: int, by: Actor) -> None:
    await service.send_test(engine, webhook_id, by)


async def _redeliver(engine: AsyncEngine, _: AddressPolicy, webhook_id: int, by: Actor) -> None:
    await service.redeliver(engine, webhook_id, Redelivery(failed_since=EARLIEST), by)


async def _delete(engine: AsyncEngine, _: AddressPolicy, webhook_id: int, by: Actor) -> None:
    await service.delete(engine, webhook_id, by)


WEBHOOK_ACTIONS: Mapping[str, WebhookAction] = {
    "test": WebhookAction(_send_test, "webhook-tested"),
    "enable": WebhookAction(_enable, "webhook-enabled"),
    "disable": WebhookAction(_disable, "webhook-disabled"),
    "redeliver": WebhookAction(_redeliver, "webhook-redelivered"),
    "delete": WebhookAction(_delete, "webhook-deleted"),
}
"""The actions by their verb in the URL."""
QUESTIONS = frozenset({"disable", "redeliver", "delete"})
"""The actions that ask for confirmation; each has a template with its effects, `{verb}.html`."""


async def read_page(
    engine: AsyncEngine, webhook_id: int, form: Form, query: DeliveryListQuery | None
) -> dict[str, Any]:
    """Return the template variables of a webhook's page; raises `WebhookNotFoundError`."""
    webhook = await service.get(engine, webhook_id)
    page = EMPTY_PAGE
    if query is not None:
        page = await service.list_deliveries(engine, webhook_id, query.position, **query.filters())
    return {
        "webhook": webhook,
        "form": form,
        "deliveries": [to_delivery(row) for row in page.rows],
        "count": page.count,
        "max_counted": MAX_COUNTED_DELIVERIES,
        "pages": page_links(page, page_of(webhook_id), form),
    }


class WebhookPage(Controller):
    """The page of a webhook, its form, and the confirmation pages of its actions."""

    path = "/"

    @get(f"{PATH}/{{webhook_id:int}}", required_scope="admin")
    async def show_webhook(
        self,
        engine: NamedDependency[AsyncEngine],
        context: NamedDependency[PageContext],
        request: Request[Any, Any, Any],
        webhook_id: WebhookId,
    ) -> Response[str]:
        """Show a webhook and its deliveries, the newest first."""
        form, query = read_list_query(request, DeliveryListQuery, "status", "limit")
        variables = await read_page(engine, webhook_id, form, query)
        status = HTTP_200_OK if query is not None else HTTP_400_BAD_REQUEST
        is_live = query is not None and query.position == Cursor(DELIVERIES_ON_PAGE)
        return await context.render_page(
            "webhooks/webhook.html", status, **variables, is_live=is_live and not form["status"]
        )

    @get(f"/live{PATH}/{{webhook_id:int}}", required_scope="admin", is_polled=True)
    async def watch_webhook(
        self,
        engine: NamedDependency[AsyncEngine],
        context: NamedDependency[PageContext],
        live: NamedDependency[LiveUpdates],
        webhook_id: WebhookId,
    ) -> ServerSentEvent:
        """Stream the sections of a webhook's page whenever they change."""

        async def sections() -> Sections:
            form = Form({"status": "", "limit": ""})
            try:
                variables = await read_page(engine, webhook_id, form, DeliveryListQuery())
            except WebhookNotFoundError:  # deleted: say so
                return {"state": context.render("webhooks/deleted-state.html")}
            return await context.render_sections("webhooks", SECTIONS, **variables)

        return live.stream(("webhook", context.viewer, webhook_id), sections, context.quota_key)

    @get(f"{PATH}/{{webhook_id:int}}/edit", required_scope="admin")
    async def show_form(
        self,
        engine: NamedDependency[AsyncEngine],
        context: NamedDependency[PageContext],
        webhook_id: WebhookId,
    ) -> Response[str]:
        """Show the form of a webhook."""
        webhook = await service.get(engine, webhook_id)
        return await context.render_page(
            "webhooks/edit.html", webhook=webhook, form=form_of(webhook), events=EVENT_TYPES
        )

    @post(f"{PATH}/{{webhook_id:int}}/edit", required_scope="admin")
    async def change_webhook(  # noqa: PLR0913, PLR0917  # what the framework provides
        self,
        engine: NamedDependency[AsyncEngine],
        context: NamedDependency[PageContext],
        webhook_addresses: NamedDependency[AddressPolicy],
        by: NamedDependency[Actor],
        request: Request[Any, Any, Any],
        webhook_id: WebhookId,
    ) -> Response[Any]:
        """Change a webhook, or show the form again with its errors."""
        form = await read_webhook_form(request)
        try:
            changes = validate(WebhookChange, values_of(form), [], database_clock.now())
            await service.change(engine, webhook_addresses, webhook_id, changes, by)
        except InvalidError as error:
            return await context.render_page(
                "webhooks/edit.html",
                HTTP_400_BAD_REQUEST,
                webhook=await service.get(engine, webhook_id),
                form=form.with_errors(error),
                events=EVENT_TYPES,
            )
        return redirect_with_flash("webhook-changed", page_of(webhook_id))

    @get(f"{PATH}/{{webhook_id:int}}/rotate-secret", required_scope="admin")
    async def ask_to_rotate_secret(
        self,
        engine: NamedDependency[AsyncEngine],
        context: NamedDependency[PageContext],
        webhook_id: WebhookId,
    ) -> Response[str]:
        """Ask for confirmation before a new secret is created."""
        webhook = await service.get(engine, webhook_id)
        return await context.render_page("webhooks/rotate-secret.html", webhook=webhook)

    @post(f"{PATH}/{{webhook_id:int}}/rotate-secret", required_scope="admin")
    async def rotate_secret(
        self,
        engine: NamedDependency[AsyncEngine],
        context: NamedDependency[PageContext],
        by: NamedDependency[Actor],
        webhook_id: WebhookId,
    ) -> Response[str]:
        """Create a new secret and show it."""
        webhook = await service.rotate_secret(engine, webhook_id, by)
        return await secret_page(context, webhook, HTTP_200_OK, is_new=False)

    @get(f"{PATH}/{{webhook_id:int}}/{{verb:str}}", required_scope="admin")
    async def ask(
        self,
        engine: NamedDependency[AsyncEngine],
        context: NamedDependency[PageContext],
        webhook_id: WebhookId,
        verb: FromPath[str],
    ) -> Response[str]:
        """Ask for confirmation before an action, and describe its effects."""
        if verb not in QUESTIONS:
            raise NotFoundException
        webhook = await service.get(engine, webhook_id)
        return await context.render_page(f"webhooks/{verb}.html", webhook=webhook)

    @post(f"{PATH}/{{webhook_id:int}}/{{verb:str}}", required_scope="admin")
    async def act(  # what the framework provides
        self,
        engine: NamedDependency[AsyncEngine],
        webhook_addresses: NamedDependency[AddressPolicy],
        by: NamedDependency[Actor],
        webhook_id: WebhookId,
        verb: FromPath[str],
    ) -> Redirect:
        """Carry out an action, and redirect to the webhook, or to the list if it is deleted."""
        if verb not in WEBHOOK_ACTIONS:
            raise NotFoundException
        action = WEBHOOK_ACTIONS[verb]
        await action.call(engine, webhook_addresses, webhook_id, by)
        next_path = PATH if verb == "delete" else page_of(webhook_id)
        return redirect_with_flash(action.flash, next_path)

    @post(
        f"{PATH}/{{webhook_id:int}}/deliveries/{{delivery_id:int}}/redeliver",
        required_scope="admin",
    )
    async def redeliver_one(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        webhook_id: WebhookId,
        delivery_id: DeliveryId,
    ) -> Redirect:
        """Deliver one event again, and redirect to the webhook."""
        await service.redeliver(engine, webhook_id, Redelivery(delivery_id=delivery_id), by)
        return redirect_with_flash("webhook-redelivered", page_of(webhook_id))
