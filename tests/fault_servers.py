"""Servers on loopback for tests of the gateway client, and what the tests do with the client.

The servers respond, misbehave and record requests.
"""

import asyncio
import contextlib
import socket
import ssl
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import NamedTuple

from mailer.clock import elapsed
from mailer.dispatch.in_flight import InFlightRequests
from mailer.gateway.config import default_gateway
from mailer.gateway.http import HttpGateway
from mailer.gateway.protocol import Gateway, Outcome, OutgoingMessage, Request
from mailer.settings import Settings

OK = b'{"code": 0, "message": "OK"}'
"""A body that accepts the message."""
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""Value of the socket option SO_LINGER: on, 0 s. Closing the socket then sends RST, not FIN."""

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
"""A server's side of one connection, which is closed when the function returns."""


# ---- the server's side ----------------------------------------------------------------------


@contextlib.asynccontextmanager
async def served(talk: Talk, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """Run a server that handles every connection by `talk`; yield its URL for a gateway.

    At the end, all connections are aborted.
    """
    connections: dict[asyncio.StreamWriter, asyncio.Task[None] | None] = {}

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections[writer] = asyncio.current_task()
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await talk(reader, writer)
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls)
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
def listener_with_full_backlog() -> Iterator[socket.socket]:
    """Yield a socket that listens with a full backlog: connecting neither succeeds nor fails.

    The backlog is the kernel's queue of connections that the server has not accepted yet.
    """
    with contextlib.ExitStack() as sockets:
        listener = sockets.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):  # connections that the kernel accepts before the backlog is full
            filler = sockets.enter_context(socket.socket())
            filler.setblocking(False)  # noqa: FBT003  # the signature of the socket module
            filler.connect_ex(listener.getsockname())
        yield listener


@contextlib.contextmanager
def server_with_full_backlog() -> Iterator[str]:
    """Run a server with a full backlog; yield its URL for a gateway."""
    with listener_with_full_backlog() as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/send/"


def http_response(status: int, body: bytes = b"", *headers: str) -> bytes:
    """Return the bytes of a response with a Content-Length and these header lines.

    The reason phrase after the status is `Whatever`, because nobody reads it.
    """
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


class ReceivedRequest(NamedTuple):
    """A request that a server has received."""

    line: str
    """The first line, such as `POST /send/7 HTTP/1.1`."""
    headers: dict[str, str]
    """The headers, with names in lower case."""
    body: bytes

    @property
    def message_id(self) -> int:
        """The message's id, from the end of the path."""
        _, path, _ = self.line.split()
        return int(path.rpartition("/")[2])


async def read_request(reader: asyncio.StreamReader) -> ReceivedRequest:
    """Read one request."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    fields = (line.partition(": ") for line in head[1:] if line)
    headers = {name.lower(): value for name, _, value in fields}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return ReceivedRequest(head[0], headers, body)


def respond_with(*parts: bytes, every: float = 0.0) -> Talk:
    """Return a `Talk` that reads a request and sends `parts`, with `every` seconds after each."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
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


class AcceptingServer:
    """A server that accepts every message, and records the requests."""

    def __init__(self) -> None:
        self.requests: list[ReceivedRequest] = []

    @property
    def counts_by_message(self) -> Counter[int]:
        """Number of requests for each message."""
        return Counter(request.message_id for request in self.requests)

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Handle a connection; a `Talk`."""
        while True:
            self.requests.append(await read_request(reader))
            writer.write(http_response(200, OK))


class SilentServer:
    """A server that never responds. It records the bytes received and the disconnection."""

    def __init__(self) -> None:
        self.received = b""
        self.has_received = asyncio.Event()
        self.is_disconnected = asyncio.Event()

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Handle a connection; a `Talk`."""
        del writer  # it never responds
        try:
            while part := await reader.read(65_536):
                self.received += part
                self.has_received.set()
        finally:
            self.is_disconnected.set()


# ---- mailer's side --------------------------------------------------------------------------


def gateway_at(url: str, token: str | None = None, concurrency: int = 5) -> HttpGateway:
    """Return mailer's client of the gateway at `url`."""
    settings = Settings(gateway_url=url, gateway_token=token, gateway_concurrency=concurrency)
    return HttpGateway(default_gateway(settings))


def create_request(message_id: int = 7, text: str = "Hello", within: float = 30.0) -> Request:
    """Return a request with a deadline `within` seconds from now."""
    message = OutgoingMessage(id=message_id, phone="79161234567", text=text)
    return Request(message, elapsed() + within)


async def send(gateway: Gateway, request: Request | None = None) -> Outcome:
    """Send a request and abort it at its deadline, as the dispatcher does."""
    request = request or create_request()
    requests = InFlightRequests()
    requests.add(mailing_id=1, request=request)
    try:
        return await gateway.send(request)
    finally:
        requests.remove(request)


async def send_to(talk: Talk, within: float = 30.0) -> Outcome:
    """Send one request to a server that handles connections by `talk`; return the outcome."""
    async with served(talk) as url, gateway_at(url) as gateway:
        return await send(gateway, create_request(within=within))
