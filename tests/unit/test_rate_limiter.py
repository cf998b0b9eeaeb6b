"""The rate limit of each caller. Rates are in requests a second, and bursts in seconds."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.examples import thorough

from mailer.limits import MAX_TRACKED_CALLERS, RateLimiter

rates = st.floats(0.01, 10_000)
waits_between = st.sampled_from([0.0, 0.001, 0.1, 1.0]) | st.floats(0, 100)
"""Seconds between two requests."""


class Clock:
    """A time that is set by a test."""

    def __init__(self) -> None:
        self.now = 1_000.0


def admitted_times(limiter: RateLimiter, clock: Clock, waits: list[float]) -> list[float]:
    """Make a request of one caller after each wait; return the times of the admitted requests."""
    times = []
    for wait in waits:
        clock.now += wait
        if limiter.retry_after("caller", clock.now) == 0:
            times.append(clock.now)
    return times


@given(rates, st.lists(waits_between, min_size=1, max_size=200))
@thorough
def test_burst_is_at_most_two_seconds_of_the_rate(rate: float, waits: list[float]) -> None:
    clock = Clock()
    times = admitted_times(RateLimiter(rate), clock, waits)
    burst_count = max(2 * rate, 1)
    for first, begin in enumerate(times):
        for last, end in enumerate(times[first:], first):
            admitted = last - first + 1
            assert admitted <= rate * (end - begin) + burst_count + 1e-3


@given(rates, st.lists(waits_between, max_size=100))
@thorough
def test_request_after_the_returned_delay_is_admitted(rate: float, waits: list[float]) -> None:
    clock = Clock()
    limiter = RateLimiter(rate)
    admitted_times(limiter, clock, waits)
    seconds = limiter.retry_after("caller", clock.now)
    if seconds:
        assert seconds >= 1
        clock.now += seconds
        assert limiter.retry_after("caller", clock.now) == 0


@given(rates)
def test_caller_below_the_rate_is_always_admitted(rate: float) -> None:
    clock = Clock()
    assert len(admitted_times(RateLimiter(rate), clock, [1 / rate + 1e-6] * 100)) == 100


@pytest.mark.parametrize(("rate", "burst", "burst_count"), [(5, 1, 5), (0.25, 1, 1), (10, 0.5, 5)])
def test_burst_has_the_given_length_and_at_least_one_request(
    rate: float, burst: float, burst_count: int
) -> None:
    clock = Clock()
    limiter = RateLimiter(rate, burst=burst)
    assert len(admitted_times(limiter, clock, [0.0] * 500)) == burst_count
    assert limiter.retry_after("caller", clock.now) == math.ceil(1 / rate)


@pytest.mark.parametrize(
    ("rate", "burst_count"), [(10, 20), (1, 2), (0.5, 1), (0.01, 1), (100, 200)]
)
def test_burst_is_two_seconds_of_the_rate_and_at_least_one_request(
    rate: float, burst_count: int
) -> None:
    clock = Clock()
    assert len(admitted_times(RateLimiter(rate), clock, [0.0] * 500)) == burst_count


def test_rejected_request_does_not_count() -> None:
    clock = Clock()
    limiter = RateLimiter(1)
    admitted_times(limiter, clock, [0.0] * 1_000)
    clock.now += 1
    assert limiter.retry_after("caller", clock.now) == 0


def test_callers_have_separate_limits() -> None:
    clock = Clock()
    limiter = RateLimiter(1)
    for caller in ("one", "other"):
        assert [limiter.retry_after(caller, clock.now) for _ in range(3)] == [0, 0, 1]


def test_only_callers_with_a_full_allowance_are_forgotten() -> None:
    """Forgetting a caller with a full allowance changes nothing for it."""
    clock = Clock()
    limiter = RateLimiter(1)
    for caller in range(MAX_TRACKED_CALLERS):
        limiter.retry_after(caller, clock.now)
    clock.now += 1.5  # all allowances are full again
    assert [limiter.retry_after("busy", clock.now) for _ in range(3)] == [0, 0, 1]

    limiter.retry_after("one more", clock.now)  # over the limit: callers are forgotten

    assert limiter.retry_after("busy", clock.now) == 1
    forgotten = 7
    assert [limiter.retry_after(forgotten, clock.now) for _ in range(3)] == [0, 0, 1]
