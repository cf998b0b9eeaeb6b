"""Slow, stuck or numerous clients, over real sockets: they do not delay other clients.

`slow`, `stuck`, `late` and so on are connections of such clients.
"""

import asyncio
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.event_timeout import EVENT_TIMEOUT
from tests.factories import OPEN
from tests.integration.small_app import small_app
from tests.served import GET, listening, served_normally, talk, talks

from mailer.app import create_app
from mailer.web.headers import COMMON_HEADERS
from mailer.web.server.connection import (
    MAX_HEAD_BYTES,
    MAX_REQUEST_HEADERS,
    MAX_URL_BYTES,
    ConnectionLimits,
)

START_OF_POST = b"POST /api/v1/clients HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
"""A head without its last headers and the empty line."""
INCOMPLETE_HEAD = b"GET / HTTP/1.1\r\nHost: "
"""The start of a request of a slow client."""
STUCK_BODY = START_OF_POST + b'Content-Length: 100\r\n\r\n{"phone": '
"""A request of whose body 90 bytes never arrive."""


async def answer_header_names(scope: Any, receive: Any, send: Any) -> None:
    """Read the whole body, then answer with the names of the headers in the scope."""
    while (await receive()).get("more_body"):
        pass
    body = b" ".join(name for name, _ in scope["headers"])
    length = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": length})
    await send({"type": "http.response.body", "body": body})


# ---- heads ----------------------------------------------------------------------------------


