"""Requests to the gateway, and the outcomes of its responses, over real sockets.

A server of the test stands in for the gateway.
"""

import asyncio
import base64
import gzip
import json
import zlib
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from tests.fault_servers import (
    OK,
    AcceptingServer,
    create_request,
    gateway_at,
    http_response,
    read_request,
    respond_with,
    send,
    send_to,
    served,
)

from mailer.gateway.aiohttp_connection import MAX_INTERIM_RESPONSES
from mailer.gateway.config import ConfiguredGateway
from mailer.gateway.config_table import GatewayConfig
from mailer.gateway.http import HttpGateway
from mailer.gateway.profile_file import load_profile
from mailer.gateway.protocol import Accepted, Outcome, Rejected, TemporaryFailure, Unknown
from mailer.gateway.response import MAX_RESPONSE_BODY_BYTES
from mailer.gateway.sandbox import Faults, SandboxGateway
from mailer.urls import read_gateway_url

MAX_RETRY_AFTER = 900
"""Most seconds that the gateway can ask to wait, by default; a longer wait is shortened to it."""
REFUSALS = (400, 404, 405, 410, 413, 415, 422)
"""Statuses of a permanent refusal."""
WRONG_TOKEN = (401, 403)
"""Statuses of a refusal of all messages."""
BUSY = (429, 503)
"""Statuses of a gateway that is overloaded, or that limits the rate."""

# ---- the request ----------------------------------------------------------------------------


async def test_a_request_follows_the_protocol() -> None:
    server, text = AcceptingServer(), 'Привет, "мир" 😀\n'
    async with served(server.talk) as url, gateway_at(url, "secret") as gateway:
        assert await send(gateway, create_request(7, text)) == Accepted()
    [request] = server.requests
    assert request.line == "POST /send/7 HTTP/1.1"
    assert request.headers["authorization"] == "Bearer secret"
    assert request.headers["content-type"] == "application/json"
    assert json.loads(request.body) == {"id": 7, "phone": 79161234567, "text": text}


@pytest.mark.parametrize("token", ["a\r\nX: b", "a\n", "a\0", "\u044f"])
def test_a_token_invalid_in_a_header_is_refused(token: str) -> None:
    with pytest.raises(ValueError, match="printable ASCII"):
        gateway_at("http://localhost/", token)


async def test_without_a_token_there_is_no_authorization() -> None:
    server = AcceptingServer()
    assert await send_to(server.talk) == Accepted()
    [request] = server.requests
    assert "authorization" not in request.headers


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("", "/7"),
        ("/", "/7"),
        ("/send/", "/send/7"),
        ("/a%2Fb/%D1%8F/", "/a%2Fb/%D1%8F/7"),
        ("/send?id=", "/send?id=7"),
        ("/send?key=a%26b&id=", "/send?key=a%26b&id=7"),
        ("/send/?key=secret", "/send/7?key=secret"),
        ("?key=secret", "/7?key=secret"),
    ],
)
async def test_the_id_is_at_the_end_of_the_path_or_query(path: str, target: str) -> None:
    server, request = AcceptingServer(), create_request(message_id=7)
    async with served(server.talk) as url, gateway_at(url.removesuffix("/send/") + path) as gateway:
        assert await send(gateway, request) == Accepted()
    assert [received.line for received in server.requests] == [f"POST {target} HTTP/1.1"]


async def test_a_user_in_the_url_is_basic_authorization() -> None:
    server = AcceptingServer()
    async with served(server.talk) as url:
        with_user = url.replace("//", "//ann%40x:p%3A%2F%D1%8F@", 1)
        async with gateway_at(with_user) as gateway:
            assert await send(gateway) == Accepted()
    [request] = server.requests
    credentials = base64.b64encode("ann@x:p:/я".encode()).decode()
    assert request.headers["authorization"] == f"Basic {credentials}"
    assert "@" not in request.headers["host"]


# ---- with the sandbox -----------------------------------------------------------------------


async def test_the_sandbox_accepts_requests() -> None:
    sandbox = SandboxGateway(Faults(), token="secret")  # noqa: S106  # used in tests alone
    async with sandbox.run() as url, gateway_at(url, "secret") as gateway:
        outcomes = await asyncio.gather(
            *(send(gateway, create_request(n, "x" * 1600)) for n in range(1, 101))
        )
    assert set(outcomes) == {Accepted()}
    assert (sandbox.counts.accepted, sandbox.counts.repeats) == (100, 0)


