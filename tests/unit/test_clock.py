"""A followed clock: the time of another clock, from samples and monotonic time since."""

from datetime import timedelta

import pytest
from structlog.testing import capture_logs
from tests.factories import NOON

from mailer.clock import FollowedClock, elapsed
from mailer.metrics import REGISTRY


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


def seconds_ahead(clock: FollowedClock, start: float) -> float:
    """Return the seconds by which a clock is ahead of a clock that showed noon at `start`."""
    before, now, after = elapsed(), clock.now(), elapsed()
    middle = (before + after) / 2 - start
    return round((now - NOON).total_seconds() - middle, 1)


def count_steps(name: str) -> float:
    return REGISTRY.get_sample_value("mailer_clock_steps_total", {"clock": name}) or 0


def test_clock_without_a_sample_raises() -> None:
    with pytest.raises(RuntimeError, match="no sample"):
        FollowedClock("database").now()


@pytest.mark.parametrize(
    ("before", "shown", "took", "after"),
    [
        (None, 3.1, 0.2, 3),  # the first sample: its time is that of the middle of the query
        (3, 3.05, 0.1, 3),  # the sample does not contradict what is known
        (3, 5.5, 5, 3),  # the process was frozen, so the middle may be wrong by seconds
        (-2, -1.5, 5, -2),
        (3, 9, 0, 9),  # the clock was set forward
        (3, -3600, 0, -3600),
        (3, 9, 5, 4),  # only as far as the sample proves
        (3, 2, 5, 2),
    ],
)
def test_sample_changes_the_time_only_as_far_as_it_proves(
    before: float | None, shown: float, took: float, after: float
) -> None:
    clock, start = FollowedClock("database"), elapsed()
    if before is not None:
        clock.sample(start, NOON + seconds(before), start)
    clock.sample(start, NOON + seconds(shown), start + took)
    assert seconds_ahead(clock, start) == after


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
    assert seconds_ahead(clock, start) == 5
