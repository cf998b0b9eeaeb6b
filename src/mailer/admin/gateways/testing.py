"""The form on the page of a gateway that sends a test message."""

from typing import Any
from uuid import uuid4

from litestar import Controller, Request, Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath
from litestar.response import Redirect
from litestar.status_codes import HTTP_201_CREATED, HTTP_303_SEE_OTHER, HTTP_400_BAD_REQUEST
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access.model import Actor
from mailer.admin.form import Form, read_form, validate
from mailer.admin.gateways.index import read_gateway
from mailer.admin.render import PageContext
from mailer.clock import database_clock
from mailer.errors import InvalidError
from mailer.gateway.channel import Channels
from mailer.gateway.check import TEST_TEXT
from mailer.gateway_control import service
from mailer.gateway_control.testing_model import SingleMessage, SingleResult
from mailer.idempotency.model import IdempotencyClaim


def new_test_variables(name: str) -> dict[str, Any]:
    """Return the template variables of a form for a new test message.

    Sending it twice sends one message, because its URL has a random number.
    """
    return {
        "form": Form({"phone": "", "text": TEST_TEXT}),
        "test_url": f"/gateways/{name}/test?once={uuid4().hex}",
        "result": None,
    }


def redirect_to_gateway(name: str) -> Redirect:
    """Return the redirect for a form that was sent before."""
    return Redirect(f"/gateways/{name}", status_code=HTTP_303_SEE_OTHER)


class GatewayTest(Controller):
    """Sends a test message through a gateway."""

    path = "/gateways/{name:str}/test"

    @get(required_scope="write")
    async def show_again(
        self, channels: NamedDependency[Channels], name: FromPath[str]
    ) -> Redirect:
        """Redirect to the gateway, for example after the language was changed on a result."""
        service.find_channel(channels, name)
        return redirect_to_gateway(name)

    @post(required_scope="write", creates=redirect_to_gateway)
    async def send_test(  # noqa: PLR0913, PLR0917  # the form, and what the page shows
        self,
        request: Request[Any, Any, Any],
        engine: NamedDependency[AsyncEngine],
        channels: NamedDependency[Channels],
        context: NamedDependency[PageContext],
        by: NamedDependency[Actor],
        claim: NamedDependency[IdempotencyClaim | None],
        name: FromPath[str],
    ) -> Response[Any]:
        """Send a test message and show the result, or show the form again with its errors."""
        channel = service.find_channel(channels, name)
        form = Form(await read_form(request, "phone", "text"))
        try:
            message = validate(SingleMessage, form.values, [], database_clock.now())
        except InvalidError as error:
            variables = await read_gateway(engine, channels, name)
            return await context.render_page(
                "gateways/gateway.html",
                HTTP_400_BAD_REQUEST,
                **variables,
                form=form.with_errors(error),
                test_url=context.path,
                result=None,
            )
        outcome = await service.send_test(engine, channel, message, by, claim)
        if outcome is None:
            return redirect_to_gateway(name)
        variables = await read_gateway(engine, channels, name) | new_test_variables(name)
        variables |= {"form": form, "result": SingleResult.of(outcome)}
        response = await context.render_page("gateways/gateway.html", HTTP_201_CREATED, **variables)
        response.headers["Location"] = f"/gateways/{name}"
        return response
