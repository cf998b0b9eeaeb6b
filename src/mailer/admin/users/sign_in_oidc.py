"""Signing in through the OpenID provider.

Mailer redirects the browser to the provider (`start`). When the user has signed in there, the
provider redirects it to the callback (`finish`), with a code that mailer exchanges for the identity
of the user. The random `state` connects the two requests.
"""

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

from mailer.access import service as access
from mailer.access.credentials import digest
from mailer.access.login_throttle import network_of
from mailer.access.middleware import address_of
from mailer.admin.language import gettext_noop
from mailer.admin.redirects import own_path
from mailer.admin.render import PageContext
from mailer.admin.users.sign_in import redirect_signed_in
from mailer.clock import elapsed
from mailer.limits import RateLimiter
from mailer.oidc import service as oidc
from mailer.oidc import store
from mailer.oidc.model import (
    REASONS_WITHOUT_IDENTITY,
    Identity,
    ProviderUnavailableError,
    SignInError,
)
from mailer.oidc.provider import Provider
from mailer.oidc.store import SIGN_IN_TIMEOUT, PendingSignIn
from mailer.web.cookie import CookieKind, create_cookie, read_cookie

log = structlog.get_logger()

PATH = "/login/oidc"
CALLBACK_PATH = f"{PATH}/callback"
STATE_COOKIE = CookieKind("sign_in", PATH, int(SIGN_IN_TIMEOUT.total_seconds()))
"""Cookie with the state: only the browser that started may finish (RFC 6749, section 10.12)."""
MAX_CODE_LENGTH = 4096
"""Maximum length of the code that the provider sends to the callback, in characters."""
WRONG_PROVIDER_TEXT = gettext_noop(
    "The identity provider does not match the configuration. Ask an admin."
)


class SignInOidc(Controller):
    """The start of a sign-in, and the callback of the provider."""

    path = PATH

    @get(required_scope="nothing")
    async def start(
        self,
        engine: NamedDependency[AsyncEngine],
        provider: NamedDependency[Provider | None],
        oidc_rate: NamedDependency[RateLimiter],
        context: NamedDependency[PageContext],
        request: Request[Any, Any, Any],
    ) -> Response[Any]:
        """Redirect to the provider, or show why that is not possible."""
        provider = _checked_provider(provider, oidc_rate, request)
        try:
            started = await provider.start(_callback_url(request))
        except ProviderUnavailableError as error:
            return await _render_unavailable(context, error)
        except SignInError as error:
            return await _render_refusal(
                context, error, WRONG_PROVIDER_TEXT, HTTP_503_SERVICE_UNAVAILABLE
            )
        async with engine.begin() as connection:
            return_path = own_path(request.query_params.get("return_path", "/"))
            await store.store_pending(connection, started, return_path)
        cookie = create_cookie(request, started.state, STATE_COOKIE)
        return Redirect(started.url, status_code=HTTP_303_SEE_OTHER, cookies=[cookie])

    @get("/callback", required_scope="nothing")
    async def finish(
        self,
        engine: NamedDependency[AsyncEngine],
        provider: NamedDependency[Provider | None],
        oidc_rate: NamedDependency[RateLimiter],
        context: NamedDependency[PageContext],
        request: Request[Any, Any, Any],
    ) -> Response[Any]:
        """Start a session for the user whom the provider identifies, or show why not."""
        provider = _checked_provider(provider, oidc_rate, request)
        try:
            sign_in = await _take_pending(engine, request)
            identity = await _read_identity(provider, sign_in, request)
            secret = await oidc.sign_in(
                engine, identity, address_of(request), request.headers.get("User-Agent", "")
            )
        except ProviderUnavailableError as error:
            response = await _render_unavailable(context, error)
        except SignInError as error:
            # anybody can cause refusals without an identity: they would fill the audit log, whose
            # entries are never deleted
            if error.reason not in REASONS_WITHOUT_IDENTITY:
                await oidc.record_failed_sign_in(engine, error, address_of(request))
            response = await _render_refusal(context, error, str(error), HTTP_403_FORBIDDEN)
        else:
            if context.user is not None:  # this browser's previous session ends
                await access.sign_out(engine, context.user)
            response = redirect_signed_in(request, secret, sign_in.return_path)
        response.set_cookie(create_cookie(request, None, STATE_COOKIE))  # deletes the cookie
        return response


def _checked_provider(
    provider: Provider | None, limiter: RateLimiter, request: Request[Any, Any, Any]
) -> Provider:
    """Return the provider if there is one and the request may use it.

    Raises `NotFoundException` if none is configured, and `TooManyRequestsException` if the network
    of the request has signed in too often.
    """
    if provider is None:
        raise NotFoundException
    if seconds := limiter.retry_after(network_of(address_of(request)), elapsed()):
        raise TooManyRequestsException(
            "Too many sign-ins from your network.", headers={"Retry-After": str(seconds)}
        )
    return provider


async def _render_unavailable(
    context: PageContext, error: ProviderUnavailableError
) -> Response[Any]:
    """Return the page that says that the provider does not answer and the user should try again."""
    log.warning("provider_unavailable", reason=error.reason)
    status = HTTP_503_SERVICE_UNAVAILABLE
    response = await context.render_page("sign_in_refused.html", status, error=str(error))
    response.headers["Retry-After"] = str(error.retry_after)
    return response


async def _render_refusal(
    context: PageContext, error: SignInError, message: str, status: int
) -> Response[Any]:
    """Log why a sign-in is refused, and return the page that shows `message`."""
    log.warning("sign_in_refused", reason=error.reason)
    return await context.render_page("sign_in_refused.html", status, error=message)


async def _take_pending(engine: AsyncEngine, request: Request[Any, Any, Any]) -> PendingSignIn:
    """Return the sign-in that this browser has started, and delete it: a callback works once.

    Raises `SignInError` if the state is not that of the browser's cookie, or was used before.
    """
    state = request.query_params.get("state", "")
    cookie = read_cookie(request, STATE_COOKIE) or ""
    if not state or not compare_digest(digest(state), digest(cookie)):
        raise SignInError("wrong_state")
    async with engine.begin() as connection:
        sign_in = await store.take_pending(connection, state)
    if sign_in is None:
        raise SignInError("state_used")
    return sign_in


async def _read_identity(
    provider: Provider, sign_in: PendingSignIn, request: Request[Any, Any, Any]
) -> Identity:
    """Return the identity for which the provider exchanges the code in the request.

    Raises `SignInError`, and `ProviderUnavailableError` if the provider does not answer.
    """
    if "error" in request.query_params:
        raise SignInError("refused_by_provider")
    code = request.query_params.get("code", "")
    if not code or len(code) > MAX_CODE_LENGTH:
        raise SignInError("no_code")
    issuer = request.query_params.get("iss")
    return await provider.finish(
        code, _callback_url(request), sign_in.nonce, sign_in.verifier, issuer
    )


def _callback_url(request: Request[Any, Any, Any]) -> str:
    return str(request.url.with_replacements(path=CALLBACK_PATH, query="", fragment=""))
