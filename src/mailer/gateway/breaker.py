"""The circuit breaker before a gateway: a gateway that is down is left alone, and then probed.

Pure: the time is an argument, `now` in seconds on a clock that never steps. Source of the states:
M. Nygard, "Release It!", 2007, chapter 5.
"""

import math
from datetime import datetime, timedelta
from typing import Any, ClassVar

import msgspec

from mailer.gateway.port import Accepted, Outcome, Refused, Stopped, Unavailable, Unknown
from mailer.metrics import BreakerState

NO_LIMIT = 1_000_000
"""More messages than anybody claims at once."""


class Hold(msgspec.Struct, frozen=True):
    """Since when, and why, nothing is sent: the gateway's last failure."""

    since: datetime
    reason: str


class GatewayStatus(msgspec.Struct, frozen=True):
    """How this process gets on with the gateway."""

    EXAMPLE: ClassVar[dict[str, Any]] = {
        "is_set": True,
        "breaker": "open",
        "held": {"since": "2030-01-15T06:00:00Z", "reason": "http_503"},
        "retry_at": "2030-01-15T06:00:15Z",
        "failures": 10,
    }

    is_set: bool
    """Whether there is a gateway; without one nothing is sent."""
    breaker: BreakerState = "closed"
    held: Hold | None = None
    retry_at: datetime | None = None
    failures: int = 0
    """Failures in a row."""


class Breaker:
    """Opens after `failures` in a row, or at once when the gateway says that it takes nothing.

    Open, it permits nothing for `reset` seconds, or as long as the gateway asks. Then it is
    half-open and permits one probe at a time: one success closes it, one failure opens it again.
    """

    def __init__(self, failures: int, reset: float) -> None:
        self.state: BreakerState = "closed"
        self.hold: Hold | None = None
        """Why it is not closed."""
        self.retry_at: datetime | None = None
        """When it lets the next probe through, for people; None while closed."""
        self.failures = 0
        """Failures in a row."""
        self._most_failures = failures
        self._reset = reset
        self._probe_at = 0.0
        self._permit = 1
        self._is_probing = False

    def status(self) -> GatewayStatus:
        """Return how it stands, for people."""
        return GatewayStatus(
            is_set=True,
            breaker=self.state,
            held=self.hold,
            retry_at=self.retry_at,
            failures=self.failures,
        )

    def room(self, now: float) -> int:
        """Return how many messages may begin."""
        if self.state == "closed":
            return NO_LIMIT
        return int(now >= self._probe_at and not self._is_probing)

    def seconds_to_probe(self, now: float) -> float:
        """Return the seconds until a message may begin; infinite while a probe is under way."""
        if self.room(now):
            return 0.0
        return math.inf if self._is_probing else self._probe_at - now

    def try_now(self, now: float, at: datetime) -> None:
        """Let the next message probe at once instead of after the pause."""
        if self.state == "open":
            self._wait(0.0, now, at)

    def begin(self, now: float) -> int | None:
        """Return a permit to send one message, or None; with its outcome it goes to `record`."""
        if not self.room(now):
            return None
        if self.state != "closed":
            self.state = "half_open"
            self._is_probing = True
        return self._permit

    def still_permits(self, permit: int) -> bool:
        """Whether a message may still go out: not when the breaker has opened since `begin`."""
        return permit == self._permit or self.state == "closed"

    def record(self, permit: int, outcome: Outcome, now: float, at: datetime) -> bool:
        """Record an outcome. Return True when the failure belongs to the outage.

        It does when the breaker is not closed, or when the request started before it last opened.
        Requests of an earlier state change nothing, except that the gateway may ask for a longer
        pause. `at` is the moment `now`, for people.
        """
        match outcome:
            case Stopped():
                if permit == self._permit:
                    self._is_probing = False  # the next message may be the probe
                return False
            case Accepted() | Refused():
                if permit == self._permit:
                    self._close()
                return False
            case Unavailable() | Unknown():
                self._fail(permit, outcome, now, at)
        return self.state != "closed" or permit != self._permit

    def _fail(self, permit: int, failure: Unavailable | Unknown, now: float, at: datetime) -> None:
        asks = failure.affects_all if isinstance(failure, Unavailable) else False
        pause = self._pause(failure)
        if permit != self._permit:
            if asks and self.state != "closed" and now + pause > self._probe_at:
                self._wait(pause, now, at)
            return
        self.failures += 1
        if asks or self.state != "closed" or self.failures >= self._most_failures:
            self.state = "open"
            self.hold = Hold(at if self.hold is None else self.hold.since, failure.reason)
            self._wait(pause, now, at)
            self._permit += 1
            self._is_probing = False

    def _wait(self, pause: float, now: float, at: datetime) -> None:
        self._probe_at = now + pause
        self.retry_at = at + timedelta(seconds=pause)

    def _pause(self, failure: Unavailable | Unknown) -> float:
        if isinstance(failure, Unavailable) and failure.affects_all and failure.retry_after:
            return failure.retry_after
        return self._reset

    def _close(self) -> None:
        if self.state != "closed":
            self._permit += 1
        self.state, self.hold, self.retry_at = "closed", None, None
        self.failures, self._is_probing = 0, False
