"""The router of all pages, the page shown on an error, and the viewer's preferences."""

from collections.abc import Collection
from typing import Any

from litestar import MediaType, Request, Response, Router, post
from litestar.datastructures import Cookie
from litestar.di import Provide
from litestar.response import Redirect
from litestar.status_codes import HTTP_303_SEE_OTHER, HTTP_401_UNAUTHORIZED

from mailer.access.middleware import AUTH_METHOD, REQUIRES_AUTH_ENABLED, anonymous
from mailer.admin.clients.importing import ClientImport
from mailer.admin.clients.index import Clients
from mailer.admin.clients.list_index import ListIndex
from mailer.admin.clients.list_page import ListPage
from mailer.admin.clients.workbook import download_clients
from mailer.admin.form import MAX_FORM_BYTES, MAX_SMALL_FORM_BYTES, read_form
from mailer.admin.gateways.detail import GatewayPage
from mailer.admin.gateways.index import GatewayList
from mailer.admin.gateways.testing import GatewayTest
from mailer.admin.gateways.trying import TryNow
from mailer.admin.language import LANGUAGES
from mailer.admin.mailings.calendar import Calendar
from mailer.admin.mailings.detail import MailingPage
from mailer.admin.mailings.form import MailingForm
from mailer.admin.mailings.form_testing import FormTest
from mailer.admin.mailings.index import MailingList
from mailer.admin.mailings.launching import MailingLaunch
from mailer.admin.mailings.messages import MessageList
from mailer.admin.mailings.testing import MailingTestForm
from mailer.admin.notices.pages import OwnNotices, UserNotices
from mailer.admin.opt_outs.importing import OptOutImport
from mailer.admin.opt_outs.index import OptOuts
from mailer.admin.redirects import own_path, redirect_back_url
from mailer.admin.render import create_page_context, provide_page_context
from mailer.admin.replies.detail import ReplyPage
from mailer.admin.replies.index import ReplyList
from mailer.admin.reports.daily import ReportPage
from mailer.admin.system.audit import Audit
from mailer.admin.system.index import System
from mailer.admin.system.overview import Overview
from mailer.admin.system.restored import RestoredDatabase
from mailer.admin.users.index import Users
from mailer.admin.users.keys import Keys
from mailer.admin.users.profile import Profile
from mailer.admin.users.sign_in import SignIn
from mailer.admin.users.sign_in_oidc import SignInOidc
from mailer.admin.viewer import LANGUAGE_COOKIE, TIME_ZONE_COOKIE
from mailer.admin.webhooks.detail import WebhookPage
from mailer.admin.webhooks.index import WebhookList
from mailer.client.model import known_zones
from mailer.web.problems import problem_of
from mailer.web.request_log import API_PREFIX

COOKIE_MAX_AGE = 365 * 24 * 3600  # seconds
"""Lifetime of the cookies with the viewer's language and time zone: a year."""


@post("/preferences", required_scope="nothing", request_max_body_size=MAX_SMALL_FORM_BYTES)
async def save_preferences(request: Request[Any, Any, Any]) -> Redirect:
    """Save the chosen language and time zone in cookies, and redirect back.

    A value that is not known is ignored.
    """
    values = await read_form(request, LANGUAGE_COOKIE, TIME_ZONE_COOKIE, "return_path")
    allowed_values: dict[str, Collection[str]] = {
        LANGUAGE_COOKIE: LANGUAGES,
        TIME_ZONE_COOKIE: known_zones(),
    }
    cookies = [
        Cookie(name, value=values[name], path="/", max_age=COOKIE_MAX_AGE, samesite="lax")
        for name, allowed in allowed_values.items()
        if values[name] in allowed
    ]
    return_path = own_path(values["return_path"])
    return Redirect(return_path, status_code=HTTP_303_SEE_OTHER, cookies=cookies)


def render_error(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    """Return the response to an error: a page for browsers, a problem (RFC 9457) for programs.

    An error of the API is a problem even for a browser. A browser that is not signed in is
    redirected to the sign-in page, and from there back.
    """
    response = problem_of(request, error)
    accepts_html = request.accept.best_match([MediaType.JSON, MediaType.HTML]) == MediaType.HTML
    if response.status_code == HTTP_401_UNAUTHORIZED and _is_page(request):
        sign_in_url = redirect_back_url("/login", request)
        if "HX-Request" in request.headers:  # htmx follows this header, and no redirect
            response.headers["HX-Redirect"] = sign_in_url
            return response
        if accepts_html:
            return Redirect(sign_in_url, status_code=HTTP_303_SEE_OTHER)
    if not accepts_html or request.url.path.startswith(API_PREFIX):
        return response
    if not request.app.state.is_auth_enabled:
        # the auth middleware does this for other errors, but not for an unknown path
        request.scope["user"] = anonymous(request)
    context = create_page_context(request, request.app.state.channels)
    return context.render_problem("error.html", response)


def _is_page(request: Request[Any, Any, Any]) -> bool:
    """Return whether the request is for a page, and not for the API."""
    return bool(request.route_handler.opt.get(AUTH_METHOD) == "session")


HANDLERS: dict[Any, Any] = {Exception: render_error}
"""The handler of all errors of the application. A route may have its own."""


def site_router() -> Router:
    """Return the router of all pages."""
    return Router(
        "/",
        route_handlers=[
            Overview,
            MailingList,
            Calendar,
            MailingForm,
            FormTest,
            MailingLaunch,
            MailingPage,
            MailingTestForm,
            MessageList,
            Clients,
            ClientImport,
            ListIndex,
            ListPage,
            download_clients,
            OptOuts,
            OptOutImport,
            ReplyList,
            ReplyPage,
            ReportPage,
            Audit,
            System,
            GatewayList,
            GatewayPage,
            GatewayTest,
            TryNow,
            RestoredDatabase,
            WebhookList,
            WebhookPage,
            SignIn,
            SignInOidc,
            save_preferences,
            # these pages do not exist while authentication is off
            Router(
                "/",
                route_handlers=[Profile, OwnNotices, Users, UserNotices, Keys],
                opt={REQUIRES_AUTH_ENABLED: True},
            ),
        ],
        opt={AUTH_METHOD: "session"},
        request_max_body_size=MAX_FORM_BYTES,
        dependencies={"context": Provide(provide_page_context)},
        include_in_schema=False,
    )
