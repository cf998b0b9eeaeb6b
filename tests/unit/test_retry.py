"""When a message is tried again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailer.dispatch.retry import RetryPolicy

policies = st.builds(
    RetryPolicy,
    attempts=st.integers(1, 1000),
    base=st.floats(1e-6, 86_400),
    cap=st.floats(1e-6, 86_400),
    draw=st.floats(0, 1, exclude_max=True).map(lambda number: lambda: number),
)


def test_the_pause_doubles_up_to_the_cap() -> None:
    policy = RetryPolicy(attempts=8, base=1, cap=20, draw=lambda: 1.0)
    assert [policy.pause(attempt) for attempt in range(1, 8)] == [1, 2, 4, 8, 16, 20, 20]


@pytest.mark.parametrize("part", [0.0, 0.25, 0.999])
def test_jitter_takes_any_part_of_the_pause(part: float) -> None:
    policy = RetryPolicy(attempts=8, base=1, cap=300, draw=lambda: part)
    assert policy.pause(4) == 8 * part


def test_pauses_after_the_same_attempt_differ() -> None:
    policy = RetryPolicy(attempts=8, base=1, cap=300)
    assert len({policy.pause(5) for _ in range(20)}) == 20


def test_the_last_attempt_exhausts_the_policy() -> None:
    policy = RetryPolicy(attempts=3, base=1, cap=300)
    assert [policy.is_exhausted(attempt) for attempt in (1, 2, 3, 4)] == [False, False, True, True]


def test_a_single_attempt_may_be_all() -> None:
    assert RetryPolicy(attempts=1, base=1, cap=1).is_exhausted(1)


@given(policy=policies, attempt=st.integers(1, 10**9))
def test_a_pause_lies_between_zero_and_the_cap(policy: RetryPolicy, attempt: int) -> None:
    assert 0 <= policy.pause(attempt) <= policy.cap


@given(policy=policies, attempt=st.integers(1, 2000))
def test_a_pause_is_never_shorter_than_the_one_before(policy: RetryPolicy, attempt: int) -> None:
    assert policy.pause(attempt + 1) >= policy.pause(attempt)