@pytest.mark.parametrize(
    ("faults", "outcomes"),
    [
        ({"reject_rate": 1.0}, {Rejected("rejected_400")}),
        ({"malformed_rate": 1.0}, {TemporaryFailure("bad_response")}),
        ({"reset_rate": 1.0}, {Unknown("connection_lost")}),
        # at the timeout, some requests still wait for one of five connections: they were not sent
        ({"hang_rate": 1.0}, {Unknown("timeout"), TemporaryFailure("connection_failed")}),
        (
            {"error_rate": 1.0, "seed": 1},
            {
                TemporaryFailure("http_500"),
                TemporaryFailure("http_502"),
                TemporaryFailure("http_503"),
                TemporaryFailure("http_503", retry_after=1, affects_all=True),
            },
        ),
    ],
)
async def test_each_fault_of_the_sandbox_has_its_outcomes(
    faults: dict[str, float], outcomes: set[Outcome]
) -> None:
    sandbox = SandboxGateway(Faults(**faults))  # type: ignore[arg-type]  # the seed is a whole number
    async with sandbox.run() as url, gateway_at(url) as gateway:
        received = await asyncio.gather(
            *(send(gateway, create_request(n, within=3)) for n in range(1, 31))
        )
    assert set(received) == outcomes


async def test_a_wrong_token_is_a_failure_of_the_gateway() -> None:
    sandbox = SandboxGateway(Faults(), token="secret")  # noqa: S106  # used in tests alone
    async with sandbox.run() as url, gateway_at(url, "wrong") as gateway:
        assert await send(gateway) == TemporaryFailure(
            "http_401", affects_all=True, trouble="bad_credentials"
        )


# ---- status 200 -----------------------------------------------------------------------------

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
"""The head of a response whose body comes in chunks."""
LONGER = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"
"""The head of a response whose body is longer than `OK`."""


def chunk(data: bytes) -> bytes:
    """Return a chunk of a body: its length in hexadecimal digits, and the data."""
    return b"%x\r\n%s\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n"
"""The end of a body; trailing headers and a blank line follow."""
INVALID_CHUNK = b"zz\r\n"
"""Its length is no number."""


def accepting_body(size: int) -> bytes:
    """Return a body of `size` bytes that accepts the message."""
    start, end = b'{"code":0,"x":"', b'"}'
    return start + b"x" * (size - len(start) - len(end)) + end


@pytest.mark.parametrize(
    "raw",
    [
        http_response(200, OK),
        http_response(200, b'{"code":0}'),
        http_response(200, b' \n{"x": [1, {}], "code" : 0, "id": 7}\n'),
        http_response(200, OK, "Content-Type: text/html"),
        http_response(200, gzip.compress(OK), "Content-Encoding: gzip"),
        http_response(200, accepting_body(MAX_RESPONSE_BODY_BYTES)),
        b"HTTP/1.0 200 OK\r\n\r\n" + OK,
        CHUNKED + chunk(OK[:5]) + chunk(OK[5:]) + LAST_CHUNK + b"\r\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n" + http_response(200, OK),
        b"HTTP/1.1 102 Processing\r\n\r\n" * MAX_INTERIM_RESPONSES + http_response(200, OK),
        http_response(200, OK, "X: " + "x" * 9_000),
        http_response(200, OK).replace(b"Whatever", b"w" * 9_000),  # the reason phrase
        http_response(200, OK, *(f"X-{n}: {n}" for n in range(500))),
        http_response(200, OK, "Content-Type: application/json; charset=nonsense"),
        http_response(200, OK, "Content-Encoding: identity"),
        http_response(200, OK, "Content-Encoding: br"),  # but it is not compressed
        http_response(200, OK, "Content-Encoding: gzip"),  # but it is not compressed
        http_response(200, zlib.compress(OK), "Content-Encoding: deflate"),
        http_response(200, zlib.compress(OK)[2:-4], "Content-Encoding: deflate"),  # no zlib header
        http_response(200, gzip.compress(OK), "Content-Encoding: GZIP, identity"),
        http_response(200, gzip.compress(OK)[:-4], "Content-Encoding: gzip"),  # without the end
        http_response(200, b'{"code": 0.0}'),
        http_response(200, b'{"code": -0}'),
        http_response(200, b'{"code": 0e0}'),
        # invalid JSON, of which the code can be read
        http_response(200, b'{"code": 0, "x": "\\ud800"}'),  # half of a surrogate pair
        http_response(200, b'{"\\udfff": 1, "code": 0}'),
        http_response(200, b'{"code": 0, "x": "\xff\xfe"}'),  # not UTF-8
        http_response(200, b'{"code": 0, "x": "a\tb"}'),
        http_response(200, b'{"code": 0, "x": NaN}'),
        http_response(200, b"\xef\xbb\xbf" + OK),  # after a byte order mark
        http_response(200, OK.decode().encode("utf-16")),
        http_response(200, b'{"code": 1, "code": 0}'),  # the last one counts
    ],
    ids=lambda raw: raw[:60].decode(errors="replace"),
)
async def test_200_with_code_0_is_accepted(raw: bytes) -> None:
    assert await send_to(respond_with(raw)) == Accepted()


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
        b'{"code": NaN}',
        b'{"code": true}',
        b'{"code": 0, "code": 1}',
        b'{"code": 0,}',
        # nested deeper than the parser allows
        b'{"code": 0, "x": ' + b"[" * 20_000 + b"]" * 20_000 + b"}",
        b'{"x": ' * 9_000 + b"0" + b"}" * 9_000,
        b'{"code": 0, "x": "',
        b'{"code": 0',
        b'{"code": 0}{"code": 0}',
        b'{"code": ' + b"9" * 5000 + b"}",
        b"\xff\xfe",
        b"[" * 60_000,
    ],
    ids=lambda body: body[:24].decode(errors="replace") or "empty",
)
async def test_200_with_anything_else_is_a_bad_response(body: bytes) -> None:
    assert await send_to(respond_with(http_response(200, body))) == TemporaryFailure("bad_response")


