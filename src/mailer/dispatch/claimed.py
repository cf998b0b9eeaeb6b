"""What is claimed and has not begun: a short queue between the database and the gateway."""

import asyncio
from collections.abc import Iterable

from mailer.clock import elapsed
from mailer.dispatch.recorder import BATCH
from mailer.dispatch.share import Stock
from mailer.message.model import ClaimedMessage

AHEAD = 0.25
"""Seconds of work to keep claimed: enough to hide the database, little to lose in a crash."""
LEAST = 10
"""Messages to keep claimed at least, however slow the gateway is."""


class ClaimedQueue:
    """Claimed messages in the order in which they are to go out, bounded by the gateway's pace."""

    def __init__(self, first: int) -> None:
        self._claims: asyncio.Queue[ClaimedMessage | None] = asyncio.Queue()
        self._stock = Stock(seconds=AHEAD, first=first, least=LEAST, most=2 * BATCH)
        self._has_room = asyncio.Event()
        self._is_closed = False

    @property
    def is_empty(self) -> bool:
        """Whether all that is claimed has begun."""
        return self._claims.empty()

    async def room(self) -> int:
        """Wait until half of what is kept claimed has gone; return how much to claim."""
        self._stock.measure(elapsed())
        while self._is_half_full and not self._is_closed:
            self._has_room.clear()
            await self._has_room.wait()
        return min(BATCH, self._stock.ahead - self._claims.qsize())

    def put(self, claims: Iterable[ClaimedMessage]) -> None:
        """Add what was claimed, of which `room` has told how much may be."""
        for claim in claims:
            self._claims.put_nowait(claim)

    async def get(self) -> ClaimedMessage | None:
        """Wait for the next message; None once the queue is closed."""
        claim = await self._claims.get()
        if not self._is_half_full:
            self._has_room.set()
        return claim

    def count(self) -> None:
        """Count a message that went out: the pace is made of these."""
        self._stock.count()

    def close(self) -> None:
        """Stop claiming, and wake the task that waits for capacity."""
        self._is_closed = True
        self._has_room.set()

    def empty(self, readers: int) -> list[ClaimedMessage]:
        """Take out all that has not begun, and tell so many readers that no more will come."""
        left = []
        while not self._claims.empty():
            claim = self._claims.get_nowait()
            if claim is not None:
                left.append(claim)
        for _ in range(readers):
            self._claims.put_nowait(None)
        return left

    @property
    def _is_half_full(self) -> bool:
        return self._claims.qsize() > self._stock.ahead // 2
