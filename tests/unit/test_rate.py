"""How fast messages may begin."""

import random
from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.examples import thorough

from mailer.dispatch.rate import Rate

FLOAT = 1e-6
"""Seconds that sums of floats may be off."""

rates = st.floats(0.01, 10_000)
slacks = st.sampled_from([0.0, 0.02, 0.5]) | st.floats(0, 2)
gaps = st.sampled_from([0.0, 0.001, 0.02, 1.0]) | st.floats(0, 10)


def starts(rate: Rate, arrivals: list[float]) -> list[float]:
    """Return when each of those who ask at these moments may begin."""
    return [now + rate.take(now) for now in arrivals]


def test_the_first_begins_at_once_and_the_next_an_interval_later_but_for_the_slack() -> None:
    assert starts(Rate(10), [100.0, 100.0, 100.0]) == pytest.approx([100.0, 100.08, 100.18])


def test_without_slack_beginnings_are_an_interval_apart() -> None:
    assert starts(Rate(10, slack=0), [0.0] * 5) == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_who_comes_late_finds_the_moments_of_the_slack_and_none_older() -> None:
    rate = Rate(100, slack=0.05)
    starts(rate, [0.0])
    begun = starts(rate, [1000.0] * 10)
    assert sum(start == 1000 for start in begun) == 6  # 5 of the slack, and the one that is due
    assert begun[6:] == pytest.approx([1000.01, 1000.02, 1000.03, 1000.04])


def test_a_rate_below_one_a_second_is_kept_too() -> None:
    assert starts(Rate(0.1, slack=0), [0.0] * 3) == pytest.approx([0, 10, 20])


@thorough
@given(per_second=rates, slack=slacks, waits=st.lists(gaps, min_size=1, max_size=60))
def test_no_stretch_of_time_has_more_beginnings_than_its_share(
    per_second: float, slack: float, waits: list[float]
) -> None:
    begun = starts(Rate(per_second, slack=slack), list(accumulate(waits)))
    assert all(earlier <= later + FLOAT for earlier, later in pairwise(begun))
    for first in range(len(begun)):
        for last in range(first, len(begun)):
            stretch = begun[last] - begun[first] + FLOAT
            assert last - first + 1 <= per_second * (stretch + slack) + 1 + FLOAT


@thorough
@given(per_second=rates, slack=slacks, count=st.integers(2, 200))
def test_constant_demand_begins_at_exactly_the_rate(
    per_second: float, slack: float, count: int
) -> None:
    begun = starts(Rate(per_second, slack=slack), [0.0] * count)
    at_once = int(slack * per_second + FLOAT) + 1  # what the slack had kept
    for number in range(at_once, count):
        assert abs(begun[number] - (number / per_second - slack)) < FLOAT


@pytest.mark.parametrize("oversleeps", [0.0, 0.0002, 0.002, 0.01])
@pytest.mark.parametrize("per_second", [5, 50, 333, 1000, 5000])
def test_over_ten_seconds_the_rate_is_kept_within_two_percent(
    per_second: float, oversleeps: float
) -> None:
    rate, dice = Rate(per_second), random.Random(7)  # noqa: S311  # no secret
    clock, begun = 1000.0, 0
    while clock < 1010:
        wait = rate.take(clock)
        if wait:  # who sleeps is never woken early, and sometimes late
            clock += wait + dice.uniform(0, 2 * oversleeps)
        begun += clock < 1010
    assert begun == pytest.approx(10 * per_second, rel=0.02, abs=1)


def test_after_a_standstill_the_rate_is_kept_from_then_on() -> None:
    rate = Rate(100)
    starts(rate, [0.0] * 100)
    begun = starts(rate, [60.0] * 500)
    assert sum(start < 61 for start in begun) == pytest.approx(100, abs=3)
