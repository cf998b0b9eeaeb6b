"""The rate at which requests may start."""

import random
from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.examples import thorough

from mailer.limits import Pacer

TOLERANCE = 1e-6
"""Seconds by which sums of floats may be inexact."""

rates = st.floats(0.01, 10_000)
slacks = st.sampled_from([0.0, 0.02, 0.5]) | st.floats(0, 2)
waits = st.sampled_from([0.0, 0.001, 0.02, 1.0]) | st.floats(0, 10)
"""Seconds between the arrivals of two requests."""


def start_times(pacer: Pacer, arrivals: list[float]) -> list[float]:
    """Return the start time of each request; `arrivals` are the times when it reserves a slot."""
    return [now + pacer.reserve(now) for now in arrivals]


def test_first_request_starts_at_once_and_the_next_an_interval_later_minus_the_slack() -> None:
    pacer = Pacer(per_second=10, slack=0.02)
    assert start_times(pacer, [100.0] * 3) == pytest.approx([100.0, 100.08, 100.18])


def test_without_slack_starts_are_an_interval_apart() -> None:
    pacer = Pacer(per_second=10, slack=0)
    assert start_times(pacer, [0.0] * 5) == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_unused_slots_are_kept_only_for_the_slack() -> None:
    pacer = Pacer(per_second=100, slack=0.05)
    start_times(pacer, [0.0])
    times = start_times(pacer, [1000.0] * 10)  # all slots from 0.01 to 1000 were unused
    assert sum(start == 1000 for start in times) == 6  # 5 kept by the slack, and the current one
    assert times[6:] == pytest.approx([1000.01, 1000.02, 1000.03, 1000.04])


def test_rate_below_one_a_second_is_kept() -> None:
    pacer = Pacer(per_second=0.1, slack=0)
    assert start_times(pacer, [0.0] * 3) == pytest.approx([0, 10, 20])


@thorough
@given(per_second=rates, slack=slacks, waits=st.lists(waits, min_size=1, max_size=60))
def test_no_period_has_more_starts_than_the_rate_allows(
    per_second: float, slack: float, waits: list[float]
) -> None:
    times = start_times(Pacer(per_second, slack=slack), list(accumulate(waits)))
    assert all(earlier <= later + TOLERANCE for earlier, later in pairwise(times))
    for first in range(len(times)):
        for last in range(first, len(times)):
            starts = last - first + 1
            period = times[last] - times[first] + TOLERANCE
            assert starts <= per_second * (period + slack) + 1 + TOLERANCE


@thorough
@given(per_second=rates, slack=slacks, count=st.integers(2, 200))
def test_constant_demand_starts_at_exactly_the_rate(
    per_second: float, slack: float, count: int
) -> None:
    times = start_times(Pacer(per_second, slack=slack), [0.0] * count)
    starts_at_once = int(slack * per_second + TOLERANCE) + 1  # those that the slack keeps
    for number in range(starts_at_once, count):
        assert abs(times[number] - (number / per_second - slack)) < TOLERANCE


@pytest.mark.parametrize("max_oversleep", [0.0, 0.0004, 0.004, 0.02])
@pytest.mark.parametrize("per_second", [5, 50, 333, 1000, 5000])
def test_rate_over_ten_seconds_is_exact_within_two_percent(
    per_second: float, max_oversleep: float
) -> None:
    """A sleep never ends early, but up to `max_oversleep` seconds late."""
    pacer, rng = Pacer(per_second), random.Random(7)  # noqa: S311  # no secret
    now, start_count = 1000.0, 0
    while now < 1010:
        wait = pacer.reserve(now)
        if wait:
            now += wait + rng.uniform(0, max_oversleep)
        start_count += now < 1010
    assert start_count == pytest.approx(10 * per_second, rel=0.02, abs=1)


def test_rate_is_kept_after_a_standstill() -> None:
    pacer = Pacer(per_second=100)
    start_times(pacer, [0.0] * 100)
    times = start_times(pacer, [60.0] * 500)
    assert sum(start < 61 for start in times) == pytest.approx(100, abs=3)
