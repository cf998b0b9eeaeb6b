"""What each answer of a gateway means, on real sockets: the contract's section 5, line by line."""

import asyncio
import gzip
import json
import math
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from tests.wire import OK, a_request, answer, gateway_at, request_of, says, send, sent_to, served

from mailer.gateway.http import ANSWER_LIMIT
from mailer.gateway.port import Accepted, Outcome, Refused, Unavailable, Unknown
from mailer.gateway.sandbox import Faults, SandboxGateway

REFUSALS = (400, 404, 405, 410, 413, 415, 422)
WRONG_TOKEN = (401, 403)
BUSY = (429, 503)

# ---- the request ----------------------------------------------------------------------------


async def test_a_request_is_what_the_protocol_says() -> None:
    seen: list[tuple[str, dict[str, str], bytes]] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await request_of(reader))
        writer.write(answer(200, OK))

    async with served(talk) as url, gateway_at(url, "secret") as gateway:
        assert await send(gateway, a_request(7, 'Привет, "мир" 😀\n')) == Accepted()
    [(line, headers, body)] = seen
    assert line == "POST /send/7 HTTP/1.1"
    assert headers["authorization"] == "Bearer secret"
    assert headers["content-type"] == "application/json"
    assert json.loads(body) == {"id": 7, "phone": 79161234567, "text": 'Привет, "мир" 😀\n'}


async def test_without_a_token_there_is_no_authorization() -> None:
    seen: list[dict[str, str]] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append((await request_of(reader))[1])
        writer.write(answer(200, OK))

    assert await sent_to(talk) == Accepted()
    assert "authorization" not in seen[0]


# ---- with the sandbox -----------------------------------------------------------------------


async def test_the_sandbox_takes_what_is_sent() -> None:
    sandbox = SandboxGateway(Faults(), token="secret")  # noqa: S106  # no secret of anybody's
    async with sandbox.run() as url, gateway_at(url, "secret") as gateway:
        outcomes = await asyncio.gather(
            *(send(gateway, a_request(n, "x" * 1600)) for n in range(1, 101))
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
                Unavailable("http_503", 1, is_for_all=True),
            },
        ),
    ],
)
async def test_the_sandboxes_faults_are_told_apart(
    faults: dict[str, float], outcomes: set[Outcome]
) -> None:
    sandbox = SandboxGateway(Faults(**faults))  # type: ignore[arg-type]  # the seed is a whole number
    async with sandbox.run() as url, gateway_at(url) as gateway:
        found = await asyncio.gather(*(send(gateway, a_request(n, within=1)) for n in range(1, 31)))
    assert set(found) == outcomes


async def test_a_wrong_token_is_the_gateways_affair_and_not_the_messages() -> None:
    sandbox = SandboxGateway(Faults(), token="secret")  # noqa: S106  # no secret of anybody's
    async with sandbox.run() as url, gateway_at(url, "wrong") as gateway:
        assert await send(gateway) == Unavailable("http_401", is_for_all=True)


# ---- 200 ------------------------------------------------------------------------------------


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
async def test_200_with_code_0_is_delivered(raw: bytes) -> None:
    assert await sent_to(says(raw)) == Accepted()


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
    ],
    ids=lambda body: body[:24].decode(errors="replace") or "empty",
)
async def test_200_with_anything_else_is_a_bad_response(body: bytes) -> None:
    assert await sent_to(says(answer(200, body))) == Unavailable("bad_response")


@pytest.mark.parametrize(
    "body",
    [b'{"code":0,"x":"' + b"x" * (ANSWER_LIMIT - 16) + b'"}', b'{"code":0}' + b" " * 1_000_000],
    ids=["a byte more", "much more"],
)
async def test_200_over_64_kib_is_a_bad_response(body: bytes) -> None:
    assert len(body) > ANSWER_LIMIT == 65_536
    raw = answer(200, body)
    assert await sent_to(says(raw)) == Unavailable("bad_response")
    in_two = says(raw[:-1], raw[-1:], every=0.02)
    assert await sent_to(in_two) == Unavailable("bad_response")


async def test_an_answer_that_never_ends_is_read_to_the_limit_alone() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b" " * 10_000)
            await writer.drain()

    assert await sent_to(talk) == Unavailable("bad_response")


async def test_headers_that_never_end_are_not_read_for_ever() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            writer.write(b"X: " + b"x" * 1000 + b"\r\n")
            await writer.drain()

    assert await sent_to(talk) == Unknown("connection_lost")


