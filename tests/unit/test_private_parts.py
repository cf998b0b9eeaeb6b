"""The private parts of libraries that mailer leans on are as it expects (decision 14).

When one of these tests fails after an upgrade: compare the part in the library's two versions,
adapt the one file of mailer that leans on it, and then change the test and the version's cap.
"""

import ast
import asyncio
import inspect
import re
import tomllib
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvicorn
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError
from litestar import Litestar, get, post
from litestar.dto import AbstractDTO
from litestar.params import JSONBody
from litestar.response import Stream
from litestar.response.base import ASGIResponse
from litestar.testing import TestClient
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState
from yarl import URL

from mailer.gateway.aiohttp_connection import (
    Answer,
    GatewayConnection,
    GatewayConnector,
    UnreadableAnswerError,
    read_body,
)
from mailer.validation import Input
from mailer.web.body import JsonBody
from mailer.web.docs import docs_plugins, docs_router
from mailer.web.litestar_internals import CATCH_ALL_PATHS, close_after
from mailer.web.openapi import openapi_config
from mailer.web.server.uvicorn_server import LimitedHttpProtocol, Server

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "mailer"
FILES = {
    "aiohttp": "gateway/aiohttp_connection.py",
    "litestar": "web/litestar_internals.py",
    "uvicorn": "web/server/uvicorn_server.py",
}
"""The one file for the private parts of each library."""
PUBLIC_MODULES = {
    "aiohttp": re.compile(r"aiohttp(\.web)?"),
    "litestar": re.compile(r"litestar(\.(?!_)\w+)*"),
    "uvicorn": re.compile(r"uvicorn"),
}
"""Modules that are documented. Litestar marks its private modules by an underscore."""
PUBLIC_NAMES = frozenset({"_asdict", "_replace", "_mapping", "_current_frames"})
"""Documented, although they begin with an underscore: of namedtuple, SQLAlchemy's Row and sys."""


# ---- versions and places --------------------------------------------------------------------


@pytest.mark.parametrize("library", FILES)
def test_a_library_is_capped_to_the_tested_minor_version(library: str) -> None:
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    [bounds] = [rest for name, rest in map(_split, dependencies) if name == library]
    major, minor, patch = (int(part) for part in version(library).split(".")[:3])
    match = re.fullmatch(r">=(\d+)\.(\d+)(?:\.(\d+))?,<(\d+)\.(\d+)", bounds)
    assert match, f"{library}{bounds}: give the tested minor version as >=X.Y,<X.(Y+1)"
    low = (int(match[1]), int(match[2]))
    assert low == (major, minor), f"{library} {version(library)} is installed, not {bounds}"
    assert int(match[3] or 0) <= patch
    assert (int(match[4]), int(match[5])) == (major, minor + 1), f"{library}{bounds}"
    assert f"\n{library}=={version(library)} " in (ROOT / "requirements.lock").read_text()


def _split(dependency: str) -> tuple[str, str]:
    name = re.match(r"[a-z-]+", dependency)
    assert name
    return name[0], dependency[name.end() :]


