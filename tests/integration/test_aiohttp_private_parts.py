"""The private parts of aiohttp that mailer leans on are as it expects (decision 14).

When one of these tests fails after an upgrade: compare the part in the library's two versions,
adapt `gateway/aiohttp_connection.py`, and then change the test and the version's cap.
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
    Answer,
    GatewayConnection,
    GatewayConnector,
    UnreadableAnswerError,
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


@pytest.mark.parametrize(("part", "expected"), SIGNATURES)
def test_a_part_has_the_expected_parameters(part: Callable[..., Any], expected: str) -> None:
    assert parameters(part) == expected


async def test_what_our_subclasses_add_is_no_part_of_aiohttp() -> None:
    connection = GatewayConnection(asyncio.get_running_loop())
    overridden = {part.__name__ for part, _ in SIGNATURES}
    handler = {*dir(ResponseHandler), *vars(connection)} - {"_answer"}
    assert not (names_defined_by(GatewayConnection) - overridden) & handler
    assert not (names_defined_by(GatewayConnector) - overridden) & set(dir(aiohttp.TCPConnector))


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"


def opened() -> tuple[GatewayConnection, Answer, Wire]:
    """Return a connection to a gateway that has written a request."""
    connection, answer, wire = GatewayConnection(asyncio.get_running_loop()), Answer(), Wire()
    connection.connection_made(wire)
    connection.write(b"POST / HTTP/1.1\r\n\r\n", answer)
    return connection, answer, wire


async def test_opens_connections_by_its_factory_and_keeps_them_after_release() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        connector = GatewayConnector(URL(f"http://127.0.0.1:{port}/"), 1)
        used = []
        for _ in range(2):
            connection = await connector.acquire()
            used.append(connection.protocol)
            connection.release()
        await connector.close()
    assert isinstance(used[0], GatewayConnection)
    assert used[0] is used[1]


async def test_returns_an_answer_and_its_body() -> None:
    connection, answer, wire = opened()
    assert wire.written == b"POST / HTTP/1.1\r\n\r\n"
    connection.data_received(OK + b"{}")
    message, content = await connection.read()
    assert (message.code, message.headers.get("content-length")) == (200, "2")
    assert await read_body(content, 2, answer.body) == b"{}"
    assert (answer.head, connection.should_close) == (OK + b"{}", False)
    assert connection.is_connected()


async def test_closes_a_connection_with_data_that_nobody_asked_for() -> None:
    connection, _, _ = opened()
    connection.data_received(OK + b"{}" + OK)
    await connection.read()
    assert connection.should_close


async def test_keeps_the_received_part_of_a_body_that_breaks_off() -> None:
    connection, answer, _ = opened()
    connection.data_received(OK + b"{")
    _, content = await connection.read()
    connection.connection_lost(None)
    with pytest.raises(aiohttp.ClientPayloadError):
        await read_body(content, 2, answer.body)
    assert answer.body == b"{"


async def test_reports_what_its_parser_refuses_by_set_exception() -> None:
    connection, answer, wire = opened()
    connection.data_received(b"HTTP/1.1 503 Busy\r\nbad header\r\n\r\n")
    with pytest.raises(UnreadableAnswerError):
        await connection.read()
    assert wire.is_closed
    assert answer.head.startswith(b"HTTP/1.1 503 ")


async def test_has_the_current_body_in_payload() -> None:
    connection, answer, _ = opened()
    connection.data_received(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n")
    _, content = await connection.read()
    assert connection._payload is content  # noqa: SLF001  # leaned on
    connection.data_received(b"not a size\r\n")
    with pytest.raises(UnreadableAnswerError):
        await read_body(content, 9, answer.body)
    assert answer.body == b"{"


def test_errors_of_its_parser_are_no_client_errors() -> None:
    assert not issubclass(HttpProcessingError, aiohttp.ClientError | OSError)
