"""A request's body on its way in, known by its digest, and an answer held back on its way out."""

import asyncio
import hashlib
import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from litestar import Request
from litestar.exceptions.http_exceptions import RequestEntityTooLarge
from litestar.types import Message, Receive, ReceiveMessage, Send

from mailer.web.body import CLOSE, SlowBodyError, never_stalling


class ClientGoneError(Exception):
    """Who asked has gone away, and will see no answer."""


class Asked:
    """A request whose body is hashed as it comes, and may be read before a handler wants it."""

    def __init__(
        self,
        request: Request[Any, Any, Any],
        receive: Receive,
        at_hand: int,
        *,
        is_form: bool = False,
    ) -> None:
        """Of a body that is drained keep up to `at_hand` bytes."""
        self.is_form = is_form
        self.scope = request.scope
        self.digest: bytes | None = None
        """SHA-256 of the method, the address, the credential and the body; None until the whole
        body has come. With the credential nobody who reads the digest can guess the body."""
        self.is_dropped = False
        """Whether the body was drained, and is too large to have been kept."""
        self._limit = request.route_handler.resolve_request_max_body_size() or math.inf
        self._length = request.content_length or 0
        self._patience = request.app.state.limits.body
        self._receive = receive
        self._at_hand = at_hand
        self._size = 0
        self._read: list[ReceiveMessage] = []
        head = (request.method, request.url.path, request.url.query)
        headers = (request.headers.get(name, "") for name in ("Authorization", "Content-Type"))
        self._hash = hashlib.sha256("\n".join((*head, *headers, "")).encode())

    async def receive(self) -> ReceiveMessage:
        """Return the next part of the body: what was drained, then what comes."""
        return self._read.pop(0) if self._read else await self._next()

    async def drain(self) -> None:
        """Read the whole body, as patiently as a handler would.

        Raises `SlowBodyError`, `StalledUploadError`, `ClientGoneError`, and HTTPException 413
        beyond the limit of the route.
        """
        if self._length > self._limit:
            raise RequestEntityTooLarge
        if self._limit > self._at_hand:
            async with aclosing(never_stalling(self._parts())) as parts:
                async for _ in parts:
                    pass
            return
        try:
            async with asyncio.timeout(self._patience):
                async for _ in self._parts():
                    pass
        except TimeoutError as error:
            raise SlowBodyError(headers=CLOSE) from error

    async def _parts(self) -> AsyncGenerator[bytes, None]:
        while self.digest is None:
            message = await self._next()
            if message["type"] != "http.request":
                raise ClientGoneError
            if self._size > self._limit:
                raise RequestEntityTooLarge
            self._keep(message)
            yield message["body"]

    def _keep(self, message: ReceiveMessage) -> None:
        self._read.append(message)
        if self._size > self._at_hand:
            self.is_dropped = True
            self._read = [{"type": "http.request", "body": b"", "more_body": False}]

    async def _next(self) -> ReceiveMessage:
        message = await self._receive()
        if message["type"] == "http.request":
            self._size += len(message["body"])
            self._hash.update(message["body"])
            if not message.get("more_body", False):
                self.digest = self._hash.digest()
        return message


class Answer:
    """An answer as it is sent, of a handler that took it for sent, or of one long ago."""

    def __init__(
        self,
        status: int = 0,
        media_type: str | None = None,
        body: bytes = b"",
        *headers: tuple[bytes, bytes],
    ) -> None:
        self.status = status
        self.body = body
        self._headers = list(headers)
        if media_type is not None:
            self._headers.append((b"content-type", media_type.encode("latin-1")))
            self._headers.append((b"content-length", str(len(body)).encode()))

    @property
    def media_type(self) -> str | None:
        """What its Content-Type says."""
        given = (value for name, value in self._headers if name.lower() == b"content-type")
        return next((value.decode("latin-1") for value in given), None)

    @property
    def location(self) -> bytes | None:
        """Where it leads on to."""
        return next((value for name, value in self._headers if name.lower() == b"location"), None)

    async def take(self, message: Message) -> None:
        """Be the handler's `send`."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._headers = list(message["headers"])
        elif message["type"] == "http.response.body":
            self.body += message["body"]

    async def send(self, send: Send) -> None:
        """Send it, in one piece."""
        headers = self._headers
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": False})
