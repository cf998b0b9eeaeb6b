"""The gateway behind HTTP: one POST a message."""

import asyncio
import base64
from functools import partial
from typing import Any, Self

import aiohttp
import msgspec
from aiohttp.client_proto import ResponseHandler
from aiohttp.helpers import set_exception
from aiohttp.http import SERVER_SOFTWARE, RawResponseMessage
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from mailer.clock import database_clock
from mailer.gateway.answer import (
    ANSWER_LIMIT,
    outcome_of_body,
    outcome_of_failure,
    outcome_of_status,
    outcome_of_unreadable,
    retry_after,
    status_in,
    unfolded,
)
from mailer.gateway.port import Accepted, Outcome, Request
from mailer.urls import read_gateway_url

NO_TIMEOUTS = aiohttp.ClientTimeout()
"""A request has a deadline of its own."""
LINE_LIMIT = 64 * 1024
"""Bytes of a reason phrase, and of a header."""
MAX_CLOSED = 5
"""Connections of those kept that the gateway may have closed, one after another for one request."""
HEADERS_LIMIT = 1_000
"""Headers of an answer."""
INTERIM_LIMIT = 20
"""Answers of a status 1xx before the answer."""


class HttpGateway:
    """The gateway behind `url`, to which a message's id is added; an async context manager.

    A user and a password in the URL, percent-encoded, are sent as Basic authorization. What a
    gateway asks to wait counts for `retry_after_cap` seconds at most.
    """

    def __init__(
        self,
        url: str,
        token: str | None,
        *,
        concurrency: int,
        retry_after_cap: float = 900.0,
    ) -> None:
        place = read_gateway_url(url)
        self._url = URL(f"{place.before}{place.after}", encoded=True)
        headers = {
            "Host": self._url.host_port_subcomponent,
            "User-Agent": SERVER_SOFTWARE,
            "Accept": "*/*",
            "Accept-Encoding": "identity",
            "Content-Type": "application/json",
        }
        if place.user is not None:
            basic = base64.b64encode(f"{place.user}:{place.password}".encode())
            headers["Authorization"] = f"Basic {basic.decode()}"
        if token is not None:
            if not (token.isascii() and token.isprintable()):
                raise ValueError("a token must be printable ASCII")  # nor end its header
            headers["Authorization"] = f"Bearer {token}"
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        path = place.before[place.before.index("/", place.before.index("//") + 2) :]
        self._before_id = f"POST {path}"
        self._after_id = f"{place.after} HTTP/1.1\r\n{lines}Content-Length: "
        self._concurrency = concurrency
        self._retry_after_cap = retry_after_cap
        self._connector: aiohttp.TCPConnector | None = None
        self._encoder = msgspec.json.Encoder()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._connector = aiohttp.TCPConnector(limit=self._concurrency)
        make = partial(_Protocol, loop=loop)
        self._connector._factory = make  # type: ignore[assignment]  # noqa: SLF001  # no other way to see what cannot be parsed
        self._target = aiohttp.ClientRequest("POST", self._url, loop=loop)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._connector is not None:
            await self._connector.close()

    async def send(self, request: Request) -> Outcome:
        """Send one message and return its outcome, also when the request is cut."""
        request.begin()
        fields = {"id": request.message_id, "phone": int(request.phone), "text": request.text}
        body = self._encoder.encode(fields)
        head = f"{self._before_id}{request.message_id}{self._after_id}{len(body)}\r\n\r\n"
        answer = _Answer()
        try:
            for _ in range(MAX_CLOSED):
                outcome = await self._exchange(request, head.encode() + body, answer)
                if outcome is not None:
                    return outcome
            raise aiohttp.ClientConnectionError("the gateway closes every connection")
        except (
            aiohttp.ClientError,
            HttpProcessingError,
            OSError,
            asyncio.CancelledError,
        ) as error:
            outcome = request.outcome_of_cut()
            if outcome is None and isinstance(error, asyncio.CancelledError):
                raise
            # a code that has come counts, however the answer breaks off
            if answer.body and outcome_of_body(bytes(answer.body)) == Accepted():
                return Accepted()
            if outcome is not None:
                return outcome
            if isinstance(error, HttpProcessingError):
                return outcome_of_unreadable(status_in(answer.head))
            return outcome_of_failure(is_written=request.is_written)

    async def _exchange(self, request: Request, data: bytes, answer: "_Answer") -> Outcome | None:
        """Post over a connection, kept or new; None: it was of no use, and nothing was written."""
        if self._connector is None:
            raise RuntimeError("enter the gateway before sending")
        connection = await self._connector.connect(self._target, [], NO_TIMEOUTS)
        try:
            outcome = await self._post(connection.protocol, request, data, answer)
        except BaseException:
            connection.close()
            raise
        connection.release()  # aiohttp closes one with a part of an answer unread
        return outcome

    async def _post(
        self, protocol: ResponseHandler | None, request: Request, data: bytes, answer: "_Answer"
    ) -> Outcome | None:
        """Write head and body at once, unless the request is cut, and read the answer."""
        if not isinstance(protocol, _Protocol):
            raise TypeError("only over a connection of the gateway's own connector")
        await asyncio.sleep(0)  # so that many write one after the other: the network wakes up once
        # what came before the request is no answer to it
        if protocol.should_close or not protocol.is_connected():
            return None
        if not request.write():
            raise aiohttp.ClientConnectionError("the request is cut")
        protocol.write(data, answer)
        message, content = await protocol.read()
        while message.code < 200 and message.code != 101:  # noqa: PLR2004  # interim; 101 is final
            message, content = await protocol.read()
        return await self._outcome(message, content, answer.body)

    async def _outcome(
        self, message: RawResponseMessage, content: aiohttp.StreamReader, part: bytearray
    ) -> Outcome:
        """Return what an answer means; as much of its body as has come is added to `part`."""
        headers = message.headers
        if message.code == 200:  # noqa: PLR2004  # the contract's own number
            body = await _read(content, ANSWER_LIMIT, part)
            encoding = headers.get("Content-Encoding")
            return outcome_of_body(body if encoding is None else unfolded(body, encoding))
        pause = retry_after(headers.get("Retry-After"), database_clock.now(), headers.get("Date"))
        if pause is not None:
            pause = min(pause, self._retry_after_cap)
        return outcome_of_status(message.code, pause)


