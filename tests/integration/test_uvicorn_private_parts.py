"""The private parts of uvicorn and httptools that mailer uses are as it expects (decision 14).

The name of a test says what the library does. When one of these tests fails after an upgrade:
compare the part in the library's two versions, adapt `web/server/uvicorn_server.py`,
and then change the test and the version's cap.
"""

import asyncio
import inspect
import re
from collections.abc import Callable
from typing import Any

import httptools
import pytest
import uvicorn
from tests.private_parts import Wire, names_defined_by, parameters
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.server import ServerState

from mailer.web.server.uvicorn_server import LimitedHttpProtocol, Server

SIGNATURES: list[tuple[Callable[..., Any], str]] = [
    (HttpToolsProtocol.__init__, "self, config, server_state, app_state, _loop=None"),
    (HttpToolsProtocol.connection_made, "self, transport"),
    (HttpToolsProtocol.connection_lost, "self, exc"),
    (HttpToolsProtocol.data_received, "self, data"),
    (HttpToolsProtocol.pause_writing, "self"),
    (HttpToolsProtocol.resume_writing, "self"),
    (HttpToolsProtocol.on_message_begin, "self"),
    (HttpToolsProtocol.on_url, "self, url"),
    (HttpToolsProtocol.on_header, "self, name, value"),
    (HttpToolsProtocol.on_headers_complete, "self"),
    (HttpToolsProtocol.on_body, "self, body"),
    (HttpToolsProtocol.on_message_complete, "self"),
    (HttpToolsProtocol.on_response_complete, "self"),
    (HttpToolsProtocol._unset_keepalive_if_required, "self"),  # noqa: SLF001  # mailer calls it
    (HttpToolsProtocol._start_asgi_task, "self, cycle, app"),  # noqa: SLF001  # mailer overrides it
    (FlowControl.pause_reading, "self"),
    (uvicorn.Server.capture_signals, "self"),
    (uvicorn.Server.shutdown, "self, sockets=None"),
]


@pytest.mark.parametrize(("part", "expected"), SIGNATURES)
def test_a_part_has_the_expected_parameters(part: Callable[..., Any], expected: str) -> None:
    assert parameters(part) == expected


async def test_our_subclasses_override_only_the_tested_parts_of_uvicorn() -> None:
    connection = Served().connection
    tested = {part.__name__ for part, _ in SIGNATURES}
    names_of_protocol = {*dir(HttpToolsProtocol), *vars(connection)}
    names_of_server = {*dir(uvicorn.Server), *vars(uvicorn.Server(connection.config))}
    assert not (names_defined_by(LimitedHttpProtocol) - tested) & names_of_protocol
    assert not (names_defined_by(Server) - tested) & names_of_server


class Served:
    """A connection of uvicorn without a network, and an application that answers on demand."""

    def __init__(self) -> None:
        self.can_answer = asyncio.Event()
        self.state = ServerState()
        config = uvicorn.Config(self.answer, interface="asgi3", ws="none", log_config=None)
        self.connection = HttpToolsProtocol(config, self.state, {})
        self.wire = Wire()
        self.connection.connection_made(self.wire)

    async def answer(self, _: Any, receive: Any, send: Any) -> None:
        """Answer `ok` when `can_answer` is set: the application."""
        await receive()
        await self.can_answer.wait()
        headers = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"ok"})

    async def finish(self) -> None:
        """Let the application answer all requests, and wait until it has."""
        self.can_answer.set()
        while self.state.tasks:
            await asyncio.wait(self.state.tasks)


GET = b"GET /path?query HTTP/1.1\r\nHost: x\r\n\r\n"


async def test_uvicorn_keeps_connections_and_tasks_in_its_server_state() -> None:
    served = Served()
    assert served.state.connections == {served.connection}
    assert served.connection.connections is served.state.connections
    served.connection.data_received(GET)
    assert len(served.state.tasks) == 1
    await served.finish()
    served.connection.connection_lost(None)
    assert served.state.connections == served.state.tasks == set()


def progress_of(cycle: RequestResponseCycle) -> dict[str, bool]:
    """Return the flags by which a cycle, which is one request and its response, shows progress."""
    names = ("more_body", "response_started", "response_complete")
    return {name: getattr(cycle, name) for name in names}


async def test_uvicorn_starts_a_cycle_for_each_head_and_reports_its_progress() -> None:
    served = Served()
    served.connection.data_received(GET.replace(b"\r\n\r\n", b"\r\nContent-Length: 2\r\n\r\n"))
    cycle = served.connection.cycle
    assert isinstance(cycle, RequestResponseCycle)
    after_head = progress_of(cycle)
    served.connection.data_received(b"{}")
    after_body = progress_of(cycle)
    await served.finish()
    after_response = progress_of(cycle)

    nothing = {"more_body": False, "response_started": False, "response_complete": False}
    assert after_head == nothing | {"more_body": True}
    assert after_body == nothing
    assert after_response == nothing | {"response_started": True, "response_complete": True}
    assert served.connection.url == b"/path?query"
    assert served.wire.written.startswith(b"HTTP/1.1 200 OK\r\n")
    assert not served.wire.is_closed


async def test_uvicorn_queues_a_request_that_arrives_before_the_response_to_another() -> None:
    served = Served()
    served.connection.data_received(GET + GET)
    queued_at_first = len(served.connection.pipeline)
    assert len(served.state.tasks) == 1
    await served.finish()
    assert (queued_at_first, len(served.connection.pipeline)) == (1, 0)
    assert served.wire.written.count(b"HTTP/1.1 200 OK\r\n") == 2


