"""The prefetch queue: claimed messages that wait in this worker for their requests to start."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable

from mailer.clock import elapsed
from mailer.message.model import ClaimedMessage

MAX_CLAIM = 500
"""Most messages in one claim. More would gain nothing and hold locks longer."""
PREFETCH_SECONDS = 0.25
"""The messages of this many seconds of sending are kept claimed: enough that senders do not wait
for the database, and few enough that a crash leaves little to rescue."""
MIN_PREFETCH = 10
"""Least number of messages to keep claimed, however slow the gateway is."""


class PrefetchSizer:
    """Computes how many messages to keep claimed: as many as are sent in `seconds`.

    `size` is this number: `initial` at first, and later from `minimum` to `maximum`.
    """

    def __init__(self, *, seconds: float, initial: int, minimum: int, maximum: int) -> None:
        self.size = initial
        self._seconds = seconds
        self._minimum = minimum
        self._maximum = maximum
        self._sent_count = 0
        """Number of messages sent since the last measurement."""
        self._measured_at = 0.0

    def record_sent(self) -> None:
        """Count a message that was sent."""
        self._sent_count += 1

    def measure(self, now: float) -> None:
        """Set `size` by the messages sent since the last measurement; `now` is in seconds.

        Does nothing until `seconds` have passed since then. The size falls by half at most, because
        a pause in which nothing was due says little about the gateway.
        """
        passed = now - self._measured_at
        if passed < self._seconds:
            return
        target = round(self._sent_count / passed * self._seconds)
        self.size = min(self._maximum, max(self._minimum, target, self.size // 2))
        self._sent_count, self._measured_at = 0, now


class PrefetchQueue:
    """Claimed messages in the order in which they are sent.

    A message of a mailing with a rate has a moment before which it is not sent. Then it comes
    before the others, which have none: it has waited already.

    Its size, the number of messages to keep claimed, follows the throughput. It is `initial_size`
    at first. After `capacity` has returned 0, `on_capacity` is called when that changes.
    """

    def __init__(self, initial_size: int, on_capacity: Callable[[], None] = lambda: None) -> None:
        self._claims: asyncio.Queue[ClaimedMessage | None] = asyncio.Queue()
        """After the queue is drained, it contains a None for each reader, which then stops. Before
        that, a None stands for a message of `_late` or `_postponed`."""
        self._sizer = PrefetchSizer(
            seconds=PREFETCH_SECONDS,
            initial=initial_size,
            minimum=MIN_PREFETCH,
            maximum=2 * MAX_CLAIM,
        )
        self._timed: dict[int, tuple[ClaimedMessage, asyncio.TimerHandle]] = {}
        """Claimed messages whose moments have not come, by id."""
        self._late: deque[ClaimedMessage] = deque()
        """Messages whose moments have come: the next ones. The queue has a None for each of them
        and of `_postponed`, because a reader waits for the queue."""
        self._postponed: deque[ClaimedMessage] = deque()
        """Messages that came out of the queue when a late one was next: these follow the late."""
        self._on_capacity = on_capacity
        self._must_report_capacity = False

    @property
    def is_empty(self) -> bool:
        """Whether no claimed message waits to be sent."""
        return not self._count

    @property
    def has_late(self) -> bool:
        """Whether messages wait although their moments have come: no sending task is free."""
        return bool(self._late)

    def capacity(self) -> int:
        """Return how many messages to claim now: 0 while the queue is more than half full."""
        self._sizer.measure(elapsed())
        self._must_report_capacity = self._is_over_half_full
        if self._must_report_capacity:
            return 0
        return min(MAX_CLAIM, self._sizer.size - self._count)

    def put(self, claims: Iterable[ClaimedMessage]) -> None:
        """Add claimed messages, at most as many as `capacity` returned."""
        for claim in claims:
            self._claims.put_nowait(claim)

    def put_at(self, claim: ClaimedMessage, moment: float) -> None:
        """Add a claimed message that is sent at a moment of `elapsed()`, before all others then."""
        timer = asyncio.get_running_loop().call_later(
            max(0.0, moment - elapsed()), self._put_first, claim
        )
        self._timed[claim.id] = claim, timer

    def _put_first(self, claim: ClaimedMessage) -> None:
        """Add a claimed message whose moment has come."""
        del self._timed[claim.id]
        self._late.append(claim)
        self._claims.put_nowait(None)

    async def get(self) -> ClaimedMessage | None:
        """Wait for the next message. Return None once the queue is drained."""
        claim = await self._claims.get()
        if self._late or self._postponed:
            if claim is not None:
                self._postponed.append(claim)
            claim = (self._late or self._postponed).popleft()
        if self._must_report_capacity and not self._is_over_half_full:
            self._must_report_capacity = False
            self._on_capacity()
        return claim

    def record_sent(self) -> None:
        """Count a message that was sent, to measure the throughput."""
        self._sizer.record_sent()

    def drain(self, readers: int) -> list[ClaimedMessage]:
        """Remove and return all waiting messages.

        After that, `get` returns None to each of the `readers` tasks that call it.
        """
        claims = [*self._late, *self._postponed]
        for claim, timer in self._timed.values():
            timer.cancel()
            claims.append(claim)
        for waiting in (self._late, self._postponed, self._timed):
            waiting.clear()
        while not self._claims.empty():
            queued = self._claims.get_nowait()
            if queued is not None:
                claims.append(queued)
        for _ in range(readers):
            self._claims.put_nowait(None)
        return claims

    @property
    def _count(self) -> int:
        return self._claims.qsize() + len(self._timed)

    @property
    def _is_over_half_full(self) -> bool:
        return self._count > self._sizer.size // 2
