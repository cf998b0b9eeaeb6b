"""The database's time, which all deadlines use, computed from samples and a monotonic clock.

A wall clock can be set at any moment: by a user, by NTP after hours without a network, by a
hypervisor. So no deadline uses this machine's wall clock. Between two samples of the database's
clock its time is computed with `elapsed()`.
"""

import time
from datetime import UTC, datetime, timedelta
from typing import Literal

import structlog

from mailer import metrics

log = structlog.get_logger()

MIN_LOGGED_STEP = timedelta(seconds=1)
"""A correction of a clock by this much or more is a step, which is logged and counted."""

STEP_EVENTS = {"database": "database_clock_stepped", "wall": "wall_clock_stepped"}
"""The log event for a step of each clock."""


def elapsed() -> float:
    """Return the seconds since some moment in the past, on a clock that never steps.

    It is CLOCK_BOOTTIME (clock_gettime(2)), which includes the time for which the machine was
    suspended. `time.monotonic()` does not include it.
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class FollowedClock:
    """A clock that can step or is another machine's, computed from samples and `elapsed()`."""

    def __init__(self, name: Literal["database", "wall"]) -> None:
        self._name = name
        self._origin: datetime | None = None
        """The time of this clock at which `elapsed()` was 0."""

    def now(self) -> datetime:
        """Return this clock's time now. Raises `RuntimeError` before the first sample."""
        return self.at(elapsed())

    def at(self, moment: float) -> datetime:
        """Return this clock's time at a moment of `elapsed()`. Raises as `now` does."""
        if self._origin is None:
            raise RuntimeError(f"the {self._name} clock has no sample yet")
        return self._origin + timedelta(0, moment)  # keywords cost a microsecond more

    def sample(self, requested_at: float, reading: datetime, received_at: float) -> None:
        """Correct the computed time by a reading of the clock.

        The clock was read at some moment between `requested_at` and `received_at`, two moments of
        `elapsed()`. The correction is the smallest one that agrees with the reading, so that a
        slow reading changes little.
        """
        earliest = reading - timedelta(seconds=received_at)
        latest = reading - timedelta(seconds=requested_at)
        previous = self._origin
        if previous is None:
            self._origin = earliest + (latest - earliest) / 2
            return
        self._origin = min(max(previous, earliest), latest)
        step = self._origin - previous
        if abs(step) >= MIN_LOGGED_STEP:
            metrics.clock_stepped(self._name)
            log.warning(STEP_EVENTS[self._name], seconds=round(step.total_seconds(), 3))


database_clock = FollowedClock("database")
"""The clock of the database. It is sampled at startup before requests are served, and then every
second."""
wall_clock = FollowedClock("wall")
"""This machine's wall clock, sampled only to detect its steps."""


async def sample_wall_clock() -> None:
    """Sample this machine's wall clock, and log a step since the last sample."""
    wall_clock.sample(elapsed(), datetime.now(UTC), elapsed())  # noqa: TID251  # the wall clock itself is sampled
