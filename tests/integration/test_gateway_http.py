"""HttpGateway on real sockets: each row of the contract's table of answers (section 5)."""

import asyncio
import contextlib
import gzip
import json
import math
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager

import pytest

from mailer.gateway.http import ANSWER_LIMIT, HttpGateway
from mailer.gateway.port import Accepted, Outcome, Refused, Unavailable, Unknown
from mailer.gateway.sandbox import Faults, SandboxGateway

OK = b'{"code": 0, "message": "OK"}'
RESET_ON_CLOSE = struct.pack("ii", 1, 0)

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Serve = Callable[[Talk], Awaitable[str]]


def answer(status: int, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


async def request_of(reader: asyncio.StreamReader) -> tuple[str, dict[str, str], bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in head[1:] if line)}
    return head[0], headers, await reader.readexactly(int(headers["content-length"]))


def says(raw: bytes) -> Talk:
    """Read a request, send `raw` as it is, and close."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(raw)
        await writer.drain()

    return talk


def reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    writer.transport.abort()


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Start raw servers on loopback; each gives the URL for a gateway."""
    async with contextlib.AsyncExitStack() as stack:
        tasks: set[asyncio.Task[None]] = set()

        async def start(talk: Talk) -> str:
            async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                task = asyncio.current_task()
                assert task is not None
                tasks.add(task)
                with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                    await talk(reader, writer)
                writer.close()

            server = await asyncio.start_server(connected, "127.0.0.1", 0)
            stack.callback(server.close)
            return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/send/"

        yield start
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def gateway_at(url: str, token: str | None = None) -> AbstractAsyncContextManager[HttpGateway]:
    return HttpGateway(url, token, concurrency=5)


async def send(url: str, within: float = 5) -> Outcome:
    async with gateway_at(url) as gateway:
        return await gateway.send(7, "79161234567", "Hello", within)


# ---- the request ----------------------------------------------------------------------------


async def test_a_request_is_what_the_protocol_says(serve: Serve) -> None:
    seen: list[tuple[str, dict[str, str], bytes]] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await request_of(reader))
        writer.write(answer(200, OK))

    async with gateway_at(await serve(talk), "secret") as gateway:
        outcome = await gateway.send(7, "79161234567", 'Привет, "мир" 😀\n', 5)
    assert outcome == Accepted()
    [(line, headers, body)] = seen
    assert line == "POST /send/7 HTTP/1.1"
    assert headers["authorization"] == "Bearer secret"
    assert headers["content-type"] == "application/json"
    assert json.loads(body) == {"id": 7, "phone": 79161234567, "text": 'Привет, "мир" 😀\n'}


async def test_without_a_token_there_is_no_authorization(serve: Serve) -> None:
    seen: list[dict[str, str]] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append((await request_of(reader))[1])
        writer.write(answer(200, OK))

    assert await send(await serve(talk)) == Accepted()
    assert "authorization" not in seen[0]


async def test_the_sandbox_takes_what_is_sent() -> None:
    sandbox = SandboxGateway(Faults(), token="secret")  # noqa: S106  # no secret of anybody's
    async with sandbox.run() as url, gateway_at(url, "secret") as gateway:
        outcomes = await asyncio.gather(
            *(gateway.send(n, "79161234567", "x" * 1600, 5) for n in range(1, 101))
        )
    assert set(outcomes) == {Accepted()}
    assert (sandbox.counts.accepted, sandbox.counts.repeats) == (100, 0)


@pytest.mark.parametrize(
    ("faults", "outcomes"),
    [
        ({"reject_rate": 1.0}, {Refused("rejected_400")}),
        ({"malformed_rate": 1.0}, {Unavailable("bad_response")}),
        ({"reset_rate": 1.0}, {Unknown("connection_lost")}),
        # who still waits for a connection of the pool was not sent
        ({"hang_rate": 1.0}, {Unknown("timeout"), Unavailable("connection_failed")}),
        (
            {"error_rate": 1.0, "seed": 1},
            {
                Unavailable("http_500"),
                Unavailable("http_502"),
                Unavailable("http_503"),
                Unavailable("http_503", 1),
            },
        ),
    ],
)
async def test_the_sandboxes_faults_are_told_apart(
    faults: dict[str, float], outcomes: set[Outcome]
) -> None:
    sandbox = SandboxGateway(Faults(**faults))  # type: ignore[arg-type]  # the seed is a whole number
    async with sandbox.run() as url, gateway_at(url) as gateway:
        found = await asyncio.gather(
            *(gateway.send(n, "79161234567", "Hello", 0.5) for n in range(1, 31))
        )
    assert outcomes >= set(found)


