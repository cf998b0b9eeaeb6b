"""The sandbox gateway: the contract's gateway protocol, with latency and faults by option."""

import asyncio
import logging
import math
import random
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, NoReturn

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from mailer.errors import UnavailableError
from mailer.gateway.faults import ANSWERS, Answer, Faults, Kind, answer, refusal
from mailer.gateway.idset import IdSet
from mailer.json_input import JsonError, read_json

__all__ = ["Counts", "Faults", "Kind", "SandboxGateway", "Taken"]

_PATH = "/send/"

_ACCEPTED = answer("accepted", 200, b'{"code":0,"message":"OK"}')
_UNAUTHORIZED = refusal("unauthorized", 401, "wrong token", www_authenticate="Bearer")
_INVALID = refusal("invalid", 400, "wrong shape, or not the id in the path")
_NOT_FOUND = refusal("invalid", 404, "no such path")
_NOT_POST = refusal("invalid", 405, "POST only", allow="POST")
_TOO_LARGE = refusal("invalid", 413, "body too large")

# With this SO_LINGER a socket is closed by RST instead of FIN.
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Taken(msgspec.Struct, frozen=True):
    """One request and what became of it; neither the phone nor the text is kept."""

    id: int | None
    """The message; None when the request was refused before it named one properly."""
    arrived: int
    """When it had been read, microseconds of Unix time."""
    monotonic: float
    """The same moment on `time.monotonic()`, seconds: for distances and rates."""
    kind: Kind
    repeat: bool = False
    """Accepted though this message had been accepted before."""
    overlap: bool = False
    """It came while another request for the same message was open."""


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """Requests by kind, each in one kind alone; and how many were repeats and overlaps."""

    accepted: int = 0
    """Answered 200 with code 0; `accepted - repeats` different messages."""
    error: int = 0
    reject: int = 0
    malformed: int = 0
    hang: int = 0
    reset: int = 0
    limited: int = 0
    """Answered 429: over the rate limit."""
    unauthorized: int = 0
    """Answered 401: the token is missing or wrong."""
    invalid: int = 0
    """Answered 400, 404, 405 or 413: the request breaks the protocol."""
    gone: int = 0
    """The client went, or the sandbox stopped, before the answer was due."""
    repeats: int = 0
    overlaps: int = 0

    @property
    def total(self) -> int:
        """All requests taken."""
        counts: tuple[int, ...] = msgspec.structs.astuple(self)
        return sum(counts) - self.repeats - self.overlaps


class _Message(msgspec.Struct, forbid_unknown_fields=True):
    """The body that the contract's section 5 asks for."""

    id: Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
    phone: Annotated[int, msgspec.Meta(ge=70_000_000_000, le=79_999_999_999)]
    text: Annotated[str, msgspec.Meta(min_length=1, max_length=1_600)]


