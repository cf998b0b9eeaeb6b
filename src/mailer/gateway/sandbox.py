"""The sandbox gateway: a server that stands in for an SMS gateway and sends nothing.

It speaks the protocol of the kind `json` (docs/gateways.md), with latency and faults on request. It
serves the demo, the tests, the measurements, and the command `mailer sandbox`.
"""

import asyncio
import logging
import random
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, NoReturn

import msgspec
from aiohttp import web

from mailer.errors import UnavailableError
from mailer.gateway.aiohttp_connection import is_parse_error
from mailer.gateway.faults import (
    FAULT_RESPONSES,
    Faults,
    RequestKind,
    SandboxResponse,
    create_refusal,
    create_response,
)
from mailer.gateway.recent_ids import RecentIds
from mailer.json_input import JsonError, read_json
from mailer.limits import RateLimiter

__all__ = ["Faults", "RequestKind", "SandboxCounts", "SandboxGateway", "SandboxRequest"]

_PATH = "/send/"

_ACCEPTED = create_response("accepted", 200, b'{"code":0,"message":"OK"}')
_UNAUTHORIZED = create_refusal("unauthorized", 401, "wrong token", www_authenticate="Bearer")
_INVALID = create_refusal("invalid", 400, "wrong shape, or another id than in the path")
_NOT_FOUND = create_refusal("invalid", 404, "no such path")
_NOT_POST = create_refusal("invalid", 405, "POST only", allow="POST")
_TOO_LARGE = create_refusal("invalid", 413, "body too large")

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""Value of the socket option SO_LINGER: on, 0 s. Closing the socket then sends RST, not FIN."""


class SandboxRequest(msgspec.Struct, frozen=True):
    """A record of one request and how it ended, without phone and text."""

    id: int | None
    """The message's id; None when the request was invalid."""
    arrived: int
    """When the request had been read, in microseconds of Unix time."""
    monotonic: float
    """The same moment by `time.monotonic()`, in seconds, to compute intervals and rates."""
    kind: RequestKind
    repeat: bool = False
    """Whether the message was accepted and had been accepted before."""
    overlap: bool = False
    """Whether another request for the same message had no response yet when this one came."""


class SandboxCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers of requests by kind, and of repeats and overlaps among them.

    Every request has exactly one kind. `Faults` describes the kinds from `error` to `reset`, and
    `SandboxRequest` what a repeat and an overlap is.
    """

    accepted: int = 0
    """Status 200 with code 0. `accepted - repeats` is the number of different messages."""
    error: int = 0
    reject: int = 0
    malformed: int = 0
    hang: int = 0
    reset: int = 0
    limited: int = 0
    """Status 429: over the rate limit."""
    unauthorized: int = 0
    """Status 401: the token is missing or wrong."""
    invalid: int = 0
    """Status 400, 404, 405 or 413: the request breaks the protocol."""
    disconnected: int = 0
    """The client disconnected, or the sandbox stopped, before the response was due."""
    repeats: int = 0
    overlaps: int = 0

    @property
    def total(self) -> int:
        """The number of all requests."""
        counts: tuple[int, ...] = msgspec.structs.astuple(self)
        return sum(counts) - self.repeats - self.overlaps


class _MessageBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a request that follows the gateway protocol."""

    id: Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
    phone: Annotated[int, msgspec.Meta(ge=70_000_000_000, le=79_999_999_999)]
    text: Annotated[str, msgspec.Meta(min_length=1, max_length=1_600)]