@pytest.mark.parametrize("head_start", [b"", b"G", b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: "])
async def test_an_incomplete_head_ends_the_connection_after_the_timeout(head_start: bytes) -> None:
    async with listening(small_app(), ConnectionLimits(head=0.4)) as port, talk(port) as slow:
        await slow.say(head_start)
        assert await slow.ended() >= 0.3  # the timeout, less the time to connect


async def test_a_head_sent_byte_by_byte_does_not_extend_the_timeout() -> None:
    async with listening(small_app(), ConnectionLimits(head=0.5)) as port, talk(port) as slow:
        end = asyncio.create_task(slow.ended())
        await slow.say(b"GET / HTTP/1.1\r\nX: ")
        while not end.done():
            slow.writer.write(b"x")
            await asyncio.sleep(0.05)
        assert await end >= 0.4


@pytest.mark.parametrize("content", [b"\r\n", b"GET /health/live HTTP/1.1\r\nX: "])
async def test_slow_bytes_after_a_response_do_not_extend_the_timeout(content: bytes) -> None:
    limits = ConnectionLimits(head=0.5)
    async with listening(small_app(), limits, keep_alive=1) as port, talk(port) as slow:
        await slow.say(GET)
        await slow.answer()
        end = asyncio.create_task(slow.ended())
        slow.writer.write(content)
        while not end.done():
            slow.writer.write(content[-2:])  # an empty line, or a part of the endless header
            await asyncio.sleep(0.1)
        assert await end >= 1.4  # the timeout is keep_alive + head = 1.5


async def test_hundreds_of_slow_heads_delay_no_other_client() -> None:
    async with (
        listening(small_app(), ConnectionLimits(head=30)) as port,
        talks(port, count=300) as slow,
    ):
        for connection in slow:
            await connection.say(INCOMPLETE_HEAD)
        await served_normally(port)
        assert not any(connection.is_ended for connection in slow)


async def test_hundreds_of_slow_heads_end_by_their_timeout() -> None:
    async with (
        listening(small_app(), ConnectionLimits(head=2)) as port,
        talks(port, count=300) as slow,
    ):
        for connection in slow:
            await connection.say(INCOMPLETE_HEAD)
        await asyncio.gather(*(connection.ended() for connection in slow))


async def test_over_the_limit_the_longest_waiting_connection_is_evicted() -> None:
    limits = ConnectionLimits(head=60, connections=50)
    async with listening(small_app(), limits) as port, talks(port, count=30) as oldest:
        for connection in oldest:
            await connection.say(INCOMPLETE_HEAD)
        async with talks(port, count=270) as later:
            for connection in later:
                await connection.say(INCOMPLETE_HEAD)
            await served_normally(port)
            assert all(connection.is_ended for connection in oldest)
            kept = [connection for connection in later if not connection.is_ended]
            assert 25 <= len(kept) <= 50  # up to the limit, less those evicted by `served_normally`
            assert kept == later[-len(kept) :]  # the newest ones


async def test_connections_being_served_are_never_evicted_and_excess_ones_get_503() -> None:
    limits = ConnectionLimits(connections=3)
    async with listening(small_app(), limits) as port, talks(port, count=3) as watching:
        for connection in watching:
            await connection.say(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
            await connection.reader.readuntil(b"data: 0")
        async with talk(port) as excess:
            await excess.say(GET)
            status, headers, _ = await excess.answer()
            assert (status, headers["retry-after"], headers["connection"]) == (503, "1", "close")
            assert {name.decode() for name, _ in COMMON_HEADERS} <= headers.keys()
            await excess.ended()
        for connection in watching:
            await connection.reader.readuntil(b"data: 2")  # its events go on

        watching[0].writer.close()  # makes space for one connection

        async with asyncio.timeout(EVENT_TIMEOUT):
            while not await is_served(port):
                await asyncio.sleep(0.02)
        await served_normally(port, requests=3)


async def is_served(port: int) -> bool:
    """Return whether a request on a new connection gets 200."""
    async with talk(port) as connection:
        await connection.say(GET)
        return (await connection.answer()).status == 200


# ---- sizes of heads -------------------------------------------------------------------------


def head(*headers: bytes, path: bytes = b"/health/live") -> bytes:
    """Return a complete request without a body."""
    return b"\r\n".join([b"GET " + path + b" HTTP/1.1", b"Host: localhost", *headers, b"", b""])


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (head(b"X: " + b"x" * (MAX_HEAD_BYTES - 20)), 200),  # 20: the rest of the headers
        (head(b"X: " + b"x" * MAX_HEAD_BYTES), 431),
        (head(*(b"X: " + b"x" * 1000 for _ in range(MAX_HEAD_BYTES // 1000 + 1))), 431),
        (head(*(b"X: y" for _ in range(MAX_REQUEST_HEADERS - 1))), 200),
        (head(*(b"X: y" for _ in range(MAX_REQUEST_HEADERS))), 431),
        (head(path=b"/health/live?" + b"x" * (MAX_URL_BYTES - len("/health/live?"))), 200),
        (head(path=b"/health/live?" + b"x" * MAX_URL_BYTES), 414),
        (head(path=b"/" + b"x" * 200_000), 414),
        # heads that never end
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 200_000, 431),
        (b"GET / HTTP/1.1\r\n" + b"x" * 200_000, 431),
        (b"\r\n" * 100_000, 431),
        # not HTTP; the last one is the start of TLS
        (b"nonsense\r\n\r\n", 400),
        (b"GET /health/live HTTP/9.9\r\n\r\n", 400),
        (b"GET http:// HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    ],
    ids=lambda value: repr(value[:20]) if isinstance(value, bytes) else str(value),
)
async def test_only_a_head_that_is_too_large_or_invalid_is_refused(
    content: bytes, status: int
) -> None:
    async with listening(small_app()) as port, talk(port) as client:
        await client.say(content)
        if status == 200:
            assert (await client.answer()).status == 200
            return
        actual_status, headers, _ = await client.answer()
        assert (actual_status, headers["connection"]) == (status, "close")
        assert headers["content-type"] == "application/problem+json"
        assert {name.decode() for name, _ in COMMON_HEADERS} <= headers.keys()
        await client.ended()


async def test_a_trailer_does_not_become_a_header() -> None:
    head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    trailers = b"0\r\nAuthorization: Bearer x\r\nCookie: a=b\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n"
    chunk = b"1\r\nx\r\n"
    async with listening(answer_header_names) as port, talk(port) as client:
        for _ in range(2):  # nor a header of the next request
            await client.say(head + chunk + trailers)
            response = await client.answer()
            assert (response.status, response.body) == (200, b"host transfer-encoding")


@pytest.mark.parametrize(
    "body_start",
    [b"0\r\nX: ", b"1;", b"0\r\n" + b"X: y\r\n" * 200],
    ids=["endless trailer", "endless chunk extension", "many trailers"],
)
async def test_chunk_extensions_and_trailers_are_limited(
    engine: AsyncEngine, body_start: bytes
) -> None:
    app = create_app(engine, settings=OPEN)
    async with listening(app) as port, talk(port) as client:
        await client.say(START_OF_POST + b"Transfer-Encoding: chunked\r\n\r\n" + body_start)
        for _ in range(20):
            client.writer.write(b"x" * 10_000)
            await asyncio.sleep(0)
        await client.ended()


# ---- bodies ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "end_of_post",
    [
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n1\r\n{zz\r\n",
        b"Transfer-Encoding: gzip\r\n\r\n{}",
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: y\r\n" * 200,
    ],
    ids=["chunk", "size", "after a chunk", "coding", "trailers"],
)
async def test_a_malformed_body_is_refused_with_a_problem(
    engine: AsyncEngine, end_of_post: bytes
) -> None:
    app = create_app(engine, settings=OPEN)
    async with listening(app) as port, talk(port) as client:
        await client.say(START_OF_POST + end_of_post)
        status, headers, _ = await client.answer()
        has_too_many_trailers = b"X: y" in end_of_post
        assert status == (431 if has_too_many_trailers else 400)
        assert headers["content-type"] == "application/problem+json"
        assert headers["connection"] == "close"
        await client.ended()


@pytest.mark.parametrize(
    "content",
    [
        START_OF_POST + b"Content-Length: 100\r\n\r\n",
        STUCK_BODY,
        START_OF_POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
        START_OF_POST.replace(b"/clients", b"/mailings/1/pause") + b"Content-Length: 100\r\n\r\n",
        START_OF_POST.replace(b"/api/v1/clients", b"/preferences").replace(
            b"application/json", b"application/x-www-form-urlencoded"
        )
        + b"Sec-Fetch-Site: same-origin\r\nContent-Length: 100\r\n\r\nback=",
    ],
    ids=["no byte arrives", "a part arrives", "chunked", "route takes no body", "form"],
)
async def test_a_body_that_does_not_arrive_in_time_is_408(
    engine: AsyncEngine, content: bytes
) -> None:
    app = create_app(engine, limits=ConnectionLimits(body=0.3), settings=OPEN)
    async with listening(app) as port, talk(port) as slow:
        await slow.say(content)
        async with asyncio.timeout(EVENT_TIMEOUT):
            status, headers, _ = await slow.answer()
        assert (status, headers["connection"]) == (408, "close")
        await slow.ended()


async def test_a_body_of_which_no_part_arrives_ends_the_connection() -> None:
    limits = ConnectionLimits(body_part=0.3)
    async with listening(answer_header_names, limits) as port, talk(port) as slow:
        await slow.say(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n")
        assert await slow.ended() >= 0.2


async def test_a_body_is_awaited_while_the_application_does_not_read_it() -> None:
    may_read = asyncio.Event()

    async def read_late(scope: Any, receive: Any, send: Any) -> None:
        await may_read.wait()
        await answer_header_names(scope, receive, send)

    length = 4_000_000  # more than the buffers of both sides hold
    limits = ConnectionLimits(body_part=0.3)
    async with listening(read_late, limits) as port, talk(port) as client:
        await client.say(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % length)
        sending = asyncio.create_task(client.say(b"x" * length))
        await asyncio.sleep(1)  # three times the timeout
        assert not client.is_ended
        may_read.set()
        async with asyncio.timeout(EVENT_TIMEOUT):
            status, _, _ = await client.answer()
        assert status == 200
        await sending


async def test_the_rest_of_a_body_after_the_response_does_not_extend_the_timeout() -> None:
    async def answer_at_once(_: Any, __: Any, send: Any) -> None:
        headers = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"ok"})

    limits = ConnectionLimits(head=0.5)
    async with listening(answer_at_once, limits, keep_alive=1) as port, talk(port) as slow:
        await slow.say(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        await slow.answer()
        end = asyncio.create_task(slow.ended())
        while not end.done():
            slow.writer.write(b"x")
            await asyncio.sleep(0.1)
        assert await end >= 0.9  # the timeout is keep_alive + head = 1.5


async def test_hundreds_of_stuck_bodies_delay_no_other_client(engine: AsyncEngine) -> None:
    app = create_app(engine, limits=ConnectionLimits(body=5), settings=OPEN)
    async with listening(app) as port, talks(port, count=200) as stuck:
        for connection in stuck:
            await connection.say(STUCK_BODY)
        await served_normally(port)
        await served_normally(port, path="/api/v1/clients")
        assert [await connection.problem() for connection in stuck] == [
            (408, "The request did not arrive in time; try again.")
        ] * 200


async def test_over_the_limit_a_connection_with_a_stuck_body_is_evicted(
    engine: AsyncEngine,
) -> None:
    app = create_app(engine, settings=OPEN)
    async with (
        listening(app, ConnectionLimits(connections=20)) as port,
        talks(port, count=20) as stuck,
    ):
        for connection in stuck:
            await connection.say(STUCK_BODY)
        await served_normally(port)
