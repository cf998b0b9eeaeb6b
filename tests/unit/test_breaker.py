"""The circuit breaker: each rule, and random histories against a reference implementation."""

import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.examples import thorough
from tests.factories import NOON

from mailer.gateway.breaker import UNLIMITED, Breaker, GatewayStatus, Outage
from mailer.gateway.protocol import Aborted, Accepted, Outcome, Rejected, TemporaryFailure, Unknown

RESET = 15.0
DOWN = TemporaryFailure("http_500")
WRONG_TOKEN = TemporaryFailure("http_401", affects_all=True)


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def busy(seconds: float) -> TemporaryFailure:
    return TemporaryFailure("http_503", seconds, affects_all=True)


def acquire(breaker: Breaker, seconds: float = 0) -> int:
    """Start a message at a time when the breaker allows it; return the breaker's generation."""
    generation = breaker.acquire(seconds)
    assert generation is not None
    return generation


def record(breaker: Breaker, outcome: Outcome, seconds: float = 0) -> bool:
    """Start a message and record its outcome at once; return whether it costs no attempt."""
    return breaker.record(acquire(breaker, seconds), outcome, seconds, at(seconds))


def open_breaker(outcome: TemporaryFailure = WRONG_TOKEN) -> Breaker:
    """Return a breaker that opened at noon."""
    breaker = Breaker(3, RESET)
    record(breaker, outcome)
    assert breaker.state == "open"
    return breaker


# ---- closed ---------------------------------------------------------------------------------


def test_closed_breaker_allows_any_number_of_messages() -> None:
    breaker = Breaker(3, RESET)
    assert breaker.capacity(0) == UNLIMITED
    assert breaker.seconds_to_probe(0) == 0
    assert breaker.status() == GatewayStatus(is_set=True)
    assert all(breaker.acquire(0) is not None for _ in range(1000))


@pytest.mark.parametrize(
    "failure", [DOWN, TemporaryFailure("connection_failed"), Unknown("timeout")]
)
def test_configured_number_of_consecutive_failures_opens_the_breaker(failure: Outcome) -> None:
    breaker = Breaker(3, RESET)
    record(breaker, failure, 1)
    record(breaker, failure, 2)
    assert breaker.status() == GatewayStatus(is_set=True, failures=2)
    record(breaker, failure, 3)
    assert breaker.status() == GatewayStatus(
        is_set=True,
        breaker="open",
        held=Outage(at(3), failure.reason),  # type: ignore[union-attr]  # a failure has one
        retry_at=at(3 + RESET),
        failures=3,
    )


@pytest.mark.parametrize("success", [Accepted(), Rejected("rejected_400")])
def test_success_resets_the_count_of_failures(success: Outcome) -> None:
    breaker = Breaker(3, RESET)
    for outcome in (DOWN, DOWN, success, DOWN, DOWN):
        record(breaker, outcome)
    assert (breaker.state, breaker.failures) == ("closed", 2)


def test_aborted_request_does_not_change_the_count() -> None:
    breaker = Breaker(3, RESET)
    for outcome in (DOWN, Aborted(), DOWN, Aborted(), DOWN):
        record(breaker, outcome)
    assert breaker.state == "open"


def test_failure_that_affects_all_messages_opens_the_breaker_at_once() -> None:
    breaker = Breaker(1000, RESET)
    record(breaker, WRONG_TOKEN, 7)
    assert breaker.state == "open"
    assert breaker.outage == Outage(at(7), "http_401")
    assert breaker.retry_at == at(7 + RESET)


# ---- the pause ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "pause"),
    [
        (WRONG_TOKEN, RESET),
        (TemporaryFailure("http_403", 90, affects_all=True), 90),
        (busy(2), 2),
        (busy(0.5), 0.5),
        (busy(3600), 3600),
    ],
)
def test_gateway_determines_how_long_the_breaker_is_open(
    failure: TemporaryFailure, pause: float
) -> None:
    breaker = open_breaker(failure)
    assert breaker.retry_at == at(pause)
    assert breaker.capacity(pause - 0.001) == 0
    assert breaker.seconds_to_probe(pause - 0.25) == 0.25
    assert breaker.capacity(pause) == 1
    assert breaker.seconds_to_probe(pause) == 0


def test_retry_after_for_one_message_does_not_affect_the_breaker() -> None:
    breaker = Breaker(1, RESET)
    record(breaker, TemporaryFailure("http_500", 3600))
    assert breaker.retry_at == at(RESET)


def test_open_breaker_allows_no_message() -> None:
    breaker = open_breaker()
    for seconds in (0, 1, RESET - 0.001):
        assert breaker.acquire(seconds) is None
        assert breaker.state == "open"


# ---- the probe ------------------------------------------------------------------------------


