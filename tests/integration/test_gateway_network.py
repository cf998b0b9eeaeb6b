"""Outcomes of network failures, over real sockets; they depend on what was written before."""

import asyncio
import os
import socket
import ssl
import time

import pytest
import trustme
from tests.fault_servers import (
    OK,
    Silent,
    Talk,
    a_request,
    answer,
    crowded,
    gateway_at,
    request_of,
    reset,
    says,
    send,
    sent_to,
    served,
)

from mailer.gateway.protocol import Accepted, Outcome, TemporaryFailure, Unknown

NOT_SENT = TemporaryFailure("connection_failed")
LOST = Unknown("connection_lost")
LATE = Unknown("timeout")
PARTIAL_RESPONSES = [b"", b"HTTP/1.1 200 OK\r\nContent-", answer(200, OK)[:-5]]
"""Nothing, a part of the headers, and the headers with a part of the body."""
PARTIAL_RESPONSE_IDS = ["nothing", "part of the headers", "part of the body"]

# ---- before the request is written ----------------------------------------------------------


async def send_to_url(url: str, within: float = 30.0) -> Outcome:
    async with gateway_at(url) as gateway:
        return await send(gateway, a_request(within=within))


async def test_a_refused_connection_is_temporary() -> None:
    with socket.socket() as not_listening:
        not_listening.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{not_listening.getsockname()[1]}/send/"
        assert await send_to_url(url) == NOT_SENT


async def test_an_unknown_host_name_is_temporary() -> None:
    assert await send_to_url("http://gateway.invalid/send/") == NOT_SENT


async def test_an_untrusted_certificate_is_temporary() -> None:
    server = Silent()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(tls)
    async with served(server.talk, tls) as url:
        assert await send_to_url(url) == NOT_SENT
    assert server.received == b""


async def test_a_server_without_tls_is_temporary() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(answer(400))
        await writer.drain()

    async with served(talk) as url:
        assert await send_to_url(url.replace("http:", "https:")) == NOT_SENT


async def test_a_connection_reset_before_the_request_is_temporary() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        reset(writer)

    async with served(talk) as url:
        assert await send_to_url(url.replace("http:", "https:")) == NOT_SENT


async def test_a_timeout_during_tls_is_temporary() -> None:
    async with served(Silent().talk) as url:
        assert await send_to_url(url.replace("http:", "https:"), within=0.2) == NOT_SENT


async def test_a_timeout_while_connecting_is_temporary() -> None:
    with crowded() as url:
        assert await send_to_url(url, within=0.2) == NOT_SENT


async def test_a_timeout_while_waiting_for_a_connection_is_temporary() -> None:
    server, first = Silent(), a_request(1)
    async with served(server.talk) as url, gateway_at(url, concurrency=1) as gateway:
        sending = asyncio.create_task(send(gateway, first))
        await server.has_request.wait()
        assert await send(gateway, a_request(2, within=0.2)) == NOT_SENT
        first.abort("timeout")
        assert await sending == LATE
    assert server.received.count(b"POST") == 1


# ---- kept connections that end between two messages -----------------------------------------


async def test_a_connection_is_kept_for_the_next_message() -> None:
    connections = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while True:
            await request_of(reader)
            writer.write(answer(200, OK))

    async with served(talk) as url, gateway_at(url) as gateway:
        outcomes = [await send(gateway, a_request(number)) for number in range(1, 6)]
    assert outcomes == [Accepted()] * 5
    assert connections == 1


@pytest.mark.parametrize("is_reset", [True, False], ids=["reset", "closed"])
async def test_a_connection_detected_as_closed_is_not_used_again(*, is_reset: bool) -> None:
    is_closed = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(answer(200, OK, "Connection: keep-alive"))
        await asyncio.sleep(0.02)
        if is_reset:
            reset(writer)
        is_closed.set()

    async with served(talk) as url, gateway_at(url) as gateway:
        for number in (1, 2, 3):
            assert await send(gateway, a_request(number)) == Accepted()
            await is_closed.wait()
            is_closed.clear()
            await asyncio.sleep(0.05)  # time for the gateway to detect the end


