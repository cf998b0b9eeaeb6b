"""The gateway's HTTP protocol: one POST a message, and what each answer means."""

import asyncio
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Self

import aiohttp
import msgspec
from aiohttp.connector import Connection
from aiohttp.http_exceptions import ContentEncodingError
from aiohttp.http_writer import StreamWriter
from aiohttp.payload import BytesPayload

from mailer.clock import database_clock
from mailer.gateway.port import Accepted, Outcome, Refused, Request, Unavailable, Unknown

ANSWER_LIMIT = 64 * 1024
"""Bytes of an answer that are read; the rest is not worth waiting for."""


class Answer(msgspec.Struct, frozen=True):
    """The body of a 200: only code 0 means that the message was taken."""

    code: int


# ---- the table of answers: the contract's section 5, line by line ----------------------------


def outcome_of_body(body: bytes | None) -> Outcome:
    """Return what the body of a 200 means; None is one over the limit."""
    try:
        if body is not None and _decoder.decode(body).code == 0:
            return Accepted()
    except (msgspec.MsgspecError, UnicodeDecodeError):
        pass
    return Unavailable("bad_response")


def outcome_of_status(status: int, pause: float | None) -> Outcome:
    """Return what an answer other than 200 means, with the pause in seconds that it asks for."""
    match status:
        case 400 | 404 | 405 | 410 | 413 | 415 | 422:
            return Refused(f"rejected_{status}")
        case 401 | 403:  # the token is wrong, not the messages
            return Unavailable(f"http_{status}", pause, is_for_all=True)
        case 429 | 503:
            return Unavailable(f"http_{status}", pause, is_for_all=bool(pause))
        case _:
            return Unavailable(f"http_{status}", pause)


def outcome_of_failure(*, is_written: bool) -> Outcome:
    """Return what a failure of the network means: all that counts is what was written before."""
    return Unknown("connection_lost") if is_written else Unavailable("connection_failed")


# ----------------------------------------------------------------------------------------------

_decoder = msgspec.json.Decoder(Answer)


class HttpGateway:
    """The gateway behind `url`; to be used as an async context manager."""

    def __init__(self, url: str, token: str | None, *, concurrency: int) -> None:
        self._url = url
        self._headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"
        self._concurrency = concurrency
        self._session: aiohttp.ClientSession | None = None
        self._encoder = msgspec.json.Encoder()

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._concurrency),
            headers=self._headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),  # a request has a deadline of its own
            request_class=_Post,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def send(self, request: Request) -> Outcome:
        """Send one message and return what became of it, also when the request is cut."""
        if self._session is None:
            message = "enter the gateway before sending"
            raise RuntimeError(message)
        request.begin()
        fields = {"id": request.message_id, "phone": int(request.phone), "text": request.text}
        url = f"{self._url}{request.message_id}"
        body = _Body(self._encoder.encode(fields), request)
        try:
            response = await self._session.post(url, data=body, allow_redirects=False)
            try:
                return await _outcome(response)
            finally:
                if not response.closed:  # as it is when all of it has come
                    response.release()
        except (aiohttp.ClientError, OSError, asyncio.CancelledError) as error:
            if (outcome := request.outcome_of_cut()) is not None:
                return outcome
            if isinstance(error, asyncio.CancelledError):
                raise
            if isinstance(error.__cause__, ContentEncodingError):
                return Unavailable("bad_response")
            return outcome_of_failure(is_written=request.is_written)


class _Body(BytesPayload):
    """The bytes to post, and the request that they belong to."""

    def __init__(self, content: bytes, request: Request) -> None:
        super().__init__(content)
        self.content = content
        self.request = request


class _Post(aiohttp.ClientRequest):
    """A POST that the task that sends it writes itself, and so knows the moment of writing.

    aiohttp makes a task for each body instead: a seventh of what a request costs.
    """

    async def send(self, conn: Connection) -> aiohttp.ClientResponse:
        """Write head and body at once, unless the request is cut; return the answer to come."""
        body, protocol = self.body, conn.protocol
        if not isinstance(body, _Body) or protocol is None:
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
            raise aiohttp.ClientConnectionError("the connection is not in order")
        if not body.request.write():
            raise aiohttp.ClientConnectionError("the request is cut")
        try:
            await writer.write(body.content)
        except aiohttp.ClientConnectionResetError:
            body.request.is_written = False  # the connection was closed already
            raise
        return response


async def _outcome(response: aiohttp.ClientResponse) -> Outcome:
    if response.status == 200:  # noqa: PLR2004  # the contract's own number
        return outcome_of_body(await _read(response, ANSWER_LIMIT))
    pause = retry_after(response.headers.get("Retry-After"), database_clock.now())
    return outcome_of_status(response.status, pause)


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes | None:
    """Return the body, or None when it is longer than `limit`."""
    if response.content.is_eof():  # it came with the headers, as nearly every one does
        body = response.content.read_nowait()
        return body if len(body) <= limit else None
    parts: list[bytes] = []
    left = limit
    async for part in response.content.iter_any():
        left -= len(part)
        if left < 0:
            return None
        parts.append(part)
    return b"".join(parts)


def retry_after(value: str | None, now: datetime) -> float | None:
    """Return the seconds that a Retry-After header asks to wait (RFC 9110, section 10.2.3)."""
    if value is None:
        return None
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    return max(0.0, (moment.replace(tzinfo=moment.tzinfo or UTC) - now).total_seconds())
