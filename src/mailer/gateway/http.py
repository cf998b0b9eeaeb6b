"""A gateway over HTTP: one request for each message, as its profile says."""

import asyncio
from collections.abc import Mapping
from http import HTTPStatus
from typing import Self

import aiohttp
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
from mailer.gateway.config import ConfiguredGateway
from mailer.gateway.profile import ResponsePart
from mailer.gateway.protocol import Accepted, Outcome, Request, TemporaryFailure
from mailer.gateway.response import (
    MAX_RESPONSE_BODY_BYTES,
    decompress,
    find_status,
    outcome_of_network_failure,
    parse_retry_after,
)
from mailer.gateway.response_rule import Response
from mailer.gateway.response_rules import ResponseRules

MAX_STALE_CONNECTIONS = 5
"""Most connections that are tried for one request. A kept connection may turn out to be closed by
the gateway; then the next one is tried."""


PROXY_RULES = [
    ResponsePart(
        status=HTTPStatus.PROXY_AUTHENTICATION_REQUIRED,
        then="temporary",
        reason="proxy_407",
        whole_gateway=True,
    )
]
"""Rules before those of the profile if a proxy is used: status 407 comes from the proxy."""


def _own_protocol(protocol: object) -> GatewayConnection:
    """Return the protocol of a connection of `GatewayConnector`."""
    if not isinstance(protocol, GatewayConnection):
        raise TypeError("the connection is not of the gateway's own connector")
    return protocol


class HttpGateway:
    """A gateway over HTTP; an async context manager, which must be entered before `send`.

    Its profile says how a request is made and what a response means. A pause that the gateway asks
    for is limited to `retry_after_cap` seconds. Raises `ValueError` if a header would be invalid.
    """

    def __init__(self, gateway: ConfiguredGateway, *, retry_after_cap: float = 900.0) -> None:
        self._url = URL(f"{gateway.url.before}{gateway.url.after}", encoded=True)
        headers = {
            "Host": self._url.host_port_subcomponent or "",
            "User-Agent": USER_AGENT,
            "Accept": "*/*",
            "Accept-Encoding": "identity",
        }
        self._template = gateway.request_template(headers)
        self.headers = headers
        """Headers that every request needs."""
        self._proxy = gateway.proxy
        self._rules = ResponseRules(
            [*(() if gateway.proxy is None else PROXY_RULES), *gateway.profile.response],
            max_wait=retry_after_cap,
            recognizes_repeats=gateway.profile.limits.recognizes_repeats,
        )
        self._concurrency = gateway.concurrency
        self._connector: GatewayConnector | None = None

    async def __aenter__(self) -> Self:
        self._connector = GatewayConnector(self._url, self._concurrency, self._proxy)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._connector is not None:
            await self._connector.close()

    async def send(self, request: Request) -> Outcome:
        """Send one message and return its outcome, also when the request is aborted."""
        request.attach_task()
        data = self._template.render(request.message)
        response = ReceivedResponse()
        try:
            for _ in range(MAX_STALE_CONNECTIONS):
                outcome = await self._try_connection(request, data, response)
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
            status = find_status(response.first_bytes)
            if status is not None:  # what was received counts, even if the rest is missing
                outcome = self._rules.outcome(Response(status, bytes(response.body)))
                is_refused = status >= HTTPStatus.MULTIPLE_CHOICES
                if is_refused or (response.body and isinstance(outcome, Accepted)):
                    return outcome
            if outcome_of_abort is not None:
                return outcome_of_abort
            if isinstance(error, UnreadableResponseError) and request.is_written:
                return TemporaryFailure("bad_response")
            if isinstance(error, aiohttp.ClientHttpProxyError):
                return TemporaryFailure(f"proxy_{error.status}", affects_all=True)
            return outcome_of_network_failure(is_written=request.is_written)

    async def exchange(self, data: bytes) -> bytes:
        """Send a request that is no message, such as a poll; return the body of the response.

        Raises `aiohttp.ClientError`, `UnreadableResponseError` or `OSError`; also if the status is
        not 200, or the body is too long.
        """
        if self._connector is None:
            raise RuntimeError("enter the gateway before sending")
        connection = await self._connector.acquire()
        try:
            protocol = _own_protocol(connection.protocol)
            protocol.write(data, ReceivedResponse())
            head, content = await protocol.read()
            body = await read_body(content, MAX_RESPONSE_BODY_BYTES, bytearray())
        except BaseException:
            connection.close()
            raise
        connection.release()
        if head.code != HTTPStatus.OK or body is None:
            raise aiohttp.ClientConnectionError(f"no answer to a poll: status {head.code}")
        return body

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
        protocol = _own_protocol(protocol)
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
        body = b""
        if self._rules.needs_body(head.code):
            if content.is_eof():  # the body came with the headers, as nearly always
                received: bytes | None = content.read_nowait()
            else:
                received = await read_body(content, MAX_RESPONSE_BODY_BYTES, response.body)
            if received is not None and len(received) <= MAX_RESPONSE_BODY_BYTES:
                body = received
        return self._outcome(head.code, head.headers, body)

    def _outcome(self, status: int, headers: Mapping[str, str], body: bytes) -> Outcome:
        """Return the outcome of a response; `body` is empty if it is not needed or too long."""
        encoding = headers.get("Content-Encoding")
        if encoding is not None:
            body = decompress(body, encoding) or b""
        pause = headers.get("Retry-After")
        seconds = None
        if pause is not None:
            seconds = parse_retry_after(pause, database_clock.now(), headers.get("Date"))
        content_type = headers.get("Content-Type", "") if self._rules.need_text else ""
        return self._rules.outcome(Response(status, body, seconds, content_type))
