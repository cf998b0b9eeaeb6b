"""The circuit breaker: each rule, and random histories against a reference implementation.

Times are seconds since noon. The moment 0 is noon.
"""

import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.examples import thorough
from tests.factories import NOON

from mailer.gateway.breaker import UNLIMITED, Breaker, BreakerState, Outage
from mailer.gateway.protocol import Aborted, Accepted, Outcome, Rejected, TemporaryFailure, Unknown

RESET = 15.0
"""Seconds for which an open breaker permits no probe."""
FAILURE = TemporaryFailure("http_500")
WRONG_TOKEN = TemporaryFailure("http_401", affects_all=True)
"""A failure that opens a breaker at once."""


class Status(NamedTuple):
    """What a breaker shows to users."""

    state: BreakerState
    outage: Outage | None
    retry_at: datetime | None
    failures: int


CLOSED = Status("closed", outage=None, retry_at=None, failures=0)


def status_of(breaker: Breaker) -> Status:
    """Return what a breaker shows to users."""
    return Status(breaker.state, breaker.outage, breaker.retry_at, breaker.failures)


def at(seconds: float) -> datetime:
    """Return a moment by the database's clock."""
    return NOON + timedelta(seconds=seconds)


def busy_for(seconds: float) -> TemporaryFailure:
    """Return a failure of a gateway that asks all messages to wait for `seconds`."""
    return TemporaryFailure("http_503", retry_after=seconds, affects_all=True)


def acquire(breaker: Breaker, seconds: float = 0) -> int:
    """Start a request at a time when the breaker permits it; return the breaker's generation."""
    generation = breaker.acquire(seconds)
    assert generation is not None
    return generation


def record(breaker: Breaker, outcome: Outcome, seconds: float = 0) -> bool:
    """Start a request and record its outcome at once; return whether it costs no attempt."""
    return breaker.record(acquire(breaker, seconds), outcome, seconds, at(seconds))


def open_breaker(outcome: TemporaryFailure = WRONG_TOKEN) -> Breaker:
    """Return a breaker that opened at noon."""
    breaker = Breaker(max_failures=3, reset=RESET)
    record(breaker, outcome)
    assert breaker.state == "open"
    return breaker


# ---- closed ---------------------------------------------------------------------------------


def test_closed_breaker_permits_any_number_of_requests() -> None:
    breaker = Breaker(max_failures=3, reset=RESET)
    assert breaker.capacity(0) == UNLIMITED
    assert breaker.seconds_to_probe(0) == 0
    assert status_of(breaker) == CLOSED
    assert all(breaker.acquire(0) is not None for _ in range(1000))


@pytest.mark.parametrize(
    "failure", [FAILURE, TemporaryFailure("connection_failed"), Unknown("timeout")]
)
def test_configured_number_of_consecutive_failures_opens_the_breaker(
    failure: TemporaryFailure | Unknown,
) -> None:
    breaker = Breaker(max_failures=3, reset=RESET)
    record(breaker, failure, 1)
    record(breaker, failure, 2)
    assert status_of(breaker) == CLOSED._replace(failures=2)
    record(breaker, failure, 3)
    assert status_of(breaker) == Status(
        "open",
        outage=Outage(since=at(3), reason=failure.reason),
        retry_at=at(3 + RESET),
        failures=3,
    )


@pytest.mark.parametrize("success", [Accepted(), Rejected("rejected_400")])
def test_success_resets_the_count_of_failures(success: Outcome) -> None:
    breaker = Breaker(max_failures=3, reset=RESET)
    for outcome in (FAILURE, FAILURE, success, FAILURE, FAILURE):
        record(breaker, outcome)
    assert (breaker.state, breaker.failures) == ("closed", 2)


def test_aborted_request_does_not_change_the_count_of_failures() -> None:
    breaker = Breaker(max_failures=3, reset=RESET)
    for outcome in (FAILURE, Aborted(), FAILURE, Aborted(), FAILURE):
        record(breaker, outcome)
    assert breaker.state == "open"


def test_failure_that_affects_all_messages_opens_the_breaker_at_once() -> None:
    breaker = Breaker(max_failures=1000, reset=RESET)
    record(breaker, WRONG_TOKEN, 7)
    assert breaker.state == "open"
    assert breaker.outage == Outage(since=at(7), reason="http_401")
    assert breaker.retry_at == at(7 + RESET)


