"""How many requests each caller may make: a leaky bucket as a meter, in this process' memory."""

import math
from collections.abc import Callable, Hashable

from mailer.clock import elapsed

KEPT = 10_000
"""Callers that are remembered at most; of those whose bucket is empty nothing need be."""


class Rate:
    """`per_second` requests of each caller on average, and as many as two seconds' at once.

    The algorithm is GCRA (ITU-T I.371, annex A): of a caller one number is kept, the moment at
    which its bucket is empty.
    """

    def __init__(self, per_second: float, clock: Callable[[], float] = elapsed) -> None:
        self._interval = 1 / per_second
        self._tolerance = max(2.0, self._interval)
        self._clock = clock
        self._empty_at: dict[Hashable, float] = {}

    def wait(self, caller: Hashable) -> int:
        """Count a request of a caller and return 0, or the seconds until it may ask again."""
        now = self._clock()
        empty_at = max(now, self._empty_at.get(caller, now)) + self._interval
        if empty_at - now > self._tolerance + 1e-9:
            return math.ceil(empty_at - now - self._tolerance)
        if len(self._empty_at) >= KEPT:
            self._empty_at = {who: at for who, at in self._empty_at.items() if at > now}
        self._empty_at[caller] = empty_at
        return 0
