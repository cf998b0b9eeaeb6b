"""A gateway over HTTP: one POST for each message."""

import asyncio
import base64
from collections.abc import Mapping
from http import HTTPStatus
from typing import Self

import aiohttp
import msgspec
from yarl import URL

from mailer.clock import database_clock
from mailer.gateway.aiohttp_connection import (
    USER_AGENT,
    Answer,
    GatewayConnection,
    GatewayConnector,
    UnreadableAnswerError,
    read_body,
)
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

MAX_STALE_CONNECTIONS = 5
"""Most connections tried for one request: the gateway may have closed kept connections."""


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
            "User-Agent": USER_AGENT,
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
        self._connector: GatewayConnector | None = None
        self._encoder = msgspec.json.Encoder()

    async def __aenter__(self) -> Self:
        self._connector = GatewayConnector(self._url, self._concurrency)
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
        answer = Answer()
        try:
            for _ in range(MAX_STALE_CONNECTIONS):
                outcome = await self._exchange(request, head.encode() + body, answer)
                if outcome is not None:
                    return outcome
            raise aiohttp.ClientConnectionError("the gateway closes every connection")
        except (
            aiohttp.ClientError,
            UnreadableAnswerError,
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
            if isinstance(error, UnreadableAnswerError):
                return outcome_of_unreadable(find_status(answer.head))
            return outcome_of_failure(is_written=request.is_written)

    async def _exchange(self, request: Request, data: bytes, answer: Answer) -> Outcome | None:
        """Send over a kept or new connection. Return None if it was closed before the write."""
        if self._connector is None:
            raise RuntimeError("enter the gateway before sending")
        connection = await self._connector.acquire()
        try:
            outcome = await self._post(connection.protocol, request, data, answer)
        except BaseException:
            connection.close()
            raise
        connection.release()  # aiohttp closes it instead if a part of the answer is unread
        return outcome

    async def _post(
        self, protocol: object, request: Request, data: bytes, answer: Answer
    ) -> Outcome | None:
        """Write head and body in one piece, unless the request is aborted, and read the answer.

        Return None if the connection was closed before the write.
        """
        if not isinstance(protocol, GatewayConnection):
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
        return await self._outcome(message.code, message.headers, content, answer.body)

    async def _outcome(
        self,
        status: int,
        headers: Mapping[str, str],
        content: aiohttp.StreamReader,
        received: bytearray,
    ) -> Outcome:
        """Return the outcome of an answer. The received part of its body is added to `received`."""
        if status == HTTPStatus.OK:
            body = await read_body(content, MAX_ANSWER_BYTES, received)
            encoding = headers.get("Content-Encoding")
            return outcome_of_body(body if encoding is None else decompress(body, encoding))
        pause = parse_retry_after(
            headers.get("Retry-After"), database_clock.now(), headers.get("Date")
        )
        if pause is not None:
            pause = min(pause, self._retry_after_cap)
        return outcome_of_status(status, pause)
