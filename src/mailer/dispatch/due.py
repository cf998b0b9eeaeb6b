"""Schedule the next claim of each mailing, and keep its claim cursor."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from itertools import islice

import asyncpg

from mailer.clock import database_clock, elapsed
from mailer.dispatch.fair_scheduler import FairScheduler
from mailer.message import store
from mailer.message.model import ClaimedMessage, MessageResult
from mailer.message.store import ClaimCursor

SCAN_BATCH = 1_000
"""Most mailings that one statement checks."""
SCAN_INTERVAL = 1.0
"""Least seconds between scans. A scan checks some of the running mailings, and finds messages
that other workers have released or requeued."""
MAX_SCAN_SHARE = 1 / 20
"""Largest share of the time that scans may use: they are slow while an old snapshot exists."""
RECHECK_INTERVAL = 0.02
"""Least seconds until the next claim from a mailing, while other workers claim its due messages."""
CLOCK_TOLERANCE = timedelta(seconds=0.05)
"""Largest time by which the database's clock may be ahead of this worker's estimate of it."""


class DueMailings:
    """Determines when to claim from each running mailing.

    It finds the first scheduled message of a mailing by SQL. A claim starts at the mailing's
    cursor, the last message of its previous claim, so that it does not scan claimed messages again.
    A released or replanned message may become due before the cursor. A scan finds it, and the
    mailing's cursor is reset.
    """

    def __init__(self, scheduler: FairScheduler, running: Mapping[int, object]) -> None:
        self._scheduler = scheduler
        self._running = running
        self._unchecked: dict[int, datetime | None] = {}
        self._cursors: dict[int, ClaimCursor] = {}
        self._scan: Iterator[int] = iter(())
        self._scan_at = 0.0

    @property
    def has_unchecked(self) -> bool:
        """Whether there are mailings whose first message must still be found."""
        return bool(self._unchecked)

    def recheck(self, mailing_ids: Iterable[int]) -> None:
        """Check again when messages of these mailings are due: the mailings have changed."""
        self._unchecked.update(dict.fromkeys(mailing_ids))

    def cursor(self, mailing_id: int) -> ClaimCursor:
        """Return the cursor after which the next claim of a mailing starts."""
        return self._cursors.get(mailing_id, store.FIRST_CURSOR)

    def record_claimed(
        self, claims: Iterable[ClaimedMessage], below_share: list[int], at: datetime
    ) -> None:
        """Record a claim at a moment of the database's clock.

        `below_share` are the mailings of which fewer messages were claimed than their share. Only
        their messages that are due since that moment are looked at.
        """
        for claim in claims:
            position = (claim.due_at, claim.id)
            if position > self._cursors.get(claim.mailing_id, store.FIRST_CURSOR):
                self._cursors[claim.mailing_id] = position
        for mailing_id in below_share:
            self._unchecked.setdefault(mailing_id, at - CLOCK_TOLERANCE)

    def record_results(self, results: Iterable[MessageResult]) -> None:
        """Record when messages are due again that this worker has released or requeued."""
        now, database_now = elapsed(), database_clock.now()
        for result in results:
            mailing_id = result.claim.mailing_id
            if result.due_at is None:  # released: its due time is as before
                self._cursors.pop(mailing_id, None)
                self._scheduler.add_at(mailing_id, now)
            else:
                self._scheduler.add_at(
                    mailing_id, now + (result.due_at - database_now).total_seconds()
                )

    async def refresh(self, connection: asyncpg.Connection) -> None:
        """Find the first messages of unchecked mailings, and run a scan if it is time."""
        started = elapsed()
        if started >= self._scan_at:
            await self._scan_slice(connection)
            now = elapsed()
            self._scan_at = now + max(SCAN_INTERVAL, (now - started) / MAX_SCAN_SHARE)
        if self._unchecked:  # the latest first
            batch = dict(
                self._unchecked.popitem() for _ in range(min(SCAN_BATCH, len(self._unchecked)))
            )
            try:
                await self._find_first_waiting(connection, batch)
            except BaseException:
                self._unchecked = batch | self._unchecked  # newer entries override those of `batch`
                raise

    async def _scan_slice(self, connection: asyncpg.Connection) -> None:
        """Find the first messages of the next `SCAN_BATCH` running mailings."""
        batch = list(islice(self._scan, SCAN_BATCH))
        if len(batch) < SCAN_BATCH:
            self._scan = iter(list(self._running))
            self._cursors = {
                mailing_id: cursor
                for mailing_id, cursor in self._cursors.items()
                if mailing_id in self._running
            }
            batch += islice(self._scan, SCAN_BATCH - len(batch))
        await self._find_first_waiting(connection, dict.fromkeys(batch))

    async def _find_first_waiting(
        self, connection: asyncpg.Connection, since: Mapping[int, datetime | None]
    ) -> None:
        """Find the first scheduled message of each mailing, and schedule the next claim.

        `since` maps a mailing to a moment, to look only at messages that are due since then, or to
        None.
        """
        for mailing_id, position, seconds in await store.first_waiting(connection, since):
            if position <= self._cursors.get(mailing_id, store.FIRST_CURSOR):
                del self._cursors[mailing_id]
            if seconds > 0 or since[mailing_id] is not None:
                self._scheduler.add_at(mailing_id, elapsed() + max(RECHECK_INTERVAL, seconds))
            else:
                self._scheduler.add([mailing_id])
