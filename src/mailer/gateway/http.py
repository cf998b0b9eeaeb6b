"""A gateway over HTTP: one POST for each message."""

import asyncio
import base64
from functools import partial
from http import HTTPStatus
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
    MAX_ANSWER_BYTES,
    decompress,
    find_status,
    outcome_of_body,
    outcome_of_failure,
    outcome_of_status,
    outcome_of_unreadable,
    parse_retry_after,
)
from mailer.gateway.protocol import Accepted, Outcome, Request
from mailer.urls import read_gateway_url

NO_TIMEOUT = aiohttp.ClientTimeout()
"""No timeouts by aiohttp: `Request.deadline` ends a request."""
MAX_LINE_BYTES = 64 * 1024
"""Most bytes of a reason phrase, and of a header."""
MAX_STALE_CONNECTIONS = 5
"""Most connections tried for one request: the gateway may have closed kept connections."""
MAX_HEADERS = 1_000
"""Most headers of an answer."""
MAX_INTERIM_ANSWERS = 20
"""Most answers with a status 1xx before the final answer."""


class HttpGateway:
    """The gateway at `url`, to which a message's id is appended; an async context manager.

    A user and a password in the URL, percent-encoded, are sent as Basic authorization. A pause that
    the gateway asks for is limited to `retry_after_cap` seconds.
    """

    def __init__(
        self,
        url: str,
        token: str | None,
        *,
        concurrency: int,
        retry_after_cap: float = 900.0,
    ) -> None:
        endpoint = read_gateway_url(url)
        self._url = URL(f"{endpoint.before}{endpoint.after}", encoded=True)
        headers = {
            "Host": self._url.host_port_subcomponent,
            "User-Agent": SERVER_SOFTWARE,
            "Accept": "*/*",
            "Accept-Encoding": "identity",
            "Content-Type": "application/json",
        }
        if endpoint.user is not None:
            credentials = base64.b64encode(f"{endpoint.user}:{endpoint.password}".encode())
            headers["Authorization"] = f"Basic {credentials.decode()}"
        if token is not None:
            if not (token.isascii() and token.isprintable()):
                raise ValueError("a token must be printable ASCII")  # no line ends
            headers["Authorization"] = f"Bearer {token}"
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        path = endpoint.before[endpoint.before.index("/", endpoint.before.index("//") + 2) :]
        self._before_id = f"POST {path}"
        self._after_id = f"{endpoint.after} HTTP/1.1\r\n{lines}Content-Length: "
        self._concurrency = concurrency
        self._retry_after_cap = retry_after_cap
        self._connector: aiohttp.TCPConnector | None = None
        self._encoder = msgspec.json.Encoder()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._connector = aiohttp.TCPConnector(limit=self._concurrency)
        factory = partial(_Protocol, loop=loop)
        self._connector._factory = factory  # type: ignore[assignment]  # noqa: SLF001  # no public way to see answers that aiohttp cannot parse
        self._target = aiohttp.ClientRequest("POST", self._url, loop=loop)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._connector is not None:
            await self._connector.close()

    async def send(self, request: Request) -> Outcome:
        """Send one message and return its outcome, also when the request is aborted."""
        request.begin()
        fields = {"id": request.message_id, "phone": int(request.phone), "text": request.text}
        body = self._encoder.encode(fields)
        head = f"{self._before_id}{request.message_id}{self._after_id}{len(body)}\r\n\r\n"
        answer = _Answer()
        try:
            for _ in range(MAX_STALE_CONNECTIONS):
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
            outcome = request.outcome_of_abort()
            if outcome is None and isinstance(error, asyncio.CancelledError):
                raise
            # a code that was received counts, even if the rest of the answer is missing
            if answer.body and outcome_of_body(bytes(answer.body)) == Accepted():
                return Accepted()
            if outcome is not None:
                return outcome
            if isinstance(error, HttpProcessingError):
                return outcome_of_unreadable(find_status(answer.head))
            return outcome_of_failure(is_written=request.is_written)

    async def _exchange(self, request: Request, data: bytes, answer: "_Answer") -> Outcome | None:
        """Send over a kept or new connection. Return None if it was closed before the write."""
        if self._connector is None:
            raise RuntimeError("enter the gateway before sending")
        connection = await self._connector.connect(self._target, [], NO_TIMEOUT)
        try:
            outcome = await self._post(connection.protocol, request, data, answer)
        except BaseException:
            connection.close()
            raise
        connection.release()  # aiohttp closes it instead if a part of the answer is unread
        return outcome

    async def _post(
        self, protocol: ResponseHandler | None, request: Request, data: bytes, answer: "_Answer"
    ) -> Outcome | None:
        """Write head and body in one piece, unless the request is aborted, and read the answer.

        Return None if the connection was closed before the write.
        """
        if not isinstance(protocol, _Protocol):
            raise TypeError("the connection is not of the gateway's own connector")
        # let other tasks run, so that many write in one iteration of the loop: the network wakes up
        # only once
        await asyncio.sleep(0)
        # data that came before the request is no answer to it
        if protocol.should_close or not protocol.is_connected():
            return None
        if not request.mark_written():
            raise aiohttp.ClientConnectionError("the request is aborted")
        protocol.write(data, answer)
        message, content = await protocol.read()
        while message.code < HTTPStatus.OK and message.code != HTTPStatus.SWITCHING_PROTOCOLS:
            message, content = await protocol.read()
        return await self._outcome(message, content, answer.body)

    async def _outcome(
        self, message: RawResponseMessage, content: aiohttp.StreamReader, received: bytearray
    ) -> Outcome:
        """Return the outcome of an answer. The received part of its body is added to `received`."""
        headers = message.headers
        if message.code == HTTPStatus.OK:
            body = await _read(content, MAX_ANSWER_BYTES, received)
            encoding = headers.get("Content-Encoding")
            return outcome_of_body(body if encoding is None else decompress(body, encoding))
        pause = parse_retry_after(
            headers.get("Retry-After"), database_clock.now(), headers.get("Date")
        )
        if pause is not None:
            pause = min(pause, self._retry_after_cap)
        return outcome_of_status(message.code, pause)


