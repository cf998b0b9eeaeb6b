"""How many requests each caller may make."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.examples import thorough

from mailer.web import rate as web_rate
from mailer.web.rate import Rate

per_second = st.floats(0.01, 10_000)
gaps = st.sampled_from([0.0, 0.001, 0.1, 1.0]) | st.floats(0, 100)


class Clock:
    """Shows the time that it is set to."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def admitted_at(rate: Rate, clock: Clock, waits: list[float]) -> list[float]:
    """Return when a caller got through who asks after each of these pauses."""
    through = []
    for wait in waits:
        clock.now += wait
        if rate.wait("a") == 0:
            through.append(clock.now)
    return through


@given(per_second, st.lists(gaps, min_size=1, max_size=200))
@thorough
def test_never_more_than_the_rate_and_two_seconds_of_it_at_once(
    per: float, waits: list[float]
) -> None:
    clock = Clock()
    times = admitted_at(Rate(per, clock), clock, waits)
    at_once = max(2 * per, 1)
    for first, begin in enumerate(times):
        for last, end in enumerate(times[first:], first):
            assert last - first + 1 <= per * (end - begin) + at_once + 1e-3


@given(per_second, st.lists(gaps, max_size=100))
@thorough
def test_who_waits_as_told_gets_through(per: float, waits: list[float]) -> None:
    clock = Clock()
    rate = Rate(per, clock)
    admitted_at(rate, clock, waits)
    seconds = rate.wait("a")
    if seconds:
        assert seconds >= 1
        clock.now += seconds
        assert rate.wait("a") == 0


@given(per_second)
def test_who_keeps_to_the_rate_never_waits(per: float) -> None:
    clock = Clock()
    assert len(admitted_at(Rate(per, clock), clock, [1 / per + 1e-6] * 100)) == 100


@pytest.mark.parametrize(("per", "at_once"), [(10, 20), (1, 2), (0.5, 1), (0.01, 1), (100, 200)])
def test_two_seconds_worth_comes_at_once_and_one_request_always(per: float, at_once: int) -> None:
    clock = Clock()
    assert len(admitted_at(Rate(per, clock), clock, [0.0] * 500)) == at_once


def test_a_refusal_costs_nothing() -> None:
    clock = Clock()
    rate = Rate(1, clock)
    admitted_at(rate, clock, [0.0] * 1_000)
    clock.now += 1
    assert rate.wait("a") == 0


def test_callers_do_not_wait_for_each_other() -> None:
    clock = Clock()
    rate = Rate(1, clock)
    assert [rate.wait("a") for _ in range(3)] == [0, 0, 1]
    assert [rate.wait("b") for _ in range(3)] == [0, 0, 1]


def test_who_is_forgotten_had_nothing_to_wait_for() -> None:
    clock = Clock()
    rate = Rate(1, clock)
    for caller in range(web_rate.KEPT):
        rate.wait(caller)
    clock.now += 1.5
    assert [rate.wait("busy") for _ in range(3)] == [0, 0, 1]
    rate.wait("one more")
    assert rate.wait("busy") == 1
    assert [rate.wait(7) for _ in range(3)] == [0, 0, 1]
