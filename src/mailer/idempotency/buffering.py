"""Buffer a request's body and compute its digest; capture a response instead of sending it.

A body arrives and a response is sent as ASGI messages, dicts with a `type`. The body of a request
may come in many messages of the type `http.request`; the last one has no `more_body`.
"""

import asyncio
import hashlib
import math
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Any

from litestar import Request
from litestar.exceptions.http_exceptions import RequestEntityTooLarge
from litestar.types import Message, Receive, ReceiveMessage, Send

from mailer.web.body import CLOSE_CONNECTION, SlowBodyError, read_with_stall_timeout


class ClientDisconnectedError(Exception):
    """The client has closed the connection before its request was complete."""


class BufferedRequest:
    """A request whose body is hashed as it arrives, and can be read before the handler reads it.

    `drain` reads the body in advance; `receive` gives it to the handler, drained or not.
    """

    def __init__(
        self,
        request: Request[Any, Any, Any],
        receive: Receive,
        max_buffered_bytes: int,
        *,
        is_form: bool = False,
    ) -> None:
        """Wrap a request; `drain` keeps the body for the handler up to `max_buffered_bytes`."""
        self.is_form = is_form
        self.scope = request.scope
        self.digest: bytes | None = None
        """SHA-256 of the method, URL, credential and body; None until the whole body has arrived.

        It includes the credential so that a reader of the digest cannot guess the body. The
        credential of a form is the number `once` in its URL.
        """
        self.is_dropped = False
        """Whether the body was drained and was too large to keep."""
        self._max_body_bytes = request.route_handler.resolve_request_max_body_size() or math.inf
        self._content_length = request.content_length or 0
        self._timeout = request.app.state.limits.body
        self._receive = receive
        self._max_buffered_bytes = max_buffered_bytes
        self._received_bytes = 0
        self._drained_messages: list[ReceiveMessage] = []
        """Messages that were drained and not received by the handler yet."""
        head = (request.method, request.url.path, request.url.query)
        headers = (request.headers.get(name, "") for name in ("Authorization", "Content-Type"))
        self._hash = hashlib.sha256("\n".join((*head, *headers, "")).encode())

    async def receive(self) -> ReceiveMessage:
        """Return the next message: drained messages first, then new ones."""
        if self._drained_messages:
            return self._drained_messages.pop(0)
        return await self._receive_and_hash()

    async def drain(self) -> None:
        """Read the whole body, with the same timeouts as a handler; does nothing if it was read.

        Raises `SlowBodyError`, `StalledUploadError`, `LongUploadError`, `ClientDisconnectedError`,
        and HTTPException 413 for a body over the limit of the route.
        """
        if self._content_length > self._max_body_bytes:
            raise RequestEntityTooLarge
        if self._max_body_bytes > self._max_buffered_bytes:  # a route for uploads
            async with aclosing(read_with_stall_timeout(self._parts())) as parts:
                async for _ in parts:
                    pass
            return
        try:
            async with asyncio.timeout(self._timeout):
                async for _ in self._parts():
                    pass
        except TimeoutError as error:
            raise SlowBodyError(headers=CLOSE_CONNECTION) from error

    async def _parts(self) -> AsyncGenerator[bytes, None]:
        """Yield the parts of the body that have not arrived yet, and keep them for the handler."""
        while self.digest is None:
            message = await self._receive_and_hash()
            if message["type"] != "http.request":
                raise ClientDisconnectedError
            if self._received_bytes > self._max_body_bytes:
                raise RequestEntityTooLarge
            self._keep(message)
            yield message["body"]

    def _keep(self, message: ReceiveMessage) -> None:
        """Keep a drained message; when the body is too large, keep an empty body instead."""
        self._drained_messages.append(message)
        if self._received_bytes > self._max_buffered_bytes:
            self.is_dropped = True
            self._drained_messages = [{"type": "http.request", "body": b"", "more_body": False}]

    async def _receive_and_hash(self) -> ReceiveMessage:
        """Return the next message from the client; with the last one, the digest is complete."""
        message = await self._receive()
        if message["type"] == "http.request":
            self._received_bytes += len(message["body"])
            self._hash.update(message["body"])
            if not message.get("more_body", False):
                self.digest = self._hash.digest()
        return message


class CapturedResponse:
    """A response in memory: captured from a handler, or stored earlier."""

    def __init__(
        self,
        status: int = 0,
        *,
        media_type: str | None = None,
        body: bytes = b"",
        headers: Iterable[tuple[bytes, bytes]] = (),
    ) -> None:
        """Create a stored response; without arguments, one into which `capture` captures.

        Without `media_type` the response has only the given `headers`.
        """
        self.status = status
        self.body = body
        self._headers = list(headers)
        if media_type is not None:
            self._headers.append((b"content-type", media_type.encode("latin-1")))
            self._headers.append((b"content-length", str(len(body)).encode()))

    @property
    def media_type(self) -> str | None:
        """The Content-Type header."""
        values = (value for name, value in self._headers if name.lower() == b"content-type")
        return next((value.decode("latin-1") for value in values), None)

    @property
    def location(self) -> bytes | None:
        """The Location header."""
        return next((value for name, value in self._headers if name.lower() == b"location"), None)

    async def capture(self, message: Message) -> None:
        """Capture a message of a response; the handler gets this method as its `send`."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._headers = list(message["headers"])
        elif message["type"] == "http.response.body":
            self.body += message["body"]

    async def send(self, send: Send) -> None:
        """Send the response, with its body in one message."""
        headers = self._headers
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": False})
