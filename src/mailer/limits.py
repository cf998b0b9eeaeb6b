"""Limiters: how many operations run at once (slots), and how many start a second (rates).

Their state is in the memory of this worker.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Hashable
from contextlib import AsyncExitStack, asynccontextmanager
from weakref import WeakValueDictionary

from mailer.errors import UnavailableError

MAX_TRACKED = 10_000
"""Number of callers above which those with an empty bucket are forgotten."""


class BusyError(UnavailableError):
    """Too many imports or downloads are running; try again in half a minute."""

    retry_after = 30


class ConcurrencyLimiter:
    """A semaphore of `limit` slots, with a limit for each owner and a timeout.

    An owner can hold at most `per_owner` slots, so that no owner can hold all of them; None: no
    limit for each owner. A slot is waited for at most `timeout` seconds; then `busy` is raised.
    """

    def __init__(
        self,
        limit: int,
        *,
        timeout: float,
        per_owner: int | None = None,
        busy: type[UnavailableError] = BusyError,
    ) -> None:
        self._all = asyncio.Semaphore(limit)
        self._per_owner = limit if per_owner is None else per_owner
        self._timeout = timeout
        self._busy = busy
        self._by_owner: WeakValueDictionary[Hashable, asyncio.Semaphore] = WeakValueDictionary()
        """Tasks that hold a slot or wait for one keep the semaphore of their owner alive."""

    @asynccontextmanager
    async def slot(self, owner: Hashable | None = None) -> AsyncIterator[None]:
        """Wait for a slot and hold it for the block; raises `busy`.

        The owner None has no limit of its own. A task that waits for its owner's limit is not in
        the queue for the slots of all.
        """
        semaphores = [self._all]
        if owner is not None:
            own = self._by_owner.setdefault(owner, asyncio.Semaphore(self._per_owner))
            semaphores.insert(0, own)
        async with AsyncExitStack() as held:
            try:
                async with asyncio.timeout(self._timeout):
                    for semaphore in semaphores:
                        await held.enter_async_context(semaphore)
            except TimeoutError:
                raise self._busy from None
            yield


class RateLimiter:
    """Allows each caller `per_second` requests on average, and refuses the others.

    `burst` seconds' worth of requests may come at once, at least one request. The time is an
    argument, in seconds on a clock that never goes back. The algorithm is GCRA (ITU-T I.371,
    annex A), equivalent to a token bucket. It keeps one number for each caller: the moment at which
    the caller's bucket will be empty.
    """

    def __init__(self, per_second: float, *, burst: float = 2.0) -> None:
        self._interval = 1 / per_second
        self._tolerance = max(burst, self._interval)
        self._empty_at: dict[Hashable, float] = {}

    def retry_after(self, caller: Hashable, now: float) -> int:
        """Count a request and return 0, or return the seconds until the caller may send one."""
        empty_at = max(now, self._empty_at.get(caller, now)) + self._interval
        if empty_at - now > self._tolerance + 1e-9:
            return math.ceil(empty_at - now - self._tolerance)
        if len(self._empty_at) >= MAX_TRACKED:
            self._empty_at = {key: at for key, at in self._empty_at.items() if at > now}
        self._empty_at[caller] = empty_at
        return 0


class Pacer:
    """Reserves slots `1 / per_second` seconds apart, so that sending is even and the rate exact.

    A late caller still gets unused slots of the last `slack` seconds; older ones are lost. The time
    is an argument, in seconds on a clock that never goes back. Source of the rule: the virtual
    scheduling algorithm, ITU-T I.371, annex A. Unlike a rate limiter it refuses nothing: the
    caller waits for its slot.
    """

    def __init__(self, per_second: float, *, slack: float = 0.02) -> None:
        self._interval = 1 / per_second
        self._slack = slack
        self._next = float("-inf")

    def reserve(self, now: float) -> float:
        """Reserve the next slot. Return the seconds until it begins, 0 when it has begun."""
        slot = max(self._next, now - self._slack)
        self._next = slot + self._interval
        return max(0.0, slot - now)
