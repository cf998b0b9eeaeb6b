"""Outcomes of network failures, over real sockets.

If the request was not written yet, the message was not sent, and the failure is temporary. If it
was written, delivery is unknown.
"""

import asyncio
import os
import socket
import ssl
import time

import pytest
import trustme
from tests.fault_servers import (
    OK,
    SilentServer,
    Talk,
    create_request,
    gateway_at,
    http_response,
    read_request,
    reset,
    respond_with,
    send,
    send_to,
    served,
    server_with_full_backlog,
)

from mailer.gateway.protocol import Accepted, Outcome, TemporaryFailure, Unknown

NOT_SENT = TemporaryFailure("connection_failed")
CONNECTION_LOST = Unknown("connection_lost")
TIMEOUT = Unknown("timeout")
PARTIAL_RESPONSES = [b"", b"HTTP/1.1 200 OK\r\nContent-", http_response(200, OK)[:-5]]
PARTIAL_RESPONSE_IDS = ["nothing", "part of the headers", "part of the body"]

# ---- before the request is written ----------------------------------------------------------


async def send_to_url(url: str, within: float = 30.0) -> Outcome:
    async with gateway_at(url) as gateway:
        return await send(gateway, create_request(within=within))


async def test_a_refused_connection_is_a_temporary_failure() -> None:
    with socket.socket() as not_listening:
        not_listening.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{not_listening.getsockname()[1]}/send/"
        assert await send_to_url(url) == NOT_SENT


async def test_an_unknown_host_name_is_a_temporary_failure() -> None:
    assert await send_to_url("http://gateway.invalid/send/") == NOT_SENT


async def test_an_untrusted_certificate_is_a_temporary_failure() -> None:
    server = SilentServer()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(tls)
    async with served(server.talk, tls) as url:
        assert await send_to_url(url) == NOT_SENT
    assert server.received == b""


async def test_a_server_without_tls_is_a_temporary_failure() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(http_response(400))
        await writer.drain()

    async with served(talk) as url:
        assert await send_to_url(url.replace("http:", "https:")) == NOT_SENT


async def test_a_connection_reset_before_the_request_is_a_temporary_failure() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        reset(writer)

    async with served(talk) as url:
        assert await send_to_url(url.replace("http:", "https:")) == NOT_SENT


async def test_a_timeout_during_tls_is_a_temporary_failure() -> None:
    async with served(SilentServer().talk) as url:
        assert await send_to_url(url.replace("http:", "https:"), within=0.2) == NOT_SENT


async def test_a_timeout_while_connecting_is_a_temporary_failure() -> None:
    with server_with_full_backlog() as url:
        assert await send_to_url(url, within=0.2) == NOT_SENT


async def test_a_timeout_while_waiting_for_a_connection_is_a_temporary_failure() -> None:
    server, first = SilentServer(), create_request(1)
    async with served(server.talk) as url, gateway_at(url, concurrency=1) as gateway:
        sending = asyncio.create_task(send(gateway, first))
        await server.has_received.wait()
        assert await send(gateway, create_request(2, within=0.2)) == NOT_SENT
        first.abort("timeout")
        assert await sending == TIMEOUT
    assert server.received.count(b"POST") == 1


# ---- kept connections that end between two messages -----------------------------------------


async def test_a_connection_is_kept_for_the_next_message() -> None:
    connections = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while True:
            await read_request(reader)
            writer.write(http_response(200, OK))

    async with served(talk) as url, gateway_at(url) as gateway:
        outcomes = [await send(gateway, create_request(number)) for number in range(1, 6)]
    assert outcomes == [Accepted()] * 5
    assert connections == 1


@pytest.mark.parametrize("is_reset", [True, False], ids=["reset", "closed"])
async def test_a_connection_detected_as_closed_is_not_used_again(*, is_reset: bool) -> None:
    is_closed = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(http_response(200, OK, "Connection: keep-alive"))
        await asyncio.sleep(0.02)
        if is_reset:
            reset(writer)
        is_closed.set()

    async with served(talk) as url, gateway_at(url) as gateway:
        for number in (1, 2, 3):
            assert await send(gateway, create_request(number)) == Accepted()
            await is_closed.wait()
            is_closed.clear()
            await asyncio.sleep(0.05)  # time for the gateway to detect the end


