"""When to try again: pure policy."""

import random
from collections.abc import Callable

import msgspec

FOREVER = 64
"""Doublings after which any base has reached any cap."""


class RetryPolicy(msgspec.Struct, frozen=True):
    """At most `attempts` attempts; between them a pause in seconds, `base` doubled up to `cap`."""

    attempts: int
    base: float
    cap: float
    draw: Callable[[], float] = random.random
    """Gives a number in [0, 1)."""

    def is_exhausted(self, attempt: int) -> bool:
        """Whether attempt number `attempt`, the first being 1, was the last."""
        return attempt >= self.attempts

    def pause(self, attempt: int) -> float:
        """Return the seconds to wait after attempt number `attempt`.

        Exponential with full jitter, so that messages that failed together do not come back
        together. Source: M. Brooker, "Exponential Backoff And
        Jitter", AWS Architecture Blog, 2015.
        """
        return min(self.cap, self.base * 2.0 ** min(attempt - 1, FOREVER)) * self.draw()