async def test_a_compressed_answer_is_limited_as_it_unfolds() -> None:
    raw = answer(200, gzip.compress(b" " * 20_000_000), "Content-Encoding: gzip")
    assert await sent_to(says(raw)) == Unavailable("bad_response")


async def test_an_answer_that_cannot_be_unfolded_is_a_bad_response() -> None:
    raw = answer(200, b"not gzip at all", "Content-Encoding: gzip")
    assert await sent_to(says(raw)) == Unavailable("bad_response")


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
async def test_what_is_no_http_is_an_outcome_too(raw: bytes) -> None:
    assert await sent_to(says(raw)) in {Unknown("connection_lost"), Unavailable("bad_response")}


# ---- any other status -----------------------------------------------------------------------


@pytest.mark.parametrize("status", REFUSALS)
async def test_a_refusal_is_final_and_names_its_status(status: int) -> None:
    raw = answer(status, OK, "Retry-After: 5")
    assert await sent_to(says(raw)) == Refused(f"rejected_{status}")


@pytest.mark.parametrize("status", WRONG_TOKEN)
async def test_a_wrong_token_is_so_for_all_messages(status: int) -> None:
    outcome = Unavailable(f"http_{status}", is_for_all=True)
    assert await sent_to(says(answer(status, OK))) == outcome
    outcome = Unavailable(f"http_{status}", 17, is_for_all=True)
    assert await sent_to(says(answer(status, OK, "Retry-After: 17"))) == outcome


@pytest.mark.parametrize("status", BUSY)
async def test_a_busy_gateway_speaks_for_all_messages_when_it_says_for_how_long(
    status: int,
) -> None:
    assert await sent_to(says(answer(status))) == Unavailable(f"http_{status}")
    outcome = Unavailable(f"http_{status}", 17, is_for_all=True)
    assert await sent_to(says(answer(status, b"", "Retry-After: 17"))) == outcome


@pytest.mark.parametrize("status", [408, 425, 500, 502, 504, 599, 301, 307, 202, 418])
async def test_retry_after_of_another_status_is_for_the_message_alone(status: int) -> None:
    raw = answer(status, b"", "Retry-After: 17")
    assert await sent_to(says(raw)) == Unavailable(f"http_{status}", 17)


async def test_every_other_status_is_temporary() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            status = int((await request_of(reader))[0].split()[1].rpartition("/")[2])
            writer.write(answer(status, OK if status not in {204, 304} else b""))

    others = set(range(201, 600)) - {*REFUSALS, *WRONG_TOKEN}
    async with served(talk) as url, gateway_at(url) as gateway:
        found = {status: await send(gateway, a_request(status)) for status in others}
    assert found == {status: Unavailable(f"http_{status}") for status in others}


async def test_a_status_alone_is_an_answer_however_little_comes_after_it() -> None:
    assert await sent_to(says(answer(400, OK)[:-5])) == Refused("rejected_400")
    assert await sent_to(says(answer(503, OK)[:-5])) == Unavailable("http_503")


async def test_a_redirect_is_not_followed() -> None:
    seen: list[str] = []

    async def elsewhere(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append((await request_of(reader))[0])
        writer.write(answer(200, OK))

    async with served(elsewhere) as target:
        for status in (301, 302, 303, 307, 308):
            raw = answer(status, b"", f"Location: {target}7")
            assert await sent_to(says(raw)) == Unavailable(f"http_{status}")
    assert seen == []


# ---- Retry-After ----------------------------------------------------------------------------


async def test_retry_after_may_be_a_date() -> None:
    later = datetime.now(UTC) + timedelta(seconds=100)
    raw = answer(503, b"", f"Retry-After: {format_datetime(later, usegmt=True)}")
    outcome = await sent_to(says(raw))
    assert isinstance(outcome, Unavailable)
    assert outcome.is_for_all
    assert outcome.retry_after is not None
    assert 97 < outcome.retry_after <= 100  # a date has whole seconds


@pytest.mark.parametrize(
    "value", ["soon", "-1", "Wed, 21 Oct 2015 07:28:00 +99999999999999", ""], ids=repr
)
async def test_a_retry_after_that_makes_no_sense_asks_for_nothing(value: str) -> None:
    raw = answer(503, b"", f"Retry-After: {value}")
    assert await sent_to(says(raw)) == Unavailable("http_503")


async def test_a_retry_after_however_long_is_a_number() -> None:
    outcome = await sent_to(says(answer(503, b"", f"Retry-After: {'9' * 5000}")))
    assert isinstance(outcome, Unavailable)
    assert outcome.retry_after is not None
    assert math.isfinite(outcome.retry_after)
