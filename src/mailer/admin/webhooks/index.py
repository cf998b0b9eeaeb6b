"""Pages of webhooks: the list, and the form of a new one."""

from typing import Annotated, Any

from litestar import Controller, Request, Response, get, post
from litestar.di import NamedDependency
from litestar.params import QueryParameter
from litestar.response import Redirect
from litestar.status_codes import (
    HTTP_201_CREATED,
    HTTP_303_SEE_OTHER,
    HTTP_400_BAD_REQUEST,
    HTTP_409_CONFLICT,
)
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access.model import Actor
from mailer.admin.form import Form, validate
from mailer.admin.render import PageContext
from mailer.admin.webhooks.fields import BLANK_FORM, read_webhook_form, values_of
from mailer.clock import database_clock
from mailer.errors import FieldError, InvalidError
from mailer.idempotency.model import IdempotencyClaim
from mailer.validation import MAX_ID
from mailer.webhook import service
from mailer.webhook.addresses import AddressPolicy
from mailer.webhook.model import (
    EVENT_TYPES,
    MAX_WEBHOOKS,
    NewWebhook,
    TooManyWebhooksError,
    WebhookWithSecret,
)

PATH = "/webhooks"
CreatedWebhookId = Annotated[int | None, QueryParameter(name="created", ge=1, le=MAX_ID)]
"""Id of the webhook that a form created when it was sent for the first time."""


def page_of(webhook_id: int) -> str:
    """Return the path of a webhook's page."""
    return f"{PATH}/{webhook_id}"


def redirect_to_created(webhook_id: int) -> Redirect:
    """Return the redirect to the list of webhooks for a form that is sent again.

    The list has a notice that the webhook was created when the form was sent for the first time.
    """
    return Redirect(_created_url(webhook_id), status_code=HTTP_303_SEE_OTHER)


def _created_url(webhook_id: int) -> str:
    return f"{PATH}?created={webhook_id}"


async def secret_page(
    context: PageContext, webhook: WebhookWithSecret, status: int, *, is_new: bool
) -> Response[str]:
    """Return the page that shows the secret of a webhook, once."""
    response = await context.render_page(
        "webhooks/secret.html", status, webhook=webhook, is_new=is_new
    )
    response.headers |= {"Cache-Control": "no-store"}
    if is_new:
        response.headers["Location"] = _created_url(webhook.id)
    return response


class WebhookList(Controller):
    """The list of webhooks, and the form of a new one."""

    path = PATH

    @get(required_scope="admin")
    async def list_webhooks(
        self,
        engine: NamedDependency[AsyncEngine],
        context: NamedDependency[PageContext],
        created_id: CreatedWebhookId = None,
    ) -> Response[str]:
        """List all webhooks, the newest first."""
        webhooks = await service.list_webhooks(engine)
        return await context.render_page(
            "webhooks/list.html",
            webhooks=webhooks,
            created=next((each for each in webhooks if each.id == created_id), None),
            max_webhooks=MAX_WEBHOOKS,
        )

    @get("/new", required_scope="admin")
    async def show_empty(self, context: NamedDependency[PageContext]) -> Response[str]:
        """Show the form of a new webhook."""
        return await _new_page(context, Form(BLANK_FORM))

    @post("/new", required_scope="admin", creates=redirect_to_created)
    async def create_webhook(  # noqa: PLR0913, PLR0917  # what the framework provides
        self,
        engine: NamedDependency[AsyncEngine],
        context: NamedDependency[PageContext],
        webhook_addresses: NamedDependency[AddressPolicy],
        by: NamedDependency[Actor],
        claim: NamedDependency[IdempotencyClaim | None],
        request: Request[Any, Any, Any],
    ) -> Response[Any]:
        """Create a webhook and show its secret.

        A form that is sent again creates nothing, and is redirected to the webhook.
        """
        if claim is not None and claim.result is not None:
            return redirect_to_created(claim.result["id"])
        form = await read_webhook_form(request)
        try:
            new = validate(NewWebhook, values_of(form), [], database_clock.now())
            webhook = await service.create(engine, webhook_addresses, new, by, claim)
        except InvalidError as error:
            return await _new_page(context, form.with_errors(error), HTTP_400_BAD_REQUEST)
        except TooManyWebhooksError as error:
            form = form.with_errors(InvalidError([FieldError("", str(error))]))
            return await _new_page(context, form, HTTP_409_CONFLICT)
        return await secret_page(context, webhook, HTTP_201_CREATED, is_new=True)


async def _new_page(context: PageContext, form: Form, status: int = 200) -> Response[str]:
    return await context.render_page("webhooks/new.html", status, form=form, events=EVENT_TYPES)
