"""The gateway's HTTP protocol: one POST a message, and what each answer means."""

import math
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Self

import aiohttp
import msgspec
from aiohttp.http_exceptions import ContentEncodingError

from mailer.gateway.port import Accepted, Outcome, Refused, Unavailable, Unknown

ANSWER_LIMIT = 64 * 1024
"""Bytes of an answer that are read; the rest is not worth waiting for."""

CONNECT_SHARE = 0.98
"""Part of a request's time in which it must have a connection."""

REFUSALS = frozenset({400, 404, 405, 410, 413, 415, 422})
"""Answers after which the same message would be refused again."""

NOT_SENT = (
    aiohttp.ClientConnectorError,  # refused, DNS, TLS
    aiohttp.ConnectionTimeoutError,
    aiohttp.InvalidURL,
)
"""What aiohttp raises before it has written anything."""


class Answer(msgspec.Struct, frozen=True):
    """The body of a 200: only code 0 means that the message was taken."""

    code: int


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
        self._decoder = msgspec.json.Decoder(Answer)

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._concurrency),
            headers=self._headers,
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def send(self, message_id: int, phone: str, text: str, within: float) -> Outcome:
        """Send one message, and wait for the answer no longer than `within` seconds."""
        if self._session is None:
            message = "enter the gateway before sending"
            raise RuntimeError(message)
        body = {"id": message_id, "phone": int(phone), "text": text}
        try:
            async with self._session.post(
                f"{self._url}{message_id}",
                data=self._encoder.encode(body),
                timeout=_timeout(within),
                allow_redirects=False,
            ) as response:
                return await self._outcome(response)
        except aiohttp.ClientPayloadError as error:
            if isinstance(error.__cause__, ContentEncodingError):
                return Unavailable("bad_response")
            return Unknown("connection_lost")
        except NOT_SENT:
            return Unavailable("connection_failed")
        except TimeoutError:
            return Unknown("timeout")
        except (aiohttp.ClientError, OSError):
            return Unknown("connection_lost")

    async def _outcome(self, response: aiohttp.ClientResponse) -> Outcome:
        status = response.status
        if status == 200:  # noqa: PLR2004  # the contract's own number
            return await self._judge(response)
        if status in REFUSALS:
            return Refused(f"rejected_{status}")
        pause = retry_after(response.headers.get("Retry-After"), datetime.now(UTC))
        return Unavailable(f"http_{status}", pause)

    async def _judge(self, response: aiohttp.ClientResponse) -> Outcome:
        """Return what the body of a 200 means; one that is cut off leaves it open."""
        body = await _read(response, ANSWER_LIMIT)
        if body is None:
            return Unavailable("bad_response")
        try:
            answer = self._decoder.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return Unavailable("bad_response")
        return Accepted() if answer.code == 0 else Unavailable("bad_response")


def _timeout(within: float) -> aiohttp.ClientTimeout:
    """Return a limit on the whole request, to the moment: aiohttp rounds longer ones up.

    To connect takes a little less of it, so that running out of time tells what was not sent yet.
    """
    return aiohttp.ClientTimeout(
        total=within, connect=within * CONNECT_SHARE, ceil_threshold=math.inf
    )


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes | None:
    """Return the body, or None when it is longer than `limit`."""
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