async def test_a_request_on_a_connection_closed_by_the_gateway_at_that_time_is_unknown() -> None:
    numbers: list[int] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(answer(200, OK))
        line, _, _ = await request_of(reader)
        numbers.append(int(line.split()[1].rpartition("/")[2]))

    async with served(talk) as url, gateway_at(url) as gateway:
        assert await send(gateway, a_request(1)) == Accepted()
        assert await send(gateway, a_request(2)) == LOST
        assert await send(gateway, a_request(3)) == Accepted()
    assert numbers == [2]  # not sent again automatically


async def test_a_connection_found_closed_when_writing_is_replaced() -> None:
    sockets: list[socket.socket] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        sockets.append(socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno())))
        writer.write(answer(200, OK))
        await reader.read()

    async with served(talk) as url, gateway_at(url) as gateway:
        assert await send(gateway, a_request(1)) == Accepted()
        sending = asyncio.create_task(send(gateway, a_request(2)))
        [socket_] = sockets
        socket_.shutdown(socket.SHUT_RDWR)  # the loop detects it after the connection was chosen
        outcome = await sending
    for socket_ in sockets:
        socket_.close()
    assert outcome == Accepted()


# ---- after the request was written ----------------------------------------------------------


@pytest.mark.parametrize("partial", PARTIAL_RESPONSES, ids=PARTIAL_RESPONSE_IDS)
async def test_a_connection_closed_after_the_request_leaves_it_unknown(partial: bytes) -> None:
    assert await sent_to(says(partial)) == LOST


@pytest.mark.parametrize("partial", PARTIAL_RESPONSES, ids=PARTIAL_RESPONSE_IDS)
async def test_a_connection_reset_after_the_request_leaves_it_unknown(partial: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(partial)
        await writer.drain()
        await asyncio.sleep(0.02)
        reset(writer)

    assert await sent_to(talk) == LOST


@pytest.mark.parametrize("partial", PARTIAL_RESPONSES, ids=PARTIAL_RESPONSE_IDS)
async def test_a_timeout_after_the_request_leaves_it_unknown(partial: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(partial)
        await reader.read()

    assert await sent_to(talk, within=0.6) == LATE


def slow_response(count: int, every: float) -> Talk:
    """Respond with a body of `count` bytes, one every `every` seconds, ending in valid JSON."""
    body = OK.rjust(count)
    head = answer(200, body)[: -len(body)]
    return says(head, *(body[n : n + 1] for n in range(count)), every=every)


async def test_a_slow_body_is_aborted_at_the_deadline() -> None:
    start = time.monotonic()
    assert await sent_to(slow_response(100_000, every=0.01), within=0.6) == LATE
    assert time.monotonic() - start >= 0.6


async def test_a_slow_body_that_ends_in_time_is_accepted() -> None:
    assert await sent_to(slow_response(50, every=0.005)) == Accepted()


async def test_a_connection_with_unread_data_is_not_used_again() -> None:
    raws = [answer(200, b" " * 5_000_000), answer(503, OK)[:-5]]

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(raws.pop() if raws else answer(200, OK))
        await reader.read()

    async with served(talk) as url, gateway_at(url, concurrency=1) as gateway:
        outcomes = [await send(gateway, a_request(number)) for number in (1, 2, 3)]
    assert outcomes == [TemporaryFailure("http_503"), TemporaryFailure("bad_response"), Accepted()]


async def test_an_unrequested_response_is_not_taken_for_the_next_message() -> None:
    """Some gateways send data on an idle connection before they close it, or respond twice."""
    requests = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        while True:
            await request_of(reader)
            requests += 1
            writer.write(answer(200, OK))
            await writer.drain()
            await asyncio.sleep(0.05)
            writer.write(answer(200, OK))
            await writer.drain()

    async with served(talk) as url, gateway_at(url, concurrency=1) as gateway:
        assert await send(gateway, a_request(1)) == Accepted()
        await asyncio.sleep(0.2)
        assert await send(gateway, a_request(2)) == Accepted()
        assert requests == 2  # sent over another connection


async def test_a_gateway_that_closes_after_each_response_costs_no_attempt() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(answer(200, OK))

    async with served(talk) as url, gateway_at(url, concurrency=1) as gateway:
        outcomes = [await send(gateway, a_request(n)) for n in range(1, 31)]
    # a request may have been written before the close was detected
    assert set(outcomes) <= {Accepted(), Unknown("connection_lost")}
    assert outcomes[0] == Accepted()
