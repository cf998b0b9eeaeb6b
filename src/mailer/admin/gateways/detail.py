"""The page of a gateway, and the actions on it."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

from litestar import Controller, Response, get, post
from litestar.di import NamedDependency
from litestar.exceptions import NotFoundException
from litestar.params import FromPath
from litestar.response import Redirect, ServerSentEvent
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access.model import Actor
from mailer.admin.gateways.index import page_of, read_gateway
from mailer.admin.gateways.testing import new_test_variables
from mailer.admin.live import LiveUpdates, Sections
from mailer.admin.render import PageContext, redirect_with_flash
from mailer.gateway.channel import Channels
from mailer.gateway_control import service
from mailer.gateway_control.model import GatewayNotFoundError


class GatewayAction(NamedTuple):
    """An action on a gateway, such as to pause it."""

    call: Callable[[AsyncEngine, Channels, str, Actor], Awaitable[Any]]
    """Carries it out. Receives the name of the gateway, and who acts."""
    flash: str
    """The confirmation on the next page: a key of `flash.html`."""


GATEWAY_ACTIONS: Mapping[str, GatewayAction] = {
    "pause": GatewayAction(service.pause, "gateway-paused"),
    "resume": GatewayAction(service.resume, "gateway-resumed"),
    "release-unknown": GatewayAction(service.release_unknown, "unknown-released"),
}
"""The actions by their verb in the URL. Each has a template with its effects, `{verb}.html`."""
SECTIONS = ("controls", "state", "outcomes", "delivery", "details")
"""The sections that are updated live: the names of their templates, and their ids in the HTML."""


class GatewayPage(Controller):
    """The page of a gateway, and the confirmation pages of its actions."""

    path = "/"

    @get("/gateways/{name:str}", required_scope="read")
    async def show_gateway(
        self,
        engine: NamedDependency[AsyncEngine],
        channels: NamedDependency[Channels],
        context: NamedDependency[PageContext],
        name: FromPath[str],
    ) -> Response[str]:
        """Show a gateway."""
        variables = await read_gateway(engine, channels, name)
        return await context.render_page(
            "gateways/gateway.html", **variables, **new_test_variables(name)
        )

    @get("/live/gateways/{name:str}", required_scope="read", is_polled=True)
    async def watch_gateway(
        self,
        engine: NamedDependency[AsyncEngine],
        channels: NamedDependency[Channels],
        context: NamedDependency[PageContext],
        live: NamedDependency[LiveUpdates],
        name: FromPath[str],
    ) -> ServerSentEvent:
        """Stream the sections of a gateway's page whenever they change."""

        async def sections() -> Sections:
            try:
                variables = await read_gateway(engine, channels, name)
            except GatewayNotFoundError:  # removed by a reload: say so, and remove the buttons
                changed = ("state", "controls")
                return {name: context.render(f"gateways/removed-{name}.html") for name in changed}
            return await context.render_sections("gateways", SECTIONS, **variables)

        return live.stream(("gateway", context.viewer, name), sections, context.quota_key)

    @get("/gateways/{name:str}/{verb:str}", required_scope="write")
    async def ask(
        self,
        engine: NamedDependency[AsyncEngine],
        channels: NamedDependency[Channels],
        context: NamedDependency[PageContext],
        name: FromPath[str],
        verb: FromPath[str],
    ) -> Response[str]:
        """Ask for confirmation before an action, and describe its effects."""
        if verb not in GATEWAY_ACTIONS:
            raise NotFoundException
        if verb != "release-unknown":
            variables = await read_gateway(engine, channels, name)
            return await context.render_page(f"gateways/{verb}.html", **variables)
        return await context.render_page(
            "gateways/release-unknown.html",
            name=name,
            waiting=await service.count_waiting(engine, channels, name),
            max_waiting=service.MAX_COUNTED_WAITING,
            back=page_of(channels, name),
        )

    @post("/gateways/{name:str}/{verb:str}", required_scope="write")
    async def act(
        self,
        engine: NamedDependency[AsyncEngine],
        channels: NamedDependency[Channels],
        by: NamedDependency[Actor],
        name: FromPath[str],
        verb: FromPath[str],
    ) -> Redirect:
        """Carry out an action, and redirect to the gateway."""
        if verb not in GATEWAY_ACTIONS:
            raise NotFoundException
        action = GATEWAY_ACTIONS[verb]
        await action.call(engine, channels, name, by)
        return redirect_with_flash(action.flash, page_of(channels, name))
