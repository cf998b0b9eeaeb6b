"""Signing in with a password, and signing out."""

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
from mailer.access.login_throttle import ThrottledError
from mailer.access.middleware import address_of
from mailer.admin.form import MAX_SMALL_FORM_BYTES, Form, read_form
from mailer.admin.redirects import own_path
from mailer.admin.render import PageContext, redirect_with_flash
from mailer.errors import FieldError, InvalidError
from mailer.oidc.provider import Provider
from mailer.web.cookie import create_cookie


def redirect_signed_in(request: Request[Any, Any, Any], secret: str, return_path: str) -> Redirect:
    """Return a redirect that sets the session cookie; `secret` is the secret of the session.

    A `return_path` that is not on this site is replaced by the overview.
    """
    return Redirect(
        own_path(return_path),
        status_code=HTTP_303_SEE_OTHER,
        cookies=[create_cookie(request, secret)],
    )


def redirect_signed_out(request: Request[Any, Any, Any]) -> Redirect:
    """Return a redirect to the sign-in page that also deletes the session cookie."""
    response = redirect_with_flash("signed-out", "/login")
    response.set_cookie(create_cookie(request, None))
    return response


class SignIn(Controller):
    """The sign-in form, and the actions to sign in and out."""

    path = "/"

    @get("/login", required_scope="nothing")
    async def show_form(
        self,
        provider: NamedDependency[Provider | None],
        context: NamedDependency[PageContext],
        request: Request[Any, Any, Any],
    ) -> Response[Any]:
        """Show the form, or redirect if the user is already signed in or authentication is off."""
        return_path = own_path(request.query_params.get("return_path", "/"))
        if context.actor is not None:
            return Redirect(return_path, status_code=HTTP_303_SEE_OTHER)
        return await _form_page(provider, context, Form({"name": "", "return_path": return_path}))

    @post("/login", required_scope="nothing", request_max_body_size=MAX_SMALL_FORM_BYTES)
    async def sign_in(
        self,
        engine: NamedDependency[AsyncEngine],
        provider: NamedDependency[Provider | None],
        context: NamedDependency[PageContext],
        request: Request[Any, Any, Any],
    ) -> Response[Any]:
        """Start a session, or show the form again with its errors."""
        values = await read_form(request, "name", "password", "return_path")
        password = values.pop("password")
        form = Form(values)
        if context.is_auth_disabled:
            return Redirect(own_path(form["return_path"]), status_code=HTTP_303_SEE_OTHER)
        browser = request.headers.get("User-Agent", "")
        try:
            secret = await service.sign_in(
                engine, form["name"], password, address_of(request), browser
            )
        except service.NotSignedInError as error:
            form = form.with_errors(InvalidError([FieldError("", str(error))]))
            return await _form_page(provider, context, form, HTTP_400_BAD_REQUEST)
        except ThrottledError as error:
            status = HTTP_429_TOO_MANY_REQUESTS
            response = await _form_page(provider, context, form, status, retry_after=error.seconds)
            response.headers["Retry-After"] = str(error.seconds)
            return response
        if context.user is not None:  # this browser's previous session ends
            await service.sign_out(engine, context.user)
        return redirect_signed_in(request, secret, form["return_path"])

    @post("/logout", required_scope="nothing", request_max_body_size=MAX_SMALL_FORM_BYTES)
    async def sign_out(
        self,
        engine: NamedDependency[AsyncEngine],
        context: NamedDependency[PageContext],
        request: Request[Any, Any, Any],
    ) -> Redirect:
        """End the session of this browser."""
        if context.user is not None:
            await service.sign_out(engine, context.user)
        return redirect_signed_out(request)


async def _form_page(
    provider: Provider | None,
    context: PageContext,
    form: Form,
    status: int = 200,
    retry_after: int = 0,
) -> Response[str]:
    """Return the sign-in page; `retry_after`: seconds to wait after too many wrong passwords."""
    provider_host = urlsplit(provider.issuer).hostname if provider else None
    return await context.render_page(
        "sign_in.html",
        status,
        form=form,
        provider_host=provider_host,
        retry_after=retry_after,
    )
