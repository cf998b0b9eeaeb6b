"""The HTTP server and its connections: everything of mailer that uses private parts of uvicorn.

uvicorn creates an object of `LimitedHttpProtocol` for each connection, and calls its methods on
events of the connection, of the parser of requests (httptools), and at the end of a response.

Undocumented are `HttpToolsProtocol` with its parser, request cycle, start of tasks, flow control,
and status lines, the signals and the shutdown of `Server`, and its `server_state`. Decision 14 says
why they are needed and what would replace them. `tests/integration/test_uvicorn_private_parts.py`
fails when one of these parts changes.
"""

import asyncio
import contextlib
import socket
from asyncio import Protocol, TimerHandle, Transport
from collections.abc import Iterator
from functools import partial
from typing import ClassVar, NoReturn, cast

import httptools
import structlog
import uvicorn
from litestar.types import ASGIApp, HTTPScope
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

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
from mailer.web.server.direct import DirectAnswer, DirectAnswers

log = structlog.get_logger()

ABORT_MARGIN = 3
"""Seconds that aborted requests get to end, after the shutdown grace period."""


class LimitedHttpProtocol(HttpToolsProtocol):
    """A connection with timeouts, which can be evicted when there are too many connections."""

    limits: ClassVar[ConnectionLimits]
    direct_answers: ClassVar[DirectAnswers | None]
    waiting: ClassVar[dict["LimitedHttpProtocol", None]]
    """The connections that wait for their clients, the one that waits longest first. It is a dict,
    which keeps the order and removes an entry quickly; its values are not used."""

    _is_parsing = False
    """Whether `data_received` is running."""
    _perhaps_direct: tuple[RequestResponseCycle, ASGI3Application] | None = None
    """A request whose head is complete, and which may be answered directly once more is known."""
    _ready: asyncio.Future[None] | None = None
    """Ends when the response to a request that is answered directly may be sent."""
    _client_deadline: float | None = None
    """When the connection ends, unless the next head, or the next part of a body, has arrived by
    then; by the clock of the event loop. None while mailer waits for nothing."""
    _client_timer: TimerHandle | None = None
    """Checks `_client_deadline`, at that time or earlier. It is not restarted for each request,
    because that would cost more than the parser does."""
    _reader_timer: TimerHandle | None = None
    """Checks whether the client reads its response fast enough."""
    _refusal: Refusal | None = None
    """Why a callback has stopped the parser."""
    _is_over_limit = False
    """Whether there are too many connections and no other one could be evicted."""
    _has_request = False
    """Whether any head has been complete on this connection."""
    _unparsed_bytes = 0
    """Bytes received since the parser last completed a head, a part of a body, or a request."""
    _head_bytes = 0
    """Bytes of the headers of the current request, so far."""
    _header_count = 0
    """Headers of the current request, so far."""
    _is_head_complete = False
    """Whether the head of the current request is complete: later headers are trailers."""
    _unread_bytes = 0
    """Bytes in the write buffer when the reader timer was started."""

    # ---- events of the connection ----------------------------------------------------------

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Start the timeout for a head; evict another connection if there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self._is_over_limit = not self._evict_one()
        self._wait_for_client(self.limits.head)
        self._update_eviction_order()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers and forget the connection."""
        self.waiting.pop(self, None)
        if self._client_timer is not None:
            self._client_timer.cancel()
        self._stop_waiting_for_reader()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse data of a request; a malformed one, or too large a head, ends the connection."""
        self._unset_keepalive_if_required()
        self._unparsed_bytes += len(data)
        self._is_parsing = True
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # no other protocol is supported: the request is handled like any other
        except httptools.HttpParserError:
            self._reject(self._refusal or NOT_HTTP)
        else:
            # Perhaps one endless header, or an endless extension of a chunk: the parser reports
            # neither before its end.
            if self._unparsed_bytes > MAX_URL_BYTES + MAX_HEAD_BYTES:
                self._reject(HEAD_TOO_LARGE)
        self._is_parsing = False
        if self._perhaps_direct is not None:
            self._start_perhaps_direct(*self._perhaps_direct)

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
        """Abort the connection if its response has started, or if it has no task to cancel."""
        if self._ready is not None or (self._has_request and self.cycle.response_started):
            self.transport.abort()

    # ---- callbacks of the parser -----------------------------------------------------------

    def on_message_begin(self) -> None:
        """Start the head of a request."""
        super().on_message_begin()
        self._head_bytes = self._header_count = 0
        self._is_head_complete = False

    def on_url(self, url: bytes) -> None:
        """Add a part of the URL; stop if the URL is too long."""
        super().on_url(url)
        if len(self.url) > MAX_URL_BYTES:
            self._stop(URL_TOO_LONG)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header; stop if the headers are too large or too many.

        The parser also calls this for a trailer, a header after a chunked body. mailer counts
        trailers but ignores them: proxies do not check them, so that a trailer such as
        X-Forwarded-For could be forged (RFC 9110, section 6.5.1).
        """
        if not self._is_head_complete:
            super().on_header(name, value)
        self._head_bytes += len(name) + len(value)
        self._header_count += 1
        if self._head_bytes > MAX_HEAD_BYTES or self._header_count > MAX_REQUEST_HEADERS:
            self._stop(HEAD_TOO_LARGE)

    def on_headers_complete(self) -> None:
        """Start to handle the request, unless there are too many connections."""
        if self._is_over_limit:
            self._stop(TOO_MANY_CONNECTIONS)
        super().on_headers_complete()
        self._has_request = self._is_head_complete = True
        self._unparsed_bytes = 0
        self._wait_for_client(self.limits.body_part)
        self._update_eviction_order()

    def on_body(self, body: bytes) -> None:
        """Add a part of the body; the client was active."""
        super().on_body(body)
        self._unparsed_bytes = 0
        if self._is_answering:
            self._wait_for_client(self.limits.body_part)
        self._update_eviction_order()

    def on_message_complete(self) -> None:
        """Complete a request: its body has arrived."""
        super().on_message_complete()
        self._unparsed_bytes = 0
        if self._is_answering:  # else the response is complete already, and the next head awaited
            self._client_deadline = None
        self._update_eviction_order()

    def on_response_complete(self) -> None:
        """Start the timeout for the next request, unless the client has sent one already.

        uvicorn keeps such a request in its `pipeline`.
        """
        has_next_request = bool(self.pipeline)
        super().on_response_complete()
        if not has_next_request:
            self._wait_for_next_head()
        self._update_eviction_order()

    # ---- direct answers --------------------------------------------------------------------

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        """Start to handle a request; one that may be answered directly only if it is complete."""
        direct = self.direct_answers
        if direct is None or not cycle.scope["path"].startswith(direct.path_prefix):
            super()._start_asgi_task(cycle, app)
        elif self._is_parsing:  # only the head is known
            self._perhaps_direct = cycle, app
        else:
            self._start_perhaps_direct(cycle, app)

    def _start_perhaps_direct(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        """Answer a request directly, or else start its task.

        A body that comes in parts, and a client that does not read its responses, are unusual. They
        are left to the task, which can wait.
        """
        self._perhaps_direct = answer = None
        is_waiting = cycle.more_body or cycle.waiting_for_100_continue or self.flow.write_paused
        if self.direct_answers is not None and not is_waiting:
            answer = self.direct_answers.answer(cast(HTTPScope, cycle.scope), bytes(cycle.body))
        if answer is None:
            super()._start_asgi_task(cycle, app)
            return
        self._ready = answer.ready
        answer.ready.add_done_callback(partial(self._respond_directly, cycle, app, answer))

    def _respond_directly(
        self,
        cycle: RequestResponseCycle,
        app: ASGI3Application,
        answer: DirectAnswer,
        ready: asyncio.Future[None],
    ) -> None:
        """Send the response to a request that is answered directly."""
        self._ready = None
        has_failed = ready.cancelled() or ready.exception() is not None
        if cycle.disconnected:
            return
        if has_failed:
            super()._start_asgi_task(cycle, app)
            return
        status, headers, body = answer.respond()
        lines = [STATUS_LINE[status]]
        for name, value in (*self.server_state.default_headers, *headers):
            lines += (name, b": ", value, b"\r\n")
        lines.append(b"\r\n" if cycle.keep_alive else b"connection: close\r\n\r\n")
        lines.append(body)
        self.transport.write(b"".join(lines))
        cycle.response_started = cycle.response_complete = True
        if not cycle.keep_alive:
            self.transport.close()
        self.on_response_complete()

    # ---- timeouts and eviction -------------------------------------------------------------

    @property
    def _is_answering(self) -> bool:
        """Whether a request has started and its response is not complete."""
        return self._has_request and not self.cycle.response_complete

    def _update_eviction_order(self) -> None:
        """Move this connection to the end of `waiting`, or remove it if it waits for mailer.

        It waits for its client if no request is running, if the body is not complete, or if the
        client does not read its response fast enough.
        """
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

    def _wait_for_client(self, seconds: float) -> None:
        """Start the timeout for the next head, or for the next part of a body."""
        deadline = self._client_deadline = self.loop.time() + seconds
        if self._client_timer is not None:
            if self._client_timer.when() <= deadline:
                return  # `_check_client` starts it again for the rest of the time
            self._client_timer.cancel()
        self._client_timer = self.loop.call_at(deadline, self._check_client)

    def _check_client(self) -> None:
        """End the connection if its client is late; if its time is not over, check again then."""
        self._client_timer = None
        if self._client_deadline is None:
            return
        if self.flow.read_paused and self._is_answering:  # the client cannot send the body now
            self._wait_for_client(self.limits.body_part)
        elif self._client_deadline <= self.loop.time():
            self._time_out()
        else:
            self._client_timer = self.loop.call_at(self._client_deadline, self._check_client)

    def _wait_for_next_head(self) -> None:
        """Start the timeout for the head of the next request, after a response."""
        if self.flow.write_paused:
            return  # the client still has to read this response, and its timeout is running
        is_unread = self.transport.get_write_buffer_size() > 0
        idle_time = self.limits.reader if is_unread else self.timeout_keep_alive
        self._wait_for_client(idle_time + self.limits.head)

    def _wait_for_reader(self) -> None:
        """Start the timeout for the client to read enough of its response."""
        self._stop_waiting_for_reader()
        self._unread_bytes = self.transport.get_write_buffer_size()
        self._reader_timer = self.loop.call_later(self.limits.reader, self._check_reader)

    def _stop_waiting_for_reader(self) -> None:
        if self._reader_timer is not None:
            self._reader_timer.cancel()

    def _check_reader(self) -> None:
        """End the connection if the client has read too little since the timer was started."""
        read_bytes = self._unread_bytes - self.transport.get_write_buffer_size()
        if read_bytes < MIN_READ_RATE * self.limits.reader:
            self._time_out()
        else:
            self._wait_for_reader()

    def _time_out(self) -> None:
        """End the connection of a slow client."""
        log.debug("connection_timed_out")
        self.transport.abort()  # close() would wait until the client has read everything

    # ---- rejection -------------------------------------------------------------------------

    def _stop(self, refusal: Refusal) -> NoReturn:
        """Stop the parser, from one of its callbacks. `data_received` then sends `refusal`."""
        self._refusal = refusal
        raise httptools.HttpParserError  # the parser raises another error of the same class

    def _reject(self, refusal: Refusal) -> None:
        """Respond with `refusal` and close the connection.

        Data may be wrong while a response is running. If it is a part of that request's body, the
        request fails. If it follows a complete request, that one still gets its response, and the
        connection is closed after it, without the refusal.
        """
        log.debug("connection_rejected", status=refusal.status.value)
        if self._is_answering and self.cycle.more_body:
            if self.cycle.response_started:
                self.transport.abort()  # the running response can never be complete
                return
            self.cycle.disconnected = True  # uvicorn drops the handler's response
            self.cycle.message_event.set()  # ends the handler's wait for the rest of the body
        elif self._is_answering:
            self.cycle.keep_alive = False
            self.flow.pause_reading()
            return
        self.transport.write(refusal.to_bytes())
        self.transport.close()


def create_protocol_class(
    limits: ConnectionLimits, direct_answers: DirectAnswers | None = None
) -> type[Protocol]:
    """Return the class of one server's connections, for uvicorn's option `http`.

    Each server has its own class: uvicorn creates the connections and passes them nothing of ours,
    so what they share is in attributes of their class.
    """
    shared = {"limits": limits, "waiting": {}, "direct_answers": direct_answers}
    return type("Limited", (LimitedHttpProtocol,), shared)


class Server(uvicorn.Server):
    """A uvicorn server that handles no signals.

    When it stops, requests that do not end within a grace period are aborted.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: ConnectionLimits,
        *,
        grace: float,
        direct_answers: DirectAnswers | None = None,
    ) -> None:
        """Create a server whose requests may run on for `grace` seconds after `stop`."""
        super().__init__(
            uvicorn.Config(
                app,
                http=create_protocol_class(limits, direct_answers),
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
        """Make `serve` stop soon, as uvicorn itself does on a signal."""
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
        """Abort the running requests: cancel their tasks.

        A response that has started stays incomplete; its connection is closed so that the client
        notices that. The others get a response from `AnswerAbortedRequests`.
        """
        for connection in list(self.server_state.connections):
            if isinstance(connection, LimitedHttpProtocol):
                connection.abort()
        for task in list(self.server_state.tasks):
            asyncio.get_running_loop().call_soon(task.cancel)  # after its connection has closed
