"""Limits of connections: timeouts of slow HTTP clients, sizes of heads, number of connections.

A head is the request line and the headers. uvicorn has no timeout for a head or for a client that
does not read its response, and no limit for the size of a head.
"""

from asyncio import Protocol, TimerHandle, Transport
from http import HTTPStatus
from typing import ClassVar

import httptools
import msgspec
import structlog
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mailer.web.headers import COMMON_HEADERS
from mailer.web.problems import problem, to_response

log = structlog.get_logger()

MAX_URL_BYTES = 8 * 1024
"""Bytes of the request target, with its query."""
MAX_HEAD_BYTES = 32 * 1024
"""Bytes of all headers of a request together."""
MAX_HEADERS = 100
MIN_READ_RATE = 1024
"""Bytes a second that a client must read of its response, on average over the reader timeout."""
TOO_MANY_CONNECTIONS = "Too many connections are being served; try again in a moment."


class ConnectionLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Timeouts for HTTP clients, in seconds, and the number of connections."""

    head: float = 10.0
    """From the start of a connection until its first head is complete. For later requests uvicorn's
    keep-alive timeout is added."""
    body: float = 30.0
    """For a complete body of JSON or of a form."""
    reader: float = 60.0
    """For a client to read enough of a response that is waiting in the write buffer."""
    connections: int = 500
    """Connections at once. Another one evicts the connection that waits longest for its client."""


class RejectedConnectionError(Exception):
    """A request whose head is not read further; raised inside the parser, which it stops."""

    def __init__(self, status: HTTPStatus, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


class LimitedHttpProtocol(HttpToolsProtocol):
    """A connection with timeouts, which can be evicted when there are too many connections."""

    limits: ClassVar[ConnectionLimits]
    waiting: ClassVar[dict["LimitedHttpProtocol", None]]
    """The connections that wait for their clients, ordered by the client's last activity."""

    _head_timer: TimerHandle | None = None
    _reader_timer: TimerHandle | None = None
    _refusal: RejectedConnectionError | None = None
    _is_over_limit = False
    """Whether there are too many connections and no other one could be evicted."""
    _has_request = False
    """Whether any head has been complete on this connection."""
    _unparsed = 0
    """Bytes received since the parser last completed a head, a part of a body, or a request."""
    _head_size = 0
    _header_count = 0
    _is_head_complete = False
    _unread = 0
    """Bytes in the write buffer when the reader timer was started."""

    # ---- events of the connection ----------------------------------------------------------

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Start the timeout for a head; evict another connection if there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self._is_over_limit = not self._evict_one()
        self._wait_for_head(self.limits.head)
        self._update_eviction_order()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers and forget the connection."""
        self.waiting.pop(self, None)
        self._stop_waiting_for_head()
        self._stop_waiting_for_reader()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse data; reject a malformed request or too large a head, and close the connection."""
        self._unset_keepalive_if_required()
        self._unparsed += len(data)
        try:
            self.parser.feed_data(data)
            # one endless header, or a chunk extension: the parser reports neither until its end
            if self._unparsed > MAX_URL_BYTES + MAX_HEAD_BYTES:
                raise _too_large()
        except httptools.HttpParserUpgrade:
            pass  # no other protocol is supported: the request is handled like any other
        except (httptools.HttpParserError, RejectedConnectionError) as error:
            malformed = RejectedConnectionError(HTTPStatus.BAD_REQUEST, "This is not HTTP.")
            self._reject(
                error if isinstance(error, RejectedConnectionError) else self._refusal or malformed
            )

    def pause_writing(self) -> None:
        """Start the timeout for a client that does not read its response fast enough."""
        super().pause_writing()
        self._wait_for_reader()
        self._update_eviction_order()

    def resume_writing(self) -> None:
        """Stop the timeout for a client that has caught up."""
        super().resume_writing()
        self._stop_waiting_for_reader()
        if not self._is_answering:
            self._wait_for_next_head()
        self._update_eviction_order()

    def abort(self) -> None:
        """Abort the connection if its response has started."""
        if self._has_request and self.cycle.response_started:
            self.transport.abort()

    # ---- callbacks of the parser -----------------------------------------------------------

    def on_message_begin(self) -> None:
        """Start a head."""
        super().on_message_begin()
        self._head_size = self._header_count = 0
        self._is_head_complete = False

    def on_url(self, url: bytes) -> None:
        """Add a part of the URL."""
        super().on_url(url)
        if len(self.url) > MAX_URL_BYTES:
            self._stop(
                RejectedConnectionError(HTTPStatus.REQUEST_URI_TOO_LONG, "The URL is too long.")
            )

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header. A trailer counts towards the limits, but is ignored.

        We use no trailers. A trailer must not be taken for a header, because proxies do not check
        trailers (RFC 9110, section 6.5.1).
        """
        if not self._is_head_complete:
            super().on_header(name, value)
        self._head_size += len(name) + len(value)
        self._header_count += 1
        if self._head_size > MAX_HEAD_BYTES or self._header_count > MAX_HEADERS:
            self._stop(_too_large())

    def on_headers_complete(self) -> None:
        """Start to handle the request, unless there are too many connections."""
        if self._is_over_limit:
            self._stop(
                RejectedConnectionError(HTTPStatus.SERVICE_UNAVAILABLE, TOO_MANY_CONNECTIONS)
            )
        super().on_headers_complete()
        self._has_request = self._is_head_complete = True
        self._unparsed = 0
        self._stop_waiting_for_head()
        self._update_eviction_order()

    def on_body(self, body: bytes) -> None:
        """Add a part of the body."""
        super().on_body(body)
        self._unparsed = 0
        self._update_eviction_order()

    def on_message_complete(self) -> None:
        """Complete a request."""
        super().on_message_complete()
        self._unparsed = 0
        self._update_eviction_order()

    def on_response_complete(self) -> None:
        """Start the timeout for the next request, unless one is in the pipeline already."""
        has_next = bool(self.pipeline)
        super().on_response_complete()
        if not has_next:
            self._wait_for_next_head()
        self._update_eviction_order()

    # ---- timeouts and eviction -------------------------------------------------------------

    @property
    def _is_answering(self) -> bool:
        return self._has_request and not self.cycle.response_complete

    def _update_eviction_order(self) -> None:
        """Move to the end of `waiting` if the connection waits for its client; else leave it."""
        self.waiting.pop(self, None)
        if not self._is_answering or self.cycle.more_body or self.flow.write_paused:
            self.waiting[self] = None

    def _evict_one(self) -> bool:
        """Abort the connection that has waited longest for its client; False if none waits."""
        evicted = next(iter(self.waiting), None)
        if evicted is None:
            return False
        del self.waiting[evicted]
        log.debug("connection_evicted")
        evicted.transport.abort()
        return True

    def _wait_for_head(self, seconds: float) -> None:
        self._stop_waiting_for_head()
        self._head_timer = self.loop.call_later(seconds, self._time_out)

    def _wait_for_next_head(self) -> None:
        if self.flow.write_paused:
            return  # the reader timeout is running, since the client has not read this response yet
        is_unread = self.transport.get_write_buffer_size() > 0
        idle_time = self.limits.reader if is_unread else self.timeout_keep_alive
        self._wait_for_head(idle_time + self.limits.head)

    def _stop_waiting_for_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()

    def _wait_for_reader(self) -> None:
        self._stop_waiting_for_reader()
        self._unread = self.transport.get_write_buffer_size()
        self._reader_timer = self.loop.call_later(self.limits.reader, self._check_reader)

    def _stop_waiting_for_reader(self) -> None:
        if self._reader_timer is not None:
            self._reader_timer.cancel()

    def _check_reader(self) -> None:
        read = self._unread - self.transport.get_write_buffer_size()
        if read < MIN_READ_RATE * self.limits.reader:
            self._time_out()
        else:
            self._wait_for_reader()

    def _time_out(self) -> None:
        log.debug("connection_timed_out")
        self.transport.abort()  # close() would wait until the client has read everything

    # ---- rejection -------------------------------------------------------------------------

    def _stop(self, refusal: RejectedConnectionError) -> None:
        self._refusal = refusal  # kept, because the parser replaces it by an error of its own
        raise refusal  # stops the parser

    def _reject(self, refusal: RejectedConnectionError) -> None:
        """Respond with the reason and close the connection.

        If the response to an earlier request is running, it becomes the last one instead.
        """
        log.debug("connection_rejected", status=refusal.status.value)
        if self._is_answering and self.cycle.more_body:
            if self.cycle.response_started:
                self.transport.abort()  # the running response can never be complete
                return
            self.cycle.disconnected = (
                True  # drop the handler's response: the refusal is sent instead
            )
            self.cycle.message_event.set()
        elif self._is_answering:
            self.cycle.keep_alive = False
            self.flow.pause_reading()
            return
        self.transport.write(_response(refusal))
        self.transport.close()


def make_protocol_class(limits: ConnectionLimits) -> type[Protocol]:
    """Return the class of a server's connections, for uvicorn's option `http`."""

    class Limited(LimitedHttpProtocol):
        waiting: ClassVar[dict[LimitedHttpProtocol, None]] = {}

    Limited.limits = limits
    return Limited


def _too_large() -> RejectedConnectionError:
    status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
    return RejectedConnectionError(status, "The headers are too large.")


def _response(refusal: RejectedConnectionError) -> bytes:
    status = refusal.status
    problem_headers, body = to_response(problem(status, refusal.detail))
    is_busy = status == HTTPStatus.SERVICE_UNAVAILABLE
    headers = [
        *COMMON_HEADERS,
        *problem_headers,
        (b"connection", b"close"),
        *([(b"retry-after", b"1")] if is_busy else []),
    ]
    lines = [f"HTTP/1.1 {status.value} {status.phrase}".encode()]
    lines += [name + b": " + value for name, value in headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body
