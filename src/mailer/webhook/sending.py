"""Send one event to one endpoint over HTTP, and return the result.

Each new connection goes to an address that was checked right before: a name that resolves to a
public address at first and to a private one later (DNS rebinding) is refused, too.
"""

import asyncio
import socket
from collections.abc import Sequence
from typing import Self

import aiohttp
import msgspec
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from mailer.clock import database_clock
from mailer.gateway.response import parse_retry_after
from mailer.webhook.addresses import AddressPolicy, HostNotFoundError, PrivateAddressError
from mailer.webhook.retry_policy import failure_of, is_success

WEBHOOK_TIMEOUT = 15.0
"""Seconds for an attempt; the specification recommends 15 to 30."""
MAX_ANSWER_BYTES = 16 * 1024
"""Bytes of a response that are read. A longer one costs a new connection for the next request."""
ANSWER_BODY_TIMEOUT = 1.0
"""Seconds for the body of a response, whose status alone counts."""
MAX_HEADER_BYTES = 8 * 1024
MAX_CONNECTIONS_PER_HOST = 10
WEBHOOK_USER_AGENT = "mailer"


class Attempt(msgspec.Struct, frozen=True):
    """The result of an attempt."""

    error: str | None
    """None if the endpoint has the event."""
    status: int | None = None
    """The HTTP status of the response, if there was one."""
    retry_after: float | None = None
    """Seconds for which the endpoint asks to wait."""


class _CheckedResolver(AbstractResolver):
    """Resolves host names for aiohttp, which connects to the returned addresses alone."""

    def __init__(self, policy: AddressPolicy) -> None:
        self._policy = policy

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the checked addresses of a host; raises `OSError`."""
        return [
            ResolveResult(
                hostname=host,
                host=found.address,
                port=port,
                family=found.family,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for found in await self._policy.find(host, port)
            if family in {socket.AF_UNSPEC, found.family}
        ]

    async def close(self) -> None:
        """Do nothing: there is nothing to close."""


class WebhookClient:
    """Sends events; an async context manager, to be entered before `send`."""

    def __init__(self, policy: AddressPolicy, timeout: float = WEBHOOK_TIMEOUT) -> None:
        self._policy = policy
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(
            limit=0,  # the callers limit the requests of each endpoint
            limit_per_host=MAX_CONNECTIONS_PER_HOST,
            resolver=_CheckedResolver(self._policy),
            use_dns_cache=False,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=self._timeout,
            auto_decompress=False,
            trust_env=False,
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def send(self, url: str, body: bytes, headers: dict[str, str]) -> Attempt:
        """Post `body` once, and return the result. Redirects are not followed."""
        if self._session is None:
            raise RuntimeError("enter the client before sending")
        target = URL(url, encoded=True)
        try:
            if target.host is not None and _is_address(target.host):
                # aiohttp passes no address to its resolver
                await self._policy.find(target.host, target.port or 0)
            async with self._session.post(
                target,
                data=body,
                headers={
                    "Content-Type": "application/json",
                    "User-Agent": WEBHOOK_USER_AGENT,
                    "Accept-Encoding": "identity",
                    **headers,
                },
                allow_redirects=False,
            ) as response:
                await _discard_body(response)
                return _attempt_of(response)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Attempt(_failure_name(error))


def _is_address(host: str) -> bool:
    """Return whether aiohttp takes a host for an address, and so does not resolve it."""
    return ":" in host or host.replace(".", "").isdigit()


async def _discard_body(response: aiohttp.ClientResponse) -> None:
    """Read a short body, so that the connection can be used again; close it after a long one."""
    received = 0
    try:
        async with asyncio.timeout(ANSWER_BODY_TIMEOUT):
            async for piece in response.content.iter_any():
                received += len(piece)
                if received > MAX_ANSWER_BYTES:
                    break
            else:
                return
    except (aiohttp.ClientError, OSError):  # TimeoutError is an OSError
        pass
    response.close()


def _attempt_of(response: aiohttp.ClientResponse) -> Attempt:
    if is_success(response.status):
        return Attempt(None, response.status)
    pause = parse_retry_after(
        response.headers.get("Retry-After"), database_clock.now(), response.headers.get("Date")
    )
    return Attempt(failure_of(response.status), response.status, pause)


FAILURE_NAMES: Sequence[tuple[type[BaseException], str]] = (
    (PrivateAddressError, "private_address"),
    (HostNotFoundError, "unknown_host"),
    (TimeoutError, "timeout"),
    (aiohttp.ClientConnectorCertificateError, "bad_certificate"),
    (aiohttp.ClientSSLError, "tls_failed"),
    (aiohttp.ClientConnectorError, "connection_failed"),
    (aiohttp.ServerDisconnectedError, "connection_lost"),
    (aiohttp.ClientOSError, "connection_lost"),
    (aiohttp.ClientResponseError, "bad_response"),
    (aiohttp.ClientPayloadError, "bad_response"),
)
"""Names of failures by the class of the error; the first match counts."""


def _failure_name(error: BaseException) -> str:
    """Return the name of a failure, from the error or its cause."""
    causes = [error]
    if isinstance(error, aiohttp.ClientConnectorError):
        causes.insert(0, error.os_error)
        if error.os_error.__cause__ is not None:
            causes.insert(0, error.os_error.__cause__)
    for cause in causes:
        for kind, name in FAILURE_NAMES[:2]:
            if isinstance(cause, kind):
                return name
    return next(
        (name for kind, name in FAILURE_NAMES if isinstance(error, kind)), "connection_failed"
    )