class _Bucket:
    """A token bucket that holds one second's messages, one at least."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._size = max(1.0, rate)
        self._tokens = self._size
        self._filled = 0.0

    def take(self, now: float) -> float:
        """Take a token and return 0, or return the seconds until there is one."""
        self._tokens = min(self._size, self._tokens + (now - self._filled) * self._rate)
        self._filled = now
        if self._tokens < 1.0:
            return (1.0 - self._tokens) / self._rate
        self._tokens -= 1.0
        return 0.0


class SandboxGateway:
    """An SMS gateway that sends nothing: it takes, checks, answers and counts.

    `token` is the bearer token it asks for, None for none. `on_taken` is called in the event loop
    once a request, when it is known what becomes of it. A message that was accepted before is
    accepted again whatever the faults, as by a gateway that drops repeats; the rate limit and the
    latency hold for it too. Memory is bounded, however many requests it takes.
    """

    def __init__(
        self,
        faults: Faults,
        *,
        token: str | None = None,
        on_taken: Callable[[Taken], None] | None = None,
    ) -> None:
        self._faults = faults
        self._rates = [(fault, rate) for fault, rate in faults.rates() if rate]
        self._random = random.Random(faults.seed)  # noqa: S311  # to be repeatable, not secret
        self._bucket = _Bucket(faults.rate_limit) if faults.rate_limit else None
        self._authorization = None if token is None else f"Bearer {token}"
        self._on_taken = on_taken
        self._accepted = IdSet()
        self._open: set[int] = set()
        self._waiting: set[asyncio.Task[None]] = set()
        self._tally = dict.fromkeys(Counts.__struct_fields__, 0)

    @property
    def counts(self) -> Counts:
        """Counts of answered requests; one that waits for its answer is not counted yet."""
        return Counts(**self._tally)

    @asynccontextmanager
    async def run(self, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
        """Serve on `host` and `port` (0: a free one), yielding the URL for MAILER_GATEWAY_URL.

        At the end requests that wait or hang are cut within 0.2 s. Raises UnavailableError when it
        cannot listen there.
        """
        logger = logging.getLogger(__name__)
        logger.addFilter(_without_quotes)
        server = web.Server(
            self._take,
            handler_cancellation=True,  # or a request that hangs would outlive its connection
            access_log=None,
            auto_decompress=False,  # the protocol knows no encodings: 400, not an error here
            logger=logger,
        )
        runner = web.ServerRunner(server, shutdown_timeout=0.05)  # 0 would wait without end
        await runner.setup()
        site = web.TCPSite(runner, host, port, backlog=1_024)
        try:
            await _listen(site, host, port)
            yield f"{site.name}{_PATH}"
        finally:
            await runner.cleanup()
            if self._waiting:  # cut by now, and counted in a moment
                await asyncio.wait(self._waiting)

    async def _take(self, request: web.BaseRequest) -> web.Response:
        try:
            checked = self._check(request, await request.read())
        except web.HTTPRequestEntityTooLarge:
            checked = _TOO_LARGE
        arrived, monotonic = time.time_ns() // 1_000, time.monotonic()
        if isinstance(checked, Answer):
            self._note(Taken(None, arrived, monotonic, checked.kind))
            return _response(checked)
        task = request.task
        overlap = checked in self._open
        self._open.add(checked)
        self._waiting.add(task)
        try:
            reply = self._draw(checked, monotonic)
            taken = Taken(checked, arrived, monotonic, reply.kind, overlap=overlap)
            return await self._finish(request, taken, reply)
        finally:
            self._open.discard(checked)
            self._waiting.discard(task)

    def _check(self, request: web.BaseRequest, body: bytes) -> int | Answer:
        """Return the message's id, or the answer to a request that breaks the protocol."""
        if request.method != "POST":
            return _NOT_POST
        if self._authorization not in (None, request.headers.get("Authorization")):
            return _UNAUTHORIZED
        if not request.raw_path.startswith(_PATH):
            return _NOT_FOUND
        try:
            message = read_json(body, _Message, limit=len(body))
        except JsonError:
            return _INVALID
        return message.id if request.raw_path == f"{_PATH}{message.id}" else _INVALID

    def _draw(self, message_id: int, now: float) -> Answer:
        if self._bucket is not None and (pause := self._bucket.take(now)):
            return refusal("limited", 429, "too many", retry_after=str(math.ceil(pause)))
        if message_id in self._accepted or not self._rates:
            return _ACCEPTED
        drawn = self._random.random()
        for fault, rate in self._rates:
            if drawn < rate:
                return self._random.choice(ANSWERS[fault])
            drawn -= rate
        return _ACCEPTED

    async def _finish(self, request: web.BaseRequest, taken: Taken, reply: Answer) -> web.Response:
        if taken.kind == "hang":
            self._note(taken)
            await _until_cut()
        try:
            await self._delay()
        except asyncio.CancelledError:
            self._note(msgspec.structs.replace(taken, kind="gone"))
            raise
        if taken.kind == "accepted" and taken.id is not None:
            known = taken.id in self._accepted
            self._accepted.add(taken.id)
            if known:
                taken = msgspec.structs.replace(taken, repeat=True)
        self._note(taken)
        if taken.kind == "reset":
            _reset(request.transport)
            await _until_cut()
        return _response(reply)

    async def _delay(self) -> None:
        if self._faults.latency:
            spread = self._random.uniform(-1.0, 1.0) * self._faults.jitter
            await asyncio.sleep(self._faults.latency * (1.0 + spread))

    def _note(self, taken: Taken) -> None:
        self._tally[taken.kind] += 1
        self._tally["repeats"] += taken.repeat
        self._tally["overlaps"] += taken.overlap
        if self._on_taken is not None:
            self._on_taken(taken)


async def _listen(site: web.TCPSite, host: str, port: int) -> None:
    try:
        await site.start()
    except OSError as error:
        message = f"cannot listen on {host}:{port}: {error.strerror or error}"
        raise UnavailableError(message) from error


def _response(reply: Answer) -> web.Response:
    return web.Response(status=reply.status, body=reply.body, headers=reply.headers)


def _reset(transport: asyncio.Transport | None) -> None:
    if transport is not None:
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        transport.abort()


async def _until_cut() -> NoReturn:
    """Wait to be cancelled, as the server does once the connection is lost."""
    while True:
        await asyncio.get_running_loop().create_future()


def _without_quotes(record: logging.LogRecord) -> bool:
    """Keep what aiohttp could not parse out of the log, since it may hold a phone."""
    if record.exc_info and isinstance(record.exc_info[1], HttpProcessingError):
        record.exc_info = None
    return True
