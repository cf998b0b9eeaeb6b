"""Track the running mailings, and publish which stops of mailings this worker has applied.

A stop is a change after which no request of a mailing may start. Each stop has a number. The user
gets an answer when every worker has applied the stop (decision 13).
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection

import asyncpg
import structlog

from mailer.clock import database_clock, elapsed
from mailer.db import origin
from mailer.db.engine import STATEMENT_TIMEOUT, connect
from mailer.db.workers import own_session_name
from mailer.dispatch.in_flight import InFlightRequests
from mailer.dispatch.loop_failures import LoopFailures, log_task_error
from mailer.gateway import routes
from mailer.gateway.router import GatewayTables
from mailer.mailing import rerouting, stop_number, tracking
from mailer.mailing.model import RunningMailing
from mailer.mailing.store import MAILINGS_CHANGED
from mailer.message import trying
from mailer.opt_out.store import CLIENTS_OPTED_OUT

log = structlog.get_logger()

MAX_READ_INTERVAL = 1.0
"""Most seconds between two reads of changed mailings, in case a notification is missed."""
FULL_READ_INTERVAL = 60.0
"""Seconds after which all mailings are read again, and not only the changed ones: a row that was
deleted from the table is not among the changed ones."""
RECONNECT_DELAY = 0.5
"""Seconds between attempts to connect to the database again."""

KEEPALIVES = {
    "tcp_keepalives_idle": "15",  # seconds of silence before the first probe
    "tcp_keepalives_interval": "5",  # seconds between probes
    "tcp_keepalives_count": "3",  # unanswered probes
    "tcp_user_timeout": "30000",  # milliseconds for which sent data may be unacknowledged
}
"""PostgreSQL's settings with which the server ends the session 30 s after it last heard from this
machine. By default it would wait for about two hours, and so would every stop of a mailing, because
the session holds an old stop number.

