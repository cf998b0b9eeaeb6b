"""How fast messages go out, by the answers that were seen and the limit that is set."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.examples import thorough

from mailer.gateway.pace import RECENT, Pace

seconds = st.floats(0.001, 60)


def test_nothing_seen_and_nothing_set_is_not_known() -> None:
    pace = Pace(50)
    assert pace.rate is None
    assert not pace.is_set


def test_the_limit_alone_is_the_pace() -> None:
    pace = Pace(50, 20)
    assert pace.rate == 20
    assert pace.is_set


@pytest.mark.parametrize(("limit", "rate", "is_set"), [(0, 250, False), (300, 250, False)])
def test_a_gateway_slower_than_the_limit_decides(
    limit: float, rate: float, *, is_set: bool
) -> None:
    pace = Pace(50, limit)
    pace.count(0.1)
    pace.count(0.3)
    assert pace.rate == pytest.approx(rate)
    assert pace.is_set is is_set


def test_a_limit_below_what_the_gateway_takes_decides() -> None:
    pace = Pace(50, 100)
    pace.count(0.1)
    assert pace.rate == 100
    assert pace.is_set


def test_answers_of_long_ago_are_forgotten() -> None:
    pace = Pace(10)
    for _ in range(100_000):
        pace.count(5)
    for _ in range(10 * RECENT):
        pace.count(0.1)
    assert pace.rate == pytest.approx(100, rel=0.01)


@thorough
@given(st.lists(seconds, min_size=1, max_size=RECENT))
def test_the_first_answers_count_alike(answers: list[float]) -> None:
    pace = Pace(1)
    for answer in answers:
        pace.count(answer)
    assert pace.rate == pytest.approx(len(answers) / sum(answers))


@thorough
@given(st.lists(seconds), st.floats(0, 1000))
def test_the_pace_never_exceeds_the_limit(answers: list[float], limit: float) -> None:
    pace = Pace(50, limit)
    for answer in answers:
        pace.count(answer)
    assert (pace.rate is None) == (not limit and not answers)
    if limit:
        assert pace.rate is not None
        assert pace.rate <= limit
        assert pace.is_set == (pace.rate == limit)
