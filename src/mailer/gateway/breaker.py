"""The circuit breaker of a gateway: no requests while the gateway is down, then one as a probe.

It does no I/O, and the time is an argument. `now` is a moment of `elapsed()`, in seconds; `at` is
the same moment by the database's clock, to show to users. Source of the states: M. Nygard, "Release
It!", 2007, chapter 5.
"""

import math
from datetime import datetime, timedelta
from typing import Literal, get_args

import msgspec

from mailer.gateway.protocol import Aborted, Accepted, Outcome, Rejected, TemporaryFailure, Unknown

BreakerState = Literal["closed", "open", "half_open"]
BREAKER_STATES: tuple[BreakerState, ...] = get_args(BreakerState)

UNLIMITED = 1_000_000
"""Capacity of a closed breaker: more messages than a worker ever claims at once."""


class Outage(msgspec.Struct, frozen=True):
    """The time during which the gateway is not used.

    `since` is its start, and `reason` the latest failure, for example `http_503`.
    """

    since: datetime
    reason: str


class Breaker:
    """Permits requests while the gateway works, and stops them during an outage.

    It opens after `max_failures` consecutive failures, or at once if a failure affects all
    messages. While open, it permits no request for `reset` seconds, or for as long as the gateway
    asks. Then it is half-open and permits one request at a time, a probe. One success closes it,
    one failure opens it again.

    Its generation is a number that increases whenever it opens or closes. A request that started in
    an earlier generation does not change the breaker with its outcome.
    """

    def __init__(self, max_failures: int, reset: float) -> None:
        self.state: BreakerState = "closed"
        self.outage: Outage | None = None
        """Since when and why the breaker is not closed; None while it is closed."""
        self.retry_at: datetime | None = None
        """When the next probe is permitted, to show to users; None while closed."""
        self.failures = 0
        """Consecutive failures."""
        self._max_failures = max_failures
        self._reset = reset
        self._probe_at = 0.0
        """The moment from which a probe is permitted."""
        self._generation = 1
        self._is_probing = False
        """Whether a probe is in flight."""

    def capacity(self, now: float) -> int:
        """Return how many requests may start now: `UNLIMITED`, or 1 for a probe, or 0."""
        if self.state == "closed":
            return UNLIMITED
        return int(now >= self._probe_at and not self._is_probing)

    def seconds_to_probe(self, now: float) -> float:
        """Return the seconds until a request may start; infinite while a probe is in flight."""
        if self.capacity(now):
            return 0.0
        return math.inf if self._is_probing else self._probe_at - now

    def try_now(self, now: float, at: datetime) -> None:
        """Permit the next probe now, not after the pause."""
        if self.state == "open":
            self._set_probe_time(0.0, now, at)

    def acquire(self, now: float) -> int | None:
        """Permit one request. Return the generation in which it starts; None if it may not start.

        Pass the generation to `record` with the request's outcome.
        """
        if not self.capacity(now):
            return None
        if self.state != "closed":
            self.state = "half_open"
            self._is_probing = True
        return self._generation

    def is_current(self, generation: int) -> bool:
        """Return whether a request that was permitted in `generation` may still be written.

        It may not when the breaker has opened since and is not closed again.
        """
        return generation == self._generation or self.state == "closed"

    def record(self, generation: int, outcome: Outcome, now: float, at: datetime) -> bool:
        """Record the outcome of a request that started in `generation`.

        Return True if it is a failure that belongs to an outage. This is so when the breaker is not
        closed after it, or has opened or closed since the request started.

        A request of an earlier generation changes nothing, except that its failure may ask for a
        longer pause.
        """
        match outcome:
            case Aborted():
                if generation == self._generation:
                    self._is_probing = False  # the next request may be the probe
                return False
            case Accepted() | Rejected():
                if generation == self._generation:
                    self._close()
                return False
            case TemporaryFailure() | Unknown():
                self._record_failure(generation, outcome, now, at)
                return self.state != "closed" or generation != self._generation

    def _record_failure(
        self, generation: int, failure: TemporaryFailure | Unknown, now: float, at: datetime
    ) -> None:
        affects_all = failure.affects_all if isinstance(failure, TemporaryFailure) else False
        pause = self._pause(failure)
        if generation != self._generation:
            if affects_all and self.state != "closed" and now + pause > self._probe_at:
                self._set_probe_time(pause, now, at)
            return
        self.failures += 1
        if affects_all or self.state != "closed" or self.failures >= self._max_failures:
            self.state = "open"
            self.outage = Outage(at if self.outage is None else self.outage.since, failure.reason)
            self._set_probe_time(pause, now, at)
            self._generation += 1
            self._is_probing = False

    def _set_probe_time(self, pause: float, now: float, at: datetime) -> None:
        self._probe_at = now + pause
        self.retry_at = at + timedelta(seconds=pause)

    def _pause(self, failure: TemporaryFailure | Unknown) -> float:
        """Return the seconds until the next probe after a failure."""
        if isinstance(failure, TemporaryFailure) and failure.affects_all and failure.retry_after:
            return failure.retry_after
        return self._reset

    def _close(self) -> None:
        if self.state != "closed":
            self._generation += 1
        self.state, self.outage, self.retry_at = "closed", None, None
        self.failures, self._is_probing = 0, False
