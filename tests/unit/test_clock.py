"""How a clock that may be set is followed: by its samples, and by the seconds since."""

from datetime import UTC, datetime, timedelta

import pytest
from structlog.testing import capture_logs

from mailer.clock import FollowedClock, elapsed
from mailer.metrics import REGISTRY

NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


def ahead(clock: FollowedClock, start: float) -> float:
    """Return by how many seconds a clock is ahead of one that showed noon at `start`."""
    before, now, after = elapsed(), clock.now(), elapsed()
    middle = (before + after) / 2 - start
    return round((now - NOON).total_seconds() - middle, 1)


def steps(name: str) -> float:
    return REGISTRY.get_sample_value("mailer_clock_steps_total", {"clock": name}) or 0


def test_a_clock_without_a_sample_tells_no_time() -> None:
    with pytest.raises(RuntimeError, match="no sample"):
        FollowedClock("database").now()


@pytest.mark.parametrize(
    ("known", "shown", "took", "found"),
    [
        (None, 3.1, 0.2, 3),  # the first answer: what is in the middle
        (3, 3.05, 0.1, 3),  # it may well be true
        (3, 5.5, 5, 3),  # the process stood still: the middle would be wrong by as much
        (-2, -1.5, 5, -2),
        (3, 9, 0, 9),  # the clock was set forward
        (3, -3600, 0, -3600),
        (3, 9, 5, 4),  # no further than is proved
        (3, 2, 5, 2),
    ],
)
def test_what_is_known_of_a_clock_moves_no_further_than_a_sample_proves(
    known: float | None, shown: float, took: float, found: float
) -> None:
    clock, start = FollowedClock("database"), elapsed()
    if known is not None:
        clock.sample(start, NOON + seconds(known), start)
    clock.sample(start, NOON + seconds(shown), start + took)
    assert ahead(clock, start) == found


@pytest.mark.parametrize("step", [3600, -3600, 1.5, -1.5])
def test_a_step_is_logged_and_counted_once(step: float) -> None:
    clock, start, before = FollowedClock("wall"), elapsed(), steps("wall")
    clock.sample(start, NOON, start)
    with capture_logs() as logs:
        clock.sample(start + 1, NOON + seconds(1 + step), start + 1)
        clock.sample(start + 2, NOON + seconds(2 + step), start + 2)
    assert logs == [{"event": "wall_clock_stepped", "log_level": "warning", "seconds": step}]
    assert steps("wall") == before + 1


def test_a_clock_that_runs_a_little_fast_is_followed_without_a_word() -> None:
    clock, start = FollowedClock("database"), elapsed()
    with capture_logs() as logs:
        for second in range(10_000):
            clock.sample(start + second, NOON + seconds(second * 1.0005), start + second)
    assert logs == []
    assert ahead(clock, start) == 5
