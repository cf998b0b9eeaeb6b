"""The button "Try now": it ends the pauses of all gateways and of failed messages."""

from typing import Any

from litestar import Controller, Request, post
from litestar.di import NamedDependency
from litestar.response import Redirect
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access.model import Actor
from mailer.admin.form import MAX_SMALL_FORM_BYTES, read_form
from mailer.admin.redirects import own_path
from mailer.admin.render import redirect_with_flash
from mailer.message.trying import try_now


class TryNow(Controller):
    """An action on all gateways."""

    path = "/gateway"

    @post("/try", required_scope="write", request_max_body_size=MAX_SMALL_FORM_BYTES)
    async def try_gateway(
        self,
        engine: NamedDependency[AsyncEngine],
        by: NamedDependency[Actor],
        request: Request[Any, Any, Any],
    ) -> Redirect:
        """End the pauses, and redirect back to the page with the button."""
        return_path = own_path((await read_form(request, "return_path"))["return_path"])
        await try_now(engine, by)
        return redirect_with_flash("gateway-tried", return_path)
