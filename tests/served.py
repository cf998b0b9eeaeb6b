"""The application behind a real HTTP server in this process, and raw connections to it."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from typing import NamedTuple

import msgspec
import uvicorn
from litestar.types import ASGIApp

from mailer.web.server.connection import ConnectionLimits
from mailer.web.server.direct import DirectAnswers
from mailer.web.server.uvicorn_server import create_protocol_class
from tests.event_timeout import EVENT_TIMEOUT

GET = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
"""A complete request that every test application answers with 200."""


class Server(uvicorn.Server):
    """A uvicorn server that leaves signals to pytest."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def listening(
    app: ASGIApp,
    limits: ConnectionLimits | None = None,
    keep_alive: int = 5,
    direct_answers: DirectAnswers | None = None,
) -> AsyncIterator[int]:
    """Serve `app` on loopback with these limits; yield the port.

    An idle connection is closed `keep_alive` seconds, plus `limits.head`, after its last response.
    """
    config = uvicorn.Config(
        app,
        http=create_protocol_class(limits or ConnectionLimits(), direct_answers),
        port=0,
        log_config=None,
        lifespan="off",
        ws="none",
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=keep_alive,
        timeout_graceful_shutdown=1,
    )
    server = Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await serving


class RawResponse(NamedTuple):
    """A response as it was read from a connection; the names of its headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class RawProblem(NamedTuple):
    """The two most important parts of a response with a problem."""

    status: int
    detail: str


class RawConnection:
    """A connection to the server, on which a test sends any bytes and reads the responses."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def say(self, content: bytes) -> None:
        """Send bytes."""
        self.writer.write(content)
        await self.writer.drain()

    async def answer(self) -> RawResponse:
        """Read a response, with the body that its Content-Length announces."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        status_line, *header_lines = head.decode().rstrip().split("\r\n")
        pairs = (line.partition(": ") for line in header_lines)
        headers = {name.lower(): value for name, _, value in pairs}
        body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        return RawResponse(int(status_line.split()[1]), headers, body)

    async def problem(self) -> RawProblem:
        """Read a response that must be a problem."""
        status, headers, body = await self.answer()
        assert headers["content-type"] == "application/problem+json"
        problem = msgspec.json.decode(body)
        assert problem["status"] == status
        return RawProblem(status, problem["detail"])

    async def ended(self, within: float = EVENT_TIMEOUT) -> float:
        """Wait until the server closes the connection; return the seconds waited."""
        loop = asyncio.get_running_loop()
        started_at = loop.time()
        async with asyncio.timeout(within):
            with contextlib.suppress(ConnectionError):
                while await self.reader.read(65_536):
                    pass
        return loop.time() - started_at

    @property
    def is_ended(self) -> bool:
        """Whether the server has closed the connection, as far as is known here."""
        return self.reader.at_eof() or self.reader.exception() is not None


@contextlib.asynccontextmanager
async def talks(
    port: int, count: int = 1, *, takes_little: bool = False
) -> AsyncIterator[list[RawConnection]]:
    """Open `count` connections to the server, and abort them after the block.

    With `takes_little` their receive buffers are small: the server cannot send much that the test
    does not read.
    """
    loop = asyncio.get_running_loop()
    opened = []
    try:
        for _ in range(count):
            connection = socket.socket()
            connection.setblocking(False)  # noqa: FBT003  # the signature of the socket module
            if takes_little:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await loop.sock_connect(connection, ("127.0.0.1", port))
            limit = 1 if takes_little else 2**16
            opened.append(
                RawConnection(*await asyncio.open_connection(sock=connection, limit=limit))
            )
        yield opened
    finally:
        for talk in opened:
            talk.writer.transport.abort()
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def talk(port: int, *, takes_little: bool = False) -> AsyncIterator[RawConnection]:
    """Open one connection, as `talks` does."""
    async with talks(port, 1, takes_little=takes_little) as [only]:
        yield only


async def served_normally(port: int, requests: int = 20, path: str = "/health/live") -> None:
    """Assert that other clients are served: `requests` get 200, each on a new connection."""
    async with asyncio.timeout(EVENT_TIMEOUT):
        for _ in range(requests):
            async with talk(port) as normal:
                await normal.say(GET.replace(b"/health/live", path.encode()))
                assert (await normal.answer()).status == 200
