"""The rate limit of each caller."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.examples import thorough

from mailer.limits import MAX_TRACKED_CALLERS, RateLimiter

per_second = st.floats(0.01, 10_000)
gaps = st.sampled_from([0.0, 0.001, 0.1, 1.0]) | st.floats(0, 100)


class Clock:
    """A time that is set by a test."""

    def __init__(self) -> None:
        self.now = 1_000.0


def admitted_times(limiter: RateLimiter, clock: Clock, waits: list[float]) -> list[float]:
    """Make a request after each pause; return the times of the admitted requests."""
    times = []
    for wait in waits:
        clock.now += wait
        if limiter.retry_after("a", clock.now) == 0:
            times.append(clock.now)
    return times


@given(per_second, st.lists(gaps, min_size=1, max_size=200))
@thorough
def test_burst_is_at_most_two_seconds_of_the_rate(limit: float, waits: list[float]) -> None:
    clock = Clock()
    times = admitted_times(RateLimiter(limit), clock, waits)
    at_once = max(2 * limit, 1)
    for first, begin in enumerate(times):
        for last, end in enumerate(times[first:], first):
            assert last - first + 1 <= limit * (end - begin) + at_once + 1e-3


@given(per_second, st.lists(gaps, max_size=100))
@thorough
def test_request_after_the_returned_delay_is_admitted(limit: float, waits: list[float]) -> None:
    clock = Clock()
    limiter = RateLimiter(limit)
    admitted_times(limiter, clock, waits)
    seconds = limiter.retry_after("a", clock.now)
    if seconds:
        assert seconds >= 1
        clock.now += seconds
        assert limiter.retry_after("a", clock.now) == 0


@given(per_second)
def test_caller_below_the_rate_is_always_admitted(limit: float) -> None:
    clock = Clock()
    assert len(admitted_times(RateLimiter(limit), clock, [1 / limit + 1e-6] * 100)) == 100


@pytest.mark.parametrize(("limit", "burst", "at_once"), [(5, 1, 5), (0.25, 1, 1), (10, 0.5, 5)])
def test_burst_has_the_given_length_and_at_least_one_request(
    limit: float, burst: float, at_once: int
) -> None:
    clock = Clock()
    limiter = RateLimiter(limit, burst=burst)
    assert len(admitted_times(limiter, clock, [0.0] * 500)) == at_once
    assert limiter.retry_after("a", clock.now) == math.ceil(1 / limit)


@pytest.mark.parametrize(("limit", "at_once"), [(10, 20), (1, 2), (0.5, 1), (0.01, 1), (100, 200)])
def test_burst_is_two_seconds_of_the_rate_and_at_least_one_request(
    limit: float, at_once: int
) -> None:
    clock = Clock()
    assert len(admitted_times(RateLimiter(limit), clock, [0.0] * 500)) == at_once


def test_rejected_request_does_not_count() -> None:
    clock = Clock()
    limiter = RateLimiter(1)
    admitted_times(limiter, clock, [0.0] * 1_000)
    clock.now += 1
    assert limiter.retry_after("a", clock.now) == 0


def test_callers_have_separate_limits() -> None:
    clock = Clock()
    limiter = RateLimiter(1)
    assert [limiter.retry_after("a", clock.now) for _ in range(3)] == [0, 0, 1]
    assert [limiter.retry_after("b", clock.now) for _ in range(3)] == [0, 0, 1]


def test_only_callers_with_a_full_allowance_are_forgotten() -> None:
    clock = Clock()
    limiter = RateLimiter(1)
    for caller in range(MAX_TRACKED_CALLERS):
        limiter.retry_after(caller, clock.now)
    clock.now += 1.5
    assert [limiter.retry_after("busy", clock.now) for _ in range(3)] == [0, 0, 1]
    limiter.retry_after("one more", clock.now)
    assert limiter.retry_after("busy", clock.now) == 1
    assert [limiter.retry_after(7, clock.now) for _ in range(3)] == [0, 0, 1]