def test_the_limit_of_a_body_is_64_kib() -> None:
    assert MAX_RESPONSE_BODY_BYTES == 64 * 1024


@pytest.mark.parametrize(
    "body",
    [accepting_body(MAX_RESPONSE_BODY_BYTES + 1), b'{"code":0}' + b" " * 1_000_000],
    ids=["a byte more", "much more"],
)
async def test_200_with_a_body_over_the_limit_is_a_bad_response(body: bytes) -> None:
    raw = http_response(200, body)
    assert await send_to(respond_with(raw)) == TemporaryFailure("bad_response")
    in_two_parts = respond_with(raw[:-1], raw[-1:], every=0.02)
    assert await send_to(in_two_parts) == TemporaryFailure("bad_response")


async def test_an_endless_response_is_read_up_to_the_limit() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b" " * 10_000)
            await writer.drain()

    assert await send_to(talk) == TemporaryFailure("bad_response")


async def test_endless_headers_are_read_up_to_a_limit() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            writer.write(b"X: " + b"x" * 1000 + b"\r\n")
            await writer.drain()

    assert await send_to(talk) == TemporaryFailure("bad_response")


async def test_the_limit_applies_to_the_decompressed_body() -> None:
    raw = http_response(200, gzip.compress(b" " * 20_000_000), "Content-Encoding: gzip")
    assert await send_to(respond_with(raw)) == TemporaryFailure("bad_response")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "nonsense"])
async def test_a_body_that_cannot_be_decompressed_is_a_bad_response(encoding: str) -> None:
    body = b"\x28\xb5\x2f\xfd not compressed"
    raw = http_response(200, body, f"Content-Encoding: {encoding}")
    assert await send_to(respond_with(raw)) == TemporaryFailure("bad_response")


async def test_a_compressed_body_without_its_end_is_a_bad_response() -> None:
    raw = http_response(200, gzip.compress(OK)[:-12], "Content-Encoding: gzip")
    assert await send_to(respond_with(raw)) == TemporaryFailure("bad_response")


UNREADABLE_HEADERS = [
    "X: " + "x" * 100_000,
    "Content-Length: 29",  # a second one, with another value
    "Content-Length: many",
    "Transfer-Encoding: nonsense",
    "X: \0",
    "\r\n".join(f"X-{n}: {n}" for n in range(2_000)),
    "no colon at all",
]


@pytest.mark.parametrize("header", UNREADABLE_HEADERS, ids=lambda header: header[:24])
@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (200, TemporaryFailure("bad_response")),
        (400, Rejected("rejected_400")),
        (401, TemporaryFailure("http_401", affects_all=True, trouble="bad_credentials")),
        (503, TemporaryFailure("http_503")),
    ],
)
async def test_the_outcome_of_a_response_with_unreadable_headers_follows_from_its_status(
    status: int, outcome: Outcome, header: str
) -> None:
    unreadable = http_response(status, OK, header)
    assert await send_to(respond_with(unreadable)) == outcome
    interim = b"HTTP/1.1 103 Early Hints\r\n\r\n"
    assert await send_to(respond_with(interim, unreadable, every=0.02)) == outcome


