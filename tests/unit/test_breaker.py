"""When the breaker lets messages through: each rule, and any history against a second telling."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.examples import thorough

from mailer.gateway.breaker import NO_LIMIT, Breaker, GatewayStatus, Hold
from mailer.gateway.port import Accepted, Outcome, Refused, Stopped, Unavailable, Unknown

NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)
RESET = 15.0
DOWN = Unavailable("http_500")
WRONG_TOKEN = Unavailable("http_401", affects_all=True)


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def busy(seconds: float) -> Unavailable:
    return Unavailable("http_503", seconds, affects_all=True)


def begun(breaker: Breaker, seconds: float = 0) -> int:
    permit = breaker.begin(seconds)
    assert permit is not None
    return permit


def told(breaker: Breaker, outcome: Outcome, seconds: float = 0) -> bool:
    """Send one message and have its outcome at once; whether the failure is free."""
    return breaker.record(begun(breaker, seconds), outcome, seconds, at(seconds))


def opened(outcome: Unavailable = WRONG_TOKEN) -> Breaker:
    breaker = Breaker(3, RESET)
    told(breaker, outcome)
    assert breaker.state == "open"
    return breaker


# ---- closed ---------------------------------------------------------------------------------


def test_closed_it_lets_all_through() -> None:
    breaker = Breaker(3, RESET)
    assert breaker.room(0) == NO_LIMIT
    assert breaker.seconds_to_probe(0) == 0
    assert breaker.status() == GatewayStatus(is_set=True)
    assert all(breaker.begin(0) is not None for _ in range(1000))


@pytest.mark.parametrize("failure", [DOWN, Unavailable("connection_failed"), Unknown("timeout")])
def test_so_many_failures_in_a_row_open_it(failure: Outcome) -> None:
    breaker = Breaker(3, RESET)
    told(breaker, failure, 1)
    told(breaker, failure, 2)
    assert breaker.status() == GatewayStatus(is_set=True, failures=2)
    told(breaker, failure, 3)
    assert breaker.status() == GatewayStatus(
        is_set=True,
        breaker="open",
        held=Hold(at(3), failure.reason),  # type: ignore[union-attr]  # a failure has one
        retry_at=at(3 + RESET),
        failures=3,
    )


@pytest.mark.parametrize("success", [Accepted(), Refused("rejected_400")])
def test_a_success_in_between_starts_the_count_again(success: Outcome) -> None:
    breaker = Breaker(3, RESET)
    for outcome in (DOWN, DOWN, success, DOWN, DOWN):
        told(breaker, outcome)
    assert (breaker.state, breaker.failures) == ("closed", 2)


def test_what_was_stopped_says_nothing() -> None:
    breaker = Breaker(3, RESET)
    for outcome in (DOWN, Stopped(), DOWN, Stopped(), DOWN):
        told(breaker, outcome)
    assert breaker.state == "open"


def test_a_failure_of_the_gateway_as_a_whole_opens_it_at_once() -> None:
    breaker = Breaker(1000, RESET)
    told(breaker, WRONG_TOKEN, 7)
    assert breaker.state == "open"
    assert breaker.hold == Hold(at(7), "http_401")
    assert breaker.retry_at == at(7 + RESET)


# ---- the pause ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "pause"),
    [
        (WRONG_TOKEN, RESET),
        (Unavailable("http_403", 90, affects_all=True), 90),
        (busy(2), 2),
        (busy(0.5), 0.5),
        (busy(3600), 3600),
    ],
)
def test_the_gateway_says_how_long(failure: Unavailable, pause: float) -> None:
    breaker = opened(failure)
    assert breaker.retry_at == at(pause)
    assert breaker.room(pause - 0.001) == 0
    assert breaker.seconds_to_probe(pause - 0.25) == 0.25
    assert breaker.room(pause) == 1
    assert breaker.seconds_to_probe(pause) == 0


def test_a_pause_for_one_message_is_not_one_for_all() -> None:
    breaker = Breaker(1, RESET)
    told(breaker, Unavailable("http_500", 3600))
    assert breaker.retry_at == at(RESET)


def test_open_it_lets_nothing_through() -> None:
    breaker = opened()
    for seconds in (0, 1, RESET - 0.001):
        assert breaker.begin(seconds) is None
        assert breaker.state == "open"


# ---- the probe ------------------------------------------------------------------------------


def test_half_open_it_lets_one_message_through_at_a_time() -> None:
    breaker = opened()
    begun(breaker, RESET)
    assert breaker.state == "half_open"
    for seconds in (RESET, RESET + 3600):
        assert breaker.room(seconds) == 0
        assert breaker.begin(seconds) is None
        assert breaker.seconds_to_probe(seconds) == math.inf


@pytest.mark.parametrize("success", [Accepted(), Refused("rejected_400")])
def test_a_probe_that_succeeds_closes_it(success: Outcome) -> None:
    breaker = opened()
    told(breaker, success, RESET)
    assert breaker.status() == GatewayStatus(is_set=True)
    assert breaker.room(RESET) == NO_LIMIT


def test_a_probe_that_fails_opens_it_again_and_it_is_held_since_the_same_moment() -> None:
    breaker = opened()
    probe = begun(breaker, 20)
    breaker.record(probe, Unknown("timeout"), 30, at(30))
    assert breaker.state == "open"
    assert breaker.hold == Hold(NOON, "timeout")
    assert breaker.retry_at == at(30 + RESET)
    told(breaker, busy(100), 50)
    assert breaker.hold == Hold(NOON, "http_503")
    assert breaker.retry_at == at(150)
    assert breaker.failures == 3


def test_a_probe_that_was_stopped_makes_way_for_the_next() -> None:
    breaker = opened()
    told(breaker, Stopped(), RESET)
    assert breaker.state == "half_open"
    assert breaker.hold == Hold(NOON, "http_401")
    assert breaker.room(RESET) == 1
    told(breaker, Accepted(), RESET)
    assert breaker.status() == GatewayStatus(is_set=True)


def test_it_is_held_anew_after_it_was_closed() -> None:
    breaker = opened()
    told(breaker, Accepted(), RESET)
    told(breaker, WRONG_TOKEN, 60)
    assert breaker.hold == Hold(at(60), "http_401")


# ---- what began before ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "outcome", [Accepted(), Refused("rejected_400"), Stopped(), DOWN, Unknown("timeout"), busy(5)]
)
def test_what_began_before_it_opened_changes_nothing(outcome: Outcome) -> None:
    breaker = Breaker(3, RESET)
    before = begun(breaker)
    told(breaker, WRONG_TOKEN)
    status = breaker.status()
    breaker.record(before, outcome, 1, at(1))
    assert breaker.status() == status
    begun(breaker, RESET)
    breaker.record(before, outcome, 5, at(5))
    assert breaker.state == "half_open"
    assert breaker.begin(RESET) is None


@pytest.mark.parametrize("outcome", [Accepted(), Stopped(), DOWN, Unknown("timeout"), busy(5)])
def test_what_began_before_it_closed_again_changes_nothing(outcome: Outcome) -> None:
    breaker = Breaker(1, RESET)
    before = begun(breaker)
    told(breaker, DOWN)
    told(breaker, Accepted(), RESET)
    breaker.record(before, outcome, RESET + 1, at(RESET + 1))
    assert breaker.status() == GatewayStatus(is_set=True)


def test_a_permit_lasts_until_the_breaker_opens_and_counts_again_once_it_is_closed() -> None:
    breaker = Breaker(1, RESET)
    before = begun(breaker)
    assert breaker.still_permits(before)
    told(breaker, DOWN)
    assert not breaker.still_permits(before)
    probe = begun(breaker, RESET)
    assert (breaker.still_permits(before), breaker.still_permits(probe)) == (False, True)
    breaker.record(probe, Accepted(), RESET, at(RESET))
    assert breaker.still_permits(before)


def test_a_longer_pause_is_heard_whoever_brings_it() -> None:
    breaker = Breaker(3, RESET)
    before = [begun(breaker) for _ in range(3)]
    told(breaker, WRONG_TOKEN)
    breaker.record(before[0], busy(100), 1, at(1))
    assert breaker.retry_at == at(101)
    breaker.record(before[1], busy(50), 2, at(2))
    assert breaker.retry_at == at(101)
    breaker.record(before[2], busy(900), 3, at(3))
    assert breaker.retry_at == at(3 + 900)
    assert breaker.hold == Hold(NOON, "http_401")
    assert breaker.failures == 1


# ---- whom it blames -------------------------------------------------------------------------


def test_failures_are_free_while_it_is_not_closed_or_was_not_since_they_began() -> None:
    breaker = Breaker(2, RESET)
    before = [begun(breaker) for _ in range(4)]
    assert not told(breaker, DOWN)
    assert told(breaker, DOWN)  # it opens it
    assert breaker.record(before[0], DOWN, 0, NOON)
    assert told(breaker, Unknown("timeout"), RESET)  # the probe
    assert not breaker.record(before[1], Accepted(), RESET, at(RESET))
    assert not breaker.record(before[2], Stopped(), RESET, at(RESET))
    assert not told(breaker, Refused("rejected_400"), 2 * RESET)
    assert breaker.state == "closed"
    assert breaker.record(before[3], DOWN, 2 * RESET, at(2 * RESET))  # it began before the outage
    assert not told(breaker, DOWN, 2 * RESET)


def test_try_now_lets_the_next_message_probe_at_once() -> None:
    breaker = opened(busy(600))
    assert breaker.room(1) == 0
    breaker.try_now(1, at(1))
    assert breaker.retry_at == at(1)
    assert breaker.room(1) == 1
    begun(breaker, 1)
    breaker.try_now(1, at(1))  # a probe is under way
    assert breaker.room(1) == 0


# ---- any history ----------------------------------------------------------------------------


class Event(NamedTuple):
    """A message began, or what became of it is known."""

    second: float
    message: int
    outcome: Outcome | None = None


class View(NamedTuple):
    """How it stands after a history."""

    state: str
    held: Hold | None
    retry_at: datetime | None
    failures: int
    room: int
    is_free: bool
    """Whether the history ends with a failure that costs no attempt."""


def second_telling(history: Sequence[Event], most: int, now: float) -> View:
    """Tell how a breaker stands at `now`, from the first event of its history on.

    The history falls into eras; only messages that began in an era have a say in it, and one of
    them ends it. In an era that is held, `tries` are the messages that began in it.
    """
    born: dict[int, int] = {}
    era, failures, is_free = 0, 0, False
    since = reason = until = None
    tries: dict[int, str] = {}
    for second, message, outcome in history:
        is_free = False
        if outcome is None:
            born[message] = era
            tries[message] = "under way"
            continue
        is_own = born[message] == era
        if isinstance(outcome, Stopped):
            tries[message] = "stopped"
        elif isinstance(outcome, Accepted | Refused):
            if is_own:
                era += reason is not None
                failures, since, reason, until = 0, None, None, None
        else:
            asks = isinstance(outcome, Unavailable) and outcome.affects_all
            asked = outcome.retry_after if isinstance(outcome, Unavailable) and asks else None
            again_at = second + (asked or RESET)
            failures += is_own
            if is_own and (asks or reason is not None or failures >= most):
                since = second if since is None else since
                era, reason, until, tries = era + 1, outcome.reason, again_at, {}
            elif asks and not is_own and until is not None:
                until = max(until, again_at)
            is_free = reason is not None or not is_own
    if since is None or reason is None or until is None:
        return View("closed", None, None, failures, NO_LIMIT, is_free)
    tried = [fate for message, fate in tries.items() if born[message] == era]
    state = "half_open" if tried else "open"
    room = int(now >= until and "under way" not in tried)
    return View(state, Hold(at(since), reason), at(until), failures, room, is_free)


outcomes = st.one_of(
    st.just(DOWN),
    st.sampled_from([Accepted(), Refused("rejected_400"), Stopped()]),
    st.sampled_from([Unavailable("http_500", 30.0), Unknown("timeout"), WRONG_TOKEN]),
    st.sampled_from([0.0, 1.0, 20.0, 900.0]).map(busy),
)
passed = st.sampled_from([0.0, 1.0, 14.0, 15.0, 60.0, 86_400.0])
beginnings = st.none()
endings = st.tuples(st.integers(0, 100), outcomes)


@thorough
@given(
    most=st.integers(1, 4),
    steps=st.lists(st.tuples(passed, beginnings | endings), max_size=40),
)
def test_after_any_history_it_stands_as_a_second_telling_says(
    most: int, steps: list[tuple[float, tuple[int, Outcome] | None]]
) -> None:
    breaker = Breaker(most, RESET)
    history: list[Event] = []
    permits: dict[int, int] = {}
    now = 0.0
    for seconds, ending in steps:
        now += seconds
        if ending is None:
            room = second_telling(history, most, now).room
            assert breaker.room(now) == room
            permit = breaker.begin(now)
            assert (permit is not None) is (room > 0)
            if permit is not None:
                permits[len(history)] = permit
                history.append(Event(now, len(history)))
        elif permits:
            message = sorted(permits)[ending[0] % len(permits)]
            is_free = breaker.record(permits.pop(message), ending[1], now, at(now))
            history.append(Event(now, message, ending[1]))
            assert is_free is second_telling(history, most, now).is_free
        stands = second_telling(history, most, now)
        assert breaker.status() == GatewayStatus(
            is_set=True,
            breaker=stands.state,  # type: ignore[arg-type]  # one of three words
            held=stands.held,
            retry_at=stands.retry_at,
            failures=stands.failures,
        )
        assert (breaker.seconds_to_probe(now) == 0) is (breaker.room(now) > 0)
