"""The endpoints that providers call: `/gateways/{name}/receipts` and `/gateways/{name}/inbound`.

Both take receipts and replies, because some providers have one URL for both. They need no key and
no cookie: a call is authenticated by the provider's signature, or by a secret in its URL. Nothing
of a call that is not authentic is stored.

A burst of receipts is as large as the mailing itself. So the server answers a usual call directly
(`ProviderCalls.answer_directly`). All others, and those that are refused, come to an ASGI
application in front of mailer's own (`ProviderCalls.before`).
"""

import asyncio
import re
from functools import partial
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
from mailer.web.server.direct import DirectAnswer, DirectResponse
from mailer.web.startup_gate import Startup

log = structlog.get_logger()

CALL_PREFIX = "/gateways/"
"""Start of the paths of all calls, and of some admin pages."""
CALL_PATH = re.compile(rf"{CALL_PREFIX}([^/]+)/(?:receipts|inbound)/?")
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


Header = tuple[bytes, bytes]


class _RefusedCallError(Exception):
    """The call is answered with a problem, and nothing of it is stored.

    `result` is that of the metric; "" if the call is not counted.
    """

    def __init__(self, refusal: Problem, *headers: Header, result: str = "") -> None:
        self.refusal = refusal
        self.headers = headers
        self.result = result


class ProviderCalls:
    """Answers calls of providers.

    `public_url` is the setting: the start of the URLs that providers call.
    """

    def __init__(
        self, channels: Channels, inbox: Inbox, startup: Startup, public_url: str | None
    ) -> None:
        self._channels = channels
        self._inbox = inbox
        self._startup = startup
        self._public_url = (public_url or "").rstrip("/")
        self._refusals = RateLimiter(MAX_REFUSALS)

    def answer_directly(self, scope: HTTPScope, body: bytes) -> DirectAnswer | None:
        """Store what a call brings; return None for a call that must be refused, or that failed.

        The server passes such a call to the application, which answers it, and logs an error. It
        does so also if the call cannot be stored.
        """
        match = CALL_PATH.fullmatch(scope["path"])
        if match is None or len(body) > MAX_CALLBACK_BYTES:
            return None
        try:
            channel = self._find_channel(match[1], scope)
            content = self._read(channel, scope, body)
            stored = self._store(channel, content)
        except Exception:  # noqa: BLE001  # an error here would end the connection without an answer
            return None
        return DirectAnswer(stored, partial(_response, channel, content))

    def before(self, app: ASGIApp) -> ASGIApp:
        """Return an application that answers calls of providers, and passes all others to `app`."""

        async def answer_or_pass(scope: Scope, receive: Receive, send: Send) -> None:
            match = CALL_PATH.fullmatch(scope["path"])
            if scope["type"] != ScopeType.HTTP or match is None:
                await app(scope, receive, send)
                return
            response = await self._answer(match[1], scope, receive)
            await _send(response, send)

        return answer_or_pass

    async def _answer(self, name: str, scope: HTTPScope, receive: Receive) -> DirectResponse:
        try:
            channel = self._find_channel(name, scope)
            content = self._read(channel, scope, await _read_body(receive))
            await self._store(channel, content)
        except _RefusedCallError as error:
            return self._refuse(name, scope, error)
        except Exception as error:  # a lost database raises errors of several libraries
            if not isinstance(error, UnavailableError) and not is_unavailable(error):
                raise
            refused = _RefusedCallError(UNAVAILABLE, CALL_AGAIN_LATER, result="unavailable")
            return self._refuse(name, scope, refused)
        return _response(channel, content)

    def _find_channel(self, name: str, scope: HTTPScope) -> Channel:
        """Return the channel of a gateway that takes calls with this method."""
        channel = self._channels.get(name)
        if channel is None or not channel.takes_calls:
            raise _RefusedCallError(UNKNOWN_GATEWAY)
        if scope["method"] not in channel.callback_rules.methods:
            allowed = ", ".join(sorted(channel.callback_rules.methods))
            raise _RefusedCallError(WRONG_METHOD, (b"allow", allowed.encode()))
        return channel

    def _read(self, channel: Channel, scope: HTTPScope, body: bytes) -> CallbackContent:
        """Return what a call brings, if it is authentic."""
        callback = self._callback(scope, body)
        if not channel.configured.authenticates(callback, database_clock.now()):
            raise _RefusedCallError(NOT_AUTHENTIC, result="not_authentic")
        try:
            return channel.callback_rules.read(callback)
        except UnreadableCallbackError as error:
            raise _RefusedCallError(UNREADABLE, result="unreadable") from error

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

    def _store(self, channel: Channel, content: CallbackContent) -> asyncio.Future[None]:
        """Store what a call brings; the future ends when it is committed.

        Raises `UnavailableError` while the worker starts.
        """
        self._startup.ensure_done()
        return self._inbox.store(channel.name, content)

    def _refuse(self, gateway: str, scope: HTTPScope, error: _RefusedCallError) -> DirectResponse:
        """Count a refused call; one that is not authentic gets 429 if its sender made too many."""
        if error.result:
            metrics.callback_answered(gateway, error.result)
        if error.refusal is UNREADABLE:
            log.warning("callback_unreadable", gateway=gateway, reason=str(error.__cause__))
        if error.refusal is NOT_AUTHENTIC:
            address = (scope.get("client") or ("",))[0]
            if seconds := self._refusals.retry_after(address, elapsed()):
                error = _RefusedCallError(TOO_MANY, (b"retry-after", str(seconds).encode()))
        headers, body = to_response(error.refusal)
        return DirectResponse(error.refusal.status, (*headers, *error.headers, *CALL_HEADERS), body)


def _response(channel: Channel, content: CallbackContent) -> DirectResponse:
    """Return the response to a call whose content is stored; it says what the provider expects."""
    metrics.callback_answered(channel.name, "stored" if content.size else "empty")
    body, media_type = channel.callback_rules.response(content)
    headers = (
        (b"content-type", media_type.encode()),
        (b"content-length", str(len(body)).encode()),
        *CALL_HEADERS,
    )
    return DirectResponse(HTTPStatus.OK, headers, body)


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


async def _send(response: DirectResponse, send: Send) -> None:
    status, headers, body = response
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
