"""TCP servers that answer as a test says, also wrongly, and requests to them as mailer sends them.

They stand for gateways and OpenID providers that fail.
"""

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

from mailer.clock import elapsed
from mailer.dispatch.in_flight import InFlightRequests
from mailer.gateway.http import HttpGateway
from mailer.gateway.protocol import Gateway, Outcome, Request

OK = b'{"code": 0, "message": "OK"}'
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""The value of SO_LINGER with which closing a socket resets the connection (RST instead of FIN)."""

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
"""Handles a connection; the connection is closed when it returns."""


# ---- the server's side ----------------------------------------------------------------------


@contextlib.asynccontextmanager
async def served(talk: Talk, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """Run a server that handles every connection by `talk`; yield its URL for a gateway."""
    connections: dict[asyncio.StreamWriter, asyncio.Task[None] | None] = {}

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections[writer] = asyncio.current_task()
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await talk(reader, writer)
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls)
    try:
        scheme = "http" if tls is None else "https"
        yield f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}/send/"
    finally:
        server.close()
        for writer, task in connections.items():
            if task is not None:
                task.cancel()
            writer.transport.abort()
        closing = (writer.wait_closed() for writer in connections)
        await asyncio.gather(*closing, return_exceptions=True)


@contextlib.contextmanager
def crowded() -> Iterator[str]:
    """Run a server that accepts no connection; yield its URL for a gateway.

    Its queue of new connections is full, so connecting neither succeeds nor fails.
    """
    with contextlib.ExitStack() as sockets:
        full = sockets.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(3):  # connections that the kernel accepts before the backlog is full
            filler = sockets.enter_context(socket.socket())
            filler.setblocking(False)  # noqa: FBT003  # the signature of the socket module
            filler.connect_ex(full.getsockname())
        yield f"http://127.0.0.1:{full.getsockname()[1]}/send/"


def answer(status: int, body: bytes = b"", *headers: str) -> bytes:
    """Return the bytes of an HTTP response; each header is a line such as `Connection: close`."""
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


async def request_of(reader: asyncio.StreamReader) -> tuple[str, dict[str, str], bytes]:
    """Read one request; return its first line, its headers and its body."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    header_lines = (line.partition(": ") for line in head[1:] if line)
    headers = {name.lower(): content for name, _, content in header_lines}
    return head[0], headers, await reader.readexactly(int(headers["content-length"]))


def says(*parts: bytes, every: float = 0.0) -> Talk:
    """Return a handler that reads a request, sends the parts of a response, and closes.

    After each part it waits for `every` seconds.
    """

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(every)

    return talk


def reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection by RST."""
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    writer.transport.abort()


class Silent:
    """Reads requests and never answers; records the bytes received and the disconnection."""

    def __init__(self) -> None:
        self.received = b""
        self.has_request = asyncio.Event()
        self.is_left = asyncio.Event()
        """Set when the other side has closed the connection."""

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        del writer
        try:
            while part := await reader.read(65_536):
                self.received += part
                self.has_request.set()
        finally:
            self.is_left.set()


# ---- mailer's side --------------------------------------------------------------------------


def gateway_at(url: str, token: str | None = None, concurrency: int = 5) -> HttpGateway:
    """Return mailer's client of the gateway at `url`."""
    return HttpGateway(url, token, concurrency=concurrency)


def a_request(message_id: int = 7, text: str = "Hello", within: float = 30.0) -> Request:
    """Return a request for a message, which must end `within` seconds."""
    return Request(message_id, "79161234567", text, elapsed() + within)


async def send(gateway: Gateway, request: Request | None = None) -> Outcome:
    """Send a request and abort it at its deadline, as the dispatcher does."""
    request = request or a_request()
    requests = InFlightRequests()
    requests.add(1, request)
    try:
        return await gateway.send(request)
    finally:
        requests.remove(request)


async def sent_to(talk: Talk, within: float = 30.0) -> Outcome:
    """Return the outcome of one request to a server that handles connections by `talk`."""
    async with served(talk) as url, gateway_at(url) as gateway:
        return await send(gateway, a_request(within=within))
