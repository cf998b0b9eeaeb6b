"""A followed clock: the time of another clock, computed from samples and the time since then."""

from datetime import timedelta

import pytest
from structlog.testing import capture_logs
from tests.factories import NOON

from mailer.clock import FollowedClock, elapsed
from mailer.metrics import REGISTRY


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


def seconds_ahead(clock: FollowedClock, start: float) -> float:
    """Return the seconds by which `clock` is ahead of a clock that showed noon at `start`.

    `start` is a value of `elapsed()`.
    """
    before, now, after = elapsed(), clock.now(), elapsed()
    passed_since_start = (before + after) / 2 - start
    return round((now - NOON).total_seconds() - passed_since_start, 1)


def count_steps(name: str) -> float:
    """Return the steps of this clock that the metrics have counted."""
    return REGISTRY.get_sample_value("mailer_clock_steps_total", {"clock": name}) or 0


def test_clock_without_a_sample_raises() -> None:
    with pytest.raises(RuntimeError, match="no sample"):
        FollowedClock("database").now()


@pytest.mark.parametrize(
    ("ahead_before", "reading", "duration", "ahead_after"),
    [
        # The reading is in seconds after noon, and took `duration` seconds from noon on. So the
        # clock is ahead by a number of seconds between `reading - duration` and `reading`.
        (None, 3.1, 0.2, 3),  # the first sample: the middle between 2.9 and 3.1
        (3, 3.05, 0.1, 3),  # between 2.95 and 3.05: agrees with the time so far
        (3, 5.5, 5, 3),  # between 0.5 and 5.5, after a freeze: agrees, though the middle is not 3
        (-2, -1.5, 5, -2),  # between -6.5 and -1.5: likewise
        (3, 9, 0, 9),  # exactly 9: the clock was set forward
        (3, -3600, 0, -3600),  # exactly -3600: the clock was set back
        (3, 9, 5, 4),  # between 4 and 9: corrected to the nearer end
        (3, 2, 5, 2),  # between -3 and 2
    ],
)
def test_sample_changes_the_time_only_as_far_as_it_proves(
    ahead_before: float | None, reading: float, duration: float, ahead_after: float
) -> None:
    clock, start = FollowedClock("database"), elapsed()
    if ahead_before is not None:
        clock.sample(start, NOON + seconds(ahead_before), start)
    clock.sample(start, NOON + seconds(reading), start + duration)
    assert seconds_ahead(clock, start) == ahead_after


@pytest.mark.parametrize("step", [3600, -3600, 1.5, -1.5])
def test_clock_step_is_logged_and_counted_once(step: float) -> None:
    clock, start, before = FollowedClock("wall"), elapsed(), count_steps("wall")
    clock.sample(start, NOON, start)
    with capture_logs() as logs:
        clock.sample(start + 1, NOON + seconds(1 + step), start + 1)
        clock.sample(start + 2, NOON + seconds(2 + step), start + 2)
    assert logs == [{"event": "wall_clock_stepped", "log_level": "warning", "seconds": step}]
    assert count_steps("wall") == before + 1


def test_slightly_fast_clock_is_followed_without_log_events() -> None:
    clock, start = FollowedClock("database"), elapsed()
    with capture_logs() as logs:
        for second in range(10_000):
            clock.sample(start + second, NOON + seconds(second * 1.0005), start + second)
    assert logs == []
    assert seconds_ahead(clock, start) == 5  # 0.0005 in each of 10,000 seconds
