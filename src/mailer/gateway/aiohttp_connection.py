"""Everything of mailer that leans on private parts of aiohttp: the connections to the gateway.

Undocumented are the pool's `connect` and `_factory`, `ResponseHandler` with its parser, and the
buffer of a `StreamReader`. A `ClientSession` would replace all of it, at two and a half times the
instructions a request (decision 9), and without the status of an answer that cannot be parsed.
`tests/integration/test_aiohttp_private_parts.py` fails when one of these parts changes.
"""

import asyncio
from functools import partial
from http import HTTPStatus
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import SERVER_SOFTWARE
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

USER_AGENT = SERVER_SOFTWARE
"""The User-Agent of aiohttp."""
MAX_LINE_BYTES = 64 * 1024
"""Most bytes of a reason phrase, and of a header."""
MAX_ANSWER_HEADERS = 1_000
"""Most headers of an answer."""
MAX_INTERIM_ANSWERS = 20
"""Most answers with a status 1xx before the final answer."""


class UnreadableAnswerError(Exception):
    """The parser refused an answer, or a part of it."""


def is_parse_error(error: object) -> bool:
    """Return whether aiohttp's parser raised `error`, whose text may quote what it read."""
    return isinstance(error, HttpProcessingError)


class Answer:
    """The received part of the answer to a request."""

    __slots__ = ("body", "head", "interims")

    def __init__(self) -> None:
        self.head = b""
        self.body = bytearray()
        self.interims = 0
        """Number of answers with a status 1xx before it."""


class GatewayConnection(ResponseHandler):
    """A connection that keeps the first bytes of each answer, which contain the status.

    aiohttp gives no access to an answer that its parser refuses, but the status counts even then.
    After `write`, `read` returns the head of the answer and a reader of its body; it raises
    `UnreadableAnswerError`, `aiohttp.ClientError` or `OSError`.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._answer = Answer()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Set the parser's parameters once, for all answers of the connection."""
        super().connection_made(transport)
        self.set_response_params(
            read_until_eof=True,
            auto_decompress=False,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_LINE_BYTES,
            max_headers=MAX_ANSWER_HEADERS,
        )

    def write(self, data: bytes, answer: Answer) -> None:
        """Write a request, and keep received data in `answer`."""
        self._answer = answer
        if self.transport is not None:
            self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        """Keep the first bytes of an answer, and parse it."""
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

    def set_exception(self, exc: BaseException, *cause: BaseException) -> None:
        """Pass the first error to the tasks that wait for the answer or its body."""
        if self.exception() is not None:
            return
        if not is_parse_error(exc):
            super().set_exception(exc, *cause)
            return
        unreadable = UnreadableAnswerError()
        super().set_exception(unreadable, exc)
        if self._payload is not None:
            self._payload.set_exception(unreadable, exc)


class GatewayConnector(aiohttp.TCPConnector):
    """A pool of at most `limit` connections to one URL; created inside a running event loop."""

    def __init__(self, url: URL, limit: int) -> None:
        super().__init__(limit=limit)
        loop = asyncio.get_running_loop()
        self._factory = partial(GatewayConnection, loop=loop)  # type: ignore[assignment]  # of the base class
        target = aiohttp.ClientRequest("POST", url, loop=loop)
        timeout = aiohttp.ClientTimeout()  # none: `Request.deadline` ends a request
        self.acquire = partial(self.connect, target, [], timeout)
        """Wait for a kept or new connection. A partial, because a method of ours would be one more
        call for each message."""


async def read_body(content: aiohttp.StreamReader, limit: int, received: bytearray) -> bytes | None:
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
