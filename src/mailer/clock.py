"""The time that promises rest on: the database's clock, followed by one that nobody can set.

A wall clock is set at any moment: by a person, by NTP after hours without a network, by a
hypervisor. So no promise rests on this process's own. Between two samples of the database's clock
its time goes on by `elapsed()`.
"""

import time
from datetime import UTC, datetime, timedelta
from typing import Literal

import structlog

from mailer import metrics

log = structlog.get_logger()

STEP = timedelta(seconds=1)
"""From this size on a change of a clock is a step, which is logged and counted."""

STEPPED = {"database": "database_clock_stepped", "wall": "wall_clock_stepped"}
"""The log event of each clock."""


def elapsed() -> float:
    """Return seconds since some moment in the past, on a clock that never steps.

    `time.monotonic()` stands still while the machine is suspended, and with it the time of a
    process that wakes up; CLOCK_BOOTTIME counts that too (clock_gettime(2)).
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class FollowedClock:
    """A clock that may be set, or is another machine's: known by its samples and `elapsed()`."""

    def __init__(self, name: Literal["database", "wall"]) -> None:
        self._name = name
        self._origin: datetime | None = None
        """What it showed when `elapsed()` was 0."""

    def now(self) -> datetime:
        """Return what it shows; raises `RuntimeError` before the first sample."""
        return self.at(elapsed())

    def at(self, moment: float) -> datetime:
        """Return what it shows at a moment of `elapsed()`; raises as `now`."""
        if self._origin is None:
            raise RuntimeError(f"the {self._name} clock has no sample yet")
        return self._origin + timedelta(0, moment)  # by name takes a microsecond more

    def sample(self, asked_at: float, shown: datetime, answered_at: float) -> None:
        """Correct it by what it has shown at some moment between two of `elapsed()`.

        An answer that took long says little: it moves what is known no further than it proves.
        """
        least = shown - timedelta(seconds=answered_at)
        most = shown - timedelta(seconds=asked_at)
        known = self._origin
        if known is None:
            self._origin = least + (most - least) / 2
            return
        self._origin = min(max(known, least), most)
        step = self._origin - known
        if abs(step) >= STEP:
            metrics.clock_stepped(self._name)
            log.warning(STEPPED[self._name], seconds=round(step.total_seconds(), 3))


database_clock = FollowedClock("database")
"""The clock of this process's database, sampled before anything is served and every second."""
wall_clock = FollowedClock("wall")
"""This machine's clock, followed only to tell when it steps."""


async def sample_wall_clock() -> None:
    """Notice whether this machine's clock was set since the last sample."""
    wall_clock.sample(elapsed(), datetime.now(UTC), elapsed())  # noqa: TID251  # it is this clock that is watched
