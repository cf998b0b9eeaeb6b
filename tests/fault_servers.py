"""Servers on loopback for tests of the gateway client: they answer, misbehave, record requests."""

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
"""SO_LINGER with which closing a socket sends RST instead of FIN."""

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
        await asyncio.gather(*(w.wait_closed() for w in connections), return_exceptions=True)


@contextlib.contextmanager
def crowded() -> Iterator[str]:
    """Run a server with a full backlog, on which connecting neither succeeds nor fails."""
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
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


async def request_of(reader: asyncio.StreamReader) -> tuple[str, dict[str, str], bytes]:
    """Read one request; return its first line, its headers and its body."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in head[1:] if line)}
    return head[0], headers, await reader.readexactly(int(headers["content-length"]))


def says(*parts: bytes, every: float = 0.0) -> Talk:
    """Read a request, send the parts with `every` seconds after each, and close."""

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

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        del writer
        try:
            while part := await reader.read(65_536):
                self.received += part
                self.has_request.set()
        finally:
            self.is_left.set()


# ---- the gateway's side ---------------------------------------------------------------------


def gateway_at(url: str, token: str | None = None, concurrency: int = 5) -> HttpGateway:
    return HttpGateway(url, token, concurrency=concurrency)


def a_request(message_id: int = 7, text: str = "Hello", within: float = 30.0) -> Request:
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
