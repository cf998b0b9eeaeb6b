"""The sandbox gateway: its protocol, its faults, and its command."""

import asyncio
import io
import json
import logging
import math
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
from aiohttp import (
    ClientConnectionError,
    ClientOSError,
    ClientSession,
    ClientTimeout,
    ServerDisconnectedError,
    TCPConnector,
)
from tests.event_timeout import EVENT_TIMEOUT

from mailer.errors import InvalidError, UnavailableError
from mailer.gateway.recent_ids import RecentIds
from mailer.gateway.sandbox import Faults, SandboxGateway, SandboxRequest
from mailer.gateway.sandbox_command import run_sandbox

PHONE = 79_001_234_567
TEXT = "Hello from the test"


class Response(msgspec.Struct, frozen=True):
    """A response of the sandbox, with its whole body."""

    status: int
    headers: dict[str, str]
    body: bytes


class Client:
    """A client of the gateway protocol, which posts messages to `url`."""

    def __init__(self, session: ClientSession, url: str) -> None:
        self.session = session
        self.url = url

    async def send(self, message_id: int, token: str = "any") -> Response:  # noqa: S107  # used in tests alone
        """Send a valid request for a message."""
        body = {"id": message_id, "phone": PHONE, "text": TEXT}
        return await self.request("POST", f"{message_id}", json.dumps(body).encode(), token=token)

    async def request(
        self, method: str, path: str, body: bytes | io.BytesIO, token: str | None = None
    ) -> Response:
        """Send any request; `path` is the part of its URL after `/send/`."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        async with self.session.request(
            method, self.url + path, data=body, headers=headers
        ) as response:
            return Response(response.status, dict(response.headers), await response.read())

    async def send_all(self, count: int) -> None:
        """Send messages 1 to `count`, 20 at a time, whatever their outcomes."""
        ids = iter(range(1, count + 1))

        async def send_next() -> None:
            for message_id in ids:
                try:
                    await self.send(message_id)
                except (ClientConnectionError, TimeoutError):
                    continue

        await asyncio.gather(*(send_next() for _ in range(20)))


@asynccontextmanager
async def client_of(url: str, *, request_timeout: float = EVENT_TIMEOUT) -> AsyncIterator[Client]:
    """Yield a client whose requests fail after `request_timeout` seconds."""
    connector = TCPConnector(limit=0)
    limits = ClientTimeout(request_timeout)
    async with ClientSession(connector=connector, timeout=limits) as session:
        yield Client(session, url)


@asynccontextmanager
async def serving(
    sandbox: SandboxGateway, *, request_timeout: float = EVENT_TIMEOUT
) -> AsyncIterator[Client]:
    """Run a sandbox, and yield a client of it."""
    async with sandbox.run() as url, client_of(url, request_timeout=request_timeout) as client:
        yield client


async def wait_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(EVENT_TIMEOUT):
        while not condition():
            await asyncio.sleep(0.005)


# Settings


@pytest.mark.parametrize(
    "field",
    ["jitter", "error_rate", "reject_rate", "malformed_rate", "hang_rate", "reset_rate"],
)
@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan, math.inf])
def test_fractions_must_be_from_0_to_1(field: str, value: float) -> None:
    with pytest.raises(InvalidError, match=f"{field}: must be from 0 to 1$"):
        Faults(**{field: value})  # type: ignore[arg-type]  # the field is a parameter here


def test_all_invalid_fields_are_named() -> None:
    with pytest.raises(InvalidError) as raised:
        Faults(latency=3_601.0, rate_limit=-1.0, hang_rate=2.0)
    assert [error.field for error in raised.value.errors] == ["latency", "hang_rate", "rate_limit"]


def test_rates_must_not_add_up_to_more_than_1() -> None:
    Faults(error_rate=0.7, reject_rate=0.1, malformed_rate=0.1, hang_rate=0.1)
    with pytest.raises(InvalidError, match="must not add up to more than 1"):
        Faults(error_rate=0.6, reset_rate=0.6)


# The protocol


async def test_a_valid_request_is_accepted() -> None:
    sandbox = SandboxGateway(Faults(), token="right")  # noqa: S106  # used in tests alone
    async with serving(sandbox) as client:
        response = await client.send(7, token="right")  # noqa: S106  # used in tests alone
    assert client.url.startswith("http://127.0.0.1:")
    assert client.url.endswith("/send/")
    assert (response.status, json.loads(response.body)["code"]) == (200, 0)
    assert response.headers["Content-Type"].startswith("application/json")
    assert (sandbox.counts.accepted, sandbox.counts.total) == (1, 1)


@pytest.mark.parametrize("token", [None, "", "wrong", "RIGHT", "right2"])
async def test_a_wrong_or_missing_token_is_401(token: str | None) -> None:
    sandbox = SandboxGateway(Faults(), token="right")  # noqa: S106  # used in tests alone
    async with serving(sandbox) as client:
        response = await client.request("POST", "1", b"{}", token=token)
    assert response.status == 401
    assert (sandbox.counts.unauthorized, sandbox.counts.total) == (1, 1)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_other_methods_are_405(method: str) -> None:
    sandbox = SandboxGateway(Faults())
    async with serving(sandbox) as client:
        response = await client.request(method, "1", b"")
    assert (response.status, response.headers["Allow"]) == (405, "POST")
    assert sandbox.counts.invalid == 1


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("2", b'{"id":1,"phone":79001234567,"text":"a"}', 400),  # another id in the path
        ("01", b'{"id":1,"phone":79001234567,"text":"a"}', 400),
        ("1/", b'{"id":1,"phone":79001234567,"text":"a"}', 400),
        ("", b'{"id":1,"phone":79001234567,"text":"a"}', 400),
        ("../1", b'{"id":1,"phone":79001234567,"text":"a"}', 404),
        ("1", b'{"id":"1","phone":79001234567,"text":"a"}', 400),
        ("0", b'{"id":0,"phone":79001234567,"text":"a"}', 400),
        ("1", b'{"id":1,"phone":"79001234567","text":"a"}', 400),
        ("1", b'{"id":1,"phone":9001234567,"text":"a"}', 400),
        ("1", b'{"id":1,"phone":79001234567,"text":""}', 400),
        ("1", b'{"id":1,"phone":79001234567,"text":"%s"}' % (b"a" * 1_601), 400),
        ("1", b'{"id":1,"phone":79001234567,"text":"\xff"}', 400),
        ("1", b'{"id":1,"phone":79001234567,"text":"a","more":1}', 400),
        ("1", b'{"id":1,"phone":79001234567,"text":"a","sender":"ACME"}', 400),
        ("1", b'{"id":1,"phone":79001234567,"text":"a","callback":"mailer:8000"}', 400),
        ("1", b'{"id":1,"phone":79001234567}', 400),
        ("1", b"[]", 400),
        ("1", b"", 400),
    ],
)
async def test_an_invalid_request_is_refused(path: str, body: bytes, status: int) -> None:
    sandbox = SandboxGateway(Faults())
    async with serving(sandbox) as client:
        response = await client.request("POST", path, body)
    assert response.status == status
    assert (sandbox.counts.invalid, sandbox.counts.total) == (1, 1)


async def test_a_body_over_a_mebibyte_is_refused() -> None:
    sandbox = SandboxGateway(Faults())
    async with serving(sandbox) as client:
        response = await client.request("POST", "1", io.BytesIO(b"a" * 2_000_000))
    assert (response.status, sandbox.counts.invalid) == (413, 1)


async def test_a_repeat_of_an_accepted_message_is_accepted_and_counted() -> None:
    received: list[SandboxRequest] = []
    sandbox = SandboxGateway(Faults(error_rate=0.5, seed=1), on_request=received.append)
    async with serving(sandbox) as client:
        while sandbox.counts.accepted == 0:
            await client.send(7)
        responses = [await client.send(7) for _ in range(20)]
    assert {response.status for response in responses} == {200}
    assert (sandbox.counts.accepted, sandbox.counts.repeats) == (21, 20)
    assert [row.repeat for row in received if row.kind == "accepted"] == [False] + [True] * 20


async def test_a_repeat_during_an_open_request_is_counted_as_an_overlap() -> None:
    sandbox = SandboxGateway(Faults(latency=0.1))
    async with serving(sandbox) as client:
        await asyncio.gather(client.send(7), client.send(7), client.send(8))
        await client.send(7)
    assert (sandbox.counts.overlaps, sandbox.counts.repeats) == (1, 2)


async def test_each_request_is_reported() -> None:
    received: list[SandboxRequest] = []
    sandbox = SandboxGateway(Faults(), on_request=received.append)
    wall_clock_before, monotonic_before = time.time_ns() // 1_000, time.monotonic()
    async with serving(sandbox) as client:
        await client.send(7)
        await client.request("POST", "8", b"{}")
    wall_clock_after, monotonic_after = time.time_ns() // 1_000, time.monotonic()
    first, second = received
    assert (first.id, first.kind) == (7, "accepted")
    assert (second.id, second.kind) == (None, "invalid")
    assert wall_clock_before <= first.arrived <= second.arrived <= wall_clock_after
    assert monotonic_before <= first.monotonic <= second.monotonic <= monotonic_after


def test_recent_ids_contain_exactly_the_added_ids() -> None:
    ids, added = RecentIds(), range(1, 30_000, 2)
    for number in added:
        ids.add(number)
    assert [number for number in range(1, 30_000) if number in ids] == list(added)


def test_recent_ids_evict_the_page_that_was_added_to_longest_ago() -> None:
    ids_of_page, max_pages = 8_192, 8_192
    ids, first_ids = RecentIds(), [page * ids_of_page for page in range(max_pages)]
    for number in first_ids:
        ids.add(number)
    assert first_ids[0] in ids
    largest = 2**63 - 1
    ids.add(largest)  # on another page
    assert largest in ids
    assert first_ids[0] not in ids
    assert first_ids[1] in ids


# Faults


async def test_errors_are_500_502_503_some_with_retry_after() -> None:
    sandbox = SandboxGateway(Faults(error_rate=1.0, seed=1))
    async with serving(sandbox) as client:
        responses = [await client.send(number) for number in range(1, 61)]
    kinds = {(response.status, response.headers.get("Retry-After")) for response in responses}
    assert kinds == {(500, None), (502, None), (503, None), (503, "1")}
    assert (sandbox.counts.error, sandbox.counts.total) == (60, 60)


async def test_rejections_are_400() -> None:
    sandbox = SandboxGateway(Faults(reject_rate=1.0))
    async with serving(sandbox) as client:
        assert (await client.send(1)).status == 400
    assert (sandbox.counts.reject, sandbox.counts.total) == (1, 1)


def flaw_of(response: Response) -> str:
    """Return how a response violates the gateway protocol: an acceptance has code 0."""
    if len(response.body) > 65_536:
        return "over 64 KiB"
    try:
        content = json.loads(response.body)
    except ValueError:
        return "not JSON"
    if not isinstance(content, dict):
        return "wrong shape"
    return "code not 0" if content["code"] != 0 else "none"


async def test_malformed_responses_are_200_with_every_flaw() -> None:
    sandbox = SandboxGateway(Faults(malformed_rate=1.0, seed=1))
    async with serving(sandbox) as client:
        responses = [await client.send(number) for number in range(1, 61)]
    assert {response.status for response in responses} == {200}
    flaws = {flaw_of(response) for response in responses}
    assert flaws == {"not JSON", "wrong shape", "code not 0", "over 64 KiB"}
    assert (sandbox.counts.malformed, sandbox.counts.total) == (60, 60)


async def test_latency_varies_by_the_jitter() -> None:
    sandbox = SandboxGateway(Faults(latency=0.2, jitter=0.5, seed=1))

    async def seconds_of_request(message_id: int) -> float:
        started = time.monotonic()
        await client.send(message_id)
        return time.monotonic() - started

    async with serving(sandbox) as client:
        seconds = await asyncio.gather(*(seconds_of_request(number) for number in range(1, 41)))
    assert min(seconds) >= 0.099  # 0.2 minus half of it; clocks are inexact
    assert max(seconds) - min(seconds) > 0.1  # half of the range


async def test_a_hanging_request_ends_when_its_client_disconnects() -> None:
    sandbox = SandboxGateway(Faults(hang_rate=1.0))
    async with serving(sandbox, request_timeout=0.2) as client:
        with pytest.raises(TimeoutError):
            await client.send(7)
        await wait_until(lambda: not sandbox._open_ids)  # noqa: SLF001  # open requests are not public
        with pytest.raises(TimeoutError):
            await client.send(7)
    assert sandbox.counts.hang == 2
    assert sandbox.counts.overlaps == 0  # the first request had ended before the second came


async def test_a_reset_is_a_tcp_rst() -> None:
    sandbox = SandboxGateway(Faults(reset_rate=1.0))
    body = b'{"id":1,"phone":%d,"text":"a"}' % PHONE
    head = b"POST /send/1 HTTP/1.1\r\nHost: sandbox\r\nContent-Length: %d\r\n\r\n" % len(body)
    loop = asyncio.get_running_loop()
    async with sandbox.run() as url:
        with socket.socket() as connection:
            connection.settimeout(0)
            await loop.sock_connect(connection, (urlsplit(url).hostname, urlsplit(url).port))
            await loop.sock_sendall(connection, head + body)
            with pytest.raises(ConnectionResetError):
                await loop.sock_recv(connection, 1)
    assert (sandbox.counts.reset, sandbox.counts.total) == (1, 1)


async def test_a_reset_is_a_lost_connection_for_an_http_client() -> None:
    sandbox = SandboxGateway(Faults(reset_rate=1.0))
    async with serving(sandbox) as client:
        with pytest.raises((ClientOSError, ServerDisconnectedError)):
            await client.send(1)


async def test_a_client_that_disconnects_before_the_response_is_counted_as_disconnected() -> None:
    sandbox = SandboxGateway(Faults(latency=5.0))
    async with serving(sandbox, request_timeout=0.1) as client:
        with pytest.raises(TimeoutError):
            await client.send(7)
        await wait_until(lambda: sandbox.counts.disconnected == 1)
    assert (sandbox.counts.accepted, sandbox.counts.total) == (0, 1)


async def test_faults_occur_at_the_configured_rates() -> None:
    faults = Faults(
        error_rate=0.2, reject_rate=0.1, malformed_rate=0.1, hang_rate=0.01, reset_rate=0.1, seed=3
    )
    sandbox = SandboxGateway(faults)
    async with serving(sandbox, request_timeout=3) as client:
        await client.send_all(2_000)
    counts = sandbox.counts
    assert counts.total == 2_000
    for fault, rate in faults.rates():
        standard_deviation = math.sqrt(2_000 * rate * (1 - rate))
        assert getattr(counts, fault) == pytest.approx(2_000 * rate, abs=4 * standard_deviation)


async def test_the_same_seed_repeats_a_run() -> None:
    async def kinds(seed: int) -> list[str]:
        received: list[SandboxRequest] = []
        faults = Faults(error_rate=0.3, reject_rate=0.3, malformed_rate=0.2, seed=seed)
        async with serving(SandboxGateway(faults, on_request=received.append)) as client:
            for number in range(1, 101):
                await client.send(number)
        return [row.kind for row in received]

    first = await kinds(1)
    assert await kinds(1) == first
    assert await kinds(2) != first


async def test_the_rate_limit_holds_and_sends_retry_after() -> None:
    sandbox = SandboxGateway(Faults(rate_limit=5.0))
    async with serving(sandbox) as client:
        started = time.monotonic()
        responses = [await client.send(number) for number in range(1, 101)]
        seconds = time.monotonic() - started
    counts = sandbox.counts
    assert 5 <= counts.accepted <= 5 * (seconds + 1)  # those of one second may come at once
    assert counts.limited == counts.total - counts.accepted > 0
    pauses = {each.headers["Retry-After"] for each in responses if each.status == 429}
    assert pauses == {"1"}


async def test_a_low_rate_limit_asks_for_a_longer_pause() -> None:
    async with serving(SandboxGateway(Faults(rate_limit=0.25))) as client:
        assert (await client.send(1)).status == 200
        limited = await client.send(2)
    assert (limited.status, limited.headers["Retry-After"]) == (429, "4")


# Starting and stopping


@pytest.mark.parametrize(
    ("faults", "kind"), [(Faults(hang_rate=1.0), "hang"), (Faults(latency=60.0), "disconnected")]
)
async def test_the_sandbox_stops_at_once_while_requests_wait(faults: Faults, kind: str) -> None:
    sandbox = SandboxGateway(faults)
    async with client_of("set below") as client:  # it outlives the sandbox
        async with sandbox.run() as client.url:
            requests = [asyncio.create_task(client.send(number)) for number in range(1, 51)]
            await wait_until(lambda: len(sandbox._open_ids) == 50)  # noqa: SLF001  # open requests are not public
        errors = await asyncio.gather(*requests, return_exceptions=True)
    assert {type(error) for error in errors} <= {ServerDisconnectedError, ClientOSError}
    assert (getattr(sandbox.counts, kind), sandbox.counts.total) == (50, 50)


async def test_the_sandbox_stops_at_once_with_idle_connections() -> None:
    async with client_of("set below") as client:  # it outlives the sandbox
        async with SandboxGateway(Faults()).run() as client.url:
            await client.send_all(40)
        with pytest.raises(ClientConnectionError):
            await client.send(41)


async def test_a_used_port_is_an_error_in_one_line() -> None:
    async with SandboxGateway(Faults()).run() as url:
        port = urlsplit(url).port
        assert port is not None
        with pytest.raises(UnavailableError, match=f"^cannot listen on 127.0.0.1:{port}: .*in use"):
            async with SandboxGateway(Faults()).run(port=port):
                pass


async def test_the_log_does_not_quote_unreadable_requests(caplog: pytest.LogCaptureFixture) -> None:
    head = "POST /send/1 HTTP/1.1\r\nHost: sandbox\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with SandboxGateway(Faults()).run() as url:
        reader, writer = await asyncio.open_connection(urlsplit(url).hostname, urlsplit(url).port)
        writer.write(f"{head}no size {PHONE} {TEXT}\r\n".encode())
        response = await reader.read()
        writer.close()
        await writer.wait_closed()
    assert b" 400 " in response.splitlines()[0]
    assert "Error handling request" in caplog.text
    assert str(PHONE) not in caplog.text
    assert TEXT not in caplog.text


# The command


class Command:
    """The running command `mailer sandbox`, with its printed lines and its log."""

    def __init__(self, faults: Faults) -> None:
        self.lines: list[str] = []
        self.log = io.StringIO()
        running = run_sandbox(
            faults, host="127.0.0.1", port=0, token=None, log=self.log, echo=self.lines.append
        )
        self.task = asyncio.create_task(running)

    async def url(self) -> str:
        """Wait until the command has printed its URL, and return it."""
        await wait_until(lambda: bool(self.lines))
        return self.lines[0]

    async def stop(self) -> None:
        self.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self.task

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.getvalue().splitlines()]


async def test_the_log_has_a_row_for_every_request(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    command = Command(Faults(error_rate=0.2, hang_rate=0.02, reset_rate=0.1, seed=1))
    url = await command.url()
    before = time.time_ns() // 1_000
    async with client_of(url, request_timeout=2) as client:
        await client.send_all(300)
        await client.request("GET", "1", b"")
    after = time.time_ns() // 1_000
    await command.stop()

    rows = command.rows()
    assert sorted(row["id"] for row in rows if row["id"] is not None) == list(range(1, 301))
    assert {row["kind"] for row in rows} == {"accepted", "error", "hang", "reset", "invalid"}
    assert all(before <= row["arrived"] <= after for row in rows)
    summary = command.lines[-1]
    for kind, count in Counter(row["kind"] for row in rows).items():
        assert f"{kind} {count}" in summary
    output = command.log.getvalue() + caplog.text + "".join(command.lines)
    assert str(PHONE) not in output
    assert TEXT not in output


async def test_the_log_marks_repeats() -> None:
    command = Command(Faults())
    async with client_of(await command.url()) as client:
        await client.send(7)
        await client.send(7)
    await command.stop()
    assert [row.get("repeat", False) for row in command.rows()] == [False, True]


async def test_the_command_prints_a_summary_each_second_with_requests() -> None:
    command = Command(Faults())
    async with client_of(await command.url()) as client:
        await client.send_all(30)
        await wait_until(lambda: command.lines[-1].endswith("/s): accepted 30"))
        line_count = len(command.lines)
        await asyncio.sleep(1.2)  # a second without requests
    await command.stop()
    assert len(command.lines) == line_count + 1  # only the line at the end
    assert command.lines[0].startswith("http://127.0.0.1:")
    assert command.lines[-2].startswith("30 requests (")
    assert command.lines[-1].startswith("stopped after ")
    assert command.lines[-1].endswith("accepted 30")
