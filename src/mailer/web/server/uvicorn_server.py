"""Everything of mailer that leans on private parts of uvicorn: its connections and its server.

Undocumented are `HttpToolsProtocol` with its parser (of httptools), request cycle and flow control,
the signals and the shutdown of `Server`, and its `server_state`. Decision 14 says why they are
needed and what would replace them. `tests/integration/test_uvicorn_private_parts.py` fails when one
of these parts changes.
"""

import asyncio
import contextlib
import socket
from asyncio import Protocol, TimerHandle, Transport
from collections.abc import Iterator
from typing import ClassVar, NoReturn

import httptools
import structlog
import uvicorn
from litestar.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mailer.web.server.connection import (
    HEAD_TOO_LARGE,
    MAX_HEAD_BYTES,
    MAX_REQUEST_HEADERS,
    MAX_URL_BYTES,
    MIN_READ_RATE,
    NOT_HTTP,
    TOO_MANY_CONNECTIONS,
    URL_TOO_LONG,
    ConnectionLimits,
    Refusal,
)

log = structlog.get_logger()

ABORT_MARGIN = 3
"""Seconds after the shutdown grace period for aborted requests to end."""


class LimitedHttpProtocol(HttpToolsProtocol):
    """A connection with timeouts, which can be evicted when there are too many connections."""

    limits: ClassVar[ConnectionLimits]
    waiting: ClassVar[dict["LimitedHttpProtocol", None]]
    """The connections that wait for their clients, ordered by the client's last activity."""

    _head_timer: TimerHandle | None = None
    _reader_timer: TimerHandle | None = None
    _refusal: Refusal | None = None
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
        except httptools.HttpParserUpgrade:
            pass  # no other protocol is supported: the request is handled like any other
        except httptools.HttpParserError:
            self._reject(self._refusal or NOT_HTTP)
        else:
            # one endless header, or a chunk extension: the parser reports neither until its end
            if self._unparsed > MAX_URL_BYTES + MAX_HEAD_BYTES:
                self._reject(HEAD_TOO_LARGE)

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
            self._stop(URL_TOO_LONG)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header. A trailer counts towards the limits, but is ignored.

        We use no trailers. A trailer must not be taken for a header, because proxies do not check
        trailers (RFC 9110, section 6.5.1).
        """
        if not self._is_head_complete:
            super().on_header(name, value)
        self._head_size += len(name) + len(value)
        self._header_count += 1
        if self._head_size > MAX_HEAD_BYTES or self._header_count > MAX_REQUEST_HEADERS:
            self._stop(HEAD_TOO_LARGE)

    def on_headers_complete(self) -> None:
        """Start to handle the request, unless there are too many connections."""
        if self._is_over_limit:
            self._stop(TOO_MANY_CONNECTIONS)
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

    def _stop(self, refusal: Refusal) -> NoReturn:
        self._refusal = refusal
        raise httptools.HttpParserError  # stops the parser, which raises an error of its own

    def _reject(self, refusal: Refusal) -> None:
        """Respond with the reason and close the connection.

        If the response to an earlier request is running, it becomes the last one instead.
        """
        log.debug("connection_rejected", status=refusal.status.value)
        if self._is_answering and self.cycle.more_body:
            if self.cycle.response_started:
                self.transport.abort()  # the running response can never be complete
                return
            self.cycle.disconnected = True  # drop the handler's response for the refusal
            self.cycle.message_event.set()
        elif self._is_answering:
            self.cycle.keep_alive = False
            self.flow.pause_reading()
            return
        self.transport.write(refusal.to_bytes())
        self.transport.close()


def create_protocol_class(limits: ConnectionLimits) -> type[Protocol]:
    """Return the class of a server's connections, for uvicorn's option `http`."""
    return type("Limited", (LimitedHttpProtocol,), {"limits": limits, "waiting": {}})


class Server(uvicorn.Server):
    """A uvicorn server that handles no signals, and whose requests end within the grace period."""

    def __init__(self, app: ASGIApp, limits: ConnectionLimits, *, grace: float) -> None:
        """Create a server whose requests may take `grace` seconds after `stop`."""
        super().__init__(
            uvicorn.Config(
                app,
                http=create_protocol_class(limits),
                ws="none",
                proxy_headers=False,  # mailer handles them itself, by a setting
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=int(grace) + ABORT_MARGIN,
            )
        )
        self._grace = grace

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture no signals: `stop_on_signals` handles them."""
        yield

    def stop(self) -> None:
        """Stop serving soon, as on a signal."""
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop serving; abort requests that take longer than the shutdown grace period.

        uvicorn's own timeout would log an error with a traceback for each of them.
        """
        abort_timer = asyncio.get_running_loop().call_later(self._grace, self._abort_requests)
        try:
            await super().shutdown(sockets)
        finally:
            abort_timer.cancel()

    def _abort_requests(self) -> None:
        """Cancel requests; close connections whose responses have started and stay incomplete."""
        for connection in list(self.server_state.connections):
            if isinstance(connection, LimitedHttpProtocol):
                connection.abort()
        for task in list(self.server_state.tasks):
            asyncio.get_running_loop().call_soon(task.cancel)  # after its connection has closed
