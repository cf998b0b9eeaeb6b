"""A gateway over HTTP: one POST for each message.

The body is JSON: `{"id": 7, "phone": 79161234567, "text": "Hello"}`. The URL has the same id in it.
The gateway accepts the message with status 200 and a JSON body in which `code` is 0.
"""

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
    GatewayConnection,
    GatewayConnector,
    ReceivedResponse,
    UnreadableResponseError,
    read_body,
)
from mailer.gateway.protocol import Accepted, Outcome, Request
from mailer.gateway.response import (
    MAX_RESPONSE_BODY_BYTES,
    decompress,
    find_status,
    outcome_of_body,
    outcome_of_network_failure,
    outcome_of_status,
    outcome_of_unreadable_response,
    parse_retry_after,
)
from mailer.urls import read_gateway_url

MAX_STALE_CONNECTIONS = 5
"""Most connections that are tried for one request. A kept connection may turn out to be closed by
the gateway; then the next one is tried."""


class HttpGateway:
    """The gateway at `url`; an async context manager, which must be entered before `send`.

    A message's id is appended to the path or the query of `url`. A user and a password in the URL,
    percent-encoded, are sent as Basic authorization, and `token` as a bearer token instead.
    `concurrency` is the maximum number of connections. A pause that the gateway asks for is limited
    to `retry_after_cap` seconds.
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
                # a line end would start another header
                raise ValueError("a token must be printable ASCII")
            headers["Authorization"] = f"Bearer {token}"
        header_lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        host_start = endpoint.before.index("//") + 2
        path = endpoint.before[endpoint.before.index("/", host_start) :]
        # The head of a request: these two parts, the id between them, the body's length after them.
        self._head_before_id = f"POST {path}"
        self._head_after_id = f"{endpoint.after} HTTP/1.1\r\n{header_lines}Content-Length: "
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
        request.attach_task()
        fields = {"id": request.message_id, "phone": int(request.phone), "text": request.text}
        body = self._encoder.encode(fields)
        head = f"{self._head_before_id}{request.message_id}{self._head_after_id}{len(body)}\r\n\r\n"
        response = ReceivedResponse()
        try:
            for _ in range(MAX_STALE_CONNECTIONS):
                outcome = await self._try_connection(request, head.encode() + body, response)
                if outcome is not None:
                    return outcome
            raise aiohttp.ClientConnectionError("the gateway closes every connection")
        except (
            aiohttp.ClientError,
            UnreadableResponseError,
            OSError,
            asyncio.CancelledError,
        ) as error:
            outcome_of_abort = request.outcome_of_abort()
            if outcome_of_abort is None and isinstance(error, asyncio.CancelledError):
                raise  # the task was cancelled for another reason than an abort
            # a code that was received counts, even if the rest of the response is missing
            if response.body and outcome_of_body(bytes(response.body)) == Accepted():
                return Accepted()
            if outcome_of_abort is not None:
                return outcome_of_abort
            if isinstance(error, UnreadableResponseError):
                return outcome_of_unreadable_response(find_status(response.first_bytes))
            return outcome_of_network_failure(is_written=request.is_written)

    async def _try_connection(
        self, request: Request, data: bytes, response: ReceivedResponse
    ) -> Outcome | None:
        """Send over a kept connection or a new one. Return None if it was closed before the write.

        `data` is the whole request as bytes.
        """
        if self._connector is None:
            raise RuntimeError("enter the gateway before sending")
        connection = await self._connector.acquire()
        try:
            outcome = await self._post(connection.protocol, request, data, response)
        except BaseException:
            connection.close()
            raise
        connection.release()  # aiohttp closes it instead if a part of the response is unread
        return outcome

    async def _post(
        self, protocol: object, request: Request, data: bytes, response: ReceivedResponse
    ) -> Outcome | None:
        """Write the request in one piece, unless it is aborted, and read the response.

        Return None if the connection was closed before the write.
        """
        if not isinstance(protocol, GatewayConnection):
            raise TypeError("the connection is not of the gateway's own connector")
        # Let other tasks run first: then many tasks write in one iteration of the event loop, which
        # wakes the receiver once and not for each request.
        await asyncio.sleep(0)
        # `should_close` is true also if data came before this request, to which it cannot respond
        if protocol.should_close or not protocol.is_connected():
            return None
        if not request.mark_written():
            # `send` then returns the outcome of the abort
            raise aiohttp.ClientConnectionError("the request is aborted")
        protocol.write(data, response)
        head, content = await protocol.read()
        while head.code < HTTPStatus.OK and head.code != HTTPStatus.SWITCHING_PROTOCOLS:
            head, content = await protocol.read()  # `head` was an interim response
        return await self._outcome(head.code, head.headers, content, response.body)

    async def _outcome(
        self,
        status: int,
        headers: Mapping[str, str],
        content: aiohttp.StreamReader,
        received_body: bytearray,
    ) -> Outcome:
        """Return the outcome of a response, whose body is read from `content`.

        The received part of the body is added to `received_body`, for use after an error.
        """
        if status == HTTPStatus.OK:
            body = await read_body(content, MAX_RESPONSE_BODY_BYTES, received_body)
            encoding = headers.get("Content-Encoding")
            return outcome_of_body(body if encoding is None else decompress(body, encoding))
        pause = parse_retry_after(
            headers.get("Retry-After"), database_clock.now(), headers.get("Date")
        )
        if pause is not None:
            pause = min(pause, self._retry_after_cap)
        return outcome_of_status(status, pause)