class SandboxGateway:
    """An SMS gateway that sends nothing: it checks requests, responds to them and counts them.

    `token` is the bearer token that it requires; None for no authentication. `on_request` is called
    in the event loop once for each request, when its kind is final.

    A message that was accepted before is accepted again without faults, like by a gateway that
    drops repeats, but with the rate limit and the latency. Memory is bounded for any number of
    requests.
    """

    def __init__(
        self,
        faults: Faults,
        *,
        token: str | None = None,
        on_request: Callable[[SandboxRequest], None] | None = None,
    ) -> None:
        self._faults = faults
        self._fault_rates = [(fault, rate) for fault, rate in faults.rates() if rate]
        self._random = random.Random(faults.seed)  # noqa: S311  # to be repeatable, not secret
        self._limiter = RateLimiter(faults.rate_limit, burst=1.0) if faults.rate_limit else None
        self._authorization = None if token is None else f"Bearer {token}"
        self._on_request = on_request
        self._accepted_ids = RecentIds()
        self._open_ids: set[int] = set()
        """Ids of messages with a request that has no response yet."""
        self._handlers: set[asyncio.Task[None]] = set()
        self._counts = dict.fromkeys(SandboxCounts.__struct_fields__, 0)

    @property
    def counts(self) -> SandboxCounts:
        """Counts of requests. A request is counted when its kind is final."""
        return SandboxCounts(**self._counts)

    @asynccontextmanager
    async def run(self, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
        """Serve on `host` and `port`, and yield the URL for MAILER_GATEWAY_URL.

        Port 0 selects a free port. At the end, requests without a response are aborted within
        0.2 s. Raises UnavailableError when it cannot listen there.
        """
        logger = logging.getLogger(__name__)
        logger.addFilter(_drop_parse_error)
        server = web.Server(
            self._handle,
            handler_cancellation=True,  # else a request that hangs would outlive its connection
            access_log=None,
            auto_decompress=False,  # the protocol has no encodings: respond with 400, do not raise
            logger=logger,
        )
        runner = web.ServerRunner(server, shutdown_timeout=0.05)  # 0 would wait forever
        await runner.setup()
        site = web.TCPSite(runner, host, port, backlog=1_024)
        try:
            await _listen(site, host, port)
            yield f"{site.name}{_PATH}"
        finally:
            await runner.cleanup()
            if self._handlers:  # cancelled already; wait until they are counted
                await asyncio.wait(self._handlers)

    async def _handle(self, request: web.BaseRequest) -> web.Response:
        """Respond to any request, record it and count it."""
        try:
            id_or_refusal = self._check(request, await request.read())
        except web.HTTPRequestEntityTooLarge:
            id_or_refusal = _TOO_LARGE
        arrived, monotonic = time.time_ns() // 1_000, time.monotonic()
        if isinstance(id_or_refusal, SandboxResponse):
            self._record(SandboxRequest(None, arrived, monotonic, id_or_refusal.kind))
            return _to_http(id_or_refusal)
        task, message_id = request.task, id_or_refusal
        is_overlap = message_id in self._open_ids
        self._open_ids.add(message_id)
        self._handlers.add(task)
        try:
            response = self._choose_response(message_id, monotonic)
            record = SandboxRequest(
                message_id, arrived, monotonic, response.kind, overlap=is_overlap
            )
            return await self._finish(request, record, response)
        finally:
            self._open_ids.discard(message_id)
            self._handlers.discard(task)

    def _check(self, request: web.BaseRequest, body: bytes) -> int | SandboxResponse:
        """Return the message's id, or the response to a request that breaks the protocol."""
        if request.method != "POST":
            return _NOT_POST
        if self._authorization not in (None, request.headers.get("Authorization")):
            return _UNAUTHORIZED
        if not request.raw_path.startswith(_PATH):
            return _NOT_FOUND
        try:
            message = read_json(body, _MessageBody, limit=len(body))
        except JsonError:
            return _INVALID
        return message.id if request.raw_path == f"{_PATH}{message.id}" else _INVALID

    def _choose_response(self, message_id: int, now: float) -> SandboxResponse:
        """Return the response to a valid request: over the limit, with a fault, or accepted."""
        if self._limiter is not None and (seconds := self._limiter.retry_after("all", now)):
            return create_refusal("limited", 429, "too many", retry_after=str(seconds))
        if message_id in self._accepted_ids or not self._fault_rates:
            return _ACCEPTED
        # each fault has an interval of the length of its rate between 0 and 1
        position = self._random.random()
        for fault, rate in self._fault_rates:
            if position < rate:
                return self._random.choice(FAULT_RESPONSES[fault])
            position -= rate
        return _ACCEPTED

    async def _finish(
        self, request: web.BaseRequest, record: SandboxRequest, response: SandboxResponse
    ) -> web.Response:
        """Wait for the latency, record the request, and return its response.

        A request that hangs or is reset gets no response: this waits until it is cancelled.
        """
        if record.kind == "hang":
            self._record(record)
            await _wait_for_cancellation()
        try:
            await self._delay()
        except asyncio.CancelledError:
            self._record(msgspec.structs.replace(record, kind="disconnected"))
            raise
        if record.kind == "accepted" and record.id is not None:
            is_repeat = record.id in self._accepted_ids
            self._accepted_ids.add(record.id)
            if is_repeat:
                record = msgspec.structs.replace(record, repeat=True)
        self._record(record)
        if record.kind == "reset":
            _reset(request.transport)
            await _wait_for_cancellation()
        return _to_http(response)

    async def _delay(self) -> None:
        """Sleep for the latency with its jitter."""
        if self._faults.latency:
            deviation = self._random.uniform(-1.0, 1.0) * self._faults.jitter
            await asyncio.sleep(self._faults.latency * (1.0 + deviation))

    def _record(self, record: SandboxRequest) -> None:
        """Count a request, and pass its record to `on_request`."""
        self._counts[record.kind] += 1
        self._counts["repeats"] += record.repeat
        self._counts["overlaps"] += record.overlap
        if self._on_request is not None:
            self._on_request(record)


async def _listen(site: web.TCPSite, host: str, port: int) -> None:
    """Start to listen. Raises UnavailableError, which says why it cannot."""
    try:
        await site.start()
    except OSError as error:
        message = f"cannot listen on {host}:{port}: {error.strerror or error}"
        raise UnavailableError(message) from error


def _to_http(response: SandboxResponse) -> web.Response:
    """Convert a response for aiohttp."""
    return web.Response(status=response.status, body=response.body, headers=response.headers)


def _reset(transport: asyncio.Transport | None) -> None:
    """Close a connection by RST."""
    if transport is not None:
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        transport.abort()


async def _wait_for_cancellation() -> NoReturn:
    """Wait until the server cancels the task, which it does when the connection is lost."""
    while True:
        await asyncio.get_running_loop().create_future()


def _drop_parse_error(record: logging.LogRecord) -> bool:
    """Remove aiohttp's parse errors from a log record: their text may contain a phone."""
    if record.exc_info and is_parse_error(record.exc_info[1]):
        record.exc_info = None
    return True
