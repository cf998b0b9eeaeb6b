"""The gateway behind HTTP: one POST a message."""

import asyncio
import base64
from functools import partial
from typing import Any, Self

import aiohttp
import msgspec
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.helpers import set_exception
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_writer import StreamWriter
from aiohttp.payload import BytesPayload
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
        self._url = read_gateway_url(url)
        self._without_id = URL(f"{self._url.before}{self._url.after}", encoded=True)
        user, password = self._url.user, self._url.password
        authorization = None
        if user is not None:
            basic = base64.b64encode(f"{user}:{password}".encode())
            authorization = f"Basic {basic.decode()}"
        self._headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if token is not None:
            authorization = f"Bearer {token}"
        if authorization is not None:
            self._headers["Authorization"] = authorization
        self._concurrency = concurrency
        self._retry_after_cap = retry_after_cap
        self._session: aiohttp.ClientSession | None = None
        self._encoder = msgspec.json.Encoder()

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(limit=self._concurrency)
        make = partial(_Answering, loop=asyncio.get_running_loop())
        connector._factory = make  # type: ignore[assignment]  # noqa: SLF001  # no other way to see what cannot be parsed
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers=self._headers,
            auto_decompress=False,
            max_line_size=LINE_LIMIT,
            max_field_size=LINE_LIMIT,
            max_headers=HEADERS_LIMIT,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),  # a request has a deadline of its own
            request_class=_Post,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def send(self, request: Request) -> Outcome:
        """Send one message and return its outcome, also when the request is cut."""
        request.begin()
        fields = {"id": request.message_id, "phone": int(request.phone), "text": request.text}
        url = self._url_of(request.message_id)
        body = _Body(self._encoder.encode(fields), request)
        try:
            response = await self._post(url, body)
            try:
                return await self._outcome(response, body.answer)
            finally:
                if not response.closed:  # as it is when all of it has come
                    response.release()
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
            if body.answer and outcome_of_body(bytes(body.answer)) == Accepted():
                return Accepted()
            if outcome is not None:
                return outcome
            if isinstance(error, aiohttp.ClientResponseError | HttpProcessingError):
                return outcome_of_unreadable(status_in(body.head))
            return outcome_of_failure(is_written=request.is_written)

    def _url_of(self, message_id: int) -> URL:
        """Return the URL as it is in the settings, with the id: nothing is encoded once more."""
        if "?" in self._url.before:  # the id ends the query
            return URL(f"{self._url.before}{message_id}", encoded=True)
        # a URL that is not parsed anew costs less than half
        path = f"{self._without_id.raw_path}{message_id}"
        return self._without_id.with_path(path, encoded=True, keep_query=True)

    async def _post(self, url: URL, body: "_Body") -> aiohttp.ClientResponse:
        """Post over a connection that is kept, or a new one where the gateway has closed that."""
        if self._session is None:
            raise RuntimeError("enter the gateway before sending")
        for _ in range(MAX_CLOSED):
            try:
                return await self._session.post(url, data=body, allow_redirects=False)
            except _ClosedError:
                continue
        raise aiohttp.ClientConnectionError("the gateway closes every connection")

    async def _outcome(self, response: aiohttp.ClientResponse, part: bytearray) -> Outcome:
        """Return what an answer means; as much of its body as has come is added to `part`."""
        if response.status == 200:  # noqa: PLR2004  # the contract's own number
            body = await _read(response, ANSWER_LIMIT, part)
            encoding = response.headers.get("Content-Encoding")
            return outcome_of_body(body if encoding is None else unfolded(body, encoding))
        headers = response.headers
        pause = retry_after(headers.get("Retry-After"), database_clock.now(), headers.get("Date"))
        if pause is not None:
            pause = min(pause, self._retry_after_cap)
        return outcome_of_status(response.status, pause)


class _ClosedError(aiohttp.ClientConnectionError):
    """A connection was closed, or is of no use, before anything of a request was written."""


class _Body(BytesPayload):
    """The bytes to post, and the request that they belong to."""

    def __init__(self, content: bytes, request: Request) -> None:
        super().__init__(content)
        self.content = content
        self.request = request
        self.answering: _Answering | None = None
        self.answer = bytearray()
        """The body of the answer, as far as it has come."""

    @property
    def head(self) -> bytes:
        """How the answer begins, as far as it has come."""
        return b"" if self.answering is None else self.answering.head


class _Post(aiohttp.ClientRequest):
    """A POST that the task that sends it writes itself, and so knows the moment of writing.

    aiohttp makes a task for each body instead: a seventh of what a request costs.
    """

    async def send(self, conn: Connection) -> aiohttp.ClientResponse:
        """Write head and body at once, unless the request is cut; return the answer to come."""
        body, protocol = self.body, conn.protocol
        if not isinstance(body, _Body) or not isinstance(protocol, _Answering):
            message = "only what HttpGateway posts, on an open connection"
            raise TypeError(message)
        writer = StreamWriter(protocol, self.loop)
        await writer.write_headers(f"{self.method} {self.url.raw_path_qs} HTTP/1.1", self.headers)
        response = self.response_class(
            self.method,
            self.original_url,
            writer=None,
            continue100=None,
            timer=self._timer,
            request_info=self.request_info,
            traces=self._traces,
            loop=self.loop,
            session=self.session,
            stream_writer=writer,
        )
        await asyncio.sleep(0)  # so that many write one after the other: the network wakes up once
        if protocol.should_close:  # something came that nobody had asked for: no answer to this
            raise _ClosedError
        if not body.request.write():
            raise aiohttp.ClientConnectionError("the request is cut")
        body.answering = protocol
        protocol.begin()
        try:
            await writer.write(body.content)
        except aiohttp.ClientConnectionResetError as error:
            body.request.is_written = False  # the connection was closed already
            raise _ClosedError from error
        return response


class _Answering(ResponseHandler):
    """A connection that keeps how an answer begins: its status counts also when no more is read.

    aiohttp tells nothing of an answer that its parser refuses.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.head = b""
        self._interim = 0

    def begin(self) -> None:
        """Wait for the answer to a new request."""
        self.head = b""
        self._interim = 0

    def data_received(self, data: bytes) -> None:
        if data:  # aiohttp itself calls it once a request with nothing
            if len(self.head) < LINE_LIMIT:
                self.head += data
            # of chunks that break off the parser gives nothing, nor of what it read before; `in`
            # would raise and drop a TypeError first
            if data.find(b"hunked") >= 0 and (end := data.find(b"\r\n\r\n")) >= 0:
                super().data_received(data[: end + 4])
                data = data[end + 4 :]
        super().data_received(data)

    def feed_data(self, data: Any, size: int = 0) -> None:  # noqa: ANN401  # aiohttp's own pair
        """Take an answer that is parsed; too many of a status 1xx are as good as none."""
        if data[0].code < 200:  # noqa: PLR2004  # HTTP's own
            self._interim += 1
            if self._interim > INTERIM_LIMIT and self.transport is not None:
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


async def _read(response: aiohttp.ClientResponse, limit: int, part: bytearray) -> bytes | None:
    """Return the body, or None when it is longer than `limit`; what comes of it is in `part`."""
    content = response.content
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
