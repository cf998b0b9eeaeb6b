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
    """Computes the time of a clock that may step or belongs to another machine.

    It uses samples of that clock, and `elapsed()` between them.
    """

    def __init__(self, name: Literal["database", "wall"]) -> None:
        self._name = name
        self._time_at_zero: datetime | None = None
        """This clock's time when `elapsed()` was 0."""

    def now(self) -> datetime:
        """Return this clock's time now. Raises `RuntimeError` before the first sample."""
        return self.at(elapsed())

    def at(self, moment: float) -> datetime:
        """Return this clock's time at a value of `elapsed()`. Raises as `now` does."""
        if self._time_at_zero is None:
            raise RuntimeError(f"the {self._name} clock has no sample yet")
        return self._time_at_zero + timedelta(0, moment)  # `seconds=` takes a microsecond more

    def sample(self, requested_at: float, reading: datetime, received_at: float) -> None:
        """Correct the computed time with a reading of the clock.

        The clock was read at some moment between `requested_at` and `received_at`, two values of
        `elapsed()`. The first sample takes the middle. Later, the correction is the smallest one
        that agrees with the reading: a reading that took long allows a wide range, so it changes
        little.
        """
        earliest = reading - timedelta(seconds=received_at)
        latest = reading - timedelta(seconds=requested_at)
        previous = self._time_at_zero
        if previous is None:
            self._time_at_zero = earliest + (latest - earliest) / 2
            return
        self._time_at_zero = min(max(previous, earliest), latest)
        step = self._time_at_zero - previous
        if abs(step) >= MIN_LOGGED_STEP:
            metrics.clock_stepped(self._name)
            log.warning(STEP_EVENTS[self._name], seconds=round(step.total_seconds(), 3))


database_clock = FollowedClock("database")
"""The clock of the database. It is sampled at startup before requests are served, and then every
second."""
wall_clock = FollowedClock("wall")
"""This machine's wall clock, sampled only to detect its steps."""


async def sample_wall_clock() -> None:
    """Sample this machine's wall clock, and log a step since the last sample. A periodic job."""
    before = elapsed()
    reading = datetime.now(UTC)  # noqa: TID251  # the wall clock itself is sampled
    wall_clock.sample(before, reading, elapsed())
