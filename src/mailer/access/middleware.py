"""Authenticate and authorize every HTTP request.

Each route declares what it requires: a scope, "monitoring" (the monitoring token) or "nothing". A
route that declares none of them is closed to all. API routes accept API keys, pages accept
sessions. The API never reads cookies, because browsers also send them with requests that other
websites trigger.
"""

import ipaddress
from hmac import compare_digest
from typing import Any

from litestar import Request
from litestar.enums import ScopeType
from litestar.exceptions import (
    NotAuthorizedException,
    NotFoundException,
    PermissionDeniedException,
    TooManyRequestsException,
)
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Receive, Scope, Send
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access import keys, sessions
from mailer.access.credentials import has_secret_format
from mailer.access.model import Actor
from mailer.clock import elapsed
from mailer.limits import RateLimiter
from mailer.roles import SCOPES
from mailer.web import cookie
from mailer.web.origin import check_same_origin

REQUIRED_SCOPE = "required_scope"
"""Route option: what the route requires; a scope, `MONITORING` or `NOTHING`. A router may set it
for all its routes."""
AUTH_METHOD = "auth_method"
"""Router option: how requests authenticate, "key" or "session"."""
REQUIRES_AUTH_ENABLED = "requires_auth_enabled"
"""Router option: the routes answer 404 under `MAILER_AUTH=none`. Users and keys that anybody
creates there would stay valid after authentication is switched on."""
IS_POLLED = "is_polled"
"""Route option: open pages poll this route, so that a request does not mean that the user is
active, and does not restart the idle timeout of the session."""
NOTHING, MONITORING = "nothing", "monitoring"
BEARER = "Bearer "


class AuthMiddleware(ASGIMiddleware):
    """Rejects requests that are not authorized, and sets `request.user` for the others.

    `request.user` is an `Actor`, or None for a route that needs no authentication.
    """

    scopes = (ScopeType.HTTP,)

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        is_enabled: bool,
        key_rate: float,
        monitoring_token: str | None,
    ) -> None:
        """Create the middleware.

        If not `is_enabled`, every request is anonymous. A key may send `key_rate` requests
        a second; 0 sets no limit. `monitoring_token` is the one that monitoring routes require;
        None opens them to all.
        """
        # authentication is a single statement, and needs no transaction
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._is_enabled = is_enabled
        self._monitoring_token = monitoring_token
        self._key_rate = key_rate
        self._rate_limiter = RateLimiter(key_rate) if key_rate else None

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Pass an authorized request on; raises HTTPException 401, 403, 404 and 429."""
        request: Request[Any, Any, Any] = Request(scope)
        scope["user"] = await self._authenticate(request)
        await next_app(scope, receive, send)

    async def _authenticate(self, request: Request[Any, Any, Any]) -> Actor | None:
        """Return the actor of a request that may use its route; None if the route needs no actor.

        Raises HTTPException 401, 403, 404 and 429 for any other request.
        """
        options = request.route_handler.opt
        required = options.get(REQUIRED_SCOPE)
        uses_session = options.get(AUTH_METHOD) == "session"
        if request.method == "OPTIONS":  # only lists the methods of a path
            return None
        check_same_origin(request, is_form=uses_session)
        if required == MONITORING:
            self._check_monitoring(request)
            return None
        if not self._is_enabled:
            if options.get(REQUIRES_AUTH_ENABLED):
                raise NotFoundException
            return anonymous(request)
        if required == NOTHING:
            return await self._session_actor(request) if uses_session else None
        if required not in SCOPES:  # the route declares nothing
            raise PermissionDeniedException("Nobody may do this.")
        actor = await (self._session_actor(request) if uses_session else self._key_actor(request))
        if actor is None:
            raise NotAuthorizedException("Sign in first.")
        if not actor.may(required):
            request.scope["user"] = actor  # for the error page, which shows the user's name
            raise _insufficient_scope(actor, required)
        return actor

    async def _key_actor(self, request: Request[Any, Any, Any]) -> Actor:
        """Return the actor of the API key in the request; raises HTTPException 401 and 429."""
        secret = _bearer_token(request)
        if secret is None:
            raise _unauthorized("Send an API key, as Authorization: Bearer.")
        actor = None
        if has_secret_format(secret, keys.KEY_PREFIX):
            async with self._engine.connect() as connection:
                actor = await keys.authenticate(connection, secret, address_of(request))
        if actor is None:
            raise _unauthorized("The API key is unknown, revoked or expired.")
        limiter = self._rate_limiter
        if limiter is not None and (seconds := limiter.retry_after(actor.id, elapsed())):
            raise TooManyRequestsException(
                f"A key may send {self._key_rate:g} requests a second.",
                headers={"Retry-After": str(seconds)},
            )
        return actor

    async def _session_actor(self, request: Request[Any, Any, Any]) -> Actor | None:
        """Return the user whose session cookie the request has; None without a valid one."""
        secret = cookie.read_cookie(request)
        if secret is None or not has_secret_format(secret):
            return None
        async with self._engine.connect() as connection:
            renew = not request.route_handler.opt.get(IS_POLLED, False)
            return await sessions.authenticate(connection, secret, address_of(request), renew=renew)

    def _check_monitoring(self, request: Request[Any, Any, Any]) -> None:
        """Raise HTTPException 401 without the monitoring token, if one is configured."""
        expected = self._monitoring_token
        if expected is None:
            return
        given = _bearer_token(request) or ""
        if not compare_digest(given.encode(), expected.encode()):  # in constant time
            raise _unauthorized("Send the monitoring token, as Authorization: Bearer.")


def _bearer_token(request: Request[Any, Any, Any]) -> str | None:
    """Return the text after `Bearer ` in the Authorization header; None for any other header."""
    header = request.headers.get("Authorization", "")
    is_bearer = header[: len(BEARER)].lower() == BEARER.lower()
    return header[len(BEARER) :].strip() if is_bearer else None


def _unauthorized(detail: str) -> NotAuthorizedException:
    return NotAuthorizedException(detail, headers={"WWW-Authenticate": 'Bearer realm="mailer"'})


def _insufficient_scope(actor: Actor, required: str) -> PermissionDeniedException:
    """Return the error for an actor whose scope does not include `required`."""
    if actor.kind == "key":
        return PermissionDeniedException(
            f"This needs a key of scope {required}; this one has {actor.scope}."
        )
    if required == "write":
        return PermissionDeniedException("Only an operator or an admin may do this.")
    return PermissionDeniedException("Only an admin may do this.")


def anonymous(request: Request[Any, Any, Any]) -> Actor:
    """Return the actor of a request under `MAILER_AUTH=none`, who may do everything."""
    return Actor("anonymous", "anonymous", scope="admin", address=address_of(request))


def address_of(request: Request[Any, Any, Any]) -> str | None:
    """Return the IP address that a request came from; None if it is unknown.

    An IPv4 address in IPv6 form (`::ffff:192.0.2.7`) is converted to IPv4. Otherwise one sender
    could count as two addresses, and all IPv4 senders as one IPv6 network.
    """
    host = request.client.host if request.client else None
    if host is None or ":" not in host:
        return host
    try:
        mapped = ipaddress.IPv6Address(host).ipv4_mapped
    except ValueError:
        return host
    return str(mapped) if mapped else host


def actor_of(request: Request[Any, Any, Any]) -> Actor:
    """Return the actor of a request; only for routes that need a scope."""
    actor = request.user
    if not isinstance(actor, Actor):
        raise TypeError("the request was not authenticated")
    return actor
