"""Connections: how long a client is waited for, how much of a head is read, who goes when all come.

uvicorn waits for ever for a head, and for who takes nothing of an answer, and reads a head of any
size.
"""

from asyncio import Protocol, TimerHandle, Transport
from http import HTTPStatus
from typing import ClassVar

import httptools
import msgspec
import structlog
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mailer.web.headers import COMMON
from mailer.web.problems import plain, problem

log = structlog.get_logger()

URL_LIMIT = 8 * 1024
"""Bytes of what is asked for, with its query."""
HEAD_LIMIT = 32 * 1024
"""Bytes of a request's headers together."""
MOST_HEADERS = 100
PACE = 1024
"""Bytes a second: who takes an answer more slowly, over the time that he is waited for, is cut."""
TOO_MANY = "Too many connections are being served; try again in a moment."


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How long a client is waited for, in seconds, and how many connections there may be."""

    head: float = 10.0
    """From the beginning of a connection until a head is whole; uvicorn's time between two requests
    comes on top where it is kept."""
    body: float = 30.0
    """For a whole body of JSON or of a form."""
    reader: float = 60.0
    """For a reader who takes nothing, or too little, of an answer that waits to be taken."""
    connections: int = 500
    """At once; then each new one takes the place of the one that lets us wait longest."""


class RefusedError(Exception):
    """A request whose head is not to be read on; raised inside the parser, which then stops."""

    def __init__(self, status: HTTPStatus, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


class Connection(HttpToolsProtocol):
    """A connection that ends when its client takes too long, and makes room when there are many."""

    limits: ClassVar[Limits]
    waiting: ClassVar[dict["Connection", None]]
    """Those whose client's turn it is, the longest since it did something first."""

    _head_timer: TimerHandle | None = None
    _reader_timer: TimerHandle | None = None
    _refusal: RefusedError | None = None
    _is_one_too_many = False
    _has_begun = False
    _unparsed = 0
    _head_size = 0
    _fields = 0
    _is_head_whole = False
    _untaken = 0

    # ---- what happens to a connection ------------------------------------------------------

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Wait for a head; where there are too many connections another one goes, or this."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self._is_one_too_many = not self._make_room()
        self._wait_for_head(self.limits.head)
        self._sort_in()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self.waiting.pop(self, None)
        self._stop_waiting_for_head()
        self._stop_waiting_for_reader()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on; what is malformed or has too large a head is refused, and all ends."""
        self._unset_keepalive_if_required()
        self._unparsed += len(data)
        try:
            self.parser.feed_data(data)
            if self._unparsed > URL_LIMIT + HEAD_LIMIT:  # of one header, or of a chunk's extension
                raise _too_large()
        except httptools.HttpParserUpgrade:
            pass  # to nothing that is spoken here: it is answered as any other request
        except (httptools.HttpParserError, RefusedError) as error:
            malformed = RefusedError(HTTPStatus.BAD_REQUEST, "This is not HTTP.")
            self._refuse(error if isinstance(error, RefusedError) else self._refusal or malformed)

    def pause_writing(self) -> None:
        """Wait for a reader who does not keep up."""
        super().pause_writing()
        self._wait_for_reader()
        self._sort_in()

    def resume_writing(self) -> None:
        """Go on with a reader who has caught up."""
        super().resume_writing()
        self._stop_waiting_for_reader()
        if not self._is_answering:
            self._wait_for_next_head()
        self._sort_in()

    def cut(self) -> None:
        """Close it if an answer has begun."""
        if self._has_begun and self.cycle.response_started:
            self.transport.abort()

    # ---- what the parser finds -------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Begin with a head."""
        super().on_message_begin()
        self._head_size = self._fields = 0
        self._is_head_whole = False

    def on_url(self, url: bytes) -> None:
        """Take a part of what is asked for."""
        super().on_url(url)
        if len(self.url) > URL_LIMIT:
            self._stop(RefusedError(HTTPStatus.REQUEST_URI_TOO_LONG, "The URL is too long."))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; a trailer counts, but says nothing.

        No trailer that we know of is needed, and one must not pass for a header that a proxy
        would have looked at (RFC 9110, section 6.5.1).
        """
        if not self._is_head_whole:
            super().on_header(name, value)
        self._head_size += len(name) + len(value)
        self._fields += 1
        if self._head_size > HEAD_LIMIT or self._fields > MOST_HEADERS:
            self._stop(_too_large())

    def on_headers_complete(self) -> None:
        """Begin with what is asked for, unless there is no room."""
        if self._is_one_too_many:
            self._stop(RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, TOO_MANY))
        super().on_headers_complete()
        self._has_begun = self._is_head_whole = True
        self._unparsed = 0
        self._stop_waiting_for_head()
        self._sort_in()

    def on_body(self, body: bytes) -> None:
        """Take a part of a body."""
        super().on_body(body)
        self._unparsed = 0
        self._sort_in()

    def on_message_complete(self) -> None:
        """Know that a request is whole."""
        super().on_message_complete()
        self._unparsed = 0
        self._sort_in()

    def on_response_complete(self) -> None:
        """Wait for the next request, and for the reader of what is still to be taken."""
        goes_on = bool(self.pipeline)
        super().on_response_complete()
        if not goes_on:
            self._wait_for_next_head()
        self._sort_in()

    # ---- whose turn it is ------------------------------------------------------------------

    @property
    def _is_answering(self) -> bool:
        return self._has_begun and not self.cycle.response_complete

    def _sort_in(self) -> None:
        """Stand last in the line of those who wait for their clients, or not in it."""
        self.waiting.pop(self, None)
        if not self._is_answering or self.cycle.more_body or self.flow.write_paused:
            self.waiting[self] = None

    def _make_room(self) -> bool:
        """End the connection whose client has let us wait longest; whether there is one."""
        longest = next(iter(self.waiting), None)
        if longest is None:
            return False
        del self.waiting[longest]
        log.debug("connection_displaced")
        longest.transport.abort()
        return True

    def _wait_for_head(self, seconds: float) -> None:
        self._stop_waiting_for_head()
        self._head_timer = self.loop.call_later(seconds, self._give_up)

    def _wait_for_next_head(self) -> None:
        if self.flow.write_paused:
            return  # its reader is waited for, and has not caught up with this answer
        is_untaken = self.transport.get_write_buffer_size() > 0
        rest = self.limits.reader if is_untaken else self.timeout_keep_alive
        self._wait_for_head(rest + self.limits.head)

    def _stop_waiting_for_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()

    def _wait_for_reader(self) -> None:
        self._stop_waiting_for_reader()
        self._untaken = self.transport.get_write_buffer_size()
        self._reader_timer = self.loop.call_later(self.limits.reader, self._look_at_reader)

    def _stop_waiting_for_reader(self) -> None:
        if self._reader_timer is not None:
            self._reader_timer.cancel()

    def _look_at_reader(self) -> None:
        taken = self._untaken - self.transport.get_write_buffer_size()
        if taken < PACE * self.limits.reader:
            self._give_up()
        else:
            self._wait_for_reader()

    def _give_up(self) -> None:
        log.debug("connection_given_up")
        self.transport.abort()  # close() would wait until all is taken

    # ---- refusals --------------------------------------------------------------------------

    def _stop(self, refusal: RefusedError) -> None:
        self._refusal = refusal
        raise refusal  # which ends the parser; what it makes of it does not tell why

    def _refuse(self, refusal: RefusedError) -> None:
        """Answer why, unless another answer is on its way, which is the last then; and close."""
        log.debug("connection_refused", status=refusal.status.value)
        if self._is_answering and self.cycle.more_body:
            if self.cycle.response_started:
                self.transport.abort()  # what is answered will never be whole
                return
            self.cycle.disconnected = True  # what it would answer comes too late
            self.cycle.message_event.set()
        elif self._is_answering:
            self.cycle.keep_alive = False
            self.flow.pause_reading()
            return
        self.transport.write(_answer(refusal))
        self.transport.close()


def connection_class(limits: Limits) -> type[Protocol]:
    """Return the class of the connections of one server, for uvicorn's `http`."""

    class Limited(Connection):
        waiting: ClassVar[dict[Connection, None]] = {}

    Limited.limits = limits
    return Limited


def _too_large() -> RefusedError:
    status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
    return RefusedError(status, "The headers are too large.")


def _answer(refusal: RefusedError) -> bytes:
    status = refusal.status
    described, body = plain(problem(status, refusal.detail))
    is_busy = status == HTTPStatus.SERVICE_UNAVAILABLE
    headers = [
        *COMMON,
        *described,
        (b"connection", b"close"),
        *([(b"retry-after", b"1")] if is_busy else []),
    ]
    lines = [f"HTTP/1.1 {status.value} {status.phrase}".encode()]
    lines += [name + b": " + value for name, value in headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body
