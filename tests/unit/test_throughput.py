"""The estimated throughput, from the gateway's response times and the configured rate limit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.examples import thorough

from mailer.gateway.throughput import AVERAGED_RESPONSES, ThroughputEstimate

seconds = st.floats(0.001, 60)


def test_rate_is_unknown_without_responses_and_limit() -> None:
    estimate = ThroughputEstimate(concurrency=50)
    assert estimate.rate is None
    assert not estimate.is_limited


def test_rate_is_the_limit_without_responses() -> None:
    estimate = ThroughputEstimate(concurrency=50, limit=20)
    assert estimate.rate == 20
    assert estimate.is_limited


@pytest.mark.parametrize("limit", [0, 300], ids=["no limit", "higher limit"])
def test_slow_gateway_determines_the_rate(limit: float) -> None:
    estimate = ThroughputEstimate(concurrency=50, limit=limit)
    estimate.record(0.1)
    estimate.record(0.3)
    assert estimate.rate == pytest.approx(50 / 0.2)
    assert not estimate.is_limited


def test_limit_below_the_gateways_rate_determines_the_rate() -> None:
    estimate = ThroughputEstimate(concurrency=50, limit=100)
    estimate.record(0.1)  # 500 messages a second
    assert estimate.rate == 100
    assert estimate.is_limited


def test_old_response_times_lose_their_weight() -> None:
    estimate = ThroughputEstimate(concurrency=10)
    for _ in range(100_000):
        estimate.record(5)
    for _ in range(10 * AVERAGED_RESPONSES):
        estimate.record(0.1)
    assert estimate.rate == pytest.approx(10 / 0.1, rel=0.01)


@thorough
@given(st.lists(seconds, min_size=1, max_size=AVERAGED_RESPONSES))
def test_first_response_times_have_equal_weight(response_times: list[float]) -> None:
    estimate = ThroughputEstimate(concurrency=1)
    for response_time in response_times:
        estimate.record(response_time)
    assert estimate.rate == pytest.approx(len(response_times) / sum(response_times))


@thorough
@given(st.lists(seconds), st.floats(0, 1000))
def test_rate_never_exceeds_the_limit(response_times: list[float], limit: float) -> None:
    estimate = ThroughputEstimate(concurrency=50, limit=limit)
    for response_time in response_times:
        estimate.record(response_time)
    assert (estimate.rate is None) == (not limit and not response_times)
    if limit:
        assert estimate.rate is not None
        assert estimate.rate <= limit
        assert estimate.is_limited == (estimate.rate == limit)
