"""Connections to the gateway: the only module that uses undocumented parts of aiohttp.

These parts are the pool's `connect` and `_factory`, `ResponseHandler` with its parser, and the
buffer of a `StreamReader`. The documented `ClientSession` would execute two and a half times as
many instructions for each request (decision 9), and would not return the status of a response that
cannot be parsed. `tests/integration/test_aiohttp_private_parts.py` fails when a part changes.
"""

import asyncio
from functools import partial
from http import HTTPStatus
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import SERVER_SOFTWARE
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.tracing import Trace
from yarl import URL

from mailer.gateway.proxy import Proxy

USER_AGENT = SERVER_SOFTWARE
"""The User-Agent of aiohttp."""
MAX_LINE_BYTES = 64 * 1024
"""Most bytes of a reason phrase, and of a header."""
MAX_RESPONSE_HEADERS = 1_000
"""Most headers of a response."""
MAX_INTERIM_RESPONSES = 20
"""Most interim responses (status 1xx) before the final response."""


class UnreadableResponseError(Exception):
    """The parser refused a response, or a part of it."""


def is_parse_error(error: object) -> bool:
    """Return whether aiohttp's parser raised `error`.

    The text of such an error may quote the data that the parser read, and so personal data.
    """
    return isinstance(error, HttpProcessingError)


class ReceivedResponse:
    """What was received in response to one request, even if the parser refuses it."""

    __slots__ = ("body", "first_bytes", "interim_count")

    def __init__(self) -> None:
        self.first_bytes = b""
        """The first bytes as they came from the network; they contain the status."""
        self.body = bytearray()
        """The part of the body that was received before an error or an abort."""
        self.interim_count = 0
        """Number of interim responses (status 1xx) before the final one."""


class GatewayConnection(ResponseHandler):
    """A connection that keeps the first bytes of each response, which contain the status.

    aiohttp gives no access to a response that its parser refuses, but the status counts even then.

    After `write`, `read` (of the base class) returns the head of the response and a reader of its
    body. It raises `UnreadableResponseError`, `aiohttp.ClientError` or `OSError`.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._response = ReceivedResponse()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Set the parser's parameters once, for all responses on the connection."""
        super().connection_made(transport)
        self.set_response_params(
            read_until_eof=True,
            auto_decompress=False,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_LINE_BYTES,
            max_headers=MAX_RESPONSE_HEADERS,
        )

    def write(self, data: bytes, response: ReceivedResponse) -> None:
        """Write a request, and keep what is received from now on in `response`."""
        self._response = response
        if self.transport is not None:
            self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        """Keep the first bytes of a response, and pass all of it to the parser."""
        if data:  # aiohttp calls it without data to resume after a pause
            response = self._response
            if len(response.first_bytes) < MAX_LINE_BYTES:
                response.first_bytes += data
            # Give the parser the head of a chunked response first, and the rest in a second call:
            # when a chunk is broken, a call returns nothing of its data, not even the head.
            # `hunked` is in both `chunked` and `Chunked`. (`find` is faster than `in`, which raises
            # and drops a TypeError first.)
            if data.find(b"hunked") >= 0 and (end := data.find(b"\r\n\r\n")) >= 0:
                super().data_received(data[: end + 4])
                data = data[end + 4 :]
        super().data_received(data)

    def feed_data(self, data: Any, size: int = 0) -> None:  # noqa: ANN401  # the type that aiohttp declares
        """Receive a parsed response; end the connection after too many interim responses."""
        if data[0].code < HTTPStatus.OK:
            self._response.interim_count += 1
            if self._response.interim_count > MAX_INTERIM_RESPONSES and self.transport is not None:
                self.transport.close()
                self.set_exception(HttpProcessingError(message="too many interim responses"))
                return
        super().feed_data(data, size)

    def set_exception(self, exc: BaseException, *cause: BaseException) -> None:
        """Pass the first error to the tasks that wait for the response or its body.

        An error of the parser is replaced by `UnreadableResponseError`.
        """
        if self.exception() is not None:
            return
        if not is_parse_error(exc):
            super().set_exception(exc, *cause)
            return
        unreadable = UnreadableResponseError()
        super().set_exception(unreadable, exc)
        if self._payload is not None:
            self._payload.set_exception(unreadable, exc)


class GatewayConnector(aiohttp.TCPConnector):
    """A pool of at most `limit` connections to one URL; created inside a running event loop.

    Through a proxy, connections for https are tunnels (CONNECT). Then `acquire` raises
    `aiohttp.ClientHttpProxyError` if the proxy refuses one.
    """

    def __init__(self, url: URL, limit: int, proxy: Proxy | None = None) -> None:
        super().__init__(limit=limit)
        loop = asyncio.get_running_loop()
        self._factory = partial(GatewayConnection, loop=loop)  # type: ignore[assignment]  # of the base class
        target = aiohttp.ClientRequest(
            "POST",
            url,
            loop=loop,
            proxy=None if proxy is None else URL(proxy.url),
            proxy_headers=None if proxy is None else proxy.headers,
        )
        timeout = aiohttp.ClientTimeout()  # no timeout: `Request.deadline` ends a request
        no_traces: list[Trace] = []
        self.acquire = partial(self.connect, target, no_traces, timeout)
        """Wait for a kept connection or a new one. It is a partial and no method, to save one call
        for each message."""


async def read_body(content: aiohttp.StreamReader, limit: int, received: bytearray) -> bytes | None:
    """Return the body of a response; None when it is longer than `limit` bytes.

    The received part of the body is added to `received`, so that the caller has it after an error.
    """
    try:
        async for piece in content.iter_any():
            received += piece
            if len(received) > limit:
                return None
    finally:
        received += b"".join(content._buffer)  # noqa: SLF001  # no public way to read it after an error
    return bytes(received)
