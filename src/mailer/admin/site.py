"""The pages together: their policy, what they say when something is wrong, and preferences."""

from typing import Any

from litestar import Request, Response, Router, post
from litestar.datastructures import Cookie
from litestar.di import Provide
from litestar.exceptions import HTTPException
from litestar.response import Redirect
from litestar.status_codes import HTTP_303_SEE_OTHER, HTTP_401_UNAUTHORIZED

from mailer.access.gate import ASKED, DOOR, anybody
from mailer.admin.account import OwnAccount
from mailer.admin.audit import Audit
from mailer.admin.back import leads_back, own_path
from mailer.admin.client_import import ClientImport
from mailer.admin.clients import Clients
from mailer.admin.form import FORM_LIMIT, SMALL_LIMIT, typed
from mailer.admin.gateway import GatewayPage
from mailer.admin.keys import Keys
from mailer.admin.language import LANGUAGES
from mailer.admin.mailing import MailingPage
from mailer.admin.mailing_form import MailingForm
from mailer.admin.mailings import MailingList
from mailer.admin.messages import MessageList
from mailer.admin.overview import Overview
from mailer.admin.people import People
from mailer.admin.render import show_of, show_page
from mailer.admin.restored import RestoredDatabase
from mailer.admin.sign_in import SignIn
from mailer.admin.sign_in_oidc import SignInOidc
from mailer.admin.system import System
from mailer.admin.viewer import LANGUAGE, TIME_ZONE
from mailer.client.model import known_zones
from mailer.errors import MailerError
from mailer.web.problems import problem_of

YEAR = 365 * 24 * 3600
API, JSON, HTML = "/api/", "application/json", "text/html"


@post("/preferences", needs="nothing", request_max_body_size=SMALL_LIMIT)
async def prefer(request: Request[Any, Any, Any]) -> Redirect:
    """Keep the language and the time zone that were chosen, and go back."""
    given = await typed(request, LANGUAGE, TIME_ZONE, "back")
    chosen = {
        name: given[name]
        for name, known in ((LANGUAGE, LANGUAGES), (TIME_ZONE, known_zones()))
        if given[name] in known
    }
    cookies = [
        Cookie(name, value=value, path="/", max_age=YEAR, samesite="lax")
        for name, value in chosen.items()
    ]
    back = own_path(given["back"])
    return Redirect(back, status_code=HTTP_303_SEE_OTHER, cookies=cookies)


def on_error(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    """Answer what went wrong: with a page to a person, as a problem to a program.

    Who is not signed in is led to where one signs in, and from there back.
    """
    answer = problem_of(request, error)
    is_for_people = request.accept.best_match([JSON, HTML]) == HTML
    if answer.status_code == HTTP_401_UNAUTHORIZED and _is_of_pages(request):
        sign_in = leads_back("/login", request)
        if "HX-Request" in request.headers:
            answer.headers["HX-Redirect"] = sign_in
            return answer
        if is_for_people:
            return Redirect(sign_in, status_code=HTTP_303_SEE_OTHER)
    if not is_for_people or request.url.path.startswith(API):
        return answer
    if request.app.state.settings.auth == "none":  # the gate sees no unknown address
        request.scope["user"] = anybody(request)
    show = show_of(request, request.app.state.breaker)
    return show.problem("wrong.html", answer)


def _is_of_pages(request: Request[Any, Any, Any]) -> bool:
    return bool(request.route_handler.opt.get(DOOR) == "session")


HANDLERS: dict[Any, Any] = dict.fromkeys((MailerError, HTTPException, Exception), on_error)


def site_router() -> Router:
    """Return the router of all pages."""
    return Router(
        "/",
        route_handlers=[
            Overview,
            MailingList,
            MailingForm,
            MailingPage,
            MessageList,
            Clients,
            ClientImport,
            Audit,
            System,
            GatewayPage,
            RestoredDatabase,
            SignIn,
            SignInOidc,
            prefer,
            Router("/", route_handlers=[OwnAccount, People, Keys], opt={ASKED: True}),
        ],
        opt={DOOR: "session"},
        request_max_body_size=FORM_LIMIT,
        dependencies={"show": Provide(show_page)},
        include_in_schema=False,
    )
