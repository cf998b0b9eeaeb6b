"""The running mailings as this worker knows them, and its word that it sends for no others."""

import asyncio
import contextlib
from collections.abc import Callable
from functools import cached_property

import asyncpg
import structlog

from mailer.clock import database_clock, elapsed
from mailer.db.engine import PATIENCE, connect
from mailer.db.processes import own_session_name
from mailer.dispatch.failure import log_failure
from mailer.dispatch.requests import Requests
from mailer.mailing import moving, stopping
from mailer.mailing.model import RunningMailing
from mailer.mailing.telling import CHANNEL
from mailer.message import trying

log = structlog.get_logger()

POLL = 1.0
"""Most seconds between looks at the mailings: the backstop behind every notification."""
RECONNECT_PAUSE = 0.5
"""Seconds between attempts to reach the database again."""


class MailingWatch:
    """Follows the running mailings over a connection of its own, which names this process.

    The connection holds the number of the newest stop that this worker has applied: it moves on
    only when every mailing that was stopped is dropped and every request for it that was not
    written is taken back. Who stops a mailing waits for that. When the connection is lost so is the
    number, and nothing counts as running until one is held again.
    """

    def __init__(
        self,
        url: str,
        requests: Requests,
        on_change: Callable[[], None],
        on_try_now: Callable[[], None] = lambda: None,
    ) -> None:
        self.running: dict[int, RunningMailing] = {}
        self.claiming = asyncio.Lock()
        """Held while messages are claimed: no stop counts as applied in between."""
        self._url = url
        self._requests = requests
        self._on_change = on_change
        self._on_try_now = on_try_now
        self._applied: int | None = None
        self._told = asyncio.Event()

    async def run(self) -> None:
        """Follow the mailings until cancelled, through every loss of the connection."""
        while True:
            try:
                await self._follow()
            except Exception as error:
                log_failure(error, at="watch")
            finally:
                self._show({})
                self._applied = None
            await asyncio.sleep(RECONNECT_PAUSE)

    @cached_property
    def _session(self) -> str:
        """The name of this process's sessions, which holds the time of its start."""
        return own_session_name()

    async def _follow(self) -> None:
        connection = await connect(self._url, patience=PATIENCE, application_name=self._session)
        try:
            connection.add_termination_listener(lambda _: self._lost())
            await connection.add_listener(CHANNEL, lambda *_: self._told.set())
            await connection.add_listener(trying.CHANNEL, lambda *_: self._on_try_now())
            self._told.set()
            while not connection.is_closed():
                is_news = self._told.is_set()
                self._told.clear()
                before = self.running
                await self._refresh(connection)
                if is_news or self.running != before:
                    self._on_change()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(POLL):
                        await self._told.wait()
        finally:
            connection.terminate()

    def _lost(self) -> None:
        self._show({})
        self._told.set()

    def _show(self, under_way: dict[int, RunningMailing]) -> None:
        """Let it be seen what may be sent, and take back what may not."""
        self.running = {
            mailing_id: mailing for mailing_id, mailing in under_way.items() if mailing.may_send
        }
        self._requests.follow(under_way, database_clock.now())

    async def _refresh(self, connection: asyncpg.Connection) -> None:
        newest = await stopping.newest(connection)
        if self._applied is None:  # before the mailings are read: who stops one must wait for this
            await self._mark_applied(connection, newest)
        self._show(await self._look(connection))
        if newest != self._applied:
            async with self.claiming:
                await self._mark_applied(connection, newest)

    async def _mark_applied(self, connection: asyncpg.Connection, number: int) -> None:
        await stopping.mark_applied(connection, number, self._applied)
        self._applied = number

    async def _look(self, connection: asyncpg.Connection) -> dict[int, RunningMailing]:
        asked_at = elapsed()
        database_now, mailings = await moving.under_way(connection)
        database_clock.sample(asked_at, database_now, elapsed())
        return {mailing.id: mailing for mailing in mailings}
