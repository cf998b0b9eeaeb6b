"""The circuit breaker of a gateway: requests stop while the gateway is down, and then probe it.

It does no I/O, and the time is an argument: `now`, in seconds on a clock that never steps. Source
of the states: M. Nygard, "Release It!", 2007, chapter 5.
"""

import math
from datetime import datetime, timedelta
from typing import Any, ClassVar, Literal, get_args

import msgspec

from mailer.gateway.protocol import Aborted, Accepted, Outcome, Rejected, TemporaryFailure, Unknown

BreakerState = Literal["closed", "open", "half_open"]
BREAKER_STATES: tuple[BreakerState, ...] = get_args(BreakerState)

UNLIMITED = 1_000_000
"""Capacity of a closed breaker: more messages than a worker ever claims at once."""


class Outage(msgspec.Struct, frozen=True):
    """Since when the gateway is not used, and why: `reason` is its last failure."""

    since: datetime
    reason: str


class GatewayStatus(msgspec.Struct, frozen=True):
    """The state of the gateway, as the worker that answers sees it."""

    EXAMPLE: ClassVar[dict[str, Any]] = {
        "is_set": True,
        "breaker": "open",
        "held": {"since": "2030-01-15T06:00:00Z", "reason": "http_503"},
        "retry_at": "2030-01-15T06:00:15Z",
        "failures": 10,
    }

    is_set: bool
    """Whether a gateway is configured; without one nothing is sent."""
    breaker: BreakerState = "closed"
    held: Outage | None = None
    retry_at: datetime | None = None
    failures: int = 0
    """Consecutive failures."""


class Breaker:
    """Opens after `failures` consecutive failures, or at once if a failure affects all messages.

    While open, it permits no request for `reset` seconds, or for as long as the gateway asks. Then
    it is half-open and permits one probe at a time. One success closes it, one failure opens it
    again.
    """

    def __init__(self, failures: int, reset: float) -> None:
        self.state: BreakerState = "closed"
        self.outage: Outage | None = None
        """Since when and why the breaker is not closed; None while it is closed."""
        self.retry_at: datetime | None = None
        """When the next probe is permitted, to show to users; None while closed."""
        self.failures = 0
        """Consecutive failures."""
        self._max_failures = failures
        self._reset = reset
        self._probe_at = 0.0
        self._generation = 1
        self._is_probing = False

    def status(self) -> GatewayStatus:
        """Return the state of the breaker, to show to users."""
        return GatewayStatus(
            is_set=True,
            breaker=self.state,
            held=self.outage,
            retry_at=self.retry_at,
            failures=self.failures,
        )

    def capacity(self, now: float) -> int:
        """Return how many requests may start now."""
        if self.state == "closed":
            return UNLIMITED
        return int(now >= self._probe_at and not self._is_probing)

    def seconds_to_probe(self, now: float) -> float:
        """Return the seconds until a request may start; infinite while a probe is in flight."""
        if self.capacity(now):
            return 0.0
        return math.inf if self._is_probing else self._probe_at - now

    def try_now(self, now: float, at: datetime) -> None:
        """Permit the next probe now, not after the pause. `at` is the moment `now`, for users."""
        if self.state == "open":
            self._set_probe_time(0.0, now, at)

    def acquire(self, now: float) -> int | None:
        """Return a permit for one request, or None. Pass it to `record` with the request's outcome.

        The permit is the current generation, a number that changes when the breaker opens or
        closes.
        """
        if not self.capacity(now):
            return None
        if self.state != "closed":
            self.state = "half_open"
            self._is_probing = True
        return self._generation

    def is_current(self, generation: int) -> bool:
        """Return whether a permit is still valid.

        It is not if the breaker has opened since `acquire` and is not closed again.
        """
        return generation == self._generation or self.state == "closed"

    def record(self, generation: int, outcome: Outcome, now: float, at: datetime) -> bool:
        """Record an outcome. Return True if it is a failure that belongs to an outage.

        A failure does when the breaker is not closed, or has opened or closed since the request
        started. Requests of an earlier generation change nothing, except that the gateway may ask
        for a longer pause. `at` is the moment `now`, for users.
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
        if isinstance(failure, TemporaryFailure) and failure.affects_all and failure.retry_after:
            return failure.retry_after
        return self._reset

    def _close(self) -> None:
        if self.state != "closed":
            self._generation += 1
        self.state, self.outage, self.retry_at = "closed", None, None
        self.failures, self._is_probing = 0, False
