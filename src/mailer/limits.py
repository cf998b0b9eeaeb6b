"""Limiters: how many operations run at once (slots), and how many start a second (rates).

Their state is in the memory of this worker, so each worker has the whole limit for itself.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Hashable
from contextlib import AsyncExitStack, asynccontextmanager
from weakref import WeakValueDictionary

from mailer.errors import UnavailableError

MAX_TRACKED_CALLERS = 10_000
"""From this number of callers on, a rate limiter forgets those who have the full rate again."""

ROUNDING_ERROR = 1e-9
"""Seconds; differences of times as small as this are due to rounding."""


class BusyError(UnavailableError):
    """Too many imports or downloads are running; try again in half a minute."""

    retry_after = 30


class ConcurrencyLimiter:
    """Lets at most `limit` operations run at once, each in a slot.

    An owner, such as an API key, can hold at most `per_owner` slots, so that no owner can hold all
    of them; None means `limit`. A task waits for a slot for at most `timeout` seconds; then the
    error `busy` is raised.
    """

    def __init__(
        self,
        limit: int,
        *,
        timeout: float,
        per_owner: int | None = None,
        busy: type[UnavailableError] = BusyError,
    ) -> None:
        self._all_slots = asyncio.Semaphore(limit)
        self._per_owner = limit if per_owner is None else per_owner
        self._timeout = timeout
        self._busy = busy
        self._slots_of_owner: WeakValueDictionary[Hashable, asyncio.Semaphore] = (
            WeakValueDictionary()
        )
        """An entry vanishes when no task of the owner holds a slot or waits for one any more."""

    @asynccontextmanager
    async def slot(self, owner: Hashable | None = None) -> AsyncIterator[None]:
        """Wait for a slot and hold it while the block lasts; raises `busy`.

        The owner None has no limit of its own. A task first waits until its owner may hold another
        slot, and only then in the queue of all owners. So it never delays another owner.
        """
        semaphores = [self._all_slots]
        if owner is not None:
            new = asyncio.Semaphore(self._per_owner)
            semaphores.insert(0, self._slots_of_owner.setdefault(owner, new))
        async with AsyncExitStack() as acquired:
            try:
                async with asyncio.timeout(self._timeout):
                    for semaphore in semaphores:
                        await acquired.enter_async_context(semaphore)
            except TimeoutError:
                raise self._busy from None
            yield


class RateLimiter:
    """Allows each caller `per_second` requests on average, and refuses the others.

    As many requests as are allowed in `burst` seconds may come at once, at least one. The time is
    an argument, in seconds on a clock that never goes back.

    The algorithm is GCRA (ITU-T I.371, annex A). Imagine a bucket for each caller: a request pours
    in what leaks out in `1 / per_second` seconds, and is refused if the bucket would overflow. All
    that must be remembered is the moment at which the bucket will be empty.
    """

    def __init__(self, per_second: float, *, burst: float = 2.0) -> None:
        self._interval = 1 / per_second
        self._bucket_size = max(burst, self._interval)
        """Seconds in which a full bucket becomes empty."""
        self._empty_at: dict[Hashable, float] = {}

    def retry_after(self, caller: Hashable, now: float) -> int:
        """Count a request and return 0, or return the seconds until the caller may send one."""
        empty_at = max(now, self._empty_at.get(caller, now)) + self._interval
        overflow = empty_at - now - self._bucket_size
        if overflow > ROUNDING_ERROR:
            return math.ceil(overflow)
        if len(self._empty_at) >= MAX_TRACKED_CALLERS:
            self._empty_at = {key: at for key, at in self._empty_at.items() if at > now}
        self._empty_at[caller] = empty_at
        return 0


class Pacer:
    """Reserves slots in time, `1 / per_second` seconds apart, so that sending is even.

    Unlike a rate limiter it refuses nothing: the caller waits until its slot starts. A caller that
    comes late still gets the unused slots of the last `slack` seconds, so that the rate is exact;
    older ones are lost. The time is an argument, in seconds on a clock that never goes back. Source
    of the rule: the virtual scheduling algorithm, ITU-T I.371, annex A.
    """

    def __init__(self, per_second: float, *, slack: float = 0.02) -> None:
        self._interval = 1 / per_second
        self._slack = slack
        self._next_slot = float("-inf")

    def reserve(self, now: float) -> float:
        """Reserve the next slot. Return the seconds until it starts, 0 when it has started."""
        slot = max(self._next_slot, now - self._slack)
        self._next_slot = slot + self._interval
        return max(0.0, slot - now)
