"""Find out when the next claim from each mailing is due, and keep the mailing's claim cursor.

Each route has due mailings of its own: those with messages that its gateways may take.
"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from itertools import islice

import asyncpg

from mailer.clock import database_clock, elapsed
from mailer.dispatch.fair_scheduler import FairScheduler
from mailer.mailing.field_types import NORMAL_WEIGHT
from mailer.mailing.model import RunningMailing
from mailer.message import store
from mailer.message.model import ClaimedMessage, MessageResult
from mailer.message.store import ClaimCursor

SCAN_BATCH = 1_000
"""Most mailings that one statement checks."""
SCAN_INTERVAL = 1.0
"""Least seconds between scans. A scan checks the next `SCAN_BATCH` running mailings for messages
that other workers have released or requeued."""
MAX_SCAN_SHARE = 1 / 20
"""Largest share of the time that scans may use: they are slow while an old snapshot exists, because
PostgreSQL then keeps old versions of claimed rows in the index."""
RECHECK_INTERVAL = 0.02
"""Least seconds until the next claim from a mailing, when other workers may be claiming its due
messages now."""
CLOCK_TOLERANCE = timedelta(seconds=0.05)
"""Largest time by which the database's clock may be ahead of this worker's estimate of it."""


class DueMailings:
    """Tells the scheduler when to claim messages of one route from each running mailing.

    For this, it reads the due time of the first scheduled message of a mailing from the database.

    It also keeps the claim cursor of each mailing: the position of the last claimed message. The
    next claim starts after the cursor, so that it does not read the claimed messages again. A
    message that is released or replanned may get a position before the cursor. This worker's own
    releases and the scans find such messages, and then the cursor is reset.

    `running` contains the running mailings; the caller keeps it up to date.
    """

    def __init__(self, route: int, running: Mapping[int, RunningMailing | None]) -> None:
        self.route = route
        self.scheduler = FairScheduler(self._weight_of)
        self._running = running
        self._unchecked: dict[int, datetime | None] = dict.fromkeys(running)
        """Mailings whose first scheduled message must still be found. The value is the earliest
        due time of the messages to search; None for all messages."""
        self._cursors: dict[int, ClaimCursor] = {}
        self._to_scan: Iterator[int] = iter(())
        """The running mailings that the current round of scans has not checked yet."""
        self._next_scan_at = 0.0

    @property
    def has_unchecked(self) -> bool:
        """Whether there are mailings whose first scheduled message must still be found."""
        return bool(self._unchecked)

    def recheck(self, mailing_ids: Iterable[int]) -> None:
        """Find out again when the next messages of these mailings are due: they have changed."""
        for mailing_id in mailing_ids:
            self._unchecked[mailing_id] = None
            self.scheduler.reweigh(mailing_id)

    def _weight_of(self, mailing_id: int) -> int:
        """Return the weight of a mailing, as it is known now."""
        mailing = self._running.get(mailing_id)
        return NORMAL_WEIGHT if mailing is None else mailing.weight

    def cursor(self, mailing_id: int) -> ClaimCursor:
        """Return the cursor after which the next claim of a mailing starts."""
        return self._cursors.get(mailing_id, store.FIRST_CURSOR)

    def record_claimed(
        self, claims: Iterable[ClaimedMessage], below_share: list[int], at: datetime
    ) -> None:
        """Record a claim that started at the moment `at` of the database's clock.

        `below_share` are the mailings of which fewer messages were claimed than their share. Of
        these, no other message was due at that moment, except those that other workers were
        claiming. So only messages that are due since then are checked next.
        """
        for claim in claims:
            position = (claim.due_at, claim.id)
            if position > self._cursors.get(claim.mailing_id, store.FIRST_CURSOR):
                self._cursors[claim.mailing_id] = position
        for mailing_id in below_share:
            self._unchecked.setdefault(mailing_id, at - CLOCK_TOLERANCE)

    def record_rescheduled(self, results: Iterable[MessageResult]) -> None:
        """Record when the messages that this worker has released or requeued are due again."""
        now, database_now = elapsed(), database_clock.now()
        for result in results:
            mailing_id = result.claim.mailing_id
            if result.due_at is None:  # released: it is due as before, so before the cursor
                self._cursors.pop(mailing_id, None)
                self.scheduler.add_at(mailing_id, now)
            else:
                self.scheduler.add_at(
                    mailing_id, now + (result.due_at - database_now).total_seconds()
                )

    async def refresh(self, connection: asyncpg.Connection) -> None:
        """Find the first scheduled messages of unchecked mailings. Also run a scan if it is due."""
        started = elapsed()
        if started >= self._next_scan_at:
            await self._scan_next_batch(connection)
            now = elapsed()
            self._next_scan_at = now + max(SCAN_INTERVAL, (now - started) / MAX_SCAN_SHARE)
        if self._unchecked:
            batch = dict(  # `popitem` removes the latest entry, so the latest changes come first
                self._unchecked.popitem() for _ in range(min(SCAN_BATCH, len(self._unchecked)))
            )
            try:
                await self._find_first_scheduled(connection, batch)
            except BaseException:
                self._unchecked = batch | self._unchecked  # newer entries override those of `batch`
                raise

    async def _scan_next_batch(self, connection: asyncpg.Connection) -> None:
        """Find the first scheduled messages of the next `SCAN_BATCH` running mailings.

        At the end of a round, a new one starts, and the cursors of ended mailings are forgotten.
        """
        batch = list(islice(self._to_scan, SCAN_BATCH))
        if len(batch) < SCAN_BATCH:
            self._to_scan = iter(list(self._running))
            self._cursors = {
                mailing_id: cursor
                for mailing_id, cursor in self._cursors.items()
                if mailing_id in self._running
            }
            batch += islice(self._to_scan, SCAN_BATCH - len(batch))
        await self._find_first_scheduled(connection, dict.fromkeys(batch))

    async def _find_first_scheduled(
        self, connection: asyncpg.Connection, due_since: Mapping[int, datetime | None]
    ) -> None:
        """Find the first scheduled message of each mailing, and plan the next claim from it.

        `due_since` maps each mailing to the earliest due time of the messages to check, or to None
        to check all messages. A claimed message is not scheduled, so it is never found.
        """
        for mailing_id, position, seconds_to_due in await store.first_scheduled(
            connection, self.route, due_since
        ):
            if position <= self._cursors.get(mailing_id, store.FIRST_CURSOR):
                del self._cursors[mailing_id]  # else the next claim would not find the message
            # A due message that a claim has just left over is being claimed by another worker.
            was_just_claimed_from = due_since[mailing_id] is not None
            if seconds_to_due > 0 or was_just_claimed_from:
                pause = max(RECHECK_INTERVAL, seconds_to_due)
                self.scheduler.add_at(mailing_id, elapsed() + pause)
            else:
                self.scheduler.add([mailing_id])
