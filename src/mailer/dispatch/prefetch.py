"""The queue of claimed messages, between the claims from the database and the gateway requests."""

import asyncio
from collections.abc import Iterable

from mailer.clock import elapsed
from mailer.message.model import ClaimedMessage

MAX_CLAIM = 500
"""Most messages in one claim. More would gain nothing and hold locks longer."""
PREFETCH_SECONDS = 0.25
"""Seconds of work to keep claimed: enough to hide the database's latency, little to lose in a
crash."""
MIN_PREFETCH = 10
"""Least number of messages to keep claimed, however slow the gateway is."""


class PrefetchSizer:
    """Computes how many messages to keep claimed: as many as are sent in `seconds`, within bounds.

    `size` is the current number, `initial` at first, and then from `minimum` to `maximum`.
    """

    def __init__(self, *, seconds: float, initial: int, minimum: int, maximum: int) -> None:
        self.size = initial
        self._seconds = seconds
        self._minimum = minimum
        self._maximum = maximum
        self._sent = 0
        self._since = 0.0

    def record_sent(self) -> None:
        """Count a message that was sent."""
        self._sent += 1

    def measure(self, now: float) -> None:
        """Set `size` by the messages sent since the last measurement.

        Does nothing until `seconds` have passed since then. The size falls by half at most, because
        a pause in which nothing was due says little about the gateway.
        """
        passed = now - self._since
        if passed < self._seconds:
            return
        target = round(self._sent / passed * self._seconds)
        self.size = min(self._maximum, max(self._minimum, target, self.size // 2))
        self._sent, self._since = 0, now


class PrefetchQueue:
    """Claimed messages in sending order. Its size follows the gateway's throughput.

    `initial_size` is the number of messages to keep claimed at first.
    """

    def __init__(self, initial_size: int) -> None:
        self._claims: asyncio.Queue[ClaimedMessage | None] = asyncio.Queue()
        self._size = PrefetchSizer(
            seconds=PREFETCH_SECONDS,
            initial=initial_size,
            minimum=MIN_PREFETCH,
            maximum=2 * MAX_CLAIM,
        )
        self._has_capacity = asyncio.Event()
        self._is_closed = False

    @property
    def is_empty(self) -> bool:
        """Whether no claimed message waits to be sent."""
        return self._claims.empty()

    async def wait_for_capacity(self) -> int:
        """Wait until the queue is at most half full. Return how many messages to claim."""
        self._size.measure(elapsed())
        while self._is_half_full and not self._is_closed:
            self._has_capacity.clear()
            await self._has_capacity.wait()
        return min(MAX_CLAIM, self._size.size - self._claims.qsize())

    def put(self, claims: Iterable[ClaimedMessage]) -> None:
        """Add claimed messages, at most as many as `wait_for_capacity` returned."""
        for claim in claims:
            self._claims.put_nowait(claim)

    async def get(self) -> ClaimedMessage | None:
        """Wait for the next message. Return None once the queue is drained."""
        claim = await self._claims.get()
        if not self._is_half_full:
            self._has_capacity.set()
        return claim

    def record_sent(self) -> None:
        """Count a message that was sent, to measure the throughput."""
        self._size.record_sent()

    def close(self) -> None:
        """Stop claiming, and wake the task that waits for capacity."""
        self._is_closed = True
        self._has_capacity.set()

    def drain(self, readers: int) -> list[ClaimedMessage]:
        """Remove and return all waiting messages. `get` then returns None to `readers` readers."""
        claims = []
        while not self._claims.empty():
            claim = self._claims.get_nowait()
            if claim is not None:
                claims.append(claim)
        for _ in range(readers):
            self._claims.put_nowait(None)
        return claims

    @property
    def _is_half_full(self) -> bool:
        return self._claims.qsize() > self._size.size // 2
