"""The time of the database's clock, which all deadlines use, known without a query.

A wall clock can be set at any moment: by a user, by NTP after hours without a network, by a
hypervisor. So no deadline uses this machine's wall clock. The database's clock is read now and
then; each reading is a sample. Between two samples the time is computed: the sample plus what has
passed since on `elapsed()`, a clock that nobody can set.
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
    """The computed time of a clock that may be set, or that belongs to another machine.

    `sample` corrects the computed time by a reading of that clock.
    """

    def __init__(self, name: Literal["database", "wall"]) -> None:
        self._name = name
        self._time_at_zero: datetime | None = None
        """This clock's time when `elapsed()` was 0."""

    def now(self) -> datetime:
        """Return this clock's time now. Raises `RuntimeError` before the first sample."""
        return self.at(elapsed())

    def at(self, moment: float) -> datetime:
        """Return this clock's time when `elapsed()` was `moment`. Raises as `now` does."""
        if self._time_at_zero is None:
            raise RuntimeError(f"the {self._name} clock has no sample yet")
        # timedelta(days, seconds): with a keyword argument the call takes a microsecond longer
        return self._time_at_zero + timedelta(0, moment)

    def sample(self, requested_at: float, reading: datetime, received_at: float) -> None:
        """Correct the computed time by a reading of the clock.

        The clock showed `reading` at some moment between `requested_at` and `received_at`, two
        values of `elapsed()`. So the right time is in a range as wide as the reading took. The
        first sample takes the middle of the range. Later samples leave the computed time alone if
        it is in the range, and otherwise correct it to the nearer end.
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
    requested_at = elapsed()
    reading = datetime.now(UTC)  # noqa: TID251  # the wall clock itself is sampled
    wall_clock.sample(requested_at, reading, received_at=elapsed())