def private_uses(code: str, file: str) -> Iterator[str]:
    """Find private modules, private attributes, and private attributes of base classes."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                modules = [alias.name for alias in names]
            case ast.ImportFrom(module=str(module), level=0, names=names):
                modules = [module]
                modules += [f"{module}.{a.name}" for a in names if a.name.startswith("_")]
            case ast.Attribute(value=value, attr=attr):
                if _is_private(attr) and not (isinstance(value, ast.Name) and value.id in OWN):
                    yield f"{file}:{node.lineno} {ast.unparse(node)}"
                continue
            case ast.ClassDef(bases=[_, *_]):
                inherited = _used_by_self(node) - _defined_in(tree)
                yield from (f"{file}:{node.lineno} {node.name}.{name}" for name in inherited)
                continue
            case _:
                continue
        for name in modules:
            library = name.split(".", maxsplit=1)[0]
            if library in FILES and not PUBLIC_MODULES[library].fullmatch(name):
                yield f"{file}:{node.lineno} {name}"


OWN = frozenset({"self", "cls"})


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__") and name not in PUBLIC_NAMES


def _used_by_self(node: ast.ClassDef) -> set[str]:
    return {
        part.attr
        for part in ast.walk(node)
        if isinstance(part, ast.Attribute)
        and isinstance(part.value, ast.Name)
        and part.value.id in OWN
        and _is_private(part.attr)
    }


def _defined_in(tree: ast.Module) -> set[str]:
    """Return the private names that the classes of a module define: methods and attributes."""
    names = set()
    for part in ast.walk(tree):
        match part:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                names.add(name)
            case ast.Attribute(attr=name, ctx=ast.Store()) | ast.Name(id=name, ctx=ast.Store()):
                names.add(name)
            case _:
                pass
    return names


def test_only_one_file_for_each_library_leans_on_its_private_parts() -> None:
    found = [
        use
        for path in sorted(SOURCE.rglob("*.py"))
        if (file := str(path.relative_to(SOURCE))) not in FILES.values()
        for use in private_uses(path.read_text(), file)
    ]
    assert found == [], "move these uses to the file of their library: " + ", ".join(FILES.values())


@pytest.mark.parametrize(
    "code",
    [
        "from aiohttp.client_proto import ResponseHandler",
        "from litestar._openapi.schema_generation import SchemaCreator",
        "import uvicorn.server",
        "from aiohttp import _cookie_helpers",
        "connector._factory = None",
        "class Mine(aiohttp.TCPConnector):\n    def free(self): return self._available_connections",
    ],
)
def test_a_private_use_elsewhere_is_found(code: str) -> None:
    assert len(list(private_uses(code, "x.py"))) == 1


# ---- signatures -----------------------------------------------------------------------------

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
    (HttpToolsProtocol._unset_keepalive_if_required, "self"),  # noqa: SLF001  # leaned on
    (FlowControl.pause_reading, "self"),
    (uvicorn.Server.capture_signals, "self"),
    (uvicorn.Server.shutdown, "self, sockets=None"),
    (aiohttp.BaseConnector.connect, "self, req, traces, timeout"),
    (Connection.close, "self"),
    (Connection.release, "self"),
    (ResponseHandler.__init__, "self, loop"),
    (ResponseHandler.connection_made, "self, transport"),
    (ResponseHandler.data_received, "self, data"),
    (ResponseHandler.feed_data, "self, data, size=0"),
    (ResponseHandler.set_exception, "self, exc, exc_cause=<sentinel>"),
    (ResponseHandler.is_connected, "self"),
    (ResponseHandler.exception, "self"),
    (ResponseHandler.read, "self"),
    (aiohttp.StreamReader.set_exception, "self, exc, exc_cause=<sentinel>"),
    (aiohttp.StreamReader.read_nowait, "self, n=-1"),
    (AbstractDTO.decode_bytes, "self, value"),
    (AbstractDTO.create_for_field_definition, "field_definition, handler_id, backend_cls=None"),
    (AbstractDTO.create_openapi_schema, "field_definition, handler_id, schema_creator"),
    (AbstractDTO.generate_field_definitions, "model_type"),
    (AbstractDTO.detect_nested_field, "field_definition"),
]


@pytest.mark.parametrize(
    ("part", "expected"), SIGNATURES, ids=[part.__qualname__ for part, _ in SIGNATURES]
)
def test_a_part_has_the_expected_parameters(part: Callable[..., Any], expected: str) -> None:
    parameters = [
        parameter.name
        + ("" if parameter.default is parameter.empty else f"={_default(parameter.default)}")
        for parameter in inspect.signature(part).parameters.values()
    ]
    assert ", ".join(parameters) == expected, f"{part.__qualname__} has other parameters"


def _default(value: object) -> str:
    return repr(value) if value is None or isinstance(value, int) else "<sentinel>"


async def test_what_our_subclasses_add_is_no_part_of_the_library() -> None:
    served, connection = Served(), GatewayConnection(asyncio.get_running_loop())
    parts = {
        LimitedHttpProtocol: {*dir(HttpToolsProtocol), *vars(served.connection)},
        Server: {*dir(uvicorn.Server), *vars(uvicorn.Server(served.connection.config))},
        GatewayConnection: {*dir(ResponseHandler), *vars(connection)} - {"_answer"},
        GatewayConnector: {*dir(aiohttp.TCPConnector)},
    }
    overridden = {part.__name__ for part, _ in SIGNATURES}
    for ours, names in parts.items():
        added = {name for name in vars(ours) if not name.endswith("__")} - overridden
        assert not added & names, f"{ours.__name__} hides a part of its base class"


# ---- uvicorn --------------------------------------------------------------------------------


class Wire(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.is_closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def close(self) -> None:
        self.is_closed = True

    def is_closing(self) -> bool:
        return self.is_closed

    def pause_reading(self) -> None:
        """Do nothing."""

    def resume_reading(self) -> None:
        """Do nothing."""


class Served:
    """A uvicorn connection without a network, and its application."""

    def __init__(self) -> None:
        self.can_answer = asyncio.Event()
        self.state = ServerState()
        config = uvicorn.Config(self.answer, interface="asgi3", ws="none", log_config=None)
        self.connection = HttpToolsProtocol(config, self.state, {})
        self.wire = Wire()
        self.connection.connection_made(self.wire)

    async def answer(self, _: Any, receive: Any, send: Any) -> None:
        await receive()
        await self.can_answer.wait()
        headers = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"ok"})

    async def finish(self) -> None:
        self.can_answer.set()
        while self.state.tasks:
            await asyncio.wait(self.state.tasks)


GET = b"GET /path?query HTTP/1.1\r\nHost: x\r\n\r\n"


async def test_uvicorn_counts_connections_and_tasks_in_its_server_state() -> None:
    served = Served()
    assert served.state.connections == {served.connection}
    assert served.connection.connections is served.state.connections
    served.connection.data_received(GET)
    assert len(served.state.tasks) == 1
    await served.finish()
    served.connection.connection_lost(None)
    assert served.state.connections == served.state.tasks == set()


async def test_uvicorn_starts_a_cycle_for_each_head_and_reports_its_progress() -> None:
    served = Served()
    served.connection.data_received(GET.replace(b"\r\n\r\n", b"\r\nContent-Length: 2\r\n\r\n"))
    cycle = served.connection.cycle
    assert isinstance(cycle, RequestResponseCycle)
    progress = [(cycle.more_body, cycle.response_started, cycle.response_complete)]
    served.connection.data_received(b"{}")
    progress.append((cycle.more_body, cycle.response_started, cycle.response_complete))
    await served.finish()
    progress.append((cycle.more_body, cycle.response_started, cycle.response_complete))
    assert progress == [(True, False, False), (False, False, False), (False, True, True)]
    assert served.connection.url == b"/path?query"
    assert served.wire.written.startswith(b"HTTP/1.1 200 OK\r\n")
    assert not served.wire.is_closed


async def test_uvicorn_queues_the_next_request_of_a_pipeline() -> None:
    served = Served()
    served.connection.data_received(GET + GET)
    waiting = [len(served.connection.pipeline)]
    assert len(served.state.tasks) == 1
    await served.finish()
    waiting.append(len(served.connection.pipeline))
    assert waiting == [1, 0]
    assert served.wire.written.count(b"HTTP/1.1 200 OK\r\n") == 2


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
    served.connection._unset_keepalive_if_required()  # noqa: SLF001  # leaned on
    assert timer.cancelled()


async def test_uvicorn_keeps_the_state_of_flow_control() -> None:
    flow = Served().connection.flow
    paused = [flow.write_paused]
    flow.pause_writing()
    paused.append(flow.write_paused)
    flow.resume_writing()
    paused.append(flow.write_paused)
    assert paused == [False, True, False]


async def test_uvicorn_has_no_other_way_to_limit_a_head_or_a_reader() -> None:
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


# ---- aiohttp --------------------------------------------------------------------------------

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"


def opened() -> tuple[GatewayConnection, Answer, Wire]:
    """Return a connection to a gateway that has written a request."""
    connection, answer, wire = GatewayConnection(asyncio.get_running_loop()), Answer(), Wire()
    connection.connection_made(wire)
    connection.write(b"POST / HTTP/1.1\r\n\r\n", answer)
    return connection, answer, wire


async def test_aiohttp_opens_connections_by_its_factory_and_keeps_them_after_release() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        connector = GatewayConnector(URL(f"http://127.0.0.1:{port}/"), 1)
        used = []
        for _ in range(2):
            connection = await connector.acquire()
            used.append(connection.protocol)
            connection.release()
        await connector.close()
    assert isinstance(used[0], GatewayConnection)
    assert used[0] is used[1]


async def test_aiohttp_returns_an_answer_and_its_body() -> None:
    connection, answer, wire = opened()
    assert wire.written == b"POST / HTTP/1.1\r\n\r\n"
    connection.data_received(OK + b"{}")
    message, content = await connection.read()
    assert (message.code, message.headers.get("content-length")) == (200, "2")
    assert await read_body(content, 2, answer.body) == b"{}"
    assert (answer.head, connection.should_close) == (OK + b"{}", False)
    assert connection.is_connected()


async def test_aiohttp_closes_a_connection_with_data_that_nobody_asked_for() -> None:
    connection, _, _ = opened()
    connection.data_received(OK + b"{}" + OK)
    await connection.read()
    assert connection.should_close


async def test_aiohttp_keeps_the_received_part_of_a_body_that_breaks_off() -> None:
    connection, answer, _ = opened()
    connection.data_received(OK + b"{")
    _, content = await connection.read()
    connection.connection_lost(None)
    with pytest.raises(aiohttp.ClientPayloadError):
        await read_body(content, 2, answer.body)
    assert answer.body == b"{"


async def test_aiohttp_reports_what_its_parser_refuses_by_set_exception() -> None:
    connection, answer, wire = opened()
    connection.data_received(b"HTTP/1.1 503 Busy\r\nbad header\r\n\r\n")
    with pytest.raises(UnreadableAnswerError):
        await connection.read()
    assert wire.is_closed
    assert answer.head.startswith(b"HTTP/1.1 503 ")


async def test_aiohttp_has_the_current_body_in_payload() -> None:
    connection, answer, _ = opened()
    connection.data_received(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n")
    _, content = await connection.read()
    assert connection._payload is content  # noqa: SLF001  # leaned on
    connection.data_received(b"not a size\r\n")
    with pytest.raises(UnreadableAnswerError):
        await read_body(content, 9, answer.body)
    assert answer.body == b"{"


def test_aiohttp_errors_of_its_parser_are_no_client_errors() -> None:
    assert not issubclass(HttpProcessingError, aiohttp.ClientError | OSError)


# ---- Litestar -------------------------------------------------------------------------------


class NewThing(Input, frozen=True):
    name: str


@post("/things", dto=JsonBody, return_dto=None)
async def create_thing(data: JSONBody[NewThing]) -> str:
    return data.name


@get("/stream")
async def stream() -> Stream:
    return Ending(iter([b"1"]))


ended: list[str] = []


class Ending(Stream):
    def to_asgi_response(self, *args: Any, **options: Any) -> ASGIResponse:
        stack = AsyncExitStack()
        stack.callback(ended.append, "stream")
        return close_after(super().to_asgi_response(*args, **options), stack)


@pytest.fixture(scope="module")
def web() -> Iterator[TestClient[Litestar]]:
    app = Litestar([create_thing, stream], openapi_config=openapi_config(), logging_config=None)
    with TestClient(app) as client:
        yield client


def test_litestar_decodes_a_body_by_the_dto_alone(web: TestClient[Litestar]) -> None:
    answer = web.post("/things", json={"name": "one"})
    assert (answer.status_code, answer.text) == (201, "one")


def test_litestar_takes_the_schema_of_a_body_from_the_dto(web: TestClient[Litestar]) -> None:
    schema = web.get("/openapi.json").json()
    body = schema["paths"]["/things"]["post"]["requestBody"]["content"]["application/json"]
    assert body["schema"] == {"$ref": "#/components/schemas/NewThing"}


def test_litestar_only_calls_the_response_that_it_is_given(web: TestClient[Litestar]) -> None:
    ended.clear()
    assert web.get("/stream").content == b"1"
    assert ended == ["stream"]


def test_litestar_registers_its_catch_all_pages_on_the_router_of_the_documentation() -> None:
    paths: set[str] = set()

    class Recording(type(docs_router())):  # type: ignore[misc]  # the router's own class
        def register(self, value: Any) -> list[Any]:
            paths.update(value.paths)
            return super().register(value)  # type: ignore[no-any-return]

    config = openapi_config()
    config.openapi_router = Recording(path="/", route_handlers=[])
    app = Litestar([], openapi_config=config, logging_config=None)
    pages = {path for plugin in docs_plugins() for path in plugin.paths}
    assert paths == pages | CATCH_ALL_PATHS
    assert pages <= {route.path for route in app.routes}
    assert not CATCH_ALL_PATHS & {route.path for route in app.routes}
