"""Slots in time for the messages of mailings with a rate, which all workers reserve in turn.

The rate of a mailing is a row of slots, `1 / rate` seconds apart: each message takes the next one.
The moment of the next free slot is in the database (`message/pace.py`). A worker that wants to
claim messages first reserves slots there, at most `SLOTS_AHEAD` seconds ahead. It claims only as
many messages as it has slots, and the request of each message starts at its slot.
"""

from collections.abc import Mapping
from typing import NamedTuple

import asyncpg
import msgspec

from mailer.clock import database_clock, elapsed
from mailer.dispatch.fair_scheduler import MailingBatch
from mailer.mailing.model import RunningMailing
from mailer.message import pace

ASK_AHEAD = pace.SLOTS_AHEAD / 2
"""Seconds before the next free slot from which a worker asks for more: time enough to claim."""
RETRY_DELAY = 1.0
"""Seconds until the next try for a mailing for which the database knows no slots."""
LATE_DELAY = 0.05
"""Seconds until the next claim from a mailing if messages whose slots have come still wait."""
MAX_KEPT = 1_000
"""Mailings from which on those that no longer run are forgotten."""


class _Stock(msgspec.Struct):
    """The slots of a mailing that this worker has reserved and not used."""

    rate: float
    """The rate of the mailing for which they were reserved."""
    spacing: float = 0.0
    """Seconds between two slots."""
    first: float = 0.0
    """The moment of the first one."""
    count: int = 0
    ask_at: float = 0.0
    """The moment from which the database may have more."""

    def drop_missed(self, now: float) -> None:
        """Drop the slots that have passed unused."""
        while self.count and self.first < now - pace.SLOT_SLACK:
            self.first += self.spacing
            self.count -= 1

    def take(self, limit: int) -> list[float]:
        """Remove and return the moments of up to `limit` slots."""
        taken = min(limit, self.count)
        moments = [self.first + position * self.spacing for position in range(taken)]
        self.first += taken * self.spacing
        self.count -= taken
        return moments


class LimitedBatch(NamedTuple):
    """A batch within the rates of its mailings."""

    batch: MailingBatch
    slots: Mapping[int, list[float]]
    """The moments at which messages may be sent, of each mailing with a rate."""
    waiting: Mapping[int, float]
    """From when on to claim from mailings that were left out, because their rate permits no message
    now."""


class MailingSlots:
    """The slots that this worker has reserved. All moments are values of `elapsed()`."""

    def __init__(self) -> None:
        self._stocks: dict[int, _Stock] = {}

    async def limit(
        self,
        connection: asyncpg.Connection,
        batch: MailingBatch,
        running: Mapping[int, RunningMailing],
        *,
        is_late: bool,
    ) -> LimitedBatch:
        """Return a batch with at most as many messages of each mailing as its rate permits now.

        `is_late` says that messages whose moments have come still wait to be sent. Then nothing is
        claimed from mailings with a rate: else too many messages would be sent together later.

        The database is asked only for mailings with a rate of which no slot is left here, and not
        before it may have one.
        """
        rates = {
            mailing_id: mailing.rate
            for mailing_id in batch.shares
            if (mailing := running.get(mailing_id)) is not None and mailing.rate is not None
        }
        if not rates:
            return LimitedBatch(batch, {}, {})
        shares = dict(batch.shares)
        if is_late:
            moment = elapsed() + LATE_DELAY
            waiting = {mailing_id: moment for mailing_id in rates if shares.pop(mailing_id)}
            return LimitedBatch(MailingBatch(shares), {}, waiting)
        await self._restock(connection, rates, shares, running)
        slots, waiting = {}, {}
        for mailing_id in rates:
            if moments := self._stocks[mailing_id].take(shares[mailing_id]):
                slots[mailing_id] = moments
                shares[mailing_id] = len(moments)
            else:
                waiting[mailing_id] = self._stocks[mailing_id].ask_at
                del shares[mailing_id]
        return LimitedBatch(MailingBatch(shares), slots, waiting)

    def resume(self, limited: LimitedBatch) -> dict[int, float]:
        """Put back the slots of a batch that no message has used.

        Return from when on to claim again from the mailings of which no slot is left.
        """
        now = elapsed()
        resume_at = {}
        for mailing_id, unused in limited.slots.items():
            stock = self._stocks[mailing_id]
            if unused:
                stock.first = unused[0]
                stock.count += len(unused)
            elif not stock.count and stock.ask_at > now:
                resume_at[mailing_id] = stock.ask_at
        return resume_at

    async def _restock(
        self,
        connection: asyncpg.Connection,
        rates: Mapping[int, float],
        shares: Mapping[int, int],
        running: Mapping[int, RunningMailing],
    ) -> None:
        """Reserve slots for the mailings of which none is left, if there may be some."""
        now = elapsed()
        wanted = {}
        for mailing_id, rate in rates.items():
            stock = self._stock(mailing_id, rate)
            stock.drop_missed(now)
            if not stock.count and stock.ask_at <= now:
                wanted[mailing_id] = shares[mailing_id]
        if wanted:
            await self._reserve(connection, wanted)
            self._forget_ended(running)

    def _stock(self, mailing_id: int, rate: float) -> _Stock:
        """Return the stock of a mailing. A new rate makes the slots of the old one worthless."""
        stock = self._stocks.get(mailing_id)
        if stock is None or stock.rate != rate:
            stock = self._stocks[mailing_id] = _Stock(rate)
        return stock

    async def _reserve(self, connection: asyncpg.Connection, wanted: Mapping[int, int]) -> None:
        """Reserve slots in the database."""
        rows = await pace.reserve_slots(connection, wanted)
        now = elapsed()
        database_now = database_clock.at(now)
        for mailing_id in wanted:
            self._stocks[mailing_id].ask_at = now + RETRY_DELAY
        for row in rows:
            stock = self._stocks[row.mailing_id]
            stock.spacing = 1 / row.rate
            stock.first = now + (row.first_at - database_now).total_seconds()
            stock.count = row.slots
            next_free = now + (row.next_at - database_now).total_seconds()
            stock.ask_at = next_free - ASK_AHEAD

    def _forget_ended(self, running: Mapping[int, RunningMailing]) -> None:
        """Forget mailings that no longer run, if there are many."""
        if len(self._stocks) > MAX_KEPT:
            self._stocks = {
                mailing_id: stock
                for mailing_id, stock in self._stocks.items()
                if mailing_id in running
            }