class _Answer:
    """The answer to a request, as far as it has come."""

    __slots__ = ("body", "head", "interims")

    def __init__(self) -> None:
        self.head = b""
        self.body = bytearray()
        self.interims = 0
        """How many of a status 1xx came before it."""


class _Protocol(ResponseHandler):
    """A connection that keeps how an answer begins: its status counts also when no more is read.

    aiohttp tells nothing of an answer that its parser refuses.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._answer = _Answer()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Have one parser read all answers of the connection."""
        super().connection_made(transport)
        self.set_response_params(
            read_until_eof=True,
            auto_decompress=False,
            max_line_size=LINE_LIMIT,
            max_field_size=LINE_LIMIT,
            max_headers=HEADERS_LIMIT,
        )

    def write(self, data: bytes, answer: _Answer) -> None:
        """Write a request, and keep in `answer` what comes."""
        self._answer = answer
        if self.transport is not None:
            self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        if data:  # aiohttp itself calls it with nothing, to go on after a pause
            answer = self._answer
            if len(answer.head) < LINE_LIMIT:
                answer.head += data
            # of chunks that break off the parser gives nothing, nor of what it read before; `in`
            # would raise and drop a TypeError first
            if data.find(b"hunked") >= 0 and (end := data.find(b"\r\n\r\n")) >= 0:
                super().data_received(data[: end + 4])
                data = data[end + 4 :]
        super().data_received(data)

    def feed_data(self, data: Any, size: int = 0) -> None:  # noqa: ANN401  # aiohttp's own pair
        """Take an answer that is parsed; too many of a status 1xx are as good as none."""
        if data[0].code < 200:  # noqa: PLR2004  # HTTP's own
            self._answer.interims += 1
            if self._answer.interims > INTERIM_LIMIT and self.transport is not None:
                self.transport.close()
                self.set_exception(HttpProcessingError(message="too many interim answers"))
                return
        super().feed_data(data, size)

    def set_exception(self, exc: Any, *cause: Any) -> None:  # noqa: ANN401  # aiohttp's own
        """Let whoever waits for the answer or its body know, with the first that went wrong."""
        if self.exception() is None:
            super().set_exception(exc, *cause)
            if self._payload is not None and isinstance(exc, HttpProcessingError):
                set_exception(self._payload, exc)


async def _read(content: aiohttp.StreamReader, limit: int, part: bytearray) -> bytes | None:
    """Return the body, or None when it is longer than `limit`; what comes of it is in `part`."""
    if content.is_eof():  # it came with the headers, as nearly every one does
        body = content.read_nowait()
        return body if len(body) <= limit else None
    try:
        async for piece in content.iter_any():
            part += piece
            if len(part) > limit:
                return None
    finally:
        part += b"".join(content._buffer)  # noqa: SLF001  # it gives no more once it breaks off
    return bytes(part)
