"""Signing in at the OpenID provider: the way there, and the way back."""

from hmac import compare_digest
from typing import Any

import structlog
from litestar import Controller, Request, Response, get
from litestar.di import NamedDependency
from litestar.exceptions import NotFoundException, TooManyRequestsException
from litestar.response import Redirect
from litestar.status_codes import (
    HTTP_303_SEE_OTHER,
    HTTP_403_FORBIDDEN,
    HTTP_503_SERVICE_UNAVAILABLE,
)
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access import service
from mailer.access.cookie import Purpose, cookie, shown_by
from mailer.access.gate import address_of
from mailer.access.oidc import store as pending
from mailer.access.oidc.model import BEFORE_ANYBODY, Identity, ProviderAwayError, SignInError
from mailer.access.oidc.provider import Provider
from mailer.access.oidc.store import LONGEST, Pending
from mailer.access.secret import digest
from mailer.access.throttle import network
from mailer.admin.back import own_path
from mailer.admin.language import marked
from mailer.admin.render import Show
from mailer.admin.sign_in import welcome
from mailer.web.rate import Rate

log = structlog.get_logger()

PATH = "/login/oidc"
CALLBACK = f"{PATH}/callback"
STATE = Purpose("sign_in", PATH, int(LONGEST.total_seconds()))
"""The cookie that binds the way back to the browser that began it (RFC 6749, section 10.12)."""
LONGEST_ANSWER = 4096
"""Characters that a provider may send back in a parameter."""
NOT_AS_SET = marked("The identity provider is not the one that is set. Ask whoever runs mailer.")


class SignInOidc(Controller):
    """The way in of those whom the provider knows."""

    path = PATH

    @get(needs="nothing")
    async def leave(
        self,
        engine: NamedDependency[AsyncEngine],
        provider: NamedDependency[Provider | None],
        oidc_rate: NamedDependency[Rate],
        show: NamedDependency[Show],
        request: Request[Any, Any, Any],
    ) -> Response[Any]:
        """Lead to the provider, or say why not."""
        provider = _asked(provider, oidc_rate, request)
        try:
            start = await provider.start(_callback(request))
        except ProviderAwayError as error:
            return _away(show, error)
        except SignInError as error:
            return _refused(show, error, NOT_AS_SET, HTTP_503_SERVICE_UNAVAILABLE)
        async with engine.begin() as connection:
            back = own_path(request.query_params.get("back", "/"))
            await pending.keep(connection, start, back)
        shown = cookie(request, start.state, STATE)
        return Redirect(start.url, status_code=HTTP_303_SEE_OTHER, cookies=[shown])

    @get("/callback", needs="nothing")
    async def come_back(
        self,
        engine: NamedDependency[AsyncEngine],
        provider: NamedDependency[Provider | None],
        oidc_rate: NamedDependency[Rate],
        show: NamedDependency[Show],
        request: Request[Any, Any, Any],
    ) -> Response[Any]:
        """Begin a session of whom the provider names, or say why not."""
        provider = _asked(provider, oidc_rate, request)
        try:
            kept = await _kept(engine, request)
            identity = await _identity(provider, kept, request)
            secret = await service.sign_in_oidc(
                engine, identity, address_of(request), request.headers.get("User-Agent", "")
            )
        except ProviderAwayError as error:
            answer = _away(show, error)
        except SignInError as error:
            if error.reason not in BEFORE_ANYBODY:  # the log of what was done is kept for ever
                await service.refused_oidc(engine, error, address_of(request))
            answer = _refused(show, error, str(error), HTTP_403_FORBIDDEN)
        else:
            if show.person is not None:
                await service.sign_out(engine, show.person)
            answer = welcome(request, secret, kept.back)
        answer.set_cookie(cookie(request, None, STATE))
        return answer


def _asked(provider: Provider | None, rate: Rate, request: Request[Any, Any, Any]) -> Provider:
    """Return the provider; raises HTTPException 404 if there is none, and 429."""
    if provider is None:
        raise NotFoundException
    if seconds := rate.wait(network(address_of(request))):
        raise TooManyRequestsException(
            "Too many sign-ins at once from your network.", headers={"Retry-After": str(seconds)}
        )
    return provider


def _away(show: Show, error: ProviderAwayError) -> Response[Any]:
    """Say that the provider does not answer: from here one starts again, with a state anew."""
    log.warning("provider_away", reason=error.reason)
    status = HTTP_503_SERVICE_UNAVAILABLE
    answer = show.page("sign_in_refused.html", status, error=str(error))
    answer.headers["Retry-After"] = str(error.retry_after)
    return answer


def _refused(show: Show, error: SignInError, said: str, status: int) -> Response[Any]:
    log.warning("sign_in_refused", reason=error.reason)
    return show.page("sign_in_refused.html", status, error=said)


async def _kept(engine: AsyncEngine, request: Request[Any, Any, Any]) -> Pending:
    """Return what was kept for this browser's way back, which is good for once."""
    state = request.query_params.get("state", "")
    shown = shown_by(request, STATE) or ""
    if not state or not compare_digest(digest(state), digest(shown)):
        raise SignInError("wrong_state")
    async with engine.begin() as connection:
        kept = await pending.take(connection, state)
    if kept is None:
        raise SignInError("state_used")
    return kept


async def _identity(provider: Provider, kept: Pending, request: Request[Any, Any, Any]) -> Identity:
    if "error" in request.query_params:
        raise SignInError("refused_there")
    code = request.query_params.get("code", "")
    if not code or len(code) > LONGEST_ANSWER:
        raise SignInError("no_code")
    issuer = request.query_params.get("iss")
    return await provider.finish(code, _callback(request), kept.nonce, kept.verifier, issuer)


def _callback(request: Request[Any, Any, Any]) -> str:
    return str(request.url.with_replacements(path=CALLBACK, query="", fragment=""))
