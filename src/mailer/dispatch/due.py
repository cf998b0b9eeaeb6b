"""Schedule the next claim of each mailing, and remember its claim cursor."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from itertools import islice

import asyncpg

from mailer.clock import database_clock, elapsed
from mailer.dispatch.share import FairShare
from mailer.message import store
from mailer.message.model import ClaimedMessage, FinishedMessage
from mailer.message.store import Place

SLICE = 1_000
"""Mailings that one statement looks at."""
SCAN_INTERVAL = 1.0
"""Seconds, at least, between scans of a slice of all running mailings, which find the messages that
other workers put back."""
MAX_SCAN_SHARE = 1 / 20
"""Share of the time that scans use at most: old snapshots make them slow."""
RECHECK = 0.02
"""Least seconds until a mailing is asked again whose due messages are in other hands."""
MARGIN = timedelta(seconds=0.05)
"""By how much the clock of the database may be ahead of what this worker takes for it."""


class DueMailings:
    """Tells `share` when to ask the mailings that run, by looking at their first messages.

    A claim goes on from the place where the last one of its mailing ended, so that it never walks
    over what was claimed before. What comes to be due before that place (released, planned anew)
    is found by the look at a slice of all: then the mailing's claims begin at the start again.
    """

    def __init__(self, share: FairShare, running: Mapping[int, object]) -> None:
        self._share = share
        self._running = running
        self._unsure: dict[int, datetime | None] = {}
        self._places: dict[int, Place] = {}
        self._round: Iterator[int] = iter(())
        self._look_at = 0.0

    @property
    def is_unsure(self) -> bool:
        """Whether there are more to look at."""
        return bool(self._unsure)

    def look(self, mailings: Iterable[int]) -> None:
        """Find out when these have something due: they have changed."""
        self._unsure.update(dict.fromkeys(mailings))

    def place(self, mailing: int) -> Place:
        """Return after which message the next claim of a mailing goes on."""
        return self._places.get(mailing, store.START)

    def claimed(self, claims: Iterable[ClaimedMessage], less: list[int], at: datetime) -> None:
        """Note a claim at a moment, and the mailings that had less than their share."""
        for claim in claims:
            place = (claim.due_at, claim.id)
            if place > self._places.get(claim.mailing_id, store.START):
                self._places[claim.mailing_id] = place
        for mailing in less:
            self._unsure.setdefault(mailing, at - MARGIN)

    def recorded(self, finished: Iterable[FinishedMessage]) -> None:
        """Note when messages are due again that this worker has put back."""
        now, database_now = elapsed(), database_clock.now()
        for done in finished:
            mailing = done.claim.mailing_id
            if done.due_at is None:  # untried, and due as it was
                self._places.pop(mailing, None)
                self._share.wait(mailing, now)
            else:
                self._share.wait(mailing, now + (done.due_at - database_now).total_seconds())

    async def refresh(self, connection: asyncpg.Connection) -> None:
        """Look at those of which it is not known when they are due, and at a slice of all."""
        began = elapsed()
        if began >= self._look_at:
            await self._look_at_slice(connection)
            now = elapsed()
            self._look_at = now + max(SCAN_INTERVAL, (now - began) / MAX_SCAN_SHARE)
        if self._unsure:  # the latest first
            some = dict(self._unsure.popitem() for _ in range(min(SLICE, len(self._unsure))))
            try:
                await self._look(connection, some)
            except BaseException:
                self._unsure = some | self._unsure  # those that were added meanwhile stay
                raise

    async def _look_at_slice(self, connection: asyncpg.Connection) -> None:
        some = list(islice(self._round, SLICE))
        if len(some) < SLICE:
            self._round = iter(list(self._running))
            self._places = {m: place for m, place in self._places.items() if m in self._running}
            some += islice(self._round, SLICE - len(some))
        await self._look(connection, dict.fromkeys(some))

    async def _look(
        self, connection: asyncpg.Connection, since: Mapping[int, datetime | None]
    ) -> None:
        """Find the first message of each that waits, if a moment is given of those due since."""
        for mailing, place, seconds in await store.first_waiting(connection, since):
            if place <= self._places.get(mailing, store.START):
                del self._places[mailing]
            if seconds > 0 or since[mailing] is not None:
                self._share.wait(mailing, elapsed() + max(RECHECK, seconds))
            else:
                self._share.ask([mailing])
