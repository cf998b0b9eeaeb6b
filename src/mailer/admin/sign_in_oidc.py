"""Signing in at the OpenID provider: the way there, and the way back."""

from hmac import compare_digest
from typing import Any

import structlog
from litestar import Controller, Request, Response, get
from litestar.datastructures import Cookie
from litestar.di import NamedDependency
from litestar.exceptions import NotFoundException, TooManyRequestsException
from litestar.response import Redirect
from litestar.status_codes import HTTP_303_SEE_OTHER, HTTP_403_FORBIDDEN
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access import service
from mailer.access.cookie import is_secure
from mailer.access.gate import address_of
from mailer.access.oidc import store as pending
from mailer.access.oidc.model import Identity, SignInError
from mailer.access.oidc.provider import Provider
from mailer.access.oidc.store import LONGEST, Pending
from mailer.access.secret import digest
from mailer.admin.back import own_path
from mailer.admin.render import Show
from mailer.admin.sign_in import welcome
from mailer.web.rate import Rate

log = structlog.get_logger()

PATH = "/login/oidc"
CALLBACK = f"{PATH}/callback"
STATE = "sign_in"
"""The cookie that binds the way back to the browser that began it (RFC 6749, section 10.12)."""
LONGEST_ANSWER = 4096
"""Characters that a provider may send back in a parameter."""
STARTS = Rate(5)
"""Of each address, since each way that is begun is kept for a while."""


class SignInOidc(Controller):
    """The way in of those whom the provider knows."""

    path = PATH

    @get(needs="nothing")
    async def leave(
        self,
        engine: NamedDependency[AsyncEngine],
        provider: NamedDependency[Provider | None],
        request: Request[Any, Any, Any],
    ) -> Redirect:
        """Lead to the provider."""
        if provider is None:
            raise NotFoundException
        if seconds := STARTS.wait(address_of(request)):
            raise TooManyRequestsException(headers={"Retry-After": str(seconds)})
        start = await provider.start(_callback(request))
        async with engine.begin() as connection:
            back = own_path(request.query_params.get("back", "/"))
            await pending.keep(connection, start, back)
        cookie = _state_cookie(request, start.state)
        return Redirect(start.url, status_code=HTTP_303_SEE_OTHER, cookies=[cookie])

    @get("/callback", needs="nothing")
    async def come_back(
        self,
        engine: NamedDependency[AsyncEngine],
        provider: NamedDependency[Provider | None],
        show: NamedDependency[Show],
        request: Request[Any, Any, Any],
    ) -> Response[Any]:
        """Begin a session of whom the provider names, or say why not."""
        if provider is None:
            raise NotFoundException
        try:
            kept = await _kept(engine, request)
            identity = await _identity(provider, kept, request)
            secret = await service.sign_in_oidc(
                engine, identity, address_of(request), request.headers.get("User-Agent", "")
            )
        except SignInError as error:
            log.warning("sign_in_refused", reason=error.reason)
            await service.refused_oidc(engine, address_of(request))
            answer: Response[Any] = show.page(
                "sign_in_refused.html", HTTP_403_FORBIDDEN, error=str(error)
            )
        else:
            answer = welcome(request, secret, kept.back)
        answer.set_cookie(_state_cookie(request, None))
        return answer


async def _kept(engine: AsyncEngine, request: Request[Any, Any, Any]) -> Pending:
    """Return what was kept for this browser's way back, which is good for once."""
    state = request.query_params.get("state", "")
    shown = request.cookies.get(STATE, "")
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


def _state_cookie(request: Request[Any, Any, Any], state: str | None) -> Cookie:
    """Return the cookie that shows a state, or takes it away."""
    return Cookie(
        STATE,
        value=state or "",
        path=PATH,
        max_age=int(LONGEST.total_seconds()) if state else 0,
        httponly=True,
        samesite="lax",
        secure=is_secure(request),
    )
