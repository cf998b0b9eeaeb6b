"""The gateway: what an operator may do when it asks for a pause."""

from typing import Any

from litestar import Controller, Request, post
from litestar.di import NamedDependency
from litestar.response import Redirect
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access.model import Actor
from mailer.admin.back import own_path
from mailer.admin.form import SMALL_LIMIT, typed
from mailer.admin.render import done
from mailer.message.trying import try_now


class GatewayPage(Controller):
    """What is done with the gateway; how it stands is shown on other pages."""

    path = "/gateway"

    @post("/try", needs="write", request_max_body_size=SMALL_LIMIT)
    async def try_gateway(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        request: Request[Any, Any, Any],
    ) -> Redirect:
        """Try it now instead of after the pause, and lead back to the page with the button."""
        back = own_path((await typed(request, "back"))["back"])
        await try_now(engine, by)
        return done("gateway-tried", back)
