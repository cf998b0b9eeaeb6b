"""When a message is tried again."""

from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.examples import thorough

from mailer.dispatch.retry import RetryPolicy

parts = st.floats(0, 1, exclude_max=True)
seconds = st.floats(1e-6, 86_400) | st.integers(1, 86_400).map(float)


def policy_of(base: float, cap: float, part: float = 0.5, attempts: int = 8) -> RetryPolicy:
    return RetryPolicy(attempts, base, cap, draw=lambda: part)


def test_the_pause_doubles_up_to_the_cap() -> None:
    policy = policy_of(base=1, cap=20, part=1.0)
    assert [policy.pause(attempt) for attempt in range(1, 8)] == [1, 2, 4, 8, 16, 20, 20]


@pytest.mark.parametrize("part", [0.0, 0.25, 0.999])
def test_jitter_takes_any_part_of_the_pause(part: float) -> None:
    assert policy_of(base=1, cap=300, part=part).pause(4) == 8 * part


def test_pauses_after_the_same_attempt_differ() -> None:
    policy = RetryPolicy(attempts=8, base=1, cap=300)
    assert len({policy.pause(5) for _ in range(20)}) == 20


def test_pauses_are_spread_evenly_from_nothing_to_the_whole() -> None:
    policy = RetryPolicy(attempts=8, base=1, cap=300)
    pauses = [policy.pause(4) for _ in range(8_000)]
    for eighth in range(8):
        share = sum(eighth <= pause < eighth + 1 for pause in pauses) / len(pauses)
        assert 0.1 < share < 0.15  # seven deviations from 0.125


def test_the_last_attempt_exhausts_the_policy() -> None:
    policy = RetryPolicy(attempts=3, base=1, cap=300)
    assert [policy.is_exhausted(attempt) for attempt in (1, 2, 3, 4)] == [False, False, True, True]


def test_a_single_attempt_may_be_all() -> None:
    assert RetryPolicy(attempts=1, base=1, cap=1).is_exhausted(1)


def pause_plainly(base: float, cap: float, part: float, attempt: int) -> Fraction:
    """Double the base once for every attempt but the first, exactly, while below the cap."""
    pause, most = Fraction(base), Fraction(cap)
    for _ in range(attempt - 1):
        if pause >= most:
            break
        pause += pause
    return min(pause, most) * Fraction(part)


@thorough
@given(base=seconds, cap=seconds, part=parts, attempt=st.integers(1, 1100))
@example(base=1e-6, cap=86_400.0, part=0.999, attempt=38)
@example(base=86_400.0, cap=1e-6, part=0.5, attempt=1)
@example(base=1.0, cap=300.0, part=0.5, attempt=10**9)
def test_a_pause_is_what_plain_doubling_says(
    base: float, cap: float, part: float, attempt: int
) -> None:
    assert policy_of(base, cap, part).pause(attempt) == float(
        pause_plainly(base, cap, part, attempt)
    )


@thorough
@given(base=seconds, cap=seconds, part=parts, attempt=st.integers(1, 10**9))
def test_a_pause_lies_between_zero_and_the_cap_and_never_gets_shorter(
    base: float, cap: float, part: float, attempt: int
) -> None:
    policy = policy_of(base, cap, part)
    assert 0 <= policy.pause(attempt) <= policy.pause(attempt + 1) <= cap


@thorough
@given(attempts=st.integers(1, 1000))
def test_a_message_is_tried_as_often_as_the_policy_says(attempts: int) -> None:
    policy = policy_of(1, 1, attempts=attempts)
    tried = 1
    while not policy.is_exhausted(tried):
        tried += 1
    assert tried == attempts
