"""The private parts of aiohttp that mailer uses work as mailer expects (decision 14).

When one of these tests fails after an upgrade of aiohttp: compare the part in the library's two
versions, adapt `gateway/aiohttp_connection.py`, and then change the test and the highest allowed
version.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError
from tests.private_parts import Wire, names_defined_by, parameters
from yarl import URL

from mailer.gateway.aiohttp_connection import (
    GatewayConnection,
    GatewayConnector,
    ReceivedResponse,
    UnreadableResponseError,
    read_body,
)

SIGNATURES: list[tuple[Callable[..., Any], str]] = [
    (aiohttp.BaseConnector.connect, "self, req, traces, timeout"),
    (Connection.close, "self"),
    (Connection.release, "self"),
    (ResponseHandler.__init__, "self, loop"),
    (ResponseHandler.connection_made, "self, transport"),
    (ResponseHandler.data_received, "self, data"),
    (ResponseHandler.feed_data, "self, data, size=0"),
    (ResponseHandler.set_exception, "self, exc, exc_cause=<sentinel>"),
    (ResponseHandler.is_connected, "self"),
    (ResponseHandler.exception, "self"),
    (ResponseHandler.read, "self"),
    (aiohttp.StreamReader.set_exception, "self, exc, exc_cause=<sentinel>"),
    (aiohttp.StreamReader.read_nowait, "self, n=-1"),
]
"""The functions that mailer calls or overrides, with their parameters."""


@pytest.mark.parametrize(("part", "expected"), SIGNATURES)
def test_a_part_has_the_expected_parameters(part: Callable[..., Any], expected: str) -> None:
    assert parameters(part) == expected


async def test_names_that_our_subclasses_add_are_not_used_by_aiohttp() -> None:
    connection = GatewayConnection(asyncio.get_running_loop())
    overridden = {part.__name__ for part, _ in SIGNATURES}
    own_attributes = {"_response"}
    names_of_aiohttp = {*dir(ResponseHandler), *vars(connection)} - own_attributes
    assert not (names_defined_by(GatewayConnection) - overridden) & names_of_aiohttp
    assert not (names_defined_by(GatewayConnector) - overridden) & set(dir(aiohttp.TCPConnector))


REQUEST = b"POST / HTTP/1.1\r\n\r\n"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
"""The head of a response with a body of two bytes."""


def open_connection() -> tuple[GatewayConnection, ReceivedResponse, Wire]:
    """Return a connection that has written a request, what it receives, and its transport."""
    connection = GatewayConnection(asyncio.get_running_loop())
    received, wire = ReceivedResponse(), Wire()
    connection.connection_made(wire)
    connection.write(REQUEST, received)
    return connection, received, wire


async def test_connector_opens_gateway_connections_and_keeps_them_after_release() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        connector = GatewayConnector(URL(f"http://127.0.0.1:{port}/"), 1)
        protocols = []
        for _ in range(2):
            connection = await connector.acquire()
            protocols.append(connection.protocol)
            connection.release()
        await connector.close()
    assert isinstance(protocols[0], GatewayConnection)
    assert protocols[0] is protocols[1]


async def test_connection_returns_a_response_and_its_body() -> None:
    connection, received, wire = open_connection()
    assert wire.written == REQUEST
    connection.data_received(HEAD + b"{}")
    head, content = await connection.read()
    assert (head.code, head.headers.get("content-length")) == (200, "2")
    assert await read_body(content, 2, received.body) == b"{}"
    assert (received.first_bytes, connection.should_close) == (HEAD + b"{}", False)
    assert connection.is_connected()


async def test_connection_with_a_second_response_to_one_request_should_close() -> None:
    connection, _, _ = open_connection()
    connection.data_received(HEAD + b"{}" + HEAD)
    await connection.read()
    assert connection.should_close


async def test_received_part_of_an_incomplete_body_is_kept() -> None:
    connection, received, _ = open_connection()
    connection.data_received(HEAD + b"{")
    _, content = await connection.read()
    connection.connection_lost(None)
    with pytest.raises(aiohttp.ClientPayloadError):
        await read_body(content, 2, received.body)
    assert received.body == b"{"


async def test_response_that_the_parser_refuses_is_an_unreadable_response() -> None:
    connection, received, wire = open_connection()
    connection.data_received(b"HTTP/1.1 503 Busy\r\nbad header\r\n\r\n")
    with pytest.raises(UnreadableResponseError):
        await connection.read()
    assert wire.is_closed
    assert received.first_bytes.startswith(b"HTTP/1.1 503 ")


async def test_current_body_is_in_the_attribute_payload() -> None:
    connection, received, _ = open_connection()
    connection.data_received(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n")
    _, content = await connection.read()
    assert connection._payload is content  # noqa: SLF001  # mailer uses it
    connection.data_received(b"not a size\r\n")
    with pytest.raises(UnreadableResponseError):
        await read_body(content, 9, received.body)
    assert received.body == b"{"


def test_errors_of_the_parser_are_no_client_errors() -> None:
    assert not issubclass(HttpProcessingError, aiohttp.ClientError | OSError)
