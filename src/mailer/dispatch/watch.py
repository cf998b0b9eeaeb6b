"""What this process knows of the running mailings, and its word that it sends for no others."""

import asyncio
import contextlib
from collections.abc import Callable

import asyncpg
import structlog

from mailer.clock import database_clock, elapsed
from mailer.db.engine import PATIENCE, connect
from mailer.db.processes import own_session_name
from mailer.dispatch.failure import log_failure
from mailer.dispatch.requests import Requests
from mailer.mailing import moving
from mailer.mailing.model import RunningMailing
from mailer.mailing.telling import CHANNEL

log = structlog.get_logger()

POLL = 1.0
"""Most seconds between looks at the mailings: the backstop behind every notification."""
RECONNECT_PAUSE = 0.5
"""Seconds between attempts to reach the database again."""

TRY_LOCK = "SELECT pg_try_advisory_lock_shared($1)"
UNLOCK = "SELECT pg_advisory_unlock_shared($1)"


class MailingWatch:
    """Follows the running mailings over a connection of its own, which names this process.

    For each mailing in `running` this process holds a shared lock on the mailing's id; it lets go
    of it only after it has dropped the mailing and taken back every request for it that was not
    written. Who stops a mailing asks for the lock and so knows that no process sends for it any
    more. When the connection is lost so are the locks, and nothing counts as running until they
    are held again.
    """

    def __init__(self, url: str, requests: Requests, on_change: Callable[[], None]) -> None:
        self.running: dict[int, RunningMailing] = {}
        self.claiming = asyncio.Lock()
        """Held while messages are claimed: a mailing is not let go of in between."""
        self._url = url
        self._name = own_session_name()
        self._requests = requests
        self._on_change = on_change
        self._locked: set[int] = set()
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
                self._locked.clear()
            await asyncio.sleep(RECONNECT_PAUSE)

    async def _follow(self) -> None:
        connection = await connect(self._url, patience=PATIENCE, application_name=self._name)
        try:
            connection.add_termination_listener(lambda _: self._lost())
            await connection.add_listener(CHANNEL, lambda *_: self._told.set())
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
            mailing_id: mailing
            for mailing_id, mailing in under_way.items()
            if mailing.may_send and mailing_id in self._locked
        }
        self._requests.follow(under_way, database_clock.now())

    async def _refresh(self, connection: asyncpg.Connection) -> None:
        under_way = await self._look(connection)
        self._show(under_way)
        for mailing_id in self._locked - self.running.keys():
            await self._unlock(connection, mailing_id)
        new = [m for m, mailing in under_way.items() if mailing.may_send and m not in self._locked]
        locked = {m for m in new if await connection.fetchval(TRY_LOCK, m)}
        if locked:  # what was stopped before the lock was held may not send any more
            self._locked |= locked
            self._show(await self._look(connection))
            for mailing_id in locked - self.running.keys():
                await self._unlock(connection, mailing_id)

    async def _unlock(self, connection: asyncpg.Connection, mailing_id: int) -> None:
        async with self.claiming:
            await connection.execute(UNLOCK, mailing_id)
        self._locked.remove(mailing_id)

    async def _look(self, connection: asyncpg.Connection) -> dict[int, RunningMailing]:
        asked_at = elapsed()
        database_now, mailings = await moving.under_way(connection)
        database_clock.sample(asked_at, database_now, elapsed())
        return {mailing.id: mailing for mailing in mailings}