async def test_a_request_on_a_connection_closed_by_the_gateway_at_that_time_is_unknown() -> None:
    unanswered_ids: list[int] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(http_response(200, OK))
        unanswered_ids.append((await read_request(reader)).message_id)

    async with served(talk) as url, gateway_at(url) as gateway:
        assert await send(gateway, create_request(1)) == Accepted()
        assert await send(gateway, create_request(2)) == CONNECTION_LOST
        assert await send(gateway, create_request(3)) == Accepted()
    assert unanswered_ids == [2]  # sent once


async def test_a_connection_found_closed_before_the_write_is_replaced() -> None:
    sockets: list[socket.socket] = []
    """Copies of the server's ends of the connections, for the test to shut down."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        sockets.append(socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno())))
        writer.write(http_response(200, OK))
        await reader.read()

    async with served(talk) as url, gateway_at(url) as gateway:
        assert await send(gateway, create_request(1)) == Accepted()
        sending = asyncio.create_task(send(gateway, create_request(2)))
        [first_socket] = sockets
        first_socket.shutdown(socket.SHUT_RDWR)  # detected after the connection was chosen
        outcome = await sending
    for each in sockets:
        each.close()
    assert outcome == Accepted()


# ---- after the request was written ----------------------------------------------------------


@pytest.mark.parametrize("partial", PARTIAL_RESPONSES, ids=PARTIAL_RESPONSE_IDS)
async def test_a_connection_closed_after_the_request_leaves_it_unknown(partial: bytes) -> None:
    assert await send_to(respond_with(partial)) == CONNECTION_LOST


@pytest.mark.parametrize("partial", PARTIAL_RESPONSES, ids=PARTIAL_RESPONSE_IDS)
async def test_a_connection_reset_after_the_request_leaves_it_unknown(partial: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(partial)
        await writer.drain()
        await asyncio.sleep(0.02)
        reset(writer)

    assert await send_to(talk) == CONNECTION_LOST


@pytest.mark.parametrize("partial", PARTIAL_RESPONSES, ids=PARTIAL_RESPONSE_IDS)
async def test_a_timeout_after_the_request_leaves_it_unknown(partial: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(partial)
        await reader.read()

    assert await send_to(talk, within=0.6) == TIMEOUT


def slow_response(size: int, every: float) -> Talk:
    """Respond with a body of `size` bytes, one every `every` seconds, which accepts the message."""
    body = OK.rjust(size)  # JSON may start with spaces
    head = http_response(200, body).removesuffix(body)
    return respond_with(head, *(body[n : n + 1] for n in range(size)), every=every)


async def test_a_slow_body_is_aborted_at_the_deadline() -> None:
    started = time.monotonic()
    assert await send_to(slow_response(100_000, every=0.01), within=0.6) == TIMEOUT
    assert time.monotonic() - started >= 0.6


async def test_a_slow_body_that_ends_in_time_is_accepted() -> None:
    assert await send_to(slow_response(50, every=0.005)) == Accepted()


async def test_a_connection_with_unread_data_is_not_used_again() -> None:
    # sent from the last one on: a body without its end, and one that is longer than mailer reads
    with_unread_data = [http_response(200, b" " * 5_000_000), http_response(503, OK)[:-5]]

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(with_unread_data.pop() if with_unread_data else http_response(200, OK))
        await reader.read()

    async with served(talk) as url, gateway_at(url, concurrency=1) as gateway:
        outcomes = [await send(gateway, create_request(number)) for number in (1, 2, 3)]
    assert outcomes == [TemporaryFailure("http_503"), TemporaryFailure("bad_response"), Accepted()]


async def test_an_unrequested_response_is_not_taken_for_the_next_message() -> None:
    """Some gateways send data on an idle connection before they close it, or respond twice."""
    requests = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        while True:
            await read_request(reader)
            requests += 1
            writer.write(http_response(200, OK))
            await writer.drain()
            await asyncio.sleep(0.05)
            writer.write(http_response(200, OK))
            await writer.drain()

    async with served(talk) as url, gateway_at(url, concurrency=1) as gateway:
        assert await send(gateway, create_request(1)) == Accepted()
        await asyncio.sleep(0.2)
        assert await send(gateway, create_request(2)) == Accepted()
        assert requests == 2  # sent over another connection


async def test_a_gateway_that_closes_after_each_response_causes_no_temporary_failure() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(http_response(200, OK))

    async with served(talk) as url, gateway_at(url, concurrency=1) as gateway:
        outcomes = [await send(gateway, create_request(n)) for n in range(1, 31)]
    # a request may have been written before the close was detected
    assert set(outcomes) <= {Accepted(), CONNECTION_LOST}
    assert outcomes[0] == Accepted()
