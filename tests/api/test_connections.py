"""Clients that are slow, stuck or many, on real sockets: they do not hold others up."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from functools import partial
from typing import Any

import pytest
from litestar import Litestar, get
from litestar.response import ServerSentEvent, Stream
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.patience import PATIENCE
from tests.sample import OPEN, add_clients, do, execute
from tests.served import GET, listening, served_normally, talk, talks

from mailer.access import keys
from mailer.access.model import COMMAND_LINE
from mailer.app import create_app
from mailer.client import upload
from mailer.client.upload import IMPORTS
from mailer.db.copying import CsvPart
from mailer.settings import Settings
from mailer.web.connection import HEAD_LIMIT, MOST_HEADERS, URL_LIMIT, Limits
from mailer.web.download import csv_answer
from mailer.web.edge import served
from mailer.web.headers import COMMON
from mailer.web.turns import BusyError, Turns

BODY = b"POST /api/v1/clients HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
LARGE = 64 * 1024 * 1024
streaming: set[str] = set()
"""What is being streamed at this moment."""


@get("/large")
async def large() -> Stream:
    async def parts() -> AsyncIterator[bytes]:
        streaming.add("large")
        try:
            for _ in range(LARGE // 65_536):
                yield b"x" * 65_536
        finally:
            streaming.discard("large")

    return Stream(parts())


@get("/at-once")
async def at_once() -> bytes:
    return b"x" * LARGE


@get("/events")
async def events() -> ServerSentEvent:
    async def parts() -> AsyncIterator[str]:
        for number in range(100):
            yield str(number)
            await asyncio.sleep(0.3)

    return ServerSentEvent(parts())


@get("/health/live")
async def live() -> str:
    return "ok"


def small() -> Litestar:
    return Litestar([large, at_once, events, live], logging_config=None, openapi_config=None)


async def told_late(scope: Any, receive: Any, send: Any) -> None:
    """Answer with the names of the headers as they are when all of the body has come."""
    while (await receive()).get("more_body"):
        pass
    body = b" ".join(name for name, _ in scope["headers"])
    length = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": length})
    await send({"type": "http.response.body", "body": body})


# ---- heads ----------------------------------------------------------------------------------


@pytest.mark.parametrize("begun", [b"", b"G", b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: "])
async def test_a_head_that_is_not_whole_in_time_ends_the_connection(begun: bytes) -> None:
    async with listening(small(), Limits(head=0.4)) as port, talk(port) as slow:
        await slow.say(begun)
        assert await slow.ended() >= 0.3


async def test_a_head_that_drips_gains_no_time() -> None:
    async with listening(small(), Limits(head=0.5)) as port, talk(port) as slow:
        ended = asyncio.create_task(slow.ended())
        await slow.say(b"GET / HTTP/1.1\r\nX: ")
        while not ended.done():
            slow.writer.write(b"x")
            await asyncio.sleep(0.05)
        assert await ended >= 0.4


@pytest.mark.parametrize("dripped", [b"\r\n", b"GET /health/live HTTP/1.1\r\nX: "])
async def test_what_drips_after_an_answer_gains_no_time(dripped: bytes) -> None:
    limits = Limits(head=0.5)
    async with listening(small(), limits, keep_alive=1) as port, talk(port) as slow:
        await slow.say(GET)
        await slow.answer()
        ended = asyncio.create_task(slow.ended())
        slow.writer.write(dripped)
        while not ended.done():
            slow.writer.write(dripped[-2:])
            await asyncio.sleep(0.1)
        assert await ended >= 1.4


async def test_hundreds_of_slow_heads_hold_nobody_up_and_end_in_time() -> None:
    async with listening(small(), Limits(head=30)) as port, talks(port, 300) as slow:
        for each in slow:
            await each.say(b"GET / HTTP/1.1\r\nHost: ")
        await served_normally(port)
        assert not any(each.is_ended for each in slow)
    async with listening(small(), Limits(head=2)) as port, talks(port, 300) as slow:
        for each in slow:
            await each.say(b"GET / HTTP/1.1\r\nHost: ")
        await asyncio.gather(*(each.ended() for each in slow))


async def test_when_there_are_too_many_who_lets_us_wait_longest_makes_room() -> None:
    limits = Limits(head=60, connections=50)
    async with listening(small(), limits) as port, talks(port, 30) as first:
        for each in first:
            await each.say(b"GET / HTTP/1.1\r\nHost: ")
        async with talks(port, 270) as more:
            for each in more:
                await each.say(b"GET / HTTP/1.1\r\nHost: ")
            await served_normally(port)
            assert all(each.is_ended for each in first)
            kept = [each for each in more if not each.is_ended]
            assert 25 <= len(kept) <= 50
            assert kept == more[-len(kept) :]


async def test_who_is_being_served_is_never_displaced_and_who_is_too_many_is_told() -> None:
    limits = Limits(connections=3)
    async with listening(small(), limits) as port, talks(port, 3) as watching:
        for each in watching:
            await each.say(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
            await each.reader.readuntil(b"data: 0")
        async with talk(port) as late:
            await late.say(GET)
            status, headers, _ = await late.answer()
            assert (status, headers["retry-after"], headers["connection"]) == (503, "1", "close")
            assert {name.decode() for name, _ in COMMON} <= headers.keys()
            await late.ended()
        for each in watching:
            await each.reader.readuntil(b"data: 2")
        watching[0].writer.close()
        async with asyncio.timeout(PATIENCE):
            while not await has_room(port):
                await asyncio.sleep(0.02)
        await served_normally(port, 3)


async def has_room(port: int) -> bool:
    async with talk(port) as late:
        await late.say(GET)
        return (await late.answer())[0] == 200


# ---- sizes of heads -------------------------------------------------------------------------


def head(*headers: bytes, path: bytes = b"/health/live") -> bytes:
    return b"\r\n".join([b"GET " + path + b" HTTP/1.1", b"Host: localhost", *headers, b"", b""])


@pytest.mark.parametrize(
    ("given", "status"),
    [
        (head(b"X: " + b"x" * (HEAD_LIMIT - 20)), 200),
        (head(b"X: " + b"x" * HEAD_LIMIT), 431),
        (head(*(b"X: " + b"x" * 1000 for _ in range(HEAD_LIMIT // 1000 + 1))), 431),
        (head(*(b"X: y" for _ in range(MOST_HEADERS - 1))), 200),
        (head(*(b"X: y" for _ in range(MOST_HEADERS))), 431),
        (head(path=b"/health/live?" + b"x" * (URL_LIMIT - 13)), 200),
        (head(path=b"/health/live?" + b"x" * URL_LIMIT), 414),
        (head(path=b"/" + b"x" * 200_000), 414),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 200_000, 431),
        (b"GET / HTTP/1.1\r\n" + b"x" * 200_000, 431),
        (b"\r\n" * 100_000, 431),
        (b"nonsense\r\n\r\n", 400),
        (b"GET /health/live HTTP/9.9\r\n\r\n", 400),
        (b"GET http:// HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    ],
    ids=lambda value: repr(value[:20]) if isinstance(value, bytes) else str(value),
)
async def test_what_is_too_large_or_no_http_is_refused(given: bytes, status: int) -> None:
    async with listening(small()) as port, talk(port) as client:
        await client.say(given)
        if status == 200:
            assert (await client.answer())[0] == 200
            return
        answered, headers, _ = await client.answer()
        assert (answered, headers["connection"]) == (status, "close")
        assert headers["content-type"] == "application/problem+json"
        assert {name.decode() for name, _ in COMMON} <= headers.keys()
        await client.ended()


async def test_a_trailer_is_no_header() -> None:
    head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    trailers = b"0\r\nAuthorization: Bearer x\r\nCookie: a=b\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n"
    async with listening(told_late) as port, talk(port) as sly:
        for _ in range(2):
            await sly.say(head + b"1\r\nx\r\n" + trailers)
            assert (await sly.answer())[::2] == (200, b"host transfer-encoding")


@pytest.mark.parametrize(
    "rest", [b"0\r\nX: ", b"1;", b"0\r\n" + b"X: y\r\n" * 200], ids=["trailer", "extension", "many"]
)
async def test_what_stands_about_a_body_is_bounded_too(engine: AsyncEngine, rest: bytes) -> None:
    app = create_app(engine, settings=OPEN)
    async with listening(app) as port, talk(port) as client:
        await client.say(BODY + b"Transfer-Encoding: chunked\r\n\r\n" + rest)
        for _ in range(20):
            client.writer.write(b"x" * 10_000)
            await asyncio.sleep(0)
        await client.ended()


# ---- bodies ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rest",
    [
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n1\r\n{zz\r\n",
        b"Transfer-Encoding: gzip\r\n\r\n{}",
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: y\r\n" * 200,
    ],
    ids=["chunk", "size", "after a chunk", "coding", "trailers"],
)
async def test_a_body_that_breaks_off_is_refused_in_words(engine: AsyncEngine, rest: bytes) -> None:
    app = create_app(engine, settings=OPEN)
    async with listening(app) as port, talk(port) as client:
        await client.say(BODY + rest)
        status, headers, _ = await client.answer()
        assert status == (431 if b"X: y" in rest else 400)
        assert headers["content-type"] == "application/problem+json"
        assert headers["connection"] == "close"
        await client.ended()


@pytest.mark.parametrize(
    "begun",
    [
        BODY + b"Content-Length: 100\r\n\r\n",
        BODY + b'Content-Length: 100\r\n\r\n{"phone": ',
        BODY + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
        BODY.replace(b"/clients", b"/mailings/1/pause") + b"Content-Length: 100\r\n\r\n",
        BODY.replace(b"/api/v1/clients", b"/preferences").replace(
            b"application/json", b"application/x-www-form-urlencoded"
        )
        + b"Sec-Fetch-Site: same-origin\r\nContent-Length: 100\r\n\r\nback=",
    ],
    ids=["nothing", "a part", "chunked", "none wanted", "a form"],
)
async def test_a_body_that_does_not_come_in_time_is_408(engine: AsyncEngine, begun: bytes) -> None:
    app = create_app(engine, limits=Limits(body=0.3), settings=OPEN)
    async with listening(app) as port, talk(port) as slow:
        await slow.say(begun)
        async with asyncio.timeout(PATIENCE):
            status, headers, _ = await slow.answer()
        assert (status, headers["connection"]) == (408, "close")
        await slow.ended()


async def test_hundreds_of_stuck_bodies_hold_nobody_up(engine: AsyncEngine) -> None:
    app = create_app(engine, limits=Limits(body=5), settings=OPEN)
    async with listening(app) as port, talks(port, 200) as stuck:
        for each in stuck:
            await each.say(BODY + b'Content-Length: 100\r\n\r\n{"phone": ')
        await served_normally(port)
        await served_normally(port, path="/api/v1/clients")
        assert [await each.problem() for each in stuck] == [
            (408, "The request did not arrive in time; try again.")
        ] * 200


async def test_a_stuck_body_makes_room_when_there_are_too_many(engine: AsyncEngine) -> None:
    app = create_app(engine, settings=OPEN)
    async with listening(app, Limits(connections=20)) as port, talks(port, 20) as stuck:
        for each in stuck:
            await each.say(BODY + b'Content-Length: 100\r\n\r\n{"phone": ')
        await served_normally(port)


# ---- readers --------------------------------------------------------------------------------


async def test_who_takes_nothing_of_an_answer_is_cut() -> None:
    limits = Limits(reader=0.5)
    async with listening(small(), limits) as port, talk(port, takes_little=True) as stuck:
        await stuck.say(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(PATIENCE):
            while not streaming:
                await asyncio.sleep(0.01)
            await served_normally(port)
            while streaming:
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("path", ["/large", "/at-once"])
async def test_who_takes_an_answer_slowly_gets_all_of_it(path: str) -> None:
    limits = Limits(head=0.2, reader=5)
    async with listening(small(), limits, keep_alive=1) as port, talk(port) as slow:
        await slow.say(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        taken, pause = 0, 1
        while taken < LARGE:
            part = await slow.reader.read(LARGE // 20)
            assert part, f"cut after {taken}"
            taken += len(part)
            if taken > pause * LARGE / 10:
                pause += 1
                await asyncio.sleep(0.2)


async def test_the_rest_of_a_whole_answer_is_not_kept_for_ever() -> None:
    """It is too little for the server to wait with, and too much for the sockets."""
    sent = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal sent
        del scope
        headers = [(b"connection", b"close")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        transport = receive.__self__.transport
        while not transport.get_write_buffer_size():
            sent += 4096
            await send({"type": "http.response.body", "body": b"x" * 4096, "more_body": True})
        await send({"type": "http.response.body"})

    limits = Limits(head=0.3, reader=0.3)
    async with listening(app, limits) as port, talk(port, takes_little=True) as stuck:
        await stuck.say(GET)
        await asyncio.sleep(1.5)
        taken = 0
        with contextlib.suppress(ConnectionError):
            while part := await stuck.reader.read(1_000_000):
                taken += part.count(b"x")
        assert taken < sent


async def test_events_go_on_through_every_limit() -> None:
    limits = Limits(head=0.2, body=0.2, reader=0.2)
    async with listening(small(), limits, keep_alive=1) as port, talk(port) as watching:
        await watching.say(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
        await watching.reader.readuntil(b"data: 6")


async def test_stuck_downloads_hold_neither_connections_nor_others(engine: AsyncEngine) -> None:
    await add_clients(engine, 60_000)
    await execute(engine, "UPDATE client SET tag = repeat('x', 64)")
    app = served(create_app(engine, settings=OPEN), Settings())
    asked = b"GET /api/v1/clients HTTP/1.1\r\nHost: x\r\nAccept: text/csv\r\n\r\n"
    async with (
        listening(app, Limits(reader=4)) as port,
        talks(port, 40, takes_little=True) as stuck,
    ):
        for each in stuck:
            await each.say(asked)
        async with asyncio.timeout(PATIENCE):
            for is_used in (True, False):  # they have read something, and hold nothing meanwhile
                while bool(engine.pool.checkedout()) != is_used:  # type: ignore[attr-defined]  # the pool's own
                    await asyncio.sleep(0.001)
        await served_normally(port, path="/api/v1/clients?limit=1")
        async with asyncio.timeout(PATIENCE):
            while not await is_downloaded(port, asked):
                await asyncio.sleep(0.1)


async def is_downloaded(port: int, asked: bytes) -> bool:
    """Download all of it; False when no turn has come: those before it are still to be cut."""
    async with talk(port) as patient:
        await patient.say(asked)
        status, _, _ = await patient.answer()
        if status == 503:
            return False
        end = b""
        while not end.endswith(b"\r\n0\r\n\r\n"):
            part = await patient.reader.read(1_000_000)
            assert part
            end = (end + part)[-100:]
        return True


async def test_who_waits_too_long_for_a_turn_is_told_when_to_come_again(
    engine: AsyncEngine,
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(IMPORTS):
            await stack.enter_async_context(upload.TURNS.turn(None))
        async with listening(create_app(engine, settings=OPEN)) as port, talk(port) as late:
            await late.say(
                b"POST /api/v1/clients/import HTTP/1.1\r\nHost: x\r\nContent-Type: text/csv\r\n"
                b"Content-Length: 6\r\n\r\nphone\n"
            )
            status, headers, _ = await late.answer()
    assert (status, headers["retry-after"]) == (503, "30")


async def test_a_download_gives_its_turn_back_however_it_ends() -> None:
    async def endless() -> AsyncGenerator[CsvPart, None]:
        while True:
            yield CsvPart(b"x", 1)

    turns = Turns(1, each=1, patience=0.1)
    first = await csv_answer("x.csv", endless(), None, turns)
    with pytest.raises(BusyError):
        await csv_answer("x.csv", endless(), None, turns)

    async def gone() -> Any:
        return {"type": "http.disconnect"}

    async def refused(message: Any) -> None:
        raise ConnectionResetError(str(message["type"]))

    respond = first.to_asgi_response(None, None)
    with pytest.raises(ConnectionResetError):
        await respond({"type": "http"}, gone, refused)  # type: ignore[arg-type]  # a part of a scope
    await csv_answer("x.csv", endless(), None, turns)


async def test_of_one_owner_no_more_have_a_turn_than_each_may() -> None:
    turns = Turns(3, each=2, patience=0.1)
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(2):
            await stack.enter_async_context(turns.turn(("key", 1)))
        waiting = [asyncio.create_task(is_too_busy(turns, ("key", 1))) for _ in range(5)]
        await asyncio.sleep(0.01)
        async with turns.turn(("key", 2)):  # those who wait for their own stand in nobody's way
            assert all(await asyncio.gather(*waiting))
            assert await is_too_busy(turns, ("key", 3))  # there is none left
    for _ in range(5):
        assert not await is_too_busy(turns, ("key", 1))


async def is_too_busy(turns: Turns, owner: tuple[str, int]) -> bool:
    """Whether no turn comes."""
    try:
        async with turns.turn(owner):
            return False
    except BusyError:
        return True


async def test_a_key_has_one_import_at_once_and_another_has_its_own(engine: AsyncEngine) -> None:
    upload_head = (
        "POST /api/v1/clients/import HTTP/1.1\r\nHost: x\r\nContent-Type: text/csv\r\n"
        "Authorization: Bearer {}\r\nContent-Length: {}\r\n\r\nphone\n"
    )
    secrets = []
    for name in ("a", "b"):
        new = keys.NewKey(name=name, scope="write")
        secrets.append((await do(engine, partial(keys.add, new=new, by=COMMAND_LINE)))[1])
    async with listening(create_app(engine)) as port, talks(port, 3) as [slow, same, other]:
        await slow.say(upload_head.format(secrets[0], 100).encode())
        async with asyncio.timeout(PATIENCE):
            while not await is_too_busy(upload.TURNS, ("key", 1)):
                await asyncio.sleep(0.01)
        await same.say(upload_head.format(secrets[0], 6).encode())
        await other.say(upload_head.format(secrets[1], 6).encode())
        assert (await other.answer())[0] == 200
        status, headers, _ = await same.answer()
    assert (status, headers["retry-after"]) == (503, "30")