def test_half_open_breaker_allows_one_message_at_a_time() -> None:
    breaker = open_breaker()
    acquire(breaker, RESET)
    assert breaker.state == "half_open"
    for seconds in (RESET, RESET + 3600):
        assert breaker.capacity(seconds) == 0
        assert breaker.acquire(seconds) is None
        assert breaker.seconds_to_probe(seconds) == math.inf


@pytest.mark.parametrize("success", [Accepted(), Rejected("rejected_400")])
def test_successful_probe_closes_the_breaker(success: Outcome) -> None:
    breaker = open_breaker()
    record(breaker, success, RESET)
    assert breaker.status() == GatewayStatus(is_set=True)
    assert breaker.capacity(RESET) == UNLIMITED


def test_failed_probe_reopens_the_breaker_and_the_outage_continues() -> None:
    breaker = open_breaker()
    probe = acquire(breaker, 20)
    breaker.record(probe, Unknown("timeout"), 30, at(30))
    assert breaker.state == "open"
    assert breaker.outage == Outage(NOON, "timeout")
    assert breaker.retry_at == at(30 + RESET)
    record(breaker, busy(100), 50)
    assert breaker.outage == Outage(NOON, "http_503")
    assert breaker.retry_at == at(150)
    assert breaker.failures == 3


def test_aborted_probe_allows_the_next_probe() -> None:
    breaker = open_breaker()
    record(breaker, Aborted(), RESET)
    assert breaker.state == "half_open"
    assert breaker.outage == Outage(NOON, "http_401")
    assert breaker.capacity(RESET) == 1
    record(breaker, Accepted(), RESET)
    assert breaker.status() == GatewayStatus(is_set=True)


def test_new_outage_begins_after_the_breaker_was_closed() -> None:
    breaker = open_breaker()
    record(breaker, Accepted(), RESET)
    record(breaker, WRONG_TOKEN, 60)
    assert breaker.outage == Outage(at(60), "http_401")


# ---- messages of earlier generations --------------------------------------------------------


@pytest.mark.parametrize(
    "outcome", [Accepted(), Rejected("rejected_400"), Aborted(), DOWN, Unknown("timeout"), busy(5)]
)
def test_message_started_before_the_breaker_opened_does_not_change_it(outcome: Outcome) -> None:
    breaker = Breaker(3, RESET)
    before = acquire(breaker)
    record(breaker, WRONG_TOKEN)
    status = breaker.status()
    breaker.record(before, outcome, 1, at(1))
    assert breaker.status() == status
    acquire(breaker, RESET)
    breaker.record(before, outcome, 5, at(5))
    assert breaker.state == "half_open"
    assert breaker.acquire(RESET) is None


@pytest.mark.parametrize("outcome", [Accepted(), Aborted(), DOWN, Unknown("timeout"), busy(5)])
def test_message_started_before_the_outage_does_not_change_the_closed_breaker(
    outcome: Outcome,
) -> None:
    breaker = Breaker(1, RESET)
    before = acquire(breaker)
    record(breaker, DOWN)
    record(breaker, Accepted(), RESET)
    breaker.record(before, outcome, RESET + 1, at(RESET + 1))
    assert breaker.status() == GatewayStatus(is_set=True)


def test_generation_is_current_except_while_the_breaker_is_open() -> None:
    breaker = Breaker(1, RESET)
    before = acquire(breaker)
    assert breaker.is_current(before)
    record(breaker, DOWN)
    assert not breaker.is_current(before)
    probe = acquire(breaker, RESET)
    assert (breaker.is_current(before), breaker.is_current(probe)) == (False, True)
    breaker.record(probe, Accepted(), RESET, at(RESET))
    assert breaker.is_current(before)


def test_longer_pause_from_an_earlier_message_is_applied() -> None:
    breaker = Breaker(3, RESET)
    before = [acquire(breaker) for _ in range(3)]
    record(breaker, WRONG_TOKEN)
    breaker.record(before[0], busy(100), 1, at(1))
    assert breaker.retry_at == at(101)
    breaker.record(before[1], busy(50), 2, at(2))
    assert breaker.retry_at == at(101)
    breaker.record(before[2], busy(900), 3, at(3))
    assert breaker.retry_at == at(3 + 900)
    assert breaker.outage == Outage(NOON, "http_401")
    assert breaker.failures == 1


# ---- failures of the gateway ----------------------------------------------------------------


def test_failure_during_or_from_before_an_outage_costs_no_attempt() -> None:
    breaker = Breaker(2, RESET)
    before = [acquire(breaker) for _ in range(4)]
    assert not record(breaker, DOWN)
    assert record(breaker, DOWN)  # this failure opens the breaker
    assert breaker.record(before[0], DOWN, 0, NOON)
    assert record(breaker, Unknown("timeout"), RESET)  # the probe
    assert not breaker.record(before[1], Accepted(), RESET, at(RESET))
    assert not breaker.record(before[2], Aborted(), RESET, at(RESET))
    assert not record(breaker, Rejected("rejected_400"), 2 * RESET)
    assert breaker.state == "closed"
    assert breaker.record(before[3], DOWN, 2 * RESET, at(2 * RESET))  # started before the outage
    assert not record(breaker, DOWN, 2 * RESET)