# ---- the pause ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "pause"),
    [
        (WRONG_TOKEN, RESET),  # it does not ask for a pause
        (TemporaryFailure("http_403", retry_after=90, affects_all=True), 90),
        (busy_for(2), 2),
        (busy_for(0.5), 0.5),
        (busy_for(3600), 3600),
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
    breaker = Breaker(max_failures=1, reset=RESET)
    record(breaker, TemporaryFailure("http_500", retry_after=3600))
    assert breaker.retry_at == at(RESET)


def test_open_breaker_permits_no_request() -> None:
    breaker = open_breaker()
    for seconds in (0, 1, RESET - 0.001):
        assert breaker.acquire(seconds) is None
        assert breaker.state == "open"


# ---- the probe ------------------------------------------------------------------------------


def test_half_open_breaker_permits_one_request_at_a_time() -> None:
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
    assert status_of(breaker) == CLOSED
    assert breaker.capacity(RESET) == UNLIMITED


def test_failed_probe_reopens_the_breaker_and_the_outage_continues() -> None:
    breaker = open_breaker()
    first_probe = acquire(breaker, 20)
    breaker.record(first_probe, Unknown("timeout"), 30, at(30))
    assert breaker.state == "open"
    assert breaker.outage == Outage(since=NOON, reason="timeout")
    assert breaker.retry_at == at(30 + RESET)
    record(breaker, busy_for(100), 50)  # the second probe
    assert breaker.outage == Outage(since=NOON, reason="http_503")
    assert breaker.retry_at == at(50 + 100)
    assert breaker.failures == 3


def test_aborted_probe_permits_the_next_probe() -> None:
    breaker = open_breaker()
    record(breaker, Aborted(), RESET)
    assert breaker.state == "half_open"
    assert breaker.outage == Outage(since=NOON, reason="http_401")
    assert breaker.capacity(RESET) == 1
    record(breaker, Accepted(), RESET)
    assert status_of(breaker) == CLOSED


def test_new_outage_starts_after_the_breaker_was_closed() -> None:
    breaker = open_breaker()
    record(breaker, Accepted(), RESET)
    record(breaker, WRONG_TOKEN, 60)
    assert breaker.outage == Outage(since=at(60), reason="http_401")


# ---- requests of earlier generations --------------------------------------------------------


@pytest.mark.parametrize(
    "outcome",
    [Accepted(), Rejected("rejected_400"), Aborted(), FAILURE, Unknown("timeout"), busy_for(5)],
)
def test_request_started_before_the_breaker_opened_does_not_change_it(outcome: Outcome) -> None:
    breaker = Breaker(max_failures=3, reset=RESET)
    earlier, other_earlier = acquire(breaker), acquire(breaker)
    record(breaker, WRONG_TOKEN)
    status_when_opened = status_of(breaker)

    breaker.record(earlier, outcome, 1, at(1))
    assert status_of(breaker) == status_when_opened

    acquire(breaker, RESET)
    breaker.record(other_earlier, outcome, 5, at(5))
    assert breaker.state == "half_open"
    assert breaker.acquire(RESET) is None  # the probe is still in flight


@pytest.mark.parametrize(
    "outcome", [Accepted(), Aborted(), FAILURE, Unknown("timeout"), busy_for(5)]
)
def test_request_started_before_the_outage_does_not_change_the_closed_breaker(
    outcome: Outcome,
) -> None:
    breaker = Breaker(max_failures=1, reset=RESET)
    earlier = acquire(breaker)
    record(breaker, FAILURE)
    record(breaker, Accepted(), RESET)
    breaker.record(earlier, outcome, RESET + 1, at(RESET + 1))
    assert status_of(breaker) == CLOSED


def test_request_may_be_written_except_while_a_later_outage_lasts() -> None:
    breaker = Breaker(max_failures=1, reset=RESET)
    earlier = acquire(breaker)
    assert breaker.is_current(earlier)
    record(breaker, FAILURE)
    assert not breaker.is_current(earlier)
    probe = acquire(breaker, RESET)
    assert not breaker.is_current(earlier)
    assert breaker.is_current(probe)
    breaker.record(probe, Accepted(), RESET, at(RESET))
    assert breaker.is_current(earlier)


def test_longer_pause_from_an_earlier_request_is_applied() -> None:
    breaker = Breaker(max_failures=3, reset=RESET)
    earlier = [acquire(breaker) for _ in range(3)]
    record(breaker, WRONG_TOKEN)
    breaker.record(earlier[0], busy_for(100), 1, at(1))
    assert breaker.retry_at == at(1 + 100)
    breaker.record(earlier[1], busy_for(50), 2, at(2))
    assert breaker.retry_at == at(1 + 100)
    breaker.record(earlier[2], busy_for(900), 3, at(3))
    assert breaker.retry_at == at(3 + 900)
    assert breaker.outage == Outage(since=NOON, reason="http_401")
    assert breaker.failures == 1


# ---- failures that cost no attempt ----------------------------------------------------------


def test_failure_costs_no_attempt_if_it_opens_the_breaker_or_comes_during_the_outage() -> None:
    breaker = Breaker(max_failures=2, reset=RESET)
    earlier = acquire(breaker)
    assert not record(breaker, FAILURE)
    assert record(breaker, FAILURE)  # it opens the breaker
    assert breaker.record(earlier, FAILURE, 0, NOON)
    assert record(breaker, Unknown("timeout"), RESET)  # the probe


def test_failure_after_the_outage_costs_no_attempt_if_its_request_started_before() -> None:
    breaker = Breaker(max_failures=3, reset=RESET)
    earlier = acquire(breaker)
    record(breaker, WRONG_TOKEN)
    record(breaker, Rejected("rejected_400"), RESET)
    assert breaker.state == "closed"
    assert breaker.record(earlier, FAILURE, RESET, at(RESET))
    assert not record(breaker, FAILURE, RESET)


@pytest.mark.parametrize("outcome", [Accepted(), Rejected("rejected_400"), Aborted()])
def test_outcome_that_is_no_failure_is_never_recorded_as_one(outcome: Outcome) -> None:
    breaker = Breaker(max_failures=1, reset=RESET)
    earlier = acquire(breaker)
    record(breaker, FAILURE)
    assert not breaker.record(earlier, outcome, 1, at(1))  # during the outage
    assert not record(breaker, outcome, RESET)  # of the probe


def test_after_try_now_the_next_request_is_a_probe() -> None:
    breaker = open_breaker(busy_for(600))
    assert breaker.capacity(1) == 0
    breaker.try_now(1, at(1))
    assert breaker.retry_at == at(1)
    assert breaker.capacity(1) == 1
    acquire(breaker, 1)
    breaker.try_now(1, at(1))  # a probe is already in flight
    assert breaker.capacity(1) == 0


# ---- random histories -----------------------------------------------------------------------


class Event(NamedTuple):
    """A request started, or its outcome was recorded."""

    second: float
    request: int
    """A number that identifies the request."""
    outcome: Outcome | None = None
    """None when the request started."""


class ExpectedState(NamedTuple):
    """The state of a breaker after a history."""

    state: BreakerState
    outage: Outage | None
    retry_at: datetime | None
    failures: int
    capacity: int
    costs_no_attempt: bool
    """Whether the last event is a failure that costs no attempt."""


class ReferenceBreaker:
    """A breaker that reads a history: simpler than the real one, because it permits any request.

    A history consists of generations. Only requests that started in a generation can change its
    state, and one of them ends it, by a success or a failure that opens the breaker.
    """

    def __init__(self, threshold: int) -> None:
        self._threshold = threshold
        self._generation = 0
        self._failures = 0
        self._outage: Outage | None = None
        self._probe_at = 0.0
        """From when a probe is permitted, during an outage."""
        self._generation_of: dict[int, int] = {}
        """The generation in which each request started."""
        self._in_flight: set[int] = set()
        self._costs_no_attempt = False

    def apply(self, event: Event) -> None:
        """Apply the next event of the history."""
        self._costs_no_attempt = False
        outcome = event.outcome
        if outcome is None:
            self._generation_of[event.request] = self._generation
            self._in_flight.add(event.request)
            return
        self._in_flight.remove(event.request)
        is_current = self._generation_of[event.request] == self._generation
        match outcome:
            case Accepted() | Rejected() if is_current:
                self._generation += self._outage is not None
                self._failures, self._outage = 0, None
            case TemporaryFailure() | Unknown():
                self._fail(event.second, outcome, is_current=is_current)
            case _:  # an aborted request, or a success of an earlier generation
                pass

    def _fail(
        self, second: float, failure: TemporaryFailure | Unknown, *, is_current: bool
    ) -> None:
        affects_all, requested_pause = False, None
        if isinstance(failure, TemporaryFailure) and failure.affects_all:
            affects_all, requested_pause = True, failure.retry_after
        probe_at = second + (requested_pause or RESET)
        self._failures += is_current
        is_outage = self._outage is not None
        if is_current and (affects_all or is_outage or self._failures >= self._threshold):
            since = at(second) if self._outage is None else self._outage.since
            self._outage = Outage(since, failure.reason)
            self._probe_at = probe_at
            self._generation += 1
        elif affects_all and not is_current and is_outage:
            self._probe_at = max(self._probe_at, probe_at)
        self._costs_no_attempt = self._outage is not None or not is_current

    def state(self, now: float) -> ExpectedState:
        """Return the state at `now`."""
        if self._outage is None:
            return ExpectedState(
                "closed", None, None, self._failures, UNLIMITED, self._costs_no_attempt
            )
        probes = {
            request
            for request, generation in self._generation_of.items()
            if generation == self._generation
        }
        is_probing = bool(probes & self._in_flight)
        return ExpectedState(
            "half_open" if probes else "open",
            self._outage,
            at(self._probe_at),
            self._failures,
            capacity=int(now >= self._probe_at and not is_probing),
            costs_no_attempt=self._costs_no_attempt,
        )


def reference_state(history: Sequence[Event], threshold: int, now: float) -> ExpectedState:
    """Return the state that a breaker must have at `now` after a history."""
    reference = ReferenceBreaker(threshold)
    for event in history:
        reference.apply(event)
    return reference.state(now)


outcomes = st.one_of(
    st.just(FAILURE),
    st.sampled_from([Accepted(), Rejected("rejected_400"), Aborted()]),
    st.sampled_from(
        [TemporaryFailure("http_500", retry_after=30.0), Unknown("timeout"), WRONG_TOKEN]
    ),
    st.sampled_from([0.0, 1.0, 20.0, 900.0]).map(busy_for),
)
pauses = st.sampled_from([0.0, 1.0, 14.0, 15.0, 60.0, 86_400.0])
starts = st.none()
ends = st.tuples(st.integers(0, 100), outcomes)  # which of the requests in flight ends, and how


@thorough
@given(
    threshold=st.integers(1, 4),
    steps=st.lists(st.tuples(pauses, starts | ends), max_size=40),
)
def test_state_after_any_history_equals_that_of_the_reference(
    threshold: int, steps: list[tuple[float, tuple[int, Outcome] | None]]
) -> None:
    """In each step, time passes, and then a request starts or one in flight ends."""
    breaker = Breaker(max_failures=threshold, reset=RESET)
    history: list[Event] = []
    in_flight: dict[int, int] = {}  # the generation of each request
    now = 0.0
    for seconds, end in steps:
        now += seconds
        if end is None:
            capacity = reference_state(history, threshold, now).capacity
            assert breaker.capacity(now) == capacity
            generation = breaker.acquire(now)
            assert (generation is not None) is (capacity > 0)
            if generation is not None:
                request = len(history)
                in_flight[request] = generation
                history.append(Event(now, request))
        elif in_flight:
            index, outcome = end
            request = sorted(in_flight)[index % len(in_flight)]
            costs_no_attempt = breaker.record(in_flight.pop(request), outcome, now, at(now))
            history.append(Event(now, request, outcome))
            assert costs_no_attempt is reference_state(history, threshold, now).costs_no_attempt
        expected = reference_state(history, threshold, now)
        assert status_of(breaker) == Status(
            expected.state,
            outage=expected.outage,
            retry_at=expected.retry_at,
            failures=expected.failures,
        )
        assert (breaker.seconds_to_probe(now) == 0) is (breaker.capacity(now) > 0)