async def test_uvicorn_starts_a_request_by_one_method_while_it_parses_or_after_a_response(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[tuple[RequestResponseCycle, object]] = []
    monkeypatch.setattr(
        HttpToolsProtocol, "_start_asgi_task", lambda _, cycle, app: started.append((cycle, app))
    )
    served = Served()
    served.connection.data_received(GET + GET)
    [(_, app)] = started
    assert app is served.connection.app
    [(queued, _)] = served.connection.pipeline
    served.connection.on_response_complete()
    assert started[1:] == [(queued, app)]


async def test_uvicorn_keeps_the_whole_body_and_the_wish_of_the_client_in_the_cycle() -> None:
    served = Served()
    head = b"POST /path HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n"
    served.connection.data_received(head + b"Expect: 100-continue\r\n\r\n{}")
    cycle = served.connection.cycle
    assert (bytes(cycle.body), cycle.scope["path"]) == (b"{}", "/path")
    assert cycle.waiting_for_100_continue
    await served.finish()


def test_status_lines_of_uvicorn_are_complete() -> None:
    assert STATUS_LINE[200] == b"HTTP/1.1 200 OK\r\n"


async def test_uvicorn_drops_the_response_of_a_cycle_marked_as_disconnected() -> None:
    served = Served()
    served.connection.data_received(GET)
    served.connection.cycle.disconnected = True
    served.connection.cycle.message_event.set()
    await served.finish()
    assert served.wire.written == b""


async def test_uvicorn_closes_the_connection_after_a_cycle_without_keep_alive() -> None:
    served = Served()
    served.connection.data_received(GET)
    served.connection.cycle.keep_alive = False
    await served.finish()
    assert served.wire.written.endswith(b"ok")
    assert served.wire.is_closed


async def test_uvicorn_waits_for_the_next_request_with_a_timer() -> None:
    served = Served()
    assert served.connection.timeout_keep_alive == 5
    served.connection.data_received(GET)
    await served.finish()
    timer = served.connection.timeout_keep_alive_task
    assert timer is not None
    served.connection._unset_keepalive_if_required()  # noqa: SLF001  # mailer calls it
    assert timer.cancelled()


async def test_flow_control_of_uvicorn_knows_whether_writing_is_paused() -> None:
    flow = Served().connection.flow
    is_paused = [flow.write_paused]
    flow.pause_writing()
    is_paused.append(flow.write_paused)
    flow.resume_writing()
    is_paused.append(flow.write_paused)
    assert is_paused == [False, True, False]
    assert flow.read_paused is False
    flow.pause_reading()
    assert flow.read_paused is True


async def test_uvicorn_has_no_option_to_limit_a_head_or_a_reader() -> None:
    options = {
        name
        for name in inspect.signature(uvicorn.Config.__init__).parameters
        if re.match(r"timeout_|limit_|backlog|h11_", name)
    }
    assert options == {
        *("timeout_keep_alive", "timeout_notify", "timeout_graceful_shutdown"),
        *("timeout_worker_healthcheck", "limit_concurrency", "limit_max_requests"),
        *("limit_max_requests_jitter", "backlog", "h11_max_incomplete_event_size"),
    }, "uvicorn has new options: decision 14 says which ones would replace our limits"


# ---- httptools ------------------------------------------------------------------------------


class Calls:
    """Callbacks of a parser, which record their names; the one named `failing` raises an error."""

    def __init__(self, failing: str = "") -> None:
        self.names: list[str] = []
        self.failing = failing

    def on_url(self, _: bytes) -> None:
        self._record("on_url")

    def on_header(self, _: bytes, __: bytes) -> None:
        self._record("on_header")

    def on_headers_complete(self) -> None:
        self._record("on_headers_complete")

    def on_body(self, _: bytes) -> None:
        self._record("on_body")

    def on_message_complete(self) -> None:
        self._record("on_message_complete")

    def _record(self, name: str) -> None:
        self.names.append(name)
        if name == self.failing:
            raise httptools.HttpParserError


HEAD = ["on_url", "on_header", "on_headers_complete"]
"""The callbacks for a head with one header."""
CHUNKED = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("failing", ["on_url", "on_header", "on_headers_complete"])
def test_an_error_in_a_callback_stops_the_parser(failing: str) -> None:
    calls = Calls(failing)
    with pytest.raises(httptools.HttpParserError):
        httptools.HttpRequestParser(calls).feed_data(GET + GET)
    assert calls.names == HEAD[: HEAD.index(failing) + 1]


def test_the_parser_reports_a_header_and_a_chunk_extension_only_at_their_end() -> None:
    calls = Calls()
    httptools.HttpRequestParser(calls).feed_data(b"GET / HTTP/1.1\r\nx: " + b"a" * 100_000)
    assert calls.names == ["on_url"]
    calls = Calls()
    httptools.HttpRequestParser(calls).feed_data(CHUNKED + b"1;" + b"a" * 100_000)
    assert calls.names == HEAD


def test_the_parser_reports_a_trailer_as_a_header() -> None:
    calls = Calls()
    httptools.HttpRequestParser(calls).feed_data(CHUNKED + b"1\r\n{\r\n0\r\nx: y\r\n\r\n")
    assert calls.names == [*HEAD, "on_body", "on_header", "on_message_complete"]


def test_the_parser_reports_an_upgrade_after_the_request() -> None:
    calls = Calls()
    upgrade = b"GET / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"
    with pytest.raises(httptools.HttpParserUpgrade):
        httptools.HttpRequestParser(calls).feed_data(upgrade)
    assert calls.names[-1] == "on_message_complete"


def test_the_parser_refuses_a_malformed_request() -> None:
    with pytest.raises(httptools.HttpParserError):
        httptools.HttpRequestParser(Calls()).feed_data(b"no request\r\n\r\n")