async def test_a_wrong_token_is_temporary_for_the_message() -> None:
    sandbox = SandboxGateway(Faults(), token="secret")  # noqa: S106  # no secret of anybody's
    async with sandbox.run() as url, gateway_at(url, "wrong") as gateway:
        assert await gateway.send(7, "79161234567", "Hello", 5) == Unavailable("http_401")


# ---- answers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [
        answer(200, OK),
        answer(200, b'{"code":0}'),
        answer(200, b' \n{"x": [1, {}], "code" : 0, "id": 7}\n'),
        answer(200, OK, "Content-Type: text/html"),
        answer(200, gzip.compress(OK), "Content-Encoding: gzip"),
        answer(200, b'{"code":0,"x":"' + b"x" * (ANSWER_LIMIT - 17) + b'"}'),
        b"HTTP/1.0 200 OK\r\n\r\n" + OK,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n" + OK[:5] + b"\r\n"
        b"17\r\n" + OK[5:] + b"\r\n0\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n" + answer(200, OK),
    ],
    ids=["plain", "bare", "more", "html", "gzip", "64 KiB", "http 1.0", "chunked", "hints"],
)
async def test_200_with_code_0_is_delivered(serve: Serve, raw: bytes) -> None:
    assert await send(await serve(says(raw))) == Accepted()


@pytest.mark.parametrize("status", [400, 404, 405, 410, 413, 415, 422])
async def test_a_refusal_is_final_and_names_its_status(serve: Serve, status: int) -> None:
    raw = answer(status, OK, "Retry-After: 5")
    assert await send(await serve(says(raw))) == Refused(f"rejected_{status}")


@pytest.mark.parametrize(
    "status",
    [
        *(401, 403),
        *(408, 425, 429, 500, 501, 502, 503, 504, 511, 599),
        *(300, 301, 302, 303, 304, 307, 308),
        *(201, 202, 204, 206, 402, 406, 409, 411, 412, 414, 418, 421, 423, 424, 426, 428, 431, 451),
    ],
)
async def test_any_other_status_is_temporary(serve: Serve, status: int) -> None:
    raw = answer(status, OK if status not in {204, 304} else b"", "Location: /send/elsewhere")
    assert await send(await serve(says(raw))) == Unavailable(f"http_{status}")


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
async def test_retry_after_is_handed_on(serve: Serve, status: int) -> None:
    raw = answer(status, b"", "Retry-After: 17")
    assert await send(await serve(says(raw))) == Unavailable(f"http_{status}", 17)


@pytest.mark.parametrize(
    "value", ["soon", "-1", "Wed, 21 Oct 2015 07:28:00 +99999999999999", "", "9" * 5000]
)
async def test_a_retry_after_that_makes_no_sense_does_no_harm(serve: Serve, value: str) -> None:
    outcome = await send(await serve(says(answer(503, b"", f"Retry-After: {value}"))))
    assert isinstance(outcome, Unavailable)
    assert outcome.reason == "http_503"


async def test_a_redirect_is_not_followed(serve: Serve) -> None:
    seen: list[str] = []

    async def elsewhere(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append((await request_of(reader))[0])
        writer.write(answer(200, OK))

    target = await serve(elsewhere)
    raw = answer(307, b"", f"Location: {target}7")
    assert await send(await serve(says(raw))) == Unavailable("http_307")
    assert seen == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"OK",
        b"<html>",
        b"null",
        b"0",
        b"[]",
        b'["code", 0]',
        b"{}",
        b'{"message": "OK"}',
        b'{"code": 1}',
        b'{"code": -1}',
        b'{"code": null}',
        b'{"code": "0"}',
        b'{"code": false}',
        b'{"code": 0.5}',
        b'{"code": [0]}',
        b'{"Code": 0}',
        b'{"code": 0',
        b'{"code": 0}{"code": 0}',
        b'{"code": ' + b"9" * 5000 + b"}",
        b"\xff\xfe",
        b"[" * 60_000,
        b'{"code":0,"x":"' + b"x" * (ANSWER_LIMIT - 16) + b'"}',
        b'{"code":0}' + b" " * 1_000_000,
    ],
    ids=lambda body: body[:24].decode(errors="replace") or "empty",
)
async def test_200_with_anything_else_is_a_bad_response(serve: Serve, body: bytes) -> None:
    assert await send(await serve(says(answer(200, body)))) == Unavailable("bad_response")


async def test_an_answer_without_end_is_read_to_the_limit_alone(serve: Serve) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b" " * 10_000)
            await writer.drain()

    assert await send(await serve(talk), within=30) == Unavailable("bad_response")


async def test_a_compressed_answer_is_limited_as_it_unfolds(serve: Serve) -> None:
    bomb = gzip.compress(b" " * 100_000_000)
    raw = answer(200, bomb, "Content-Encoding: gzip")
    assert await send(await serve(says(raw)), within=30) == Unavailable("bad_response")


