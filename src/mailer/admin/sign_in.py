"""Where people sign in and out."""

from typing import Any
from urllib.parse import urlsplit

from litestar import Controller, Request, Response, get, post
from litestar.di import NamedDependency
from litestar.response import Redirect
from litestar.status_codes import (
    HTTP_303_SEE_OTHER,
    HTTP_400_BAD_REQUEST,
    HTTP_429_TOO_MANY_REQUESTS,
)
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access import service
from mailer.access.cookie import cookie
from mailer.access.gate import address_of
from mailer.access.throttle import ThrottledError
from mailer.admin.back import own_path
from mailer.admin.form import SMALL_LIMIT, Form, typed
from mailer.admin.render import Show, done
from mailer.errors import FieldError, InvalidError
from mailer.settings import Settings


def welcome(request: Request[Any, Any, Any], secret: str, back: str) -> Redirect:
    """Go on to a page of ours, signed in by what `secret` shows."""
    return Redirect(
        own_path(back), status_code=HTTP_303_SEE_OTHER, cookies=[cookie(request, secret)]
    )


def farewell(request: Request[Any, Any, Any]) -> Redirect:
    """Go on to where one signs in, with a cookie that shows nothing."""
    answer = done("signed-out-here", "/login")
    answer.set_cookie(cookie(request, None))
    return answer


class SignIn(Controller):
    """The way in and the way out."""

    path = "/"

    @get("/login", needs="nothing")
    async def show_form(
        self,
        settings: NamedDependency[Settings],
        show: NamedDependency[Show],
        request: Request[Any, Any, Any],
    ) -> Response[Any]:
        """Show the form, or go on if there is nothing to show it for."""
        back = own_path(request.query_params.get("back", "/"))
        if show.actor is not None:
            return Redirect(back, status_code=HTTP_303_SEE_OTHER)
        return _form(settings, show, Form({"name": "", "back": back}))

    @post("/login", needs="nothing", request_max_body_size=SMALL_LIMIT)
    async def sign_in(
        self,
        engine: NamedDependency[AsyncEngine],
        settings: NamedDependency[Settings],
        show: NamedDependency[Show],
        request: Request[Any, Any, Any],
    ) -> Response[Any]:
        """Begin a session, or show the form again with what is wrong."""
        given = await typed(request, "name", "password", "back")
        password = given.pop("password")
        form = Form(given)
        if settings.auth == "none":
            return Redirect(own_path(form["back"]), status_code=HTTP_303_SEE_OTHER)
        browser = request.headers.get("User-Agent", "")
        try:
            secret = await service.sign_in(
                engine, form["name"], password, address_of(request), browser
            )
        except service.NotSignedInError as error:
            refused = form.refused(InvalidError([FieldError("", str(error))]))
            return _form(settings, show, refused, HTTP_400_BAD_REQUEST)
        except ThrottledError as error:
            answer = _form(settings, show, form, HTTP_429_TOO_MANY_REQUESTS, wait=error.seconds)
            answer.headers["Retry-After"] = str(error.seconds)
            return answer
        if show.person is not None:
            await service.sign_out(engine, show.person)
        return welcome(request, secret, form["back"])

    @post("/logout", needs="nothing", request_max_body_size=SMALL_LIMIT)
    async def sign_out(
        self,
        engine: NamedDependency[AsyncEngine],
        show: NamedDependency[Show],
        request: Request[Any, Any, Any],
    ) -> Redirect:
        """End the session."""
        if show.person is not None:
            await service.sign_out(engine, show.person)
        return farewell(request)


def _form(
    settings: Settings, show: Show, form: Form, status: int = 200, wait: int = 0
) -> Response[str]:
    provider = urlsplit(settings.oidc_issuer).hostname if settings.oidc_issuer else None
    return show.page("sign_in.html", status, form=form, provider=provider, wait=wait)
