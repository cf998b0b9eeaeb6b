"""The gate that every request passes: from where it comes, who asks, and whether they may.

A route says what it needs by `needs=`: a scope, "monitoring", or "nothing"; one that says nothing
is shut. Those of the API are opened by keys, those of the pages by sessions: a browser shows its
cookie whoever has it ask, and the API never looks at cookies.
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

from mailer.access import cookie, keys, sessions
from mailer.access.model import Actor
from mailer.access.secret import has_shape
from mailer.settings import SCOPES, Settings
from mailer.web.origin import refuse_other_sites
from mailer.web.rate import Rate

NEEDS = "needs"
"""The name in a route's `opt` of what it needs; a router may say it for all its routes."""
DOOR = "door"
"""The name in a router's `opt` of what opens its routes: "key" or "session"."""
ASKED = "asked"
"""The name in the `opt` of routes that are there only where it is asked who comes: what anybody
made there would outlast `MAILER_AUTH=none`."""
BY_ITSELF = "by_itself"
"""The name in a route's `opt` of whether open pages ask for it again and again, with nobody there:
that keeps nobody signed in."""
NOTHING, MONITORING = "nothing", "monitoring"
BEARER = "Bearer "


class Gate(ASGIMiddleware):
    """Lets through who may, and puts who it is at `request.user`; None where nobody is asked."""

    scopes = (ScopeType.HTTP,)

    def __init__(self, engine: AsyncEngine, settings: Settings) -> None:
        # who asks is one statement, and needs no transaction around it
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._settings = settings
        self._rate = Rate(settings.key_rate) if settings.key_rate else None

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Let a request through; raises HTTPException 401, 403 and 429."""
        request: Request[Any, Any, Any] = Request(scope)
        scope["user"] = await self._admitted(request)
        await next_app(scope, receive, send)

    async def _admitted(self, request: Request[Any, Any, Any]) -> Actor | None:
        """Return who asks, once it is sure that they may."""
        opt = request.route_handler.opt
        needs, by_session = opt.get(NEEDS), opt.get(DOOR) == "session"
        if request.method == "OPTIONS":  # tells the methods of a path, and does nothing
            return None
        refuse_other_sites(request, is_form=by_session)
        if needs == MONITORING:
            self._check_monitoring(request)
            return None
        if self._settings.auth == "none":
            if opt.get(ASKED):
                raise NotFoundException
            return anybody(request)
        if needs == NOTHING:
            return await self._by_session(request) if by_session else None
        if needs not in SCOPES:
            raise PermissionDeniedException("Nobody may do this.")
        actor = await (self._by_session(request) if by_session else self._by_key(request))
        if actor is None:
            raise NotAuthorizedException("Sign in first.")
        if not actor.may(needs):
            request.scope["user"] = actor  # the page that says so is theirs
            raise _too_little(actor, needs)
        return actor

    async def _by_key(self, request: Request[Any, Any, Any]) -> Actor:
        secret = _bearer(request)
        if secret is None:
            raise _unknown("Send an API key, as Authorization: Bearer.")
        actor = None
        if has_shape(secret, keys.PREFIX):
            async with self._engine.connect() as connection:
                actor = await keys.use(connection, secret, address_of(request))
        if actor is None:
            raise _unknown("The API key is unknown, revoked or expired.")
        if self._rate and (seconds := self._rate.wait(actor.id)):
            raise TooManyRequestsException(
                f"A key may ask {self._settings.key_rate:g} times a second.",
                headers={"Retry-After": str(seconds)},
            )
        return actor

    async def _by_session(self, request: Request[Any, Any, Any]) -> Actor | None:
        secret = cookie.shown_by(request)
        if secret is None or not has_shape(secret):
            return None
        async with self._engine.connect() as connection:
            renew = not request.route_handler.opt.get(BY_ITSELF, False)
            return await sessions.use(connection, secret, address_of(request), renew=renew)

    def _check_monitoring(self, request: Request[Any, Any, Any]) -> None:
        wanted = self._settings.monitoring_token
        if wanted is not None and not compare_digest(
            (_bearer(request) or "").encode(), wanted.encode()
        ):
            raise _unknown("Send the monitoring token, as Authorization: Bearer.")


def _bearer(request: Request[Any, Any, Any]) -> str | None:
    given = request.headers.get("Authorization", "")
    return given[len(BEARER) :].strip() if given[: len(BEARER)].lower() == "bearer " else None


def _unknown(detail: str) -> NotAuthorizedException:
    return NotAuthorizedException(detail, headers={"WWW-Authenticate": 'Bearer realm="mailer"'})


def _too_little(actor: Actor, needs: str) -> PermissionDeniedException:
    if actor.kind == "key":
        return PermissionDeniedException(
            f"This needs a key of scope {needs}; this one has {actor.scope}."
        )
    if needs == "write":
        return PermissionDeniedException("This takes the role of an operator or an admin.")
    return PermissionDeniedException("This takes the role of an admin.")


def anybody(request: Request[Any, Any, Any]) -> Actor:
    """Return who asks where nobody is asked who they are."""
    return Actor("anybody", "anybody", scope="admin", address=address_of(request))


def address_of(request: Request[Any, Any, Any]) -> str | None:
    """Return the IP address that a request came from; IPv4 written as IPv6 is IPv4.

    Else who has one address would count as two, and all who come by IPv4 as one network.
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
    """Return who asks; for routes that need a scope."""
    actor = request.user
    if not isinstance(actor, Actor):
        raise TypeError("nobody was asked who they are")
    return actor
