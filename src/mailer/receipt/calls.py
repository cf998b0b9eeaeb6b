"""The endpoints that providers call: `/gateways/{name}/receipts` and `/gateways/{name}/inbound`.

Both take receipts and replies, because some providers have one URL for both. They are plain ASGI in
front of the application, because a burst of receipts is as large as the mailing itself. They need
no key and no cookie: a call is authenticated by the provider's signature, or by a secret in its
URL. Nothing of a call that is not authentic is stored.
"""

import asyncio
import re
from collections.abc import Iterable
from http import HTTPStatus

import structlog
from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPScope, Receive, Scope, Send

from mailer import metrics
from mailer.clock import database_clock, elapsed
from mailer.db.engine import is_unavailable
from mailer.errors import UnavailableError
from mailer.gateway.callback import Callback, CallbackContent, UnreadableCallbackError
from mailer.gateway.channel import Channel, Channels
from mailer.limits import RateLimiter
from mailer.receipt.inbox import Inbox
from mailer.web.problems import Problem, problem, to_response
from mailer.web.startup_gate import Startup

log = structlog.get_logger()

CALL_PATH = re.compile(r"/gateways/([^/]+)/(?:receipts|inbound)/?")
MAX_CALLBACK_BYTES = 256 * 1024
"""Enough for 1,000 receipts in one call."""
CALL_BODY_TIMEOUT = 10.0
"""Seconds in which the body must arrive."""
MAX_REFUSALS = 10.0
"""Calls a second from one network address that are answered 401 because they are not authentic.
More of them are answered 429."""

# the problems with which calls are refused
UNKNOWN_GATEWAY = problem(
    HTTPStatus.NOT_FOUND,
    "No gateway of this name takes calls: its kind has none, or no secret is set.",
)
WRONG_METHOD = problem(HTTPStatus.METHOD_NOT_ALLOWED, "Providers of this kind use another method.")
LARGE_BODY = problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"At most {MAX_CALLBACK_BYTES} bytes.")
SLOW_BODY = problem(HTTPStatus.REQUEST_TIMEOUT, "The body did not arrive in time.")
NOT_AUTHENTIC = problem(HTTPStatus.UNAUTHORIZED, "The signature or the secret is wrong.")
TOO_MANY = problem(HTTPStatus.TOO_MANY_REQUESTS, "Too many calls that are not authentic.")
UNREADABLE = problem(HTTPStatus.BAD_REQUEST, "This is no receipt or reply of this gateway's kind.")
UNAVAILABLE = problem(HTTPStatus.SERVICE_UNAVAILABLE, "Nothing was stored; call again later.")
CALL_HEADERS = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))
CALL_AGAIN_LATER = (b"retry-after", b"5")


class _RefusedCallError(Exception):
    """The call is answered with a problem, and nothing of it is stored."""

    def __init__(self, refusal: Problem, *headers: tuple[bytes, bytes]) -> None:
        self.refusal = refusal
        self.headers = headers