async def test_an_invalid_chunk_before_the_code_is_a_bad_response() -> None:
    talk = respond_with(CHUNKED, chunk(OK[:5]), INVALID_CHUNK, every=0.02)
    assert await send_to(talk) == TemporaryFailure("bad_response")


INVALID_AFTER_THE_CODE: dict[str, tuple[bytes, ...]] = {
    "invalid chunk": (CHUNKED + chunk(OK) + INVALID_CHUNK,),
    "invalid chunk, later": (CHUNKED + chunk(OK), INVALID_CHUNK),
    "invalid trailer": (CHUNKED + chunk(OK) + LAST_CHUNK + b"no colon\r\n\r\n",),
    "invalid trailer, later": (CHUNKED, chunk(OK), LAST_CHUNK + b"no colon\r\n\r\n"),
    "long trailer": (CHUNKED + chunk(OK) + LAST_CHUNK + b"X: " + b"x" * 70_000 + b"\r\n\r\n",),
    "no last chunk": (CHUNKED + chunk(OK),),
    "no last chunk, divided head": (CHUNKED[:-2], CHUNKED[-2:] + chunk(OK)),
    "no end of the chunk": (CHUNKED, chunk(OK).removesuffix(b"\r\n")),
    "short body": (LONGER + OK,),
    "short body, divided": (LONGER, OK[:9], OK[9:]),
}
"""Parts of responses, sent one after the other; the rest after `OK` is invalid or missing."""


@pytest.mark.parametrize(
    "parts", INVALID_AFTER_THE_CODE.values(), ids=INVALID_AFTER_THE_CODE.keys()
)
async def test_a_received_code_counts_although_the_rest_of_the_response_is_invalid_or_missing(
    parts: tuple[bytes, ...],
) -> None:
    assert await send_to(respond_with(*parts, every=0.02)) == Accepted()
    parts_with_code_1 = [part.replace(b"0, ", b"1, ") for part in parts]
    assert await send_to(respond_with(*parts_with_code_1, every=0.02)) != Accepted()


async def test_a_received_code_counts_although_the_response_never_ends() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(LONGER + OK)
        await reader.read()

    assert await send_to(talk, within=0.5) == Accepted()


async def test_the_number_of_interim_responses_is_limited() -> None:
    thousand_interims = b"HTTP/1.1 102 Processing\r\n\r\n" * 1_000
    talk = respond_with(*[thousand_interims] * 3, every=0.01)
    assert await send_to(talk) == TemporaryFailure("bad_response")


async def test_status_101_is_no_interim_response() -> None:
    upgrade = http_response(101, b"", "Upgrade: nonsense", "Connection: upgrade")
    assert await send_to(respond_with(upgrade)) == TemporaryFailure("http_101")


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"\x00\x01\x02\x03\r\n\r\n",
        b"HTTP/1.1 OK 200\r\n\r\n",
        OK,
        CHUNKED + INVALID_CHUNK,
    ],
)
async def test_a_response_that_is_not_valid_http_is_a_bad_response(raw: bytes) -> None:
    assert await send_to(respond_with(raw)) == TemporaryFailure("bad_response")


# ---- any other status -----------------------------------------------------------------------


@pytest.mark.parametrize("status", REFUSALS)
async def test_a_permanent_refusal_names_its_status(status: int) -> None:
    raw = http_response(status, OK, "Retry-After: 5")
    assert await send_to(respond_with(raw)) == Rejected(f"rejected_{status}")


@pytest.mark.parametrize("status", WRONG_TOKEN)
async def test_a_wrong_token_affects_all_messages(status: int) -> None:
    outcome = TemporaryFailure(f"http_{status}", affects_all=True, trouble="bad_credentials")
    assert await send_to(respond_with(http_response(status, OK))) == outcome
    outcome = TemporaryFailure(f"http_{status}", 17, affects_all=True, trouble="bad_credentials")
    assert await send_to(respond_with(http_response(status, OK, "Retry-After: 17"))) == outcome


@pytest.mark.parametrize("status", BUSY)
async def test_a_busy_gateway_with_retry_after_affects_all_messages(
    status: int,
) -> None:
    assert await send_to(respond_with(http_response(status))) == TemporaryFailure(f"http_{status}")
    outcome = TemporaryFailure(f"http_{status}", retry_after=17, affects_all=True)
    assert await send_to(respond_with(http_response(status, b"", "Retry-After: 17"))) == outcome


