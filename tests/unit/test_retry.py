"""The pauses between the attempts of a message."""

from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.examples import thorough

from mailer.dispatch.send_policy import RetryPolicy

fractions = st.floats(0, 1, exclude_max=True)
seconds = st.floats(1e-6, 86_400) | st.integers(1, 86_400).map(float)


def create_policy(base: float, cap: float, fraction: float = 0.5, attempts: int = 8) -> RetryPolicy:
    """Return a policy that always draws `fraction` instead of a random number."""
    return RetryPolicy(attempts, base, cap, draw=lambda: fraction)


def test_pause_doubles_up_to_the_cap() -> None:
    policy = create_policy(base=1, cap=20, fraction=1.0)
    assert [policy.pause(attempt) for attempt in range(1, 8)] == [1, 2, 4, 8, 16, 20, 20]


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.999])
def test_jitter_multiplies_the_pause_by_a_random_fraction(fraction: float) -> None:
    policy = create_policy(base=1, cap=300, fraction=fraction)
    assert policy.pause(attempt=4) == 2**3 * fraction


def test_pauses_after_the_same_attempt_differ() -> None:
    policy = RetryPolicy(attempts=8, base=1, cap=300)
    assert len({policy.pause(5) for _ in range(20)}) == 20


def test_pauses_are_distributed_evenly_from_zero_to_the_maximum() -> None:
    policy = RetryPolicy(attempts=8, base=1, cap=300)
    pauses = [policy.pause(4) for _ in range(8_000)]  # each from 0 to 8 seconds
    for second in range(8):
        share = sum(second <= pause < second + 1 for pause in pauses) / len(pauses)
        assert 0.1 < share < 0.15  # within seven standard deviations of 1/8


def test_last_attempt_exhausts_the_policy() -> None:
    policy = RetryPolicy(attempts=3, base=1, cap=300)
    assert [policy.is_exhausted(attempt) for attempt in (1, 2, 3, 4)] == [False, False, True, True]


def test_policy_may_allow_a_single_attempt() -> None:
    assert RetryPolicy(attempts=1, base=1, cap=1).is_exhausted(1)


def reference_pause(base: float, cap: float, fraction: float, attempt: int) -> Fraction:
    """Compute the pause exactly: double the base after each attempt, up to the cap."""
    pause, maximum = Fraction(base), Fraction(cap)
    for _ in range(attempt - 1):
        if pause >= maximum:
            break
        pause += pause
    return min(pause, maximum) * Fraction(fraction)


@thorough
@given(base=seconds, cap=seconds, fraction=fractions, attempt=st.integers(1, 1100))
@example(base=1e-6, cap=86_400.0, fraction=0.999, attempt=38)
@example(base=86_400.0, cap=1e-6, fraction=0.5, attempt=1)
@example(base=1.0, cap=300.0, fraction=0.5, attempt=10**9)
def test_pause_equals_the_exact_reference(
    base: float, cap: float, fraction: float, attempt: int
) -> None:
    assert create_policy(base, cap, fraction).pause(attempt) == float(
        reference_pause(base, cap, fraction, attempt)
    )


@thorough
@given(base=seconds, cap=seconds, fraction=fractions, attempt=st.integers(1, 10**9))
def test_pause_is_between_zero_and_the_cap_and_never_decreases(
    base: float, cap: float, fraction: float, attempt: int
) -> None:
    policy = create_policy(base, cap, fraction)
    assert 0 <= policy.pause(attempt) <= policy.pause(attempt + 1) <= cap


@thorough
@given(attempts=st.integers(1, 1000))
def test_policy_allows_exactly_its_number_of_attempts(attempts: int) -> None:
    policy = create_policy(base=1, cap=1, attempts=attempts)
    attempt = 1
    while not policy.is_exhausted(attempt):
        attempt += 1
    assert attempt == attempts
