"""What this process knows of the running mailings, and its word that it sends for no others."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import asyncpg
import structlog
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.db.engine import PATIENCE, connect
from mailer.dispatch.failure import log_failure
from mailer.mailing import store
from mailer.mailing.model import RunningMailing
from mailer.mailing.telling import CHANNEL

log = structlog.get_logger()

RECONNECT_PAUSE = 0.5
"""Seconds between attempts to reach the database again."""

TRY_LOCK = "SELECT pg_try_advisory_lock_shared($1)"
UNLOCK = "SELECT pg_advisory_unlock_shared($1)"


class MailingWatch:
    """Follows the running mailings over a connection of its own.

    For each mailing in `running` this process holds a shared lock on the mailing's id; it lets go
    of it only after it has dropped the mailing and its last request for it has ended. Who stops a
    mailing asks for the lock and so knows that no process sends for it any more. When the
    connection is lost so are the locks, and nothing counts as running until they are held again.
    """

    def __init__(self, url: str, engine: AsyncEngine, on_change: Callable[[], None]) -> None:
        self.running: dict[int, RunningMailing] = {}
        self._url = url
        self._engine = engine
        self._on_change = on_change
        self.claiming = asyncio.Lock()
        """Held while messages are claimed: a mailing is not let go of in between."""
        self._locked: set[int] = set()
        self._requests: Counter[int] = Counter()
        self._told = asyncio.Event()
        self._clock_offset = timedelta()

    def now(self) -> datetime:
        """Return the time by the database's clock."""
        return datetime.now(UTC) + self._clock_offset

    @contextlib.contextmanager
    def sending(self, mailing_id: int) -> Iterator[None]:
        """Keep the mailing's lock for as long as a request for it is under way."""
        self._requests[mailing_id] += 1
        try:
            yield
        finally:
            self._requests[mailing_id] -= 1
            if not self._requests[mailing_id]:
                del self._requests[mailing_id]
                if mailing_id not in self.running:
                    self.look()

    def look(self) -> None:
        """Look at the mailings again, soon."""
        self._told.set()

    async def run(self) -> None:
        """Follow the mailings until cancelled, through every loss of the connection."""
        while True:
            try:
                await self._follow()
            except Exception as error:
                log_failure(error, at="watch")
            finally:
                self.running.clear()
                self._locked.clear()
            await asyncio.sleep(RECONNECT_PAUSE)

    async def _follow(self) -> None:
        connection = await connect(self._url, patience=PATIENCE)
        try:
            connection.add_termination_listener(lambda _: self._lost())
            await connection.add_listener(CHANNEL, lambda *_: self._told.set())
            while not connection.is_closed():
                self._told.clear()
                await self._refresh(connection)
                self._on_change()
                await self._told.wait()
        finally:
            connection.terminate()

    def _lost(self) -> None:
        self.running.clear()
        self._told.set()

    async def _refresh(self, connection: asyncpg.Connection) -> None:
        asked_at = datetime.now(UTC)
        database_now: datetime = await connection.fetchval("SELECT clock_timestamp()")
        answered_at = datetime.now(UTC)
        self._clock_offset = database_now - (asked_at + (answered_at - asked_at) / 2)
        live = await self._running()
        self.running = {m: mailing for m, mailing in live.items() if m in self._locked}
        for mailing_id in self._locked - live.keys() - self._requests.keys():
            await self._unlock(connection, mailing_id)
        new = [mailing_id for mailing_id in live if mailing_id not in self._locked]
        locked = {m for m in new if await connection.fetchval(TRY_LOCK, m)}
        if locked:  # what was stopped before the lock was held is not running any more
            self._locked |= locked
            live = await self._running()
            self.running = {m: mailing for m, mailing in live.items() if m in self._locked}
            for mailing_id in locked - live.keys():
                await self._unlock(connection, mailing_id)

    async def _unlock(self, connection: asyncpg.Connection, mailing_id: int) -> None:
        async with self.claiming:
            await connection.execute(UNLOCK, mailing_id)
        self._locked.remove(mailing_id)

    async def _running(self) -> dict[int, RunningMailing]:
        async with self._engine.connect() as connection:
            return {mailing.id: mailing for mailing in await store.running(connection)}