@pytest.mark.parametrize("status", [408, 425, 500, 502, 504, 599, 301, 307, 202, 418])
async def test_retry_after_of_another_status_affects_the_message_alone(status: int) -> None:
    raw = http_response(status, b"", "Retry-After: 17")
    assert await send_to(respond_with(raw)) == TemporaryFailure(f"http_{status}", retry_after=17)


async def test_every_other_status_is_a_temporary_failure() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Respond to each message with the status that equals its id."""
        while True:
            status = (await read_request(reader)).message_id
            writer.write(http_response(status, OK if status not in {204, 304} else b""))

    statuses = set(range(201, 600)) - {*REFUSALS, *WRONG_TOKEN}
    async with served(talk) as url, gateway_at(url) as gateway:
        outcomes = {status: await send(gateway, create_request(status)) for status in statuses}
    assert outcomes == {status: TemporaryFailure(f"http_{status}") for status in statuses}


async def test_a_status_counts_although_the_body_is_incomplete() -> None:
    assert await send_to(respond_with(http_response(400, OK)[:-5])) == Rejected("rejected_400")
    assert await send_to(respond_with(http_response(503, OK)[:-5])) == TemporaryFailure("http_503")


async def test_a_redirect_is_not_followed() -> None:
    target = AcceptingServer()
    async with served(target.talk) as target_url:
        for status in (301, 302, 303, 307, 308):
            raw = http_response(status, b"", f"Location: {target_url}7")
            assert await send_to(respond_with(raw)) == TemporaryFailure(f"http_{status}")
    assert target.requests == []


# ---- Retry-After ----------------------------------------------------------------------------


async def test_retry_after_may_be_a_date() -> None:
    later = datetime.now(UTC) + timedelta(seconds=100)
    raw = http_response(503, b"", f"Retry-After: {format_datetime(later, usegmt=True)}")
    outcome = await send_to(respond_with(raw))
    assert isinstance(outcome, TemporaryFailure)
    assert outcome.affects_all
    assert outcome.retry_after is not None
    assert 97 < outcome.retry_after <= 100  # a date has whole seconds


@pytest.mark.parametrize(
    "value", ["soon", "-1", "Wed, 21 Oct 2015 07:28:00 +99999999999999", ""], ids=repr
)
async def test_an_invalid_retry_after_is_ignored(value: str) -> None:
    raw = http_response(503, b"", f"Retry-After: {value}")
    assert await send_to(respond_with(raw)) == TemporaryFailure("http_503")


@pytest.mark.parametrize(("value", "seconds"), [("0000000000017", 17), ("  17  ", 17), ("000", 0)])
async def test_every_notation_of_a_number_in_retry_after_is_read(
    value: str, seconds: float
) -> None:
    outcome = await send_to(respond_with(http_response(500, b"", f"Retry-After: {value}")))
    assert outcome == TemporaryFailure("http_500", retry_after=seconds)


async def test_a_retry_after_with_many_digits_is_capped() -> None:
    outcome = await send_to(respond_with(http_response(503, b"", f"Retry-After: {'9' * 5000}")))
    assert outcome == TemporaryFailure("http_503", retry_after=MAX_RETRY_AFTER, affects_all=True)


@pytest.mark.parametrize("value", ["901", "31536000", "Fri, 31 Dec 9999 23:59:59 GMT"])
@pytest.mark.parametrize("status", [500, 503, 429, 401, 301])
async def test_a_requested_pause_is_capped(status: int, value: str) -> None:
    outcome = await send_to(respond_with(http_response(status, b"", f"Retry-After: {value}")))
    assert isinstance(outcome, TemporaryFailure)
    assert outcome.retry_after == MAX_RETRY_AFTER


async def test_a_date_in_retry_after_is_relative_to_the_date_header() -> None:
    headers = (
        "Date: Wed, 21 Oct 2015 07:28:00 GMT",
        "Retry-After: Wed, 21 Oct 2015 07:28:30 GMT",
    )
    outcome = await send_to(respond_with(http_response(500, b"", *headers)))
    assert outcome == TemporaryFailure("http_500", retry_after=30)


async def test_a_text_is_read_in_the_charset_of_its_header() -> None:
    body = 'Success "id-1"'.encode("utf-16-le")
    response = http_response(200, body, "Content-Type: text/plain; charset=utf-16le")
    async with served(respond_with(response)) as url:
        account = GatewayConfig(name="j", kind="jasmin", url=url, username="u", password="p")  # noqa: S106  # used in tests alone
        gateway = ConfiguredGateway(account, load_profile("jasmin"), read_gateway_url(url))
        async with HttpGateway(gateway) as client:
            assert await send(client, create_request(7)) == Accepted("id-1")