async def test_an_answer_that_cannot_be_unfolded_is_a_bad_response(serve: Serve) -> None:
    raw = answer(200, b"not gzip at all", "Content-Encoding: gzip")
    assert await send(await serve(says(raw))) == Unavailable("bad_response")


# ---- nothing was written --------------------------------------------------------------------


async def test_a_refused_connection_is_temporary() -> None:
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unheard.getsockname()[1]}/send/"
        assert await send(url) == Unavailable("connection_failed")


async def test_a_name_that_nobody_knows_is_temporary() -> None:
    assert await send("http://gateway.invalid/send/") == Unavailable("connection_failed")


async def test_a_failure_of_tls_is_temporary(serve: Serve) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(answer(400))
        await writer.drain()

    url = (await serve(talk)).replace("http:", "https:")
    assert await send(url) == Unavailable("connection_failed")


async def test_a_connection_reset_during_tls_is_temporary(serve: Serve) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        reset(writer)

    url = (await serve(talk)).replace("http:", "https:")
    assert await send(url) == Unavailable("connection_failed")


async def test_time_that_runs_out_during_tls_is_temporary(serve: Serve) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        del writer
        await reader.read()

    url = (await serve(talk)).replace("http:", "https:")
    assert await send(url, within=0.3) == Unavailable("connection_failed")


async def test_time_that_runs_out_before_the_connection_stands_is_temporary() -> None:
    with contextlib.ExitStack() as sockets:
        full = sockets.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(3):  # what the kernel keeps before it answers no more
            filler = sockets.enter_context(socket.socket())
            filler.setblocking(False)  # noqa: FBT003  # the socket module's own way
            filler.connect_ex(full.getsockname())
        url = f"http://127.0.0.1:{full.getsockname()[1]}/send/"
        assert await send(url, within=0.5) == Unavailable("connection_failed")


async def test_a_connection_that_the_gateway_closed_meanwhile_is_not_used_again(
    serve: Serve,
) -> None:
    url = await serve(says(answer(200, OK, "Connection: keep-alive")))
    async with gateway_at(url) as gateway:
        for number in (1, 2, 3):
            assert await gateway.send(number, "79161234567", "Hello", 5) == Accepted()
            await asyncio.sleep(0.05)


async def test_a_connection_is_kept_for_the_next_message(serve: Serve) -> None:
    connections = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while True:
            await request_of(reader)
            writer.write(answer(200, OK))

    async with gateway_at(await serve(talk)) as gateway:
        for number in range(1, 6):
            assert await gateway.send(number, "79161234567", "Hello", 5) == Accepted()
    assert connections == 1


# ---- it was written, and then? --------------------------------------------------------------


@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 200 OK\r\n", answer(200, OK)[:-5]])
async def test_time_that_runs_out_after_the_request_leaves_it_unknown(
    serve: Serve, begun: bytes
) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(begun)
        await reader.read()

    assert await send(await serve(talk), within=0.3) == Unknown("timeout")


async def test_a_request_is_cut_to_the_moment_and_not_to_the_full_second(serve: Serve) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        del writer
        await reader.read()

    clock = asyncio.get_running_loop().time
    url = await serve(talk)
    async with gateway_at(url) as gateway:
        start = clock()
        within = 5.05 + math.ceil(start) - start  # aiohttp rounds up what is over five seconds
        outcome = await gateway.send(7, "79161234567", "Hello", within)
    assert outcome == Unknown("timeout")
    assert clock() - start < within + 0.5


@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 200 OK\r\n", answer(200, OK)[:-5]])
@pytest.mark.parametrize("is_reset", [True, False])
async def test_a_connection_lost_after_the_request_leaves_it_unknown(
    serve: Serve,
    begun: bytes,
    is_reset: bool,  # noqa: FBT001  # given by the table
) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(begun)
        await writer.drain()
        await asyncio.sleep(0.05)
        if is_reset:
            reset(writer)

    assert await send(await serve(talk)) == Unknown("connection_lost")


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"\x00\x01\x02\x03\r\n\r\n",
        b"HTTP/1.1 OK 200\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n" + OK,
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_what_is_no_http_is_an_outcome_too(serve: Serve, raw: bytes) -> None:
    outcome = await send(await serve(says(raw)))
    assert outcome in {Unknown("connection_lost"), Unavailable("bad_response")}


async def test_a_cancelled_request_is_cut(serve: Serve) -> None:
    is_cut = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        del writer
        await request_of(reader)
        await reader.read()
        is_cut.set()

    async with gateway_at(await serve(talk)) as gateway:
        sending = asyncio.create_task(gateway.send(7, "79161234567", "Hello", 30))
        await asyncio.sleep(0.1)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        async with asyncio.timeout(2):
            await is_cut.wait()