class _Answer:
    """The received part of the answer to a request."""

    __slots__ = ("body", "head", "interims")

    def __init__(self) -> None:
        self.head = b""
        self.body = bytearray()
        self.interims = 0
        """Number of answers with a status 1xx before it."""


class _Protocol(ResponseHandler):
    """A connection that keeps the first bytes of each answer, which contain the status.

    aiohttp gives no access to an answer that its parser refuses, but the status counts even then.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._answer = _Answer()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Set the parser's parameters once, for all answers of the connection."""
        super().connection_made(transport)
        self.set_response_params(
            read_until_eof=True,
            auto_decompress=False,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_LINE_BYTES,
            max_headers=MAX_HEADERS,
        )

    def write(self, data: bytes, answer: _Answer) -> None:
        """Write a request, and keep received data in `answer`."""
        self._answer = answer
        if self.transport is not None:
            self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        if data:  # aiohttp calls it without data to resume after a pause
            answer = self._answer
            if len(answer.head) < MAX_LINE_BYTES:
                answer.head += data
            # Pass the head to the parser alone first. In a chunked body that is broken, the parser
            # would return nothing of the data, not even the head. (`find` is faster than `in`,
            # which raises and drops a TypeError first.)
            if data.find(b"hunked") >= 0 and (end := data.find(b"\r\n\r\n")) >= 0:
                super().data_received(data[: end + 4])
                data = data[end + 4 :]
        super().data_received(data)

    def feed_data(self, data: Any, size: int = 0) -> None:  # noqa: ANN401  # the type that aiohttp declares
        """Receive a parsed answer. Too many answers with a status 1xx count as no answer."""
        if data[0].code < HTTPStatus.OK:
            self._answer.interims += 1
            if self._answer.interims > MAX_INTERIM_ANSWERS and self.transport is not None:
                self.transport.close()
                self.set_exception(HttpProcessingError(message="too many interim answers"))
                return
        super().feed_data(data, size)

    def set_exception(self, exc: Any, *cause: Any) -> None:  # noqa: ANN401  # the types that aiohttp declares
        """Pass the first error to the tasks that wait for the answer or its body."""
        if self.exception() is None:
            super().set_exception(exc, *cause)
            if self._payload is not None and isinstance(exc, HttpProcessingError):
                set_exception(self._payload, exc)


async def _read(content: aiohttp.StreamReader, limit: int, received: bytearray) -> bytes | None:
    """Return the body; None when it is longer than `limit`. Received data is in `received`.

    A body that came with the headers is returned directly.
    """
    if content.is_eof():  # the body came with the headers, as nearly always
        body = content.read_nowait()
        return body if len(body) <= limit else None
    try:
        async for piece in content.iter_any():
            received += piece
            if len(received) > limit:
                return None
    finally:
        received += b"".join(content._buffer)  # noqa: SLF001  # no public way to read it after an error
    return bytes(received)