class ProviderCalls:
    """An ASGI application that answers calls of providers, and passes all others to `app`.

    `public_url` is the setting: the start of the URLs that providers call.
    """

    def __init__(
        self,
        app: ASGIApp,
        channels: Channels,
        inbox: Inbox,
        startup: Startup,
        public_url: str | None,
    ) -> None:
        self._app = app
        self._channels = channels
        self._inbox = inbox
        self._startup = startup
        self._public_url = (public_url or "").rstrip("/")
        self._refusals = RateLimiter(MAX_REFUSALS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a call of a provider, or pass the request on."""
        match = CALL_PATH.fullmatch(scope["path"])
        if scope["type"] != ScopeType.HTTP or match is None:
            await self._app(scope, receive, send)
            return
        try:
            body, media_type = await self._answer(self._channels.get(match[1]), scope, receive)
        except _RefusedCallError as error:
            headers, body = to_response(error.refusal)
            await _respond(send, error.refusal.status, [*headers, *error.headers], body)
        else:
            await _respond(send, HTTPStatus.OK, [(b"content-type", media_type.encode())], body)

    async def _answer(
        self, channel: Channel | None, scope: HTTPScope, receive: Receive
    ) -> tuple[bytes, str]:
        """Store what a call brings. Return the body and the media type of the answer."""
        if channel is None or not channel.takes_calls:
            raise _RefusedCallError(UNKNOWN_GATEWAY)
        if scope["method"] not in channel.callback_rules.methods:
            allowed = ", ".join(sorted(channel.callback_rules.methods))
            raise _RefusedCallError(WRONG_METHOD, (b"allow", allowed.encode()))
        callback = self._callback(scope, await _read_body(receive))
        if not channel.configured.authenticates(callback, database_clock.now()):
            self._count_refusal(channel.name, scope)
            raise _RefusedCallError(NOT_AUTHENTIC)
        try:
            content = channel.callback_rules.read(callback)
        except UnreadableCallbackError as error:
            metrics.callback_answered(channel.name, "unreadable")
            log.warning("callback_unreadable", gateway=channel.name, reason=str(error))
            raise _RefusedCallError(UNREADABLE) from None
        await self._store(channel.name, content)
        return channel.callback_rules.response(content)

    def _callback(self, scope: HTTPScope, body: bytes) -> Callback:
        """Return a call with the URL that the provider knows."""
        path = scope["raw_path"].decode("latin-1")
        query = scope["query_string"].decode("latin-1")
        url = f"{self._public_url}{path}{'?' if query else ''}{query}"
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1")
            for name, value in scope["headers"]
        }
        return Callback(scope["method"], url, headers, body)

    def _count_refusal(self, gateway: str, scope: HTTPScope) -> None:
        """Count a call that is not authentic; raise 429 if its sender has made too many."""
        metrics.callback_answered(gateway, "not_authentic")
        address = (scope.get("client") or ("",))[0]
        if seconds := self._refusals.retry_after(address, elapsed()):
            raise _RefusedCallError(TOO_MANY, (b"retry-after", str(seconds).encode()))

    async def _store(self, gateway: str, content: CallbackContent) -> None:
        if not content.receipts and not content.replies:
            metrics.callback_answered(gateway, "empty")
            return
        try:
            self._startup.ensure_done()
            await self._inbox.store(gateway, content)
        except Exception as error:  # a lost database raises errors of several libraries
            if not isinstance(error, UnavailableError) and not is_unavailable(error):
                raise
            metrics.callback_answered(gateway, "unavailable")
            raise _RefusedCallError(UNAVAILABLE, CALL_AGAIN_LATER) from None
        metrics.callback_answered(gateway, "stored")


async def _read_body(receive: Receive) -> bytes:
    """Return the body of a request; raises `_RefusedCallError` if it is too large or too slow.

    The first part needs no timer here: most bodies have arrived completely, and the server ends a
    connection whose client sends nothing (`ConnectionLimits.body_part`).
    """
    body, has_more = await _receive_part(receive)
    if not has_more:
        return body
    try:
        async with asyncio.timeout(CALL_BODY_TIMEOUT):
            while has_more:
                part, has_more = await _receive_part(receive, len(body))
                body += part
    except TimeoutError:
        raise _RefusedCallError(SLOW_BODY, (b"connection", b"close")) from None
    return body


async def _receive_part(receive: Receive, received: int = 0) -> tuple[bytes, bool]:
    """Return the next part of a body of which `received` bytes have come, and whether it has more.

    Raises `_RefusedCallError`.
    """
    message = await receive()
    if message["type"] != "http.request":
        raise _RefusedCallError(SLOW_BODY)  # the provider has closed the connection
    part = message.get("body", b"")
    if received + len(part) > MAX_CALLBACK_BYTES:
        raise _RefusedCallError(LARGE_BODY, (b"connection", b"close"))
    return part, message.get("more_body", False)


async def _respond(
    send: Send, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes
) -> None:
    length = (b"content-length", str(len(body)).encode())
    others = [header for header in headers if header[0] != length[0]]
    all_headers = [*others, length, *CALL_HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": all_headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
