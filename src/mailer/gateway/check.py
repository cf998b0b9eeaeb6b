"""The command `mailer gateways check`: whether the gateways of the configuration can be used."""

import asyncio
import socket
import ssl
from collections.abc import Callable
from datetime import UTC, datetime
from typing import assert_never

import aiohttp
from msgspec.structs import replace
from yarl import URL

from mailer.clock import database_clock, elapsed
from mailer.gateway.aiohttp_connection import GatewayConnector, UnreadableResponseError
from mailer.gateway.config import ConfiguredGateway
from mailer.gateway.profile import BalancePart, ResponsePart
from mailer.gateway.protocol import (
    Aborted,
    Accepted,
    Outcome,
    Rejected,
    TemporaryFailure,
    Unknown,
)
from mailer.gateway.single_message import send_single, single_message

CHECK_TIMEOUT = 15.0
"""Seconds for each step of the check."""
TEST_TEXT = "Test message / Тестовое сообщение"

Echo = Callable[[str], None]


async def check_gateways(
    gateways: list[ConfiguredGateway],
    phone: str | None,
    echo: Echo,
    public_url: str | None = None,
) -> bool:
    """Check each gateway, and print the results with `echo`. Return whether all can be used.

    Resolves the name, connects with TLS if the address is https, and asks for the balance where the
    provider has a request for it. With `phone`, sends one message to it through each gateway.
    `public_url` is the address at which providers reach mailer.
    """
    now = datetime.now(UTC)  # noqa: TID251  # there is no database here, and nothing rests on it
    database_clock.sample(elapsed(), now, elapsed())
    are_good = True
    for gateway in gateways:
        url = URL(gateway.url.before)
        echo(f"{gateway.config.name} ({gateway.profile.title}): {url.origin()}")
        if (receipts := gateway.callbacks.describe(public_url)) is not None:
            echo(f"  {receipts}")
        for step in (_connect, _read_balance, _send_test):
            try:
                async with asyncio.timeout(CHECK_TIMEOUT):
                    result = await step(gateway, phone)
            except (OSError, ValueError, aiohttp.ClientError) as error:
                are_good = False
                echo(f"  failed: {_describe(error)}")
                break
            if result is not None:
                echo(f"  {result}")
    if all(gateway.config.operator_codes for gateway in gateways):
        echo("Note: messages to clients with other operator codes wait: no gateway takes them.")
    return are_good


async def _connect(gateway: ConfiguredGateway, _phone: str | None) -> str:
    """Resolve the name and connect. Raises `OSError`, `ValueError` or `aiohttp.ClientError`."""
    connector = GatewayConnector(URL(gateway.url.before), 1, gateway.proxy)
    try:
        connection = await connector.acquire()
        tls = connection.transport and connection.transport.get_extra_info("ssl_object")
        connection.close()
    except UnreadableResponseError:
        raise ValueError("the answer of the proxy is not HTTP") from None
    finally:
        await connector.close()
    by = "" if gateway.proxy is None else f" through the proxy {gateway.proxy.url}"
    return f"connected{by}, {tls.version() if tls else 'without TLS'}"


async def _read_balance(gateway: ConfiguredGateway, _phone: str | None) -> str | None:
    """Return the balance of the account. Raises `ValueError` if the gateway refuses to tell it."""
    if gateway.profile.balance is None:
        return None
    reader = balance_gateway(gateway, gateway.profile.balance)
    request = single_message(reader, "79000000000", TEST_TEXT)
    outcome = await send_single(reader, request, CHECK_TIMEOUT)
    if isinstance(outcome, Accepted):
        return f"balance: {outcome.gateway_message_id}"
    raise ValueError(f"the balance cannot be read: {describe_outcome(outcome)}")


async def _send_test(gateway: ConfiguredGateway, phone: str | None) -> str | None:
    """Send a test message to `phone`, if given. Raises `ValueError` if it is not accepted."""
    if phone is None:
        return None
    message = single_message(gateway, phone, TEST_TEXT)
    outcome = await send_single(gateway, message, CHECK_TIMEOUT)
    result = f"the test message is {describe_outcome(outcome)}"
    match outcome:
        case Accepted():
            return result
        case _:
            raise ValueError(result)


def balance_gateway(gateway: ConfiguredGateway, balance: BalancePart) -> ConfiguredGateway:
    """Return a gateway whose only request asks for the balance, which is its message id."""
    response = ResponsePart(path=balance.path, pattern="[0-9]", then="accepted", id=balance.path)
    profile = replace(gateway.profile, request=balance.request, response=[response])
    return replace(gateway, profile=profile)


def describe_outcome(outcome: Outcome) -> str:
    """Return an outcome in words."""
    match outcome:
        case Accepted(gateway_message_id=None):
            return "accepted"
        case Accepted(gateway_message_id=message_id):
            return f"accepted, with the id {message_id}"
        case Rejected(reason=reason):
            return f"rejected: {reason}"
        case TemporaryFailure(reason=reason):
            return f"not accepted: {reason}"
        case Unknown(reason=reason):
            return f"perhaps accepted: {reason}"
        case Aborted():
            return "not sent"
        case _:
            assert_never(outcome)


def _describe(error: Exception) -> str:
    """Return an error in words. Those of aiohttp contain the one of the system or of TLS."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        error = error.certificate_error
    elif isinstance(error, aiohttp.ClientConnectorError):
        error = error.os_error
    match error:
        case aiohttp.ClientHttpProxyError(status=status):
            return f"the proxy refuses the connection: proxy_{status}"
        case TimeoutError():
            return f"no answer within {CHECK_TIMEOUT:g} s"
        case socket.gaierror():
            return "the name of the host cannot be resolved"
        case ssl.SSLError():
            return f"the TLS connection is refused: {error.reason or error}"
        case OSError(strerror=str(reason)):
            return f"cannot connect: {reason}"
        case _:
            return str(error)
