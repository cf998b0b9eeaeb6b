"""Track the running mailings, and publish which stop number this worker has applied."""

import asyncio
import contextlib
from collections.abc import Callable, Collection
from functools import cached_property

import asyncpg
import structlog

from mailer.clock import database_clock, elapsed
from mailer.db import origin
from mailer.db.engine import PATIENCE, connect
from mailer.db.processes import own_session_name
from mailer.dispatch.failure import log_failure
from mailer.dispatch.loop_failures import LoopFailures
from mailer.dispatch.requests import Requests
from mailer.mailing import moving, stopping
from mailer.mailing.model import RunningMailing
from mailer.mailing.telling import CHANNEL
from mailer.message import trying

log = structlog.get_logger()

POLL = 1.0
"""Most seconds between looks at the mailings: the backstop behind every notification."""
READ_ALL_EVERY = 60.0
"""Seconds after which all mailings are read again: some may be gone without a trace."""
RECONNECT_PAUSE = 0.5
"""Seconds between attempts to reach the database again."""

KEEPALIVES = {
    "tcp_keepalives_idle": "15",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "30000",
}
"""Have the server end the session 30 s after this machine was last heard of, instead of after some
two hours: the session's stop number makes stops wait. A worker that is only cut off notices first:
its statements end after `PATIENCE`, at most two of which follow one another. A process that stands
still keeps its session, for its kernel answers. Over a UNIX socket the server ignores all four."""

STALE = 25.0
"""Seconds without an answer of the server after which nothing is sent. After 30 s it may have ended
the session, and stops count as applied: a machine that was suspended may notice much later."""


class MailingWatch:
    """Follows the running mailings over a connection of its own, which names this process.

    The connection holds the number of the newest stop that this worker has applied. The number is
    raised only after all stopped mailings are removed and their unwritten requests aborted. Pause,
    cancel and delete wait for that number. Losing the connection releases it, and nothing counts as
    running until one is held again.
    """

    def __init__(
        self,
        url: str,
        requests: Requests,
        failures: LoopFailures,
        on_change: Callable[[Collection[int]], None],
        on_try_now: Callable[[], None] = lambda: None,
    ) -> None:
        self.running: dict[int, RunningMailing] = {}
        self.claiming = asyncio.Lock()
        """Held while messages are claimed: no stop counts as applied in between."""
        self._url = url
        self._requests = requests
        self._failures = failures
        self._on_change = on_change
        self._on_try_now = on_try_now
        self._under_way: dict[int, RunningMailing] = {}
        self._applied: int | None = None
        self._snapshot: str | None = None
        self._is_allowed = False
        self._read_all_at = 0.0
        self._answered_at = float("-inf")
        self._told = asyncio.Event()

    def is_current(self, now: float) -> bool:
        """Return whether stops made before a moment of `elapsed()` wait for this worker."""
        return now - self._answered_at < STALE

    async def run(self) -> None:
        """Follow the mailings until cancelled, through every loss of the connection."""
        while True:
            try:
                await self._follow()
            except Exception as error:
                log_failure(error, at="watch")
                self._failures.record("watch", has_failed=True)
            finally:
                self._drop_all()
                self._applied = None
            await asyncio.sleep(RECONNECT_PAUSE)

    @cached_property
    def _session(self) -> str:
        """The name of this process's sessions, which holds the time of its start."""
        return own_session_name()

    async def _follow(self) -> None:
        connection = await connect(
            self._url, patience=PATIENCE, application_name=self._session, **KEEPALIVES
        )
        try:
            connection.add_termination_listener(lambda _: self._lost())
            await connection.add_listener(CHANNEL, lambda *_: self._told.set())
            await connection.add_listener(trying.CHANNEL, lambda *_: self._on_try_now())
            self._told.set()
            while not connection.is_closed():
                self._told.clear()
                changed: Collection[int] = await self._refresh(connection)
                if await self._is_allowed_again(connection):
                    changed = self.running.keys() | changed
                if changed:
                    self._on_change(changed)
                self._failures.record("watch", has_failed=False)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(POLL):
                        await self._told.wait()
        finally:
            connection.terminate()

    def _lost(self) -> None:
        self._drop_all()
        self._told.set()

    def _drop_all(self) -> None:
        self._show(dict.fromkeys(self._under_way))
        self._snapshot = None

    def _show(self, changed: moving.Known) -> None:
        """Update `running`, and abort unwritten requests of mailings that may not send."""
        for mailing_id, mailing in changed.items():
            if mailing is None:
                self._under_way.pop(mailing_id, None)
            else:
                self._under_way[mailing_id] = mailing
            if mailing is not None and mailing.may_send:
                self.running[mailing_id] = mailing
            else:
                self.running.pop(mailing_id, None)
        self._requests.follow(self._under_way, database_clock.now())

    async def _refresh(self, connection: asyncpg.Connection) -> moving.Known:
        """Apply what has changed, and return it."""
        newest = await stopping.newest(connection)
        self._answered_at = elapsed()
        if self._applied is None:  # before the mailings are read: who stops one must wait for this
            await self._mark_applied(connection, newest)
        changed = await self._read(connection)
        self._show(changed)
        if newest != self._applied:
            async with self.claiming:
                await self._mark_applied(connection, newest)
        return changed

    async def _is_allowed_again(self, connection: asyncpg.Connection) -> bool:
        """Return whether this database may send now, and could not when last asked.

        No message was found due meanwhile, so that all running mailings are to be looked at.
        """
        before, self._is_allowed = self._is_allowed, await origin.is_sending_allowed(connection)
        return self._is_allowed and not before

    async def _mark_applied(self, connection: asyncpg.Connection, number: int) -> None:
        await stopping.mark_applied(connection, number, self._applied)
        self._applied = number

    async def _read(self, connection: asyncpg.Connection) -> moving.Known:
        """Return the mailings that have changed; now and then all, also those that are gone.

        What changes while it reads is read again by the next.
        """
        asked_at = elapsed()
        database_now, snapshot = await moving.now(connection)
        database_clock.sample(asked_at, database_now, elapsed())
        if self._snapshot is None or asked_at >= self._read_all_at:
            self._read_all_at = asked_at + READ_ALL_EVERY
            found: moving.Known = dict.fromkeys(self._under_way)
            after: int | None = 0
            while after is not None:
                some = await moving.under_way(connection, after)
                self._answered_at = elapsed()
                found |= some
                after = max(some) if len(some) == moving.SLICE else None
            changed = {
                mailing_id: mailing
                for mailing_id, mailing in found.items()
                if mailing != self._under_way.get(mailing_id)
            }
        else:
            changed = await moving.changed(connection, self._snapshot)
        self._snapshot = snapshot
        return changed
