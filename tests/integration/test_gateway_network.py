"""What a gateway's failures on the way mean, on real sockets: was the request written, or not?"""

import asyncio
import os
import socket
import ssl
import time

import pytest
import trustme
from tests.wire import (
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

from mailer.gateway.port import Accepted, Outcome, Unavailable, Unknown

NOT_SENT = Unavailable("connection_failed")
LOST = Unknown("connection_lost")
LATE = Unknown("timeout")
BEGUN = [b"", b"HTTP/1.1 200 OK\r\nContent-", answer(200, OK)[:-5]]
"""Of an answer: nothing, a part of the headers, and the headers with a part of the body."""
BEGUN_IDS = ["nothing", "part of the headers", "part of the body"]

# ---- nothing was written --------------------------------------------------------------------


async def sent_at(url: str, within: float = 30.0) -> Outcome:
    async with gateway_at(url) as gateway:
        return await send(gateway, a_request(within=within))


async def test_a_refused_connection_is_temporary() -> None:
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unheard.getsockname()[1]}/send/"
        assert await sent_at(url) == NOT_SENT


async def test_a_name_that_nobody_knows_is_temporary() -> None:
    assert await sent_at("http://gateway.invalid/send/") == NOT_SENT


async def test_a_certificate_that_nobody_vouches_for_is_temporary() -> None:
    server = Silent()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(tls)
    async with served(server.talk, tls) as url:
        assert await sent_at(url) == NOT_SENT
    assert server.received == b""


async def test_a_server_that_speaks_no_tls_is_temporary() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(answer(400))
        await writer.drain()

    async with served(talk) as url:
        assert await sent_at(url.replace("http:", "https:")) == NOT_SENT


async def test_a_connection_reset_before_the_request_is_temporary() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        reset(writer)

    async with served(talk) as url:
        assert await sent_at(url.replace("http:", "https:")) == NOT_SENT


async def test_time_that_runs_out_during_tls_is_temporary() -> None:
    async with served(Silent().talk) as url:
        assert await sent_at(url.replace("http:", "https:"), within=0.2) == NOT_SENT


async def test_time_that_runs_out_before_the_connection_stands_is_temporary() -> None:
    with crowded() as url:
        assert await sent_at(url, within=0.2) == NOT_SENT


async def test_time_that_runs_out_in_line_for_a_connection_is_temporary() -> None:
    server, first = Silent(), a_request(1)
    async with served(server.talk) as url, gateway_at(url, concurrency=1) as gateway:
        sending = asyncio.create_task(send(gateway, first))
        await server.has_request.wait()
        assert await send(gateway, a_request(2, within=0.2)) == NOT_SENT
        first.cut("timeout")
        assert await sending == LATE
    assert server.received.count(b"POST") == 1


# ---- a connection is kept, and goes between two messages ------------------------------------


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
async def test_a_connection_that_is_seen_to_be_gone_is_not_used_again(*, is_reset: bool) -> None:
    is_gone = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(answer(200, OK, "Connection: keep-alive"))
        await asyncio.sleep(0.02)
        if is_reset:
            reset(writer)
        is_gone.set()

    async with served(talk) as url, gateway_at(url) as gateway:
        for number in (1, 2, 3):
            assert await send(gateway, a_request(number)) == Accepted()
            await is_gone.wait()
            is_gone.clear()
            await asyncio.sleep(0.05)  # turns of the loop, in which the gateway sees the end


async def test_a_connection_that_goes_as_the_next_request_comes_leaves_it_unknown() -> None:
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
    assert numbers == [2]  # once: it was not sent again by itself


async def test_a_connection_found_gone_at_the_moment_of_writing_is_replaced() -> None:
    lines: list[socket.socket] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        lines.append(socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno())))
        writer.write(answer(200, OK))
        await reader.read()

    async with served(talk) as url, gateway_at(url) as gateway:
        assert await send(gateway, a_request(1)) == Accepted()
        sending = asyncio.create_task(send(gateway, a_request(2)))
        [line] = lines
        line.shutdown(socket.SHUT_RDWR)  # the loop sees it after the connection was picked
        outcome = await sending
    for each in lines:
        each.close()
    assert outcome == Accepted()


# ---- it was written, and then? --------------------------------------------------------------


@pytest.mark.parametrize("begun", BEGUN, ids=BEGUN_IDS)
async def test_a_connection_closed_after_the_request_leaves_it_unknown(begun: bytes) -> None:
    assert await sent_to(says(begun)) == LOST


@pytest.mark.parametrize("begun", BEGUN, ids=BEGUN_IDS)
async def test_a_connection_reset_after_the_request_leaves_it_unknown(begun: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(begun)
        await writer.drain()
        await asyncio.sleep(0.02)
        reset(writer)

    assert await sent_to(talk) == LOST


@pytest.mark.parametrize("begun", BEGUN, ids=BEGUN_IDS)
async def test_time_that_runs_out_after_the_request_leaves_it_unknown(begun: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(begun)
        await reader.read()

    assert await sent_to(talk, within=0.6) == LATE


def drips(count: int, every: float) -> Talk:
    """Answer with `count` bytes of a body and a little pause after each, the last one good."""
    body = OK.rjust(count)
    head = answer(200, body)[: -len(body)]
    return says(head, *(body[n : n + 1] for n in range(count)), every=every)


async def test_a_body_that_drips_on_past_the_deadline_is_cut_on_time() -> None:
    start = time.monotonic()
    assert await sent_to(drips(100_000, every=0.01), within=0.6) == LATE
    assert time.monotonic() - start >= 0.6


async def test_a_body_that_drips_and_ends_in_time_is_an_answer() -> None:
    assert await sent_to(drips(50, every=0.005)) == Accepted()


async def test_a_connection_with_something_left_unread_is_not_used_again() -> None:
    raws = [answer(200, b" " * 5_000_000), answer(503, OK)[:-5]]

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(raws.pop() if raws else answer(200, OK))
        await reader.read()

    async with served(talk) as url, gateway_at(url, concurrency=1) as gateway:
        outcomes = [await send(gateway, a_request(number)) for number in (1, 2, 3)]
    assert outcomes == [Unavailable("http_503"), Unavailable("bad_response"), Accepted()]


async def test_an_answer_that_nobody_asked_for_is_no_answer_to_the_next_message() -> None:
    """A gateway that says good-bye to a connection at rest, or answers twice."""
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
        assert requests == 2  # it went out over another connection


async def test_connection_that_the_gateway_closes_after_each_answer_costs_no_attempt() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(answer(200, OK))

    async with served(talk) as url, gateway_at(url, concurrency=1) as gateway:
        outcomes = [await send(gateway, a_request(n)) for n in range(1, 31)]
    # the last may have been written before it was known that the gateway closes
    assert set(outcomes) <= {Accepted(), Unknown("connection_lost")}
    assert outcomes[0] == Accepted()