A worker that only lost its network stops sending earlier: its statements time out after
`STATEMENT_TIMEOUT`, and at most two statements follow each other. A suspended process keeps its
session, because its kernel still answers the server. Over a UNIX socket the server ignores all four
settings."""

STALE_AFTER = 25.0
"""Seconds without an answer of the server after which nothing is sent. After 30 s the server may
have ended the session, and then stops do not wait for this worker any more. A machine that was
suspended may notice much later that its session has ended."""


class RunningMailings:
    """Tracks the running mailings over a connection of its own, whose name identifies this worker.

    The connection holds an advisory lock that publishes the number of the newest stop that this
    worker has applied. A stop is applied when the stopped mailings are removed from `running`,
    their unwritten requests are aborted, and no claim is running. When the connection is lost, the
    lock is released, and no mailing counts as running until a new connection holds a lock.

    `on_change` is called with the ids of mailings that have changed or whose messages have other
    routes, and `on_try_now` when a user asks to try the gateways now. `on_gateway_tables` is called
    after each read of the tables of gateways, at least once a second. `on_opt_outs` is called when
    clients have opted out since the last call, or may have.
    """

    def __init__(  # noqa: PLR0913  # one callback for each kind of news
        self,
        url: str,
        in_flight: InFlightRequests,
        failures: LoopFailures,
        on_change: Callable[[Collection[int]], None],
        *,
        on_try_now: Callable[[], None] = lambda: None,
        on_gateway_tables: Callable[[GatewayTables], None] = lambda _: None,
        on_opt_outs: Callable[[asyncpg.Connection], Awaitable[None]] | None = None,
    ) -> None:
        self.running: dict[int, RunningMailing] = {}
        """The mailings for which requests may start, by id."""
        self.claiming = asyncio.Lock()
        """Held during a claim: no stop counts as applied meanwhile."""
        self._url = url
        self._in_flight = in_flight
        self._failures = failures
        self._on_change = on_change
        self._on_try_now = on_try_now
        self._on_gateway_tables = on_gateway_tables
        self._on_opt_outs = on_opt_outs
        self._has_new_opt_outs = False
        self._active: dict[int, RunningMailing] = {}
        """Running and paused mailings: these may have requests in flight."""
        self._applied_stop: int | None = None
        """Number of the newest stop that this worker has applied; None without a connection."""
        self._snapshot: str | None = None
        """PostgreSQL snapshot of the last read, from which the next read continues; None when the
        next read must be a full one."""
        self._is_sending_allowed = False
        """Whether the database allows sending, as read last; a restored one does not at first."""
        self._next_full_read_at = 0.0
        self._last_answer_at = float("-inf")
        """When the server last answered a statement, a moment of `elapsed()`."""
        self._notified = asyncio.Event()

    def is_current(self, now: float) -> bool:
        """Return whether requests may rely on `running` at `now`, a moment of `elapsed()`.

        They may, if the server has answered recently. Then the session with the lock still exists,
        and the server lets every stop wait until this worker has applied it.
        """
        return now - self._last_answer_at < STALE_AFTER

    async def run(self) -> None:
        """Track the mailings until cancelled; reconnect when the connection is lost."""
        while True:
            try:
                await self._follow()
            except Exception as error:  # reconnect after any error
                log_task_error(error, at="watch_running_mailings")
                self._failures.record("watch_running_mailings", has_failed=True)
            finally:
                self._drop_all()
                self._applied_stop = None
            await asyncio.sleep(RECONNECT_DELAY)

    async def _follow(self) -> None:
        """Connect, and track the mailings until the connection is lost."""
        connection = await connect(
            self._url,
            statement_timeout=STATEMENT_TIMEOUT,
            application_name=own_session_name(),
            **KEEPALIVES,
        )
        try:
            connection.add_termination_listener(lambda _: self._on_connection_lost())
            await connection.add_listener(MAILINGS_CHANGED, lambda *_: self._notified.set())
            await connection.add_listener(trying.TRY_NOW, lambda *_: self._on_try_now())
            await connection.add_listener(CLIENTS_OPTED_OUT, lambda *_: self._note_opt_outs())
            self._has_new_opt_outs = True  # a notification may have been missed
            await connection.add_listener(
                rerouting.MESSAGES_REROUTED,
                lambda *notification: self._on_change(rerouting.read_ids(notification[-1])),
            )
            while not connection.is_closed():
                self._notified.clear()
                await self._apply_opt_outs(connection)
                self._on_gateway_tables(await routes.read_tables(connection))
                changed_ids: Collection[int] = await self._refresh(connection)
                if await self._sending_became_allowed(connection):
                    changed_ids = self.running.keys() | changed_ids
                if changed_ids:
                    self._on_change(changed_ids)
                self._failures.record("watch_running_mailings", has_failed=False)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(MAX_READ_INTERVAL):
                        await self._notified.wait()
        finally:
            connection.terminate()

    def _note_opt_outs(self) -> None:
        self._has_new_opt_outs = True
        self._notified.set()

    async def _apply_opt_outs(self, connection: asyncpg.Connection) -> None:
        """Call `on_opt_outs` if clients have opted out since the last call."""
        if self._has_new_opt_outs and self._on_opt_outs is not None:
            self._has_new_opt_outs = False
            await self._on_opt_outs(connection)

    def _on_connection_lost(self) -> None:
        """Stop sending at once, and make `_follow` end."""
        self._drop_all()
        self._notified.set()

    def _drop_all(self) -> None:
        """Remove all mailings, so that nothing is sent."""
        self._apply(dict.fromkeys(self._active))
        self._snapshot = None

    def _apply(self, changed: tracking.MailingsById) -> None:
        """Update `running`, and abort unwritten requests of mailings that may not send."""
        for mailing_id, mailing in changed.items():
            if mailing is None:
                self._active.pop(mailing_id, None)
            else:
                self._active[mailing_id] = mailing
            if mailing is not None and mailing.may_send:
                self.running[mailing_id] = mailing
            else:
                self.running.pop(mailing_id, None)
        self._in_flight.apply_mailing_changes(self._active, database_clock.now())

    async def _refresh(self, connection: asyncpg.Connection) -> tracking.MailingsById:
        """Read and apply the changed mailings, and return them.

        The newest stop number is read before the mailings, so they include the changes of all stops
        up to this number.
        """
        newest_stop = await stop_number.get_newest(connection)
        self._last_answer_at = elapsed()
        if self._applied_stop is None:  # before the read: later stops then wait for this worker
            await self._mark_applied(connection, newest_stop)
        changed = await self._read(connection)
        self._apply(changed)
        if newest_stop != self._applied_stop:
            async with self.claiming:
                await self._mark_applied(connection, newest_stop)
        return changed

    async def _sending_became_allowed(self, connection: asyncpg.Connection) -> bool:
        """Return whether sending is allowed now and was not at the last call.

        While it was not allowed, for example because the database was restored, claims returned no
        message. So the caller must check all running mailings again.
        """
        was_allowed = self._is_sending_allowed
        self._is_sending_allowed = await origin.is_sending_allowed(connection)
        return self._is_sending_allowed and not was_allowed

    async def _mark_applied(self, connection: asyncpg.Connection, number: int) -> None:
        """Publish that this worker has applied all stops up to `number`."""
        await stop_number.mark_applied(connection, number, self._applied_stop)
        self._applied_stop = number

    async def _read(self, connection: asyncpg.Connection) -> tracking.MailingsById:
        """Return the mailings that have changed since the last read.

        The value is None for a mailing that is not running or paused any more. Every
        `FULL_READ_INTERVAL` all mailings are read and compared. A mailing that changes during a
        read is read again next time.
        """
        requested_at = elapsed()
        database_now, snapshot = await tracking.database_now(connection)
        database_clock.sample(requested_at, database_now, elapsed())
        if self._snapshot is None or requested_at >= self._next_full_read_at:
            self._next_full_read_at = requested_at + FULL_READ_INTERVAL
            changed = await self._compare_all(connection)
        else:
            changed = await tracking.read_changed(connection, self._snapshot)
        self._snapshot = snapshot
        return changed

    async def _compare_all(self, connection: asyncpg.Connection) -> tracking.MailingsById:
        """Read all running and paused mailings. Return those that differ from `_active`."""
        # a mailing of `_active` that is not read again stays None
        mailings: tracking.MailingsById = dict.fromkeys(self._active)
        last_id: int | None = 0
        while last_id is not None:
            batch = await tracking.read_active(connection, after=last_id)
            self._last_answer_at = elapsed()
            mailings |= batch
            last_id = max(batch) if len(batch) == tracking.MAILINGS_PER_READ else None
        return {
            mailing_id: mailing
            for mailing_id, mailing in mailings.items()
            if mailing != self._active.get(mailing_id)
        }