def test_after_try_now_the_next_message_is_a_probe() -> None:
    breaker = open_breaker(busy(600))
    assert breaker.capacity(1) == 0
    breaker.try_now(1, at(1))
    assert breaker.retry_at == at(1)
    assert breaker.capacity(1) == 1
    acquire(breaker, 1)
    breaker.try_now(1, at(1))  # a probe is already in flight
    assert breaker.capacity(1) == 0


# ---- random histories -----------------------------------------------------------------------


class Event(NamedTuple):
    """A message started, or its outcome was recorded."""

    second: float
    message: int
    outcome: Outcome | None = None


class ExpectedState(NamedTuple):
    """The state of a breaker after a history."""

    state: str
    held: Outage | None
    retry_at: datetime | None
    failures: int
    capacity: int
    is_free: bool
    """Whether the last event is a failure that costs no attempt."""


def reference_state(history: Sequence[Event], threshold: int, now: float) -> ExpectedState:
    """Compute the state of a breaker at `now` from its whole history.

    A history consists of generations. Only messages that started in a generation can change its
    state, and one of them ends it. During an outage, `probes` are the messages that started in the
    present generation.
    """
    started_in: dict[int, int] = {}
    generation, failures, is_free = 0, 0, False
    since = reason = until = None
    probes: dict[int, str] = {}
    for second, message, outcome in history:
        is_free = False
        if outcome is None:
            started_in[message] = generation
            probes[message] = "in flight"
            continue
        is_current = started_in[message] == generation
        if isinstance(outcome, Aborted):
            probes[message] = "aborted"
        elif isinstance(outcome, Accepted | Rejected):
            if is_current:
                generation += reason is not None
                failures, since, reason, until = 0, None, None, None
        else:
            affects_all, retry_after = False, None
            if isinstance(outcome, TemporaryFailure) and outcome.affects_all:
                affects_all, retry_after = True, outcome.retry_after
            retry_at = second + (retry_after or RESET)
            failures += is_current
            if is_current and (affects_all or reason is not None or failures >= threshold):
                since = second if since is None else since
                generation, reason, until, probes = generation + 1, outcome.reason, retry_at, {}
            elif affects_all and not is_current and until is not None:
                until = max(until, retry_at)
            is_free = reason is not None or not is_current
    if since is None or reason is None or until is None:
        return ExpectedState("closed", None, None, failures, UNLIMITED, is_free)
    current = [state for message, state in probes.items() if started_in[message] == generation]
    state = "half_open" if current else "open"
    capacity = int(now >= until and "in flight" not in current)
    return ExpectedState(state, Outage(at(since), reason), at(until), failures, capacity, is_free)


outcomes = st.one_of(
    st.just(DOWN),
    st.sampled_from([Accepted(), Rejected("rejected_400"), Aborted()]),
    st.sampled_from([TemporaryFailure("http_500", 30.0), Unknown("timeout"), WRONG_TOKEN]),
    st.sampled_from([0.0, 1.0, 20.0, 900.0]).map(busy),
)
pauses = st.sampled_from([0.0, 1.0, 14.0, 15.0, 60.0, 86_400.0])
starts = st.none()
ends = st.tuples(st.integers(0, 100), outcomes)


@thorough
@given(
    threshold=st.integers(1, 4),
    steps=st.lists(st.tuples(pauses, starts | ends), max_size=40),
)
def test_state_after_any_history_equals_that_of_the_reference(
    threshold: int, steps: list[tuple[float, tuple[int, Outcome] | None]]
) -> None:
    breaker = Breaker(threshold, RESET)
    history: list[Event] = []
    generations: dict[int, int] = {}
    now = 0.0
    for seconds, end in steps:
        now += seconds
        if end is None:
            capacity = reference_state(history, threshold, now).capacity
            assert breaker.capacity(now) == capacity
            generation = breaker.acquire(now)
            assert (generation is not None) is (capacity > 0)
            if generation is not None:
                generations[len(history)] = generation
                history.append(Event(now, len(history)))
        elif generations:
            message = sorted(generations)[end[0] % len(generations)]
            is_free = breaker.record(generations.pop(message), end[1], now, at(now))
            history.append(Event(now, message, end[1]))
            assert is_free is reference_state(history, threshold, now).is_free
        expected = reference_state(history, threshold, now)
        assert breaker.status() == GatewayStatus(
            is_set=True,
            breaker=expected.state,  # type: ignore[arg-type]  # one of three words
            held=expected.held,
            retry_at=expected.retry_at,
            failures=expected.failures,
        )
        assert (breaker.seconds_to_probe(now) == 0) is (breaker.capacity(now) > 0)
